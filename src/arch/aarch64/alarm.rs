//! This CPU's EL2 physical timer: it brings a CPU back that left something for later.
#![expect(unsafe_code, reason = "a register without a name in `aarch64_cpu`")]

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, Readable, Writeable};
use core::arch::asm;

/// The alarm comes after a second divided by this.
const PART_OF_A_SECOND: u64 = 1000;

/// An interrupt comes to this CPU soon. One that was set before stays as it is.
pub fn set() {
    if CNTHP_CTL_EL2.is_set(CNTHP_CTL_EL2::ENABLE) {
        return;
    }
    let ticks = CNTFRQ_EL0.get() / PART_OF_A_SECOND;
    // SAFETY: a timer of EL2's, which nobody else uses.
    unsafe {
        asm!("msr cnthp_tval_el2, {}", in(reg) ticks, options(nomem, nostack, preserves_flags))
    };
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
}

/// It has come, or is not wanted: the timer is off.
pub fn clear() {
    CNTHP_CTL_EL2.set(0);
    // Its line has dropped before anybody asks the GIC again.
    barrier::isb(barrier::SY);
}
