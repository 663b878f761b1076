//! Healing: what becomes a block again, what it frees, and in what order.

use super::cpus::Asked::{InvalidateIpa, InvalidateVm, InvalidateVmAll, Publish};
use super::machine::HwLeaf;
use super::*;
use crate::addr::PaRange;
use crate::stage2::{
    Access, Census, HoleOutcome, Level, Lookup, MemoryType, MendOutcome, Mended, ProtectError,
    ReplaceError,
};
use std::vec;
use std::vec::Vec;

/// A page in the middle of the block that begins at 5G.
const BAD: u64 = 5 * G1 + 7 * M2 + 11 * K4;
/// What PAs are ahead of IPAs.
const AHEAD: u64 = 16 * G1;
const READ_ONLY: Attrs = Attrs {
    access: Access::ReadOnly,
    ..Attrs::RAM
};

/// Nothing is bad.
fn good(_: PaRange) -> Option<Pa> {
    None
}

/// The page behind this IPA, and no other.
fn only(ipa: u64) -> impl Fn(PaRange) -> Option<Pa> {
    all(vec![ipa])
}

fn all(ipas: Vec<u64>) -> impl Fn(PaRange) -> Option<Pa> {
    move |range: PaRange| {
        let pages = ipas.iter().map(|ipa| Pa::new(ipa + AHEAD));
        pages.filter(|pa| range.contains(*pa)).min()
    }
}

fn counts(census: &Census) -> [u64; 4] {
    let [a, b, c] = [Level::L1, Level::L2, Level::L3].map(|level| census.leaves(level));
    [a, b, c, census.holes]
}

/// A map of one 1G block around [`BAD`].
fn with_block<R>(
    strategy: Strategy,
    reserve: usize,
    test: impl FnOnce(&mut Map<'_>, &mut Frames, &Cpus<'_>) -> R,
) -> R {
    with_map(config(strategy), reserve, |map, frames, cpus| {
        map_ram(map, frames, 5 * G1, 5 * G1 + AHEAD, G1);
        let result = test(map, frames, cpus);
        cpus.nothing_is_stale();
        result
    })
}

