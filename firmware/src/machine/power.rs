//! Switching the machine: the secure PL061, whose pins QEMU wires to power and reset.

use cordon_firmware::layout::{GPIO_POWER_OFF, GPIO_RESET, SECURE_GPIO_BASE};

use super::{mmio, sysreg};

/// Powers the machine off.
pub(crate) fn off() -> ! {
    raise(GPIO_POWER_OFF)
}

/// Resets the machine.
pub(crate) fn reset() -> ! {
    raise(GPIO_RESET)
}

/// Raises `pin`, which ends the machine, or in an emulator does so a moment later.
fn raise(pin: u32) -> ! {
    /// Direction: 1 is output (PL061 TRM 3.3.2).
    const GPIODIR: u64 = 0x400;
    // Address bits 9:2 of the data register are the mask of pins it acts on (PL061 TRM 3.3.1).
    let data = SECURE_GPIO_BASE + (4 << pin);
    mmio::write_u32(data, 0);
    mmio::write_u32(SECURE_GPIO_BASE + GPIODIR, 1 << pin);
    mmio::write_u32(data, 1 << pin);
    loop {
        sysreg::wait_for_interrupt();
    }
}
