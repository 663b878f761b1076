//! The one place that counts: what happened to errors, to whom, and of what kind.
//!
//! Only [`Announcer::announce`](super::event::Announcer::announce) gets here, so that no number can be
//! counted twice or forgotten. Numbers that the poison set implies (which pages are bad now, whose they
//! are, in which region) are worked out of it when somebody asks, and so cannot drift from it.
//!
//! No lock: every number is exact by itself; together they are of one moment only while nothing
//! happens.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::cper::Severity;
use super::event::{ErrorEvent, Origin, Stage};
use crate::addr::Vmid;

/// VMs that are counted apart: the first ones. What happens to any further is in the sums only.
pub const MAX_VMS: usize = 64;

/// Severities, as the first index of [`Kinds`].
const SEVERITIES: usize = 4;
const ORIGINS: usize = Origin::NAMES.len();

const fn severity_index(severity: Severity) -> usize {
    match severity {
        Severity::Informational => 0,
        Severity::Corrected => 1,
        Severity::Recoverable => 2,
        Severity::Fatal => 3,
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $live:ident, $(#[$plain_doc:meta])* $plain:ident {
        $($(#[$field_doc:meta])* $field:ident),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Debug)]
        struct $live { $($field: AtomicU64),* }

        impl $live {
            const fn new() -> Self {
                Self { $($field: AtomicU64::new(0)),* }
            }

            fn snapshot(&self) -> $plain {
                $plain { $($field: self.$field.load(Relaxed)),* }
            }
        }

        $(#[$plain_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $plain { $($(#[$field_doc])* pub $field: u64),* }
    };
}

counters! {
    /// How often each stage was reached.
    Stages,
    /// What was counted up to some moment. Displays as the pairs of `ras: event=summary`.
    Snapshot {
        /// Errors learned of.
        detected,
        /// Errors among them that were corrected.
        corrected,
        /// Exceptions without a record.
        no_record,
        /// Errors contained.
        contained,
        /// Errors that were contained before.
        known,
        /// Synchronous external aborts given to guests.
        guest_aborts,
        /// Virtual SErrors given to guests.
        guest_serrors,
        /// Accesses to contained pages.
        touched,
        /// Errors in memory that nobody owns.
        unclaimed,
        /// Errors that a filter kept from being acted on.
        filtered,
        /// Times that a guest was seen to go round in circles.
        loops,
        /// Times that something was full.
        overflows,
        /// VMs stopped.
        stopped_vms,
        /// Errors that the machine did not survive.
        fatal,
        /// Pages that are cordoned off now: those that ever were, less those repaired.
        lost_pages,
        /// Pages that were repaired.
        repaired_pages,
        /// Pages whose contents were moved.
        moved_pages,
    }
}

counters! {
    /// What one VM's vCPUs met: a line of a cache, so that VMs do not get into each other's way.
    #[repr(align(64))]
    OfVm,
    /// What one VM's vCPUs met. Displays as pairs of `ras: event=counters vm=...`.
    VmSnapshot {
        /// Errors that it consumed, or injected.
        detected,
        /// Synchronous external aborts that it was given.
        aborts,
        /// Virtual SErrors that it was given.
        serrors,
        /// Its accesses to pages that were holes.
        touched,
        /// Pages that it consumed at least once.
        distinct,
        /// Errors of its own that a filter kept from being acted on.
        filtered,
        /// Times that it was seen to go round in circles.
        loops,
    }
}

impl VmSnapshot {
    /// Times that it consumed poison it had consumed before.
    pub const fn repeated(&self) -> u64 {
        (self.aborts + self.serrors).saturating_sub(self.distinct)
    }
}

impl fmt::Display for VmSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repeated = self.repeated();
        let Self {
            detected,
            aborts,
            serrors,
            touched,
            distinct,
            filtered,
            loops,
        } = self;
        write!(
            f,
            "detected={detected} vsea={aborts} vserror={serrors} touched={touched} distinct={distinct} \
             repeated={repeated} filtered={filtered} loops={loops}"
        )
    }
}

/// Errors learned of, by how and how bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    by_kind: [[u64; SEVERITIES]; ORIGINS],
    /// Errors that somebody had consumed: action was required.
    pub required: u64,
    /// Errors that nobody had: action was optional.
    pub optional: u64,
}

impl Kinds {
    /// For each origin its name and how many errors that were corrected, recoverable and fatal.
    pub fn by_origin(&self) -> impl Iterator<Item = (&'static str, [u64; 3])> {
        let counts = self
            .by_kind
            .iter()
            .map(|[_, corrected, recoverable, fatal]| [*corrected, *recoverable, *fatal]);
        Origin::NAMES.into_iter().zip(counts)
    }
}

/// All counters.
#[derive(Debug)]
pub struct Counters {
    stages: Stages,
    kinds: [[AtomicU64; SEVERITIES]; ORIGINS],
    required: AtomicU64,
    optional: AtomicU64,
    /// On the heap, for these are made on a boot stack of a few KiB.
    vms: Box<[OfVm]>,
}

impl Counters {
    /// All zero. Allocates.
    pub fn new() -> Self {
        Self {
            stages: Stages::new(),
            kinds: [const { [const { AtomicU64::new(0) }; SEVERITIES] }; ORIGINS],
            required: AtomicU64::new(0),
            optional: AtomicU64::new(0),
            vms: (0..MAX_VMS).map(|_| OfVm::new()).collect(),
        }
    }

    pub(super) fn count(&self, event: &ErrorEvent, stage: Stage) {
        let all = &self.stages;
        let counter = match stage {
            Stage::Detected => &all.detected,
            Stage::Corrected => &all.corrected,
            Stage::NoRecord => &all.no_record,
            Stage::Contained { pages } => {
                add(&all.lost_pages, pages);
                &all.contained
            }
            Stage::Known => &all.known,
            Stage::GuestAborted => &all.guest_aborts,
            Stage::GuestSError => &all.guest_serrors,
            Stage::Touched => &all.touched,
            Stage::Unclaimed => &all.unclaimed,
            Stage::Filtered { .. } => &all.filtered,
            Stage::Looped => &all.loops,
            Stage::Overflow => &all.overflows,
            Stage::VmStopped => &all.stopped_vms,
            Stage::Fatal => &all.fatal,
            Stage::Repaired { pages } => {
                add(&all.repaired_pages, pages);
                return;
            }
            Stage::Moved { pages } => {
                add(&all.moved_pages, pages);
                return;
            }
        };
        add(counter, 1);
        if stage == Stage::Detected {
            self.count_kind(event);
        }
        if let Some(vm) = event.consumer_vm().and_then(|vm| self.of_vm(vm)) {
            vm.count(stage);
        }
    }

    fn count_kind(&self, event: &ErrorEvent) {
        let row = self.kinds.get(event.origin.index());
        if let Some(counter) = row.and_then(|row| row.get(severity_index(event.severity))) {
            add(counter, 1);
        }
        let required = event.is_action_required();
        add(
            if required {
                &self.required
            } else {
                &self.optional
            },
            1,
        );
    }

    /// `vm` has consumed a page for the first time.
    pub(super) fn count_distinct(&self, vm: Vmid) {
        if let Some(vm) = self.of_vm(vm) {
            add(&vm.distinct, 1);
        }
    }

    fn of_vm(&self, vm: Vmid) -> Option<&OfVm> {
        self.vms.get(usize::from(vm.get()).checked_sub(1)?)
    }

    /// The sums.
    pub fn snapshot(&self) -> Snapshot {
        let snapshot = self.stages.snapshot();
        let repaired = snapshot.repaired_pages;
        Snapshot {
            lost_pages: snapshot.lost_pages.saturating_sub(repaired),
            ..snapshot
        }
    }

    /// What `vm` met; `None` beyond [`MAX_VMS`].
    pub fn vm(&self, vm: Vmid) -> Option<VmSnapshot> {
        self.of_vm(vm).map(OfVm::snapshot)
    }

    /// The errors by kind.
    pub fn kinds(&self) -> Kinds {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        Kinds {
            by_kind: self.kinds.each_ref().map(|row| row.each_ref().map(load)),
            required: load(&self.required),
            optional: load(&self.optional),
        }
    }
}

impl OfVm {
    fn count(&self, stage: Stage) {
        let counter = match stage {
            Stage::Detected => &self.detected,
            Stage::GuestAborted => &self.aborts,
            Stage::GuestSError => &self.serrors,
            Stage::Touched => &self.touched,
            Stage::Filtered { .. } => &self.filtered,
            Stage::Looped => &self.loops,
            _ => return,
        };
        add(counter, 1);
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self::new()
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            detected,
            corrected,
            contained,
            guest_aborts,
            touched,
            lost_pages,
            filtered,
            loops,
            repaired_pages,
            moved_pages,
            ..
        } = self;
        write!(
            f,
            "detected={detected} corrected={corrected} contained={contained} vsea={guest_aborts} touched={touched} \
             lost_pages={lost_pages} filtered={filtered} loops={loops} repaired={repaired_pages} moved={moved_pages}"
        )
    }
}
