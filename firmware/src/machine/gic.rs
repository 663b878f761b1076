//! The interrupt controller with two security states.
//!
//! Group 0 is the firmware's: the secure UART, EL3's own timer and one SGI by which CPUs are called from
//! the holding pen. Group 0 arrives as FIQ, which `SCR_EL3.FIQ` routes to EL3 whatever runs. Everything else is
//! Non-secure Group 1, at priorities of the lower half, and for the normal world to set up; the
//! firmware leaves `GICD_CTLR.EnableGrp1NS` and `ARE_NS` as reset left them.
#![expect(unsafe_code, reason = "the driver is made from addresses")]

use core::ptr::NonNull;

use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicError, GicV3, Group, SecureIntGroup, SgiTarget, SgiTargetGroup,
};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};
use cordon_firmware::layout::{GICD_BASE, GICR_BASE, MAX_CPUS, SECURE_UART_INTID, cpu_affinity};
use spin::Mutex;

use super::{mmio, sysreg};

/// The driver, from [`init_distributor`] on. Taken by each CPU once, to set itself up.
static GIC: Mutex<Option<GicV3<'static>>> = Mutex::new(None);

const SECURE_UART: IntId = IntId::spi(SECURE_UART_INTID - 32);
/// The secure physical timer (Arm BSA, PPI assignments).
const OWN_TIMER: IntId = IntId::ppi(29 - 16);
/// SGIs 8 to 15 are the secure world's by convention.
const CALL: IntId = IntId::sgi(15);
/// Above all that the normal world can set: its own begin at 0x80.
const PRIORITY: u8 = 0x10;

const GROUP_0: Group = Group::Secure(SecureIntGroup::Group0);

/// What a Group 0 interrupt is about.
pub(crate) enum Event {
    /// Bytes came in at the secure UART.
    Uart,
    /// Another CPU calls.
    Call,
    /// This CPU's own timer has fired.
    Timer,
}

/// Sets the distributor up, and opens the gate at which the other CPUs wait for that.
pub(crate) fn init_distributor() -> Result<(), GicError> {
    let gicd = NonNull::new(core::ptr::with_exposed_provenance_mut::<Gicd>(
        GICD_BASE as usize,
    ));
    let gicr = NonNull::new(core::ptr::with_exposed_provenance_mut::<GicrSgi>(
        GICR_BASE as usize,
    ));
    let (Some(gicd), Some(gicr)) = (gicd, gicr) else {
        return Err(GicError::InvalidRedistributorFrameLayout);
    };
    // SAFETY: the GIC's registers are there, mapped as device memory for ever, and this is the
    // only place of the firmware that names them. That the normal world reaches them too, through
    // its own view, is what the GIC is made for.
    let mut gic = unsafe { GicV3::new(UniqueMmioPointer::new(gicd), gicr, MAX_CPUS)? };
    let distributor = gic.distributor();
    distributor.configure_default_settings();
    distributor.enable_group1_non_secure(false);
    distributor.set_group(SECURE_UART, GROUP_0)?;
    distributor.set_interrupt_priority(SECURE_UART, PRIORITY)?;
    distributor.set_trigger(SECURE_UART, Trigger::Level)?;
    distributor.set_routing(SECURE_UART, Some(cpu_affinity(0)))?;
    distributor.enable_interrupt(SECURE_UART, true)?;
    distributor.enable_group0(true);
    *GIC.lock() = Some(gic);
    sysreg::send_event();
    Ok(())
}

/// Sets up the calling CPU's redistributor and interface. `SCR_EL3.NS` must be 1, so that the
/// Non-secure copies of the banked registers are meant.
pub(crate) fn init_cpu(cpu: usize) -> Result<(), GicError> {
    GicCpuInterface::enable_system_register_el3(true);
    GicCpuInterface::disable_legacy_interrupt_bypass_el3(true);
    sysreg::isb();
    GicCpuInterface::enable_system_register_el2(true);
    GicCpuInterface::disable_legacy_interrupt_bypass_el2(true);
    GicCpuInterface::enable_system_register_el1();
    sysreg::isb();
    if let Some(gic) = GIC.lock().as_mut() {
        let mut redistributor = gic.redistributor(cpu)?;
        // After a CPU_OFF it is awake already.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
        redistributor.set_group(CALL, GROUP_0)?;
        redistributor.set_interrupt_priority(CALL, PRIORITY)?;
        redistributor.enable_interrupt(CALL, true)?;
        redistributor.set_group(OWN_TIMER, GROUP_0)?;
        redistributor.set_interrupt_priority(OWN_TIMER, PRIORITY)?;
        redistributor.set_trigger(OWN_TIMER, Trigger::Level)?;
        redistributor.enable_interrupt(OWN_TIMER, true)?;
    }
    // The normal world can change the mask only while it is in its own half.
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group0(true);
    GicCpuInterface::enable_group1_non_secure(false);
    sysreg::isb();
    Ok(())
}

/// The next pending interrupt of the firmware's. It is ended when `handle` returns.
pub(crate) fn handle(mut handle: impl FnMut(Event)) {
    while let Some(intid) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group0) {
        match intid {
            SECURE_UART => handle(Event::Uart),
            CALL => handle(Event::Call),
            OWN_TIMER => handle(Event::Timer),
            // 1020 and up: nothing of Group 0.
            _ if u32::from(intid) >= 1020 => return,
            _ => {}
        }
        GicCpuInterface::end_interrupt(intid, InterruptGroup::Group0);
    }
}

/// Makes a shared interrupt of the normal world pending, whether it is level-sensitive or not
/// (GIC architecture 12.9, GICD_ISPENDR<n>).
pub(crate) fn make_pending(intid: u32) {
    const GICD_ISPENDR: u64 = 0x200;
    let register = GICD_BASE + GICD_ISPENDR + 4 * u64::from(intid / 32);
    mmio::write_u32(register, 1 << (intid % 32));
}

/// No interrupt of the normal world wakes this CPU.
pub(crate) fn mute_normal_world() {
    GicCpuInterface::enable_group1_non_secure(false);
    sysreg::isb();
}

/// Calls a CPU from the holding pen.
pub(crate) fn call(cpu: usize) {
    let affinity = cpu_affinity(cpu).to_le_bytes();
    let target = SgiTarget::List {
        affinity3: 0,
        affinity2: affinity[2],
        affinity1: affinity[1],
        target_list: 1 << affinity[0],
    };
    sysreg::dsb();
    // It fails only for what is no SGI.
    let _ = GicCpuInterface::send_sgi(CALL, target, SgiTargetGroup::Group0);
    sysreg::isb();
}