fn hole(map: &mut Map<'_>, ipa: u64) {
    assert!(matches!(
        map.make_hole(Ipa::new(ipa)),
        Ok(HoleOutcome::Made(_) | HoleOutcome::Coarse(_))
    ));
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_mended_hole_leaves_the_block_and_the_reserve_as_they_were() {
    for strategy in STRATEGIES {
        with_block(strategy, 2, |map, _, cpus| {
            let before = (map.census().unwrap(), cpus.settled());
            hole(map, BAD);
            assert_eq!(map.reserve_left(), 0);
            assert_eq!(
                map.mend(Ipa::new(BAD + 5), &good).unwrap(),
                MendOutcome::Mended(Mended {
                    ipa: Ipa::new(BAD),
                    block: G1,
                    tables: 2,
                    regained: 0,
                    reserve_left: 2,
                })
            );
            assert_eq!((map.census().unwrap(), cpus.settled()), before);
            // Whoever needs the frames again gets them as good as new.
            hole(map, BAD + M2);
            assert_eq!(counts(&map.census().unwrap()), [0, 511, 511, 1]);
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn tables_heal_level_by_level_as_their_holes_are_mended() {
    for strategy in STRATEGIES {
        with_block(strategy, 3, |map, _, _| {
            let bad = [BAD, BAD + K4, BAD + 3 * M2];
            bad.iter().for_each(|ipa| hole(map, *ipa));
            let mend = |map: &mut Map<'_>, ipa, left: &[u64]| {
                let bad = all(left.to_vec());
                let MendOutcome::Mended(mended) = map.mend(Ipa::new(ipa), &bad).unwrap() else {
                    panic!("the page is good");
                };
                let counts = counts(&map.census().unwrap());
                (mended.block, mended.tables, counts)
            };
            let got = mend(map, BAD, &bad[1..]);
            assert_eq!(got, (K4, 0, [0, 510, 511 + 511, 2]));
            let got = mend(map, BAD + K4, &bad[2..]);
            assert_eq!(got, (M2, 1, [0, 511, 511, 1]));
            let got = mend(map, BAD + 3 * M2, &[]);
            assert_eq!(got, (G1, 2, [1, 0, 0, 0]));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes: 512 requests")]
fn what_was_mapped_by_pages_stays_mapped_by_pages() {
    with_map(config(Strategy::BreakFirst), 2, |map, frames, _| {
        for at in 0..512 {
            map_ram(map, frames, at * K4, at * K4, K4);
        }
        hole(map, 3 * K4);
        let got = map.mend(Ipa::new(3 * K4), &good).unwrap();
        assert!(matches!(got, MendOutcome::Mended(mended) if mended.block == K4));
        assert_eq!(counts(&map.census().unwrap()), [0, 0, 512, 0]);
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn there_is_nothing_to_mend_where_there_is_no_hole_or_the_memory_is_bad() {
    with_block(Strategy::BreakFirst, 2, |map, _, cpus| {
        hole(map, BAD);
        cpus.watch(&[]);
        for (ipa, expected) in [
            (BAD, MendOutcome::StillBad),
            (BAD + K4, MendOutcome::NoHole),
            (BAD + M2, MendOutcome::NoHole),
            (0, MendOutcome::NotMapped),
            (u64::MAX, MendOutcome::NotMapped),
        ] {
            assert_eq!(map.mend(Ipa::new(ipa), &only(BAD)).unwrap(), expected);
        }
        assert_eq!((cpus.steps(), map.reserve_left()), (vec![], 0));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn break_first_unmaps_the_block_while_its_table_is_forgotten() {
    with_block(Strategy::BreakFirst, 2, |map, _, cpus| {
        hole(map, BAD);
        cpus.watch(&[Ipa::new(BAD), Ipa::new(BAD + K4), Ipa::new(BAD + M2)]);
        let _ = map.mend(Ipa::new(BAD), &good).unwrap();
        let broken = vec![None; 3];
        assert_eq!(
            cpus.steps(),
            [
                (Publish, vec![Some(K4), Some(K4), Some(M2)]),
                (Publish, broken.clone()),
                (InvalidateVmAll, broken),
                (Publish, vec![Some(G1); 3]),
            ]
        );
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_swap_leaves_everything_mapped_while_its_table_is_forgotten() {
    with_block(Strategy::SwapThenBreak, 2, |map, _, cpus| {
        hole(map, BAD);
        cpus.watch(&[Ipa::new(BAD), Ipa::new(BAD + K4), Ipa::new(BAD + M2)]);
        let _ = map.mend(Ipa::new(BAD), &good).unwrap();
        assert_eq!(
            cpus.steps(),
            [
                (Publish, vec![Some(K4), Some(K4), Some(M2)]),
                (Publish, vec![Some(G1); 3]),
                (InvalidateVmAll, vec![Some(G1); 3]),
            ]
        );
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_coarse_hole_shrinks_when_frames_return() {
    for strategy in STRATEGIES {
        with_map(config(strategy), 2, |map, frames, _| {
            map_ram(map, frames, 5 * G1, 5 * G1 + AHEAD, 2 * G1);
            let start = map.census().unwrap();
            let far = BAD + G1;
            hole(map, BAD);
            hole(map, far);
            assert_eq!(map.census().unwrap().hole_bytes, K4 + G1);
            assert_eq!(map.coarse_holes(), 1);
            // The first one's tables are what the second one lacked.
            let MendOutcome::Mended(mended) = map.mend(Ipa::new(BAD), &only(far)).unwrap() else {
                panic!("the page is good");
            };
            assert_eq!((mended.block, mended.regained), (G1, G1 - K4));
            assert_eq!(counts(&map.census().unwrap()), [1, 511, 511, 1]);
            assert_eq!((map.coarse_holes(), map.reserve_left()), (0, 0));
            let _ = map.mend(Ipa::new(far), &good).unwrap();
            assert_eq!(map.census().unwrap(), start);
        });
    }
}

#[test]
fn a_coarse_hole_without_frames_waits_for_all_of_it_to_be_good() {
    with_block(Strategy::BreakFirst, 0, |map, _, _| {
        hole(map, BAD);
        let got = map.mend(Ipa::new(BAD + K4), &only(BAD)).unwrap();
        assert_eq!(got, MendOutcome::Waiting { size: G1 });
        let got = map.mend(Ipa::new(BAD), &good).unwrap();
        assert!(matches!(got, MendOutcome::Mended(it) if it.regained == G1 - K4));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn another_page_behind_an_ipa_stays_apart_until_the_first_one_is_back() {
    for strategy in STRATEGIES {
        with_block(strategy, 2, |map, _, cpus| {
            let (start, spare) = (map.census().unwrap(), Pa::new(40 * G1));
            hole(map, BAD);
            let size = map.replace(Ipa::new(BAD), spare, None, &only(BAD));
            assert_eq!(size, Ok(K4));
            let leaves = cpus.settled();
            let own = leaves.iter().find(|leaf| leaf.contains(BAD)).unwrap();
            assert_eq!((own.pa, own.bits), (spare.get(), leaves[0].bits));
            assert_eq!(counts(&map.census().unwrap()), [0, 511, 512, 0]);
            let home = Pa::new(BAD + AHEAD);
            let size = map.replace(Ipa::new(BAD), home, None, &good);
            assert_eq!((size, map.reserve_left()), (Ok(G1), 2));
            assert_eq!(map.census().unwrap(), start);
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_page_of_a_live_block_can_be_replaced_as_well() {
    for strategy in STRATEGIES {
        with_block(strategy, 2, |map, _, cpus| {
            let spare = Pa::new(40 * G1);
            let size = map.replace(Ipa::new(BAD), spare, Some(READ_ONLY), &good);
            assert_eq!(size, Ok(K4));
            cpus.nothing_is_stale();
            let Lookup::Mapped { pa, attrs, .. } = map.lookup(Ipa::new(BAD)).unwrap() else {
                panic!("it is mapped");
            };
            assert_eq!((pa, attrs), (spare, READ_ONLY));
        });
    }
}

#[test]
fn a_replacement_that_cannot_be_is_named_and_changes_nothing() {
    with_block(Strategy::BreakFirst, 1, |map, _, cpus| {
        let before = cpus.settled();
        let spare = Pa::new(40 * G1);
        let bad = move |range: PaRange| range.contains(spare).then_some(spare);
        for (ipa, to, error) in [
            (BAD, spare.get() + 8, ReplaceError::Unaligned),
            (BAD, 1 << 44, ReplaceError::BeyondPa),
            (BAD, spare.get(), ReplaceError::Bad(spare)),
            (BAD, 41 * G1, ReplaceError::OutOfFrames),
            (0, 41 * G1, ReplaceError::NotMapped),
        ] {
            let got = map.replace(Ipa::new(ipa), Pa::new(to), None, &bad);
            assert_eq!(got, Err(error));
        }
        assert_eq!((cpus.settled(), map.reserve_left()), (before, 1));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_page_of_1g_becomes_read_only_and_writable_again() {
    for strategy in STRATEGIES {
        with_block(strategy, 2, |map, _, cpus| {
            let start = map.census().unwrap();
            map.protect(Ipa::new(BAD), K4, READ_ONLY, &good).unwrap();
            cpus.nothing_is_stale();
            let leaves = cpus.settled();
            let (own, others): (Vec<&HwLeaf>, Vec<&HwLeaf>) =
                leaves.iter().partition(|leaf| leaf.contains(BAD));
            assert_eq!(own[0].bits, others[0].bits & !(1 << 7), "S2AP lacks write");
            assert_eq!(own[0].size, K4);
            map.protect(Ipa::new(BAD), K4, Attrs::RAM, &good).unwrap();
            assert_eq!((map.census().unwrap(), map.reserve_left()), (start, 2));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn permissions_of_a_page_change_while_it_is_mapped_and_its_type_while_it_is_not() {
    with_map(config(Strategy::BreakFirst), 2, |map, frames, cpus| {
        map_ram(map, frames, BAD, BAD + AHEAD, K4);
        let uncached = Attrs {
            memory: MemoryType::NormalNc,
            ..Attrs::RAM
        };
        cpus.watch(&[Ipa::new(BAD)]);
        map.protect(Ipa::new(BAD), K4, READ_ONLY, &good).unwrap();
        let (here, gone) = (vec![Some(K4)], vec![None]);
        let by_ipa = InvalidateIpa(BAD, Some(Level::L3));
        let invalidation = |seen: &Vec<_>| {
            let asked = [Publish, by_ipa, InvalidateVm];
            asked.map(|asked| (asked, seen.clone()))
        };
        assert_eq!(cpus.steps(), invalidation(&here));
        cpus.watch(&[Ipa::new(BAD)]);
        map.protect(Ipa::new(BAD), K4, uncached, &good).unwrap();
        let broken = invalidation(&gone);
        assert_eq!(cpus.steps()[..3], broken);
        assert_eq!(cpus.steps()[3], (Publish, here));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_range_across_blocks_is_cut_at_its_ends_only() {
    for strategy in STRATEGIES {
        with_map(config(strategy), 4, |map, frames, cpus| {
            map_ram(map, frames, 5 * G1, 5 * G1 + AHEAD, 3 * G1);
            let start = map.census().unwrap();
            let (from, size) = (6 * G1 - M2, G1 + M2 + K4);
            map.protect(Ipa::new(from), size, READ_ONLY, &good).unwrap();
            // 511 and 1 of 2M; 1G; one page, 511 of 2M and 511 pages.
            assert_eq!(counts(&map.census().unwrap()), [1, 512 + 511, 512, 0]);
            cpus.nothing_is_stale();
            map.protect(Ipa::new(from), size, Attrs::RAM, &good)
                .unwrap();
            assert_eq!((map.census().unwrap(), map.reserve_left()), (start, 4));
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_protection_that_cannot_be_is_named_and_changes_nothing() {
    with_block(Strategy::SwapThenBreak, 3, |map, _, cpus| {
        let before = cpus.settled();
        for (ipa, size, error) in [
            (BAD, 0, ProtectError::Empty),
            (BAD, 8, ProtectError::Unaligned),
            (BAD + 8, K4, ProtectError::Unaligned),
            ((1 << 44) - K4, 2 * K4, ProtectError::BeyondIpa),
            (
                6 * G1 - K4,
                2 * K4,
                ProtectError::NotMapped(Ipa::new(6 * G1)),
            ),
            // Two tables for one end, two more than there are for the other.
            (BAD, 3 * M2 + K4, ProtectError::Empty),
        ] {
            let got = map.protect(Ipa::new(ipa), size, READ_ONLY, &good);
            if size == 3 * M2 + K4 {
                assert_eq!(got, Ok(()), "three tables are enough");
                map.protect(Ipa::new(ipa), size, Attrs::RAM, &good).unwrap();
            } else {
                assert_eq!(got, Err(error));
            }
        }
        assert_eq!((cpus.settled(), map.reserve_left()), (before, 3));
    });
    with_block(Strategy::SwapThenBreak, 2, |map, _, cpus| {
        let before = cpus.settled();
        let got = map.protect(Ipa::new(BAD), 3 * M2 + K4, READ_ONLY, &good);
        assert_eq!(got, Err(ProtectError::OutOfFrames));
        assert_eq!((cpus.settled(), map.reserve_left()), (before, 2));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_dropped_block_returns_piece_by_piece_without_the_bad_page() {
    for strategy in STRATEGIES {
        with_block(strategy, 2, |map, _, cpus| {
            let start = map.census().unwrap();
            let dropped = map.drop_block(Ipa::new(BAD)).unwrap();
            let HoleOutcome::Dropped(it) = dropped else {
                panic!("{dropped:?}");
            };
            assert_eq!((it.size, it.tables, cpus.settled().len()), (G1, 0, 0));
            assert!(!cpus.may_reach(Ipa::new(BAD + M2)));
            assert_eq!(
                map.make_hole(Ipa::new(BAD)).unwrap(),
                HoleOutcome::AlreadyDropped {
                    ipa: Ipa::new(5 * G1),
                    size: G1
                }
            );
            let bad = only(BAD);
            let mut reopen = |ipa| {
                let it = map.reopen(Ipa::new(ipa), &bad).unwrap();
                it.map(|it| (it.size, it.poisoned, it.tables))
            };
            assert_eq!(reopen(BAD + M2), Some((M2, false, 1)));
            assert_eq!(reopen(BAD + M2), None);
            assert_eq!(reopen(BAD + K4), Some((K4, false, 1)));
            assert_eq!(reopen(BAD), Some((K4, true, 0)));
            assert_eq!(counts(&map.census().unwrap()), [0, 1, 1, 1]);
            // All that is good and nobody asked for counts as mapped when it is mended.
            let got = map.mend(Ipa::new(BAD), &good).unwrap();
            assert!(matches!(got, MendOutcome::Mended(it) if it.block == G1));
            assert_eq!(map.census().unwrap(), start);
        });
    }
}

#[test]
fn a_dropped_block_that_cannot_be_split_becomes_a_hole() {
    with_block(Strategy::BreakFirst, 0, |map, _, _| {
        let _ = map.drop_block(Ipa::new(BAD)).unwrap();
        let it = map.reopen(Ipa::new(BAD + M2), &only(BAD)).unwrap().unwrap();
        assert_eq!((it.size, it.poisoned), (G1, true));
        assert_eq!(map.coarse_holes(), 1);
        let _ = map.mend(Ipa::new(BAD), &good).unwrap();
        assert_eq!(counts(&map.census().unwrap()), [1, 0, 0, 0]);
    });
}
