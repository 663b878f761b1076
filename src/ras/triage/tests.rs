//! Each row of the tables, driven by real syndrome values rather than by the tables themselves.
#![expect(
    clippy::panic,
    reason = "a test that meets something else altogether ends"
)]

use super::*;
use crate::ras::esr::{CLASS_SHIFT, IL, Syndrome, class};

const RAS: Machine = Machine {
    feat_ras: true,
    isolates_vms: false,
};
const OLD: Machine = Machine {
    feat_ras: false,
    isolates_vms: false,
};
const ISOLATING: Machine = Machine {
    isolates_vms: true,
    ..RAS
};

const UER: u64 = 0b00 << 11;
const RESERVED: u64 = 0b01 << 11;
const UC: u64 = 0b10 << 11;
const UEO: u64 = 0b11 << 11;
const S1PTW: u64 = 1 << 7;

fn abort(class: u64, iss: u64) -> Abort {
    match Syndrome::decode(class << CLASS_SHIFT | IL | iss) {
        Syndrome::Abort(abort) => abort,
        other => panic!("not an abort: {other:?}"),
    }
}

/// The decision on an abort taken from a guest.
fn guest(iss: u64, machine: Machine) -> Option<(Verdict, Blame)> {
    let abort = abort(class::DATA_ABORT_LOWER, iss);
    let consumer = Consumer::of(&abort, false, false);
    sync(&abort, consumer, machine).map(|d| (d.verdict, d.blame))
}

/// The decision on an abort of EL2's own.
fn own(iss: u64, in_copy: bool, machine: Machine) -> (Verdict, Blame) {
    let abort = abort(class::DATA_ABORT_SAME, iss);
    let decision = sync(&abort, Consumer::of(&abort, in_copy, false), machine).unwrap();
    (decision.verdict, decision.blame)
}

fn on_serror(iss: u64, interrupted: Interrupted, machine: Machine) -> (Verdict, Blame) {
    match Syndrome::decode(class::SERROR << CLASS_SHIFT | IL | iss) {
        Syndrome::SError(error) => {
            let decision = serror(&error, interrupted, machine);
            (decision.verdict, decision.blame)
        }
        other => panic!("not an SError: {other:?}"),
    }
}

#[test]
fn a_guest_that_consumed_is_told_unless_trying_again_may_help() {
    let told = Some((Verdict::ContainAndAbort, Blame::Guest));
    assert_eq!(guest(0x10 | UER, RAS), told);
    assert_eq!(guest(0x17 | UER, RAS), told, "its own stage-1 table");
    assert_eq!(
        guest(0x10 | UEO, RAS),
        Some((Verdict::Restart, Blame::Guest))
    );
}

#[test]
fn without_feat_ras_the_error_type_is_not_looked_at() {
    for set in [UER, UC, UEO, RESERVED] {
        assert_eq!(
            guest(0x10 | set, OLD),
            Some((Verdict::ContainAndAbort, Blame::Guest))
        );
    }
}

#[test]
fn an_uncontained_error_stops_as_much_as_it_may_have_reached() {
    for set in [UC, RESERVED] {
        assert_eq!(
            guest(0x10 | set, RAS),
            Some((Verdict::StopMachine, Blame::Platform))
        );
        assert_eq!(
            guest(0x10 | set, ISOLATING),
            Some((Verdict::StopVm, Blame::Guest))
        );
        for in_copy in [false, true] {
            assert_eq!(
                own(0x10 | set, in_copy, ISOLATING),
                (Verdict::StopMachine, Blame::Hypervisor)
            );
        }
    }
}

#[test]
fn a_bad_stage_2_table_stops_its_vm_and_is_not_the_guests_fault() {
    let stop = (Verdict::StopVm, Blame::Hypervisor);
    for (set, machine) in [(UER, RAS), (UEO, RAS), (UER, OLD)] {
        assert_eq!(guest(0x16 | S1PTW | set, machine), Some(stop));
        // Without S1PTW it takes the record to know.
        let direct = abort(class::DATA_ABORT_LOWER, 0x16 | set);
        let consumer = Consumer::of(&direct, false, true);
        assert_eq!(consumer, Consumer::Stage2Walk);
        let decision = sync(&direct, consumer, machine).unwrap();
        assert_eq!((decision.verdict, decision.blame), stop);
    }
}

