//! The set against a plain map, and the promises about its memory.

use std::collections::{BTreeMap, BTreeSet};
use std::format;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::addr::Pa;

const GIB: u64 = 1 << 30;

fn nodes(count: usize) -> Vec<PoisonedPage> {
    core::iter::repeat_with(PoisonedPage::new)
        .take(count)
        .collect()
}

fn pages(start: u64, count: u64) -> PaRange {
    PaRange::new(Pfn::new(start).pa(), count << 12).unwrap()
}

#[test]
fn a_page_is_new_once_and_known_from_then_on() {
    let mut nodes = nodes(4);
    let mut set = PoisonSet::new(&mut nodes);
    assert!(matches!(set.insert(Pfn::new(7), 1), Insert::New(p) if p.sequence() == 1));
    assert!(matches!(set.insert(Pfn::new(7), 2), Insert::Known(p) if p.sequence() == 1));
    assert_eq!(set.len(), 1);
    assert!(set.contains(Pfn::new(7)));
    assert!(!set.contains(Pfn::new(8)));
}

#[test]
fn a_full_set_says_so_and_still_knows_what_it_knew() {
    let mut nodes = nodes(2);
    let mut set = PoisonSet::new(&mut nodes);
    assert!(matches!(set.insert(Pfn::new(1), 0), Insert::New(_)));
    assert!(matches!(set.insert(Pfn::new(2), 0), Insert::New(_)));
    assert!(matches!(set.insert(Pfn::new(3), 0), Insert::Full));
    assert!(matches!(set.insert(Pfn::new(1), 0), Insert::Known(_)));
    assert_eq!((set.len(), set.capacity()), (2, 2));
    // A repaired page makes room.
    assert!(set.remove(Pfn::new(1)).is_some());
    assert!(matches!(set.insert(Pfn::new(3), 0), Insert::New(_)));
}

#[test]
fn a_set_without_memory_is_always_full() {
    let mut set = PoisonSet::new(&mut []);
    assert!(matches!(set.insert(Pfn::new(0), 0), Insert::Full));
    assert!(set.is_empty());
}

#[test]
fn a_gigabyte_is_asked_for_its_first_bad_page() {
    let mut nodes = nodes(8);
    let mut set = PoisonSet::new(&mut nodes);
    for pfn in [0x3_ffff, 0x4_0000, 0x5_1234, 0x8_0000] {
        let _ = set.insert(Pfn::new(pfn), 0);
    }
    let second = PaRange::new(Pa::new(GIB), GIB).unwrap();
    assert_eq!(set.first_in(second).map(|p| p.pfn().get()), Some(0x4_0000));
    let found: Vec<_> = set.iter_in(second).map(|p| p.pfn().get()).collect();
    assert_eq!(found, [0x4_0000, 0x5_1234]);
    assert!(
        set.first_in(PaRange::new(Pa::new(3 * GIB), GIB).unwrap())
            .is_none()
    );
    // One byte of a page is enough.
    let edge = PaRange::new(Pa::new(GIB - 1), 1).unwrap();
    assert_eq!(set.first_in(edge).map(|p| p.pfn().get()), Some(0x3_ffff));
}

#[test]
fn the_last_page_of_the_address_space_can_be_found() {
    let mut nodes = nodes(1);
    let mut set = PoisonSet::new(&mut nodes);
    let last = Pa::new(u64::MAX).pfn();
    let _ = set.insert(last, 0);
    let everything = PaRange::new(Pa::new(0), u64::MAX).unwrap();
    assert_eq!(set.first_in(everything).map(PoisonedPage::pfn), Some(last));
}

