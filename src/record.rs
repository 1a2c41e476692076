//! What is reported while reflash works, and what is kept of it: the [`journal`] of typed [`event`]s, the [`blackbox`]
//! of the last attempts with its [`marks`], and [`report`]s to a server, whose JSON is in [`wire`].

pub mod blackbox;
pub mod event;
pub mod journal;
pub mod marks;
pub mod progress;
pub mod report;
pub mod start;
pub mod totals;
pub mod wire;
