//! Injection against what real machines do, bit by bit.
#![expect(
    clippy::panic,
    reason = "a test that meets something else altogether ends"
)]

use proptest::prelude::*;

use super::*;
use crate::ras::esr::{Fault, Syndrome};

const DAIF: u64 = 0xf << 6;

fn guest(pstate: u64) -> GuestState {
    GuestState {
        pc: 0x40_1234,
        pstate,
        vbar: 0xffff_8000_8001_0800,
        sctlr: sctlr::SPAN,
        ..GuestState::default()
    }
}

fn load_at(far: u64) -> ExternalAbort {
    ExternalAbort {
        access: Access::Read,
        walk: None,
        far: Some(far),
        cache_maintenance: false,
        ea: false,
        error_type: None,
    }
}

fn trap(esr: u64) -> Abort {
    match Syndrome::decode(esr) {
        Syndrome::Abort(abort) => abort,
        other => panic!("not an abort: {other:?}"),
    }
}

#[test]
fn a_process_of_linux_gets_what_was_measured_to_work() {
    // A load of a Linux process from a hole in stage 2.
    let trap = trap(0x9302_0007);
    let abort = ExternalAbort::from_trap(&trap, 0xffff_a13f_8040, None);
    let before = guest(pstate::EL0T | 0x6000_0000);
    let injected = external_abort(&before, &abort).unwrap();
    assert_eq!(
        injected,
        Injected {
            pc: before.vbar + 0x400,
            pstate: 0x6000_03c5,
            esr_el1: 0x9200_0010,
            far_el1: Some(0xffff_a13f_8040),
            elr_el1: 0x40_1234,
            spsr_el1: 0x6000_0000,
        }
    );
}

#[test]
fn each_mode_has_its_vector_and_its_class() {
    for (mode, offset, data, fetch) in [
        (pstate::EL1T, 0x000, 0x25, 0x21),
        (pstate::EL1H, 0x200, 0x25, 0x21),
        (pstate::EL0T, 0x400, 0x24, 0x20),
        (pstate::AARCH32, 0x600, 0x24, 0x20),
    ] {
        let guest = guest(mode);
        for (access, class) in [
            (Access::Read, data),
            (Access::Write, data),
            (Access::Fetch, fetch),
        ] {
            let abort = ExternalAbort {
                access,
                ..load_at(0)
            };
            let injected = external_abort(&guest, &abort).unwrap();
            assert_eq!(injected.pc, guest.vbar + offset);
            assert_eq!(injected.esr_el1 >> 26, class);
        }
    }
}

#[test]
fn ease_sends_external_aborts_and_nothing_else_to_the_serror_vector() {
    let guest = GuestState {
        ease: true,
        ..guest(pstate::EL0T)
    };
    let abort = external_abort(&guest, &load_at(0)).unwrap();
    assert_eq!(abort.pc, guest.vbar + 0x580);
    assert_eq!(undefined(&guest).unwrap().pc, guest.vbar + 0x400);
}

#[test]
fn the_reserved_bits_of_vbar_are_not_part_of_the_address() {
    let guest = GuestState {
        vbar: 0x8000_0fff,
        ..guest(pstate::EL1H)
    };
    assert_eq!(undefined(&guest).unwrap().pc, 0x8000_0a00);
}

#[test]
fn modes_that_are_not_a_guests_are_refused() {
    // EL2t, EL2h, EL3h, AArch32 Supervisor, Hyp.
    for mode in [0b1000, 0b1001, 0b1101, 0b1_0011, 0b1_1010] {
        let guest = guest(mode);
        assert_eq!(external_abort(&guest, &load_at(0)), Err(BadMode(mode)));
        assert_eq!(undefined(&guest), Err(BadMode(mode)));
        assert!(!handler_is_lost(&guest));
    }
}

#[test]
fn the_syndrome_says_what_the_access_was() {
    let esr = |abort: ExternalAbort| abort.syndrome(Mode::El0, Features::empty()) & 0x1ff_ffff;
    let base = load_at(0x1000);
    assert_eq!(esr(base), 0x10);
    let write = ExternalAbort {
        access: Access::Write,
        ..base
    };
    assert_eq!(esr(write), 0x10 | 1 << 6);
    let clean = ExternalAbort {
        cache_maintenance: true,
        ..base
    };
    assert_eq!(esr(clean), 0x10 | 1 << 8 | 1 << 6);
    let ea = ExternalAbort { ea: true, ..base };
    assert_eq!(esr(ea), 0x10 | 1 << 9);
    let fetch = ExternalAbort {
        access: Access::Fetch,
        cache_maintenance: true,
        ..base
    };
    assert_eq!(esr(fetch), 0x10);
}

#[test]
fn the_instruction_length_is_always_32_bits() {
    for access in [Access::Read, Access::Write, Access::Fetch] {
        let abort = ExternalAbort {
            access,
            ..load_at(0)
        };
        let esr = abort.syndrome(Mode::El0Aarch32, Features::empty());
        assert_ne!(esr & IL, 0);
    }
    let esr = undefined(&guest(pstate::AARCH32)).unwrap().esr_el1;
    assert_eq!(esr, IL);
}

