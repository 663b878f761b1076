//! Tables that went bad themselves.

use super::*;
use crate::addr::PaRange;
use crate::stage2::{HoleOutcome, Level, MendOutcome, Piece, RebuildError, Rebuilt};
use std::vec::Vec;

const AHEAD: u64 = 16 * G1;
/// What is asked for: a gigabyte by one block, and 2 MiB and two pages behind it by smaller ones.
const PIECES: [(u64, u64); 2] = [(G1, G1), (2 * G1, M2 + 2 * K4)];
const BAD: u64 = G1 + 7 * M2 + 11 * K4;

fn territory(ipa: Ipa) -> Option<Piece> {
    let pieces = PIECES.iter().filter(|(at, size)| at + size > ipa.get());
    pieces.min().map(|(at, size)| Piece {
        ipa: Ipa::new(*at),
        pa: Pa::new(at + AHEAD),
        size: *size,
        attrs: Attrs::RAM,
    })
}

fn bad(range: PaRange) -> Option<Pa> {
    let page = Pa::new(BAD + AHEAD);
    range.contains(page).then_some(page)
}

/// A machine whose map has a hole at [`BAD`], and the tables on the way to it, without the root.
fn with_hole(test: impl Fn(&Memory, &mut Map<'_>, &Cpus<'_>, [Pa; 3])) {
    for strategy in STRATEGIES {
        let memory = Memory::new(FRAMES);
        let mut frames = Frames::new(FRAMES);
        let cpus = Cpus::new(&memory, vmid());
        let config = config(strategy);
        let mut map = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, 6).unwrap();
        cpus.run(map.vttbr_el2(), map.vtcr_el2(), strategy.bbm_level());
        for (at, size) in PIECES {
            map_ram(&mut map, &mut frames, at, at + AHEAD, size);
        }
        assert!(matches!(
            map.make_hole(Ipa::new(BAD)),
            Ok(HoleOutcome::Made(_))
        ));
        let tables = tables_to(&memory, &map, BAD);
        test(&memory, &mut map, &cpus, tables);
    }
}

/// The tables of levels 1 to 3 that translate `ipa`.
fn tables_to(memory: &Memory, map: &Map<'_>, ipa: u64) -> [Pa; 3] {
    use crate::stage2::TableMemory;
    let mut table = Pa::new(map.vttbr_el2() & 0xffff_ffff_f000);
    [39, 30, 21].map(|shift| {
        let at = usize::try_from(ipa >> shift & 511).unwrap();
        let raw = memory.table(table).unwrap()[at].load(core::sync::atomic::Ordering::Relaxed);
        table = Pa::new(raw & 0xffff_ffff_f000);
        table
    })
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn a_lost_table_of_any_level_below_the_root_is_rebuilt_with_its_hole() {
    for (which, level) in [(0, Level::L1), (1, Level::L2), (2, Level::L3)] {
        with_hole(|memory, map, cpus, tables| {
            let (census, leaves) = (map.census().unwrap(), cpus.settled());
            let lost = tables[which];
            memory.lose(lost);
            let got = map.rebuild(lost, &territory, &bad).unwrap();
            let Rebuilt::Table { level: at, ipa, .. } = got else {
                panic!("{got:?}");
            };
            assert_eq!(at, level);
            assert!(ipa.get() <= BAD);
            cpus.nothing_is_stale();
            assert_eq!((map.census().unwrap(), cpus.settled()), (census, leaves));
            let now = tables_to(memory, map, BAD);
            assert!(!now.contains(&lost), "the frame is retired");
        });
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn one_frame_is_retired_and_the_others_return_when_all_is_healed() {
    with_hole(|memory, map, cpus, tables| {
        memory.lose(tables[1]);
        assert_eq!(map.reserve_left(), 4);
        map.rebuild(tables[1], &territory, &bad).unwrap();
        // One for the table, one for the one below it, which was an orphan.
        assert_eq!(map.reserve_left(), 3);
        let good = |_: PaRange| None;
        let got = map.mend(Ipa::new(BAD), &good).unwrap();
        assert!(matches!(got, MendOutcome::Mended(it) if it.block == G1));
        assert_eq!(map.reserve_left(), 5);
        cpus.nothing_is_stale();
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn a_lost_frame_of_the_reserve_is_never_given_out() {
    with_hole(|memory, map, _, _| {
        let mut unused: Vec<Pa> = Vec::new();
        for at in 0..FRAMES as u64 {
            let frame = Pa::new(0x4000_3000 + at * K4);
            if map.rebuild(frame, &territory, &bad) == Ok(Rebuilt::Unused) {
                unused.push(frame);
                memory.lose(frame);
                break;
            }
        }
        assert_eq!((unused.len(), map.reserve_left()), (1, 3));
        let again = map.rebuild(unused[0], &territory, &bad);
        assert_eq!(again, Err(RebuildError::NotMine));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes; the storm goes the same way")]
fn what_cannot_be_rebuilt_is_named() {
    with_hole(|memory, map, _, tables| {
        let root = Pa::new(map.vttbr_el2() & 0xffff_ffff_f000);
        let got = map.rebuild(root, &territory, &bad);
        assert_eq!(got, Err(RebuildError::Root));
        let got = map.rebuild(Pa::new(0x1000), &territory, &bad);
        assert_eq!(got, Err(RebuildError::NotMine));
        // Nothing to build it from.
        while map.reserve_left() > 0 {
            let at = G1 + map.reserve_left() as u64 * M2;
            let _ = map.make_hole(Ipa::new(at)).unwrap();
        }
        memory.lose(tables[2]);
        let got = map.rebuild(tables[2], &territory, &bad);
        assert_eq!(got, Err(RebuildError::OutOfFrames));
    });
}
