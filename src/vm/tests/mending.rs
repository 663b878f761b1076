//! What was lost is given back, what is about to be lost is moved, and policies.

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, G1, K4, SPARES, World, esr};
use crate::addr::{Ipa, Pa, PaRange, Vmid};
use crate::devmem::Policy;
use crate::ras::cper::Severity;
use crate::ras::pipeline::tests::{page, record};
use crate::ras::repair::{Contents, How, RepairError};
use crate::ras::soft_offline::{Action, SoftOffline};
use crate::ras::spares::Spares;
use crate::stage2::{Access, Census, Lookup};
use crate::vm::exit::Next;

const SEA: u64 = esr::data(esr::EXTERNAL);
const FAULT: u64 = esr::data(esr::TRANSLATION);
const DENIED_WRITE: u64 = esr::data(esr::PERMISSION) | esr::WNR;

const BAD: u64 = 0x1234_5000;
const IPA: [u64; 2] = [DEVICE_AT[0] + BAD, DEVICE_AT[1] + BAD];
const CONTENTS: u64 = 0x1122_3344;

/// REPAIR and POLICY.
const REPAIR: u64 = 0xc600_0004;
const POLICY: u64 = 0xc600_0006;

fn frame() -> Pa {
    Pa::new(DEVICE.get() + BAD)
}

fn vm(raw: u8) -> Vmid {
    Vmid::new(raw).unwrap()
}

/// A world in which [`BAD`] has contents, and there are so many spares.
fn world(spares: u64) -> World {
    let world = World::new();
    world.media(|media| media.contents.insert(frame().get(), CONTENTS));
    if spares > 0 {
        let range = PaRange::new(SPARES, spares * K4).unwrap();
        *world.hypervisor.ras.mender.spares.lock() = Spares::new(range);
    }
    world
}

/// [`BAD`] is poisoned, and consumed by VM 0.
fn consumed(world: &World) -> [Census; 2] {
    let before = [world.census(0), world.census(1)];
    world.media(|media| media.poisoned.insert(frame().get()));
    assert!(world.firmware.report(frame()));
    let (next, _) = world.sea(0, SEA, IPA[0]);
    assert_eq!(next, Next::Resume);
    before
}

fn repair(world: &World, pa: Pa, how: How) -> Result<Contents, RepairError> {
    let hypervisor = &world.hypervisor;
    hypervisor
        .ras
        .repair(pa, how, 0, hypervisor, &hypervisor.platform)
}

fn corrected(world: &World, pa: Pa) {
    assert!(
        world
            .firmware
            .leave(&record(Severity::Corrected, &[page(pa)]))
    );
    // Any exception is an occasion to look.
    let _ = world.sea(1, SEA, DEVICE_AT[1] + G1 - K4);
}

fn behind(world: &World, vm: usize) -> (Pa, Access) {
    match world.lookup(vm, IPA[vm]) {
        Lookup::Mapped { pa, attrs, .. } => (pa, attrs.access),
        _ => (Pa::new(u64::MAX), Access::ReadOnly),
    }
}

fn hypercall(world: &World, vm: usize, arguments: [u64; 4]) -> [u64; 3] {
    let mut cpu = FakeCpu::new(esr::of(0x16, 0));
    cpu.x[..4].copy_from_slice(&arguments);
    assert_eq!(world.synchronous(vm, &mut cpu), Next::Resume);
    [cpu.x[0], cpu.x[1], cpu.x[2]]
}

#[test]
fn what_the_platform_heals_is_back_in_every_vm_with_its_contents() {
    let world = world(0);
    world.media(|media| media.heals = true);
    let before = consumed(&world);
    assert_eq!(repair(&world, frame(), How::InPlace), Ok(Contents::Kept));
    assert_eq!([world.census(0), world.census(1)], before);
    let counters = world.counters();
    assert_eq!((counters.lost_pages, counters.repaired_pages), (0, 1));
    assert_eq!(
        repair(&world, frame(), How::InPlace),
        Err(RepairError::NotPoisoned)
    );
    // And it can be lost again.
    assert!(world.firmware.report(frame()));
    let _ = world.sea(0, SEA, IPA[0]);
    assert!(world.is_hole(0, IPA[0]) && world.is_hole(1, IPA[1]));
}

