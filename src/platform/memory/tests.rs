use super::*;
use alloc::collections::BTreeSet;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn range(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa::new(start), size).unwrap()
}

fn free(spans: &[(u64, u64)]) -> FreeMemory {
    FreeMemory::new(spans.iter().map(|&(start, size)| range(start, size)), [])
}

fn spans(memory: &FreeMemory) -> Vec<(u64, u64)> {
    memory
        .ranges()
        .map(|range| (range.start().get(), range.size()))
        .collect()
}

#[test]
fn ram_is_sorted_merged_and_less_what_is_reserved() {
    let memory = FreeMemory::new(
        [
            range(0x8000, 0x2000),
            range(0x1000, 0x3000),
            range(0x3000, 0x5000),
        ],
        [range(0x2fff, 2), range(0x9fff, 1), range(0x10_0000, 0x1000)],
    );
    assert_eq!(spans(&memory), [(0x1000, 0x1000), (0x4000, 0x5000)]);
    assert_eq!((memory.total(), memory.largest()), (0x6000, 0x5000));
}

#[test]
fn a_page_counts_only_where_all_of_it_is_ram() {
    assert_eq!(spans(&free(&[(0x1800, 0x1000)])), []);
    assert_eq!(spans(&free(&[(0x1800, 0x800), (0x2000, 0x10)])), []);
    assert_eq!(
        spans(&free(&[(0x1000, 0x800), (0x1800, 0x800)])),
        [(0x1000, 0x1000)]
    );
}

#[test]
fn the_end_of_the_address_space_does_not_wrap() {
    let top = u64::MAX - 0x1fff;
    assert_eq!(spans(&free(&[(top, 0x2000)])), [(top, 0x1000)]);
    let memory = FreeMemory::new([range(top, 0x2000)], [range(u64::MAX, 1)]);
    assert_eq!(spans(&memory), [(top, 0x1000)]);
    assert_eq!(
        free(&[(top, 0x2000)]).take(range(top, 0x2000)),
        Err(MemoryError::NotFree {
            range: range(top, 0x2000)
        })
    );
}

#[test]
fn exactly_the_range_named_is_taken_or_nothing() {
    let mut memory = free(&[(0x1000, 0x8000)]);
    memory.take(range(0x3000, 0x2000)).unwrap();
    assert_eq!(spans(&memory), [(0x1000, 0x2000), (0x5000, 0x4000)]);
    for taken in [
        range(0x2000, 0x2000),
        range(0x4000, 0x1000),
        range(0x10_0000, 0x1000),
    ] {
        assert_eq!(
            memory.take(taken),
            Err(MemoryError::NotFree { range: taken })
        );
    }
    assert_eq!(
        memory.take(range(0x1800, 0x1000)),
        Err(MemoryError::Misaligned)
    );
    assert_eq!(
        memory.take(range(0x1000, 0x1800)),
        Err(MemoryError::Misaligned)
    );
    assert_eq!(memory.total(), 0x6000);
}

#[test]
fn a_gigabyte_guest_lies_congruent_to_its_ipa_modulo_a_gigabyte() {
    let mut memory = free(&[(0x4000_0000, 8 * GIB)]);
    let ram = memory
        .allocate_for(Ipa::new(0x1_4020_0000), 2 * GIB, &[GIB])
        .unwrap();
    assert_eq!(ram.start().get() % GIB, 0x20_0000);
    assert_eq!(ram.size(), 2 * GIB);
}

#[test]
fn a_gigabyte_guest_that_cannot_lie_so_lies_congruent_modulo_2_mib() {
    let mut memory = free(&[(0x4000_0000 + 64 * MIB, GIB + 512 * MIB)]);
    let ram = memory
        .allocate_for(Ipa::new(0x4000_0000), GIB, &[GIB])
        .unwrap();
    assert_eq!((ram.start().get() % BLOCK_2M, ram.size()), (0, GIB));
    // What others will map counts on its blocks.
    let mut memory = free(&[(0x4000_0000 + 64 * MIB, GIB + 512 * MIB)]);
    let carved = memory.carve(&[ReservedWord::Anywhere { size: GIB }]);
    assert!(matches!(
        carved[..],
        [Err(MemoryError::NoRoom { align: GIB, .. })]
    ));
}

