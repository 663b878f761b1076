//! Normal-world RAM as the firmware reaches it: copies within the mapped window.
//!
//! While the normal world runs, any of this memory may change under the firmware's hands. So there
//! are no references into it then, only volatile copies; [`loaded`] is for the boot alone.
#![expect(
    unsafe_code,
    reason = "memory that is not Rust's own is read and written by address"
)]

use core::ptr;

use cordon::addr::{Pa, PaRange};
use cordon_firmware::layout::RAM_WINDOW;

use super::sysreg;

/// The address of `length` bytes at `at`, if the window holds them.
fn address(at: Pa, length: usize) -> Option<usize> {
    if length == 0 {
        return None;
    }
    let range = PaRange::new(at, length as u64)?;
    RAM_WINDOW
        .contains_range(range)
        .then_some(at.get() as usize)
}

/// Fills `out` from `from` on; `None` outside the window.
pub(crate) fn read(from: Pa, out: &mut [u8]) -> Option<()> {
    let address = address(from, out.len())?;
    for (offset, byte) in out.iter_mut().enumerate() {
        let source = ptr::with_exposed_provenance::<u8>(address + offset);
        // SAFETY: the window is mapped as Normal memory and holds no Rust object, so any value may
        // be read at any time. The read is volatile since others write there.
        *byte = unsafe { source.read_volatile() };
    }
    Some(())
}

/// Writes `bytes` at `to`; `None` outside the window.
pub(crate) fn write(to: Pa, bytes: &[u8]) -> Option<()> {
    let address = address(to, bytes.len())?;
    for (offset, byte) in bytes.iter().enumerate() {
        let target = ptr::with_exposed_provenance_mut::<u8>(address + offset);
        // SAFETY: as in `read`; no reference that Rust relies on points into the window while the
        // normal world runs, and at boot `loaded` is only called for what is complete.
        unsafe { target.write_volatile(*byte) };
    }
    Some(())
}

/// Reads the 64-bit word at `at` in one access, 0 outside the window or if it is not aligned.
pub(crate) fn read_u64(at: Pa) -> u64 {
    match address(at, 8).filter(|_| at.is_aligned(8)) {
        // SAFETY: as in `read`, and the address is aligned.
        Some(address) => unsafe { ptr::with_exposed_provenance::<u64>(address).read_volatile() },
        None => 0,
    }
}

/// Writes it in one access, if `at` is in the window and aligned.
pub(crate) fn write_u64(at: Pa, value: u64) {
    if let Some(address) = address(at, 8).filter(|_| at.is_aligned(8)) {
        // SAFETY: as in `write`, and the address is aligned.
        unsafe { ptr::with_exposed_provenance_mut::<u64>(address).write_volatile(value) };
    }
}

/// What was loaded to `range` at boot, while only this CPU runs and nothing writes there.
pub(crate) fn loaded(range: PaRange) -> Option<&'static [u8]> {
    let length = usize::try_from(range.size()).ok()?;
    let address = address(range.start(), length)?;
    // SAFETY:
    // 1. The window is mapped, and bytes have no invalid values.
    // 2. Before the normal world runs only this CPU and fw_cfg write to the window; fw_cfg has
    //    finished with `range`, and the callers drop the slice before they write to it.
    Some(unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance(address), length) })
}

/// Cleans `range` to the point of coherency: the next stage begins with its caches off.
pub(crate) fn clean(range: PaRange) {
    if !RAM_WINDOW.contains_range(range) {
        return;
    }
    let line = sysreg::cache_line();
    let first = range.start().get() as usize & !(line - 1);
    for address in (first..=range.last().get() as usize).step_by(line) {
        // SAFETY: cleaning a line of mapped memory changes no value in it.
        unsafe { core::arch::asm!("dc cvac, {}", in(reg) address, options(nostack)) };
    }
    sysreg::dsb();
}
