//! What happens at each exit of a guest, on a machine that is plain values.

mod calls;
mod carried;
mod devices;
mod error_records;
mod fake;
mod faults;
mod loading;
mod memory_errors;
mod mending;
mod model;
mod monitor;
mod protecting;
mod quick;
#[cfg(feature = "model")]
mod races;
mod registers;
mod restarting;
mod scale;
mod serrors;
mod services;
mod sharing;
mod stopping;
