//! What all vCPUs share, made once at boot.

use super::{mmu, ram};
use cordon_probe::PAGE_SIZE;
use cordon_probe::bitmap::Bitmap;
use cordon_probe::ledger::Ledger;
use cordon_probe::machine::{Gic, Machine};
use cordon_probe::pages::{Pages, Region};
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::Once;

/// The buffer in ordinary RAM that the guest can lose: one level-2 block.
const BUFFER: u64 = 2 << 20;

static GUEST: Once<Guest> = Once::new();

/// The shared state.
pub(super) struct Guest {
    /// Device memory and the buffer in RAM.
    pub(super) pages: Pages,
    /// What was lost.
    pub(super) ledger: Ledger<'static>,
    /// The pages that `fill-code` has filled and nobody has written to since.
    pub(super) code: Bitmap<'static>,
    /// The buffer in RAM.
    pub(super) buffer: Region,
    machine: Machine,
    vcpus: AtomicUsize,
}

/// Takes the buffer and the ledger from RAM and maps what may be lost; an error names what did not
/// work.
pub(super) fn init(machine: Machine) -> Result<(), &'static str> {
    let ipa = ram::take(BUFFER / PAGE_SIZE, BUFFER).ok_or("no-ram-for-buffer")?;
    let buffer = Region {
        ipa,
        pages: BUFFER / PAGE_SIZE,
    };
    let mut pages = machine.pages.clone();
    pages.add_ram(buffer).ok_or("too-many-regions")?;
    for region in pages.regions() {
        mmu::map_views(*region).ok_or("cannot-map-device-memory")?;
    }
    let vcpus = machine.mpidrs().len();
    let words = ram::take_words(Ledger::words_for(pages.len(), vcpus));
    let ledger = Ledger::new(pages.len(), vcpus, words.ok_or("no-ram-for-ledger")?);
    let words = ram::take_words(Bitmap::words_for(pages.len()));
    let code = Bitmap::new(words.ok_or("no-ram-for-ledger")?);
    let vcpus = AtomicUsize::new(1);
    GUEST.call_once(|| Guest {
        pages,
        ledger,
        code,
        buffer,
        machine,
        vcpus,
    });
    Ok(())
}

/// The shared state; before [`init`] there is none, and asking for it is a mistake.
pub(super) fn get() -> &'static Guest {
    match GUEST.get() {
        Some(guest) => guest,
        None => super::report::fatal(format_args!("what=too-early")),
    }
}

impl Guest {
    /// How many vCPUs are up.
    pub(super) fn vcpus(&self) -> usize {
        self.vcpus.load(Ordering::Acquire)
    }

    /// One more vCPU is up.
    pub(super) fn add_vcpu(&self) {
        self.vcpus.fetch_add(1, Ordering::Release);
    }

    /// The interrupt controller.
    pub(super) fn gic(&self) -> Option<Gic> {
        self.machine.gic
    }

    /// What was bad before the guest started.
    pub(super) fn bad(&self) -> impl Iterator<Item = Region> {
        self.machine.bad()
    }

    /// The affinities of all vCPUs.
    pub(super) fn mpidrs(&self) -> &[u64] {
        self.machine.mpidrs()
    }

    /// Whether the guest itself lives at `ipa`: its RAM but for the buffer, and its UART.
    pub(super) fn is_own(&self, ipa: u64) -> bool {
        let uart = self.machine.uart / PAGE_SIZE == ipa / PAGE_SIZE;
        let ram = self
            .machine
            .memory()
            .any(|region| region.page_of(ipa).is_some());
        uart || ram && self.pages.number(ipa).is_none()
    }
}
