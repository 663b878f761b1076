//! UARTs, as far as a console needs them: drivers over a trait for their registers.
//!
//! ```text
//!   cadence   Xilinx' and others'
//!   imx       NXP's
//!   ns16550   the 8250 and what came of it, a byte or a word a register
//! ```
//!
//! Arm's PL011 has a crate (`src/arch/aarch64/uart/driver.rs`). The line's settings are the boot loader's in each.

pub mod cadence;
pub mod imx;
pub mod ns16550;

/// A UART's registers.
pub trait Registers {
    /// Reads the register at `offset`, in bytes.
    fn read(&self, offset: u64) -> u32;
    /// Writes it.
    fn write(&mut self, offset: u64, value: u32);
}
