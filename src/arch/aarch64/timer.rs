//! EL2's own timer (CNTHP, Arm ARM D12.2.4): this CPU's deadlines, whatever they are for.
//!
//! Its interrupt is level-sensitive and stays up while the condition holds, so the timer is switched
//! off when it has fired and on again for the next deadline. A CPU without deadlines never programs it.
#![expect(
    unsafe_code,
    reason = "system registers that have no name in the library"
)]

use super::cpu::{self, PerCpu};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use cordon::deadlines::{Due, Purpose};
use core::arch::asm;

/// CNTHP_CTL_EL2.ENABLE.
const ENABLE: u64 = 1;

/// Has this CPU reminded of `purpose` in `milliseconds`, by [`take_due`] after its timer's interrupt.
/// False where the CPU has no such timer.
pub fn set(purpose: Purpose, milliseconds: u64) -> bool {
    let Some(this) = cpu::try_this().filter(|_| super::gic::has_own_timer()) else {
        return false;
    };
    let ticks = CNTFRQ_EL0.get().saturating_mul(milliseconds) / 1000;
    let at = CNTPCT_EL0.get().saturating_add(ticks);
    this.deadlines.set(purpose, at);
    program(this);
    true
}

/// The same, where no reminder of `purpose` is on its way.
pub fn set_once(purpose: Purpose, milliseconds: u64) -> bool {
    let is_set = |this: &PerCpu| this.deadlines.is_set(purpose);
    cpu::try_this().is_some_and(is_set) || set(purpose, milliseconds)
}

/// After the timer's interrupt: what is to be done now. The timer waits for what comes next.
pub fn take_due() -> Due {
    let Some(this) = cpu::try_this() else {
        return Due::default();
    };
    let due = this.deadlines.take_due(CNTPCT_EL0.get());
    program(this);
    due
}

/// Switches the timer off until [`take_due`], so that its line goes down.
pub fn quiet() {
    control(0);
}

fn program(this: &PerCpu) {
    let Some(at) = this.deadlines.next() else {
        return control(0);
    };
    // SAFETY: CNTHP_CVAL_EL2 is EL2's alone.
    unsafe { asm!("msr cnthp_cval_el2, {}", in(reg) at, options(nomem, nostack, preserves_flags)) };
    control(ENABLE);
}

fn control(value: u64) {
    // SAFETY: CNTHP_CTL_EL2 is EL2's alone.
    unsafe {
        asm!("msr cnthp_ctl_el2, {}", "isb", in(reg) value,
             options(nomem, nostack, preserves_flags));
    }
}
