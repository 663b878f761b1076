//! This CPU, and the others.
#![expect(unsafe_code, reason = "TPIDR_EL2 holds a reference")]

use super::boot::SecondaryBoot;
use super::{layout, mmu, smc, tlb};
use crate::exit::Seat;
use aarch64_cpu::registers::{Readable, TPIDR_EL2, Writeable};
use alloc::boxed::Box;
use cordon::deadlines::Deadlines;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;

/// What a CPU has for itself. There is one for every CPU that Cordon uses, for good.
#[derive(Debug)]
pub struct PerCpu {
    /// Its number, in the order of the DTB's /cpus; 0 is the boot CPU... wherever that stands.
    pub index: usize,
    /// Affinity fields of its MPIDR_EL1.
    pub mpidr: u64,
    /// Top of its stack.
    pub stack_top: u64,
    /// It has reached its idle loop.
    pub online: AtomicBool,
    /// Address of its redistributor's registers.
    pub redistributor: Once<u64>,
    /// The vCPU that is pinned to it, if any.
    pub seat: Once<Seat>,
    /// What it has to do at a certain time; changed by itself alone.
    pub deadlines: Deadlines,
}

/// Affinity fields of MPIDR_EL1: Aff3 and Aff2 to Aff0 (Arm ARM D19.2.102).
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

static CPUS: Once<Box<[PerCpu]>> = Once::new();

/// Makes the CPUs' records. `mpidrs` must not be longer than [`layout::MAX_CPUS`]; the boot CPU,
/// which calls this, must be among them.
pub fn init(mpidrs: &[u64]) {
    let records = mpidrs.iter().take(layout::MAX_CPUS).enumerate();
    CPUS.call_once(|| {
        records
            .map(|(index, &mpidr)| PerCpu {
                index,
                mpidr,
                stack_top: layout::stack_top(index),
                online: AtomicBool::new(false),
                redistributor: Once::new(),
                seat: Once::new(),
                deadlines: Deadlines::new(),
            })
            .collect()
    });
}

/// All CPUs.
pub fn all() -> &'static [PerCpu] {
    CPUS.get().map_or(&[], |cpus| cpus)
}

/// Makes `cpu` the record of the CPU that runs this.
pub fn install(cpu: &'static PerCpu) {
    TPIDR_EL2.set(core::ptr::from_ref(cpu).addr() as u64);
}

/// The record of the CPU that runs this; `None` early at boot.
#[inline]
pub fn try_this() -> Option<&'static PerCpu> {
    let cpu = TPIDR_EL2.get() as *const PerCpu;
    // SAFETY: TPIDR_EL2 is null (boot code clears it) or was set by `install`, from a reference that
    // lives for good; guests cannot write it.
    unsafe { cpu.as_ref() }
}

/// Starts `cpu`, which will enter `secondary_main`.
///
/// # Errors
///
/// PSCI's own.
pub fn start(cpu: &'static PerCpu) -> Result<(), smccc::psci::Error> {
    let boot: &'static SecondaryBoot = Box::leak(Box::new(SecondaryBoot {
        ttbr: mmu::root(),
        stack_top: cpu.stack_top,
        cpu: core::ptr::from_ref(cpu).addr() as u64,
    }));
    let context = core::ptr::from_ref(boot).addr() as u64;
    // Cordon's own memory: if it is poison, the CPU will not come up.
    let _ = tlb::clean_to_poc(context, size_of::<SecondaryBoot>() as u64);
    let entry = super::boot::secondary_entry as *const () as u64;
    smc::cpu_on(cpu.mpidr, entry, context)
}

impl PerCpu {
    /// Waits, with some patience, until the CPU is up.
    pub fn wait_online(&self) -> bool {
        /// A CPU that starts at all does so within a small part of this.
        const SPINS: u32 = 200_000_000;
        for _ in 0..SPINS {
            if self.online.load(Ordering::Acquire) {
                return true;
            }
            core::hint::spin_loop();
        }
        false
    }
}
