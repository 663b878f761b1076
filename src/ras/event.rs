//! A memory error as a value, and who gets to know what became of it.
//!
//! However an error is learned of, it becomes one [`ErrorEvent`]. Each step of its way is a
//! [`Stage`], made public by [`Announcer::announce`] and nowhere else: that counts it, in the one place
//! where counters change, and then tells the subscribers in the order in which they registered.
//! Announcing takes no lock and may be done on any CPU, so a subscriber must expect to be called
//! on several at once, and must not announce anything itself.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use spin::Once;

use super::cper::Severity;
use super::esr::{Abort, Access};
use crate::addr::{Pa, PaRange, Vmid};

#[cfg(test)]
mod tests;

/// One memory error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEvent {
    /// Its number, counted from 1 since boot; all lines about it carry it.
    pub sequence: u64,
    /// What memory is lost, if that is known.
    pub range: Option<PaRange>,
    /// How bad it is.
    pub severity: Severity,
    /// How it was learned of.
    pub origin: Origin,
    /// The physical CPU that learned of it.
    pub cpu: usize,
    /// Who consumed it. `None`: nobody yet, which makes acting on it optional (AO rather than AR).
    pub consumer: Option<Consumer>,
}

impl ErrorEvent {
    /// Whether somebody has consumed the error and cannot go on before something is done (AR).
    pub const fn is_action_required(&self) -> bool {
        self.consumer.is_some()
    }

    /// The lowest lost address.
    pub fn pa(&self) -> Option<Pa> {
        self.range.map(PaRange::start)
    }
}

/// Which event it is and how it came, as the `key=value` pairs of `docs/protocols.md`. What was lost
/// and how badly, the record's section says; the consumer's `vm` is a name, which whoever knows names
/// adds.
impl fmt::Display for ErrorEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sequence,
            origin,
            cpu,
            ..
        } = self;
        write!(f, "seq={sequence} via={origin} cpu={cpu}")?;
        if let Some(Consumer::Vcpu {
            vcpu, el, attempt, ..
        }) = self.consumer
        {
            write!(f, " vcpu={vcpu} el={el}")?;
            if let Some(attempt) = attempt {
                write!(f, " access={attempt}")?;
            }
        }
        Ok(())
    }
}

/// How an error was learned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A synchronous external abort, of a guest or of Cordon.
    Sea,
    /// An SError.
    SError,
    /// A record that firmware left, of the source with this number.
    Ghes(u16),
    /// It was known before boot.
    Imported,
    /// It was asked for, as a test.
    Injected,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sea => "sea",
            Self::SError => "serror",
            Self::Ghes(_) => "ghes",
            Self::Imported => "imported",
            Self::Injected => "injected",
        })
    }
}

/// Who consumed an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// A guest.
    Vcpu {
        /// Its VM.
        vm: Vmid,
        /// Number of the vCPU in the VM.
        vcpu: u8,
        /// Exception level, 0 or 1.
        el: u8,
        /// What it tried; an SError does not say.
        attempt: Option<Attempt>,
    },
    /// Cordon itself.
    Hypervisor,
}

/// What a consumer was doing when it met an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Its own access.
    Access(Access),
    /// The walk of its own tables, on the way to any access.
    Walk,
}

impl From<&Abort> for Attempt {
    fn from(abort: &Abort) -> Self {
        if abort.stage1_walk || abort.fault.walk_error().is_some() {
            Self::Walk
        } else {
            Self::Access(abort.access)
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(access) => access.fmt(f),
            Self::Walk => f.pad("walk"),
        }
    }
}

/// A step on the way of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It was learned of.
    Detected,
    /// An exception came without a record that explains it.
    NoRecord,
    /// This many pages that had been good are cordoned off now.
    Contained {
        /// Pages.
        pages: u64,
    },
    /// All of it was contained before.
    Known,
    /// A synchronous external abort was given to a guest.
    GuestAborted,
    /// A virtual SError was given to a guest.
    GuestSError,
    /// A guest accessed a page that was contained before.
    Touched,
    /// Nobody owns the memory.
    Unclaimed,
    /// Something that is bounded was full, and a coarser way was taken.
    Overflow,
    /// A VM was stopped.
    VmStopped,
    /// Pages were repaired.
    Repaired {
        /// Pages.
        pages: u64,
    },
    /// The machine cannot go on.
    Fatal,
}

/// How often each stage was reached.
#[derive(Debug, Default)]
pub struct Counters {
    detected: AtomicU64,
    no_record: AtomicU64,
    contained: AtomicU64,
    known: AtomicU64,
    guest_aborts: AtomicU64,
    guest_serrors: AtomicU64,
    touched: AtomicU64,
    unclaimed: AtomicU64,
    overflows: AtomicU64,
    stopped_vms: AtomicU64,
    fatal: AtomicU64,
    pages_lost: AtomicU64,
    pages_repaired: AtomicU64,
}

