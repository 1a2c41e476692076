//! Makes one partition equal to an image: [`plan`] what to do, [`write`] it, [`readback`] what the medium holds, and
//! [`verify`] that all of it is right.

pub mod plan;
pub mod readback;
pub mod target;
pub mod verify;
pub mod write;
