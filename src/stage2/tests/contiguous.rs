//! Groups that CPUs may cache as one: when they are made, and that none is there when something in it changes.

use super::cpus::Asked::{InvalidateLeaves, InvalidateVm, Publish};
use super::machine::HwLeaf;
use super::*;
use crate::addr::PaRange;
use crate::stage2::{Access, HoleOutcome, Lookup, MemoryType, MendOutcome};
use std::vec;

const AHEAD: u64 = 256 * G1;
/// Entries of a group of pages, with 4K.
const GROUP: u64 = 16;

fn good(_: PaRange) -> Option<Pa> {
    None
}

fn only(pa: u64) -> impl Fn(PaRange) -> Option<Pa> {
    move |range: PaRange| range.contains(Pa::new(pa)).then_some(Pa::new(pa))
}

fn marked(cpus: &Cpus<'_>) -> usize {
    let leaves = cpus.settled();
    leaves.iter().filter(|leaf| leaf.is_contiguous()).count()
}

fn hole(map: &mut Map<'_>, ipa: u64) {
    let outcome = map.make_hole(Ipa::new(ipa)).unwrap();
    assert!(matches!(outcome, HoleOutcome::Made(_)), "{outcome:?}");
}

/// A map of one group of pages of 4 KiB at 1G.
fn with_pages<R>(
    strategy: Strategy,
    test: impl FnOnce(&mut Map<'_>, &mut Frames, &Cpus<'_>) -> R,
) -> R {
    with_map(config(strategy), 0, |map, frames, cpus| {
        map_ram(map, frames, G1, G1 + AHEAD, GROUP * K4);
        assert_eq!(marked(cpus), 16);
        let result = test(map, frames, cpus);
        cpus.nothing_is_stale();
        result
    })
}

#[test]
fn whole_groups_of_a_mapping_are_marked_and_no_others() {
    with_map(config(Strategy::BreakFirst), 0, |map, frames, cpus| {
        // From the middle of one group to the middle of another, with one between.
        map_ram(map, frames, 5 * K4, AHEAD + 5 * K4, 38 * K4);
        let leaves = cpus.settled();
        let marked = leaves.iter().filter(|leaf| leaf.is_contiguous());
        let places: std::vec::Vec<u64> = marked.map(|leaf| leaf.ipa).collect();
        let group: std::vec::Vec<u64> = (16..32).map(|at| at * K4).collect();
        assert_eq!(places, group);
        assert_eq!(map.census().unwrap().contiguous, 16);
    });
}

#[test]
fn a_group_is_aligned_in_memory_as_well() {
    with_map(config(Strategy::BreakFirst), 0, |map, frames, cpus| {
        map_ram(map, frames, 0, AHEAD + K4, 32 * K4);
        assert_eq!(marked(cpus), 0);
    });
}

