//! Poison that Cordon itself meets while it loads a VM's files anew.

use std::vec::Vec;

use crate::addr::{Pa, PaRange};
use crate::ras::event::Stage;
use crate::vm::hypervisor::StopReason;
use crate::vm::vcpu::Power;

use super::fake::{DEVICE, IMAGE_SIZE, K4, RAM, RAM_AT, World};

/// Resets VM 0 with `bad` of its memory gone bad, and lets Cordon load it.
fn reload(world: &World, bad: &[(Pa, bool)]) {
    let hypervisor = &world.hypervisor;
    *hypervisor.platform.bad.lock().unwrap() = bad.to_vec();
    let vm = world.vm(0);
    hypervisor.reset(vm);
    vm.vcpus.iter().for_each(|vcpu| vcpu.turn_off());
    hypervisor.platform.loads.lock().unwrap().clear();
    hypervisor.settle(vm);
}

fn page(number: u64) -> Pa {
    Pa::new(RAM[0].get() + number * K4)
}

fn last_loads(world: &World, count: usize) -> Vec<(u64, u64)> {
    let loads = world.hypervisor.platform.loads.lock().unwrap();
    let from = loads.len() - count;
    let pair = |range: &PaRange| (range.start().get() - RAM[0].get(), range.size());
    loads[from..].iter().map(pair).collect()
}

#[test]
fn the_page_becomes_a_hole_and_the_vm_runs_without_it() {
    let world = World::new();
    assert!(world.firmware.report(page(1)));
    reload(&world, &[(Pa::new(page(1).get() + 0x40), true)]);
    assert!(world.is_hole(0, RAM_AT + K4));
    assert!(world.firmware.is_free(), "the record was taken");
    assert_eq!(last_loads(&world, 2), [(0, K4), (2 * K4, 2 * K4)]);
    assert!(!world.vm(0).is_stopped());
    assert_eq!(world.vm(0).vcpus[0].power(), Power::OnPending);
    let stages = world.stages.take();
    assert_eq!(stages, [Stage::Detected, Stage::Contained { pages: 1 }]);
}

#[test]
fn without_a_record_the_address_of_the_abort_has_to_do() {
    let world = World::new();
    reload(&world, &[(page(3), true)]);
    assert!(world.is_hole(0, RAM_AT + 3 * K4));
    assert!(!world.vm(0).is_stopped());
    let stages = world.stages.take();
    assert_eq!(stages, [Stage::NoRecord, Stage::Contained { pages: 1 }]);
}

#[test]
fn without_an_address_the_record_has_to_do() {
    let world = World::new();
    assert!(world.firmware.report(page(2)));
    reload(&world, &[(page(2), false)]);
    assert!(world.is_hole(0, RAM_AT + 2 * K4));
    assert!(!world.vm(0).is_stopped());
}

#[test]
fn with_neither_the_vm_ends_and_nobody_else() {
    let world = World::new();
    reload(&world, &[(page(2), false)]);
    assert!(world.vm(0).is_stopped());
    assert!(!world.vm(1).is_stopped());
}

#[test]
fn several_pages_are_lost_one_after_the_other_until_none_is_left() {
    let world = World::new();
    let all = [0, 1, 2, 3].map(|number| (page(number), true));
    reload(&world, &all);
    for number in 0..IMAGE_SIZE / K4 {
        assert!(world.is_hole(0, RAM_AT + number * K4));
    }
    assert!(!world.vm(0).is_stopped());
}

#[test]
fn a_record_of_other_memory_does_not_pass_for_the_one_of_this_page() {
    let world = World::new();
    assert!(world.firmware.report(DEVICE));
    reload(&world, &[(page(1), false)]);
    assert!(world.vm(0).is_stopped(), "the page that aborts is unknown");
    let _ = world.hypervisor.stop(world.vm(1), StopReason::Off);
}
