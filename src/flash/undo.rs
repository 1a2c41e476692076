//! Keeps what is needed to go back to a release, on the partition itself, behind the image.

mod kept;
mod obstacle;

pub use kept::possible;
pub use obstacle::{UndoObstacle, UndoRoom, UndoTarget};
