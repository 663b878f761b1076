//! Whether what an attack got is what the architecture gives where there is nothing.

use crate::syndrome::Syndrome;
use core::ops::AddAssign;

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It completed, and may.
    Value,
    /// The instruction is undefined.
    Undefined,
    /// A synchronous external abort, as on a bus that nobody answers.
    Abort,
    /// Another exception that the CPU gives by itself: misaligned, illegal state, debug.
    Fault,
    /// Anything else: isolation is broken, or the exception is not what hardware gives.
    Unexpected,
}

/// Counts of verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named like the verdicts")]
pub struct Score {
    pub tried: u64,
    pub values: u64,
    pub undefined: u64,
    pub aborts: u64,
    pub faults: u64,
    pub unexpected: u64,
}

impl Score {
    /// One more.
    pub const fn count(&mut self, verdict: Verdict) {
        self.tried += 1;
        match verdict {
            Verdict::Value => self.values += 1,
            Verdict::Undefined => self.undefined += 1,
            Verdict::Abort => self.aborts += 1,
            Verdict::Fault => self.faults += 1,
            Verdict::Unexpected => self.unexpected += 1,
        }
    }
}

impl AddAssign for Score {
    fn add_assign(&mut self, part: Self) {
        self.tried += part.tried;
        self.values += part.values;
        self.undefined += part.undefined;
        self.aborts += part.aborts;
        self.faults += part.faults;
        self.unexpected += part.unexpected;
    }
}

/// What kind of access an instruction makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It reads, whatever happens.
    Load,
    /// It writes, whatever happens.
    Store,
    /// It reads and writes at once: WnR may say either (Arm ARM, ESR_ELx.WnR, "atomic").
    Atomic,
    /// It may do nothing: a prefetch, a store without reservation, maintenance, tags.
    Perhaps,
    /// It is fetched.
    Fetch,
}

/// An attempt to access memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The virtual address.
    pub va: u64,
    /// Its kind.
    pub kind: Kind,
    /// By EL0.
    pub el0: bool,
    /// The CPU may find it misaligned, or may not have the instruction.
    pub peculiar: bool,
}

/// How far behind an instruction's address its access may be: the largest are DC ZVA's block and LD4.
const REACH: u64 = 128;

impl Access {
    /// The verdict on an exception from this access, where there is no memory.
    pub const fn missing(&self, syndrome: Syndrome, far: u64) -> Verdict {
        match syndrome.exception_class() {
            0 if self.peculiar => Verdict::Undefined,
            // SCTLR_EL1 keeps cache maintenance and LD64B from EL0: DZE, UCI, EnALS.
            0x0a | 0x18 if self.peculiar && self.el0 => Verdict::Undefined,
            _ if self.is_alignment_fault(syndrome) => Verdict::Fault,
            _ if self.is_external_abort(syndrome, far) => Verdict::Abort,
            _ => Verdict::Unexpected,
        }
    }

    /// The verdict where there may be a device: as `missing`, or the access completed.
    pub const fn device(&self, outcome: Result<(), (Syndrome, u64)>) -> Verdict {
        match outcome {
            Ok(()) => Verdict::Value,
            Err((syndrome, far)) => self.missing(syndrome, far),
        }
    }

    const fn class(&self) -> u8 {
        let fetch = matches!(self.kind, Kind::Fetch);
        match (fetch, self.el0) {
            (true, true) => 0x20,
            (true, false) => 0x21,
            (false, true) => 0x24,
            (false, false) => 0x25,
        }
    }

    /// Misaligned, or an exclusive or atomic access to memory that has none (0x35).
    const fn is_alignment_fault(&self, syndrome: Syndrome) -> bool {
        self.peculiar
            && syndrome.exception_class() == self.class()
            && matches!(syndrome.fault_status(), 0x21 | 0x35)
    }

