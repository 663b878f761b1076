//! Single shared interrupts of the physical distributor, for devices that VMs were given.
//!
//! Each register is written as a whole word that concerns this interrupt alone (set and clear
//! registers, GICD_IROUTER), but GICD_ICFGR, which has a lock. What a call does has taken effect
//! when it returns as far as GICD_CTLR.RWP says so (GIC architecture 12.9.4).
#![expect(unsafe_code, reason = "device registers")]

use super::{cpu, gic};
use aarch64_cpu::asm::barrier;
use cordon::vm::vgic::PhysicalDistributor;
use core::ptr::{read_volatile, write_volatile};
use spin::Mutex;

const GICD_CTLR: u64 = 0x0000;
const GICD_ISENABLER: u64 = 0x0100;
const GICD_ICENABLER: u64 = 0x0180;
const GICD_ISPENDR: u64 = 0x0200;
const GICD_ICPENDR: u64 = 0x0280;
const GICD_ISACTIVER: u64 = 0x0300;
const GICD_ICACTIVER: u64 = 0x0380;
const GICD_ICFGR: u64 = 0x0c00;
const GICD_IROUTER: u64 = 0x6000;

/// GICD_CTLR.RWP: a write to it, or a disabling one, has not taken effect everywhere.
const REGISTER_WRITE_PENDING: u32 = 1 << 31;

/// How often that is looked at before it is taken for never. What is disabled too late then comes once
/// more, and is refused.
const PATIENCE: u32 = 1_000_000;

/// Held while a word is read, changed and written.
static CONFIG: Mutex<()> = Mutex::new(());

/// The distributor.
#[derive(Debug)]
pub struct Distributor;

/// The only one.
pub static THE_DISTRIBUTOR: Distributor = Distributor;

/// Address of the register at `offset`, for an INTID that the distributor is about.
fn register(offset: u64, intid: u16) -> Option<u64> {
    let base = gic::distributor()?;
    (32..=1019).contains(&intid).then_some(base + offset)
}

fn read(offset: u64, intid: u16) -> u32 {
    // SAFETY: a register of the distributor, all of which is mapped for good; reading it has no side
    // effect.
    register(offset, intid).map_or(0, |address| unsafe { read_volatile(address as *const u32) })
}

fn write(offset: u64, intid: u16, value: u32) {
    if let Some(address) = register(offset, intid) {
        // SAFETY: a register of the distributor, all of which is mapped for good; it affects an
        // interrupt that is handled.
        unsafe { write_volatile(address as *mut u32, value) };
    }
}

/// Offset of the word with a bit for `intid`, and the bit.
fn bit(offset: u64, intid: u16) -> (u64, u32) {
    (offset + 4 * u64::from(intid / 32), 1 << (intid % 32))
}

fn set(offset: u64, intid: u16) {
    let (offset, bit) = bit(offset, intid);
    write(offset, intid, bit);
}

fn get(offset: u64, intid: u16) -> bool {
    let (offset, bit) = bit(offset, intid);
    read(offset, intid) & bit != 0
}

impl Distributor {
    /// Switches off and deactivates an interrupt that nobody wants.
    pub fn refuse(&self, physical: u16) {
        self.set_enabled(physical, false);
        self.deactivate(physical);
    }
}

impl PhysicalDistributor for Distributor {
    fn set_enabled(&self, physical: u16, on: bool) {
        if on {
            set(GICD_ISENABLER, physical);
            return;
        }
        set(GICD_ICENABLER, physical);
        for _ in 0..PATIENCE {
            if read(GICD_CTLR, physical) & REGISTER_WRITE_PENDING == 0 {
                break;
            }
            core::hint::spin_loop();
        }
    }

    fn set_edge(&self, physical: u16, edge: bool) {
        // Two bits each, of which the upper says "edge".
        let offset = GICD_ICFGR + 4 * u64::from(physical / 16);
        let bit = 0b10 << (2 * (physical % 16));
        let _alone = CONFIG.lock();
        let old = read(offset, physical);
        write(offset, physical, if edge { old | bit } else { old & !bit });
    }

    fn set_route(&self, physical: u16, cpu: usize) {
        let offset = GICD_IROUTER + 8 * u64::from(physical);
        if let (Some(address), Some(cpu)) = (register(offset, physical), cpu::all().get(cpu)) {
            // SAFETY: as in `write`. The value is the affinity of a CPU of Cordon's.
            unsafe { write_volatile(address as *mut u64, cpu.mpidr) };
        }
    }

    fn is_pending(&self, physical: u16) -> bool {
        get(GICD_ISPENDR, physical)
    }

    fn clear_pending(&self, physical: u16) {
        set(GICD_ICPENDR, physical);
    }

    fn is_active(&self, physical: u16) -> bool {
        // What acknowledging it did must have arrived (GIC architecture 4.6, "Observability").
        barrier::dsb(barrier::SY);
        get(GICD_ISACTIVER, physical)
    }

    fn deactivate(&self, physical: u16) {
        set(GICD_ICACTIVER, physical);
        // Before the lock that this happens under is released.
        barrier::dsb(barrier::SY);
    }
}
