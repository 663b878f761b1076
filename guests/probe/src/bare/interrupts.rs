//! Interrupts of this guest's own: SGIs and the two timers.
//!
//! They are off until a command wants them, and then stay on. The handler counts, and ends what it
//! has taken; a timer it masks at the device, unless it was told to let it ask again. It takes no lock
//! and prints nothing, so it may interrupt anything.
#![expect(unsafe_code, reason = "the GIC's registers and its CPU interface")]

use super::{cpu, guest, mmu};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_TVAL_EL0, CNTV_CTL_EL0, CNTV_TVAL_EL0, DAIF, Readable, Writeable,
};
use cordon_probe::MAX_VCPUS;
use cordon_probe::machine::Gic;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The interrupts that are used: one SGI, and the timers' PPIs.
pub(super) const SGI: usize = 7;
pub(super) const VIRTUAL_TIMER: usize = 27;
pub(super) const PHYSICAL_TIMER: usize = 30;
const USED: u32 = 1 << SGI | 1 << VIRTUAL_TIMER | 1 << PHYSICAL_TIMER;

/// INTIDs from here on mean that there is none (IHI 0069, 2.2.1).
const SPECIAL: usize = 1020;
const PRIORITY: u32 = 0x80;

/// Bytes of a redistributor, and where its second frame begins.
const REDISTRIBUTOR: u64 = 0x2_0000;
const SGI_FRAME: u64 = 0x1_0000;

/// How often each vCPU has taken each of its own interrupts.
static TAKEN: [[AtomicU64; 32]; MAX_VCPUS] =
    [const { [const { AtomicU64::new(0) }; 32] }; MAX_VCPUS];

/// How often a timer's handler is to leave the timer alone, so that it asks again.
static AGAIN: AtomicU64 = AtomicU64::new(0);

/// The physical counter at the beginning of this vCPU's last interrupt, and what ending it took.
static ENTERED: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];
static ENDING: AtomicU64 = AtomicU64::new(0);

/// The physical counter in the vector of the last interrupt of `vcpu`.
pub(super) fn entered(vcpu: usize) -> u64 {
    let entered = ENTERED.get(vcpu);
    entered.map_or(0, |entered| entered.load(Relaxed))
}

/// Ticks of the counter around the instruction that ended the last interrupt of any vCPU.
pub(super) fn ending() -> u64 {
    ENDING.load(Relaxed)
}

/// How often `vcpu` has taken its interrupt `intid`.
pub(super) fn taken(vcpu: usize, intid: usize) -> u64 {
    let own = TAKEN.get(vcpu).and_then(|own| own.get(intid));
    own.map_or(0, |count| count.load(Relaxed))
}

/// The next `times` times a timer's handler leaves the timer asking.
pub(super) fn let_ask_again(times: u64) {
    AGAIN.store(times, Relaxed);
}

fn write(ipa: u64, value: u32) {
    let register = core::ptr::with_exposed_provenance_mut::<u32>(ipa as usize);
    // SAFETY: a register of the GIC, which `enable` has mapped; what it does, it does to
    // interrupts, which are handled below. A store that also changes its base register, as a compiler
    // may choose, has no syndrome that a hypervisor could emulate it by.
    unsafe {
        asm!("str {value:w}, [{register}]", value = in(reg) value, register = in(reg) register,
             options(nostack, preserves_flags));
    }
}

/// On vCPU 0, once: the distributor, and the pages of all redistributors. `None` without a GIC.
pub(super) fn open() -> Option<Gic> {
    let gic = guest::get().gic()?;
    mmu::map_device(gic.distributor)?;
    for vcpu in 0..guest::get().vcpus() as u64 {
        let base = gic.redistributors + vcpu * REDISTRIBUTOR;
        mmu::map_device(base)?;
        mmu::map_device(base + SGI_FRAME)?;
    }
    // EnableGrp1 and ARE.
    write(gic.distributor, 0b1_0010);
    Some(gic)
}

/// On every vCPU: its redistributor, its CPU interface, and the mask.
pub(super) fn enable(gic: Gic) {
    const WAKER: u64 = 0x14;
    const GROUP: u64 = SGI_FRAME + 0x80;
    const SET_ENABLE: u64 = SGI_FRAME + 0x100;
    const PRIORITIES: u64 = SGI_FRAME + 0x400;
    let base = gic.redistributors + cpu::id() as u64 * REDISTRIBUTOR;
    write(base + WAKER, 0);
    write(base + GROUP, USED);
    for word in 0..8 {
        write(base + PRIORITIES + 4 * word, PRIORITY * 0x0101_0101);
    }
    write(base + SET_ENABLE, USED);
    set_mask(0xff);
    // SAFETY: system register access and Group 1 are turned on; the vectors handle what comes.
    unsafe {
        asm!(
            "msr icc_sre_el1, {sre}",
            "isb",
            "msr icc_igrpen1_el1, {one}",
            "isb",
            sre = in(reg) 7_u64,
            one = in(reg) 1_u64,
            options(nostack)
        );
    }
    DAIF.set(DAIF::I::Unmasked.modify(DAIF.get()));
}