#[test]
fn what_a_full_write_heals_is_back_as_zeros_and_what_was_never_bad_as_it_was() {
    let world = world(0);
    world.media(|media| media.clears = true);
    consumed(&world);
    assert_eq!(repair(&world, frame(), How::InPlace), Ok(Contents::Cleared));
    assert_eq!(world.media(|media| media.contents[&frame().get()]), 0);
    world.media(|media| media.contents.insert(frame().get(), CONTENTS));
    assert!(world.firmware.report(frame()));
    let _ = world.sea(0, SEA, IPA[0]);
    assert_eq!(repair(&world, frame(), How::InPlace), Ok(Contents::Kept));
    assert_eq!(
        world.media(|media| media.contents[&frame().get()]),
        CONTENTS
    );
}

#[test]
fn a_page_that_stays_bad_stays_a_hole() {
    let world = world(0);
    consumed(&world);
    assert_eq!(
        repair(&world, frame(), How::InPlace),
        Err(RepairError::StillBad)
    );
    assert!(world.is_hole(0, IPA[0]) && world.hypervisor.ras.is_bad(frame()));
    assert_eq!(world.counters().lost_pages, 1);
}

#[test]
fn what_is_not_bad_or_nobodys_is_not_repaired() {
    let world = world(0);
    let nobodys = Pa::new(0x7000_0000);
    assert_eq!(
        repair(&world, frame(), How::InPlace),
        Err(RepairError::NotPoisoned)
    );
    assert!(world.firmware.report(nobodys));
    let _ = world.sea(0, SEA, IPA[0] + K4);
    assert_eq!(
        repair(&world, nobodys, How::Spare),
        Err(RepairError::NotMapped)
    );
}

#[test]
fn a_touch_of_a_page_under_repair_is_tried_again() {
    let world = world(0);
    consumed(&world);
    let mender = &world.hypervisor.ras.mender;
    let busy = mender.begin(frame());
    let (next, cpu) = world.fault(0, FAULT, IPA[0]);
    assert_eq!((next, cpu.delivered.len()), (Next::Resume, 0));
    drop(busy);
    let (_, cpu) = world.fault(0, FAULT, IPA[0]);
    assert_eq!(cpu.delivered.len(), 1);
}

#[test]
fn a_spare_takes_the_place_of_a_page_and_an_error_in_it_is_found() {
    let world = world(2);
    consumed(&world);
    assert_eq!(repair(&world, frame(), How::Spare), Ok(Contents::Cleared));
    for vm in [0, 1] {
        assert_eq!(behind(&world, vm), (SPARES, Access::ReadWrite));
    }
    let ras = &world.hypervisor.ras;
    assert_eq!(ras.lost_pages_of(vm(1)).count(), 0, "it may forget");
    // The old frame is bad for ever, and nobody's; another report of it costs nothing.
    assert!(world.firmware.report(frame()));
    let _ = world.sea(1, SEA, DEVICE_AT[1] + 5 * K4);
    assert_eq!(behind(&world, 0).0, SPARES);
    // One of the spare costs the page.
    assert!(world.firmware.report(SPARES));
    let (_, cpu) = world.sea(0, SEA, IPA[0] + 8);
    assert_eq!(cpu.exception().far_el1, Some(super::fake::VA + IPA[0] + 8));
    assert!(world.is_hole(0, IPA[0]) && world.is_hole(1, IPA[1]));
    let lost: std::vec::Vec<_> = ras.lost_pages_of(vm(1)).map(|it| it.ipa.get()).collect();
    assert!(lost.contains(&IPA[0]));
    assert_eq!(repair(&world, SPARES, How::Spare), Ok(Contents::Cleared));
    assert_eq!(behind(&world, 0).0.get(), SPARES.get() + K4);
}

#[test]
fn bad_spares_are_passed_over_and_without_one_nothing_changes() {
    let world = world(2);
    consumed(&world);
    world.media(|media| media.poisoned.insert(SPARES.get()));
    assert_eq!(repair(&world, frame(), How::Spare), Ok(Contents::Cleared));
    assert_eq!(behind(&world, 0).0.get(), SPARES.get() + K4);
    let other = Pa::new(frame().get() + K4);
    assert!(world.firmware.report(other));
    let _ = world.sea(0, SEA, IPA[0] + K4);
    assert_eq!(repair(&world, other, How::Spare), Err(RepairError::NoSpare));
    assert!(world.is_hole(0, IPA[0] + K4));
}

