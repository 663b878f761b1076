//! Device registers of 32 bits for which a driver would be more than its use.
#![expect(
    unsafe_code,
    reason = "device registers are read and written by address"
)]

use core::ptr;

use cordon_firmware::layout::{DEVICES_BASE, DEVICES_SIZE};

/// Whether a register may be at `address`: aligned, and in the window of devices.
const fn is_register(address: u64) -> bool {
    address.is_multiple_of(4) && address >= DEVICES_BASE && address - DEVICES_BASE < DEVICES_SIZE
}

/// Reads the register at `address`, 0 where none can be.
pub(crate) fn read_u32(address: u64) -> u32 {
    if !is_register(address) {
        return 0;
    }
    // SAFETY: the window of devices is mapped as device memory and holds no Rust object.
    unsafe { ptr::with_exposed_provenance::<u32>(address as usize).read_volatile() }
}

/// Writes the register at `address`, if there can be one.
pub(crate) fn write_u32(address: u64, value: u32) {
    if is_register(address) {
        // SAFETY: as above. What the write does is the caller's business, and no device but
        // fw_cfg, which has its own module, writes to memory.
        unsafe { ptr::with_exposed_provenance_mut::<u32>(address as usize).write_volatile(value) };
    }
}
