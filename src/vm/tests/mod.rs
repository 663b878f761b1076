//! What happens at each exit of a guest, on a machine that is plain values.

mod calls;
mod devices;
mod error_records;
mod fake;
mod faults;
mod memory_errors;
mod model;
mod monitor;
mod registers;
mod restarting;
mod serrors;
mod stopping;
