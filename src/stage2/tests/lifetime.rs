//! Building, listing and taking apart.

use super::cpus::Asked::InvalidateVmAll;
use super::*;
use crate::stage2::{BuildError, Extent, ExtentKind};
use std::vec;
use std::vec::Vec;

#[test]
#[cfg_attr(
    miri,
    ignore = "takes half a minute, and nothing that the others do not do"
)]
fn extents_join_what_continues_and_come_in_order() {
    with_map(config(Strategy::BreakFirst), 2, |map, frames, _| {
        map_ram(map, frames, G1, 9 * G1, 2 * G1);
        map_ram(map, frames, 3 * G1, 7 * G1, G1);
        let bad = 2 * G1 + M2;
        let _ = map.make_hole(Ipa::new(bad)).unwrap();
        let mut got = Vec::new();
        map.extents(|it: &Extent| {
            assert_eq!(it.attrs, Attrs::RAM);
            got.push((it.ipa.get(), it.pa.get(), it.size, it.leaf, it.kind));
        })
        .unwrap();
        let (m, p) = (ExtentKind::Mapped, ExtentKind::Poisoned);
        assert_eq!(
            got,
            [
                (G1, 9 * G1, G1, G1, m),
                (2 * G1, 10 * G1, M2, M2, m),
                (bad, 8 * G1 + bad, K4, K4, p),
                (bad + K4, 8 * G1 + bad + K4, M2 - K4, K4, m),
                (bad + M2, 8 * G1 + bad + M2, G1 - 2 * M2, M2, m),
                (3 * G1, 7 * G1, G1, G1, m),
            ]
        );
    });
}

#[test]
fn every_frame_comes_back() {
    let memory = Memory::new(64);
    let mut frames = Frames::new(64);
    let cpus = Cpus::new(&memory, vmid());
    let config = Config::new(3).unwrap();
    let mut map = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, 7).unwrap();
    map.map(Ipa::new(K4), Pa::new(K4), 4 * G1, Attrs::RAM, &mut frames)
        .unwrap();
    let _ = map.make_hole(Ipa::new(2 * G1)).unwrap();
    assert!(frames.used() > 8 + 7);
    map.release(&mut frames).unwrap();
    assert_eq!(frames.used(), 0);
}

#[test]
fn a_map_that_cannot_be_built_leaves_nothing_behind() {
    let memory = Memory::new(32);
    let config = Config::new(3).unwrap(); // a root of 8
    for available in 0..10 {
        let mut frames = Frames::new(32);
        frames.limit(available);
        let cpus = Cpus::new(&memory, vmid());
        let got = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, 2);
        assert_eq!(got.err(), Some(BuildError::OutOfFrames));
        assert_eq!(frames.used(), 0);
    }
}

#[test]
fn frames_that_are_no_memory_are_refused() {
    let memory = Memory::new(10);
    let mut frames = Frames::new(32);
    let cpus = Cpus::new(&memory, vmid());
    let config = config(Strategy::BreakFirst);
    let got = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, 10);
    assert!(matches!(got, Err(BuildError::NoTable(_))));
    assert_eq!(frames.used(), 0);
}

#[test]
fn a_reserve_frame_that_is_lost_later_costs_its_share_of_precision_only() {
    let memory = Memory::new(16);
    let mut frames = Frames::new(16);
    let cpus = Cpus::new(&memory, vmid());
    let config = config(Strategy::BreakFirst);
    let mut map = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, 2).unwrap();
    cpus.run(map.vttbr_el2(), map.vtcr_el2(), 0);
    map.map(Ipa::new(0), Pa::new(0), G1, Attrs::RAM, &mut frames)
        .unwrap();
    // The root was taken first, the reserve right after it.
    memory.lose(Pa::new((map.vttbr_el2() & 0xffff_ffff_f000) + 4096));
    let crate::stage2::HoleOutcome::Coarse(hole) = map.make_hole(Ipa::new(0)).unwrap() else {
        panic!("one table is not enough for a page");
    };
    assert_eq!((hole.size, hole.tables), (M2, 1));
    assert!(!cpus.may_reach(Ipa::new(0)));
}

#[test]
fn a_conflict_is_answered_by_invalidating_both_stages() {
    with_map(config(Strategy::SwapThenBreak), 0, |map, _, cpus| {
        cpus.watch(&[]);
        map.resolve_conflict();
        assert_eq!(cpus.steps(), [(InvalidateVmAll, vec![])]);
    });
}
