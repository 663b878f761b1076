//! Tests of the registry.

use super::*;
use crate::stage2::Attrs;
use proptest::prelude::*;
use std::sync::Mutex;

const G1: u64 = 1 << 30;
const M2: u64 = 2 << 20;

fn range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

fn vm(raw: u8) -> Vmid {
    Vmid::new(raw).unwrap()
}

fn mapping(raw_vm: u8, ipa: u64, start: u64, size: u64) -> Mapping {
    Mapping {
        vm: vm(raw_vm),
        ipa: Ipa::new(ipa),
        range: range(start, size),
        attrs: Attrs::RAM,
    }
}

fn seen(dev_mem: &DevMem<'_>, pa: u64) -> Vec<(u8, u64)> {
    dev_mem
        .mappings_of(Pa::new(pa))
        .map(|page| (page.vm.get(), page.ipa.get()))
        .collect()
}

#[test]
fn a_region_is_found_by_its_first_and_last_byte_and_no_other() {
    let mut dev_mem = DevMem::new();
    let high = dev_mem
        .register(Kind::Bar, range(8 * G1, G1), "hbm0", None)
        .unwrap();
    let low = dev_mem
        .register(Kind::Ram, range(G1, G1), "ram", None)
        .unwrap();
    let id = |pa| dev_mem.find(Pa::new(pa)).map(Region::id);
    assert_eq!(id(G1 - 1), None);
    assert_eq!(id(G1), Some(low));
    assert_eq!(id(2 * G1 - 1), Some(low));
    assert_eq!(id(2 * G1), None);
    assert_eq!(id(9 * G1 - 1), Some(high));
    assert_eq!(id(u64::MAX), None);
    assert_eq!(
        dev_mem.regions().map(Region::id).collect::<Vec<_>>(),
        [low, high]
    );
    assert_eq!(dev_mem.region(high).unwrap().owner(), "hbm0");
}

#[test]
fn overlapping_regions_are_refused_and_neighbours_are_not() {
    let mut dev_mem = DevMem::new();
    let id = dev_mem
        .register(Kind::Ram, range(2 * G1, G1), "ram", None)
        .unwrap();
    for (start, size) in [
        (2 * G1, G1),
        (2 * G1 - 4096, 8192),
        (3 * G1 - 4096, 8192),
        (2 * G1 + M2, 4096),
        (G1, 3 * G1),
    ] {
        let got = dev_mem.register(Kind::Bar, range(start, size), "bar", None);
        assert_eq!(got, Err(RegisterError::Overlap(id)));
    }
    for start in [G1, 3 * G1] {
        dev_mem
            .register(Kind::Bar, range(start, G1), "bar", None)
            .unwrap();
    }
}

#[test]
fn regions_that_are_not_whole_pages_are_refused() {
    let mut dev_mem = DevMem::new();
    for (start, size) in [(G1 + 1, 4096), (G1, 4097)] {
        let got = dev_mem.register(Kind::Ram, range(start, size), "ram", None);
        assert_eq!(got, Err(RegisterError::Unaligned));
    }
}

#[test]
fn one_page_is_found_in_every_vm_that_maps_it() {
    let mut dev_mem = DevMem::new();
    let id = dev_mem
        .register(Kind::Bar, range(8 * G1, 4 * G1), "hbm0", None)
        .unwrap();
    for it in [
        mapping(1, 64 * G1, 8 * G1, 4 * G1),
        mapping(2, 32 * G1, 9 * G1, G1),
        mapping(2, 48 * G1, 9 * G1, G1),
        mapping(3, 32 * G1, 8 * G1, G1),
    ] {
        dev_mem.add_mapping(id, it).unwrap();
    }
    let pa = 9 * G1 + 5 * 4096;
    assert_eq!(
        seen(&dev_mem, pa + 0x123),
        [
            (1, 65 * G1 + 5 * 4096),
            (2, 32 * G1 + 5 * 4096),
            (2, 48 * G1 + 5 * 4096)
        ]
    );
    assert_eq!(seen(&dev_mem, 11 * G1), [(1, 67 * G1)]);
    assert_eq!(seen(&dev_mem, 12 * G1), []);

    let resolve = |raw, ipa| dev_mem.resolve(vm(raw), Ipa::new(ipa)).map(|it| it.0.get());
    assert_eq!(resolve(2, 48 * G1 + 7), Some(9 * G1 + 7));
    assert_eq!(resolve(2, 49 * G1), None);
    assert_eq!(resolve(4, 48 * G1), None);
}

