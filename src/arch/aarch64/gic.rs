//! The physical GICv3, and what Cordon wants of it:
//!
//! | interrupt | ends |
//! |---|---|
//! | an SGI by which one CPU gets another out of its guest or out of WFI | at once |
//! | the guest's timers | when the guest deactivates the virtual interrupt that is linked to it |
//! | EL2's own timer's | at once; the timer is switched off until the next deadline |
//! | one of the platform's, that says that an error record is there | at once |
//! | the virtual CPU interface's maintenance interrupt | at once; its cause is removed before anybody looks again |
//! | the console's | at once; the UART is told to be quiet until somebody wants its characters |
//! | those of devices that a VM was given ([`super::spi`]) | as the timers' |
//!
//! Ending is parted in two for that (ICC_CTLR_EL1.EOImode = 1): EOIR drops the priority, DIR
//! deactivates (GIC architecture 4.6).
#![expect(unsafe_code, reason = "device registers, and system registers")]

use super::cpu::{self, PerCpu};
use super::mmu;
use aarch64_cpu::asm::barrier;
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{
    GicCpuInterface, GicDistributor, GicError, GicRedistributor, GicRedistributorIterator,
};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};
use cordon::addr::{Pa, PaRange};
use cordon::platform::machine::Machine;
use cordon::platform::sgi::sgi1r;
use cordon::vm::exit::Arrived;
use cordon::vm::vgic::{PHYSICAL_TIMER, Timers, VIRTUAL_TIMER};
use core::arch::asm;
use core::fmt;
use core::ptr::{NonNull, read_volatile};
use spin::{Mutex, Once};

/// Gets a CPU's attention.
const KICK: IntId = IntId::sgi(KICK_NUMBER);
const KICK_NUMBER: u32 = 0;
/// Size in bytes of the distributor's registers, and of the smallest redistributor's two frames
/// (GIC architecture 12.8, 12.10).
const DISTRIBUTOR_SIZE: u64 = 64 << 10;
const REDISTRIBUTOR_SIZE: u64 = 128 << 10;
/// Lets everything through (lowest priority, GIC architecture 4.8).
const ANY_PRIORITY: u8 = 0xff;

/// Where the redistributors are. The lock is held while one of them is driven.
static REDISTRIBUTORS: Mutex<alloc::vec::Vec<PaRange>> = Mutex::new(alloc::vec::Vec::new());

/// INTIDs of what is wired to the GIC here.
#[derive(Clone, Copy, Debug, Default)]
struct Wires {
    virtual_timer: Option<u32>,
    physical_timer: Option<u32>,
    maintenance: Option<u32>,
    own_timer: Option<u32>,
    console: Option<u32>,
}

impl Wires {
    /// Nothing.
    const NONE: Self = Self {
        virtual_timer: None,
        physical_timer: None,
        maintenance: None,
        console: None,
        own_timer: None,
    };
}

static WIRES: Once<Wires> = Once::new();

/// Address of the distributor's registers, once they are mapped.
static DISTRIBUTOR: Once<u64> = Once::new();

/// Address of the distributor's registers, if there is one that is driven.
pub(super) fn distributor() -> Option<u64> {
    DISTRIBUTOR.get().copied()
}

/// SPIs by which the platform says that there is something to look at.
static NOTIFICATIONS: Mutex<alloc::vec::Vec<u32>> = Mutex::new(alloc::vec::Vec::new());

/// What came in: what is the guest's business, and whether something was typed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acknowledged {
    /// To be handed to the guest that was interrupted.
    pub arrived: Arrived,
    /// The console's UART has something.
    pub console: bool,
    /// A deadline of this CPU's has passed ([`super::timer`]).
    pub deadline: bool,
    /// An interrupt of [`enable_notification`]'s came: error sources are to be looked into.
    pub notified: bool,
}

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
/// remembers what is where.
///
/// # Errors
///
/// As [`Error`] says.
pub fn init(machine: &Machine) -> Result<(), Error> {
    let timer = machine.timer.unwrap_or_default();
    let wires = WIRES.call_once(|| Wires {
        virtual_timer: timer.virtual_,
        physical_timer: timer.physical,
        maintenance: machine.gic.as_ref().and_then(|gic| gic.maintenance),
        own_timer: timer.hyp_physical,
        console: machine.uart_interrupt,
    });
    let Some(gic) = &machine.gic else {
        return Ok(());
    };
    map(gic.distributor, DISTRIBUTOR_SIZE)?;
    for range in &gic.redistributors {
        map(*range, REDISTRIBUTOR_SIZE)?;
    }
    DISTRIBUTOR.call_once(|| gic.distributor.start().get());
    if let Some(registers) = NonNull::new(gic.distributor.start().get() as *mut Gicd) {
        // SAFETY: mapped as device memory just now, all of it, for this driver alone.
        let mut gicd = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
        gicd.enable_all_interrupts(false);
        gicd.configure_default_settings();
        if let (Some(console), Some(this)) = (wires.console.map(intid), cpu::try_this()) {
            // Without it, what is typed is seen when a guest looks.
            let _ = gicd
                .set_trigger(console, Trigger::Level)
                .and_then(|()| gicd.set_routing(console, Some(this.mpidr)))
                .and_then(|()| gicd.enable_interrupt(console, true));
        }
    }
    REDISTRIBUTORS.lock().extend_from_slice(&gic.redistributors);
    Ok(())
}

