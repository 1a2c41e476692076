//! What reflash does to a machine: [`recovery`] of its system, [`provision`]ing of a blank disk, [`factory_reset`] of
//! its data, the [`drill`] that shows whether it could recover, what its release brings to the machine's own
//! directories ([`shipped`]), and its next release, which is fetched while the system works ([`update`]); [`systems`]
//! are the two that some robots have, and [`relayout`] gives them to a robot that has one. Each is the same for PID 1
//! and for a command typed by hand.

pub mod drill;
pub mod factory_reset;
pub mod facts;
pub mod floor;
pub mod health;
pub mod keys;
pub mod mend;
pub mod pause;
pub mod provision;
pub mod recovery;
pub mod relayout;
pub mod shipped;
pub mod site_copy;
pub mod state;
pub mod systems;
pub mod update;
