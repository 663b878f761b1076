//! Device registers, at bare addresses.
#![expect(unsafe_code, reason = "device registers")]

use core::arch::asm;

macro_rules! width {
    ($read:ident, $write:ident, $load:literal, $store:literal) => {
        /// Loads from a device's register.
        pub(super) fn $read(address: u64) -> u64 {
            let value: u64;
            // SAFETY: devices are mapped as such, and no load of theirs changes memory. One
            // instruction with one register, so that whoever emulates it can.
            unsafe { asm!($load, "dsb sy", out("x0") value, in("x1") address, options(nostack)) };
            value
        }
        /// Stores to a device's register.
        pub(super) fn $write(address: u64, value: u64) {
            // SAFETY: as above; what the device does concerns this guest's tests alone.
            unsafe { asm!("dsb sy", $store, "dsb sy", in("x0") value, in("x1") address, options(nostack)) };
        }
    };
}

width!(read8, write8, "ldrb w0, [x1]", "strb w0, [x1]");
width!(read32, write32, "ldr w0, [x1]", "str w0, [x1]");
width!(read64, write64, "ldr x0, [x1]", "str x0, [x1]");
