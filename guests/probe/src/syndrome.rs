//! What `ESR_EL1` says about an exception (Arm ARM D24.2.40).

/// `ESR_EL1`, decoded where it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome(u64);

/// The exception class, as far as the guest tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// EC 0x15: an `svc`, with which EL0 says that it is done.
    Svc,
    /// EC 0x20 or 0x21.
    InstructionAbort,
    /// EC 0x24 or 0x25.
    DataAbort,
    /// EC 0x2F.
    SError,
    /// Anything else: the EC itself.
    Other(u8),
}

impl Syndrome {
    /// Wraps the register's value.
    pub const fn new(esr: u64) -> Self {
        Self(esr)
    }

    /// The register's value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The exception class as a number (`EC`).
    pub const fn exception_class(self) -> u8 {
        (self.0 >> 26 & 0x3f) as u8
    }

    /// The exception class.
    pub const fn class(self) -> Class {
        match self.exception_class() {
            0x15 => Class::Svc,
            0x20 | 0x21 => Class::InstructionAbort,
            0x24 | 0x25 => Class::DataAbort,
            0x2f => Class::SError,
            ec => Class::Other(ec),
        }
    }

    /// Whether this is a data or an instruction abort.
    pub const fn is_abort(self) -> bool {
        matches!(self.class(), Class::InstructionAbort | Class::DataAbort)
    }

    /// The fault status of an abort (`DFSC`, `IFSC`).
    pub const fn fault_status(self) -> u8 {
        (self.0 & 0x3f) as u8
    }

    /// Whether this is a synchronous external abort, on the access itself (xFSC 0x10) or on the
    /// table walk for it (0x13 at level -1, 0x14 to 0x17 at levels 0 to 3).
    pub const fn is_external_abort(self) -> bool {
        self.is_abort() && matches!(self.fault_status(), 0x10 | 0x13..=0x17)
    }

    /// Whether this is a synchronous external abort on a table walk.
    pub const fn is_external_abort_on_walk(self) -> bool {
        self.is_external_abort() && self.fault_status() != 0x10
    }

    /// `far` where the syndrome says that it is valid: FnV (bit 10) is defined for xFSC 0x10 alone
    /// and tells that it is not.
    pub const fn fault_address(self, far: u64) -> Option<u64> {
        let invalid = self.fault_status() == 0x10 && self.0 >> 10 & 1 != 0;
        if self.is_abort() && !invalid {
            Some(far)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_aborts_are_told_from_other_faults() {
        for (esr, external, walk) in [
            (0x9600_0010, true, false),  // load at EL1
            (0x9200_0050, true, false),  // store at EL0
            (0x8600_0010, true, false),  // fetch at EL1
            (0x8200_0017, true, true),   // fetch at EL0, level-3 table
            (0x9600_0014, true, true),   // load at EL1, level-0 table
            (0x9600_0007, false, false), // translation fault, level 3
            (0x9600_0021, false, false), // alignment
            (0x5600_0000, false, false), // svc
            (0xbe00_0011, false, false), // SError
        ] {
            let syndrome = Syndrome::new(esr);
            assert_eq!(syndrome.is_external_abort(), external, "{esr:#x}");
            assert_eq!(syndrome.is_external_abort_on_walk(), walk, "{esr:#x}");
        }
    }

    #[test]
    fn the_fault_address_is_believed_only_when_valid() {
        assert_eq!(
            Syndrome::new(0x9600_0010).fault_address(0x1234),
            Some(0x1234)
        );
        assert_eq!(Syndrome::new(0x9600_0410).fault_address(0x1234), None);
        assert_eq!(
            Syndrome::new(0x9600_0017).fault_address(0x1234),
            Some(0x1234)
        );
        assert_eq!(Syndrome::new(0xbe00_0011).fault_address(0x1234), None);
    }

    #[test]
    fn classes() {
        assert_eq!(Syndrome::new(0x5600_0000).class(), Class::Svc);
        assert_eq!(Syndrome::new(0xbe00_0000).class(), Class::SError);
        assert_eq!(Syndrome::new(0x0200_0000).class(), Class::Other(0));
    }
}