#[test]
fn a_guest_access_to_known_table_memory_that_is_no_walk_is_the_guests() {
    let data = abort(class::DATA_ABORT_LOWER, 0x10);
    assert_eq!(Consumer::of(&data, false, true), Consumer::Guest);
}

#[test]
fn cordons_copies_fail_and_cordons_own_memory_is_fatal() {
    for (set, machine) in [(UER, RAS), (UEO, RAS), (UER, OLD)] {
        assert_eq!(
            own(0x10 | set, true, machine),
            (Verdict::ContainAndFailCopy, Blame::HypervisorForGuest)
        );
        assert_eq!(
            own(0x10 | set, false, machine),
            (Verdict::StopMachine, Blame::Hypervisor)
        );
    }
}

#[test]
fn what_is_no_error_is_left_to_others() {
    for iss in [0x07, 0x0f, 0x21, 0x30] {
        assert_eq!(guest(iss, RAS), None);
    }
}

#[test]
fn serrors_of_a_guest_by_their_type() {
    let decide = |aet: u64| on_serror(aet << 10 | 0x11, Interrupted::Guest, RAS);
    assert_eq!(decide(0b110), (Verdict::Log, Blame::Nobody));
    assert_eq!(decide(0b010), (Verdict::Restart, Blame::Guest));
    assert_eq!(decide(0b011), (Verdict::ContainAndSError, Blame::Guest));
    assert_eq!(decide(0b001), (Verdict::ContainAndSError, Blame::Guest));
    assert_eq!(decide(0b000), (Verdict::StopMachine, Blame::Platform));
    assert_eq!(decide(0b101), (Verdict::StopMachine, Blame::Platform));
}

#[test]
fn serrors_of_cordon_by_their_type() {
    let decide = |aet: u64| on_serror(aet << 10 | 0x11, Interrupted::Hypervisor, RAS);
    assert_eq!(decide(0b110), (Verdict::Log, Blame::Nobody));
    assert_eq!(decide(0b010), (Verdict::Restart, Blame::Hypervisor));
    for aet in [0b011, 0b001, 0b000, 0b111] {
        assert_eq!(decide(aet), (Verdict::StopMachine, Blame::Hypervisor));
    }
}

#[test]
fn serrors_without_a_type_are_uncontained() {
    let cases = [
        (1 << 24, RAS),
        (0, RAS),
        // CE, on a CPU that cannot say so.
        (0b110 << 10 | 0x11, OLD),
    ];
    for (iss, machine) in cases {
        assert_eq!(
            on_serror(iss, Interrupted::Guest, machine),
            (Verdict::StopMachine, Blame::Platform)
        );
        let isolating = Machine {
            isolates_vms: true,
            ..machine
        };
        assert_eq!(
            on_serror(iss, Interrupted::Guest, isolating),
            (Verdict::StopVm, Blame::Guest)
        );
        assert_eq!(
            on_serror(iss, Interrupted::Hypervisor, isolating),
            (Verdict::StopMachine, Blame::Hypervisor)
        );
    }
}

#[test]
fn a_neoverse_n1_is_known_in_any_revision_and_nobody_else_is_taken_for_one() {
    for midr in [0x410f_d0c0, 0x413f_d0c1, 0x414f_d0cf] {
        assert!(overstates_serrors(midr), "{midr:#x}");
    }
    for midr in [0x410f_d0b0, 0x410f_d490, 0x420f_d0c0, 0, u64::MAX] {
        assert!(!overstates_serrors(midr), "{midr:#x}");
    }
}

#[test]
fn what_it_calls_unrecoverable_is_uncontainable_and_the_rest_is_as_it_says() {
    for aet in 0..8 {
        let serror = SError::decode(aet << 10 | 0x11);
        let seen = not_overstated(serror);
        let expected = match aet {
            0b001 => SErrorKind::Classified(AsyncErrorType::Uncontainable),
            _ => serror.kind,
        };
        assert_eq!(seen.kind, expected, "{aet:#b}");
    }
    let own = SError::decode(1 << 24 | 0b001 << 10 | 0x11);
    assert_eq!(not_overstated(own).kind, SErrorKind::ImplementationDefined);
}
