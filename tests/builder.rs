//! Tests of the builder and of what it ships; one module a subject.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic")]
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small, and tests run on 64 bits")]

mod bench;
mod boot_chain;
mod contents;
mod documents;
mod image;
mod installed;
mod ostree_repository;
mod project;
mod provision;
mod publish;
mod release;
mod rollouts;
mod shipped;
mod station;
mod tree_sources;
mod typed;
mod vm;

use reflash_test_support as support;
use support::isolated;
