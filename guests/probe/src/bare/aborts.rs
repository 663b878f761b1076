//! What each vCPU's exceptions said, and how many there were.
//!
//! A vCPU's slot is written by its own exception handler and read, right after the access that
//! aborted, by the code on the same vCPU that made the access. Only the counts are read by others.

use cordon_probe::MAX_VCPUS;
use cordon_probe::syndrome::Syndrome;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The registers of one exception.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abort {
    /// `ESR_EL1`.
    pub(super) esr: u64,
    /// `FAR_EL1`.
    pub(super) far: u64,
    /// `SPSR_EL1`.
    pub(super) spsr: u64,
    /// The vector's offset: 0x200 from EL1, 0x400 from EL0.
    pub(super) vector: u64,
    /// `ELR_EL1`.
    pub(super) elr: u64,
    /// The physical counter in the vector; 0 where that was the one for EL0.
    pub(super) entered: u64,
}

impl Abort {
    pub(super) const fn syndrome(&self) -> Syndrome {
        Syndrome::new(self.esr)
    }

    /// The exception level it was taken from (`SPSR_EL1.M[3:2]`).
    pub(super) const fn level(&self) -> u64 {
        self.spsr >> 2 & 3
    }
}

struct Slot {
    esr: AtomicU64,
    far: AtomicU64,
    spsr: AtomicU64,
    vector: AtomicU64,
    elr: AtomicU64,
    entered: AtomicU64,
    external: AtomicU64,
    other: AtomicU64,
    serrors: AtomicU64,
}

static SLOTS: [Slot; MAX_VCPUS] = [const {
    Slot {
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
        spsr: AtomicU64::new(0),
        vector: AtomicU64::new(0),
        elr: AtomicU64::new(0),
        entered: AtomicU64::new(0),
        external: AtomicU64::new(0),
        other: AtomicU64::new(0),
        serrors: AtomicU64::new(0),
    }
}; MAX_VCPUS];

fn slot(vcpu: usize) -> &'static Slot {
    &SLOTS[vcpu % MAX_VCPUS]
}

/// Counts a synchronous exception of this vCPU that somebody expects, and keeps it for [`last`].
pub(super) fn record(vcpu: usize, abort: Abort) {
    let slot = slot(vcpu);
    slot.esr.store(abort.esr, Relaxed);
    slot.far.store(abort.far, Relaxed);
    slot.spsr.store(abort.spsr, Relaxed);
    slot.vector.store(abort.vector, Relaxed);
    slot.elr.store(abort.elr, Relaxed);
    slot.entered.store(abort.entered, Relaxed);
    let count = if abort.syndrome().is_external_abort() {
        &slot.external
    } else {
        &slot.other
    };
    count.fetch_add(1, Relaxed);
}

/// Counts an SError of vCPU `vcpu`; returns the count.
pub(super) fn record_serror(vcpu: usize) -> u64 {
    slot(vcpu).serrors.fetch_add(1, Relaxed) + 1
}

/// The latest exception of vCPU `vcpu`.
pub(super) fn last(vcpu: usize) -> Abort {
    let slot = slot(vcpu);
    Abort {
        esr: slot.esr.load(Relaxed),
        far: slot.far.load(Relaxed),
        spsr: slot.spsr.load(Relaxed),
        vector: slot.vector.load(Relaxed),
        elr: slot.elr.load(Relaxed),
        entered: slot.entered.load(Relaxed),
    }
}

/// External aborts that vCPU `vcpu` has taken since boot.
pub(super) fn count(vcpu: usize) -> u64 {
    slot(vcpu).external.load(Relaxed)
}

/// External aborts, SErrors and other faults of all vCPUs since boot.
pub(super) fn totals() -> (u64, u64, u64) {
    let sum = |count: fn(&Slot) -> &AtomicU64| SLOTS.iter().map(|s| count(s).load(Relaxed)).sum();
    (sum(|s| &s.external), sum(|s| &s.serrors), sum(|s| &s.other))
}