#[test]
fn a_guest_lies_congruent_modulo_the_largest_of_its_blocks_that_has_a_place() {
    let blocks = [512 * MIB, 32 * MIB];
    let at = |ram: &[(u64, u64)], size| {
        let mut memory = free(ram);
        let range = memory.allocate_for(Ipa::new(0x4000_0000), size, &blocks);
        range.unwrap().start().get()
    };
    let ram = [(0x4000_0000 + 2 * MIB, GIB)];
    assert_eq!(at(&ram, 512 * MIB), 0x6000_0000);
    assert_eq!(
        at(&ram, 768 * MIB) % (32 * MIB),
        0,
        "no place for the larger"
    );
    assert_eq!(at(&ram, 64 * MIB) % (32 * MIB), 0);
    let small = [(0x4000_0000 + 2 * MIB, 32 * MIB)];
    assert_eq!(at(&small, 32 * MIB), 0x4020_0000, "nor for any");
}

#[test]
fn a_small_guest_takes_from_a_broken_gigabyte_and_spares_the_whole_ones() {
    let mut memory = free(&[(GIB + 256 * MIB, 3 * GIB)]);
    let ram = memory
        .allocate_for(Ipa::new(0x4000_0000), 64 * MIB, &[GIB])
        .unwrap();
    assert!(ram.last().get() < 2 * GIB);
    assert_eq!(
        memory.allocate(2 * GIB, GIB, 0).unwrap().start().get(),
        2 * GIB
    );
}

#[test]
fn of_several_ranges_the_smallest_that_fits_is_used() {
    let mut memory = free(&[(0x1000, 0x8000), (0x2_0000, 0x3000), (0x4_0000, 0x2000)]);
    assert_eq!(
        memory.allocate(0x3000, 0x1000, 0).unwrap().start().get(),
        0x2_0000
    );
    assert_eq!(
        memory.allocate(0x1000, 0x1000, 0).unwrap().start().get(),
        0x4_0000
    );
}

#[test]
fn too_much_is_refused_with_what_there_is() {
    let mut memory = free(&[(0x20_0000, 4 * MIB)]);
    assert_eq!(
        memory.allocate_for(Ipa::new(0), 6 * MIB, &[GIB]),
        Err(MemoryError::NoRoom {
            size: 6 * MIB,
            align: BLOCK_2M,
            largest: 4 * MIB
        })
    );
    assert_eq!(
        memory.allocate(PAGE_SIZE, GIB, 0),
        Err(MemoryError::NoRoom {
            size: PAGE_SIZE,
            align: GIB,
            largest: 4 * MIB
        })
    );
    assert_eq!(spans(&memory), [(0x20_0000, 4 * MIB)]);
}

#[test]
fn a_request_that_is_no_whole_number_of_pages_is_refused() {
    let mut memory = free(&[(0, GIB)]);
    let refused = [
        (0, 4096, 0),
        (4097, 4096, 0),
        (4096, 4096 * 3, 0),
        (4096, 512, 0),
    ];
    for (size, align, offset) in refused {
        assert_eq!(
            memory.allocate(size, align, offset),
            Err(MemoryError::Misaligned)
        );
    }
    assert_eq!(
        memory.allocate(4096, 8192, 8192),
        Err(MemoryError::Misaligned)
    );
    assert_eq!(memory.allocate(4096, 8192, 1), Err(MemoryError::Misaligned));
}

#[test]
fn reserved_words_that_name_a_place_come_first() {
    let mut memory = free(&[(GIB, 4 * GIB)]);
    let named = ReservedWord::At(range(GIB, GIB));
    let words = [ReservedWord::Anywhere { size: 2 * GIB }, named, named];
    let carved = memory.carve(&words);
    let expected = [
        Ok(range(2 * GIB, 2 * GIB)),
        Ok(range(GIB, GIB)),
        Err(MemoryError::NotFree {
            range: range(GIB, GIB),
        }),
    ];
    assert_eq!(carved, expected);
    assert_eq!(spans(&memory), [(4 * GIB, GIB)]);
    let no_room = MemoryError::NoRoom {
        size: 2 * GIB,
        align: GIB,
        largest: GIB,
    };
    assert_eq!(memory.carve(&words[..1]), [Err(no_room)]);
}

