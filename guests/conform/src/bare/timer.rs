//! The two timers, by one set of functions.

use super::sys;

/// `CNT*_CTL_EL0`.
pub(super) const ENABLE: u64 = 1;
pub(super) const IMASK: u64 = 1 << 1;
pub(super) const ISTATUS: u64 = 1 << 2;

/// A timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// EL1 virtual.
    Virtual,
    /// EL1 physical.
    Physical,
}
use Timer::{Physical, Virtual};

impl Timer {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Virtual, Physical];

    /// Its interrupt (BSA, "PE timers").
    pub(super) const fn intid(self) -> u64 {
        match self {
            Virtual => 27,
            Physical => 30,
        }
    }

    /// Its counter.
    pub(super) fn count(self) -> u64 {
        match self {
            Virtual => sys::cntvct(),
            Physical => sys::cntpct(),
        }
    }

    pub(super) fn ctl(self) -> u64 {
        match self {
            Virtual => sys::cntv_ctl::read(),
            Physical => sys::cntp_ctl::read(),
        }
    }

    pub(super) fn set_ctl(self, value: u64) {
        match self {
            Virtual => sys::cntv_ctl::write(value),
            Physical => sys::cntp_ctl::write(value),
        }
    }

    pub(super) fn cval(self) -> u64 {
        match self {
            Virtual => sys::cntv_cval::read(),
            Physical => sys::cntp_cval::read(),
        }
    }

    pub(super) fn set_cval(self, value: u64) {
        match self {
            Virtual => sys::cntv_cval::write(value),
            Physical => sys::cntp_cval::write(value),
        }
    }

    pub(super) fn tval(self) -> u64 {
        match self {
            Virtual => sys::cntv_tval::read(),
            Physical => sys::cntp_tval::read(),
        }
    }

    pub(super) fn set_tval(self, value: u64) {
        match self {
            Virtual => sys::cntv_tval::write(value),
            Physical => sys::cntp_tval::write(value),
        }
    }

    /// It asks for an interrupt from now on.
    pub(super) fn fire(self) {
        self.set_cval(0);
        self.set_ctl(ENABLE);
    }
}

/// The timer with this interrupt stops asking for it.
pub(super) fn silence(intid: u64) {
    for timer in Timer::ALL {
        if timer.intid() == intid {
            timer.set_ctl(0);
        }
    }
}

/// Both timers of this CPU are off.
pub(super) fn off() {
    for timer in Timer::ALL {
        timer.set_ctl(0);
    }
}

/// `CNTKCTL_EL1`: an event whenever bit 15 of the counter becomes 1, nothing for EL0.
pub(super) const EVENTS: u64 = 1 << 2 | 15 << 4;