#[test]
fn mappings_that_make_no_sense_are_named_and_not_kept() {
    let mut dev_mem = DevMem::new();
    let bar = dev_mem
        .register(Kind::Bar, range(8 * G1, 2 * G1), "hbm0", None)
        .unwrap();
    let ram = dev_mem
        .register(Kind::Ram, range(G1, G1), "ram", None)
        .unwrap();
    dev_mem
        .add_mapping(bar, mapping(1, 64 * G1, 8 * G1, G1))
        .unwrap();
    for (id, it, error) in [
        (
            RegionId::new(9),
            mapping(1, 0, 8 * G1, G1),
            RegisterError::UnknownRegion(RegionId::new(9)),
        ),
        (
            bar,
            mapping(1, 0, 8 * G1, 3 * G1),
            RegisterError::OutsideRegion(bar),
        ),
        (
            bar,
            mapping(1, 0, G1, G1),
            RegisterError::OutsideRegion(bar),
        ),
        (bar, mapping(1, 1, 8 * G1, G1), RegisterError::Unaligned),
        (bar, mapping(1, 0, 8 * G1, 5), RegisterError::Unaligned),
        (
            bar,
            mapping(1, M2, 8 * G1, M2),
            RegisterError::Incongruent(G1),
        ),
        (
            ram,
            mapping(1, M2 + 4096, G1, M2),
            RegisterError::Incongruent(M2),
        ),
        (
            bar,
            mapping(1, 0u64.wrapping_sub(G1), 8 * G1, 2 * G1),
            RegisterError::IpaWraps,
        ),
        (
            bar,
            mapping(1, 63 * G1, 8 * G1, 2 * G1),
            RegisterError::IpaTaken(Ipa::new(64 * G1)),
        ),
        (
            ram,
            mapping(1, 64 * G1 + M2, G1, M2),
            RegisterError::IpaTaken(Ipa::new(64 * G1 + M2)),
        ),
    ] {
        assert_eq!(dev_mem.add_mapping(id, it), Err(error));
    }
    let kept: usize = dev_mem.regions().map(|it| it.mappings().count()).sum();
    assert_eq!(kept, 1);
}

#[test]
fn ram_need_only_be_congruent_modulo_2m() {
    let mut dev_mem = DevMem::new();
    let ram = dev_mem
        .register(Kind::Ram, range(G1, G1), "ram", None)
        .unwrap();
    dev_mem
        .add_mapping(ram, mapping(1, G1, G1 + M2, 64 * M2))
        .unwrap();
    assert_eq!(seen(&dev_mem, G1 + M2), [(1, G1)]);
}

/// Remembers what it was told.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u16, u64)>>);

impl FailureSink for Recorder {
    fn memory_failure(&self, region: &Region<'_>, page: Pa) {
        let mut told = self.0.lock().unwrap();
        told.push((region.id().get(), page.get()));
    }
}

#[test]
fn the_owner_of_a_region_is_told_the_page_that_failed_and_nobody_else_is() {
    let (one, other) = (Recorder::default(), Recorder::default());
    let mut dev_mem = DevMem::new();
    let hbm = dev_mem
        .register(Kind::Bar, range(8 * G1, G1), "hbm0", Some(&one))
        .unwrap();
    dev_mem
        .register(Kind::Bar, range(9 * G1, G1), "hbm1", Some(&other))
        .unwrap();
    let ram = dev_mem
        .register(Kind::Ram, range(G1, G1), "ram", None)
        .unwrap();
    let told = |pa| dev_mem.notify_failure(Pa::new(pa)).map(Region::id);
    assert_eq!(told(8 * G1 + 0x1234), Some(hbm));
    assert_eq!(told(G1), Some(ram));
    assert_eq!(told(0), None);
    assert_eq!(*one.0.lock().unwrap(), [(hbm.get(), 8 * G1 + 0x1000)]);
    assert_eq!(*other.0.lock().unwrap(), []);
}

