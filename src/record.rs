//! What is reported while reflash works, and what is kept of it: the [`journal`], the [`blackbox`] of the last attempts,
//! and [`report`]s to a server.

pub mod blackbox;
pub mod journal;
pub mod progress;
pub mod report;
pub mod totals;
