//! Blocks as Linux accepted them are decoded field by field; everything that can be written reads
//! back as it was; nothing that is cut, bent or made up panics.
#![expect(
    clippy::panic,
    reason = "a test that meets something else altogether ends"
)]

use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::addr::{PAGE_SIZE, Pa, PaRange};

/// Blocks that a stock Linux guest took, acted upon, and left in its memory.
const GOLDEN_MEMORY: &[u8] = include_bytes!("../testdata/cper_memory.bin");
const GOLDEN_ARM: &[u8] = include_bytes!("../testdata/cper_arm.bin");
const GOLDEN_ARM_NO_VA: &[u8] = include_bytes!("../testdata/cper_arm_no_va.bin");

const CASES: u32 = if cfg!(miri) { 2 } else { 512 };
/// Bytes of noise at most; making them up is slow under Miri.
const NOISE: usize = if cfg!(miri) { 48 } else { 300 };

fn only_section(bytes: &[u8]) -> Section<'_> {
    let mut sections = StatusBlock::parse(bytes).unwrap().sections();
    let section = sections.next().unwrap().unwrap();
    assert!(sections.next().is_none());
    section
}

fn memory_of(section: &Section<'_>) -> Memory {
    match section.body {
        Body::Memory(memory) => memory,
        other => panic!("not memory: {other:?}"),
    }
}

fn arm_of<'a>(section: &Section<'a>) -> ArmProcessor<'a> {
    match section.body {
        Body::ArmProcessor(arm) => arm,
        other => panic!("not an ARM processor: {other:?}"),
    }
}

/// A copy of `bytes` with those from `at` on replaced.
fn patched(bytes: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    copy[at..at + with.len()].copy_from_slice(with);
    copy
}

/// Where the body of the first section begins in a block with a revision 0x300 entry.
const BODY: usize = 20 + 72;

#[test]
fn the_memory_record_that_linux_took_says_which_page_is_lost() {
    let block = StatusBlock::parse(GOLDEN_MEMORY).unwrap();
    assert_eq!(block.severity(), Severity::Recoverable);
    assert!(block.status().has_uncorrected());
    assert_eq!(block.status().claimed_sections(), 1);

    let section = only_section(GOLDEN_MEMORY);
    let memory = memory_of(&section);
    let page = Pa::new(0x41c9_2000);
    assert_eq!(memory, Memory::page(page, MemoryErrorType::MULTI_BIT_ECC));
    assert_eq!(memory.poisoned(), Ok(PaRange::new(page, 0x1000).unwrap()));
    assert_eq!(
        section.line().to_string(),
        "section=memory severity=recoverable pa=0x41c92000 mask=0xfffffffffffff000 \
         type=multi-bit-ecc time=2026-11-21T00:00:01"
    );
}

#[test]
fn the_arm_record_that_linux_took_names_the_access() {
    let section = only_section(GOLDEN_ARM);
    let arm = arm_of(&section);
    assert_eq!(arm.mpidr, Some(0x8000_0000));
    assert_eq!(arm.midr, 0x414f_d0c1);
    assert_eq!(arm.running, Some(true));
    assert_eq!(arm.psci_state, None);
    let errors: Vec<_> = arm.errors().collect();
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].kind, ErrorKind::CACHE);
    assert_eq!(errors[0].virtual_address, Some(0xffff_8d04_9040));
    assert_eq!(errors[0].physical_address, Some(Pa::new(0x41c8_d040)));
    assert_eq!(errors[0].poisoned_page(), Some(Pa::new(0x41c8_d000)));
    assert_eq!(
        section.line().to_string(),
        "section=arm-processor severity=recoverable pa=0x41c8d040 va=0xffff8d049040 type=cache \
         error_flags=0x0 details=0x450017 mpidr=0x80000000 midr=0x414fd0c1 running=true \
         time=2026-11-21T00:00:02"
    );
}

#[test]
fn fields_without_their_validation_bit_are_absent() {
    let section = only_section(GOLDEN_ARM_NO_VA);
    assert_eq!(section.timestamp, None);
    let error = arm_of(&section).errors().next().unwrap();
    assert_eq!(error.virtual_address, None);
    assert_eq!(error.physical_address, Some(Pa::new(0x7c1c_b000)));

    // No address, no mask: the numbers are still in their places and must not be believed.
    let blind = patched(GOLDEN_MEMORY, BODY, &[0, 0x40]);
    let memory = memory_of(&only_section(&blind));
    assert_eq!((memory.address, memory.address_mask), (None, None));
    assert_eq!(memory.poisoned(), Err(RangeError::NoAddress));
}

