//! This vCPU: its number, its clock, its event register and its exception masks.

use aarch64_cpu::asm::{self, barrier};
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTKCTL_EL1, CNTVCT_EL0, DAIF, Readable, TPIDR_EL1, Writeable,
};
use core::sync::atomic::{Ordering, compiler_fence};

/// This vCPU's number, 0 to 63.
pub(super) fn id() -> usize {
    TPIDR_EL1.get() as usize
}

/// Sets this vCPU's number, once, and turns on the event stream: it ends each [`wait`] after
/// 2^16 ticks of the counter at the latest (a millisecond at 62.5 MHz), so that vCPU 0 can poll
/// the console without burning its CPU.
pub(super) fn init(id: usize) {
    TPIDR_EL1.set(id as u64);
    CNTKCTL_EL1.write(CNTKCTL_EL1::EVNTEN::Enable + CNTKCTL_EL1::EVNTI.val(15));
    barrier::isb(barrier::SY);
}

/// Waits for an event: a [`wake_others`], or a tick of the event stream.
pub(super) fn wait() {
    asm::wfe();
}

/// Ends the [`wait`] of all vCPUs; what was written before is visible to them.
pub(super) fn wake_others() {
    barrier::dsb(barrier::ISHST);
    asm::sev();
}

/// Nothing more can be done.
pub(super) fn halt() -> ! {
    loop {
        asm::wfi();
    }
}

/// The virtual counter in microseconds.
pub(super) fn microseconds() -> u64 {
    barrier::isb(barrier::SY);
    let ticks = u128::from(CNTVCT_EL0.get());
    let per_second = u128::from(CNTFRQ_EL0.get().max(1));
    u64::try_from(ticks * 1_000_000 / per_second).unwrap_or(u64::MAX)
}

/// From now on SErrors are taken.
pub(super) fn unmask_serror() {
    DAIF.modify_a(DAIF::A::Unmasked);
}

/// Runs `critical` with SErrors masked.
pub(super) fn without_serror<R>(critical: impl FnOnce() -> R) -> R {
    let before = DAIF.get();
    DAIF.modify_a(DAIF::A::Masked);
    compiler_fence(Ordering::SeqCst);
    let result = critical();
    compiler_fence(Ordering::SeqCst);
    DAIF.set(before);
    result
}

/// Changes one mask and leaves the others.
trait ModifyMask {
    fn modify_a(&self, a: tock_registers::fields::FieldValue<u64, DAIF::Register>);
}

impl<T> ModifyMask for T
where
    T: Readable<T = u64, R = DAIF::Register> + Writeable<T = u64, R = DAIF::Register>,
{
    fn modify_a(&self, a: tock_registers::fields::FieldValue<u64, DAIF::Register>) {
        self.set(a.modify(self.get()));
    }
}