#[test]
fn the_error_type_is_told_only_to_a_guest_with_feat_ras() {
    let abort = ExternalAbort {
        error_type: Some(SyncErrorType::Restartable),
        ..load_at(0)
    };
    let set = |features| abort.syndrome(Mode::El1h, features) >> 11 & 0b11;
    assert_eq!(set(Features::RAS), 0b11);
    assert_eq!(set(Features::all().difference(Features::RAS)), 0b00);
}

#[test]
fn an_unknown_address_is_marked_and_zero() {
    let abort = ExternalAbort {
        far: None,
        ..load_at(0)
    };
    let injected = external_abort(&guest(pstate::EL1H), &abort).unwrap();
    assert_eq!(injected.esr_el1 & 0x7ff, 0x10 | 1 << 10);
    assert_eq!(injected.far_el1, Some(0));
}

#[test]
fn an_error_in_a_guests_table_names_the_level() {
    let status = |level: i8, far| {
        let abort = ExternalAbort {
            walk: Level::new(level),
            far,
            ..load_at(0)
        };
        abort.syndrome(Mode::El1h, Features::empty()) & 0x43f
    };
    for (level, code) in [(-2, 0x12), (-1, 0x13), (0, 0x14), (3, 0x17)] {
        assert_eq!(status(level, Some(0)), code);
    }
    // FnV is defined for the plain code only.
    assert_eq!(status(2, None), 0x410);
}

#[test]
fn a_hole_touched_by_a_walk_is_told_with_the_level_that_was_seen_before() {
    // A write to memory whose level-2 table, say, is in a hole: S1PTW, translation fault.
    let touch = trap(0x24 << 26 | IL | 1 << 7 | 1 << 6 | 0x07);
    let abort = ExternalAbort::from_trap(&touch, 0x8000, Level::new(2));
    assert_eq!(abort.walk, Level::new(2));
    assert_eq!(abort.access, Access::Write);
    let unknown = ExternalAbort::from_trap(&touch, 0x8000, None);
    assert_eq!(unknown.walk, Some(Level::LAST));
    // What the guest sees of it has S1PTW clear.
    assert_eq!(abort.syndrome(Mode::El1h, Features::empty()) & 0xff, 0x56);
}

#[test]
fn an_external_abort_keeps_its_own_description() {
    let sea = trap(0x24 << 26 | IL | 0b11 << 11 | 1 << 9 | 1 << 6 | 0x15);
    let abort = ExternalAbort::from_trap(&sea, 0x1234, None);
    assert_eq!(
        abort,
        ExternalAbort {
            access: Access::Write,
            walk: Level::new(1),
            far: Some(0x1234),
            cache_maintenance: false,
            ea: true,
            error_type: Some(SyncErrorType::Restartable),
        }
    );
    let blind = trap(0x24 << 26 | IL | 1 << 10 | 0x10);
    assert_eq!(ExternalAbort::from_trap(&blind, 0x1234, None).far, None);
}

#[test]
fn pan_is_set_unless_the_guest_asks_to_keep_it() {
    let entry = |old, sctlr, features| {
        entry_pstate(
            &GuestState {
                sctlr,
                features,
                ..guest(old)
            },
            Mode::El0,
        ) & pstate::PAN
    };
    let pan = pstate::PAN;
    assert_eq!(entry(0, 0, Features::PAN), pan);
    assert_eq!(entry(0, sctlr::SPAN, Features::PAN), 0);
    assert_eq!(entry(pan, sctlr::SPAN, Features::PAN), pan);
    assert_eq!(entry(pan, 0, Features::empty()), 0);
}

#[test]
fn bits_that_come_from_system_registers() {
    let entry_from = |mode, sctlr, exlocken, features| {
        let guest = GuestState {
            sctlr: sctlr | super::sctlr::SPAN,
            exlocken,
            features,
            ..guest(0)
        };
        entry_pstate(&guest, mode) & !(pstate::EL1H | DAIF)
    };
    let entry = |sctlr, exlocken, features| entry_from(Mode::El1h, sctlr, exlocken, features);
    let all = Features::all();
    let always = pstate::TCO | pstate::PM;
    assert_eq!(entry(sctlr::SPINTMASK, false, all), always);
    assert_eq!(entry(0, false, all), always | pstate::ALLINT);
    assert_eq!(
        entry(sctlr::SPINTMASK | sctlr::DSSBS, true, all),
        always | pstate::SSBS | pstate::EXLOCK
    );
    assert_eq!(entry(sctlr::DSSBS, true, Features::empty()), 0);
    // The lock is for exceptions that do not change the level.
    let from_el0 = entry_from(Mode::El0, sctlr::SPINTMASK, true, all);
    assert_eq!(from_el0, always);
}

#[test]
fn flags_of_an_aarch32_process_that_share_a_place_with_others_are_not_taken_over() {
    // From AArch32: bit 23 is SSBS (AArch64: UAO), bit 25 is IT (TCO), bits 19-16 are GE.
    let old = pstate::AARCH32 | 0xf << 28 | 1 << 27 | 0b11 << 25 | 1 << 23 | 0xf << 16 | 0x3f << 10;
    assert_eq!(entry_pstate(&guest(old), Mode::El0Aarch32), 0xf000_03c5);
}