    /// As hardware gives it for this access, field by field (Arm ARM, ISS of a Data Abort): no
    /// ISV, not on a walk, this direction, this address.
    const fn is_external_abort(&self, syndrome: Syndrome, far: u64) -> bool {
        const IL: u64 = 1 << 25;
        const WNR: u64 = 1 << 6;
        const CM: u64 = 1 << 8;
        const MUST_BE_ZERO: u64 = 0x7ff << 14 | 1 << 10 | 1 << 7;
        let esr = syndrome.raw();
        let direction = match self.kind {
            Kind::Load => esr & (WNR | CM) == 0,
            Kind::Store => esr & (WNR | CM) == WNR,
            Kind::Atomic => esr & CM == 0,
            Kind::Perhaps => true,
            Kind::Fetch => esr & (WNR | CM) == 0,
        };
        syndrome.exception_class() == self.class()
            && syndrome.fault_status() == 0x10
            && esr & IL != 0
            && esr & MUST_BE_ZERO == 0
            && direction
            && far.wrapping_sub(self.va & !63) < REACH
    }
}

/// The verdict on a walk through a table where there is no memory.
pub const fn missing_table(syndrome: Syndrome, far: u64, va: u64) -> Verdict {
    if syndrome.is_external_abort_on_walk() && far == va {
        Verdict::Abort
    } else {
        Verdict::Unexpected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Access = Access {
        va: 0x1000,
        kind: Kind::Load,
        el0: false,
        peculiar: false,
    };

    fn missing(access: Access, esr: u64, far: u64) -> Verdict {
        access.missing(Syndrome::new(esr), far)
    }

    #[test]
    fn only_the_abort_of_this_very_access_counts() {
        assert_eq!(missing(LOAD, 0x9600_0010, 0x1000), Verdict::Abort);
        for (esr, far) in [
            (0x9600_0050, 0x1000), // a write
            (0x9600_0007, 0x1000), // a translation fault
            (0x9600_0017, 0x1000), // on a walk
            (0x9200_0010, 0x1000), // from EL0
            (0x8600_0010, 0x1000), // a fetch
            (0x9600_0410, 0x1000), // FnV
            (0x9700_0010, 0x1000), // ISV
            (0x9600_0010, 0x2000), // elsewhere
            (0x9600_0021, 0x1000), // misaligned, which it is not
            (0x0200_0000, 0),      // undefined, which it is not
        ] {
            assert_eq!(missing(LOAD, esr, far), Verdict::Unexpected, "{esr:#x}");
        }
    }

    #[test]
    fn fetches_stores_and_odd_accesses() {
        let fetch = Access {
            kind: Kind::Fetch,
            ..LOAD
        };
        assert_eq!(missing(fetch, 0x8600_0010, 0x1000), Verdict::Abort);
        let store = Access {
            kind: Kind::Store,
            el0: true,
            ..LOAD
        };
        assert_eq!(missing(store, 0x9200_0050, 0x1000), Verdict::Abort);
        let odd = Access {
            peculiar: true,
            ..LOAD
        };
        let trapped = Access { el0: true, ..odd };
        assert_eq!(missing(trapped, 0x6212_dc28, 0), Verdict::Undefined);
        assert_eq!(missing(odd, 0x6212_dc28, 0), Verdict::Unexpected);
        assert_eq!(missing(odd, 0x9600_0021, 0x1000), Verdict::Fault);
        assert_eq!(missing(odd, 0x0200_0000, 0), Verdict::Undefined);
        assert_eq!(odd.device(Ok(())), Verdict::Value);
    }

    #[test]
    fn walks() {
        let table = |esr, far| missing_table(Syndrome::new(esr), far, 0x1000);
        assert_eq!(table(0x9600_0017, 0x1000), Verdict::Abort);
        assert_eq!(table(0x9600_0010, 0x1000), Verdict::Unexpected);
        assert_eq!(table(0x9600_0007, 0x1000), Verdict::Unexpected);
        assert_eq!(table(0x9600_0017, 0x2000), Verdict::Unexpected);
    }

    #[test]
    fn every_verdict_is_counted_once() {
        let mut score = Score::default();
        for verdict in [
            Verdict::Value,
            Verdict::Undefined,
            Verdict::Abort,
            Verdict::Fault,
            Verdict::Unexpected,
        ] {
            score.count(verdict);
        }
        let mut twice = score;
        twice += score;
        assert_eq!((twice.tried, twice.unexpected, twice.faults), (10, 2, 2));
    }
}
