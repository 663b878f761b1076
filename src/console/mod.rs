//! One physical UART for everybody: Cordon's own lines, and the consoles of all VMs.
//!
//! What a VM prints appears as whole lines behind its name (`probe| text`), never torn apart by
//! somebody else's. A line that is not finished is kept until it is, or until its VM looks for
//! input: then it is a prompt, and a person must see it. A prompt that is interrupted by another
//! line is ended first and shown again afterwards.

mod mux;

pub use mux::{MAX_LINE, Mux};