/// On vCPU 0: every interrupt is off, and neither pending nor active, whatever became of the
/// controller's registers; nothing is left of this vCPU's own.
pub(super) fn calm(gic: Gic) {
    const CLEAR: [u64; 3] = [0x180, 0x280, 0x380];
    for register in CLEAR {
        (1..3).for_each(|word| write(gic.distributor + register + 4 * word, u32::MAX));
        for vcpu in 0..guest::get().vcpus() as u64 {
            let base = gic.redistributors + vcpu * REDISTRIBUTOR + SGI_FRAME;
            write(base + register, u32::MAX);
        }
    }
    calm_own();
}

/// On every vCPU: the timers are off, the CPU interface has nothing active, and interrupts are masked.
pub(super) fn calm_own() {
    DAIF.set(DAIF::I::Masked.modify(DAIF.get()));
    CNTV_CTL_EL0.set(0);
    CNTP_CTL_EL0.set(0);
    // SAFETY: no interrupt is being handled, so none is forgotten.
    unsafe {
        asm!(
            "msr icc_ap1r0_el1, xzr",
            "msr icc_ap0r0_el1, xzr",
            "msr icc_ctlr_el1, xzr",
            "isb",
            options(nostack)
        );
    }
}

/// Runs `action` with this vCPU's interrupts masked.
pub(super) fn while_masked(action: impl FnOnce()) {
    let before = DAIF.get();
    DAIF.set(DAIF::I::Masked.modify(before));
    action();
    DAIF.set(before);
}

/// Interrupts of priority `mask` and less urgent ones wait.
pub(super) fn set_mask(mask: u64) {
    // SAFETY: ICC_PMR_EL1 changes nothing but when interrupts are taken.
    unsafe { asm!("msr icc_pmr_el1, {}", "isb", in(reg) mask, options(nostack)) };
}

/// Sends the SGI to the vCPUs with these bits in ICC_SGI1R_EL1.
fn send(to: u64) {
    barrier::dsb(barrier::ISHST);
    let value = (SGI as u64) << 24 | to;
    // SAFETY: ICC_SGI1R_EL1 interrupts vCPUs of this guest, which are ready for it.
    unsafe { asm!("msr icc_sgi1r_el1, {}", "isb", in(reg) value, options(nostack)) };
}

/// Sends the SGI to the vCPU with this affinity.
pub(super) fn send_to(affinity: u64) {
    send((affinity >> 8 & 0xff) << 16 | 1 << (affinity & 0xf));
}

/// Sends the SGI to all vCPUs but this.
pub(super) fn broadcast() {
    send(1 << 40);
}

/// One of this vCPU's timers asks for an interrupt in `microseconds`.
pub(super) fn arm(timer: usize, microseconds: u64) {
    let ticks = CNTFRQ_EL0.get() * microseconds / 1_000_000;
    if timer == VIRTUAL_TIMER {
        CNTV_TVAL_EL0.set(ticks);
        CNTV_CTL_EL0.set(1);
    } else {
        CNTP_TVAL_EL0.set(ticks);
        CNTP_CTL_EL0.set(1);
    }
    barrier::isb(barrier::SY);
}

/// Sleeps until an interrupt comes, and takes it; not at all where `awake` says so, which an interrupt
/// may have changed just before.
pub(super) fn sleep_unless(awake: impl Fn() -> bool) {
    let before = DAIF.get();
    DAIF.set(DAIF::I::Masked.modify(before));
    if !awake() {
        aarch64_cpu::asm::wfi();
    }
    DAIF.set(before);
}

fn disarm(timer: usize) {
    if timer == VIRTUAL_TIMER {
        CNTV_CTL_EL0.set(0);
    } else {
        CNTP_CTL_EL0.set(0);
    }
    barrier::isb(barrier::SY);
}

/// The interrupt exception, which began at `entered` by the physical counter: takes one interrupt.
pub(super) fn handle(entered: u64) {
    let intid: u64;
    // SAFETY: acknowledging is what the handler is for.
    unsafe { asm!("mrs {}, icc_iar1_el1", "dsb sy", out(reg) intid, options(nostack)) };
    let number = intid as usize & 0xff_ffff;
    if number >= SPECIAL {
        return;
    }
    let timer = matches!(number, VIRTUAL_TIMER | PHYSICAL_TIMER);
    let spared = || {
        AGAIN
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
            .is_ok()
    };
    if timer && !spared() {
        disarm(number);
    }
    if let Some(slot) = ENTERED.get(cpu::id()) {
        slot.store(entered, Relaxed);
    }
    if let Some(count) = TAKEN.get(cpu::id()).and_then(|own| own.get(number)) {
        count.fetch_add(1, Relaxed);
    }
    let (start, end): (u64, u64);
    // SAFETY: ends the interrupt that was acknowledged above.
    unsafe {
        asm!(
            "mrs {start}, cntpct_el0",
            "msr icc_eoir1_el1, {intid}",
            "mrs {end}, cntpct_el0",
            "isb",
            intid = in(reg) intid,
            start = out(reg) start,
            end = out(reg) end,
            options(nostack)
        );
    }
    ENDING.store(end - start, Relaxed);
}