fn map(registers: PaRange, size: u64) -> Result<(), Error> {
    if registers.size() < size {
        return Err(Error::TooSmall(registers));
    }
    mmu::map_device(registers).map_err(Error::Map)
}

/// An INTID that the DTB gave: 16 to 1019, as `platform::machine` makes sure.
fn intid(number: u32) -> IntId {
    match number {
        ..16 => IntId::sgi(number),
        16..32 => IntId::ppi(number - 16),
        _ => IntId::spi(number - 32),
    }
}

/// Whether EL2's own timer is wired to something.
pub fn has_own_timer() -> bool {
    WIRES.get().is_some_and(|wires| wires.own_timer.is_some())
}

/// Has the calling CPU told of the platform's interrupt `number` by [`Acknowledged::notified`].
/// False where there cannot be such an interrupt: it is no SPI, or has a use already.
pub fn enable_notification(number: u32, trigger: Trigger) -> bool {
    let wires = WIRES.get().copied().unwrap_or_default();
    let free = (32..1020).contains(&number) && wires.console != Some(number);
    let (Some(this), Some(&base), true) = (cpu::try_this(), DISTRIBUTOR.get(), free) else {
        return false;
    };
    let Some(registers) = NonNull::new(base as *mut Gicd) else {
        return false;
    };
    let mut known = NOTIFICATIONS.lock();
    // SAFETY: mapped as device memory, all of it, by `init`; the lock, and that only the boot CPU
    // sets anything up, make this the only driver.
    let mut gicd = GicDistributor::new(unsafe { UniqueMmioPointer::new(registers) });
    let spi = intid(number);
    let enabled = gicd
        .set_trigger(spi, trigger)
        .and_then(|()| gicd.set_routing(spi, Some(this.mpidr)))
        .and_then(|()| gicd.enable_interrupt(spi, true));
    if enabled.is_ok() && !known.contains(&number) {
        known.push(number);
    }
    enabled.is_ok()
}

/// The guests' timers, as they are wired here.
pub fn timers() -> Timers {
    let physical = |wire: fn(&Wires) -> Option<u32>| {
        let number = WIRES.get().and_then(wire);
        number.and_then(|number| u16::try_from(number).ok())
    };
    Timers {
        virtual_: physical(|wires| wires.virtual_timer),
        physical: physical(|wires| wires.physical_timer),
    }
}

/// Makes the calling CPU, `cpu`, ready to be kicked and to take its guest's interrupts. Without a
/// redistributor of its own, it is not: then its guest is stopped only at its next exit.
pub fn init_cpu(cpu: &PerCpu) {
    GicCpuInterface::enable_system_register_el2(true);
    if !wake_redistributor(cpu) {
        log::warn!(
            "event=error what=gic why=no-redistributor cpu={}",
            cpu.index
        );
    }
    end_in_two_steps();
    GicCpuInterface::set_priority_mask(ANY_PRIORITY);
    GicCpuInterface::enable_group1(true);
}

