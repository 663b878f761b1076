//! SErrors, one row of the decision table after the other.

use super::fake::{CORDONS, DEVICE, DEVICE_AT, FakeCpu, World, esr};
use crate::addr::Pa;
use crate::ras::cper::Severity;
use crate::ras::esr::SError;
use crate::ras::event::Stage;
use crate::ras::pipeline::tests::{page, record};
use crate::ras::triage;
use crate::vm::exit::{Exit, Next};

/// `AET`, with the status that says that it is valid.
const fn classified(aet: u64) -> u64 {
    esr::serror(aet << 10 | 0x11)
}

const UC: u64 = classified(0b000);
const UEU: u64 = classified(0b001);
const UEO: u64 = classified(0b010);
const UER: u64 = classified(0b011);
const CE: u64 = classified(0b110);
const RESERVED: u64 = classified(0b111);
const IMPLEMENTATION_DEFINED: u64 = esr::serror(1 << 24 | 0x11);
const UNCATEGORIZED: u64 = esr::serror(0);

const BAD: u64 = 0x7000;

/// An SError of VM 0's, with a record of `BAD`.
fn serror(world: &World, syndrome: u64) -> (Next, FakeCpu) {
    assert!(world.firmware.report(Pa::new(DEVICE.get() + BAD)));
    let mut cpu = FakeCpu::new(syndrome);
    let next = world.exit((0, 0), &mut cpu, Exit::serror);
    assert!(cpu.delivered.is_empty(), "an SError is no abort");
    assert!(world.firmware.is_free());
    assert!(
        world.is_hole(1, DEVICE_AT[1] + BAD),
        "contained, whatever follows"
    );
    (next, cpu)
}

#[test]
fn a_corrected_or_restartable_one_is_the_guests_to_survive_unawares() {
    for syndrome in [CE, UEO] {
        let world = World::new();
        let (next, cpu) = serror(&world, syndrome);
        assert_eq!((next, cpu.vserror), (Next::Resume, None));
        assert_eq!(world.counters().guest_serrors, 0);
    }
}

#[test]
fn a_recoverable_or_unrecoverable_one_is_told_with_its_type() {
    for (syndrome, aet) in [(UER, 0b011), (UEU, 0b001)] {
        let world = World::new();
        let (next, cpu) = serror(&world, syndrome);
        assert_eq!((next, cpu.vserror), (Next::Resume, Some(aet << 10 | 0x11)));
        assert_eq!(
            world.stages.take(),
            [
                Stage::Detected,
                Stage::Contained { pages: 1 },
                Stage::GuestSError
            ]
        );
    }
}

#[test]
fn one_that_may_have_gone_anywhere_stops_the_machine() {
    for syndrome in [UC, RESERVED, IMPLEMENTATION_DEFINED, UNCATEGORIZED] {
        let world = World::new();
        let (next, cpu) = serror(&world, syndrome);
        assert_eq!((next, cpu.vserror), (Next::Halt, None));
        assert_eq!(world.counters().fatal, 1);
    }
}

#[test]
fn where_the_machine_keeps_errors_within_a_vm_it_costs_the_vm() {
    for syndrome in [UC, RESERVED, IMPLEMENTATION_DEFINED, UNCATEGORIZED] {
        let world = World::with(triage::Machine {
            feat_ras: true,
            isolates_vms: true,
        });
        let (next, _) = serror(&world, syndrome);
        assert_eq!(next, Next::Park);
        assert!(world.vm(0).is_stopped() && !world.vm(1).is_stopped());
        assert_eq!(world.counters().stopped_vms, 1);
    }
}

#[test]
fn without_feat_ras_no_type_is_believed() {
    let world = World::with(triage::Machine {
        feat_ras: false,
        isolates_vms: false,
    });
    assert_eq!(serror(&world, CE).0, Next::Halt);
}

#[test]
fn a_fatal_record_outweighs_a_harmless_type() {
    let world = World::new();
    assert!(
        world
            .firmware
            .leave(&record(Severity::Fatal, &[page(CORDONS)]))
    );
    let mut cpu = FakeCpu::new(CE);
    assert_eq!(world.exit((0, 0), &mut cpu, Exit::serror), Next::Halt);
}

#[test]
fn one_without_a_record_is_told_and_said_to_have_none() {
    let world = World::new();
    let mut cpu = FakeCpu::new(UER);
    assert_eq!(world.exit((0, 0), &mut cpu, Exit::serror), Next::Resume);
    assert_eq!(cpu.vserror, Some(0b011 << 10 | 0x11));
    assert_eq!(world.stages.take(), [Stage::NoRecord, Stage::GuestSError]);
    assert_eq!(world.census(0).holes, 0);
}

#[test]
fn one_that_the_guest_left_behind_is_the_guests() {
    let world = World::new();
    let mut cpu = FakeCpu::new(0);
    let disr = 1 << 31 | UER & 0x1ff_ffff;
    let next = world.exit((0, 0), &mut cpu, |exit| exit.deferred_serror(disr));
    assert_eq!(
        (next, cpu.vserror),
        (Next::Resume, Some(0b011 << 10 | 0x11))
    );
    let mut cpu = FakeCpu::new(0);
    let disr = 1 << 31 | UC & 0x1ff_ffff;
    let next = world.exit((0, 0), &mut cpu, |exit| exit.deferred_serror(disr));
    assert_eq!(next, Next::Halt);
}

#[test]
fn a_cpu_that_overstates_is_not_believed_when_it_calls_one_unrecoverable() {
    let unrecoverable = esr::serror(0b001 << 10 | 0x11);
    for (overstates, expected) in [(false, Next::Resume), (true, Next::Halt)] {
        let world = World::new();
        let mut cpu = FakeCpu::new(unrecoverable);
        cpu.overstates = overstates;
        assert_eq!(world.exit((0, 0), &mut cpu, Exit::serror), expected);
    }
}

#[test]
fn of_cordons_own_only_the_harmless_are_survived() {
    for (syndrome, stops) in [
        (CE, false),
        (UEO, false),
        (UER, true),
        (UC, true),
        (IMPLEMENTATION_DEFINED, true),
    ] {
        let world = World::new();
        let error = SError::decode(syndrome);
        assert_eq!(
            world.hypervisor.own_serror(error, 0),
            stops,
            "{syndrome:#x}"
        );
        assert_eq!(world.counters().fatal, u64::from(stops));
        assert!(!world.vm(0).is_stopped());
    }
}