#[test]
fn nothing_is_marked_where_that_is_not_wanted() {
    let config = config(Strategy::BreakFirst).with_contiguous(false);
    with_map(config, 1, |map, frames, cpus| {
        map_ram(map, frames, 0, AHEAD, 32 * K4);
        assert_eq!(marked(cpus), 0);
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the pages below go the same way")]
fn tables_of_a_split_are_groups_but_for_the_way_to_the_hole() {
    for strategy in STRATEGIES {
        with_map(config(strategy), 2, |map, frames, cpus| {
            map_ram(map, frames, G1, G1 + AHEAD, G1);
            hole(map, G1 + 7 * M2 + 11 * K4);
            assert_eq!(marked(cpus), 2 * (512 - 16));
            // Another one, in a group of its own.
            hole(map, G1 + 7 * M2 + 200 * K4);
            assert_eq!(marked(cpus), 512 - 16 + 512 - 32);
            cpus.nothing_is_stale();
        });
    }
}

#[test]
fn break_first_takes_all_of_the_group_out_for_a_moment() {
    with_pages(Strategy::BreakFirst, |map, _, cpus| {
        let bad = G1 + 3 * K4;
        cpus.watch(&[Ipa::new(bad), Ipa::new(bad + K4)]);
        hole(map, bad);
        let gone = vec![None; 2];
        let group = InvalidateLeaves(G1, 16, Level::L3);
        assert_eq!(
            cpus.steps(),
            [
                (Publish, gone.clone()),
                (group, gone.clone()),
                (InvalidateVm, gone),
                (Publish, vec![None, Some(K4)]),
            ]
        );
        assert_eq!(marked(cpus), 0);
        assert!(!cpus.may_reach(Ipa::new(bad)) && cpus.may_reach(Ipa::new(bad + K4)));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the hole above goes the same way")]
fn with_bbm_level_2_the_others_of_the_group_stay() {
    with_pages(Strategy::SwapThenBreak, |map, _, cpus| {
        let bad = G1 + 3 * K4;
        cpus.watch(&[Ipa::new(bad), Ipa::new(bad + K4)]);
        hole(map, bad);
        let made = vec![None, Some(K4)];
        assert_eq!(
            cpus.steps(),
            [
                (Publish, made.clone()),
                (InvalidateLeaves(G1, 16, Level::L3), made.clone()),
                (InvalidateVm, made),
            ]
        );
        assert_eq!(marked(cpus), 0);
        assert!(!cpus.may_reach(Ipa::new(bad)) && cpus.may_reach(Ipa::new(bad + K4)));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the holes above go the same way")]
fn what_heals_is_a_group_again() {
    for strategy in STRATEGIES {
        with_pages(strategy, |map, _, cpus| {
            let before = cpus.settled();
            let bad = [G1 + 3 * K4, G1 + 9 * K4];
            bad.iter().for_each(|ipa| hole(map, *ipa));
            let _ = map.mend(Ipa::new(bad[0]), &only(bad[1] + AHEAD)).unwrap();
            assert_eq!(marked(cpus), 0);
            let _ = map.mend(Ipa::new(bad[1]), &good).unwrap();
            assert_eq!(cpus.settled(), before);
            // And may be struck again.
            hole(map, bad[0]);
            assert!(!cpus.may_reach(Ipa::new(bad[0])));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the holes above go the same way")]
fn a_page_of_a_group_can_be_protected_and_replaced() {
    let changed = |attrs: Attrs| {
        for strategy in STRATEGIES {
            with_pages(strategy, |map, _, cpus| {
                let (before, at) = (cpus.settled(), Ipa::new(G1 + 3 * K4));
                map.protect(at, K4, attrs, &good).unwrap();
                cpus.nothing_is_stale();
                assert_eq!(marked(cpus), 0);
                let found = map.lookup(at).unwrap();
                assert!(matches!(found, Lookup::Mapped { attrs: got, .. } if got == attrs));
                map.protect(at, K4, Attrs::RAM, &good).unwrap();
                assert_eq!(cpus.settled(), before);

                let spare = Pa::new(900 * G1);
                map.replace(at, spare, Some(attrs), &good).unwrap();
                cpus.nothing_is_stale();
                assert_eq!(marked(cpus), 0);
                let home = Pa::new(at.get() + AHEAD);
                map.replace(at, home, Some(Attrs::RAM), &good).unwrap();
                assert_eq!(cpus.settled(), before);
            });
        }
    };
    changed(Attrs {
        access: Access::ReadOnly,
        ..Attrs::RAM
    });
    changed(Attrs {
        memory: MemoryType::NormalNc,
        ..Attrs::RAM
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the hole above goes the same way")]
fn all_of_a_group_can_be_protected_and_is_one_again() {
    let read_only = Attrs {
        access: Access::ReadOnly,
        ..Attrs::RAM
    };
    for strategy in STRATEGIES {
        with_pages(strategy, |map, _, cpus| {
            map.protect(Ipa::new(G1), GROUP * K4, read_only, &good)
                .unwrap();
            assert_eq!(marked(cpus), 16);
            let writable = |leaf: &HwLeaf| leaf.bits & 1 << 7 != 0;
            assert!(!cpus.settled().iter().any(writable));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the holes above go the same way")]
fn a_page_of_a_group_can_be_dropped() {
    for strategy in STRATEGIES {
        with_pages(strategy, |map, _, cpus| {
            let bad = G1 + 3 * K4;
            let _ = map.drop_block(Ipa::new(bad)).unwrap();
            assert_eq!(marked(cpus), 0);
            assert!(!cpus.may_reach(Ipa::new(bad)));
        });
    }
}

/// One group of blocks and one of pages, for each granule: holes, and back.
#[test]
#[cfg_attr(miri, ignore = "takes minutes; the pages above go the same way")]
fn groups_of_every_granule_and_level_survive_a_hole_and_its_repair() {
    for (granule, blocks, pages) in [
        (Granule::K4, 16, 16),
        (Granule::K16, 32, 128),
        (Granule::K64, 32, 32),
    ] {
        for strategy in STRATEGIES {
            let sizes = Sizes::of(granule);
            with_map(sizes.config(strategy), 1, |map, frames, cpus| {
                let (block, page) = (sizes.block, sizes.page);
                let far = 64 * block;
                map_ram(map, frames, 0, AHEAD, blocks * block);
                map_ram(map, frames, far, AHEAD + far, pages * page);
                let before = cpus.settled();
                assert!(before.iter().all(HwLeaf::is_contiguous));
                for bad in [5 * block + 7 * page, far + 3 * page] {
                    hole(map, bad);
                    cpus.nothing_is_stale();
                    assert!(!cpus.may_reach(Ipa::new(bad)));
                    assert!(cpus.may_reach(Ipa::new(bad + page)));
                    let mended = map.mend(Ipa::new(bad), &good).unwrap();
                    assert!(matches!(mended, MendOutcome::Mended(_)));
                    assert_eq!(cpus.settled(), before);
                }
            });
        }
    }
}

/// A CPU may have cached the leaves of a group each by itself, as ones of a group, and may hold them after one of them
/// has changed.
#[test]
#[cfg_attr(miri, ignore = "takes minutes; the pages above go the same way")]
fn what_was_in_a_group_can_change_after_another_has() {
    let read_only = Attrs {
        access: Access::ReadOnly,
        ..Attrs::RAM
    };
    for strategy in STRATEGIES {
        // Blocks: one is split for an edge, the next one is in the range.
        with_map(config(strategy), 1, |map, frames, cpus| {
            map_ram(map, frames, 0, AHEAD, GROUP * M2);
            map.protect(Ipa::new(M2 - K4), M2 + K4, read_only, &good)
                .unwrap();
            cpus.nothing_is_stale();
        });
        // Pages: one is a hole.
        with_map(config(strategy), 0, |map, frames, cpus| {
            map_ram(map, frames, 0, AHEAD, GROUP * K4);
            hole(map, 3 * K4);
            map.protect(Ipa::new(5 * K4), K4, read_only, &only(AHEAD + 3 * K4))
                .unwrap();
            cpus.nothing_is_stale();
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the pages above go the same way")]
fn a_block_of_a_group_can_be_dropped_and_comes_back() {
    for strategy in STRATEGIES {
        with_map(config(strategy), 1, |map, frames, cpus| {
            map_ram(map, frames, 0, AHEAD, GROUP * M2);
            let before = cpus.settled();
            let bad = 5 * M2 + K4;
            let _ = map.drop_block(Ipa::new(bad)).unwrap();
            cpus.nothing_is_stale();
            assert!(!cpus.may_reach(Ipa::new(5 * M2)) && cpus.may_reach(Ipa::new(6 * M2)));
            let _ = map.reopen(Ipa::new(bad), &only(bad + AHEAD)).unwrap();
            let _ = map.mend(Ipa::new(bad), &good).unwrap();
            assert_eq!(cpus.settled(), before);
        });
    }
}
