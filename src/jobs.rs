//! What reflash does to a machine, the same for PID 1 and for a command typed by hand, and what a machine keeps.
//!
//! | module | what it does |
//! |---|---|
//! | [`recovery`] | makes the system equal to a release, or goes back to the last good one |
//! | [`update`] | fetches the next release while the system works |
//! | [`provision`] | turns a blank disk into a robot's disk |
//! | [`factory_reset`] | makes the data partition anew |
//! | [`relayout`] | gives a second system to a robot that has one, or takes it away |
//! | [`drill`] | shows whether the robot could recover, without writing |
//! | [`mend`] | mends partition table, boot code and recovery partition |
//! | [`shipped`] | brings what a release has for the machine's own directories |
//! | [`health`] | judges whether a boot may be called good |
//! | [`pause`] | remembers how much of a pause is over |
//!
//! | module | what it keeps |
//! |---|---|
//! | [`state`] | the files of the state partition, the record of the installed release among them |
//! | [`floor`] | the lowest serial that is accepted, and which releases are refused |
//! | [`systems`] | which of two systems is active, and which are good |
//! | [`site_copy`] | a copy of the configuration on the recovery partition |
//! | [`keys`] | the keys that releases are checked with |
//! | [`facts`] | nothing: what roll-outs may ask of the running system, which the image answers |

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
