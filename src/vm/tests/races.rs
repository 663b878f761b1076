//! Interleavings, tried out by a scheduler that may take the CPU away at every lock: `cargo test -p cordon --lib
//! --features model races`. The locks are those of the poison set, the sources, the filter and the VMs'
//! maps, around the code that runs on the machine. Atomics are not part of it, and no order is tried
//! out in which a lock is not involved.
//!
//! The order of a run follows from its number, so that a failure comes again.

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, K4, VA, World, esr};
use crate::addr::{Pa, PaRange};
use crate::ras::poison::Insert;
use crate::ras::repair::How;
use crate::stage2::Suspect;
use crate::vm::exit::Next;
use crate::vm::hypervisor::StopReason;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

const RUNS: usize = 1500;
/// Preemptions that a bug may need.
const DEPTH: usize = 3;
const SEED: u64 = 5;

type Step = Box<dyn FnOnce(&World) + Send>;

/// Does all `steps` at once on a new world, again and again, then looks `after`wards.
fn at_once(steps: fn() -> Vec<Step>, after: fn(&World)) {
    let play = move || {
        let world = Arc::new(World::new());
        let threads = steps().into_iter().map(|step| {
            let world = Arc::clone(&world);
            thread::spawn(move || step(&world))
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
        after(&world);
    };
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    let random = RandomScheduler::new_from_seed(SEED, RUNS);
    Runner::new(random, config.clone()).run(play);
    let few = PctScheduler::new_from_seed(SEED, DEPTH, RUNS);
    Runner::new(few, config).run(play);
}

/// A vCPU 0 consumes the page at an offset of the device that both VMs map, without a record. It must not
/// be told before its page is gone.
fn consume(vm: usize, offset: u64) -> Step {
    Box::new(move |world| {
        let ipa = DEVICE_AT[vm] + offset;
        let (next, cpu) = world.sea(vm, esr::data(esr::EXTERNAL), ipa);
        if next == Next::Resume {
            assert!(!cpu.delivered.is_empty());
            assert!(world.is_hole(vm, ipa), "told, and the page is still there");
        } else {
            assert!(world.vm(vm).is_stopped());
        }
    })
}

fn lost(world: &World) -> (u64, Vec<u64>) {
    let bad = world.hypervisor.ras.all_bad_pages();
    let offsets = bad.map(|page| page.pa.get() - DEVICE.get());
    (world.counters().lost_pages, offsets.collect())
}

fn is_gone(world: &World, offset: u64) -> bool {
    (0..2).all(|vm| world.is_hole(vm, DEVICE_AT[vm] + offset))
}

#[test]
fn two_cpus_lose_two_pages_of_one_block() {
    let steps = || std::vec![consume(0, 0), consume(1, 5 * K4)];
    at_once(steps, |world| {
        assert!(is_gone(world, 0) && is_gone(world, 5 * K4));
        assert_eq!(lost(world), (2, std::vec![0, 5 * K4]));
        for vm in 0..2 {
            // One way down for both pages: two tables more than at the start.
            assert_eq!(world.census(vm).holes, 2);
        }
    });
}

#[test]
fn two_cpus_lose_one_page_and_it_is_counted_once() {
    let steps = || std::vec![consume(0, K4), consume(1, K4)];
    at_once(steps, |world| {
        assert!(is_gone(world, K4));
        assert_eq!(lost(world), (1, std::vec![K4]));
        assert_eq!(world.counters().guest_aborts, 2);
    });
}

#[test]
fn a_record_is_taken_once_and_contained_before_anyone_is_told() {
    let steps = || {
        let report: Step = Box::new(|world| {
            assert!(world.firmware.report(Pa::new(DEVICE.get() + K4)));
            consume(0, K4)(world);
        });
        std::vec![report, consume(1, 2 * K4)]
    };
    at_once(steps, |world| {
        assert!(is_gone(world, K4) && is_gone(world, 2 * K4));
        assert_eq!(world.counters().detected, 1);
        assert!(world.firmware.is_free());
    });
}

#[test]
fn a_vm_that_is_torn_down_meanwhile_costs_the_other_nothing_but_the_page() {
    let steps = || {
        let end: Step = Box::new(|world| {
            let _ = world.hypervisor.stop(world.vm(0), StopReason::Killed);
        });
        std::vec![consume(0, K4), end, consume(1, 9 * K4)]
    };
    at_once(steps, |world| {
        assert!(world.vm(0).is_stopped() && !world.vm(1).is_stopped());
        assert!(world.is_hole(1, DEVICE_AT[1] + 9 * K4));
        assert!(!world.is_hole(1, DEVICE_AT[1]));
    });
}

#[test]
fn a_touch_a_filter_and_an_import_meet() {
    let steps = || {
        let touch: Step = Box::new(|world| {
            let mut cpu = FakeCpu::new(esr::data(esr::TRANSLATION));
            (cpu.far, cpu.hpfar) = (VA + DEVICE_AT[0], DEVICE_AT[0] >> 12 << 4);
            assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
        });
        let filter: Step = Box::new(|world| {
            world.hypervisor.add_filter("via=imported").unwrap();
            world.hypervisor.clear_filter();
        });
        let import: Step = Box::new(|world| {
            let range = PaRange::new(DEVICE, 2 * K4).unwrap();
            world.hypervisor.import_poison(&[range], 3);
        });
        std::vec![touch, filter, import, consume(1, 7 * K4)]
    };
    at_once(steps, |world| {
        assert!(is_gone(world, 7 * K4));
        // Of the two pages the filter may have caught either; what is known to be bad is gone.
        let (count, bad) = lost(world);
        assert_eq!(count, bad.len() as u64);
        assert!(bad.iter().all(|offset| is_gone(world, *offset)));
    });
}

#[test]
fn a_page_that_is_repaired_while_it_is_cut_out_is_a_hole_only_if_it_is_bad() {
    let steps = || {
        let contain: Step = Box::new(|world| {
            let range = PaRange::new(Pa::new(DEVICE.get() + K4), K4).unwrap();
            world.hypervisor.import_poison(&[range], 3);
        });
        let repair: Step = Box::new(|world| {
            let (page, hypervisor) = (Pa::new(DEVICE.get() + K4), &world.hypervisor);
            let (ras, media) = (&hypervisor.ras, &hypervisor.platform);
            let _ = ras.repair(page, How::InPlace, 2, hypervisor, media);
        });
        std::vec![contain, repair]
    };
    at_once(steps, |world| {
        let is_bad = world.hypervisor.ras.is_bad(Pa::new(DEVICE.get() + K4));
        for vm in 0..2 {
            let is_hole = world.is_hole(vm, DEVICE_AT[vm] + K4);
            assert_eq!(is_hole, is_bad, "VM {vm}");
        }
    });
}

#[test]
fn who_consumes_a_page_that_is_repaired_meanwhile_is_told_of_a_hole_or_tries_again() {
    let steps = || {
        let consume: Step = Box::new(|world| {
            assert!(world.firmware.report(Pa::new(DEVICE.get() + K4)));
            let (next, _) = world.sea(0, esr::data(esr::EXTERNAL), DEVICE_AT[0] + K4);
            assert_eq!(next, Next::Resume);
        });
        let repair: Step = Box::new(|world| {
            let (page, hypervisor) = (Pa::new(DEVICE.get() + K4), &world.hypervisor);
            let (ras, media) = (&hypervisor.ras, &hypervisor.platform);
            let _ = ras.repair(page, How::InPlace, 2, hypervisor, media);
        });
        std::vec![consume, repair]
    };
    at_once(steps, |world| {
        let is_bad = world.hypervisor.ras.is_bad(Pa::new(DEVICE.get() + K4));
        assert_eq!(world.is_hole(0, DEVICE_AT[0] + K4), is_bad);
        // One error: whatever came first, it is counted and contained once.
        let counters = world.counters();
        assert_eq!((counters.detected, counters.contained), (1, 1));
    });
}

/// The bug that containment must not have: who finds the page in the set takes it for cut.
#[test]
#[should_panic(expected = "told, and the page is still there")]
fn a_known_page_that_is_taken_for_cut_is_found_out() {
    at_once(|| std::vec![hasty_step(0), hasty_step(1)], |_| {});
}

fn hasty_step(vm: usize) -> Step {
    Box::new(move |world| {
        use crate::ras::contain::AddressSpaces;
        let hypervisor = &world.hypervisor;
        let enter = |set: &mut crate::ras::poison::PoisonSet<'_>| {
            matches!(set.insert(DEVICE.pfn(), 1), Insert::New(_))
        };
        if hypervisor.ras.with_poison(enter) {
            for mapped in hypervisor.ras.devmem.mappings_of(DEVICE) {
                let suspect = Suspect {
                    frame: DEVICE,
                    is_bad: &|| true,
                };
                let _ = hypervisor.make_hole(mapped.vm, mapped.ipa, suspect);
            }
        }
        let gone = world.is_hole(vm, DEVICE_AT[vm]);
        assert!(gone, "told, and the page is still there");
    })
}
