//! Trapped system registers.

use super::fake::FakeCpu;
use crate::ras::esr::{System, SystemRegister};
use crate::vm::cpu::GuestCpu;
use crate::vm::id_registers::{self, IdRegisters};
use crate::vm::system_registers::{Answer, answer};
use proptest::prelude::*;

const IPA_BITS: u32 = 40;

fn access(op: (u8, u8, u8, u8, u8), is_read: bool) -> System {
    let (op0, op1, crn, crm, op2) = op;
    let register = SystemRegister {
        op0,
        op1,
        crn,
        crm,
        op2,
    };
    System {
        register,
        rt: 3,
        is_read,
    }
}

fn asked(op: (u8, u8, u8, u8, u8), is_read: bool) -> Answer {
    asked_with(op, is_read, IPA_BITS)
}

/// As `Exit::system_register` does it.
fn asked_with(op: (u8, u8, u8, u8, u8), is_read: bool, ipa_bits: u32) -> Answer {
    let access = access(op, is_read);
    if is_read && id_registers::is_id_register(access.register) {
        let cpu = FakeCpu::new(0);
        let shown = IdRegisters::new(|crm, op2| cpu.id_register(crm, op2), ipa_bits);
        return Answer::Value(shown.get(access.register));
    }
    answer(&access)
}

const ACTLR_EL1: (u8, u8, u8, u8, u8) = (3, 0, 1, 0, 1);
const ERRIDR_EL1: (u8, u8, u8, u8, u8) = (3, 0, 5, 3, 0);
const ERRSELR_EL1: (u8, u8, u8, u8, u8) = (3, 0, 5, 3, 1);
const ERXFR_EL1: (u8, u8, u8, u8, u8) = (3, 0, 5, 4, 0);
const ERXMISC3_EL1: (u8, u8, u8, u8, u8) = (3, 0, 5, 5, 3);
const ID_AA64MMFR0_EL1: (u8, u8, u8, u8, u8) = (3, 0, 0, 7, 0);
const ID_AA64PFR0_EL1: (u8, u8, u8, u8, u8) = (3, 0, 0, 4, 0);
const PMCR_EL0: (u8, u8, u8, u8, u8) = (3, 3, 9, 12, 0);
const IMPLEMENTATION_DEFINED: (u8, u8, u8, u8, u8) = (3, 0, 15, 2, 1);

#[test]
fn there_are_no_error_records_and_their_window_is_zero() {
    assert_eq!(asked(ERRIDR_EL1, true), Answer::Value(0));
    assert_eq!(asked(ERRIDR_EL1, false), Answer::Undefined);
    for register in [ERRSELR_EL1, ERXFR_EL1, ERXMISC3_EL1, ACTLR_EL1] {
        assert_eq!(asked(register, true), Answer::Value(0), "{register:?}");
        assert_eq!(asked(register, false), Answer::Value(0), "{register:?}");
    }
}

#[test]
fn id_registers_are_the_cpus_own_as_far_as_they_are_shown_and_read_only() {
    for register in [ID_AA64PFR0_EL1, ID_AA64MMFR0_EL1] {
        let (crm, op2) = (register.3, register.4);
        let host = 0x1111_1111_1111_1111 * u64::from(crm) + u64::from(op2);
        let shown = id_registers::visible(access(register, true).register, host, IPA_BITS);
        assert_ne!(shown, 0);
        assert_eq!(asked(register, true), Answer::Value(shown));
        assert_eq!(asked(register, false), Answer::Undefined);
    }
}

#[test]
fn the_size_of_addresses_is_the_vms_and_not_the_machines() {
    // PARange: 2 is 40 bits, 1 is 36, whatever the CPU says.
    for (bits, range) in [(40, 2), (36, 1)] {
        let read = asked_with(ID_AA64MMFR0_EL1, true, bits);
        let shown = matches!(read, Answer::Value(value) if value & 0xf == range);
        assert!(shown, "{bits}: {read:x?}");
    }
}

#[test]
fn what_no_id_register_shows_is_not_there() {
    for register in [PMCR_EL0, IMPLEMENTATION_DEFINED] {
        for is_read in [true, false] {
            assert_eq!(asked(register, is_read), Answer::Undefined, "{register:?}");
        }
    }
}

proptest! {
    /// A write that is answered changes nothing, so it must not be one of a register that would.
    #[test]
    fn writes_reach_few_registers(op0 in 2u8..4, op1 in 0u8..8, crn in 0u8..16, crm in 0u8..16, op2 in 0u8..8) {
        let register = (op0, op1, crn, crm, op2);
        let ignored = register == ACTLR_EL1 || register == ERRSELR_EL1
            || (op0, op1, crn) == (3, 0, 5) && (crm == 4 || crm == 5);
        let expected = if ignored { Answer::Value(0) } else { Answer::Undefined };
        prop_assert_eq!(asked(register, false), expected);
    }
}