#[test]
fn a_node_counts_touches_and_keeps_the_first_walk_level() {
    let mut nodes = nodes(1);
    let mut set = PoisonSet::new(&mut nodes);
    let _ = set.insert(Pfn::new(1), 9);
    let page = set.get(Pfn::new(1)).unwrap();
    assert_eq!((page.touch(), page.touch(), page.touches()), (1, 2, 2));
    assert_eq!(page.walk_level(), None);
    for level in [2, 3] {
        page.remember_walk_level(Level::new(level).unwrap());
    }
    assert_eq!(page.walk_level(), Level::new(2));
    assert_eq!(
        set.remove(Pfn::new(1)),
        Some(Removed {
            sequence: 9,
            touches: 2
        })
    );
    // The node is used again and remembers nothing.
    let _ = set.insert(Pfn::new(2), 10);
    let page = set.get(Pfn::new(2)).unwrap();
    assert_eq!((page.touches(), page.walk_level()), (0, None));
}

#[test]
fn memory_of_a_set_that_is_gone_can_be_used_again() {
    let mut nodes = nodes(3);
    {
        let mut set = PoisonSet::new(&mut nodes);
        let _ = set.insert(Pfn::new(1), 0);
        // Not even a set that was never dropped leaves anything linked.
        core::mem::forget(set);
    }
    let mut set = PoisonSet::new(&mut nodes);
    assert!(set.is_empty());
    for pfn in 1..=3 {
        assert!(matches!(set.insert(Pfn::new(pfn), 0), Insert::New(_)));
    }
}

#[test]
fn a_set_can_be_shared_behind_a_lock() {
    fn is_sync<T: Sync>(_: &T) {}
    let mut nodes = nodes(64);
    let set = spin::Mutex::new(PoisonSet::new(&mut nodes));
    is_sync(&set);
    std::thread::scope(|scope| {
        for start in [0, 16] {
            let set = &set;
            scope.spawn(move || {
                for pfn in start..start + 32 {
                    let _ = set.lock().insert(Pfn::new(pfn), pfn);
                }
            });
        }
    });
    assert_eq!(set.lock().len(), 48);
}

#[test]
fn it_shows_as_the_addresses_it_holds() {
    let mut nodes = nodes(2);
    let mut set = PoisonSet::new(&mut nodes);
    let _ = set.insert(Pfn::new(2), 0);
    let _ = set.insert(Pfn::new(1), 0);
    assert_eq!(format!("{set:?}"), "{Pa(0x1000), Pa(0x2000)}");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u64),
    Remove(u64),
    First(u64, u64),
    Touch(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let pfn = 0u64..48;
    prop_oneof![
        3 => pfn.clone().prop_map(Step::Insert),
        2 => pfn.clone().prop_map(Step::Remove),
        2 => (pfn.clone(), 1u64..16).prop_map(|(start, count)| Step::First(start, count)),
        1 => pfn.prop_map(Step::Touch),
    ]
}

/// Something done about a page, of which there are few, by or for a VM, of which there are three.
#[derive(Clone, Copy, Debug)]
enum Shared {
    GoesBad(u64),
    /// The VM asks for it; the others of these have it as well.
    IsRepaired(u64, u8, u8),
    IsAskedFor(u64, u8),
}

fn any_shared() -> impl Strategy<Value = Shared> {
    let (pfn, vm) = (0u64..12, 1u8..4);
    prop_oneof![
        3 => pfn.clone().prop_map(Shared::GoesBad),
        2 => (pfn.clone(), vm.clone(), 0u8..8).prop_map(|(pfn, vm, who)| Shared::IsRepaired(pfn, vm, who)),
        2 => (pfn, vm).prop_map(|(pfn, vm)| Shared::IsAskedFor(pfn, vm)),
    ]
}