#[test]
fn a_handler_that_is_itself_lost_is_noticed() {
    let at = |pc: u64, mode| {
        let base = guest(mode);
        handler_is_lost(&GuestState {
            pc: base.vbar + pc,
            ..base
        })
    };
    assert!(at(0x200, pstate::EL1H));
    assert!(at(0x27c, pstate::EL1H));
    assert!(!at(0x280, pstate::EL1H));
    assert!(!at(0x1fc, pstate::EL1H));
    assert!(at(0x000, pstate::EL1T));
    assert!(!at(0x400, pstate::EL0T), "EL0 may look there, and is told");
    let ease = GuestState {
        ease: true,
        pc: guest(0).vbar + 0x380,
        ..guest(pstate::EL1H)
    };
    assert!(handler_is_lost(&ease));
}

#[test]
fn virtual_serrors_have_the_syndromes_that_linux_understood() {
    assert_eq!(virtual_serror(AsyncErrorType::Corrected), 0x1811);
    assert_eq!(virtual_serror(AsyncErrorType::Restartable), 0x811);
    assert_eq!(virtual_serror(AsyncErrorType::Uncontainable), 0x011);
}

#[test]
fn what_a_type_of_memory_refuses_is_told_as_the_guests_own_fault() {
    for (trap_esr, told) in [
        (0x24 << 26 | 0x21, 0x9600_0021_u64),
        (0x24 << 26 | 1 << 6 | 0x21, 0x9600_0061),
        (0x24 << 26 | 1 << 6 | 0x35, 0x9600_0075),
    ] {
        let trap = trap(trap_esr);
        let refusal = Refusal::of(trap.fault).unwrap();
        let write = trap.access == Access::Write;
        let take = |guest| stage1_fault(guest, 0x4004, write, refusal.status()).unwrap();
        // External aborts alone go to the SError vector.
        let at_el1 = GuestState {
            ease: true,
            ..guest(pstate::EL1H)
        };
        let after = take(&at_el1);
        assert_eq!((after.esr_el1, after.far_el1), (told, Some(0x4004)));
        assert_eq!(after.pc, at_el1.vbar + 0x200);
        let after = take(&guest(pstate::EL0T));
        assert_eq!(after.esr_el1, told & !(1 << 26), "class 0x24, from EL0");
    }
    assert_eq!(Refusal::of(trap(0x24 << 26 | 0x10).fault), None);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 1024 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever the guest's state: the handler runs at EL1h with everything masked, no stepping, no
    /// illegal state, nothing left of UAO and BTYPE; the interrupted state is kept to the bit.
    #[test]
    fn exception_entry_is_what_the_architecture_says(
        old in any::<u64>(),
        mode in prop_oneof![Just(0u64), Just(4), Just(5), Just(16)],
        sctlr in any::<u64>(),
        features in any::<u64>(),
        pc in any::<u64>(),
    ) {
        let before = GuestState {
            pc,
            sctlr,
            features: Features::from_bits_truncate(features),
            ..guest(old & !0x1f | mode)
        };
        let after = external_abort(&before, &load_at(1)).unwrap();
        prop_assert_eq!(after.pstate & 0x1f, pstate::EL1H);
        prop_assert_eq!(after.pstate & DAIF, DAIF);
        prop_assert_eq!(after.pstate & pstate::NZCV, old & pstate::NZCV);
        // BTYPE, IL, SS, UAO, Q/RES0, PPEND and what is above EXLOCK.
        let zero = 0b11 << 10 | 1 << 20 | 1 << 21 | 1 << 23 | 0b11 << 26 | 1 << 33 | !0 << 35;
        prop_assert_eq!(after.pstate & zero, 0);
        prop_assert_eq!((after.elr_el1, after.spsr_el1), (before.pc, before.pstate));
    }

    /// What a guest is told decodes, by the decoder that EL2 uses itself, to what was to be told.
    #[test]
    fn syndromes_decode_to_what_they_were_made_from(
        kind in 0u8..3,
        walk in proptest::option::of(-1i8..4),
        far in any::<Option<u64>>(),
        ea in any::<bool>(),
        set in 0u64..4,
    ) {
        let access = [Access::Read, Access::Write, Access::Fetch][usize::from(kind)];
        let error_type = trap(0x24 << 26 | set << 11 | 0x10).error_type;
        let walk = walk.and_then(Level::new);
        let abort = ExternalAbort { access, walk, far, cache_maintenance: false, ea, error_type };
        let told = trap(abort.syndrome(Mode::El1h, Features::RAS));
        prop_assert_eq!((told.access, told.ea, told.error_type), (access, ea, error_type));
        prop_assert_eq!(told.far(7), far.map(|_| 7));
        let expected = match (walk, far) {
            (Some(level), Some(_)) => Fault::ExternalOnWalk(level),
            _ => Fault::External,
        };
        prop_assert_eq!(told.fault, expected);
    }
}
