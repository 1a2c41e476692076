//! Makes one partition equal to an image: [`survey`] reads what is there, [`plan`] says what to do, [`mod@write`] does
//! it, [`readback`] reads what the medium holds, and [`verify`] proves that all of it is right.

pub mod beside;
pub(crate) mod frames;
pub mod plan;
pub mod readback;
pub mod survey;
pub mod target;
pub mod template;
pub(crate) mod threads;
pub mod undo;
pub mod verify;
pub mod write;
