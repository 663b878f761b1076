//! What happens at each exit of a guest, on a machine that is plain values.

mod calls;
mod devices;
mod fake;
mod faults;
mod loading;
mod memory_errors;
mod model;
mod monitor;
mod quick;
mod registers;
mod restarting;
mod serrors;
mod stopping;
