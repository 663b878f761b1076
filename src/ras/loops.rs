//! Guests that go round in circles: the same lost address again and again, without progress.
//!
//! Three kinds, of which two can never end by themselves:
//!
//! - **vector**: the first instructions of the guest's own abort handler are lost, so that the abort
//!   which tells of it meets the same hole ([`inject::handler_is_lost`](super::inject::handler_is_lost)).
//!   One is enough.
//! - **handler**: an EL1 with everything masked, which is to say an exception handler before it has
//!   saved its state, meets the same address [`Policy::limit`] times running: its stack is lost, or what it
//!   branches to.
//! - **touch**: anything else that meets the same address so often. That may be sound: a process that
//!   retries after SIGBUS gets it as often as it likes, and its kernel can end it.
//!
//! The first two stop the VM. On the third, [`Policy::action`] decides; and whatever it says, lines
//! about it become rare, for they come out of a UART that all VMs share.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::inject::{GuestState, Mode, pstate};

/// What is done about a guest that only might go round in circles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is said.
    Log,
    /// Its VM is stopped.
    Stop,
}

/// From when on, and what then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What is done.
    pub action: Action,
    /// How often the same address must be met running. At least 1.
    pub limit: u64,
    /// Two meetings further apart than this, in ticks of the physical counter, are progress.
    pub window: u64,
}

impl Policy {
    /// What is done where nobody says otherwise.
    pub const DEFAULT: Self = Self {
        action: Action::Log,
        limit: 64,
        window: u64::MAX,
    };

    /// Reads `log`, `stop`, a limit, or one of the words, a comma and a limit. The window stays.
    pub fn parse(self, text: &str) -> Option<Self> {
        let (word, limit) = text
            .split_once(',')
            .map_or((text, None), |(word, limit)| (word, Some(limit)));
        let limit = limit.map(|limit| limit.parse().ok().filter(|limit| *limit > 0));
        let action = match word {
            "log" => Action::Log,
            "stop" => Action::Stop,
            number if limit.is_none() => {
                let limit = number.parse().ok().filter(|limit| *limit > 0)?;
                return Some(Self { limit, ..self });
            }
            _ => return None,
        };
        let limit = match limit {
            Some(limit) => limit?,
            None => self.limit,
        };
        Some(Self {
            action,
            limit,
            ..self
        })
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How a guest goes round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circle {
    /// Its abort vector itself is lost.
    Vector,
    /// What its handlers need is.
    Handler,
    /// Something else, that it comes back to.
    Touch,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vector => "vector",
            Self::Handler => "handler",
            Self::Touch => "touch",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Log => "log",
            Self::Stop => "stop",
        })
    }
}

/// Whether a guest goes round, now that it meets an address for the `count`th time running, and what
/// is to be done. Said once at the limit, and each time that the count has doubled since.
pub fn judge(policy: &Policy, count: u64, guest: &GuestState) -> Option<(Circle, Action)> {
    // Most are far from it, and a division is not needed to see that.
    if count < policy.limit {
        return None;
    }
    let rounds = count / policy.limit.max(1);
    if !(count.is_multiple_of(policy.limit.max(1)) && rounds.is_power_of_two()) {
        return None;
    }
    if is_in_handler(guest) {
        Some((Circle::Handler, Action::Stop))
    } else {
        Some((Circle::Touch, policy.action))
    }
}

/// EL1 with D, A, I and F masked: what exception entry makes, and what little code undoes late.
fn is_in_handler(guest: &GuestState) -> bool {
    const ALL: u64 = pstate::D | pstate::A | pstate::I | pstate::F;
    let at_el1 = matches!(Mode::of(guest.pstate), Ok(Mode::El1t | Mode::El1h));
    at_el1 && guest.pstate & ALL == ALL
}

/// Whether the `count`th meeting running is worth a line: the first few, and then as often as the count
/// doubles.
pub const fn is_worth_a_line(count: u64) -> bool {
    count <= 16 || count.is_power_of_two()
}

/// What one vCPU met last, and how often running. Its own CPU alone writes it.
#[derive(Debug, Default)]
pub struct Streak {
    address: AtomicU64,
    time: AtomicU64,
    count: AtomicU64,
}

impl Streak {
    /// Nothing was met yet.
    pub const fn new() -> Self {
        Self {
            address: AtomicU64::new(0),
            time: AtomicU64::new(0),
            count: AtomicU64::new(0),
        }
    }

    /// The vCPU meets `address` at the time `now`. Returns how often running.
    pub fn meet(&self, address: u64, now: u64, window: u64) -> u64 {
        let before = self.time.load(Relaxed);
        let goes_on = self.address.load(Relaxed) == address && now.saturating_sub(before) <= window;
        let count = if goes_on { self.count() } else { 0 };
        let count = count.saturating_add(1);
        self.address.store(address, Relaxed);
        self.time.store(now, Relaxed);
        self.count.store(count, Relaxed);
        count
    }

    /// How often what was met last was met running.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EL1_MASKED: u64 = 0x3c5;
    const EL1_OPEN: u64 = 0x5;

    fn guest(pstate: u64) -> GuestState {
        GuestState {
            pstate,
            ..GuestState::default()
        }
    }

    #[test]
    fn the_same_address_counts_up_and_another_or_a_pause_begins_anew() {
        let streak = Streak::new();
        assert_eq!(
            streak.meet(0, 5, 10),
            1,
            "address 0 has not been met before"
        );
        assert_eq!(streak.meet(0, 15, 10), 2);
        assert_eq!(streak.meet(0, 26, 10), 1, "too long ago");
        assert_eq!(streak.meet(8, 26, 10), 1);
        assert_eq!(streak.meet(0, 26, 10), 1);
        // A counter that jumps back is no pause.
        assert_eq!(streak.meet(0, 1, 10), 2);
    }

    #[test]
    fn a_handler_that_cannot_go_on_is_stopped_and_a_touch_as_the_policy_says() {
        let policy = Policy::DEFAULT;
        let stop = Policy {
            action: Action::Stop,
            ..policy
        };
        for count in [1, 63, 65, 127, 192] {
            assert_eq!(judge(&stop, count, &guest(EL1_MASKED)), None, "{count}");
        }
        for count in [64, 128, 256] {
            let handler = Some((Circle::Handler, Action::Stop));
            assert_eq!(judge(&policy, count, &guest(EL1_MASKED)), handler);
            for open in [EL1_OPEN, 0x3c0, 0x385] {
                let touch = |action| Some((Circle::Touch, action));
                assert_eq!(judge(&policy, count, &guest(open)), touch(Action::Log));
                assert_eq!(judge(&stop, count, &guest(open)), touch(Action::Stop));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "a million rounds")]
    fn of_a_million_touches_few_are_worth_a_line() {
        let lines = (1..=1 << 20)
            .filter(|count| is_worth_a_line(*count))
            .count();
        assert_eq!(lines, 16 + 16);
    }

    #[test]
    fn policies_are_read_or_refused() {
        let parse = |text| Policy::DEFAULT.parse(text).map(|it| (it.action, it.limit));
        assert_eq!(parse("log"), Some((Action::Log, 64)));
        assert_eq!(parse("stop"), Some((Action::Stop, 64)));
        assert_eq!(parse("stop,5"), Some((Action::Stop, 5)));
        assert_eq!(parse("7"), Some((Action::Log, 7)));
        for text in [
            "", "0", "stop,", "stop,0", "kill", "7,stop", "log,-1", "log,1,2",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
