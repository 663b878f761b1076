//! Random sequences of requests against a plain model, on CPUs that check every step.
//!
//! The model is a map from the first IPA of a piece to the piece. It knows neither levels nor
//! blocks, so what it agrees with is what a guest can observe.

use super::machine::HwLeaf;
use super::{Cpus, Frames, Granule, Map, OTHERS, STRATEGIES, Sizes, with_map};
use crate::addr::{Ipa, Pa};
use crate::stage2::{Attrs, HoleOutcome, Lookup, MapError, bbm};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec::Vec;

/// Memory that is mapped, or was before it was poisoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    pa: u64,
    attrs: Attrs,
    poisoned: bool,
}

#[derive(Default)]
struct Model {
    pieces: BTreeMap<u64, Piece>,
}

impl Model {
    fn at(&self, ipa: u64) -> Option<(u64, Piece)> {
        let (start, piece) = self.pieces.range(..=ipa).next_back()?;
        (ipa < piece.end).then_some((*start, *piece))
    }

    /// What stands in the way of a mapping: the first IPA, and whether it is poisoned.
    fn obstacle(&self, start: u64, end: u64) -> Option<(u64, bool)> {
        if let Some((_, piece)) = self.at(start) {
            return Some((start, piece.poisoned));
        }
        let (first, piece) = self.pieces.range(start..end).next()?;
        Some((*first, piece.poisoned))
    }

    /// Poisons `start..end`, which lies in one piece.
    fn poison(&mut self, start: u64, end: u64) {
        let (first, whole) = self.at(start).expect("a hole is made in what is mapped");
        assert!(end <= whole.end && !whole.poisoned);
        self.pieces.remove(&first);
        for (from, to, poisoned) in [
            (first, start, false),
            (start, end, true),
            (end, whole.end, false),
        ] {
            if from < to {
                let piece = Piece {
                    end: to,
                    pa: whole.pa + (from - first),
                    poisoned,
                    ..whole
                };
                self.pieces.insert(from, piece);
            }
        }
    }

    /// What is mapped, as far as a guest can tell: IPA, end, PA and attribute bits, with neighbours
    /// joined.
    fn visible(&self) -> Vec<(u64, u64, u64, u64)> {
        join(
            self.pieces
                .iter()
                .filter(|(_, piece)| !piece.poisoned)
                .map(|(ipa, piece)| (*ipa, piece.end, piece.pa, bits(piece.attrs))),
        )
    }
}

/// Attribute bits without S2FWB, from the Arm ARM.
fn bits(attrs: Attrs) -> u64 {
    match attrs {
        Attrs::RAM => 0x7fc,
        Attrs::DEVICE => 0x0040_0000_0000_06c4,
        other => panic!("{other:?} is not used here"),
    }
}

fn join(all: impl Iterator<Item = (u64, u64, u64, u64)>) -> Vec<(u64, u64, u64, u64)> {
    let mut joined: Vec<(u64, u64, u64, u64)> = Vec::new();
    for (ipa, end, pa, bits) in all {
        match joined.last_mut() {
            Some(last) if (last.1, last.2 + (last.1 - last.0), last.3) == (ipa, pa, bits) => {
                last.1 = end;
            }
            _ => joined.push((ipa, end, pa, bits)),
        }
    }
    joined
}

fn visible_to_hardware(leaves: &[HwLeaf]) -> Vec<(u64, u64, u64, u64)> {
    join(
        leaves
            .iter()
            .map(|leaf| (leaf.ipa, leaf.end(), leaf.pa, leaf.attributes())),
    )
}

#[derive(Clone, Debug)]
enum Request {
    Map {
        ipa: u64,
        size: u64,
        delta: u64,
        device: bool,
    },
    Hole(u64),
}

/// Numbers of parts of something that has `n`, which are likely to be next to, or in, something
/// interesting.
fn part(n: u64) -> impl Strategy<Value = u64> {
    prop::sample::select(std::vec![0, 1, 2, n / 2, n - 2, n - 1])
}

fn place(sizes: Sizes) -> impl Strategy<Value = u64> {
    let Sizes {
        page, block, large, ..
    } = sizes;
    (0u64..4, part(large / block), part(block / page))
        .prop_map(move |(g, m, k)| g * large + m * block + k * page)
}

fn request(sizes: Sizes) -> impl Strategy<Value = Request> {
    let Sizes {
        page, block, large, ..
    } = sizes;
    let aligned = (0u64..4, 1u64..3).prop_map(move |(g, n)| (g * large, n * large));
    let blocks = (place(sizes), 1u64..4).prop_map(move |(at, n)| (at & !(block - 1), n * block));
    let pages =
        (place(sizes), place(sizes)).prop_map(move |(at, size)| (at, (size % large).max(page)));
    let range = prop_oneof![aligned, blocks, pages];
    let deltas = std::vec![0, 8 * large, block, 5 * large + 3 * block, page];
    let delta = prop::sample::select(deltas);
    let map = (range, delta, any::<bool>()).prop_map(|((ipa, size), delta, device)| Request::Map {
        ipa,
        size,
        delta,
        device,
    });
    prop_oneof![1 => map, 2 => place(sizes).prop_map(Request::Hole)]
}