#[test]
fn a_registry_can_be_shared_between_cpus() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<DevMem<'static>>();
}

/// A mapping to ask for, in units of 2 MiB: VM, IPA, offset into the region, size.
type WantedMapping = (u8, u64, u64, u64);
/// A region to ask for, in units of 2 MiB: start, size, and what maps it.
type WantedRegion = (u64, u64, Vec<WantedMapping>);

/// Up to two dozen regions and their mappings in a small space, so that they collide often.
fn requests() -> impl Strategy<Value = Vec<WantedRegion>> {
    let mapping = (1u8..4, 0u64..64, 0u64..8, 1u64..8);
    let region = (0u64..128, 1u64..16, prop::collection::vec(mapping, 0..4));
    prop::collection::vec(region, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    #[cfg_attr(miri, ignore = "slow, and there is nothing unsafe in it")]
    fn the_registry_agrees_with_lists_that_are_searched_from_end_to_end(requests in requests()) {
        let mut dev_mem = DevMem::new();
        let mut regions: Vec<PaRange> = Vec::new();
        let mut mappings: Vec<Mapping> = Vec::new();
        for (start, size, wanted) in requests {
            let region = range(start * M2, size * M2);
            let got = dev_mem.register(Kind::Ram, region, "r", None);
            prop_assert_eq!(got.is_ok(), !regions.iter().any(|it| it.overlaps(region)));
            let Ok(id) = got else { continue };
            regions.push(region);
            for (raw_vm, ipa, offset, size) in wanted {
                let it = mapping(raw_vm, ipa * M2, region.start().get() + offset * M2, size * M2);
                let ipas = range(it.ipa.get(), it.range.size());
                let free = !mappings.iter().any(|other| {
                    other.vm == it.vm && range(other.ipa.get(), other.range.size()).overlaps(ipas)
                });
                let fits = region.contains_range(it.range);
                let got = dev_mem.add_mapping(id, it);
                prop_assert_eq!(got.is_ok(), free && fits);
                if got.is_ok() {
                    mappings.push(it);
                }
            }
        }
        for page in 0..150 {
            let pa = page * M2 + 0x5678;
            let found = dev_mem.find(Pa::new(pa)).map(Region::range);
            let expected = regions.iter().find(|it| it.contains(Pa::new(pa))).copied();
            prop_assert_eq!(found, expected);
            let expected: Vec<_> = mappings
                .iter()
                .filter(|it| it.range.contains(Pa::new(pa)))
                .map(|it| (it.vm.get(), (it.ipa.get() + pa - it.range.start().get()) & !0xfff))
                .collect();
            let mut got = seen(&dev_mem, pa);
            let mut expected = expected;
            got.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(got, expected);
        }
        for (raw, page) in (1..5).flat_map(|raw| (0..80).map(move |page| (raw, page))) {
            let (vm, ipa) = (vm(raw), Ipa::new(page * M2 + 0x5678));
            let expected = mappings.iter().filter(|it| it.vm == vm).find_map(|it| it.pa_of(ipa));
            prop_assert_eq!(dev_mem.resolve(vm, ipa).map(|it| it.0), expected);
            let behind = |it: &&Mapping| it.vm == vm && it.last_ipa().is_some_and(|last| ipa <= last);
            let mut expected: Vec<Mapping> = mappings.iter().filter(behind).copied().collect();
            expected.sort_unstable_by_key(|it| it.ipa);
            let got: Vec<Mapping> = dev_mem.mappings_from(vm, ipa).copied().collect();
            prop_assert_eq!(got, expected);
        }
    }
}
