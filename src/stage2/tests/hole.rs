//! Holes: what is left, what it takes, and in what order.

use super::cpus::Asked::{InvalidateIpa, InvalidateVm, Publish};
use super::*;
use crate::stage2::{Census, Hole, HoleOutcome, Level, Lookup, Suspect};
use std::vec;

/// A page in the middle of the block that `block` bytes from `block` on would be.
const BAD: u64 = 5 * G1 + 7 * M2 + 11 * K4;

fn counts(census: &Census) -> [u64; 4] {
    let [a, b, c] = [Level::L1, Level::L2, Level::L3].map(|level| census.leaves(level));
    [a, b, c, census.holes]
}

/// One leaf of `block` bytes around [`BAD`], at the same PA plus 16 GiB.
fn map_block(map: &mut Map<'_>, frames: &mut Frames, block: u64) {
    let base = BAD & !(block - 1);
    map_ram(map, frames, base, base + 16 * G1, block);
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn a_hole_in_1g_takes_two_tables_and_leaves_511_and_511() {
    for strategy in STRATEGIES {
        with_map(config(strategy), 5, |map, frames, cpus| {
            map_block(map, frames, G1);
            let tables = map.census().unwrap().tables;
            let used = frames.used();
            assert_eq!(
                map.make_hole(Ipa::new(BAD + 0x123)).unwrap(),
                HoleOutcome::Made(Hole {
                    ipa: Ipa::new(BAD),
                    pa: Pa::new(BAD + 16 * G1),
                    size: K4,
                    block: G1,
                    tables: 2,
                    reserve_left: 3,
                })
            );
            let census = map.census().unwrap();
            assert_eq!(counts(&census), [0, 511, 511, 1]);
            assert_eq!(census.tables, tables + 2);
            assert_eq!(frames.used(), used, "all of it came from the reserve");

            let leaves = cpus.settled();
            assert!(leaves.iter().all(|leaf| leaf.pa == leaf.ipa + 16 * G1));
            let mapped: u64 = leaves.iter().map(|leaf| leaf.size).sum();
            assert_eq!(mapped, G1 - K4);
            assert!(!cpus.may_reach(Ipa::new(BAD)));
            assert!(cpus.may_reach(Ipa::new(BAD - 1)));
            assert!(cpus.may_reach(Ipa::new(BAD + K4)));
        });
    }
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn a_hole_in_2m_takes_one_table_and_in_a_page_none() {
    for strategy in STRATEGIES {
        for (block, tables, left) in [(M2, 1, [0, 0, 511, 1]), (K4, 0, [0, 0, 0, 1])] {
            with_map(config(strategy), 2, |map, frames, cpus| {
                map_block(map, frames, block);
                let HoleOutcome::Made(hole) = map.make_hole(Ipa::new(BAD)).unwrap() else {
                    panic!("a page is lost, no more");
                };
                assert_eq!((hole.block, hole.tables), (block, tables));
                assert_eq!(hole.reserve_left, 2 - tables);
                assert_eq!(counts(&map.census().unwrap()), left);
                assert!(!cpus.may_reach(Ipa::new(BAD)));
            });
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn the_first_and_the_last_page_of_a_block_are_no_different() {
    for strategy in STRATEGIES {
        for bad in [5 * G1, 6 * G1 - K4] {
            with_map(config(strategy), 2, |map, frames, cpus| {
                map_block(map, frames, G1);
                let _ = map.make_hole(Ipa::new(bad)).unwrap();
                assert_eq!(counts(&map.census().unwrap()), [0, 511, 511, 1]);
                assert!(!cpus.may_reach(Ipa::new(bad)));
            });
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn a_second_hole_shares_the_tables_of_the_first() {
    for strategy in STRATEGIES {
        with_map(config(strategy), 3, |map, frames, cpus| {
            map_block(map, frames, G1);
            let _ = map.make_hole(Ipa::new(BAD)).unwrap();
            let _ = map.make_hole(Ipa::new(BAD + K4)).unwrap();
            assert_eq!(counts(&map.census().unwrap()), [0, 511, 510, 2]);
            let _ = map.make_hole(Ipa::new(BAD + M2)).unwrap();
            assert_eq!(counts(&map.census().unwrap()), [0, 510, 510 + 511, 3]);
            assert_eq!(map.reserve_left(), 0);
            for bad in [BAD, BAD + K4, BAD + M2] {
                assert!(!cpus.may_reach(Ipa::new(bad)));
            }
        });
    }
}

#[test]
fn a_hole_that_is_there_already_costs_nothing() {
    with_map(config(Strategy::BreakFirst), 4, |map, frames, cpus| {
        map_block(map, frames, G1);
        let _ = map.make_hole(Ipa::new(BAD)).unwrap();
        cpus.watch(&[]);
        assert_eq!(
            map.make_hole(Ipa::new(BAD + 8)).unwrap(),
            HoleOutcome::AlreadyPoisoned {
                ipa: Ipa::new(BAD),
                size: K4
            }
        );
        assert_eq!((cpus.steps(), map.reserve_left()), (vec![], 2));
    });
}

#[test]
fn there_is_no_hole_where_nothing_is_mapped() {
    with_map(config(Strategy::BreakFirst), 4, |map, frames, cpus| {
        map_block(map, frames, M2);
        cpus.watch(&[]);
        for ipa in [0, BAD + M2, 1 << 44, u64::MAX] {
            assert_eq!(
                map.make_hole(Ipa::new(ipa)).unwrap(),
                HoleOutcome::NotMapped
            );
        }
        assert_eq!((cpus.steps(), map.reserve_left()), (vec![], 4));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn a_spent_reserve_costs_good_memory_and_the_outcome_says_how_much() {
    for strategy in STRATEGIES {
        for (reserve, size, left) in [(1, M2, [0, 511, 0, 1]), (0, G1, [0, 0, 0, 1])] {
            with_map(config(strategy), reserve, |map, frames, cpus| {
                map_block(map, frames, G1);
                let base = BAD & !(size - 1);
                assert_eq!(
                    map.make_hole(Ipa::new(BAD)).unwrap(),
                    HoleOutcome::Coarse(Hole {
                        ipa: Ipa::new(base),
                        pa: Pa::new(base + 16 * G1),
                        size,
                        block: G1,
                        tables: reserve,
                        reserve_left: 0,
                    })
                );
                let census = map.census().unwrap();
                assert_eq!((counts(&census), census.hole_bytes), (left, size));
                for ipa in [base, BAD, base + size - 1] {
                    assert!(!cpus.may_reach(Ipa::new(ipa)));
                }
                assert_eq!(
                    map.make_hole(Ipa::new(base)).unwrap(),
                    HoleOutcome::AlreadyPoisoned {
                        ipa: Ipa::new(base),
                        size
                    }
                );
            });
        }
    }
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn a_hole_knows_the_memory_behind_it() {
    with_map(config(Strategy::BreakFirst), 4, |map, frames, _| {
        map_block(map, frames, G1);
        let _ = map.make_hole(Ipa::new(BAD)).unwrap();
        assert_eq!(
            map.lookup(Ipa::new(BAD + 0x321)).unwrap(),
            Lookup::Poisoned {
                pa: Pa::new(BAD + 16 * G1 + 0x321),
                size: K4,
                attrs: Attrs::RAM,
            }
        );
        assert_eq!(
            map.lookup(Ipa::new(BAD + K4 + 5)).unwrap(),
            Lookup::Mapped {
                pa: Pa::new(BAD + 16 * G1 + K4 + 5),
                size: K4,
                attrs: Attrs::RAM,
                level: Level::L3
            }
        );
    });
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn attributes_survive_the_split() {
    for fwb in [false, true] {
        let config = config(Strategy::BreakFirst).with_fwb(fwb);
        with_map(config, 2, |map, frames, cpus| {
            map.map(Ipa::new(0), Pa::new(0), G1, Attrs::DEVICE, frames)
                .unwrap();
            let bits = cpus.settled()[0].attributes();
            let _ = map.make_hole(Ipa::new(0)).unwrap();
            assert!(cpus.settled().iter().all(|leaf| leaf.attributes() == bits));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn a_page_that_is_not_meant_or_not_bad_any_more_stays_whatever_the_granule() {
    for granule in OTHERS.into_iter().chain([Granule::K4]) {
        let sizes = Sizes::of(granule);
        with_map(sizes.config(Strategy::BreakFirst), 3, |map, frames, _| {
            map_ram(map, frames, 0, sizes.large, sizes.large);
            // The last page of 4 KiB of a page of the granule.
            let bad = Ipa::new(3 * sizes.page - K4);
            let frame = Pa::new(sizes.large + bad.get());
            let other = Pa::new(frame.get() + sizes.page);
            let of = |frame, is_bad| Suspect { frame, is_bad };
            let not_meant = map.make_hole_of(bad, of(other, &|| true));
            assert_eq!(not_meant, Ok(HoleOutcome::NotMapped), "{granule:?}");
            let repaired = map.make_hole_of(bad, of(frame, &|| false));
            assert_eq!(repaired, Ok(HoleOutcome::InOrder), "{granule:?}");
            let dropped = map.drop_block_of(bad, of(frame, &|| false));
            assert_eq!(dropped, Ok(HoleOutcome::InOrder), "{granule:?}");
            let Ok(HoleOutcome::Made(hole)) = map.make_hole_of(bad, of(frame, &|| true)) else {
                panic!("{granule:?}: no hole");
            };
            assert_eq!((hole.ipa.get(), hole.size), (2 * sizes.page, sizes.page));
        });
    }
}

#[test]
fn break_first_is_break_invalidate_make() {
    with_map(config(Strategy::BreakFirst), 2, |map, frames, cpus| {
        map_block(map, frames, G1);
        cpus.watch(&[Ipa::new(BAD), Ipa::new(BAD + K4), Ipa::new(BAD + M2)]);
        let _ = map.make_hole(Ipa::new(BAD)).unwrap();
        let broken = vec![None, None, None];
        assert_eq!(
            cpus.steps(),
            [
                (Publish, broken.clone()),
                (InvalidateIpa(BAD, Some(Level::L1)), broken.clone()),
                (InvalidateVm, broken),
                (Publish, vec![None, Some(K4), Some(M2)]),
            ]
        );
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn swap_then_break_leaves_everything_but_the_page_mapped_throughout() {
    with_map(config(Strategy::SwapThenBreak), 2, |map, frames, cpus| {
        map_block(map, frames, G1);
        cpus.watch(&[Ipa::new(BAD), Ipa::new(BAD + K4), Ipa::new(BAD + M2)]);
        let _ = map.make_hole(Ipa::new(BAD)).unwrap();
        let swapped = vec![Some(K4), Some(K4), Some(M2)];
        let made = vec![None, Some(K4), Some(M2)];
        assert_eq!(
            cpus.steps(),
            [
                (Publish, swapped.clone()),
                (InvalidateIpa(BAD, None), swapped),
                (Publish, made.clone()),
                (InvalidateIpa(BAD, Some(Level::L3)), made.clone()),
                (InvalidateVm, made),
            ]
        );
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn mark_then_swap_lets_go_of_the_block_before_the_table_is_there() {
    with_map(config(Strategy::MarkThenSwap), 2, |map, frames, cpus| {
        map_block(map, frames, G1);
        cpus.watch(&[Ipa::new(BAD), Ipa::new(BAD + K4), Ipa::new(BAD + M2)]);
        let _ = map.make_hole(Ipa::new(BAD)).unwrap();
        let marked = vec![Some(G1); 3];
        let swapped = vec![Some(K4), Some(K4), Some(M2)];
        let made = vec![None, Some(K4), Some(M2)];
        assert_eq!(
            cpus.steps(),
            [
                (Publish, marked.clone()),
                (InvalidateIpa(BAD, Some(Level::L1)), marked.clone()),
                (InvalidateVm, marked),
                (Publish, swapped.clone()),
                (InvalidateIpa(BAD, None), swapped),
                (Publish, made.clone()),
                (InvalidateIpa(BAD, Some(Level::L3)), made.clone()),
                (InvalidateVm, made),
            ]
        );
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_single_page_is_broken_and_invalidated_with_every_strategy() {
    for strategy in STRATEGIES {
        with_map(config(strategy), 0, |map, frames, cpus| {
            map_block(map, frames, K4);
            cpus.watch(&[Ipa::new(BAD)]);
            let _ = map.make_hole(Ipa::new(BAD)).unwrap();
            assert_eq!(
                cpus.steps(),
                [
                    (Publish, vec![None]),
                    (InvalidateIpa(BAD, Some(Level::L3)), vec![None]),
                    (InvalidateVm, vec![None]),
                ]
            );
        });
    }
}
