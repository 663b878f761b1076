//! The one thing that Cordon does with a device that a VM was given: puts it into its reset state.

use super::mmu::{self, DeviceWindow};
use cordon::vm::device::{Device, DeviceKind};

/// See [`cordon::vm::hypervisor::Platform::reset_device`].
///
/// # Errors
///
/// If EL2's map does not reach the registers, or they are in use otherwise.
pub fn reset(device: &Device) -> Result<(), mmu::Error> {
    let window = DeviceWindow::open(device.registers)?;
    match device.kind {
        DeviceKind::VirtioMmio => reset_virtio(&window),
    }
    Ok(())
}

/// Virtio 1.3, 4.2.2: writing 0 to Status resets the device, which is over when 0 is read back.
fn reset_virtio(registers: &DeviceWindow) {
    const MAGIC: (u64, u32) = (0x000, 0x7472_6976);
    const STATUS: u64 = 0x070;
    /// A device that takes longer is broken. It is not waited for.
    const PATIENCE: u32 = 1_000_000;
    let (magic, virt) = MAGIC;
    if registers.read(magic) != Some(virt) {
        return;
    }
    registers.write(STATUS, 0);
    for _ in 0..PATIENCE {
        if registers.read(STATUS) == Some(0) {
            return;
        }
        core::hint::spin_loop();
    }
    log::warn!(
        "event=error what=device why=does-not-reset pa={}",
        registers.start()
    );
}