#[test]
fn a_page_comes_home_when_its_own_memory_is_good_again() {
    let world = world(1);
    world.media(|media| media.heals = true);
    let before = consumed(&world);
    assert_eq!(repair(&world, frame(), How::Spare), Ok(Contents::Cleared));
    world.media(|media| media.contents.insert(SPARES.get(), 77));
    assert_eq!(repair(&world, frame(), How::InPlace), Ok(Contents::Kept));
    assert_eq!(world.media(|media| media.contents[&frame().get()]), 77);
    assert_eq!([world.census(0), world.census(1)], before);
    assert_eq!(world.hypervisor.ras.mender.spares.lock().free(), 1);
}

#[test]
fn corrected_errors_move_a_page_at_their_threshold_with_its_contents() {
    let world = world(1);
    world
        .hypervisor
        .ras
        .mender
        .corrected
        .lock()
        .policy
        .threshold = 3;
    for _ in 0..2 {
        corrected(&world, frame());
    }
    assert_eq!(behind(&world, 0).0, frame());
    corrected(&world, frame());
    for vm in [0, 1] {
        assert_eq!(behind(&world, vm), (SPARES, Access::ReadWrite));
    }
    assert_eq!(world.media(|media| media.contents[&SPARES.get()]), CONTENTS);
    let counters = world.counters();
    assert_eq!(counters.moved_pages, 1);
    assert!(world.hypervisor.ras.is_bad(frame()), "nobody gets it again");
    assert!(!world.is_hole(0, IPA[0]));
}

#[test]
fn by_policy_corrected_errors_are_told_or_ignored() {
    for action in [Action::Tell, Action::Ignore] {
        let world = world(1);
        let policy = SoftOffline {
            action,
            threshold: 1,
        };
        world.hypervisor.ras.mender.corrected.lock().policy = policy;
        corrected(&world, frame());
        assert_eq!(behind(&world, 0).0, frame());
    }
}

#[test]
fn a_page_that_cannot_be_read_to_its_end_is_contained_instead_of_moved() {
    let world = world(1);
    world
        .hypervisor
        .ras
        .mender
        .corrected
        .lock()
        .policy
        .threshold = 1;
    world.media(|media| media.poisoned.insert(frame().get()));
    corrected(&world, frame());
    assert!(world.is_hole(0, IPA[0]) && world.is_hole(1, IPA[1]));
    assert_eq!(world.counters().moved_pages, 0);
    assert_eq!(world.hypervisor.ras.mender.spares.lock().free(), 1);
}

#[test]
fn a_write_to_a_page_on_its_way_is_tried_again_and_one_to_no_such_page_is_an_error() {
    let world = world(1);
    let mender = &world.hypervisor.ras.mender;
    let (next, cpu) = world.fault(0, DENIED_WRITE, IPA[0]);
    assert_eq!(
        (next, cpu.delivered.len()),
        (Next::Resume, 0),
        "it is permitted"
    );
    let read_only = crate::stage2::Attrs {
        access: Access::ReadOnly,
        ..crate::stage2::Attrs::RAM
    };
    let mut map = world.vm(0).stage2.lock();
    let good = |_: PaRange| None;
    map.protect(Ipa::new(IPA[0]), K4, read_only, &good).unwrap();
    drop(map);
    let busy = mender.begin(frame());
    let (_, cpu) = world.fault(0, DENIED_WRITE, IPA[0]);
    assert_eq!(cpu.delivered.len(), 0);
    drop(busy);
    let (_, cpu) = world.fault(0, DENIED_WRITE, IPA[0]);
    assert_eq!(cpu.delivered.len(), 1);
}

#[test]
fn a_mapping_to_be_kept_is_left_alone_and_each_consumption_is_told() {
    let world = world(0);
    let before = world.census(0);
    assert!(
        world
            .hypervisor
            .set_policy(vm(1), Ipa::new(IPA[0]), Policy::Keep, 0)
    );
    for _ in 0..3 {
        assert!(world.firmware.report(frame()));
        let (_, cpu) = world.sea(0, SEA, IPA[0]);
        assert_eq!(cpu.delivered.len(), 1);
    }
    assert_eq!(world.census(0), before);
    assert!(
        world.is_hole(1, IPA[1]),
        "the other VM has a policy of its own"
    );
    assert!(
        world
            .hypervisor
            .set_policy(vm(1), Ipa::new(IPA[0]), Policy::Isolate, 0)
    );
    assert!(
        world.is_hole(0, IPA[0]),
        "a policy counts for what is known, too"
    );
}

