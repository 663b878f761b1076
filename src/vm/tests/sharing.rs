//! Memory that two VMs have: one error is found in both, and a repair is for who has asked for it.

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, K4, M2, World, esr};
use crate::addr::{Ipa, Pa, PaRange, Vmid};
use crate::devmem::Policy;
use crate::ras::cper::Severity;
use crate::ras::pipeline::tests::{page, record};
use crate::ras::spares::Spares;
use crate::vm::exit::{Arrived, Next};
use crate::vm::hypervisor::State;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

const SEA: u64 = esr::data(esr::EXTERNAL);
const FAULT: u64 = esr::data(esr::TRANSLATION);
const REPAIR: u64 = 0xc600_0004;
const QUERY: u64 = 0xc600_0002;
const NOT_BAD: u64 = (-6_i64).cast_unsigned();
const DENIED: u64 = (-5_i64).cast_unsigned();

/// Pages, each in a 2 MiB block of its own: more than the reserves have tables for.
const PAGES: u64 = 8;

fn offset(page: u64) -> u64 {
    page * M2 + 3 * K4
}

fn frame(page: u64) -> Pa {
    Pa::new(DEVICE.get() + offset(page))
}

fn ipa(vm: usize, page: u64) -> u64 {
    DEVICE_AT[vm] + offset(page)
}

fn call(world: &World, vm: usize, arguments: [u64; 4]) -> [u64; 3] {
    let mut cpu = FakeCpu::new(esr::of(0x16, 0));
    cpu.x[..4].copy_from_slice(&arguments);
    assert_eq!(world.synchronous(vm, &mut cpu), Next::Resume);
    [cpu.x[0], cpu.x[1], cpu.x[2]]
}

fn repair(world: &World, vm: usize, at: u64) -> [u64; 3] {
    call(world, vm, [REPAIR, ipa(vm, at), 1, 0])
}

fn world() -> World {
    let world = World::new();
    world.media(|media| media.heals = true);
    world
}

/// The page goes bad, and `vm` consumes it.
fn strike(world: &World, vm: usize, at: u64) {
    let errors = [page(frame(at))];
    assert!(
        world
            .firmware
            .leave(&record(Severity::Recoverable, &errors))
    );
    let (next, cpu) = world.sea(vm, SEA, ipa(vm, at));
    assert_eq!((next, cpu.delivered.len()), (Next::Resume, 1));
}

/// Whether a touch of the page gives the guest an abort, at its own address.
fn aborts(world: &World, vm: usize, at: u64) -> bool {
    let (next, cpu) = world.fault(vm, FAULT, ipa(vm, at));
    assert_eq!(next, Next::Resume);
    let far = super::fake::VA + ipa(vm, at);
    !cpu.delivered.is_empty() && cpu.exception().far_el1 == Some(far)
}

/// The VM is reset, and all its vCPUs find out.
pub(super) fn start_anew(world: &World, vm: usize) {
    assert!(world.hypervisor.reset(world.vm(vm)));
    for vcpu in 0..world.vm(vm).vcpus.len() {
        let next = world.exit((vm, vcpu), &mut FakeCpu::new(0), |exit| {
            exit.interrupt(Arrived::default())
        });
        assert_eq!(next, Next::Park);
    }
    assert_eq!(world.vm(vm).state(), State::Running);
}

#[test]
fn one_error_is_a_hole_in_both_and_each_is_told_its_own_address() {
    let world = world();
    strike(&world, 0, 0);
    assert!(aborts(&world, 0, 0) && aborts(&world, 1, 0));
    assert_eq!(world.counters().lost_pages, 1);
}

#[test]
fn a_repair_is_for_who_asked_and_the_other_has_it_back_when_it_asks() {
    let world = world();
    strike(&world, 0, 0);
    world.media(|media| media.contents.insert(frame(0).get(), 7));
    assert_eq!(repair(&world, 0, 0), [0, 1, 0]);
    assert!(world.is_mapped(0, ipa(0, 0)) && world.is_hole(1, ipa(1, 0)));
    assert!(aborts(&world, 1, 0), "it has not asked");
    assert_eq!(call(&world, 1, [QUERY, ipa(1, 0), 1, 0]), [0, 1, ipa(1, 0)]);
    // The first one writes; the second one's asking must not take that away.
    world.media(|media| {
        (media.heals, media.clears) = (false, true);
        media.contents.insert(frame(0).get(), 8)
    });
    assert_eq!(repair(&world, 1, 0), [0, 1, 0]);
    assert_eq!(world.media(|media| media.contents[&frame(0).get()]), 8);
    assert!(world.is_mapped(1, ipa(1, 0)));
    assert_eq!(repair(&world, 1, 0)[0], NOT_BAD);
    let counters = world.counters();
    assert_eq!((counters.lost_pages, counters.repaired_pages), (0, 1));
}