/// Page numbers, one by one: what the spans stand for.
fn pages(memory: &FreeMemory) -> BTreeSet<u64> {
    memory.ranges().flat_map(|range| range.pfns()).collect()
}

proptest! {
    #![proptest_config(crate::platform::fuzz_config())]

    #[test]
    fn the_free_pages_are_ram_and_not_reserved(
        ram in proptest::collection::vec((0_u64..64, 1_u64..16), 0..6),
        reserved in proptest::collection::vec((0_u64..80 * 4096, 1_u64..9000), 0..6),
    ) {
        let ram: Vec<_> = ram.iter().map(|&(at, n)| range(at * PAGE_SIZE, n * PAGE_SIZE)).collect();
        let reserved: Vec<_> = reserved.iter().map(|&(at, n)| range(at, n)).collect();
        let memory = FreeMemory::new(ram.iter().copied(), reserved.iter().copied());
        let mut model: BTreeSet<u64> = ram.iter().flat_map(|range| range.pfns()).collect();
        for page in reserved.iter().flat_map(|range| range.pfns()) {
            model.remove(&page);
        }
        prop_assert_eq!(pages(&memory), model);
    }

    #[test]
    fn an_allocation_is_free_congruent_and_found_whenever_there_is_a_place(
        ram in proptest::collection::vec((0_u64..64, 1_u64..24), 1..5),
        requests in proptest::collection::vec((1_u64..12, 0_u32..4, any::<u64>()), 1..8),
    ) {
        let ram = ram.iter().map(|&(at, n)| range(at * PAGE_SIZE, n * PAGE_SIZE));
        let mut memory = FreeMemory::new(ram, []);
        for (count, order, offset) in requests {
            let before = pages(&memory);
            let align = 1_u64 << order;
            let offset = offset % align;
            let fits = |start: u64| {
                start % align == offset && (start..start + count).all(|page| before.contains(&page))
            };
            let possible = before.iter().any(|&start| fits(start));
            let result = memory.allocate(count * PAGE_SIZE, align * PAGE_SIZE, offset * PAGE_SIZE);
            prop_assert_eq!(result.is_ok(), possible);
            let taken: BTreeSet<u64> = result.iter().flat_map(|range| range.pfns()).collect();
            if let Ok(range) = result {
                prop_assert!(fits(range.start().pfn().get()));
            }
            prop_assert_eq!(pages(&memory), &before - &taken);
        }
    }
}

#[test]
fn errors_are_keys_and_values() {
    let errors = [
        MemoryError::NoRoom {
            size: 1,
            align: 2,
            largest: 3,
        },
        MemoryError::NotFree {
            range: range(0x1000, 0x1000),
        },
        MemoryError::Misaligned,
    ];
    let lines: Vec<_> = errors
        .iter()
        .map(|error| alloc::format!("{error}"))
        .collect();
    assert_eq!(
        lines,
        [
            "why=no-room size=0x1 align=0x2 largest=0x3",
            "why=not-free pa=0x1000 size=0x1000",
            "why=misaligned"
        ]
    );
}

#[test]
fn memory_with_a_bad_page_is_taken_only_where_there_is_no_other() {
    let range = |start, size| PaRange::new(Pa::new(start), size).unwrap();
    let mut free = FreeMemory::new([range(0, 8 << 20)], []);
    let bad = [range(0x1000, PAGE_SIZE), range(0x40_0000, 1)];
    let take = |free: &mut FreeMemory| {
        let taken = free.allocate_good_for(Ipa::new(0), 2 << 20, &[GIB], &bad);
        taken.map(|range| range.start().get() >> 20)
    };
    let mut good = [take(&mut free).unwrap(), take(&mut free).unwrap()];
    good.sort_unstable();
    assert_eq!(good, [2, 6]);
    let mut rest = [take(&mut free).unwrap(), take(&mut free).unwrap()];
    rest.sort_unstable();
    assert_eq!(rest, [0, 4]);
    assert!(take(&mut free).is_err());
}