#[test]
fn a_block_that_is_dropped_comes_back_around_the_page() {
    let world = world(0);
    let before = world.census(0);
    assert!(
        world
            .hypervisor
            .set_policy(vm(1), Ipa::new(IPA[0]), Policy::Refault, 0)
    );
    assert!(world.firmware.report(frame()));
    let (_, cpu) = world.sea(0, SEA, IPA[0]);
    assert_eq!(cpu.delivered.len(), 1);
    assert_eq!((world.census(0).parked, world.census(0).holes), (1, 0));
    let (next, cpu) = world.fault(0, FAULT, IPA[0] + K4);
    assert_eq!((next, cpu.delivered.len()), (Next::Resume, 0));
    assert!(world.is_mapped(0, IPA[0] + K4));
    for aborts in [0, 1] {
        let (_, cpu) = world.fault(0, FAULT, IPA[0]);
        assert_eq!(cpu.delivered.len(), aborts, "a hole first, then an abort");
    }
    assert_eq!(repair(&world, frame(), How::InPlace), Ok(Contents::Kept));
    assert_eq!(world.census(0), before);
}

#[test]
fn guests_repair_their_own_memory_by_ranges() {
    let world = world(0);
    world.media(|media| media.heals = true);
    let ram = super::fake::RAM_AT;
    let pages = [3, 4, 9].map(|at| Pa::new(super::fake::RAM[0].get() + at * K4));
    let errors = pages.map(page);
    assert!(
        world
            .firmware
            .leave(&record(Severity::Recoverable, &errors))
    );
    let _ = world.sea(0, SEA, ram + 3 * K4);
    let call = |ipa, pages, how| hypercall(&world, 0, [REPAIR, ipa, pages, how]);
    let minus = |status: i64| status.cast_unsigned();
    assert_eq!(call(ram, 3, 0)[0], minus(-6), "nothing is bad there");
    assert_eq!(call(ram, 8, 7)[0], minus(-3), "no such way");
    assert_eq!(call(0, 8, 0)[0], minus(-4));
    assert_eq!(call(ram, 8, 1)[0], minus(-8), "no spares");
    assert_eq!(call(ram, 8, 0), [0, 2, 0]);
    assert_eq!(call(ram, 16, 0), [0, 1, 0]);
    assert_eq!(world.census(0).holes, 0);
}

#[test]
fn guests_choose_the_policy_of_their_memory() {
    let world = world(0);
    let call = |vm, ipa, policy| hypercall(&world, vm, [POLICY, ipa, policy, 0])[0];
    assert_eq!(call(0, IPA[0], 2), 0);
    assert_eq!(call(0, 0, 2), (-4_i64).cast_unsigned());
    assert_eq!(call(0, IPA[0], 3), (-3_i64).cast_unsigned());
    let before = world.census(0);
    assert!(world.firmware.report(frame()));
    let _ = world.sea(0, SEA, IPA[0]);
    assert_eq!(world.census(0), before);
}

#[test]
fn a_lost_table_below_the_root_is_rebuilt_and_the_guest_notices_nothing() {
    let world = world(1);
    consumed(&world);
    assert_eq!(repair(&world, frame(), How::Spare), Ok(Contents::Cleared));
    let other = Pa::new(frame().get() + 4 * K4);
    assert!(world.firmware.report(other));
    let _ = world.sea(0, SEA, IPA[0] + 4 * K4);
    let before = world.census(0);
    let table = world.lose_split_table(0);
    assert!(world.firmware.report(table));
    let syndrome = esr::data(esr::EXTERNAL_ON_WALK_0 + 2);
    let (next, cpu) = world.sea(0, syndrome, IPA[0]);
    assert_eq!((next, cpu.delivered.len()), (Next::Resume, 0));
    assert!(!world.vm(0).is_stopped());
    assert_eq!(world.census(0), before);
    assert_eq!(
        behind(&world, 0).0,
        SPARES,
        "what was moved is where it was"
    );
    assert!(world.is_hole(0, IPA[0] + 4 * K4));
}