#[test]
fn reports_for_people_have_a_line_for_each_field() {
    let report = only_section(GOLDEN_MEMORY).report().to_string();
    assert_eq!(
        report.lines().next().unwrap().trim_end(),
        "  section         memory"
    );
    assert!(
        report.contains("  pa              0x41c92000\n"),
        "{report}"
    );
}

#[test]
fn the_writer_makes_the_very_bytes_that_linux_took() {
    let mut buffer = [0xa5; 512];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(Severity::Recoverable, Timestamp::new(0x2026_1121_0000_0001));
    let memory = Memory::page(Pa::new(0x41c9_2000), MemoryErrorType::MULTI_BIT_ECC);
    writer.memory(&head, &memory).unwrap();
    assert_eq!(writer.finish(), GOLDEN_MEMORY);

    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let arm = arm_of(&only_section(GOLDEN_ARM));
    let errors: Vec<_> = arm.errors().collect();
    let record = ArmRecord {
        mpidr: arm.mpidr,
        affinity_level: None,
        midr: arm.midr,
        running: Some(true),
        errors: &errors,
    };
    let head = SectionHead {
        timestamp: only_section(GOLDEN_ARM).timestamp,
        ..head
    };
    writer.arm_processor(&head, &record).unwrap();
    assert_eq!(writer.finish(), GOLDEN_ARM);
}

#[test]
fn a_block_reports_the_worst_severity_and_how_many_errors_of_each_kind() {
    let mut buffer = [0; 1024];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    for severity in [
        Severity::Corrected,
        Severity::Recoverable,
        Severity::Recoverable,
    ] {
        let head = SectionHead::new(severity, Timestamp::from_sequence(1));
        writer.memory(&head, &Memory::default()).unwrap();
    }
    let block = StatusBlock::parse(writer.finish()).unwrap();
    assert_eq!(block.severity(), Severity::Recoverable);
    // UE, CE and several UEs, three entries.
    assert_eq!(block.status().raw(), 0b0111 | 3 << 4);
}

#[test]
fn what_does_not_fit_leaves_the_block_as_it_was() {
    let mut buffer = [0; 20 + 152 + 151];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(7));
    let memory = Memory::page(Pa::new(0x1000), MemoryErrorType::MULTI_BIT_ECC);
    writer.memory(&head, &memory).unwrap();
    assert_eq!(writer.memory(&head, &memory), Err(WriteError::NoSpace));
    assert_eq!(memory_of(&only_section(writer.finish())), memory);
    assert!(matches!(
        BlockWriter::new(&mut [0; 19]),
        Err(WriteError::NoSpace)
    ));
}

#[test]
fn values_that_the_short_format_has_no_bits_for_are_refused() {
    let mut buffer = [0; 512];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(Severity::Corrected, Timestamp::from_sequence(0));
    for memory in [
        Memory {
            device: Some(0x1_0000),
            ..Memory::default()
        },
        Memory {
            row: Some(0x4_0000),
            ..Memory::default()
        },
        Memory {
            format: MemoryFormat::Short,
            rank: Some(1),
            ..Memory::default()
        },
    ] {
        assert_eq!(writer.memory(&head, &memory), Err(WriteError::DoesNotFit));
    }
}

#[test]
fn old_memory_sections_of_73_bytes_are_read() {
    let mut old = GOLDEN_MEMORY[..BODY + 73].to_vec();
    old[12..16].copy_from_slice(&(72u32 + 73).to_le_bytes());
    old[20 + 24..20 + 28].copy_from_slice(&73u32.to_le_bytes());
    let memory = memory_of(&only_section(&old));
    assert_eq!(memory.format, MemoryFormat::Short);
    assert_eq!(memory.error_type, Some(MemoryErrorType::MULTI_BIT_ECC));
    assert_eq!(memory.address, Some(Pa::new(0x41c9_2000)));
}

