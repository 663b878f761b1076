//! Mapping: sizes, refusals, and what they leave behind.

use super::*;
use crate::stage2::{Census, Level, Lookup, MapError, TableMemory};
use core::sync::atomic::Ordering;
use std::vec::Vec;

fn counts(census: &Census) -> [u64; 3] {
    [Level::L1, Level::L2, Level::L3].map(|level| census.leaves(level))
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn congruent_addresses_get_the_largest_blocks_and_small_ones_at_the_ends_only() {
    with_map(config(Strategy::BreakFirst), 0, |map, frames, cpus| {
        let before = M2 + K4;
        let after = 3 * M2 + 2 * K4;
        let ipa = 4 * G1 - before;
        map_ram(map, frames, ipa, 12 * G1 - before, before + 2 * G1 + after);

        assert_eq!(counts(&map.census().unwrap()), [2, 1 + 3, 1 + 2]);
        let leaves = cpus.settled();
        assert_eq!(leaves.first().unwrap().ipa, ipa);
        assert_eq!(leaves.last().unwrap().end(), 6 * G1 + after);
        assert!(leaves.iter().all(|leaf| leaf.pa == leaf.ipa + 8 * G1));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn blocks_are_no_larger_than_the_offset_between_the_addresses_allows() {
    with_map(config(Strategy::BreakFirst), 0, |map, frames, _| {
        map_ram(map, frames, 0, M2, 8 * M2);
        map_ram(map, frames, G1, 2 * G1 + K4, M2);
        assert_eq!(counts(&map.census().unwrap()), [0, 8, 512]);
    });
}

#[test]
fn a_terabyte_takes_1024_blocks_and_two_tables_below_the_root() {
    with_map(config(Strategy::BreakFirst), 0, |map, frames, _| {
        map_ram(map, frames, 1 << 40, 0, 1 << 40);
        let census = map.census().unwrap();
        assert_eq!((counts(&census), census.tables), ([1024, 0, 0], 3));
    });
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn a_map_spans_concatenated_roots() {
    let config = Config::new(3).unwrap(); // 42 bits: 8 tables at level 1
    with_map(config, 0, |map, frames, cpus| {
        let top = 1 << 42;
        map_ram(map, frames, (512 << 30) - G1, 0, 2 * G1);
        map_ram(map, frames, top - M2, 0, M2);
        assert_eq!(cpus.settled().len(), 3);
        assert_eq!(map.census().unwrap().tables, 8 + 1);
        assert_eq!(
            map.lookup(Ipa::new(top - 1)).unwrap(),
            Lookup::Mapped {
                pa: Pa::new(M2 - 1),
                size: M2,
                attrs: Attrs::RAM,
                level: Level::L2
            }
        );
    });
}

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn attributes_reach_hardware_in_the_encoding_that_the_cpu_uses() {
    for (fwb, mem_attr) in [(false, 0b1111), (true, 0b0110)] {
        with_map(
            config(Strategy::BreakFirst).with_fwb(fwb),
            0,
            |map, frames, cpus| {
                map_ram(map, frames, 0, 0, K4);
                assert_eq!(cpus.settled()[0].bits >> 2 & 0xf, mem_attr);
            },
        );
    }
}

#[test]
fn an_overlap_is_refused_where_it_begins_and_changes_nothing() {
    with_map(config(Strategy::BreakFirst), 0, |map, frames, cpus| {
        map_ram(map, frames, G1 + M2, 0, M2);
        let (before, used) = (cpus.settled(), frames.used());
        for (ipa, size) in [(0, 4 * G1), (G1 + M2 - K4, 2 * K4), (G1 + M2, M2), (G1, G1)] {
            let got = map.map(Ipa::new(ipa), Pa::new(ipa), size, Attrs::RAM, frames);
            assert_eq!(got, Err(MapError::Overlap(Ipa::new(G1 + M2))));
        }
        let inside = G1 + M2 + 5 * K4;
        let got = map.map(Ipa::new(inside), Pa::new(0), K4, Attrs::RAM, frames);
        assert_eq!(got, Err(MapError::Overlap(Ipa::new(inside))));
        assert_eq!((cpus.settled(), frames.used()), (before, used));
    });
}

#[test]
fn a_hole_is_never_mapped_over() {
    with_map(config(Strategy::BreakFirst), 2, |map, frames, _| {
        map_ram(map, frames, 0, 0, K4);
        let _ = map.make_hole(Ipa::new(0)).unwrap();
        let got = map.map(Ipa::new(0), Pa::new(8 * K4), K4, Attrs::RAM, frames);
        assert_eq!(got, Err(MapError::Poisoned(Ipa::new(0))));
    });
}

#[test]
#[cfg_attr(miri, ignore = "takes minutes, and nothing that the others do not do")]
fn running_out_of_frames_maps_nothing_and_a_second_attempt_succeeds() {
    // From K4 to 2G - K4: two tables of level 2, two of level 3, all below one of level 1.
    let request = |map: &mut Map<'_>, frames: &mut Frames| {
        map.map(
            Ipa::new(K4),
            Pa::new(K4),
            2 * G1 - 2 * K4,
            Attrs::RAM,
            frames,
        )
    };
    for short in 0..5 {
        with_map(config(Strategy::BreakFirst), 0, |map, frames, cpus| {
            frames.limit(short);
            assert_eq!(request(map, frames), Err(MapError::OutOfFrames));
            assert_eq!(cpus.settled(), Vec::new());
            frames.limit(5 - short);
            request(map, frames).unwrap();
            assert_eq!(counts(&map.census().unwrap()), [0, 1022, 1022]);
        });
    }
}

#[test]
fn requests_that_make_no_sense_are_named() {
    with_map(config(Strategy::BreakFirst), 0, |map, frames, cpus| {
        let top = 1 << 44;
        for (ipa, pa, size, error) in [
            (0, 0, 0, MapError::Empty),
            (1, 0, K4, MapError::Unaligned),
            (0, 0x800, K4, MapError::Unaligned),
            (0, 0, K4 + 1, MapError::Unaligned),
            (top, 0, K4, MapError::BeyondIpa),
            (top - K4, 0, 2 * K4, MapError::BeyondIpa),
            (u64::MAX - 0xfff, 0, 2 * K4, MapError::BeyondIpa),
            (0, top, K4, MapError::BeyondPa),
            (0, u64::MAX - 0xfff, 2 * K4, MapError::BeyondPa),
        ] {
            let got = map.map(Ipa::new(ipa), Pa::new(pa), size, Attrs::RAM, frames);
            assert_eq!(got, Err(error), "{ipa:#x} {pa:#x} {size:#x}");
        }
        map_ram(map, frames, top - K4, top - K4, K4);
        assert_eq!(cpus.settled().len(), 1);
    });
}

#[test]
fn a_damaged_tree_is_an_error_and_not_a_crash() {
    let memory = Memory::new(16);
    let mut frames = Frames::new(16);
    let cpus = Cpus::new(&memory, vmid());
    let config = config(Strategy::BreakFirst);
    let mut map = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, 2).unwrap();
    map.map(Ipa::new(0), Pa::new(0), K4, Attrs::RAM, &mut frames)
        .unwrap();
    let root = Pa::new(map.vttbr_el2() & 0xffff_ffff_f000);
    memory.lose(root);
    let damage = map.lookup(Ipa::new(0)).unwrap_err();
    assert_eq!((damage.table, damage.level), (root, Level::L0));
    assert_eq!(map.make_hole(Ipa::new(0)), Err(damage));
    assert_eq!(map.census(), Err(damage));
    let got = map.map(Ipa::new(G1), Pa::new(0), K4, Attrs::RAM, &mut frames);
    assert_eq!(got, Err(MapError::Damaged(damage)));
    assert_eq!(map.reserve_left(), 2);
}

#[test]
fn an_entry_that_was_never_written_is_damage_and_not_a_vacancy() {
    let memory = Memory::new(8);
    let mut frames = Frames::new(8);
    let cpus = Cpus::new(&memory, vmid());
    let config = config(Strategy::BreakFirst);
    let mut map = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, 2).unwrap();
    let root = Pa::new(map.vttbr_el2() & 0xffff_ffff_f000);
    let word = &memory.table(root).unwrap()[0];
    for rubbish in [0x7fd, 1 << 20, !0b10] {
        word.store(rubbish, Ordering::Relaxed);
        let damage = map.lookup(Ipa::new(K4)).unwrap_err();
        assert_eq!((damage.table, damage.level), (root, Level::L0));
        assert_eq!(map.make_hole(Ipa::new(K4)), Err(damage));
        assert_eq!(map.census().unwrap().unknown, 1);
        let got = map.map(Ipa::new(0), Pa::new(0), K4, Attrs::RAM, &mut frames);
        assert_eq!(got, Err(MapError::Overlap(Ipa::new(0))));
        assert_eq!(word.load(Ordering::Relaxed), rubbish);
    }
}
