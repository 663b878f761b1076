//! Storms: holes, repairs, replacements, protections and drops at random, on CPUs that check every
//! step; and when all of it has been undone, the map is what it was, to the last frame.

use super::{Cpus, Frames, G1, Granule, K4, Map, OTHERS, STRATEGIES, Sizes, map_ram, with_map};
use crate::addr::{Ipa, Pa, PaRange};
use crate::stage2::{
    Access, Attrs, ExtentKind, HoleOutcome, MendOutcome, ProtectError, ReplaceError, bbm,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

const AHEAD: u64 = 256 * G1;
const SPARES: u64 = 1024 * G1;
const READ_ONLY: Attrs = Attrs {
    access: Access::ReadOnly,
    ..Attrs::RAM
};

/// IPA and size of each piece that is mapped: two large blocks side by side, two small ones, three pages.
fn land(sizes: Sizes) -> [(u64, u64); 3] {
    let Sizes {
        page, block, large, ..
    } = sizes;
    [
        (0, 2 * large),
        (2 * large, 2 * block),
        (3 * large + page, 3 * page),
    ]
}

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
struct Model {
    sizes: Sizes,
    /// Pages of the granule.
    moved: BTreeMap<u64, u64>,
    /// Ranges with their attributes; later ones count.
    painted: Vec<(u64, u64, Attrs)>,
    /// PAs of pages of 4 KiB.
    bad: BTreeSet<u64>,
}

impl Model {
    fn new(sizes: Sizes) -> Self {
        Self {
            sizes,
            moved: BTreeMap::new(),
            painted: Vec::new(),
            bad: BTreeSet::new(),
        }
    }

    fn pa(&self, ipa: u64) -> u64 {
        let into = ipa % self.sizes.page;
        let page = ipa - into;
        self.moved.get(&page).copied().unwrap_or(page + AHEAD) + into
    }

    fn is_land(&self, ipa: u64) -> bool {
        let mut land = land(self.sizes).into_iter();
        land.any(|(from, size)| (from..from + size).contains(&ipa))
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
        let page = self.sizes.page;
        let ends = |(from, size): (u64, u64)| [from, from + size - page, from + size];
        let land = land(self.sizes).into_iter().flat_map(ends);
        let painted = self
            .painted
            .iter()
            .flat_map(|(from, size, _)| ends((*from, *size)));
        let moved = self.moved.keys().copied();
        let bad = self.bad.iter().filter_map(|pa| pa.checked_sub(AHEAD));
        let mut all: BTreeSet<u64> = land.chain(painted).chain(moved).chain(bad).collect();
        for at in all.clone() {
            all.insert(at + page);
            all.insert(at.saturating_sub(page));
        }
        all
    }
}

fn bad_in(bad: &BTreeSet<u64>) -> impl Fn(PaRange) -> Option<Pa> {
    move |range: PaRange| {
        let pages = bad.range(range.start().get()..=range.last().get());
        pages.copied().next().map(Pa::new)
    }
}

fn place(sizes: Sizes) -> impl Strategy<Value = u64> {
    let Sizes {
        page, block, large, ..
    } = sizes;
    let parts = |n: u64| prop::sample::select(std::vec![0, 1, 2, n - 1]);
    let larges = (0u64..2, parts(large / block), parts(block / page))
        .prop_map(move |(g, m, k)| g * large + m * block + k * page);
    let blocks = (0u64..2, 0u64..3).prop_map(move |(m, k)| 2 * large + m * block + k * page);
    let pages = (0u64..4).prop_map(move |k| 3 * large + k * page);
    prop_oneof![4 => larges, 2 => blocks, 1 => pages]
}

/// One of the pages of 4 KiB of such a place.
fn bad_page(sizes: Sizes) -> impl Strategy<Value = u64> {
    let into = prop::sample::select(std::vec![0, K4 % sizes.page, sizes.page - K4]);
    (place(sizes), into).prop_map(|(at, into)| at + into)
}

fn request(sizes: Sizes) -> impl Strategy<Value = Request> {
    let Sizes {
        page, block, large, ..
    } = sizes;
    let size = prop::sample::select(std::vec![page, 2 * page, block, block + page, large]);
    prop_oneof![
        6 => bad_page(sizes).prop_map(Request::Poison),
        5 => bad_page(sizes).prop_map(Request::Repair),
        2 => bad_page(sizes).prop_map(Request::Drop),
        2 => place(sizes).prop_map(Request::Touch),
        2 => place(sizes).prop_map(Request::Replace),
        2 => place(sizes).prop_map(Request::PutBack),
        2 => (place(sizes), size, any::<bool>())
            .prop_map(|(ipa, size, ro)| Request::Protect(ipa, size, ro)),
    ]
}

fn poison(model: &mut Model, map: &mut Map<'_>, ipa: u64, drop: bool) {
    if !model.is_land(ipa) {
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
        HoleOutcome::Made(hole) => assert_eq!(hole.behind(Ipa::new(ipa)).get(), model.pa(ipa)),
        HoleOutcome::Dropped(_) => assert_eq!((map.reserve_left(), drop), (reserve, true)),
        HoleOutcome::AlreadyPoisoned { .. } | HoleOutcome::AlreadyDropped { .. } => {}
        HoleOutcome::NotMapped => panic!("{ipa:#x} is mapped"),
        HoleOutcome::InOrder => panic!("{ipa:#x}: nobody asked whether it is bad"),
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
                MendOutcome::Mended(_) => assert!(model.is_land(ipa)),
                MendOutcome::NotMapped => assert!(!model.is_land(ipa)),
                MendOutcome::Waiting { size } if size == model.sizes.page => {
                    let page = Pa::new(model.pa(ipa)).align_down(size);
                    let page = PaRange::new(page, size).unwrap();
                    assert!(
                        bad_in(&model.bad)(page).is_some(),
                        "{ipa:#x} has a page alone"
                    );
                }
                MendOutcome::Waiting { .. } => assert_eq!(map.reserve_left(), 0),
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
                Err(ProtectError::NotMapped(at)) => assert!(!model.is_land(at.get())),
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
        Err(ReplaceError::NotMapped) => assert!(!model.is_land(ipa)),
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
        let ends = [leaf.ipa, leaf.end() - model.sizes.page];
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
                coarse += usize::from(it.leaf != model.sizes.page);
            }
        }
    })
    .unwrap();
    let all: u64 = land(model.sizes).iter().map(|(_, size)| size).sum();
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
        let page = model.sizes.page;
        let moved = model.moved.iter().find(|(_, to)| **to == pa - pa % page);
        let ipa = moved.map_or(pa.wrapping_sub(AHEAD), |(ipa, _)| ipa + pa % page);
        let _ = map.mend(Ipa::new(ipa), &good).unwrap();
    }
    for (ipa, _) in core::mem::take(&mut model.moved) {
        map.replace(Ipa::new(ipa), Pa::new(ipa + AHEAD), None, &good)
            .unwrap();
    }
    for (ipa, size) in land(model.sizes) {
        map.protect(Ipa::new(ipa), size, Attrs::RAM, &good).unwrap();
        model.painted.push((ipa, size, Attrs::RAM));
        for at in (ipa..ipa + size).step_by(model.sizes.block as usize) {
            let _ = map.reopen(Ipa::new(at), &good).unwrap();
        }
    }
}