#[test]
fn a_memory_section_of_any_length_is_right_or_wrong_to_all_who_read_it() {
    for kind in [section_type::MEMORY, section_type::MEMORY2] {
        for length in 0..100_u32 {
            let mut bytes = GOLDEN_MEMORY.to_vec();
            bytes.resize(BODY + length as usize, 0);
            bytes[12..16].copy_from_slice(&(72 + length).to_le_bytes());
            bytes[20..36].copy_from_slice(&kind.to_bytes());
            bytes[20 + 24..20 + 28].copy_from_slice(&length.to_le_bytes());
            assert_gists_agree(&StatusBlock::parse(&bytes).unwrap());
        }
    }
}

#[test]
fn entries_before_revision_3_have_no_timestamp() {
    let mut old = GOLDEN_MEMORY.to_vec();
    old.drain(20 + 64..20 + 72);
    old[12..16].copy_from_slice(&(64u32 + 80).to_le_bytes());
    old[20 + 20..20 + 22].copy_from_slice(&0x201u16.to_le_bytes());
    let section = only_section(&old);
    assert_eq!(section.timestamp, None);
    assert_eq!(memory_of(&section).address, Some(Pa::new(0x41c9_2000)));
}

#[test]
fn sections_of_an_unknown_kind_keep_their_guid_and_bytes() {
    let bytes = patched(GOLDEN_MEMORY, 20, &[0x11; 16]);
    let section = only_section(&bytes);
    assert!(matches!(section.body, Body::Raw(raw) if raw.len() == 80));
    assert!(
        section
            .line()
            .to_string()
            .contains("guid=11111111-1111-1111-1111-111111111111 bytes=80")
    );
}

#[test]
fn guids_are_shown_in_the_order_people_write_them() {
    assert_eq!(
        section_type::MEMORY.to_string(),
        "a5bc1114-6f64-4ede-b863-3e83ed7c83b1"
    );
    let stored = GOLDEN_MEMORY[20..36].try_into().unwrap();
    assert_eq!(Guid::from_bytes(stored), section_type::MEMORY);
}

#[test]
fn pcie_sections_name_the_device() {
    let mut body = vec![0; 208];
    body[0] = 0b1000_1000;
    body[24..40].copy_from_slice(&[
        0xde, 0x10, 0x42, 0x23, 0x00, 0x02, 0x03, 0x01, 0x1f, 0x02, 0x00, 0x3b, 0, 8, 0, 0,
    ]);
    body[116..120].copy_from_slice(&0x1000u32.to_le_bytes());
    let mut block = GOLDEN_MEMORY[..BODY].to_vec();
    block[12..16].copy_from_slice(&(72u32 + 208).to_le_bytes());
    block[20..36].copy_from_slice(&section_type::PCIE.to_bytes());
    block[20 + 24..20 + 28].copy_from_slice(&208u32.to_le_bytes());
    block.extend(body);
    let line = only_section(&block).line().to_string();
    assert!(
        line.contains("device=0002:3b:1f.1 vendor_id=0x10de device_id=0x2342 class=0x30200 slot=1"),
        "{line}"
    );
    assert!(line.contains("uncorrectable=0x1000"), "{line}");
}

#[test]
fn a_bad_section_costs_only_itself() {
    let mut buffer = [0; 1024];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(1));
    for page in [1, 2] {
        let memory = Memory::page(Pa::new(page << 12), MemoryErrorType::MULTI_BIT_ECC);
        writer.memory(&head, &memory).unwrap();
    }
    let bytes = patched(writer.finish(), 20 + 16, &9u32.to_le_bytes());
    let mut sections = StatusBlock::parse(&bytes).unwrap().sections();
    assert_eq!(
        sections.next().unwrap().unwrap_err(),
        CperError::BadSeverity {
            what: What::DataEntry,
            raw: 9
        }
    );
    let second = sections.next().unwrap().unwrap();
    assert_eq!(memory_of(&second).address, Some(Pa::new(0x2000)));
}

#[test]
fn an_entry_that_reaches_beyond_its_block_ends_the_walk() {
    let bytes = patched(GOLDEN_MEMORY, 20 + 24, &u32::MAX.to_le_bytes());
    let mut sections = StatusBlock::parse(&bytes).unwrap().sections();
    assert_eq!(
        sections.next().unwrap().unwrap_err(),
        CperError::Truncated {
            what: What::Body,
            need: 0xffff_ffff,
            have: 80
        }
    );
    assert!(sections.next().is_none());
}

