//! Random lives of two VMs against the plainest model: which pages are bad, which are out of whose
//! map, and how many aborts there were.

use std::collections::BTreeSet;
use std::vec::Vec;

use proptest::prelude::*;

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, K4, VA, World, esr};
use crate::addr::Pa;
use crate::stage2::Lookup;
use crate::vm::exit::Next;

/// Pages that are played with: neighbours, and ones in other 2 MiB blocks.
const PAGES: [u64; 6] = [0, 1, 2, 511, 512, 0x3_ffff];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A page goes bad.
    Poison(usize),
    /// A VM reads a page; firmware writes a record, or not, if that consumes poison.
    Access(usize, usize, bool),
    /// Firmware tells of a page again, which a corrected access of `vm` makes Cordon read.
    Repeat(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0..PAGES.len();
    prop_oneof![
        page.clone().prop_map(Step::Poison),
        (0..2_usize, page.clone(), any::<bool>())
            .prop_map(|(vm, page, r)| Step::Access(vm, page, r)),
        (0..2_usize, page).prop_map(|(vm, page)| Step::Repeat(vm, page)),
    ]
}

/// What must be true.
#[derive(Default)]
struct Model {
    bad: BTreeSet<usize>,
    /// Out of both maps: both VMs map all of the device.
    lost: BTreeSet<usize>,
    aborts: u64,
    touched: u64,
}

fn pa(page: usize) -> Pa {
    Pa::new(DEVICE.get() + PAGES[page] * K4)
}

/// Does what hardware and firmware would do when a VM reads the page; the exception it took, if any.
fn access(world: &World, model: &Model, vm: usize, page: usize, record: bool) -> Option<FakeCpu> {
    let ipa = DEVICE_AT[vm] + PAGES[page] * K4 + 0x10;
    let exit = match world.lookup(vm, ipa) {
        Lookup::Mapped { .. } if model.bad.contains(&page) => {
            if record {
                assert!(world.firmware.report(pa(page)));
            }
            world.sea(vm, esr::data(esr::EXTERNAL), ipa)
        }
        Lookup::Mapped { pa: to, .. } => {
            assert_eq!(to.get(), pa(page).get() + 0x10);
            return None;
        }
        _ => world.fault(vm, esr::data(esr::TRANSLATION), ipa),
    };
    assert_eq!(exit.0, Next::Resume);
    assert_eq!(exit.1.exception().far_el1, Some(VA + ipa));
    Some(exit.1)
}

fn take(world: &World, model: &mut Model, step: Step) {
    match step {
        Step::Poison(page) => {
            model.bad.insert(page);
        }
        Step::Access(vm, page, record) => {
            let expected = model.bad.contains(&page) || model.lost.contains(&page);
            let told = access(world, model, vm, page, record).is_some();
            assert_eq!(told, expected);
            if expected {
                model.aborts += 1;
                model.touched += u64::from(!model.lost.insert(page));
            }
        }
        Step::Repeat(vm, page) => {
            assert!(world.firmware.report(pa(page)));
            // An SError that lost nothing: only the record counts.
            let mut cpu = FakeCpu::new(esr::serror(0b110 << 10 | 0x11));
            let next = world.exit((vm, 0), &mut cpu, crate::vm::exit::Exit::serror);
            assert_eq!(next, Next::Resume);
            model.lost.insert(page);
        }
    }
}

fn check(world: &World, model: &Model) {
    for (page, offset) in PAGES.iter().enumerate() {
        for (vm, at) in DEVICE_AT.iter().enumerate() {
            let lost = model.lost.contains(&page);
            assert_eq!(world.is_hole(vm, at + offset * K4), lost);
        }
    }
    let counters = world.counters();
    assert_eq!(counters.lost_pages, model.lost.len() as u64);
    assert_eq!(counters.guest_aborts, model.aborts);
    assert_eq!(counters.touched, model.touched);
    assert_eq!(counters.overflows, 0);
    for vm in 0..2 {
        assert_eq!(world.census(vm).hole_bytes, model.lost.len() as u64 * K4);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 128 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_bad_pages_are_lost_good_ones_are_not_and_each_consumer_is_told(
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 6 } else { 24 })
    ) {
        let world = World::new();
        let mut model = Model::default();
        let steps: Vec<Step> = steps;
        for step in steps {
            take(&world, &mut model, step);
        }
        check(&world, &model);
    }
}
