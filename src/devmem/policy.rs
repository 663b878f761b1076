//! What is done about a bad page, mapping by mapping.

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// What becomes of a mapping when a page of it goes bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Policy {
    /// The block is split at once, and the page is a hole.
    #[default]
    Isolate = 0,
    /// The whole block is dropped, and comes back piece by piece, around the page, as it is asked for.
    Refault = 1,
    /// Nothing. Each access to the page goes to the memory, whose report is passed on.
    Keep = 2,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Isolate, Self::Refault, Self::Keep];

    /// By its name in descriptions and commands.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// By its number in hypercalls.
    pub fn from_raw(raw: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| *policy as u64 == raw)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Isolate => "isolate",
            Self::Refault => "refault",
            Self::Keep => "keep",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A policy that can be changed at any time, by whomever.
#[derive(Debug, Default)]
pub(super) struct PolicyCell(AtomicU8);

impl PolicyCell {
    pub(super) fn get(&self) -> Policy {
        let raw = self.0.load(Ordering::Relaxed);
        Policy::from_raw(raw.into()).unwrap_or_default()
    }

    pub(super) fn set(&self, policy: Policy) {
        self.0.store(policy as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_policy_is_found_by_its_name_and_number_and_kept() {
        for policy in Policy::ALL {
            assert_eq!(Policy::from_name(&policy.to_string()), Some(policy));
            assert_eq!(Policy::from_raw(policy as u64), Some(policy));
            let cell = PolicyCell::default();
            assert_eq!(cell.get(), Policy::Isolate);
            cell.set(policy);
            assert_eq!(cell.get(), policy);
        }
        assert_eq!(
            (Policy::from_name("kee"), Policy::from_raw(3)),
            (None, None)
        );
    }
}
