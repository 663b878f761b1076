use super::*;
use crate::platform::{damage, fuzz_config};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use proptest::prelude::*;
use vm_fdt::{FdtReserveEntry, FdtWriter};

const VIRT: &[u8] = include_bytes!("../testdata/qemu-virt.dtb");

/// A blob made of its parts; each part may be wrong.
struct Blob {
    structure: Vec<u32>,
    strings: Vec<u8>,
    reservations: Vec<u64>,
}

/// A name of up to three bytes as its word in the structure block.
fn name(text: &str) -> u32 {
    let mut bytes = [0; 4];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    u32::from_be_bytes(bytes)
}

impl Blob {
    /// The root with what is between its name and its end.
    fn new(inner: &[u32]) -> Self {
        let structure = [&[BEGIN_NODE, 0], inner, &[END_NODE, END]].concat();
        let strings = b"reg\0#size-cells\0\xff\0tail".to_vec();
        Self {
            structure,
            strings,
            reservations: [0, 0].to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let reservations: Vec<u8> = self
            .reservations
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect();
        let structure: Vec<u8> = self
            .structure
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect();
        let structure_at = 40 + reservations.len();
        let strings_at = structure_at + structure.len();
        let total = strings_at + self.strings.len();
        let header = [
            MAGIC as usize,
            total,
            structure_at,
            strings_at,
            40,
            17,
            16,
            0,
            self.strings.len(),
            structure.len(),
        ];
        let header: Vec<u8> = header
            .iter()
            .flat_map(|word| (*word as u32).to_be_bytes())
            .collect();
        [header, reservations, structure, self.strings.clone()].concat()
    }
}

fn refused(blob: &Blob) -> FdtError {
    CheckedFdt::new(&blob.bytes()).unwrap_err()
}

/// Offset of the word `index` of the structure in [`Blob::new`].
fn at(index: usize) -> usize {
    40 + 16 + index * 4
}

fn with_word(offset: usize, value: u32) -> FdtError {
    let mut blob = VIRT.to_vec();
    blob[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    CheckedFdt::new(&blob).unwrap_err()
}

/// Looks at everything a reader can look at.
fn read_all(fdt: &CheckedFdt<'_>) -> usize {
    fn visit(node: FdtNode<'_, '_>) -> usize {
        let properties = node
            .properties()
            .map(|property| property.name.len() + property.value.len());
        properties.sum::<usize>() + node.children().map(visit).sum::<usize>()
    }
    fdt.root().map_or(0, visit) + fdt.reservations().count()
}

#[test]
fn a_blob_of_qemu_is_read_completely() {
    let fdt = CheckedFdt::new(VIRT).unwrap();
    assert_eq!(fdt.size(), VIRT.len());
    let children: Vec<String> = fdt
        .root()
        .unwrap()
        .children()
        .map(|node| node.name.to_string())
        .collect();
    assert!(children.iter().any(|name| name == "psci"));
    assert!(children.iter().any(|name| name == "chosen"));
    assert!(read_all(&fdt) > 1000);
}

#[test]
fn a_blob_may_be_followed_by_something_else() {
    let longer = [VIRT, &[0xff; 100]].concat();
    assert_eq!(CheckedFdt::new(&longer).unwrap().size(), VIRT.len());
    assert_eq!(CheckedFdt::total_size(&longer[..40]), Ok(VIRT.len()));
}

#[test]
fn reservations_are_read() {
    let entries = [FdtReserveEntry::new(0x4000_0000, 0x1000).unwrap()];
    let mut writer = FdtWriter::new_with_mem_reserv(&entries).unwrap();
    let root = writer.begin_node("").unwrap();
    writer.end_node(root).unwrap();
    let blob = writer.finish().unwrap();
    let fdt = CheckedFdt::new(&blob).unwrap();
    let found: Vec<_> = fdt.reservations().collect();
    assert_eq!(found, [PaRange::new(Pa::new(0x4000_0000), 0x1000).unwrap()]);
}

#[test]
fn a_header_that_does_not_hold_is_refused() {
    assert_eq!(
        CheckedFdt::new(&VIRT[..39]).unwrap_err(),
        FdtError::Truncated
    );
    assert_eq!(
        CheckedFdt::new(&VIRT[..VIRT.len() - 1]).unwrap_err(),
        FdtError::Truncated
    );
    assert_eq!(with_word(0, 0xd00d_feee), FdtError::BadMagic);
    assert_eq!(with_word(4, 39), FdtError::Truncated);
    assert_eq!(with_word(4, MAX_SIZE as u32 + 1), FdtError::TooBig);
    assert_eq!(with_word(20, 16), FdtError::BadVersion);
    assert_eq!(with_word(24, 18), FdtError::BadVersion);
    for (offset, value) in [
        (8, u32::MAX),
        (8, 42),
        (12, u32::MAX),
        (16, 44),
        (32, u32::MAX),
    ] {
        assert_eq!(with_word(offset, value), FdtError::BadBlock, "{offset}");
    }
    assert_eq!(with_word(36, u32::MAX), FdtError::BadBlock);
    assert_eq!(
        with_word(16, (VIRT.len() as u32 + 8) & !7),
        FdtError::BadBlock
    );
}

#[test]
fn a_reservation_block_without_end_or_with_a_wrapping_entry_is_refused() {
    let mut blob = Blob::new(&[]);
    blob.reservations = [u64::MAX, 2, 0, 0].to_vec();
    assert_eq!(refused(&blob), FdtError::BadReservation);
    // Nothing but ones from the block to the end of the blob.
    let mut bytes = Blob::new(&[]).bytes();
    bytes[40..].fill(1);
    assert_eq!(
        CheckedFdt::new(&bytes).unwrap_err(),
        FdtError::BadReservation
    );
}

#[test]
fn tokens_come_in_the_order_of_the_specification() {
    let child = [BEGIN_NODE, name("a"), END_NODE];
    let property = [PROP, 0, 0];
    assert!(CheckedFdt::new(&Blob::new(&[&property[..], &child].concat()).bytes()).is_ok());
    let late_property = Blob::new(&[&child[..], &property].concat());
    assert_eq!(refused(&late_property), FdtError::BadToken { at: at(5) });
    assert_eq!(refused(&Blob::new(&[NOP])), FdtError::Nop { at: at(2) });
    assert_eq!(refused(&Blob::new(&[5])), FdtError::BadToken { at: at(2) });
    assert_eq!(
        refused(&Blob::new(&[END])),
        FdtError::BadToken { at: at(2) }
    );
    let mut second_root = Blob::new(&[]);
    second_root.structure.insert(3, BEGIN_NODE);
    assert_eq!(refused(&second_root), FdtError::BadToken { at: at(3) });
    let mut no_root = Blob::new(&[]);
    no_root.structure = [END].to_vec();
    assert_eq!(refused(&no_root), FdtError::BadToken { at: at(0) });
    let mut unfinished = Blob::new(&[]);
    unfinished.structure.truncate(2);
    assert_eq!(refused(&unfinished), FdtError::Unfinished);
}

#[test]
fn nodes_are_nested_no_deeper_than_the_reader_goes() {
    let nested = |depth: usize| {
        let begin = [BEGIN_NODE, name("a")].repeat(depth - 1);
        Blob::new(&[begin, [END_NODE].repeat(depth - 1)].concat())
    };
    let deepest = nested(MAX_DEPTH).bytes();
    assert_eq!(read_all(&CheckedFdt::new(&deepest).unwrap()), 0);
    let too_deep = FdtError::TooDeep {
        at: at(2 * MAX_DEPTH),
    };
    assert_eq!(refused(&nested(MAX_DEPTH + 1)), too_deep);
}

#[test]
fn names_are_text_that_ends() {
    let bad = |inner: &[u32]| refused(&Blob::new(inner));
    let bad_name = FdtError::BadName { at: at(2) };
    assert_eq!(
        bad(&[BEGIN_NODE, 0, END_NODE]),
        FdtError::BadName { at: at(3) }
    );
    assert_eq!(
        bad(&[BEGIN_NODE, 0x6180_0000, END_NODE]),
        FdtError::BadName { at: at(3) }
    );
    // Offset of "\xff", of the empty string behind it, of a string without an end, of nothing.
    for offset in [16, 15, 18, 1000] {
        assert_eq!(bad(&[PROP, 0, offset]), bad_name, "{offset}");
    }
    let mut long = Blob::new(&[PROP, 0, 0]);
    long.strings = [&[b'a'; MAX_NAME][..], &[0]].concat();
    assert!(CheckedFdt::new(&long.bytes()).is_ok());
    long.strings = [&[b'a'; MAX_NAME + 1][..], &[0]].concat();
    assert_eq!(refused(&long), bad_name);
    let mut named_root = Blob::new(&[]);
    named_root.structure[1] = name("a");
    assert_eq!(refused(&named_root), FdtError::BadName { at: at(1) });
}

#[test]
fn values_stay_inside_the_structure_block() {
    for len in [13, 0x7fff_ffff, u32::MAX] {
        let blob = Blob::new(&[PROP, len, 0, 0]);
        assert_eq!(refused(&blob), FdtError::BadValue { at: at(2) }, "{len}");
    }
}

#[test]
fn cell_counts_are_one_cell() {
    for (len, ok) in [(0, false), (4, true), (8, false)] {
        let inner = [&[PROP, len, 4][..], &[0].repeat(len as usize / 4)].concat();
        let result = CheckedFdt::new(&Blob::new(&inner).bytes()).map(|_| ());
        let expected = if ok {
            Ok(())
        } else {
            Err(FdtError::BadCells { at: at(2) })
        };
        assert_eq!(result, expected);
    }
}

#[test]
fn an_error_names_itself_and_the_place() {
    assert_eq!(
        FdtError::BadToken { at: 0x40 }.to_string(),
        "why=bad-token at=0x40"
    );
    assert_eq!(FdtError::Unfinished.to_string(), "why=unfinished");
}

proptest! {
    #![proptest_config(fuzz_config())]

    #[test]
    fn a_damaged_blob_is_refused_or_read_without_a_panic(damage in damage(VIRT.len())) {
        let mut blob = VIRT.to_vec();
        damage.apply(&mut blob);
        if let Ok(fdt) = CheckedFdt::new(&blob) {
            read_all(&fdt);
        }
    }

    #[test]
    fn random_tokens_are_refused_or_read_without_a_panic(
        inner in proptest::collection::vec(
            prop_oneof![
                4 => Just(BEGIN_NODE), 4 => Just(name("a")), 4 => Just(END_NODE),
                2 => Just(PROP), 4 => 0..20_u32, 1 => any::<u32>(),
            ],
            0..40,
        )
    ) {
        let blob = Blob::new(&inner).bytes();
        if let Ok(fdt) = CheckedFdt::new(&blob) {
            read_all(&fdt);
        }
    }
}

/// VIRT with `NOP` put before every token.
fn with_nops() -> Vec<u8> {
    let start = offset(VIRT, 8).unwrap();
    let size = offset(VIRT, 36).unwrap();
    let strings_at = offset(VIRT, 12).unwrap();
    let strings = &VIRT[strings_at..][..offset(VIRT, 32).unwrap()];
    let mut tokens = Structure {
        bytes: &VIRT[start..start + size],
        strings,
        start,
        pos: 0,
    };
    let mut structure = Vec::new();
    loop {
        let from = tokens.pos;
        let token = tokens.next().unwrap();
        match token {
            BEGIN_NODE => tokens.node_name(from == 0).unwrap(),
            PROP => tokens.property(from).unwrap(),
            _ => {}
        }
        structure.extend_from_slice(&NOP.to_be_bytes());
        structure.extend_from_slice(&tokens.bytes[from..tokens.pos]);
        if token == END {
            break;
        }
    }
    let mut blob = VIRT[..start.min(strings_at)].to_vec();
    let (structure_at, strings_at) = (blob.len(), blob.len() + structure.len());
    let fields = [
        (4, strings_at + strings.len()),
        (8, structure_at),
        (12, strings_at),
        (36, structure.len()),
    ];
    for (at, value) in fields {
        blob[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
    }
    [&blob, structure.as_slice(), strings].concat()
}

#[test]
fn a_tree_with_nops_everywhere_is_read_as_the_same_tree() {
    let blob = with_nops();
    assert!(matches!(CheckedFdt::new(&blob), Err(FdtError::Nop { .. })));
    let closed_up = without_nops(&blob).unwrap().unwrap();
    let fdt = CheckedFdt::new(&closed_up).unwrap();
    assert_eq!(fdt.size(), blob.len());
    let original = CheckedFdt::new(VIRT).unwrap();
    assert_eq!(read_all(&fdt), read_all(&original));
    let machine = |fdt: &CheckedFdt<'_>| {
        let mut machine =
            crate::platform::machine::Machine::from_fdt(fdt, Pa::new(0x4000_0000)).unwrap();
        // The blob's own place, whose size differs.
        machine.reserved.clear();
        machine
    };
    assert_eq!(machine(&fdt), machine(&original));
}

#[test]
fn a_tree_without_nops_is_not_copied() {
    assert_eq!(without_nops(VIRT), Ok(None));
}

proptest! {
    #![proptest_config(fuzz_config())]

    /// Whatever is in it, closing it up does not panic, and what comes out is checked as all is.
    #[test]
    fn damaged_trees_with_nops_are_closed_up_or_refused(damage in damage(VIRT.len())) {
        let mut blob = with_nops();
        damage.apply(&mut blob);
        if let Ok(Some(closed_up)) = without_nops(&blob)
            && let Ok(fdt) = CheckedFdt::new(&closed_up)
        {
            read_all(&fdt);
        }
    }
}
