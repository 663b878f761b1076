//! Parts of blocks with other attributes, beside holes, and over what may happen to them.

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, K4, M2, SPARES, World, esr};
use crate::addr::{Ipa, Pa, PaRange, Vmid};
use crate::console::line::Line;
use crate::devmem::Policy;
use crate::ras::cper::Severity;
use crate::ras::pipeline::tests::{page, record};
use crate::ras::spares::Spares;
use crate::stage2::{Access, Attrs, Lookup, MemoryType};
use crate::vm::exit::Next;

const SEA: u64 = esr::data(esr::EXTERNAL);
const FAULT: u64 = esr::data(esr::TRANSLATION);
const DENIED_WRITE: u64 = esr::data(esr::PERMISSION) | esr::WNR;
/// What the guest is told: EC 0x25, IL, WnR, DFSC 0x10.
const TOLD: u64 = 0x25 << 26 | 1 << 25 | 1 << 6 | 0x10;

const AT: u64 = 0x1234_5000;
const IPA: u64 = DEVICE_AT[0] + AT;
const READ_ONLY: u64 = 1;

const NO_MEMORY: u64 = (-4_i64).cast_unsigned();
const NO_ROOM: u64 = (-8_i64).cast_unsigned();
const INVALID: u64 = (-3_i64).cast_unsigned();

fn frame(ipa: u64) -> Pa {
    Pa::new(DEVICE.get() + (ipa - DEVICE_AT[0]))
}

fn call(world: &World, arguments: [u64; 4]) -> u64 {
    let mut cpu = FakeCpu::new(esr::of(0x16, 0));
    cpu.x[..4].copy_from_slice(&arguments);
    assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
    cpu.x[0]
}

fn protect(world: &World, ipa: u64, pages: u64, what: u64) -> u64 {
    call(world, [0xc600_0010, ipa, pages, what])
}

fn repair(world: &World, ipa: u64) -> u64 {
    world.media(|media| media.heals = true);
    call(world, [0xc600_0004, ipa, 1, 0])
}

fn operate(world: &World, command: &str) {
    let mut line = Line::new();
    assert!(command.bytes().all(|byte| line.push(byte)));
    world.hypervisor.operate(&line);
}

fn strike(world: &World, ipa: u64) {
    let errors = [page(frame(ipa))];
    assert!(
        world
            .firmware
            .leave(&record(Severity::Recoverable, &errors))
    );
    let (_, cpu) = world.sea(0, SEA, ipa);
    assert_eq!(cpu.delivered.len(), 1);
}

fn attrs(world: &World, ipa: u64) -> Option<Attrs> {
    match world.lookup(0, ipa) {
        Lookup::Mapped { attrs, .. } => Some(attrs),
        _ => None,
    }
}

fn access(world: &World, ipa: u64) -> Option<Access> {
    attrs(world, ipa).map(|attrs| attrs.access)
}

#[test]
fn one_page_of_a_block_is_read_only_and_the_block_is_whole_afterwards() {
    let world = World::new();
    let before = world.census(0);
    assert_eq!(protect(&world, IPA, 1, READ_ONLY), 0);
    let (here, next) = (access(&world, IPA), access(&world, IPA + K4));
    assert_eq!(
        (here, next),
        (Some(Access::ReadOnly), Some(Access::ReadWrite))
    );
    assert_eq!(world.census(0).tables, before.tables + 2);
    let (next, cpu) = world.fault(0, DENIED_WRITE, IPA + 8);
    let told = cpu.exception();
    assert_eq!((next, told.esr_el1), (Next::Resume, TOLD));
    assert_eq!(told.far_el1, Some(super::fake::VA + IPA + 8));
    let counters = world.counters();
    assert_eq!((counters.guest_aborts, counters.detected), (0, 0));
    assert_eq!(protect(&world, IPA, 1, 0), 0);
    assert_eq!(world.census(0), before);
    let (_, cpu) = world.fault(0, DENIED_WRITE, IPA + 8);
    assert_eq!(cpu.delivered.len(), 0, "it is tried again");
}

