//! Errors that are asked for, as a test.
//!
//! They take the same way as those of hardware, under [`Origin::Injected`](super::Origin::Injected):
//! counted, filtered, contained, told. What they lack is the poison itself: the memory stays good, and
//! only Cordon's map says otherwise. So they show containment on any machine, also one without
//! firmware that could poison anything.

use super::{Note, Occasion, Ras, say};
use crate::addr::{PaRange, Vmid};
use crate::ras::contain::AddressSpaces;
use crate::ras::cper::Severity;
use crate::ras::event::{ErrorEvent, Stage};
use crate::ras::ghes::PhysMemory;
use core::fmt;

/// What kind of error is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// A corrected one: nothing is lost.
    Corrected,
    /// An uncorrected one that nobody has consumed: action is optional. The page is lost, and whoever
    /// touches it is told.
    Optional,
    /// An uncorrected one that the vCPU which asks for it consumes at once: action is required.
    Required,
}

impl Injection {
    /// By its number in hypercalls.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            0 => Some(Self::Corrected),
            1 => Some(Self::Optional),
            2 => Some(Self::Required),
            _ => None,
        }
    }

    /// By its name in commands.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "ce" => Self::Corrected,
            "ao" => Self::Optional,
            "ar" => Self::Required,
            _ => return None,
        })
    }

    const fn severity(self) -> Severity {
        match self {
            Self::Corrected => Severity::Corrected,
            Self::Optional | Self::Required => Severity::Recoverable,
        }
    }
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Corrected => "ce",
            Self::Optional => "ao",
            Self::Required => "ar",
        })
    }
}

impl<S: PhysMemory> Ras<'_, S> {
    /// Makes an error of this kind in `range`, for the guest of VM `by` if one asks. What `occasion` says of
    /// a consumer must fit: there is one for [`Injection::Required`] alone. Returns the event.
    pub fn inject<V: AddressSpaces>(
        &self,
        occasion: &Occasion,
        range: PaRange,
        kind: Injection,
        by: Option<Vmid>,
        spaces: &V,
    ) -> ErrorEvent {
        let event = occasion.event(self.next_sequence(), kind.severity(), Some(range));
        self.announcer.announce(&event, Stage::Detected);
        say(
            &self.journal,
            || Note::Injected { event, kind, by },
            &[],
            spaces,
        );
        match kind {
            Injection::Corrected => {
                self.corrected(&event, range, false);
            }
            Injection::Optional | Injection::Required => {
                if !self.rebuild(&event, range, spaces) {
                    self.contain(&event, range, spaces);
                }
            }
        }
        event
    }
}
