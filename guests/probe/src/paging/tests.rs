use super::*;
use proptest::prelude::*;

const ROOT: u64 = 0x1000;
const GIB: u64 = 1 << 30;
const MIB2: u64 = 2 << 20;

/// Tables at 0x1000, 0x2000, ...; at most `limit` of them.
struct Fake {
    tables: Vec<[u64; ENTRIES]>,
    limit: usize,
}

impl Fake {
    fn new(limit: usize) -> Self {
        Self {
            tables: vec![[0; ENTRIES]],
            limit,
        }
    }

    /// What `va` translates to: PA, leaf size, attribute bits.
    fn translate(&self, va: u64) -> Option<(u64, u64, u64)> {
        let mut table = ROOT;
        for level in 0..=LAST_LEVEL {
            let descriptor = self.read(table, index(va, level));
            if is_table(descriptor, level) {
                table = descriptor & ADDRESS;
                continue;
            }
            let size = leaf_size(level);
            let bits = descriptor & !ADDRESS & !0b11;
            let pa = (descriptor & ADDRESS) + va % size;
            return (descriptor & VALID != 0).then_some((pa, size, bits));
        }
        None
    }
}

impl Tables for Fake {
    fn new_table(&mut self) -> Option<u64> {
        if self.tables.len() == self.limit {
            return None;
        }
        self.tables.push([0; ENTRIES]);
        Some(self.tables.len() as u64 * PAGE_SIZE)
    }

    fn read(&self, table: u64, index: usize) -> u64 {
        self.tables[(table / PAGE_SIZE - 1) as usize][index]
    }

    fn write(&mut self, table: u64, index: usize, descriptor: u64) {
        let entry = &mut self.tables[(table / PAGE_SIZE - 1) as usize][index];
        assert_eq!(
            *entry & VALID,
            0,
            "a live entry was changed without break-before-make"
        );
        *entry = descriptor;
    }
}

#[test]
fn gigabytes_take_one_block_each() {
    let mut fake = Fake::new(3);
    let piece = Piece {
        va: 16 * GIB,
        pa: 64 * GIB,
        size: 2 * GIB,
    };
    map(&mut fake, ROOT, piece, Attributes::EL1_DATA).unwrap();
    let (pa, size, bits) = fake.translate(17 * GIB + 5).unwrap();
    assert_eq!(
        (pa, size, bits),
        (65 * GIB + 5, GIB, Attributes::EL1_DATA.0)
    );
    assert_eq!(fake.translate(18 * GIB), None);
    assert_eq!(fake.tables.len(), 2);
}

#[test]
fn blocks_need_both_addresses_aligned() {
    let mut fake = Fake::new(9);
    let piece = Piece {
        va: GIB,
        pa: GIB + MIB2,
        size: GIB,
    };
    map(&mut fake, ROOT, piece, Attributes::EL1_DATA).unwrap();
    assert_eq!(fake.translate(GIB).unwrap().1, MIB2);
    let piece = Piece {
        va: 4 * GIB,
        pa: GIB + PAGE_SIZE,
        size: MIB2,
    };
    map(&mut fake, ROOT, piece, Attributes::EL1_DATA).unwrap();
    assert_eq!(fake.translate(4 * GIB).unwrap().1, PAGE_SIZE);
}

#[test]
fn what_is_mapped_keeps_its_rights() {
    let mut fake = Fake::new(9);
    let text = Piece {
        va: GIB + 3 * PAGE_SIZE,
        pa: GIB + 3 * PAGE_SIZE,
        size: 2 * PAGE_SIZE,
    };
    map(&mut fake, ROOT, text, Attributes::EL1_CODE).unwrap();
    let ram = Piece {
        va: GIB,
        pa: GIB,
        size: 3 * MIB2,
    };
    map(&mut fake, ROOT, ram, Attributes::EL1_DATA).unwrap();
    let rights = |va| fake.translate(va).unwrap().2;
    assert_eq!(rights(GIB + 2 * PAGE_SIZE), Attributes::EL1_DATA.0);
    assert_eq!(rights(GIB + 3 * PAGE_SIZE), Attributes::EL1_CODE.0);
    assert_eq!(rights(GIB + 4 * PAGE_SIZE), Attributes::EL1_CODE.0);
    assert_eq!(rights(GIB + 5 * PAGE_SIZE), Attributes::EL1_DATA.0);
    assert_eq!(fake.translate(GIB + 2 * MIB2).unwrap().1, MIB2);
}

#[test]
fn running_out_of_tables_is_an_error() {
    let mut fake = Fake::new(3);
    let piece = Piece {
        va: PAGE_SIZE,
        pa: PAGE_SIZE,
        size: PAGE_SIZE,
    };
    assert_eq!(
        map(&mut fake, ROOT, piece, Attributes::EL1_DATA),
        Err(OutOfTables)
    );
}

#[test]
fn the_slot_of_a_level_is_where_the_walk_passes() {
    let mut fake = Fake::new(9);
    let piece = Piece {
        va: 5 * GIB + 7 * MIB2,
        pa: PAGE_SIZE,
        size: PAGE_SIZE,
    };
    map(&mut fake, ROOT, piece, Attributes::EL1_DATA).unwrap();
    let at = slot(&fake, ROOT, piece.va, 2).unwrap();
    assert_eq!(at.index, 7);
    let table = fake.read(at.table, at.index) & ADDRESS;
    assert_eq!(
        fake.read(table, 0),
        page_descriptor(PAGE_SIZE, Attributes::EL1_DATA)
    );
    assert_eq!(slot(&fake, ROOT, 4 * GIB, 2), None);
}

proptest! {
    #![proptest_config(crate::test_config())]

    #[test]
    fn every_page_of_a_piece_is_mapped_and_no_other(
        va in 0..600_000_u64,
        shift in prop_oneof![Just(0_u64), Just(512), Just(7)],
        pages in 1..2000_u64,
    ) {
        let mut fake = Fake::new(64);
        let (va, pa, size) = (va * PAGE_SIZE, (va + shift) * PAGE_SIZE, pages * PAGE_SIZE);
        map(&mut fake, ROOT, Piece { va, pa, size }, Attributes::EL0_DATA).unwrap();
        for offset in [0, size / 2, size - 1] {
            let (translated, _, bits) = fake.translate(va + offset).unwrap();
            prop_assert_eq!(translated, pa + offset);
            prop_assert_eq!(bits, Attributes::EL0_DATA.0);
        }
        prop_assert_eq!(fake.translate(va + size), None);
        prop_assert!(va == 0 || fake.translate(va - 1).is_none());
    }
}