fn apply(
    model: &mut Model,
    map: &mut Map<'_>,
    frames: &mut Frames,
    (page, request): (u64, &Request),
) {
    match *request {
        Request::Map {
            ipa,
            size,
            delta,
            device,
        } => {
            let piece = Piece {
                end: ipa + size,
                pa: ipa + delta,
                attrs: if device { Attrs::DEVICE } else { Attrs::RAM },
                poisoned: false,
            };
            let pa = Pa::new(piece.pa);
            let got = map.map(Ipa::new(ipa), pa, size, piece.attrs, frames);
            match (got, model.obstacle(ipa, piece.end)) {
                (Ok(()), None) => {
                    model.pieces.insert(ipa, piece);
                }
                (Err(MapError::OutOfFrames), None) => {}
                (Err(MapError::Overlap(at)), Some((expected, false)))
                | (Err(MapError::Poisoned(at)), Some((expected, true))) => {
                    assert_eq!(at.get(), expected);
                }
                (got, expected) => panic!("{got:?} where {expected:?} is in the way"),
            }
        }
        Request::Hole(ipa) => apply_hole(model, map, ipa, page),
    }
}

fn apply_hole(model: &mut Model, map: &mut Map<'_>, ipa: u64, page: u64) {
    let before = map.reserve_left();
    let outcome = map.make_hole(Ipa::new(ipa)).unwrap();
    match (outcome, model.at(ipa)) {
        (HoleOutcome::NotMapped, None) => {}
        (HoleOutcome::AlreadyPoisoned { ipa: start, size }, Some((_, piece))) => {
            assert!(piece.poisoned && start.get() <= ipa && ipa < start.get() + size);
        }
        (HoleOutcome::Made(hole), Some((first, piece))) => {
            assert_eq!((hole.ipa.get(), hole.size), (ipa, page));
            assert_eq!(hole.pa.get(), piece.pa + (ipa - first));
            assert_eq!(hole.reserve_left + hole.tables, before);
            assert_eq!(hole.reserve_left, map.reserve_left());
            model.poison(ipa, ipa + page);
        }
        (HoleOutcome::Coarse(hole), Some((first, piece))) => {
            let start = hole.ipa.get();
            assert!(start <= ipa && ipa < start + hole.size && page < hole.size);
            assert_eq!(
                hole.reserve_left, 0,
                "precision is lost only when there is no choice"
            );
            assert_eq!(hole.pa.get(), piece.pa + (start - first));
            model.poison(start, start + hole.size);
        }
        (outcome, expected) => panic!("{outcome:?} where the model has {expected:?}"),
    }
}

fn check(model: &Model, map: &Map<'_>, cpus: &Cpus<'_>, (sizes, around): (Sizes, u64)) {
    assert_eq!(visible_to_hardware(&cpus.settled()), model.visible());
    for ipa in [
        around.saturating_sub(1),
        around,
        around + sizes.page,
        around ^ sizes.block,
        around ^ sizes.large,
    ] {
        let expected = model.at(ipa).map(|(first, piece)| {
            let attrs = (!piece.poisoned).then_some(piece.attrs);
            (piece.pa + (ipa - first), attrs)
        });
        let got = match map.lookup(Ipa::new(ipa)).unwrap() {
            Lookup::Mapped { pa, attrs, .. } => Some((pa.get(), Some(attrs))),
            Lookup::Poisoned { pa, .. } => Some((pa.get(), None)),
            Lookup::Unmapped => None,
            Lookup::Parked { .. } => panic!("nothing is parked between requests"),
        };
        assert_eq!(got, expected, "{ipa:#x}");
        let reachable = expected.is_some_and(|(_, attrs)| attrs.is_some());
        assert_eq!(cpus.may_reach(Ipa::new(ipa)), reachable, "{ipa:#x}");
    }
}

fn run(sizes: Sizes, requests: &[Request], reserve: usize, strategy: bbm::Strategy) {
    with_map(sizes.config(strategy), reserve, |map, frames, cpus| {
        let mut model = Model::default();
        for request in requests {
            apply(&mut model, map, frames, (sizes.page, request));
            let (Request::Map { ipa: around, .. } | Request::Hole(around)) = *request;
            check(&model, map, cpus, (sizes, around));
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 1 } else { 96 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_guest_sees_what_the_model_says_and_nothing_stale(
        requests in prop::collection::vec(
            request(Sizes::of(Granule::K4)),
            1..if cfg!(miri) { 3 } else { 24 },
        ),
        reserve in 0usize..12,
        strategy in prop::sample::select(&STRATEGIES[..]),
    ) {
        run(Sizes::of(Granule::K4), &requests, reserve, strategy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    #[cfg_attr(miri, ignore = "takes minutes, and nothing that the other does not do")]
    fn a_guest_sees_the_same_with_larger_granules(
        (sizes, requests) in prop::sample::select(&OTHERS[..])
            .prop_map(Sizes::of)
            .prop_flat_map(|it| (Just(it), prop::collection::vec(request(it), 1..12))),
        reserve in 0usize..5,
        strategy in prop::sample::select(&STRATEGIES[..]),
    ) {
        run(sizes, &requests, reserve, strategy);
    }
}
