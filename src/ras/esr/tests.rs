//! Syndromes as real machines produced them, and the fields one by one.
#![expect(
    clippy::panic,
    reason = "a test that meets something else altogether ends"
)]

use super::*;
use crate::addr::Ipa;

fn abort(esr: u64) -> Abort {
    match Syndrome::decode(esr) {
        Syndrome::Abort(abort) => abort,
        other => panic!("not an abort: {other:?}"),
    }
}

fn lower_data(iss: u64) -> Abort {
    abort(class::DATA_ABORT_LOWER << CLASS_SHIFT | IL | iss)
}

#[test]
fn the_guest_load_from_a_hole_is_a_stage_2_translation_fault_with_an_ipa() {
    // Seen under QEMU: a Linux process reads a page that was unmapped at stage 2.
    let abort = abort(0x9302_0007);
    assert_eq!(abort.origin, Origin::LowerLevel);
    assert_eq!(abort.fault, Fault::Translation(Level::LAST));
    assert_eq!(abort.access, Access::Read);
    assert_eq!(abort.error_type, None);
    let (hpfar, far) = (0x41ca7 << 4, 0xffff_0000_1040);
    assert_eq!(abort.ipa_page(hpfar), Some(Ipa::new(0x41ca_7000)));
    assert_eq!(abort.ipa(hpfar, far), Some(Ipa::new(0x41ca_7040)));
    assert_eq!(abort.far(far), Some(far));
}

#[test]
fn the_guest_fetch_from_a_hole_is_an_instruction_abort() {
    let abort = abort(0x8200_0007);
    assert_eq!(abort.access, Access::Fetch);
    assert!(abort.fault.is_translation());
    assert!(abort.ipa_page(0x10).is_some());
}

#[test]
fn an_external_abort_never_has_an_ipa() {
    // As a guest's load from an unassigned address looks.
    let sea = abort(0x9600_0010 - (1 << CLASS_SHIFT));
    assert_eq!(
        (sea.origin, sea.fault),
        (Origin::LowerLevel, Fault::External)
    );
    assert_eq!(sea.ipa_page(u64::MAX), None);
    assert_eq!(sea.ipa(u64::MAX, 0), None);
    assert_eq!(sea.far(0x1234), Some(0x1234));
}

#[test]
fn the_far_of_an_external_abort_counts_only_without_fnv() {
    assert_eq!(lower_data(0x10 | 1 << 10).far(0x1234), None);
    // The bit is RES0 elsewhere and must not hide an address.
    assert_eq!(lower_data(0x07 | 1 << 10).far(0x1234), Some(0x1234));
    assert_eq!(lower_data(0x17 | 1 << 10).far(0x1234), Some(0x1234));
}

#[test]
fn a_permission_fault_has_an_ipa_only_for_a_stage_1_walk() {
    assert_eq!(lower_data(0x0f).ipa_page(0x10), None);
    let walk = lower_data(0x0f | 1 << 7);
    assert_eq!(walk.ipa_page(0x10), Some(Ipa::new(0x1000)));
    // Whose offset in the page is not FAR's.
    assert_eq!(walk.ipa(0x10, 0x123), None);
}

#[test]
fn an_abort_of_el2_itself_has_no_ipa() {
    let own = abort(class::DATA_ABORT_SAME << CLASS_SHIFT | IL | 0x07);
    assert_eq!(own.origin, Origin::SameLevel);
    assert_eq!(own.ipa_page(0x10), None);
}

#[test]
fn hpfar_holds_the_address_from_bit_12_and_nothing_of_its_other_bits() {
    let fault = lower_data(0x07);
    let noise = 1 << 63 | 0xf;
    assert_eq!(
        fault.ipa_page(0x0000_ffff_ffff_fff0 | noise),
        Some(Ipa::new(0x00ff_ffff_ffff_f000))
    );
}