/// Sets ICC_CTLR_EL1.EOImode.
fn end_in_two_steps() {
    // SAFETY: the register exists, system registers having been enabled; every acknowledged interrupt
    // is ended accordingly, by `acknowledge_all`.
    unsafe {
        asm!(
            "mrs {0}, icc_ctlr_el1",
            "orr {0}, {0}, #2",
            "msr icc_ctlr_el1, {0}",
            "isb",
            out(reg) _,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Finds the redistributor of `cpu` (GICR_TYPER.Affinity_Value) and sets it up.
fn wake_redistributor(cpu: &PerCpu) -> bool {
    let regions = REDISTRIBUTORS.lock();
    for region in regions.iter() {
        let mut address = region.start().get();
        let Some(base) = NonNull::new(address as *mut GicrSgi) else {
            continue;
        };
        // SAFETY: the region is mapped as device memory and holds redistributors up to one with
        // GICR_TYPER.Last (GIC architecture 12.10); the lock makes this the only driver.
        let Ok(redistributors) = (unsafe { GicRedistributorIterator::new(base) }) else {
            continue;
        };
        for mut redistributor in redistributors {
            if redistributor.typer().core_mpidr() == cpu.mpidr {
                cpu.redistributor.call_once(|| address);
                // An error says that it is awake already.
                let _ = redistributor.mark_core_awake();
                redistributor.configure_default_settings();
                return enable_own(&mut redistributor).is_ok();
            }
            // Two more frames for virtual LPIs (GIC architecture 12.10).
            let frames = if redistributor.typer().virtual_lpis_supported() {
                4
            } else {
                2
            };
            address += frames << 16;
            // A region may be of one CPU alone, whose redistributor need not say that it is the last (ACPI 6.5,
            // 5.2.12.14).
            if !region.contains(Pa::new(address)) {
                break;
            }
        }
    }
    false
}

fn enable_own(redistributor: &mut GicRedistributor<'_>) -> Result<(), GicError> {
    let wires = WIRES.get().copied().unwrap_or_default();
    super::timer::quiet();
    let lines = [
        wires.virtual_timer,
        wires.physical_timer,
        wires.maintenance,
        wires.own_timer,
    ];
    for line in lines.into_iter().flatten().map(intid) {
        redistributor.set_trigger(line, Trigger::Level)?;
        redistributor.enable_interrupt(line, true)?;
    }
    redistributor.enable_interrupt(KICK, true)
}

/// Which of the timers of the guest on `cpu` ask for an interrupt, as bits by virtual INTID. A
/// level-sensitive interrupt's pending bit shows its line, whether it is active or not (GIC
/// architecture 12.11, GICR_ISPENDR0).
pub fn timer_lines(cpu: &PerCpu) -> u32 {
    const GICR_ISPENDR0: u64 = 0x1_0200;
    let (Some(base), Some(wires)) = (cpu.redistributor.get(), WIRES.get()) else {
        return 0;
    };
    // SAFETY: a redistributor's registers, which are mapped for good; reading this one has no side
    // effect.
    let pending = unsafe { read_volatile((base + GICR_ISPENDR0) as *const u32) };
    let line = |wire: Option<u32>, virtual_intid: u16| match wire {
        Some(wire) if pending >> (wire & 31) & 1 != 0 => 1 << virtual_intid,
        _ => 0,
    };
    line(wires.virtual_timer, VIRTUAL_TIMER) | line(wires.physical_timer, PHYSICAL_TIMER)
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

/// Deactivates an interrupt whose priority was dropped.
pub fn deactivate(number: u32) {
    // SAFETY: ICC_DIR_EL1 with EOImode = 1; an INTID that is not active is ignored.
    unsafe {
        asm!("msr icc_dir_el1, {}", in(reg) u64::from(number), options(nostack, preserves_flags));
    }
}

/// Deactivates what came of the timers of a vCPU that does not run: there is no guest to do it.
pub fn forget_timers(arrived: &Arrived) {
    let wires = WIRES.get().copied().unwrap_or_default();
    let timers = [
        (arrived.virtual_timer, wires.virtual_timer),
        (arrived.physical_timer, wires.physical_timer),
    ];
    for (came, number) in timers {
        if let (true, Some(number)) = (came, number) {
            deactivate(number);
        }
    }
}

/// The INTID of a shared interrupt (GIC architecture 2.2). All of them but the console's are devices'
/// that a VM was given, or were never switched on.
fn device_intid(number: u32) -> Option<u16> {
    let shared = (32..=1019).contains(&number);
    u16::try_from(number).ok().filter(|_| shared)
}

/// Whether the console's UART has an interrupt here.
pub fn announces_input() -> bool {
    WIRES.get().is_some_and(|wires| wires.console.is_some())
}

/// Takes the interrupts that are pending for this CPU; what does not fit comes at its next exit.
pub fn acknowledge_all() -> Acknowledged {
    static NO_WIRES: Wires = Wires::NONE;
    let wires = WIRES.get().unwrap_or(&NO_WIRES);
    let mut taken = Acknowledged::default();
    while !taken.arrived.devices.is_full()
        && let Some(interrupt) =
            GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)
    {
        GicCpuInterface::end_interrupt(interrupt, InterruptGroup::Group1);
        let number = u32::from(interrupt);
        if Some(number) == wires.virtual_timer {
            taken.arrived.virtual_timer = true;
            continue;
        }
        if Some(number) == wires.physical_timer {
            taken.arrived.physical_timer = true;
            continue;
        }
        if Some(number) == wires.own_timer {
            // Before it is deactivated, or it would be pending again.
            super::timer::quiet();
            taken.deadline = true;
        }
        if let Some(device) = device_intid(number)
            && Some(number) != wires.console
            && !NOTIFICATIONS.lock().contains(&number)
        {
            // There is room, or the loop would have ended.
            let _ = taken.arrived.devices.push(device);
            continue;
        }
        deactivate(number);
        if Some(number) == wires.maintenance {
            taken.arrived.maintenance = true;
            // Its line stays high until list registers have been seen to.
            break;
        }
        if Some(number) == wires.console {
            super::uart::mute();
            taken.console = true;
        } else if NOTIFICATIONS.lock().contains(&number) {
            taken.notified = true;
        } else if interrupt != KICK && Some(number) != wires.own_timer {
            log::warn!("event=error what=interrupt why=unexpected id={interrupt:?}");
        }
    }
    taken
}
