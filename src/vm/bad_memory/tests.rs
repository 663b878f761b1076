//! Trees of real VMs, edited, and read back by the reader that reads real machines.

use super::*;
use crate::addr::Pa;
use crate::platform::dt;
use crate::platform::fdt::CheckedFdt;
use crate::platform::machine::Machine;
use crate::vm::config::tests::{Tree as Config, read};
use crate::vm::guest_dt;
use proptest::prelude::*;

fn blob() -> Vec<u8> {
    let bundle = Config::full().bundle();
    let vm = &read(&bundle).unwrap()[0];
    guest_dt::build(vm, guest_dt::Surroundings::default()).unwrap()
}

fn bad(start: u64, pages: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), pages * PAGE_SIZE).unwrap()
}

/// Addresses and sizes.
type Ranges = Vec<(u64, u64)>;

fn pairs(value: Option<&[u8]>) -> Ranges {
    let (words, rest) = value.unwrap_or_default().as_chunks::<8>();
    assert!(rest.is_empty());
    let numbers: Vec<u64> = words.iter().map(|word| u64::from_be_bytes(*word)).collect();
    numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect()
}

/// The runs that the tree reserves, and those of its device memory.
fn told(blob: &[u8]) -> (Ranges, Ranges) {
    let fdt = CheckedFdt::new(blob).unwrap();
    let root = fdt.root().unwrap();
    let reserved = dt::child(root, "reserved-memory");
    let children = reserved.into_iter().flat_map(|node| node.children());
    let ram = children.flat_map(|node| {
        assert_eq!(dt::value(node, "no-map"), Some(&[][..]));
        pairs(dt::value(node, "reg"))
    });
    let device = dt::child(root, "device-memory").unwrap();
    (ram.collect(), pairs(dt::value(device, "cordon,bad-ranges")))
}

#[test]
fn nothing_bad_changes_nothing_that_is_said() {
    let edited = describe(&blob(), &[]).unwrap();
    assert_eq!(told(&edited), (Vec::new(), Vec::new()));
    let fdt = CheckedFdt::new(&edited).unwrap();
    assert!(dt::child(fdt.root().unwrap(), "reserved-memory").is_none());
}

#[test]
fn bad_ram_is_reserved_and_bad_device_memory_is_listed() {
    let lost = [
        bad(0x4000_3000, 2),
        bad(0x4100_0000, 1),
        bad(0x10_0000_5000, 1),
    ];
    let edited = describe(&blob(), &lost).unwrap();
    let (ram, device) = told(&edited);
    assert_eq!(ram, [(0x4000_3000, 0x2000), (0x4100_0000, 0x1000)]);
    assert_eq!(device, [(0x10_0000_5000, 0x1000)]);
    // Whoever reads the machine finds everything else as before, and the bad pages reserved.
    let fdt = CheckedFdt::new(&edited).unwrap();
    let guest = Machine::from_fdt(&fdt, Pa::new(0x4300_0000)).unwrap();
    let reserves = |pa| {
        guest
            .reserved
            .iter()
            .any(|it| it.range.contains(Pa::new(pa)))
    };
    assert!(reserves(0x4000_3000) && reserves(0x4000_4fff) && reserves(0x4100_0000));
    assert!(!reserves(0x4000_2fff) && !reserves(0x4000_5000));
    assert_eq!(guest.ram[0].size(), 0x0400_0000);
}

#[test]
fn a_tree_that_has_reserved_memory_gets_more_of_it_and_editing_twice_is_fine() {
    let once = describe(&blob(), &[bad(0x4000_3000, 1)]).unwrap();
    let twice = describe(&once, &[bad(0x4000_8000, 1)]).unwrap();
    let (ram, _) = told(&twice);
    assert_eq!(ram, [(0x4000_3000, 0x1000), (0x4000_8000, 0x1000)]);
}

#[test]
fn a_run_over_the_end_of_memory_is_cut_there() {
    let edited = describe(&blob(), &[bad(0x43ff_f000, 4), bad(0x10_7fff_f000, 9)]).unwrap();
    let expected = ([(0x43ff_f000, 0x1000)], [(0x10_7fff_f000, 0x1000)]);
    let (ram, device) = told(&edited);
    assert_eq!((&ram[..], &device[..]), (&expected.0[..], &expected.1[..]));
}

#[test]
fn as_many_holes_as_can_be_known_still_fit() {
    let lost: Vec<IpaRange> = (0..4096)
        .map(|at| bad(0x4000_0000 + at * 0x2000, 1))
        .collect();
    let edited = describe(&blob(), &lost).unwrap();
    assert_eq!(told(&edited).0.len(), 4096);
}

#[test]
fn ranges_are_joined_whatever_their_order() {
    let pages = [
        (0x3000, 1),
        (0x1000, 1),
        (0x2000, 1),
        (0x1000, 1),
        (0x8000, 4),
        (0x9000, 1),
    ];
    let joined = runs(pages.into_iter().map(|(start, pages)| bad(start, pages)));
    assert_eq!(joined, [bad(0x1000, 3), bad(0x8000, 4)]);
    let bytes = IpaRange::new(Ipa::new(0x1fff), 2).unwrap();
    assert_eq!(runs([bytes].into_iter()), [bad(0x1000, 2)]);
    let top = [bad(u64::MAX - 0xfff, 1), bad(u64::MAX - 0x1fff, 1)];
    assert_eq!(runs(top.into_iter()), [bad(u64::MAX - 0x1fff, 2)]);
}

#[test]
fn a_file_goes_where_nothing_is_lost_in_steps_from_its_place() {
    let place = bad(0x20_0000, 1024);
    let fit =
        |size, step, lost: &[IpaRange]| first_fit(place, size, step, lost).map(|ipa| ipa.get());
    assert_eq!(fit(0x1800, 0x1000, &[]), Some(0x20_0000));
    let lost = [bad(0x20_1000, 1), bad(0x20_3000, 1), bad(0x9_0000, 1)];
    assert_eq!(fit(0x1800, 0x1000, &lost), Some(0x20_4000));
    assert_eq!(fit(0x1000, 0x1000, &lost), Some(0x20_0000));
    assert_eq!(fit(0x1800, 0x20_0000, &lost), Some(0x40_0000));
    assert_eq!(fit(0x40_0000, 0x20_0000, &lost), None);
    assert_eq!(fit(0x1000, 0x1000, &[bad(0x20_0000, 1024)]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_damaged_tree_is_refused_or_edited_but_never_panics(at in 0_usize..1200, value in any::<u8>()) {
        let mut blob = blob();
        if let Some(byte) = blob.get_mut(at) {
            *byte = value;
        }
        let _ = describe(&blob, &[bad(0x4000_3000, 1)]);
    }
}
