//! What a CPU has to do at a certain time, for a timer of its own that can wait for one moment only.
//!
//! Each CPU has one [`Deadlines`] and is the only one that changes it, in EL2, where nothing
//! interrupts it: so the fields are atomic for Rust's sake alone and no lock is taken. A deadline that
//! nobody has set costs nothing, and where none is set the timer is off.
//!
//! Times are values of the physical counter (CNTPCT_EL0).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What there may be to do. Each has one deadline a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Look into error sources that notify nobody.
    PollErrors = 0,
    /// Print what has been put off.
    DrainLog = 1,
    /// Look for what was typed on a UART without an interrupt.
    LookForInput = 2,
}

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PollErrors, Self::DrainLog, Self::LookForInput];
}

/// No deadline. The counter gets there after 584 years at 1 GHz.
const NEVER: u64 = u64::MAX;

/// One CPU's deadlines.
#[derive(Debug)]
pub struct Deadlines {
    at: [AtomicU64; Purpose::ALL.len()],
}

/// The purposes whose time has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due(u8);

impl Due {
    /// Whether `purpose` is among them.
    pub const fn has(self, purpose: Purpose) -> bool {
        self.0 >> purpose as u8 & 1 != 0
    }

    /// Whether none is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl Deadlines {
    /// None set.
    pub const fn new() -> Self {
        Self {
            at: [const { AtomicU64::new(NEVER) }; Purpose::ALL.len()],
        }
    }

    /// Sets the deadline of `purpose`, in the place of the one that it may have.
    pub fn set(&self, purpose: Purpose, at: u64) {
        if let Some(slot) = self.at.get(usize::from(purpose as u8)) {
            slot.store(at, Relaxed);
        }
    }

    /// Whether `purpose` waits for something.
    pub fn is_set(&self, purpose: Purpose) -> bool {
        let slot = self.at.get(usize::from(purpose as u8));
        slot.is_some_and(|slot| slot.load(Relaxed) != NEVER)
    }

    /// When the timer must fire next.
    pub fn next(&self) -> Option<u64> {
        let earliest = self.at.iter().map(|slot| slot.load(Relaxed)).min();
        earliest.filter(|at| *at != NEVER)
    }

    /// Which deadlines have passed at `now`. They are cleared.
    pub fn take_due(&self, now: u64) -> Due {
        let mut due = 0;
        for (slot, purpose) in self.at.iter().zip(Purpose::ALL) {
            if slot.load(Relaxed) <= now {
                slot.store(NEVER, Relaxed);
                due |= 1 << purpose as u8;
            }
        }
        Due(due)
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Purpose::{DrainLog, PollErrors};

    #[test]
    fn the_earliest_deadline_is_what_the_timer_waits_for() {
        let deadlines = Deadlines::new();
        assert_eq!(deadlines.next(), None);
        deadlines.set(PollErrors, 300);
        deadlines.set(DrainLog, 200);
        assert_eq!(deadlines.next(), Some(200));
        deadlines.set(DrainLog, 400);
        assert_eq!(deadlines.next(), Some(300));
        assert!(deadlines.is_set(DrainLog) && deadlines.is_set(PollErrors));
        deadlines.set(PollErrors, 100);
        assert_eq!(deadlines.next(), Some(100), "one each: the last counts");
    }

    #[test]
    fn what_is_due_is_taken_once_and_nothing_before_its_time() {
        let deadlines = Deadlines::new();
        deadlines.set(PollErrors, 300);
        deadlines.set(DrainLog, 200);
        assert!(deadlines.take_due(199).is_empty());
        let due = deadlines.take_due(200);
        assert!(due.has(DrainLog) && !due.has(PollErrors));
        assert!(deadlines.take_due(299).is_empty());
        assert_eq!(deadlines.next(), Some(300));
        let due = deadlines.take_due(u64::MAX - 1);
        assert!(due.has(PollErrors) && !due.has(DrainLog));
        assert_eq!(deadlines.next(), None);
        assert!(!deadlines.is_set(DrainLog) && !deadlines.is_set(PollErrors));
    }

    #[test]
    fn a_purpose_is_where_its_number_says() {
        for (index, purpose) in Purpose::ALL.into_iter().enumerate() {
            assert_eq!(purpose as usize, index);
        }
    }
}
