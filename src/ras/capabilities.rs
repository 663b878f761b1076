//! What of memory-error handling this machine has.
//!
//! "RAS" is not one thing. Firmware-first machines report by GHES without FEAT_RAS in their CPUs, a
//! CPU with FEAT_RAS may have firmware that reports nothing, and so on through every pair of these. So
//! each capability is found by itself, by whoever can see it, and none is inferred from another.

use core::fmt;

use bitflags::bitflags;

bitflags! {
    /// Capabilities, by the bits in which guests are told of them: bits are added, never renumbered.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Capabilities: u64 {
        /// FEAT_RAS: SET and AET mean something, errors can be synchronised (ESB), SErrors given to a guest
        /// have a syndrome (VSESR_EL2), and a guest's external aborts come to EL2 by themselves
        /// (HCR_EL2.TEA).
        const FEAT_RAS = 1 << 0;
        /// FEAT_PFAR: an external abort may come with its physical address.
        const FEAT_PFAR = 1 << 1;
        /// FEAT_BBM, level 2 or more: a block is split without taking it away in between.
        const BBM2 = 1 << 2;
        /// FEAT_S2FWB: stage 2 decides what is cacheable.
        const S2FWB = 1 << 3;
        /// Firmware records consumed errors: a source notified by SEA or SEI.
        const GHES_SYNC = 1 << 4;
        /// Firmware records errors that nobody has consumed, and interrupts.
        const GHES_INTERRUPT = 1 << 5;
        /// Firmware records errors that nobody has consumed, and is asked at intervals.
        const GHES_POLLED = 1 << 6;
        /// Firmware at EL3 can make pages bad, and good again.
        const POISON_SWITCH = 1 << 7;
        /// Records are acknowledged (GHESv2), by every source: none is overwritten before it was read.
        const GHES_ACK = 1 << 8;
        /// EL2 has a timer of its own.
        const TIMER = 1 << 9;
    }
}

impl Capabilities {
    /// `self`, and `which` if `has`.
    #[must_use]
    pub const fn with(self, which: Self, has: bool) -> Self {
        if has { self.union(which) } else { self }
    }
}

/// The names, as the line at boot has them.
const NAMES: [(Capabilities, &str); 10] = [
    (Capabilities::FEAT_RAS, "ras"),
    (Capabilities::FEAT_PFAR, "pfar"),
    (Capabilities::BBM2, "bbm2"),
    (Capabilities::S2FWB, "s2fwb"),
    (Capabilities::GHES_SYNC, "ghes-sync"),
    (Capabilities::GHES_INTERRUPT, "ghes-interrupt"),
    (Capabilities::GHES_POLLED, "ghes-polled"),
    (Capabilities::POISON_SWITCH, "poison-switch"),
    (Capabilities::GHES_ACK, "ghes-ack"),
    (Capabilities::TIMER, "timer"),
];

/// `bits=0x... has=a,b missing=c,d`; `none` for an empty list.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bits={:#x}", self.bits())?;
        for (key, wanted) in [("has", true), ("missing", false)] {
            write!(f, " {key}=")?;
            let names = NAMES
                .iter()
                .filter(|(which, _)| self.contains(*which) == wanted);
            let mut first = true;
            for (_, name) in names {
                write!(f, "{}{name}", if first { "" } else { "," })?;
                first = false;
            }
            if first {
                f.write_str("none")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn every_capability_has_one_name() {
        let named = NAMES
            .iter()
            .fold(Capabilities::empty(), |all, (which, _)| all | *which);
        assert_eq!(named, Capabilities::all());
        assert_eq!(NAMES.len(), Capabilities::all().iter().count());
    }

    #[test]
    fn what_is_missing_is_said() {
        let some = Capabilities::FEAT_RAS | Capabilities::GHES_SYNC;
        assert_eq!(
            some.to_string(),
            "bits=0x11 has=ras,ghes-sync \
             missing=pfar,bbm2,s2fwb,ghes-interrupt,ghes-polled,poison-switch,ghes-ack,timer"
        );
        let none = Capabilities::empty().to_string();
        assert!(none.starts_with("bits=0x0 has=none missing=ras,"), "{none}");
        assert!(Capabilities::all().to_string().ends_with(" missing=none"));
    }

    #[test]
    fn none_follows_from_another() {
        for one in Capabilities::all().iter() {
            let alone = Capabilities::empty().with(one, true);
            assert_eq!(alone.iter().count(), 1);
            assert_eq!(Capabilities::all().with(one, false), Capabilities::all());
        }
    }
}