#[test]
fn another_type_and_no_execution_are_as_good() {
    let world = World::new();
    let before = world.census(0);
    assert_eq!(protect(&world, IPA & !(M2 - 1), 512, 0x102), 0);
    let expected = Attrs {
        memory: MemoryType::NormalNc,
        access: Access::ReadWrite,
        execute: false,
    };
    assert_eq!(attrs(&world, IPA), Some(expected));
    assert_eq!(world.census(0).tables, before.tables + 1);
    assert_eq!(protect(&world, IPA & !(M2 - 1), 512, 0), 0);
    assert_eq!(world.census(0), before);
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let world = World::new();
    let before = world.census(0);
    for (ipa, pages, what, status) in [
        (IPA + 1, 1, 1, INVALID),
        (IPA, 0, 1, INVALID),
        (IPA, 1 << 16, 1, INVALID),
        (IPA, 1, 4, INVALID),
        (0, 1, 1, NO_MEMORY),
        (DEVICE_AT[0] - K4, 2, 1, NO_MEMORY),
        (DEVICE_AT[0] + (1 << 30) - K4, 2, 1, NO_MEMORY),
    ] {
        assert_eq!(
            protect(&world, ipa, pages, what),
            status,
            "{ipa:#x} {pages}"
        );
    }
    assert_eq!(world.census(0), before);
    // Tables for six pages that lie apart there are not.
    let apart = |at: u64| DEVICE_AT[0] + at * 4 * M2;
    let refused = (0..6).filter(|at| protect(&world, apart(*at), 1, 1) == NO_ROOM);
    assert_eq!(refused.count(), 1);
    assert_eq!(access(&world, apart(5)), Some(Access::ReadWrite));
    for at in 0..5 {
        assert_eq!(protect(&world, apart(at), 1, 0), 0);
    }
    assert_eq!(world.census(0), before);
}

#[test]
fn a_hole_and_a_protected_page_keep_a_block_apart_until_both_are_gone() {
    for repaired_first in [true, false] {
        for protected_first in [true, false] {
            let world = World::new();
            let before = world.census(0);
            let hole = IPA + 3 * K4;
            // The range has the hole in it.
            let shield = |what| assert_eq!(protect(&world, IPA, 8, what), 0);
            if protected_first {
                shield(READ_ONLY);
                strike(&world, hole);
            } else {
                strike(&world, hole);
                shield(READ_ONLY);
            }
            assert!(world.is_hole(0, hole));
            assert_eq!(access(&world, IPA), Some(Access::ReadOnly));
            if repaired_first {
                assert_eq!(repair(&world, hole), 0);
                assert_eq!(access(&world, hole), Some(Access::ReadOnly));
                shield(0);
            } else {
                shield(0);
                assert!(world.is_hole(0, hole));
                assert_eq!(repair(&world, hole), 0);
                assert_eq!(access(&world, hole), Some(Access::ReadWrite));
            }
            assert_eq!(world.census(0), before);
        }
    }
}

#[test]
fn part_of_a_dropped_block_can_be_protected() {
    let world = World::new();
    let one = Vmid::new(1).unwrap();
    (world.hypervisor).set_policy(one, Ipa::new(IPA), Policy::Refault, 0);
    strike(&world, IPA);
    assert_eq!(world.census(0).parked, 1);
    let other = DEVICE_AT[0] + 16 * M2;
    assert_eq!(protect(&world, other + K4, 1, READ_ONLY), 0);
    assert_eq!(access(&world, other + K4), Some(Access::ReadOnly));
    let (_, cpu) = world.fault(0, FAULT, IPA + K4);
    assert_eq!(cpu.delivered.len(), 0);
    assert_eq!(access(&world, IPA + K4), Some(Access::ReadWrite));
}

#[test]
fn a_page_that_is_moved_and_a_table_that_is_lost_stay_protected() {
    let world = World::new();
    let range = PaRange::new(SPARES, 2 * K4).unwrap();
    *world.hypervisor.ras.mender.spares.lock() = Spares::new(range);
    assert_eq!(protect(&world, IPA, 1, READ_ONLY), 0);
    let hypervisor = &world.hypervisor;
    let moved = (hypervisor.ras).soft_offline(frame(IPA), 0, hypervisor, &hypervisor.platform);
    assert_eq!(moved, Ok(SPARES));
    assert_eq!(access(&world, IPA), Some(Access::ReadOnly));
    let table = world.lose_split_table(0);
    assert!(world.firmware.report(table));
    let _ = world.sea(0, esr::data(esr::EXTERNAL_ON_WALK_0 + 2), IPA);
    assert!(!world.vm(0).is_stopped());
    assert_eq!(access(&world, IPA), Some(Access::ReadOnly));
    assert_eq!(access(&world, IPA + K4), Some(Access::ReadWrite));
}

#[test]
fn a_reset_forgets_what_the_guest_did_and_not_what_the_operator_did() {
    let world = World::new();
    assert_eq!(protect(&world, IPA, 1, READ_ONLY), 0);
    let name = &world.vm(0).name;
    operate(
        &world,
        &std::format!("protect {name} {:#x} 1 read-only", IPA + K4),
    );
    assert_eq!(protect(&world, IPA + K4, 1, 0), 0, "the guest has no say");
    assert_eq!(access(&world, IPA + K4), Some(Access::ReadOnly));
    super::sharing::start_anew(&world, 0);
    assert_eq!(access(&world, IPA), Some(Access::ReadWrite));
    assert_eq!(access(&world, IPA + K4), Some(Access::ReadOnly));
    operate(
        &world,
        &std::format!("protect {name} {:#x} 1 none", IPA + K4),
    );
    assert_eq!(world.census(0).leaves(crate::stage2::Level::L1), 1);
}
