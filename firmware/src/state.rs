//! What all CPUs share, and the machine as the service uses it.

use cordon::addr::Pa;
use cordon_firmware::control::LineBuffer;
use cordon_firmware::gpt::{Gpt, Table, Tlb};
use cordon_firmware::layout::RTC_BASE;
use cordon_firmware::psci::Cpus;
use cordon_firmware::service::{ACK_WAIT_MS, Machine, REMIND_MS, Service, Written};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use spin::{Mutex, Once};

use crate::machine::{gic, mmio, ram, sysreg};

/// Level-1 tables: as many GiB can hold poison at once. 12 MiB of the 16 of secure RAM.
const TABLES: usize = 96;

static LEVEL_0: Table = Table::new();
static POOL: [Table; TABLES] = [const { Table::new() }; TABLES];

static SERVICE: Once<Mutex<Service<'static, TABLES>>> = Once::new();

/// Held by the one CPU that waits until its record can be written; others that consume wait here.
/// The service is not held meanwhile.
static TURN: Mutex<()> = Mutex::new(());

/// The control line as far as it has come in.
pub(crate) static LINE: Mutex<LineBuffer> = Mutex::new(LineBuffer::new());

/// When EL2 was last entered with an error (CNTPCT).
static TOLD: AtomicU64 = AtomicU64::new(0);

/// EL2 is about to be entered with an error: what the firmware does for it ends here, and what a
/// benchmark counts begins.
pub(crate) fn tell_now() {
    TOLD.store(sysreg::counter(), Relaxed);
}

/// Which CPUs are on.
pub(crate) static CPUS: Cpus = Cpus::new();

/// Makes the granule protection table, with everything accessible, and the service that owns it.
pub(crate) fn init() {
    SERVICE.call_once(|| Mutex::new(Service::new(Gpt::new(&LEVEL_0, &POOL), 1)));
    sysreg::dsb();
}

/// The physical address of the granule protection table.
pub(crate) fn level0() -> u64 {
    LEVEL_0.address()
}

/// Runs `action` with the service, which no other CPU uses meanwhile.
pub(crate) fn with_service<R>(
    action: impl FnOnce(&mut Service<'static, TABLES>) -> R,
) -> Option<R> {
    SERVICE.get().map(|service| action(&mut service.lock()))
}

/// Records that `page` was consumed, as soon as the record before is acknowledged; if that takes too
/// long, some time later.
pub(crate) fn record(page: Pa) -> Written {
    let _turn = TURN.lock();
    let ticks = (sysreg::cntfrq() / 1000).saturating_mul(ACK_WAIT_MS);
    let start = sysreg::counter();
    loop {
        // Asked for before the attempt: the last one comes after the wait, however long an
        // emulator lets this CPU rest in between.
        let last = sysreg::counter().wrapping_sub(start) > ticks;
        let written = with_service(|service| service.record(page, &mut El3));
        match written.unwrap_or(Some(Written::None)) {
            Some(written) => return written,
            None if last => {
                let late = with_service(|service| service.postpone(page, &mut El3));
                return late.unwrap_or(Written::Busy);
            }
            None => sysreg::relax(),
        }
    }
}

/// The machine from EL3.
pub(crate) struct El3;

impl Tlb for El3 {
    fn publish(&mut self) {
        sysreg::dsb();
    }

    fn invalidate(&mut self) {
        sysreg::invalidate_gpt();
    }
}

impl Machine for El3 {
    fn read_u64(&mut self, at: Pa) -> u64 {
        ram::read_u64(at)
    }

    fn write_u64(&mut self, at: Pa, value: u64) {
        sysreg::dsb();
        ram::write_u64(at, value);
        sysreg::dsb();
    }

    fn write(&mut self, to: Pa, bytes: &[u8]) {
        // The source was checked to lie in RAM when it was found.
        let _ = ram::write(to, bytes);
    }

    fn now(&mut self) -> u64 {
        u64::from(mmio::read_u32(RTC_BASE))
    }

    fn signal(&mut self, intid: u32) {
        sysreg::dsb();
        gic::make_pending(intid);
    }

    fn remind(&mut self) {
        sysreg::start_own_timer(sysreg::cntfrq() * REMIND_MS / 1000);
    }

    fn counter(&mut self) -> u64 {
        sysreg::counter()
    }

    fn told(&mut self) -> u64 {
        TOLD.load(Relaxed)
    }
}
