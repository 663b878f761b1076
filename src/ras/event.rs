//! A memory error as a value, and who gets to know what became of it.
//!
//! However an error is learned of, it becomes one [`ErrorEvent`]. Each step of its way is a
//! [`Stage`], made public by [`Announcer::announce`] and nowhere else: that counts it, in the one place
//! where counters change, and then tells the subscribers in the order in which they registered.
//! Announcing takes no lock and may be done on any CPU, so a subscriber must expect to be called
//! on several at once, and must not announce anything itself.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use spin::Once;

pub use super::counters::{Counters, Snapshot};
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
        if let Origin::Ghes(source) = origin {
            write!(f, " source={source}")?;
        }
        if let Some(Consumer::Vcpu {
            vcpu, el, attempt, ..
        }) = self.consumer
        {
            write!(f, " vcpu={vcpu} el={el}")?;
            if let Some(attempt) = attempt {
                write!(f, " access={attempt}")?;
            }
        }
        if self.consumer == Some(Consumer::Hypervisor) {
            f.write_str(" el=2")?;
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
    /// Cordon was at work on the page.
    Repair,
}

impl Origin {
    /// All of them, by name; a source's number apart.
    pub const NAMES: [&str; 6] = ["sea", "serror", "ghes", "imported", "injected", "repair"];

    /// Its place in [`Self::NAMES`].
    pub const fn index(self) -> usize {
        match self {
            Self::Sea => 0,
            Self::SError => 1,
            Self::Ghes(_) => 2,
            Self::Imported => 3,
            Self::Injected => 4,
            Self::Repair => 5,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(Self::NAMES.get(self.index()).copied().unwrap_or("?"))
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
        if abort.stage1_walk || abort.walk_error().is_some() {
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

impl ErrorEvent {
    /// The VM that consumed it.
    pub const fn consumer_vm(&self) -> Option<Vmid> {
        match self.consumer {
            Some(Consumer::Vcpu { vm, .. }) => Some(vm),
            _ => None,
        }
    }
}

/// A step on the way of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It was learned of.
    Detected,
    /// It has been corrected: nothing is lost, and nothing is done but to count it.
    Corrected,
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
    /// A filter keeps this many pages, or a corrected error, from being acted on.
    Filtered {
        /// Pages.
        pages: u64,
    },
    /// A guest meets the same lost page again and again.
    Looped,
    /// Something that is bounded was full, and a coarser way was taken.
    Overflow,
    /// A VM was stopped.
    VmStopped,
    /// Pages were repaired.
    Repaired {
        /// Pages.
        pages: u64,
    },
    /// The contents of pages were moved to others, with nothing lost.
    Moved {
        /// Pages.
        pages: u64,
    },
    /// The machine cannot go on.
    Fatal,
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
    pub fn new() -> Self {
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
    #[inline(always)]
    pub fn announce(&self, event: &ErrorEvent, stage: Stage) {
        self.counters.count(event, stage);
        if self.taken.load(Relaxed) != 0 {
            self.tell(*event, stage);
        }
    }

    // A copy: where nobody has subscribed, an event that was just made need not lie in memory.
    #[cold]
    fn tell(&self, event: ErrorEvent, stage: Stage) {
        let taken = self.taken.load(Relaxed);
        for subscriber in self.subscribers.iter().take(taken).filter_map(Once::get) {
            subscriber.notify(&event, stage);
        }
    }
}

impl<const N: usize> Default for Announcer<N> {
    fn default() -> Self {
        Self::new()
    }
}