/// Does it to both: the model is a set of (owner, page), 0 owning what is bad.
fn share_both(set: &mut PoisonSet<'_>, model: &mut BTreeSet<(u8, u64)>, step: Shared) {
    let room = CAPACITY - model.len();
    match step {
        Shared::GoesBad(pfn) => {
            let full = matches!(set.insert(Pfn::new(pfn), 1), Insert::Full);
            assert_eq!(full, room == 0 && !model.contains(&(0, pfn)));
            if !full {
                model.insert((0, pfn));
            }
        }
        Shared::IsRepaired(pfn, own, who) => {
            let others: Vec<u8> = (1..4)
                .filter(|vm| *vm != own && who >> (vm - 1) & 1 == 1)
                .collect();
            let vms = others.iter().filter_map(|vm| Vmid::new(*vm));
            let done = set.remove_but_for(Pfn::new(pfn), vms).is_some();
            let new = others
                .iter()
                .filter(|vm| !model.contains(&(**vm, pfn)))
                .count();
            assert_eq!(done, model.contains(&(0, pfn)) && new <= room + 1);
            if done {
                model.remove(&(0, pfn));
                model.extend(others.iter().map(|vm| (*vm, pfn)));
            }
        }
        Shared::IsAskedFor(pfn, vm) => {
            let given = set
                .give_back(Vmid::new(vm).unwrap(), Pfn::new(pfn))
                .is_some();
            assert_eq!(given, model.remove(&(vm, pfn)));
        }
    }
}

const CAPACITY: usize = 20;
const STEPS: usize = if cfg!(miri) { 12 } else { 120 };

/// Does `step` to both, and compares what they say.
fn step_both(set: &mut PoisonSet<'_>, model: &mut BTreeMap<u64, (u64, u64)>, now: u64, step: Step) {
    match step {
        Step::Insert(pfn) => match set.insert(Pfn::new(pfn), now) {
            Insert::New(_) => assert!(model.insert(pfn, (now, 0)).is_none()),
            Insert::Known(page) => assert_eq!(model[&pfn].0, page.sequence()),
            Insert::Full => assert!(model.len() == CAPACITY && !model.contains_key(&pfn)),
        },
        Step::Remove(pfn) => {
            let removed = set.remove(Pfn::new(pfn)).map(|r| (r.sequence, r.touches));
            assert_eq!(removed, model.remove(&pfn));
        }
        Step::First(start, count) => {
            let found = set.first_in(pages(start, count)).map(|p| p.pfn().get());
            let expected = model
                .range(start..start + count)
                .next()
                .map(|(&pfn, _)| pfn);
            assert_eq!(found, expected);
        }
        Step::Touch(pfn) => {
            let touches = set.get(Pfn::new(pfn)).map(PoisonedPage::touch);
            let expected = model.get_mut(&pfn).map(|entry| {
                entry.1 += 1;
                entry.1
            });
            assert_eq!(touches, expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn it_behaves_as_a_bounded_map(steps in proptest::collection::vec(any_step(), 0..STEPS)) {
        let mut nodes = nodes(CAPACITY);
        let mut set = PoisonSet::new(&mut nodes);
        let mut model = BTreeMap::new();
        for (now, &step) in (0u64..).zip(&steps) {
            step_both(&mut set, &mut model, now, step);
            prop_assert_eq!(set.len(), model.len());
        }
        let held: Vec<_> = set.iter().map(|p| (p.pfn().get(), (p.sequence(), p.touches()))).collect();
        prop_assert_eq!(held, model.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_withheld_from_one_vm_is_found_for_that_one_alone(steps in proptest::collection::vec(any_shared(), 0..STEPS)) {
        let mut nodes = nodes(CAPACITY);
        let mut set = PoisonSet::new(&mut nodes);
        let mut model = BTreeSet::new();
        for &step in &steps {
            share_both(&mut set, &mut model, step);
            let bad = model.iter().filter(|(owner, _)| *owner == 0).count();
            prop_assert_eq!((set.len(), set.withheld()), (bad, model.len() - bad));
            for vm in 1u8..4 {
                for start in 0u64..12 {
                    let lost = |page: &u64| model.contains(&(0, *page)) || model.contains(&(vm, *page));
                    let expected = (start..start + 4).find(lost);
                    let vm = Vmid::new(vm).unwrap();
                    let found = set.first_for(vm, pages(start, 4)).map(|page| page.pfn().get());
                    prop_assert_eq!(found, expected);
                    prop_assert_eq!(set.get_for(vm, Pfn::new(start)).is_some(), lost(&start));
                }
            }
        }
    }
}
