//! What a guest must not be able to do, as data: what is tried, and what it must get.
//!
//! `bare/attack` executes; everything that can be decided without a machine is here.

pub mod encoding;
pub mod places;
pub mod random;
pub mod smccc;
pub mod verdict;