fn run(sizes: Sizes, requests: &[Request], reserve: usize, strategy: bbm::Strategy) {
    with_map(
        sizes.config(strategy),
        reserve,
        |map, frames: &mut Frames, cpus| {
            for (ipa, size) in land(sizes) {
                map_ram(map, frames, ipa, ipa + AHEAD, size);
            }
            let (census, leaves) = (map.census().unwrap(), cpus.settled());
            let mut model = Model::new(sizes);
            for request in requests {
                apply(&mut model, map, *request);
                check(&model, map, cpus);
            }
            undo(&mut model, map);
            check(&model, map, cpus);
            assert_eq!(map.reserve_left(), reserve);
            assert_eq!((map.census().unwrap(), cpus.settled()), (census, leaves));
        },
    );
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
        requests in prop::collection::vec(
            request(Sizes::of(Granule::K4)),
            1..if cfg!(miri) { 4 } else { 32 },
        ),
        reserve in 0usize..9,
        strategy in prop::sample::select(&STRATEGIES[..]),
    ) {
        run(Sizes::of(Granule::K4), &requests, reserve, strategy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    #[cfg_attr(miri, ignore = "takes Miri more than ten minutes; the steps have tests of their own")]
    fn the_same_is_true_of_larger_granules(
        (sizes, requests) in prop::sample::select(&OTHERS[..])
            .prop_map(Sizes::of)
            .prop_flat_map(|it| (Just(it), prop::collection::vec(request(it), 1..12))),
        reserve in 0usize..4,
        strategy in prop::sample::select(&STRATEGIES[..]),
    ) {
        run(sizes, &requests, reserve, strategy);
    }
}