#[test]
fn what_another_would_notice_is_refused() {
    let world = world();
    *world.hypervisor.ras.mender.spares.lock() =
        Spares::new(PaRange::new(super::fake::SPARES, 2 * K4).unwrap());
    strike(&world, 0, 0);
    let spare = [REPAIR, ipa(0, 0), 1, 1];
    assert_eq!(call(&world, 0, spare)[0], DENIED, "it would part them");
    let two = Vmid::new(2).unwrap();
    (world.hypervisor).set_policy(two, Ipa::new(ipa(1, 0)), Policy::Keep, 0);
    assert_eq!(repair(&world, 0, 0)[0], DENIED, "it would see the change");
    assert!(world.is_hole(0, ipa(0, 0)));
    (world.hypervisor).set_policy(two, Ipa::new(ipa(1, 0)), Policy::Isolate, 0);
    assert_eq!(repair(&world, 0, 0), [0, 1, 0]);
}

#[test]
fn what_is_withheld_stays_so_over_a_reset() {
    let world = world();
    strike(&world, 0, 0);
    assert_eq!(repair(&world, 0, 0), [0, 1, 0]);
    start_anew(&world, 1);
    assert!(world.is_hole(1, ipa(1, 0)));
    assert_eq!(repair(&world, 1, 0), [0, 1, 0]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Strike(usize, u64),
    Touch(usize, u64),
    Repair(usize, u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let (vm, page) = (0usize..2, 0..PAGES);
    prop_oneof![
        2 => (vm.clone(), page.clone()).prop_map(|(vm, page)| Step::Strike(vm, page)),
        1 => (vm.clone(), page.clone()).prop_map(|(vm, page)| Step::Touch(vm, page)),
        2 => (vm, page).prop_map(|(vm, page)| Step::Repair(vm, page)),
    ]
}

/// What the rules say, in so many words: which pages are bad, and which are withheld from whom.
#[derive(Default)]
struct Model {
    bad: BTreeSet<u64>,
    withheld: BTreeSet<(usize, u64)>,
}

impl Model {
    fn has_lost(&self, vm: usize, page: u64) -> bool {
        self.bad.contains(&page) || self.withheld.contains(&(vm, page))
    }

    /// Whether there was anything to repair.
    fn repair(&mut self, vm: usize, page: u64) -> bool {
        let lost = self.has_lost(vm, page);
        if self.bad.remove(&page) {
            self.withheld.insert((1 - vm, page));
        }
        self.withheld.remove(&(vm, page));
        lost
    }
}

fn check(world: &World, model: &Model) {
    let ras = &world.hypervisor.ras;
    for vm in [0, 1] {
        for page in 0..PAGES {
            let lost = model.has_lost(vm, page);
            assert_eq!(
                world.is_hole(vm, ipa(vm, page)),
                lost,
                "vm {vm} page {page}"
            );
        }
        let vmid = Vmid::new(vm as u8 + 1).unwrap();
        let mut said: Vec<u64> = ras.lost_pages_of(vmid).map(|lost| lost.ipa.get()).collect();
        said.sort_unstable();
        let own = (0..PAGES).filter(|page| model.has_lost(vm, *page));
        let expected: Vec<u64> = own.map(|page| ipa(vm, page)).collect();
        assert_eq!(said, expected);
    }
    let bad: Vec<Pa> = ras.all_bad_pages().map(|page| page.pa).collect();
    let expected: Vec<Pa> = model.bad.iter().map(|page| frame(*page)).collect();
    assert_eq!(bad, expected);
    assert_eq!(ras.withheld(), model.withheld.len());
    assert_eq!(world.counters().lost_pages, model.bad.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 96 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn who_has_lost_what_is_as_simple_as_the_rules(steps in prop::collection::vec(any_step(), 0..40)) {
        let (world, mut model) = (world(), Model::default());
        for step in steps {
            match step {
                // What a VM has lost it cannot consume.
                Step::Strike(vm, page) if !model.has_lost(vm, page) => {
                    strike(&world, vm, page);
                    model.bad.insert(page);
                }
                Step::Strike(..) => {}
                Step::Touch(vm, page) => {
                    prop_assert_eq!(aborts(&world, vm, page), model.has_lost(vm, page));
                }
                Step::Repair(vm, page) => {
                    let expected = if model.repair(vm, page) { 0 } else { NOT_BAD };
                    prop_assert_eq!(repair(&world, vm, page)[0], expected);
                }
            }
            check(&world, &model);
        }
    }
}