#[test]
fn blocks_whose_parts_lie_outside_or_over_each_other_are_refused() {
    let too_long = patched(GOLDEN_MEMORY, 12, &u32::MAX.to_le_bytes());
    assert!(matches!(
        StatusBlock::parse(&too_long),
        Err(CperError::Truncated {
            what: What::StatusBlock,
            ..
        })
    ));
    // Raw data that begins inside the sections.
    let overlap = patched(GOLDEN_MEMORY, 4, &[24, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(
        StatusBlock::parse(&overlap).unwrap_err(),
        CperError::RawDataOverlaps { offset: 24 }
    );
    let outside = patched(GOLDEN_MEMORY, 4, &[172, 0, 0, 0, 1, 0, 0, 0]);
    assert!(matches!(
        StatusBlock::parse(&outside),
        Err(CperError::Truncated {
            what: What::RawData,
            need: 173,
            have: 172
        })
    ));
}

#[test]
fn arm_sections_shorter_than_what_they_claim_to_hold_are_refused() {
    let error = |bytes: &[u8]| {
        let mut sections = StatusBlock::parse(bytes).unwrap().sections();
        sections.next().unwrap().unwrap_err()
    };
    // Two errors where there is room for one.
    assert!(matches!(
        error(&patched(GOLDEN_ARM, BODY + 4, &[2, 0])),
        CperError::Truncated {
            what: What::ArmErrorInfo,
            ..
        }
    ));
    // An error of zero length would never end.
    assert_eq!(
        error(&patched(GOLDEN_ARM, BODY + 40 + 1, &[0])),
        CperError::BadLength {
            what: What::ArmErrorInfo,
            length: 0
        }
    );
    // A context where there are no bytes for one.
    assert!(matches!(
        error(&patched(GOLDEN_ARM, BODY + 6, &[1, 0])),
        CperError::Truncated {
            what: What::ArmContext,
            ..
        }
    ));
    // A section longer than its entry, and one shorter than its own head.
    assert!(matches!(
        error(&patched(GOLDEN_ARM, BODY + 8, &[73, 0, 0, 0])),
        CperError::Truncated {
            what: What::ArmProcessor,
            need: 73,
            have: 72
        }
    ));
    assert!(matches!(
        error(&patched(GOLDEN_ARM, BODY + 8, &[39, 0, 0, 0])),
        CperError::BadLength { .. }
    ));
}

#[test]
fn arm_contexts_are_walked_by_their_own_sizes() {
    let mut bytes = GOLDEN_ARM.to_vec();
    bytes.extend([0, 0, 5, 0, 3, 0, 0, 0, 0xaa, 0xbb, 0xcc]);
    bytes.extend([0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend([0xee, 0xff]);
    let grown = 21u32;
    for (at, old) in [(12, 144u32), (20 + 24, 72), (BODY + 8, 72)] {
        bytes[at..at + 4].copy_from_slice(&(old + grown).to_le_bytes());
    }
    bytes[BODY] |= 1 << 3;
    bytes[BODY + 6] = 2;
    let arm = arm_of(&only_section(&bytes));
    let contexts: Vec<_> = arm.contexts().map(|c| (c.kind, c.registers)).collect();
    assert_eq!(contexts, [(5, &[0xaa, 0xbb, 0xcc][..]), (4, &[])]);
    assert_eq!(arm.vendor, [0xee, 0xff]);
}

#[test]
fn masks_become_ranges_of_whole_pages() {
    let poisoned = |address, address_mask| {
        let memory = Memory {
            address: Some(Pa::new(address)),
            address_mask,
            ..Memory::default()
        };
        memory
            .poisoned()
            .map(|range| (range.start().get(), range.size()))
    };
    assert_eq!(poisoned(0x1234, None), Ok((0x1000, 0x1000)));
    assert_eq!(poisoned(0x1234, Some(u64::MAX)), Ok((0x1000, 0x1000)));
    assert_eq!(poisoned(0x1234, Some(!0x3f)), Ok((0x1000, 0x1000)));
    assert_eq!(poisoned(0x1_2345, Some(!0xffff)), Ok((0x1_0000, 0x1_0000)));
    // Platforms leave out the address bits that they don't have.
    assert_eq!(
        poisoned(0x1234, Some(0x0000_ffff_ffff_f000)),
        Ok((0x1000, 0x1000))
    );
    let four_gib = !0xffff_ffff;
    assert_eq!(poisoned(1, Some(four_gib)), Ok((0, 1 << 32)));
}

#[test]
fn absurd_masks_and_addresses_take_nothing_away() {
    let poisoned = |address, address_mask| {
        let memory = Memory {
            address,
            address_mask,
            ..Memory::default()
        };
        memory.poisoned().unwrap_err()
    };
    let at = Some(Pa::new(0x1000));
    assert_eq!(poisoned(None, Some(!0)), RangeError::NoAddress);
    assert_eq!(poisoned(at, Some(0)), RangeError::MaskTooWide(0));
    let wide = !0x1_ffff_ffff;
    assert_eq!(poisoned(at, Some(wide)), RangeError::MaskTooWide(wide));
    let holes = !0x2000;
    assert_eq!(poisoned(at, Some(holes)), RangeError::MaskHasHoles(holes));
    let high = Pa::new(1 << 56);
    assert_eq!(poisoned(Some(high), None), RangeError::AddressTooHigh(high));
}

#[test]
fn fru_text_cannot_break_the_line_it_is_quoted_in() {
    let mut buffer = [0; 512];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead {
        fru_text: Some(FruText::new("A1 x=y\nras: event=z\u{e9}")),
        ..SectionHead::new(Severity::Corrected, Timestamp::from_sequence(0))
    };
    writer.memory(&head, &Memory::default()).unwrap();
    let line = only_section(writer.finish()).line().to_string();
    assert!(line.contains(" fru=A1_x_y_ras:_event_z_ "), "{line}");
}

#[test]
fn sequence_numbers_make_distinct_well_formed_times() {
    let shown: Vec<String> = [0, 1, 59, 60, 28 * 86_400 - 1, 28 * 86_400]
        .map(|n| Timestamp::from_sequence(n).to_string())
        .into();
    assert_eq!(
        shown,
        [
            "2000-01-01T00:00:00",
            "2000-01-01T00:00:01",
            "2000-01-01T00:00:59",
            "2000-01-01T00:01:00",
            "2000-01-28T23:59:59",
            "2000-02-01T00:00:00",
        ]
    );
    assert_eq!(Timestamp::new(0xff).to_string(), "0x00000000000000ff");
}

/// Any memory section that its format can hold.
fn any_memory() -> impl Strategy<Value = Memory> {
    let format = prop_oneof![
        Just(MemoryFormat::Short),
        Just(MemoryFormat::Full),
        Just(MemoryFormat::Second)
    ];
    let words = proptest::array::uniform5(any::<Option<u64>>());
    let halves = proptest::array::uniform8(any::<Option<u16>>());
    let wide = proptest::array::uniform7(any::<Option<u32>>());
    let bytes = (any::<Option<u8>>(), proptest::option::of(0u8..8));
    (format, words, halves, wide, bytes).prop_map(|(format, words, halves, wide, bytes)| {
        let second = format == MemoryFormat::Second;
        let short = format == MemoryFormat::Short;
        let fit = |value: Option<u32>| {
            if second {
                value
            } else {
                value.map(|v| v & 0xffff)
            }
        };
        let later = |value: Option<u32>| if short { None } else { fit(value) };
        let row_bits = if short { 0xffff } else { 0x3_ffff };
        Memory {
            format,
            error_status: words[0],
            address: words[1].map(Pa::new),
            address_mask: words[2],
            node: halves[0],
            card: halves[1],
            module: halves[2],
            bank: halves[3],
            device: fit(wide[0]),
            row: wide[1].map(|row| if second { row } else { row & row_bits }),
            column: fit(wide[2]),
            bit_position: fit(wide[3]),
            rank: later(wide[4]),
            chip: bytes.1.filter(|_| !short),
            requestor: words[3],
            responder: words[4],
            target: words[0],
            error_type: bytes.0.map(MemoryErrorType::new),
            card_handle: later(wide[5]),
            module_handle: later(wide[6]),
        }
    })
}

fn any_error() -> impl Strategy<Value = ErrorInfo> {
    let addresses = (
        any::<Option<u64>>(),
        any::<Option<u64>>(),
        any::<Option<u64>>(),
    );
    let rest = (any::<u8>(), any::<Option<u16>>(), any::<Option<u8>>());
    (addresses, rest).prop_map(|((details, va, pa), (kind, multiple, flags))| ErrorInfo {
        kind: ErrorKind::from_bits_retain(kind),
        multiple,
        flags: flags.map(ErrorFlags::from_bits_retain),
        details,
        virtual_address: va,
        physical_address: pa.map(Pa::new),
    })
}

/// What decides about a section is read by itself: it has to be what all of the section says.
fn assert_gists_agree(block: &StatusBlock<'_>) {
    let losses = |body: &Body<'_>| -> Vec<_> {
        match body {
            Body::Memory(memory) => std::vec![memory.poisoned()],
            Body::ArmProcessor(arm) => {
                let pages = arm.errors().filter_map(|error| error.poisoned_page());
                pages
                    .map(|page| Ok(PaRange::new(page, PAGE_SIZE).unwrap()))
                    .collect()
            }
            _ => Vec::new(),
        }
    };
    let mut gists = block.gists();
    for section in block.sections() {
        match (section, gists.next().unwrap()) {
            (Ok(section), Ok(gist)) => {
                assert_eq!(section.severity, gist.severity);
                assert_eq!(section.flags, gist.flags);
                assert_eq!(section.bytes(), gist.bytes());
                let lost: Vec<_> = gist.losses.collect();
                assert_eq!(losses(&section.body), lost);
            }
            (section, gist) => assert_eq!(section.err().unwrap(), gist.err().unwrap()),
        }
    }
    assert!(gists.next().is_none());
}

fn show_everything(bytes: &[u8]) -> String {
    let mut text = String::new();
    match StatusBlock::parse(bytes) {
        Err(error) => text += &error.to_string(),
        Ok(block) => {
            assert_gists_agree(&block);
            for section in block.sections() {
                match section {
                    Err(error) => text += &error.to_string(),
                    Ok(section) => {
                        let line = section.line().to_string();
                        assert!(
                            line.split(' ').all(|pair| pair.split('=').count() == 2),
                            "{line}"
                        );
                        text += &line;
                        text += &section.report().to_string();
                    }
                }
            }
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_sections_read_back_as_they_were_written(
        memories in proptest::collection::vec(any_memory(), 1..6),
        sequence in any::<u64>(),
    ) {
        let mut buffer = [0; 2048];
        let mut writer = BlockWriter::new(&mut buffer).unwrap();
        let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(sequence));
        for memory in &memories {
            writer.memory(&head, memory).unwrap();
        }
        let block = StatusBlock::parse(writer.finish()).unwrap();
        assert_gists_agree(&block);
        let read: Vec<_> = block.sections().map(|s| memory_of(&s.unwrap())).collect();
        prop_assert_eq!(read, memories);
    }

    #[test]
    fn arm_sections_read_back_as_they_were_written(
        errors in proptest::collection::vec(any_error(), 0..8),
        mpidr in any::<Option<u64>>(),
        affinity_level in any::<Option<u8>>(),
        midr in any::<u64>(),
        running in any::<Option<bool>>(),
    ) {
        let mut buffer = [0; 2048];
        let mut writer = BlockWriter::new(&mut buffer).unwrap();
        let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(3));
        let record = ArmRecord { mpidr, affinity_level, midr, running, errors: &errors };
        writer.arm_processor(&head, &record).unwrap();
        let block = writer.finish();
        let arm = arm_of(&only_section(block));
        prop_assert_eq!(arm.errors().collect::<Vec<_>>(), errors);
        prop_assert_eq!((arm.mpidr, arm.affinity_level), (mpidr, affinity_level));
        prop_assert_eq!((arm.midr, arm.running), (midr, running));
    }

    #[test]
    fn cut_and_bent_blocks_give_errors_and_never_panic(
        which in 0usize..3,
        cut in 0usize..200,
        bends in proptest::collection::vec((0usize..200, any::<u8>()), 0..6),
    ) {
        let mut bytes = [GOLDEN_MEMORY, GOLDEN_ARM, GOLDEN_ARM_NO_VA][which].to_vec();
        for (at, value) in bends {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()));
        show_everything(&bytes);
    }

    #[test]
    fn noise_gives_errors_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..NOISE)) {
        show_everything(&bytes);
    }
}
