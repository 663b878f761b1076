//! One physical UART for everybody: Cordon's own lines, the consoles of all VMs, and an operator.
//!
//! What a VM prints appears as whole lines behind its name (`probe| text`), never torn apart by
//! somebody else's. A line that is not finished is kept until it is, or until its VM looks for
//! input: then it is a prompt, and a person must see it. A prompt that is interrupted by another
//! line is ended first and shown again afterwards.
//!
//! What is typed goes to one VM, the one in *focus*, or to the monitor. The operator moves the focus
//! with an escape key ([`keys`]), and can give the terminal to the VM in focus: then what it prints
//! goes out as it is, and the lines of all others stand around it.
//!
//! ```text
//!   bytes in --> keys --+--> typed (a queue a VM) --> the VM's UART
//!                       +--> editor --> a line for the monitor --> monitor (its command)
//!
//!   bytes out <-- mux <---- VMs' bytes, Cordon's lines, the monitor's prompt
//! ```
//!
//! All of this is behind one lock, so nothing here may do what wants another: a command that was
//! typed is handed to the caller, who has released it by then.

pub mod editor;
pub mod keys;
pub mod line;
pub mod monitor;
mod mux;
mod sequence;
mod switchboard;
pub mod typed;

#[cfg(test)]
mod tests;

pub use mux::MAX_LINE;
pub use switchboard::{Event, Switchboard};

/// The terminal's two directions.
pub trait Screen: core::fmt::Write {
    /// Sends a byte as it is; text goes through `Write`, which knows what a newline is.
    fn raw(&mut self, byte: u8);

    /// A byte that was typed, if one is waiting.
    fn key(&mut self) -> Option<u8>;
}