#[test]
fn every_fault_status_code_has_its_meaning() {
    let level = |n| Level::new(n).unwrap();
    for (code, fault) in [
        (0x00, Fault::AddressSize(level(0))),
        (0x05, Fault::Translation(level(1))),
        (0x0a, Fault::AccessFlag(level(2))),
        (0x0f, Fault::Permission(level(3))),
        (0x10, Fault::External),
        (0x11, Fault::TagCheck),
        (0x12, Fault::ExternalOnWalk(level(-2))),
        (0x13, Fault::ExternalOnWalk(level(-1))),
        (0x14, Fault::ExternalOnWalk(level(0))),
        (0x17, Fault::ExternalOnWalk(level(3))),
        (0x18, Fault::Parity),
        (0x1b, Fault::ParityOnWalk(level(-1))),
        (0x1d, Fault::ParityOnWalk(level(1))),
        (0x21, Fault::Alignment),
        (0x23, Fault::GranuleProtection(Some(level(-1)))),
        (0x26, Fault::GranuleProtection(Some(level(2)))),
        (0x28, Fault::GranuleProtection(None)),
        (0x29, Fault::AddressSize(level(-1))),
        (0x2b, Fault::Translation(level(-1))),
        (0x30, Fault::TlbConflict),
        (0x31, Fault::UnsupportedUpdate),
        (0x35, Fault::UnsupportedExclusive),
        (0x3f, Fault::Other(0x3f)),
    ] {
        assert_eq!(lower_data(code).fault, fault, "{code:#x}");
    }
    assert_eq!(Level::new(4), None);
}

#[test]
fn errors_are_told_from_faults() {
    let external: std::vec::Vec<u64> = (0..64)
        .filter(|&code| lower_data(code).fault.is_external())
        .collect();
    assert_eq!(
        external,
        [
            0x10, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f
        ]
    );
}

#[test]
fn the_synchronous_error_type_belongs_to_external_aborts_only() {
    let set = |raw: u64| lower_data(0x10 | raw << 11).error_type;
    assert_eq!(set(0b00), Some(SyncErrorType::Recoverable));
    assert_eq!(set(0b01), Some(SyncErrorType::Reserved));
    assert_eq!(set(0b10), Some(SyncErrorType::Uncontainable));
    assert_eq!(set(0b11), Some(SyncErrorType::Restartable));
    assert_eq!(lower_data(0x07 | 0b11 << 11).error_type, None);
}

#[test]
fn an_access_that_can_be_emulated_is_described() {
    // ldrsh x5, [..]: 16 bits, sign-extended to 64.
    let iss = 1 << 24 | 0b01 << 22 | 1 << 21 | 5 << 16 | 1 << 15 | 0x07;
    let mmio = lower_data(iss).mmio.unwrap();
    assert_eq!((mmio.size, mmio.register, mmio.write), (2, 5, false));
    assert_eq!(mmio.loaded(0x1234_8001), 0xffff_ffff_ffff_8001);
    assert_eq!(mmio.loaded(0x7fff), 0x7fff);
    let narrow = Mmio {
        wide: false,
        ..mmio
    };
    assert_eq!(narrow.loaded(0x8001), 0xffff_8001);
    let doubleword = Mmio {
        size: 8,
        sign_extend: false,
        ..mmio
    };
    assert_eq!(doubleword.loaded(u64::MAX), u64::MAX);
    assert_eq!(mmio.stored(0x1234_5678), 0x5678);

    let write = lower_data(iss | 1 << 6);
    assert_eq!(write.access, Access::Write);
    assert!(write.mmio.unwrap().write);
    assert_eq!(lower_data(0x07).mmio, None);
}

#[test]
fn pfar_is_valid_only_where_the_bit_does_not_mean_something_else() {
    assert!(lower_data(0x10 | 1 << 14).pfar_valid);
    assert!(!lower_data(0x07 | 1 << 24 | 1 << 14).pfar_valid);
}

#[test]
fn cache_maintenance_is_told_from_a_store() {
    let abort = lower_data(0x10 | 1 << 8 | 1 << 6);
    assert!(abort.cache_maintenance);
    assert_eq!(abort.access, Access::Write);
}

#[test]
fn serrors_are_classified_only_where_the_syndrome_says_so() {
    let kind = |iss| match Syndrome::decode(class::SERROR << CLASS_SHIFT | IL | iss) {
        Syndrome::SError(serror) => serror.kind,
        other => panic!("not an SError: {other:?}"),
    };
    use AsyncErrorType::{
        Corrected, Recoverable, Reserved, Restartable, Uncontainable, Unrecoverable,
    };
    for (raw, meaning) in [
        (0b000, Uncontainable),
        (0b001, Unrecoverable),
        (0b010, Restartable),
        (0b011, Recoverable),
        (0b100, Reserved(4)),
        (0b110, Corrected),
    ] {
        assert_eq!(kind(raw << 10 | 0x11), SErrorKind::Classified(meaning));
        assert_eq!(u64::from(meaning.raw()), raw);
    }
    assert_eq!(kind(0b110 << 10), SErrorKind::Uncategorized);
    assert_eq!(kind(1 << 24 | 0x11), SErrorKind::ImplementationDefined);
}

