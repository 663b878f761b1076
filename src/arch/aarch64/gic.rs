//! The physical GICv3. Cordon uses one interrupt of it: an SGI by which one CPU gets another out
//! of its guest or out of WFI.
//!
//! Guests have no GIC: not the physical one, of which they must see nothing, and no virtual one
//! yet. Every access of theirs to a GIC system register is trapped.
#![expect(unsafe_code, reason = "device registers, and one system register")]

use super::cpu::PerCpu;
use super::mmu;
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ICH_HCR_EL2, Writeable};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicDistributor, GicRedistributorIterator};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use cordon::addr::PaRange;
use cordon::platform::sgi::sgi1r;
use core::arch::asm;
use core::fmt;
use core::ptr::NonNull;
use spin::Mutex;

/// Gets a CPU's attention.
const KICK: IntId = IntId::sgi(KICK_NUMBER);
const KICK_NUMBER: u32 = 0;
/// Size in bytes of the distributor's registers, and of the smallest redistributor's two frames
/// (GIC architecture 12.8, 12.10).
const DISTRIBUTOR_SIZE: u64 = 64 << 10;
const REDISTRIBUTOR_SIZE: u64 = 128 << 10;
/// ICH_HCR_EL2.TC, .TALL0, .TALL1 and .TDIR: a guest's accesses to the ICC_* registers are trapped.
/// En is 0: there are no virtual interrupts.
const ICH_TRAP_ALL: u64 = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14;
/// Lets everything through (lowest priority, GIC architecture 4.8).
const ANY_PRIORITY: u8 = 0xff;

/// Where the redistributors are. The lock is held while one of them is driven.
static REDISTRIBUTORS: Mutex<alloc::vec::Vec<PaRange>> = Mutex::new(alloc::vec::Vec::new());

/// Why the GIC cannot be used.
#[derive(Debug)]
pub enum Error {
    /// Its registers cannot be mapped.
    Map(mmu::Error),
    /// There is less of it than the architecture says.
    TooSmall(PaRange),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(error) => error.fmt(f),
            Self::TooSmall(range) => write!(f, "too-small at={range}"),
        }
    }
}

/// Sets the distributor up, with every shared interrupt off whatever a boot loader did, and
/// remembers where the redistributors are.
///
/// # Errors
///
/// As [`Error`] says.
pub fn init(distributor: PaRange, redistributors: &[PaRange]) -> Result<(), Error> {
    map(distributor, DISTRIBUTOR_SIZE)?;
    for range in redistributors {
        map(*range, REDISTRIBUTOR_SIZE)?;
    }
    if let Some(registers) = NonNull::new(distributor.start().get() as *mut Gicd) {
        // SAFETY: mapped as device memory just now, all of it, for this driver alone.
        let mut gicd = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
        gicd.enable_all_interrupts(false);
        gicd.configure_default_settings();
    }
    REDISTRIBUTORS.lock().extend_from_slice(redistributors);
    Ok(())
}

fn map(registers: PaRange, size: u64) -> Result<(), Error> {
    if registers.size() < size {
        return Err(Error::TooSmall(registers));
    }
    mmu::map_device(registers).map_err(Error::Map)
}

/// Makes the calling CPU, `cpu`, ready to be kicked, and keeps guests off the GIC's system
/// registers. Without a redistributor of its own it is not: then its guest is stopped only at its
/// next exit.
pub fn init_cpu(cpu: &PerCpu) {
    // ICC_SRE_EL1 is trapped too (Enable = 0).
    GicCpuInterface::enable_system_register_el2(false);
    barrier::isb(barrier::SY);
    ICH_HCR_EL2.set(ICH_TRAP_ALL);
    // ICC_CTLR_EL1: the end of an interrupt deactivates it (EOImode = 0), whatever a boot loader
    // liked better.
    // SAFETY: EL2's own interface; nothing is active.
    unsafe {
        asm!(
            "msr s3_0_c12_c12_4, xzr",
            options(nomem, nostack, preserves_flags)
        )
    };
    if !wake_redistributor(cpu.mpidr) {
        log::warn!(
            "event=error what=gic why=no-redistributor cpu={}",
            cpu.index
        );
    }
    GicCpuInterface::set_priority_mask(ANY_PRIORITY);
    GicCpuInterface::enable_group1(true);
    barrier::isb(barrier::SY);
}

/// Finds the redistributor of the CPU `mpidr` (GICR_TYPER.Affinity_Value) and sets it up.
fn wake_redistributor(mpidr: u64) -> bool {
    let regions = REDISTRIBUTORS.lock();
    for region in regions.iter() {
        let Some(base) = NonNull::new(region.start().get() as *mut GicrSgi) else {
            continue;
        };
        // SAFETY: the region is mapped as device memory and holds redistributors up to one with
        // GICR_TYPER.Last (GIC architecture 12.10), of which no more are looked at below than it
        // has room for; the lock makes this the only driver.
        let Ok(redistributors) = (unsafe { GicRedistributorIterator::new(base) }) else {
            continue;
        };
        let room = usize::try_from(region.size() / REDISTRIBUTOR_SIZE).unwrap_or(usize::MAX);
        for mut redistributor in redistributors.take(room) {
            if redistributor.typer().core_mpidr() == mpidr {
                // An error says that it is awake already.
                let _ = redistributor.mark_core_awake();
                redistributor.configure_default_settings();
                return redistributor.enable_interrupt(KICK, true).is_ok();
            }
        }
    }
    false
}

/// Gets `cpu` out of its guest, or out of WFI.
pub fn kick(cpu: &PerCpu) {
    let value = sgi1r(cpu.mpidr, KICK_NUMBER);
    // What was written for the other CPU must be there when it looks.
    barrier::dsb(barrier::ISHST);
    // SAFETY: ICC_SGI1R_EL1. An interrupt for EL2 alone, which masks it.
    unsafe {
        asm!("msr s3_0_c12_c11_5, {}", "isb", in(reg) value, options(nostack, preserves_flags));
    }
}

/// Takes all interrupts that are pending for this CPU. Their meaning is in memory.
pub fn acknowledge_all() {
    while let Some(interrupt) =
        GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)
    {
        GicCpuInterface::end_interrupt(interrupt, InterruptGroup::Group1);
        if interrupt != KICK {
            log::warn!("event=error what=interrupt why=unexpected id={interrupt:?}");
        }
    }
}
