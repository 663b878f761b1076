//! The physical GICv3. Cordon uses one interrupt of it: an SGI by which one CPU gets another out
//! of its guest or out of WFI.
#![expect(unsafe_code, reason = "device registers")]

use super::cpu::PerCpu;
use super::mmu;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicRedistributorIterator, SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, UniqueMmioPointer};
use cordon::addr::PaRange;
use core::ptr::NonNull;
use spin::Mutex;

/// Gets a CPU's attention.
const KICK: IntId = IntId::sgi(0);
/// Lets everything through (lowest priority, GIC architecture 4.8).
const ANY_PRIORITY: u8 = 0xff;

/// Where the redistributors are. The lock is held while one of them is driven.
static REDISTRIBUTORS: Mutex<alloc::vec::Vec<PaRange>> = Mutex::new(alloc::vec::Vec::new());

/// Sets the distributor up and remembers where the redistributors are.
///
/// # Errors
///
/// If their registers cannot be mapped.
pub fn init(distributor: PaRange, redistributors: &[PaRange]) -> Result<(), mmu::Error> {
    mmu::map_device(distributor)?;
    for range in redistributors {
        mmu::map_device(*range)?;
    }
    if let Some(registers) = NonNull::new(distributor.start().get() as *mut Gicd) {
        // SAFETY: mapped as device memory just now, for this driver alone.
        let mut gicd = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
        gicd.configure_default_settings();
    }
    REDISTRIBUTORS.lock().extend_from_slice(redistributors);
    Ok(())
}

/// Makes the calling CPU, `cpu`, ready to be kicked. Without a redistributor of its own, it is
/// not: then its guest is stopped only at its next exit.
pub fn init_cpu(cpu: &PerCpu) {
    GicCpuInterface::enable_system_register_el2(true);
    if !wake_redistributor(cpu.mpidr) {
        log::warn!(
            "event=error what=gic why=no-redistributor cpu={}",
            cpu.index
        );
    }
    GicCpuInterface::set_priority_mask(ANY_PRIORITY);
    GicCpuInterface::enable_group1(true);
}

/// Finds the redistributor of the CPU `mpidr` (GICR_TYPER.Affinity_Value) and sets it up.
fn wake_redistributor(mpidr: u64) -> bool {
    let regions = REDISTRIBUTORS.lock();
    for region in regions.iter() {
        let Some(base) = NonNull::new(region.start().get() as *mut GicrSgi) else {
            continue;
        };
        // SAFETY: the region is mapped as device memory and holds redistributors up to one with
        // GICR_TYPER.Last (GIC architecture 12.10); the lock makes this the only driver.
        let Ok(redistributors) = (unsafe { GicRedistributorIterator::new(base) }) else {
            continue;
        };
        for mut redistributor in redistributors {
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
    let [aff0, aff1, aff2, _, aff3, ..] = cpu.mpidr.to_le_bytes();
    let target = SgiTarget::List {
        affinity3: aff3,
        affinity2: aff2,
        affinity1: aff1,
        target_list: 1 << (aff0 & 0xf),
    };
    // What was written for the other CPU must be there when it looks.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    // Fails only for what is not an SGI.
    let _ = GicCpuInterface::send_sgi(KICK, target, SgiTargetGroup::CurrentGroup1);
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
