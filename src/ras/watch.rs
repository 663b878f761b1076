//! How Cordon gets to know that a source has a record (ACPI 6.5 section 18.3.2.9).
//!
//! | HEST's notification | watched by |
//! |---|---|
//! | SEA, SEI | the exception: the CPU that takes it has consumed the error |
//! | external interrupt, GSIV | the interrupt, if it is a shared one of the GIC |
//! | GPIO | the generic event device's interrupt, if the DSDT has one |
//! | polled | a timer, at the interval asked for |
//! | all others, and where the interrupt cannot be had | a timer |
//!
//! So no record stays unread for ever, whatever firmware thinks it has signalled. Where a source is not
//! watched by exception, its records are about errors that nobody is known to have consumed: acting
//! on them is optional (AO), and is done at once all the same.

use core::fmt;

use super::hest::Notification;

/// The shortest interval in milliseconds at which a source is looked at. A shorter one would make a
/// busy CPU of one that only waits.
pub const MIN_INTERVAL_MS: u32 = 10;
/// The longest, one minute: what is found later is hardly found before it is consumed.
pub const MAX_INTERVAL_MS: u32 = 60_000;
/// The interval for a source that does not ask for one.
pub const DEFAULT_INTERVAL_MS: u32 = 1_000;

/// INTIDs of the GIC's shared interrupts (IHI 0069, 2.2).
const SHARED_INTERRUPTS: core::ops::Range<u32> = 32..1020;

/// How a source is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Somebody takes an exception.
    Exception,
    /// The GIC's interrupt with this INTID comes.
    Interrupt {
        /// 32 to 1019.
        intid: u32,
    },
    /// The generic event device raises its interrupt.
    EventDevice,
    /// It is looked at.
    Timer {
        /// Milliseconds between two looks, [`MIN_INTERVAL_MS`] to [`MAX_INTERVAL_MS`].
        interval_ms: u32,
    },
}

impl Watch {
    /// By looking at it as often as is good for a source that does not say.
    pub const DEFAULT_TIMER: Self = Self::Timer {
        interval_ms: DEFAULT_INTERVAL_MS,
    };

    /// How a source with this notification is watched, on a machine that has a generic event device or
    /// has none. On Arm machines a GSIV is an INTID (ACPI 6.5 section 5.2.12.14).
    pub fn of(notification: Notification, event_device: bool) -> Self {
        match notification {
            Notification::Sea | Notification::Sei => Self::Exception,
            Notification::ExternalInterrupt { gsiv } | Notification::Gsiv { gsiv }
                if SHARED_INTERRUPTS.contains(&gsiv) =>
            {
                Self::Interrupt { intid: gsiv }
            }
            Notification::Gpio if event_device => Self::EventDevice,
            Notification::Polled {
                interval_ms: wanted @ 1..,
            } => Self::Timer {
                interval_ms: wanted.clamp(MIN_INTERVAL_MS, MAX_INTERVAL_MS),
            },
            _ => Self::DEFAULT_TIMER,
        }
    }

    /// Whether whoever learns of a record in this way has not consumed the error.
    pub const fn is_asynchronous(self) -> bool {
        !matches!(self, Self::Exception)
    }
}

/// As the events write it.
impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception => f.write_str("exception"),
            Self::Interrupt { intid } => write!(f, "interrupt-{intid}"),
            Self::EventDevice => f.write_str("event-device"),
            Self::Timer { interval_ms } => write!(f, "timer-{interval_ms}ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_used_where_there_is_one() {
        let gsiv = |gsiv| Watch::of(Notification::Gsiv { gsiv }, false);
        assert_eq!(gsiv(32), Watch::Interrupt { intid: 32 });
        assert_eq!(gsiv(1019), Watch::Interrupt { intid: 1019 });
        let external = Notification::ExternalInterrupt { gsiv: 232 };
        assert_eq!(Watch::of(external, false), Watch::Interrupt { intid: 232 });
        for none in [0, 31, 1020, u32::MAX] {
            assert_eq!(gsiv(none), Watch::DEFAULT_TIMER, "{none}");
        }
    }

    #[test]
    fn gpio_needs_the_event_device() {
        assert_eq!(Watch::of(Notification::Gpio, true), Watch::EventDevice);
        assert_eq!(Watch::of(Notification::Gpio, false), Watch::DEFAULT_TIMER);
    }

    #[test]
    fn only_exceptions_have_a_consumer() {
        for kind in [Notification::Sea, Notification::Sei] {
            assert!(!Watch::of(kind, true).is_asynchronous());
        }
        for kind in [
            Notification::Gpio,
            Notification::Gsiv { gsiv: 40 },
            Notification::Polled { interval_ms: 5 },
            Notification::Sdei { event: 804 },
        ] {
            assert!(Watch::of(kind, true).is_asynchronous(), "{kind}");
        }
    }

    #[test]
    fn the_interval_asked_for_is_kept_within_reason() {
        let interval = |interval_ms| Watch::of(Notification::Polled { interval_ms }, false);
        let timer = |interval_ms| Watch::Timer { interval_ms };
        assert_eq!(interval(0), timer(DEFAULT_INTERVAL_MS));
        assert_eq!(interval(1), timer(MIN_INTERVAL_MS));
        assert_eq!(interval(250), timer(250));
        assert_eq!(interval(u32::MAX), timer(MAX_INTERVAL_MS));
    }

    #[test]
    fn what_cannot_be_received_is_looked_at() {
        for kind in [
            Notification::LocalInterrupt,
            Notification::Sci,
            Notification::Nmi,
            Notification::Cmci,
            Notification::Mce,
            Notification::Sdei { event: 804 },
            Notification::Unknown(99),
        ] {
            assert_eq!(Watch::of(kind, true), Watch::DEFAULT_TIMER, "{kind}");
        }
    }
}
