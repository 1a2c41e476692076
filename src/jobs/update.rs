//! The next release, fetched while the system works: into a [`store`] on the data partition, from which recovery
//! applies it without a network.
//!
//! | step | what it does | file |
//! |---|---|---|
//! | offered | asks which release is for this robot, as a recovery does | [`fetch_release`](super::recovery::fetch_release) |
//! | staged | plans against the mounted system, reserves the room that this takes, fetches what is missing, and tries all of it out | [`stage`] |
//! | moment | whether the robot agrees to a restart now | [`moment`] |
//! | permission | asks once more whether the release stands, and writes that beside the request for a recovery | [`permission`] |
//! | applied | the recovery reads the store, and trusts no byte of it | `pid1/recovery/staged.rs` |
//!
//! On a robot with two systems it is written to the other one, and a restart starts that: [`beside`].
//!
//! What is known of all that is in [`standing`], for `reflash status`.

pub mod beside;
mod error;
mod filling;
mod map;
pub mod moment;
pub mod permission;
pub mod stage;
pub mod standing;
pub mod store;
mod unhurried;

pub use error::UpdateError;
pub use store::UpdateStore;
