//! Tests of the agent that need more than one of its modules; one module a subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small, and tests run on 64 bits")]

mod block;
mod boot_watch;
mod drill;
mod environment;
mod fetch;
mod field;
mod floor;
mod frames;
mod groups;
mod health;
mod hostile;
mod memory;
mod net;
mod optional;
mod properties;
mod recovery;
mod reset;
mod rollout;
mod second_reader;
mod slots;
mod sources;
mod staged;
mod two_systems;
mod undo;
mod update;

use reflash_test_support as support;
use support::isolated;
