//! Storms: holes, repairs, replacements, protections and drops at random, on CPUs that check every
//! step; and when all of it has been undone, the map is what it was, to the last frame.

use super::{Cpus, Frames, G1, K4, M2, Map, STRATEGIES, config, map_ram, with_map};
use crate::addr::{Ipa, Pa, PaRange};
use crate::stage2::{
    Access, Attrs, ExtentKind, HoleOutcome, MendOutcome, ProtectError, ReplaceError,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

const AHEAD: u64 = 16 * G1;
const SPARES: u64 = 64 * G1;
const READ_ONLY: Attrs = Attrs {
    access: Access::ReadOnly,
    ..Attrs::RAM
};
/// IPA and size of each piece that is mapped: two 1G blocks side by side, two of 2M, three pages.
const LAND: [(u64, u64); 3] = [(0, 2 * G1), (2 * G1, 2 * M2), (3 * G1 + K4, 3 * K4)];

#[derive(Clone, Copy, Debug)]
enum Request {
    Poison(u64),
    Repair(u64),
    Drop(u64),
    Touch(u64),
    Replace(u64),
    PutBack(u64),
    Protect(u64, u64, bool),
}

/// What the guest should see, if nothing were bad, and what is.
#[derive(Default)]
struct Model {
    moved: BTreeMap<u64, u64>,
    /// Ranges with their attributes; later ones count.
    painted: Vec<(u64, u64, Attrs)>,
    bad: BTreeSet<u64>,
}

impl Model {
    fn pa(&self, page: u64) -> u64 {
        self.moved.get(&page).copied().unwrap_or(page + AHEAD)
    }

    fn attrs(&self, page: u64) -> Attrs {
        let last = self
            .painted
            .iter()
            .rev()
            .find(|(from, size, _)| (*from..from + size).contains(&page));
        last.map_or(Attrs::RAM, |painted| painted.2)
    }

    /// Pages at which something changes, or may.
    fn landmarks(&self) -> BTreeSet<u64> {
        let ends = |(from, size): (u64, u64)| [from, from + size - K4, from + size];
        let land = LAND.into_iter().flat_map(ends);
        let painted = self
            .painted
            .iter()
            .flat_map(|(from, size, _)| ends((*from, *size)));
        let moved = self.moved.keys().copied();
        let bad = self.bad.iter().filter_map(|pa| pa.checked_sub(AHEAD));
        let mut all: BTreeSet<u64> = land.chain(painted).chain(moved).chain(bad).collect();
        for page in all.clone() {
            all.insert(page + K4);
            all.insert(page.saturating_sub(K4));
        }
        all
    }
}

fn is_land(ipa: u64) -> bool {
    let mut land = LAND.into_iter();
    land.any(|(from, size)| (from..from + size).contains(&ipa))
}

fn bad_in(bad: &BTreeSet<u64>) -> impl Fn(PaRange) -> Option<Pa> {
    move |range: PaRange| {
        let pages = bad.range(range.start().get()..=range.last().get());
        pages.copied().next().map(Pa::new)
    }
}

fn place() -> impl Strategy<Value = u64> {
    let m2 = prop::sample::select(&[0, 1, 511][..]);
    let k4 = prop::sample::select(&[0, 1, 2, 511][..]);
    let gigs = (0u64..2, m2, k4).prop_map(|(g, m, k)| g * G1 + m * M2 + k * K4);
    let megs = (0u64..2, 0u64..3).prop_map(|(m, k)| 2 * G1 + m * M2 + k * K4);
    let pages = (0u64..4).prop_map(|k| 3 * G1 + k * K4);
    prop_oneof![4 => gigs, 2 => megs, 1 => pages]
}

fn request() -> impl Strategy<Value = Request> {
    let size = prop::sample::select(&[K4, 2 * K4, M2, M2 + K4, G1][..]);
    prop_oneof![
        6 => place().prop_map(Request::Poison),
        5 => place().prop_map(Request::Repair),
        2 => place().prop_map(Request::Drop),
        2 => place().prop_map(Request::Touch),
        2 => place().prop_map(Request::Replace),
        2 => place().prop_map(Request::PutBack),
        2 => (place(), size, any::<bool>()).prop_map(|(ipa, size, ro)| Request::Protect(ipa, size, ro)),
    ]
}

fn poison(model: &mut Model, map: &mut Map<'_>, ipa: u64, drop: bool) {
    if !is_land(ipa) {
        assert_eq!(map.make_hole(Ipa::new(ipa)), Ok(HoleOutcome::NotMapped));
        return;
    }
    model.bad.insert(model.pa(ipa));
    let reserve = map.reserve_left();
    let outcome = if drop {
        map.drop_block(Ipa::new(ipa)).unwrap()
    } else {
        map.make_hole(Ipa::new(ipa)).unwrap()
    };
    match outcome {
        HoleOutcome::Coarse(hole) => assert_eq!((hole.reserve_left, drop), (0, false)),
        HoleOutcome::Made(hole) => assert_eq!(hole.pa.get(), model.pa(ipa)),
        HoleOutcome::Dropped(_) => assert_eq!((map.reserve_left(), drop), (reserve, true)),
        HoleOutcome::AlreadyPoisoned { .. } | HoleOutcome::AlreadyDropped { .. } => {}
        HoleOutcome::NotMapped => panic!("{ipa:#x} is mapped"),
    }
}

fn apply(model: &mut Model, map: &mut Map<'_>, request: Request) {
    match request {
        Request::Poison(ipa) => poison(model, map, ipa, false),
        Request::Drop(ipa) => poison(model, map, ipa, true),
        Request::Repair(ipa) => {
            let was = model.bad.remove(&model.pa(ipa));
            let got = map.mend(Ipa::new(ipa), &bad_in(&model.bad)).unwrap();
            match got {
                MendOutcome::Mended(_) => assert!(is_land(ipa)),
                MendOutcome::NotMapped => assert!(!is_land(ipa)),
                MendOutcome::Waiting { size } => {
                    assert!(size > K4);
                    assert_eq!(map.reserve_left(), 0);
                }
                MendOutcome::NoHole => {}
                MendOutcome::StillBad => panic!("{was} {ipa:#x} is good"),
            }
        }
        Request::Touch(ipa) => {
            let _ = map.reopen(Ipa::new(ipa), &bad_in(&model.bad)).unwrap();
        }
        Request::Replace(ipa) => replace(model, map, ipa, SPARES + ipa),
        Request::PutBack(ipa) => replace(model, map, ipa, ipa + AHEAD),
        Request::Protect(ipa, size, read_only) => {
            let attrs = if read_only { READ_ONLY } else { Attrs::RAM };
            match map.protect(Ipa::new(ipa), size, attrs, &bad_in(&model.bad)) {
                Ok(()) => model.painted.push((ipa, size, attrs)),
                Err(ProtectError::NotMapped(at)) => assert!(!is_land(at.get())),
                Err(ProtectError::InHole(at)) => assert!(at.get() >= ipa),
                Err(ProtectError::OutOfFrames) => assert!(map.reserve_left() < 4),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

fn replace(model: &mut Model, map: &mut Map<'_>, ipa: u64, to: u64) {
    match map.replace(Ipa::new(ipa), Pa::new(to), None, &bad_in(&model.bad)) {
        Ok(_) => {
            model.moved.insert(ipa, to);
        }
        Err(ReplaceError::NotMapped) => assert!(!is_land(ipa)),
        Err(ReplaceError::Bad(pa)) => assert!(model.bad.contains(&pa.get())),
        Err(ReplaceError::OutOfFrames) => assert!(map.reserve_left() < 2),
        Err(error) => panic!("{error:?}"),
    }
}

fn check(model: &Model, map: &Map<'_>, cpus: &Cpus<'_>) {
    cpus.nothing_is_stale();
    let landmarks = model.landmarks();
    let mut mapped = 0;
    for leaf in cpus.settled() {
        mapped += leaf.size;
        let memory = PaRange::new(Pa::new(leaf.pa), leaf.size).unwrap();
        assert_eq!(bad_in(&model.bad)(memory), None, "{leaf:x?} maps poison");
        let ends = [leaf.ipa, leaf.end() - K4];
        let inside = landmarks.range(leaf.ipa..leaf.end());
        for page in inside.copied().chain(ends) {
            assert_eq!(model.pa(page), leaf.pa + (page - leaf.ipa), "{page:#x}");
            let writable = model.attrs(page).access == Access::ReadWrite;
            assert_eq!(leaf.bits & 1 << 7 != 0, writable, "{page:#x}");
        }
    }
    let (mut out, mut coarse) = (0, 0);
    map.extents(|it| {
        if it.kind == ExtentKind::Mapped {
            return;
        }
        out += it.size;
        if it.kind == ExtentKind::Poisoned {
            for at in (0..it.size).step_by(usize::try_from(it.leaf).unwrap()) {
                let memory = PaRange::new(Pa::new(it.pa.get() + at), it.leaf).unwrap();
                let bad = bad_in(&model.bad)(memory);
                assert!(bad.is_some(), "{it:x?} is good");
                coarse += usize::from(it.leaf != K4);
            }
        }
    })
    .unwrap();
    let all: u64 = LAND.iter().map(|(_, size)| size).sum();
    assert_eq!(mapped + out, all, "every byte is mapped or accounted for");
    assert_eq!(map.coarse_holes(), coarse);
    assert!(
        coarse == 0 || map.reserve_left() == 0,
        "{coarse} coarse holes with {} frames",
        map.reserve_left()
    );
}

/// Until nothing is bad, moved, protected or dropped.
fn undo(model: &mut Model, map: &mut Map<'_>) {
    let bad: Vec<u64> = core::mem::take(&mut model.bad).into_iter().collect();
    let good = |_: PaRange| None;
    for pa in bad {
        let moved = model.moved.iter().find(|(_, to)| **to == pa);
        let ipa = moved.map_or(pa.wrapping_sub(AHEAD), |(ipa, _)| *ipa);
        let _ = map.mend(Ipa::new(ipa), &good).unwrap();
    }
    for (ipa, _) in core::mem::take(&mut model.moved) {
        map.replace(Ipa::new(ipa), Pa::new(ipa + AHEAD), None, &good)
            .unwrap();
    }
    for (ipa, size) in LAND {
        map.protect(Ipa::new(ipa), size, Attrs::RAM, &good).unwrap();
        model.painted.push((ipa, size, Attrs::RAM));
        for at in (ipa..ipa + size).step_by(M2 as usize) {
            let _ = map.reopen(Ipa::new(at), &good).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 32 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    #[cfg_attr(miri, ignore = "takes Miri more than ten minutes; the steps have tests of their own")]
    fn no_frame_is_lost_and_all_blocks_are_back_when_a_storm_is_over(
        requests in prop::collection::vec(request(), 1..if cfg!(miri) { 4 } else { 32 }),
        reserve in 0usize..9,
        direct in any::<bool>(),
    ) {
        let strategy = STRATEGIES[usize::from(direct)];
        with_map(config(strategy), reserve, |map, frames: &mut Frames, cpus| {
            for (ipa, size) in LAND {
                map_ram(map, frames, ipa, ipa + AHEAD, size);
            }
            let (census, leaves) = (map.census().unwrap(), cpus.settled());
            let mut model = Model::default();
            for request in &requests {
                apply(&mut model, map, *request);
                check(&model, map, cpus);
            }
            undo(&mut model, map);
            check(&model, map, cpus);
            assert_eq!(map.reserve_left(), reserve);
            assert_eq!((map.census().unwrap(), cpus.settled()), (census, leaves));
        });
    }
}
