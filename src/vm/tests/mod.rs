//! What happens at each exit of a guest, on a machine that is plain values.

mod calls;
mod fake;
mod faults;
mod memory_errors;
mod mending;
mod model;
#[cfg(feature = "model")]
mod races;
mod serrors;
mod services;
mod stopping;
