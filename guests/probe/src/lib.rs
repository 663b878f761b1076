//! What the probe guest knows without touching a machine.
//!
//! Everything here is plain computation: which value belongs into a line of memory, how work is
//! shared, what a typed line asks for, what a syndrome says, which descriptors map an address.
//! The binary adds the instructions (`src/bare`). So this half is tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod attack;
pub mod bitmap;
pub mod book;
pub mod bump;
pub mod command;
pub mod editor;
pub mod layout;
pub mod ledger;
pub mod machine;
pub mod pages;
pub mod paging;
pub mod pattern;
pub mod share;
pub mod syndrome;
pub mod tally;

/// Size in bytes of a page: the unit in which memory is lost.
pub const PAGE_SIZE: u64 = 4096;

/// The most vCPUs that the guest uses, as many as a bundle can ask for.
pub const MAX_VCPUS: usize = 64;

/// What all property tests run with: under Miri few cases, and no file of past failures, which its
/// isolation forbids.
#[cfg(test)]
fn test_config() -> proptest::test_runner::Config {
    if cfg!(miri) {
        proptest::test_runner::Config {
            cases: 4,
            failure_persistence: None,
            ..Default::default()
        }
    } else {
        proptest::test_runner::Config::default()
    }
}