impl Counters {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            detected: AtomicU64::new(0),
            no_record: AtomicU64::new(0),
            contained: AtomicU64::new(0),
            known: AtomicU64::new(0),
            guest_aborts: AtomicU64::new(0),
            guest_serrors: AtomicU64::new(0),
            touched: AtomicU64::new(0),
            unclaimed: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
            stopped_vms: AtomicU64::new(0),
            fatal: AtomicU64::new(0),
            pages_lost: AtomicU64::new(0),
            pages_repaired: AtomicU64::new(0),
        }
    }

    fn count(&self, stage: Stage) {
        let counter = match stage {
            Stage::Detected => &self.detected,
            Stage::NoRecord => &self.no_record,
            Stage::Contained { pages } => {
                self.pages_lost.fetch_add(pages, Relaxed);
                &self.contained
            }
            Stage::Known => &self.known,
            Stage::GuestAborted => &self.guest_aborts,
            Stage::GuestSError => &self.guest_serrors,
            Stage::Touched => &self.touched,
            Stage::Unclaimed => &self.unclaimed,
            Stage::Overflow => &self.overflows,
            Stage::VmStopped => &self.stopped_vms,
            Stage::Fatal => &self.fatal,
            Stage::Repaired { pages } => {
                self.pages_repaired.fetch_add(pages, Relaxed);
                return;
            }
        };
        counter.fetch_add(1, Relaxed);
    }

    /// The values now. Each is exact; together they are of one moment only while nothing happens.
    pub fn snapshot(&self) -> Snapshot {
        let lost = self.pages_lost.load(Relaxed);
        Snapshot {
            detected: self.detected.load(Relaxed),
            no_record: self.no_record.load(Relaxed),
            contained: self.contained.load(Relaxed),
            known: self.known.load(Relaxed),
            guest_aborts: self.guest_aborts.load(Relaxed),
            guest_serrors: self.guest_serrors.load(Relaxed),
            touched: self.touched.load(Relaxed),
            unclaimed: self.unclaimed.load(Relaxed),
            overflows: self.overflows.load(Relaxed),
            stopped_vms: self.stopped_vms.load(Relaxed),
            fatal: self.fatal.load(Relaxed),
            lost_pages: lost.saturating_sub(self.pages_repaired.load(Relaxed)),
        }
    }
}

/// What [`Counters`] had at some moment. Displays as the pairs of `ras: event=summary`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Errors learned of.
    pub detected: u64,
    /// Exceptions without a record.
    pub no_record: u64,
    /// Errors contained.
    pub contained: u64,
    /// Errors that were contained before.
    pub known: u64,
    /// Synchronous external aborts given to guests.
    pub guest_aborts: u64,
    /// Virtual SErrors given to guests.
    pub guest_serrors: u64,
    /// Accesses to contained pages.
    pub touched: u64,
    /// Errors in memory that nobody owns.
    pub unclaimed: u64,
    /// Times that something was full.
    pub overflows: u64,
    /// VMs stopped.
    pub stopped_vms: u64,
    /// Errors that the machine did not survive.
    pub fatal: u64,
    /// Pages that are cordoned off now.
    pub lost_pages: u64,
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            detected,
            contained,
            guest_aborts,
            touched,
            lost_pages,
            ..
        } = self;
        write!(
            f,
            "detected={detected} contained={contained} vsea={guest_aborts} touched={touched} \
             lost_pages={lost_pages}"
        )
    }
}

/// Somebody who wants to know.
pub trait Subscriber: Sync {
    /// `event` has reached `stage`.
    fn notify(&self, event: &ErrorEvent, stage: Stage);
}

impl<F: Fn(&ErrorEvent, Stage) + Sync> Subscriber for F {
    fn notify(&self, event: &ErrorEvent, stage: Stage) {
        self(event, stage);
    }
}

/// There is no room for another subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySubscribers;

impl fmt::Display for TooManySubscribers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("too-many-subscribers")
    }
}

impl core::error::Error for TooManySubscribers {}

/// Counts what happens to errors and tells up to `N` subscribers.
pub struct Announcer<const N: usize> {
    counters: Counters,
    subscribers: [Once<&'static dyn Subscriber>; N],
    taken: AtomicUsize,
}

impl<const N: usize> Announcer<N> {
    /// Nobody is told yet.
    pub const fn new() -> Self {
        Self {
            counters: Counters::new(),
            subscribers: [const { Once::new() }; N],
            taken: AtomicUsize::new(0),
        }
    }

    /// What happened so far.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// `subscriber` will be told of everything from now on, for good.
    ///
    /// # Errors
    ///
    /// [`TooManySubscribers`].
    pub fn register(&self, subscriber: &'static dyn Subscriber) -> Result<(), TooManySubscribers> {
        // The slot is taken first, by counting, so that two CPUs never meet in one.
        let slot = self
            .taken
            .fetch_update(Relaxed, Relaxed, |taken| (taken < N).then_some(taken + 1))
            .map_err(|_| TooManySubscribers)?;
        let slot = self.subscribers.get(slot).ok_or(TooManySubscribers)?;
        slot.call_once(|| subscriber);
        Ok(())
    }

    /// `event` has reached `stage`.
    pub fn announce(&self, event: &ErrorEvent, stage: Stage) {
        self.counters.count(stage);
        let taken = self.taken.load(Relaxed);
        for subscriber in self.subscribers.iter().take(taken).filter_map(Once::get) {
            subscriber.notify(event, stage);
        }
    }
}

impl<const N: usize> Default for Announcer<N> {
    fn default() -> Self {
        Self::new()
    }
}
