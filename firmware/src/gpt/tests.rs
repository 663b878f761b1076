//! The table as the hardware walks it, against a plain set of page numbers.

use std::boxed::Box;
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

#[derive(Default)]
struct Recorder(Vec<&'static str>);

impl Tlb for Recorder {
    fn publish(&mut self) {
        self.0.push("publish");
    }

    fn invalidate(&mut self) {
        self.0.push("invalidate");
    }
}

/// What [`tables`] has made, for the leak checker.
static KEPT: Mutex<Vec<(&'static Table, &'static [Table])>> = Mutex::new(Vec::new());

/// A table on the heap, never on the stack: 128 KiB each.
pub(crate) fn tables<const N: usize>() -> (&'static Table, &'static [Table; N]) {
    let pool: Vec<Table> = (0..N).map(|_| Table::new()).collect();
    let pool: Box<[Table; N]> = pool.into_boxed_slice().try_into().unwrap();
    let (level0, pool) = (&*Box::leak(Box::new(Table::new())), &*Box::leak(pool));
    KEPT.lock().unwrap().push((level0, pool));
    (level0, pool)
}

/// The GPI of `pa` as a walk finds it (Arm ARM D9.3), from the tables' memory alone.
fn walk<const N: usize>(gpt: &Gpt<'_, N>, pa: u64) -> u64 {
    let entry = gpt.level0.0[usize::try_from(pa >> 30).unwrap()].load(Ordering::Relaxed);
    match entry & 0xf {
        1 => entry >> 4 & 0xf,
        3 => {
            let table = gpt
                .pool
                .iter()
                .find(|table| table.address() == entry & !0xfff)
                .unwrap();
            let word = table.0[usize::try_from(pa >> 16 & 0x3fff).unwrap()].load(Ordering::Relaxed);
            word >> (4 * (pa >> 12 & 0xf)) & 0xf
        }
        other => unreachable!("reserved level-0 entry {other}"),
    }
}

fn span(pa: u64, pages: u64) -> Span {
    Span::new(pa, pages).unwrap()
}

#[test]
fn only_memory_that_is_not_the_firmwares_can_be_poisoned() {
    assert_eq!(Span::new(0x4000_0000, 0), Err(Refusal::Empty));
    for own in [0, 0x0e00_0000, 0x0904_0fff, 0x0fff_ffff] {
        assert_eq!(Span::new(own, 1), Err(Refusal::NotMemory), "{own:#x}");
    }
    assert!(Span::new(0x1000_0000, 1).is_ok());
    assert!(Span::new((1 << 44) - 1, 1).is_ok());
    assert_eq!(Span::new((1 << 44) - 1, 2), Err(Refusal::NotMemory));
    assert_eq!(Span::new(1 << 44, 1), Err(Refusal::NotMemory));
    assert_eq!(Span::new(0x4000_0000, u64::MAX), Err(Refusal::NotMemory));
    assert_eq!(Span::new(u64::MAX, 1), Err(Refusal::NotMemory));
}

#[test]
fn exactly_the_named_page_is_lost_and_comes_back() {
    let (level0, pool) = tables::<2>();
    let (mut gpt, mut tlb) = (Gpt::new(level0, pool), Recorder::default());
    let page = 0x80_1234_5000;
    assert_eq!(gpt.poison(span(page + 0xabc, 1), &mut tlb), Ok(1));
    assert_eq!(
        [
            walk(&gpt, page - 1),
            walk(&gpt, page),
            walk(&gpt, page + 0x1000)
        ],
        [15, 0, 15]
    );
    assert_eq!(
        gpt.poison(span(page, 1), &mut tlb),
        Ok(0),
        "again changes nothing"
    );
    assert_eq!((gpt.poisoned(), gpt.tables_free()), (1, 1));
    assert_eq!(gpt.heal(span(page, 1), &mut tlb), 1);
    assert_eq!(walk(&gpt, page), 15);
    assert_eq!(
        (gpt.poisoned(), gpt.tables_free()),
        (0, 2),
        "the table was given back"
    );
}

#[test]
fn a_table_is_filled_before_it_is_linked_and_tlbs_are_invalidated_last() {
    let (level0, pool) = tables::<1>();
    let (mut gpt, mut tlb) = (Gpt::new(level0, pool), Recorder::default());
    gpt.poison(span(GIB, 1), &mut tlb).unwrap();
    assert_eq!(tlb.0, ["publish", "publish", "invalidate"]);
}

#[test]
fn a_change_that_needs_more_tables_than_there_are_changes_nothing() {
    let (level0, pool) = tables::<2>();
    let (mut gpt, mut tlb) = (Gpt::new(level0, pool), Recorder::default());
    let three_gibs = span(2 * GIB - 0x1000, (GIB >> 12) + 2);
    assert_eq!(gpt.poison(three_gibs, &mut tlb), Err(Refusal::NoTable));
    assert_eq!((gpt.poisoned(), gpt.tables_free()), (0, 2));
    assert_eq!(walk(&gpt, 2 * GIB - 0x1000), 15);
    assert_eq!(
        gpt.poison(span(2 * GIB - 0x1000, 2), &mut tlb),
        Ok(2),
        "two GiBs fit"
    );
    assert_eq!([walk(&gpt, 2 * GIB - 1), walk(&gpt, 2 * GIB)], [0, 0]);
    assert_eq!(
        gpt.poison(span(5 * GIB, 1), &mut tlb),
        Err(Refusal::NoTable)
    );
    assert_eq!(gpt.heal(span(2 * GIB, 1), &mut tlb), 1);
    assert_eq!(
        gpt.poison(span(5 * GIB, 1), &mut tlb),
        Ok(1),
        "with the table of the healed GiB"
    );
    assert_eq!(
        [
            walk(&gpt, 2 * GIB - 1),
            walk(&gpt, 2 * GIB),
            walk(&gpt, 5 * GIB)
        ],
        [0, 15, 0]
    );
}

#[test]
#[cfg_attr(miri, ignore = "a quarter of a million pages")]
fn a_whole_gib_can_be_lost() {
    let (level0, pool) = tables::<1>();
    let (mut gpt, mut tlb) = (Gpt::new(level0, pool), Recorder::default());
    assert_eq!(gpt.poison(span(4 * GIB, GIB >> 12), &mut tlb), Ok(1 << 18));
    assert_eq!(
        [
            walk(&gpt, 4 * GIB),
            walk(&gpt, 5 * GIB - 1),
            walk(&gpt, 5 * GIB)
        ],
        [0, 0, 15]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

    #[test]
    fn the_walk_agrees_with_a_set_of_pages(
        steps in proptest::collection::vec((any::<bool>(), 0u64..96, 1u64..80), 1..24),
    ) {
        // Pages around the border between two GiBs, so that spans cross it and words.
        let base = ((3 * GIB) >> 12) - 48;
        let (level0, pool) = tables::<2>();
        let (mut gpt, mut tlb) = (Gpt::new(level0, pool), Recorder::default());
        let mut model = BTreeSet::new();
        for (poison, first, pages) in steps {
            let before = model.len();
            let range = base + first..base + first + pages;
            let span = span(range.start << 12, pages);
            let changed = if poison {
                model.extend(range);
                gpt.poison(span, &mut tlb).unwrap()
            } else {
                model.retain(|page| !range.contains(page));
                gpt.heal(span, &mut tlb)
            };
            prop_assert_eq!(changed, before.abs_diff(model.len()) as u64);
            prop_assert_eq!(gpt.poisoned(), model.len() as u64);
        }
        let gibs = model.iter().map(|page| page >> 18).collect::<BTreeSet<_>>().len();
        prop_assert_eq!(gpt.tables_free(), 2 - gibs);
        for page in base - 16..base + 192 {
            let expected = if model.contains(&page) { 0 } else { 15 };
            prop_assert_eq!(walk(&gpt, page << 12), expected, "page {:#x}", page);
            let range = PaRange::new(Pa::new((page << 12) + 8), 8).unwrap();
            prop_assert_eq!(gpt.is_poisoned(range), expected == 0);
        }
    }
}