#[test]
fn calls_and_traps_are_decoded() {
    assert_eq!(Syndrome::decode(0x5a00_0000), Syndrome::Hvc(0));
    assert_eq!(Syndrome::decode(0x5e00_1234), Syndrome::Smc(0x1234));
    assert_eq!(Syndrome::decode(0x0200_0000), Syndrome::Unknown);
    // Seen under QEMU: Linux writes PIRE0_EL1, S3_0_C10_C2_2, from XZR.
    assert_eq!(
        Syndrome::decode(0x6234_2804),
        Syndrome::System(System {
            register: SystemRegister {
                op0: 3,
                op1: 0,
                crn: 10,
                crm: 2,
                op2: 2
            },
            rt: 0,
            is_read: false,
        })
    );
    assert_eq!(
        Syndrome::decode(0x0600_0000 | 0b10 | 1 << 2 | 7 << 5),
        Syndrome::Wait(Wait {
            kind: WaitKind::Wfit,
            timeout_register: Some(7)
        })
    );
    assert_eq!(
        Syndrome::decode(0x0600_0001),
        Syndrome::Wait(Wait {
            kind: WaitKind::Wfe,
            timeout_register: None
        })
    );
    assert_eq!(
        Syndrome::decode(0x3f << CLASS_SHIFT | 0x1_2345),
        Syndrome::Other {
            class: 0x3f,
            iss: 0x1_2345
        }
    );
}

proptest::proptest! {
    /// So is what there is of aborts for memory errors.
    #[test]
    #[cfg_attr(miri, ignore = "slow, and there is nothing unsafe in it")]
    fn of_aborts_both_decoders_say_the_same(
        class in proptest::sample::select(&[class::DATA_ABORT_LOWER, class::INSTRUCTION_ABORT_LOWER][..]),
        iss in 0_u64..1 << 25,
    ) {
        let esr = class << CLASS_SHIFT | IL | iss;
        let Syndrome::Abort(abort) = Syndrome::decode(esr) else {
            return Err(proptest::test_runner::TestCaseError::fail("no abort"));
        };
        let unmapped = matches!(abort.fault, Fault::Translation(level) if level.get() >= 0);
        proptest::prop_assert_eq!(Quick::translation_fault(esr), unmapped.then_some(abort));
        let external = abort.fault.is_external();
        proptest::prop_assert_eq!(Quick::external_abort(esr), external.then_some(abort));
    }

    /// What the quick decoder says is what the thorough one says.
    #[test]
    #[cfg_attr(miri, ignore = "slow, and there is nothing unsafe in it")]
    fn both_decoders_agree(
        class in proptest::sample::select(&[0x00_u64, 0x01, 0x07, 0x16, 0x17, 0x18, 0x20, 0x24, 0x25, 0x2f][..]),
        iss in 0_u64..1 << 25,
        hpfar: u64,
        far: u64,
    ) {
        let esr = class << CLASS_SHIFT | IL | iss;
        match (Quick::decode(esr), Syndrome::decode(esr)) {
            (Some(Quick::Call), Syndrome::Hvc(immediate)) => proptest::prop_assert_eq!(immediate, 0),
            (Some(Quick::System(quick)), Syndrome::System(system)) => {
                proptest::prop_assert_eq!(quick, system);
            }
            (Some(Quick::Access(access)), Syndrome::Abort(abort)) => {
                proptest::prop_assert_eq!(Some(access), abort.mmio);
                proptest::prop_assert!(abort.fault.is_translation());
                proptest::prop_assert_eq!(Some(Quick::ipa(hpfar, far)), abort.ipa(hpfar, far));
            }
            (None, Syndrome::Hvc(immediate)) => proptest::prop_assert!(immediate != 0),
            (None, Syndrome::System(_)) => proptest::prop_assert!(false),
            (Some(Quick::Abort), Syndrome::Abort(abort)) => {
                let quick = abort.fault.is_translation() && !abort.stage1_walk
                    && matches!(abort.fault, Fault::Translation(level) if level.get() >= 0);
                proptest::prop_assert!(abort.mmio.is_none() || !quick);
            }
            (None, _) => {}
            (quick, syndrome) => proptest::prop_assert!(false, "{quick:?} {syndrome:?}"),
        }
    }
}
