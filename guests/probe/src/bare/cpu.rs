//! This vCPU: its number, its clock, its event register and its exception masks.

use aarch64_cpu::asm::{self, barrier};
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTKCTL_EL1, CNTVCT_EL0, DAIF, ID_AA64MMFR0_EL1, MPIDR_EL1, Readable, TPIDR_EL1,
    Writeable,
};
use core::sync::atomic::{Ordering, compiler_fence};
use tock_registers::fields::{Field, FieldValue};

/// This vCPU's affinity as PSCI takes it (5.1.4): Aff3 in bits 39 to 32, the others below 24.
pub(super) fn affinity() -> u64 {
    MPIDR_EL1.get() & 0xff_00ff_ffff
}

/// This vCPU's number, 0 to 63.
pub(super) fn id() -> usize {
    TPIDR_EL1.get() as usize
}

/// Sets this vCPU's number, once, and turns on the event stream, which ends each [`wait`] after a
/// few milliseconds: vCPU 0 polls the console without burning its CPU.
pub(super) fn init(id: usize) {
    TPIDR_EL1.set(id as u64);
    let (scale, bit) = event_stream(CNTFRQ_EL0.get(), ID_AA64MMFR0_EL1.read(ECV) != 0);
    CNTKCTL_EL1.write(scale + CNTKCTL_EL1::EVNTI.val(bit) + CNTKCTL_EL1::EVNTEN::Enable);
    barrier::isb(barrier::SY);
}

/// `ID_AA64MMFR0_EL1.ECV`: whether the event stream can follow bits 8 to 23 of the counter.
const ECV: Field<u64, ID_AA64MMFR0_EL1::Register> = Field::new(0xf, 60);

/// The counter bit that goes from 0 to 1 every 4 to 8 milliseconds, or as seldom as can be: as a
/// choice of bits 0 to 15 or 8 to 23, where the latter is to be had, and a number within it. Bit n
/// does so every 2^(n+1) ticks.
fn event_stream(frequency: u64, has_ecv: bool) -> (FieldValue<u64, CNTKCTL_EL1::Register>, u64) {
    let ticks = (frequency / 250).max(2);
    let bit = u64::from(ticks.next_power_of_two().trailing_zeros()).saturating_sub(1);
    if has_ecv && bit > 15 {
        (CNTKCTL_EL1::EVNTIS::CntVct8_23, (bit - 8).min(15))
    } else {
        (CNTKCTL_EL1::EVNTIS::CntVct0_15, bit.min(15))
    }
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
    DAIF.set(DAIF::A::Unmasked.modify(DAIF.get()));
}

/// Runs `critical` with SErrors masked.
pub(super) fn without_serror<R>(critical: impl FnOnce() -> R) -> R {
    let before = DAIF.get();
    DAIF.set(DAIF::A::Masked.modify(before));
    compiler_fence(Ordering::SeqCst);
    let result = critical();
    compiler_fence(Ordering::SeqCst);
    DAIF.set(before);
    result
}
