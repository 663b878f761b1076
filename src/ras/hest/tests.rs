//! QEMU's own table is decoded field by field; the walk survives what it does not know.

use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::addr::Pa;

/// The table of QEMU 10.0.2, `-M virt,ras=on`, as its firmware presented it.
const QEMU: &[u8] = include_bytes!("../testdata/hest_qemu_10.0.2.bin");

/// Bytes of noise at most; making them up is slow under Miri.
const NOISE: usize = if cfg!(miri) { 48 } else { 400 };

fn with_checksum(mut table: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(table.len()).unwrap();
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0u8, |sum, &b| sum.wrapping_sub(b));
    table
}

/// A table with these sources, whatever QEMU's has.
fn table_of(sources: &[Vec<u8>]) -> Vec<u8> {
    let mut table = QEMU[..40].to_vec();
    let count = u32::try_from(sources.len()).unwrap();
    table[36..40].copy_from_slice(&count.to_le_bytes());
    table.extend(sources.iter().flatten());
    with_checksum(table)
}

fn source(kind: u16, length: usize) -> Vec<u8> {
    let mut bytes = std::vec![0; length];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes
}

/// QEMU's source with the bytes from `at` on replaced.
fn qemu_source(at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = QEMU[40..].to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

fn walk(table: &[u8]) -> Vec<Result<Source, HestError>> {
    Hest::parse(table).unwrap().sources().collect()
}

fn why(source: Vec<u8>) -> std::string::String {
    walk(&table_of(&[source]))[0].unwrap_err().to_string()
}

#[test]
fn qemus_table_has_one_source_that_notifies_by_sea() {
    let sources = walk(QEMU);
    let ack = ReadAck::new(Pa::new(0x5c41_0008), (0, 64), !1, 1).unwrap();
    assert_eq!(
        sources,
        [Ok(Source::Generic(GenericSource {
            id: 0,
            related: None,
            enabled: true,
            status_address: Pa::new(0x5c41_0000),
            block_length: 0x400,
            notification: Notification::Sea,
            read_ack: Some(ack),
        }))]
    );
}

#[test]
fn sources_of_every_known_type_are_walked_over() {
    let mut banks = source(0, 40 + 2 * 28);
    banks[32] = 2;
    let mut corrected = source(1, 48 + 28);
    corrected[44] = 1;
    let mut deferred = source(11, 48 + 3 * 28);
    deferred[44] = 3;
    let version_1 = {
        let mut bytes = qemu_source(0, &9u16.to_le_bytes());
        bytes.truncate(64);
        bytes
    };
    let table = table_of(&[
        banks,
        corrected,
        source(2, 20),
        source(6, 48),
        source(7, 44),
        source(8, 56),
        deferred,
        version_1,
        QEMU[40..].to_vec(),
    ]);
    let sources = walk(&table);
    let kinds: Vec<_> = sources.iter().take(7).map(|s| s.unwrap()).collect();
    assert_eq!(kinds, [0, 1, 2, 6, 7, 8, 11].map(Source::Other));
    assert!(matches!(sources[7], Ok(Source::Generic(s)) if s.read_ack.is_none()));
    assert_eq!(sources[8], walk(QEMU)[0]);
    assert_eq!(sources.len(), 9);
}

#[test]
fn an_unknown_type_ends_the_walk_and_keeps_what_came_before() {
    let table = table_of(&[QEMU[40..].to_vec(), source(12, 92), QEMU[40..].to_vec()]);
    let sources = walk(&table);
    assert_eq!(sources[0], walk(QEMU)[0]);
    assert_eq!(
        sources[1],
        Err(HestError::UnknownType { index: 1, kind: 12 })
    );
    assert_eq!(sources.len(), 2);
}

#[test]
fn a_source_with_a_bad_address_does_not_hide_the_next() {
    let table = table_of(&[qemu_source(20, &[1]), QEMU[40..].to_vec()]);
    let sources = walk(&table);
    assert_eq!(
        sources[0],
        Err(HestError::BadAddress {
            id: 0,
            register: Register::Status,
            why: AddressError::NotMemory(1)
        })
    );
    assert_eq!(sources[1], walk(QEMU)[0]);
}

#[test]
fn every_address_cordon_cannot_use_is_refused_by_name() {
    assert_eq!(
        why(qemu_source(21, &[32])),
        "bad-address:0:status:bits-0-32"
    );
    assert_eq!(why(qemu_source(22, &[8])), "bad-address:0:status:bits-8-64");
    assert_eq!(
        why(qemu_source(23, &[3])),
        "bad-address:0:status:access-size-3"
    );
    assert_eq!(why(qemu_source(24, &[0; 8])), "bad-address:0:status:zero");
    assert_eq!(why(qemu_source(24, &[4])), "bad-address:0:status:unaligned");
    assert_eq!(why(qemu_source(64, &[2])), "bad-address:0:read-ack:space-2");
    assert_eq!(
        why(qemu_source(65, &[0])),
        "bad-address:0:read-ack:bits-0-0"
    );
    assert_eq!(
        why(qemu_source(66, &[1])),
        "bad-address:0:read-ack:bits-1-64"
    );
    assert_eq!(why(qemu_source(60, &[19, 0, 0, 0])), "block-too-short:0:19");
}

#[test]
fn a_table_shorter_than_its_sources_is_reported() {
    let mut table = QEMU.to_vec();
    table[36] = 2;
    let sources = walk(&with_checksum(table));
    assert!(sources[0].is_ok());
    assert_eq!(sources[1], Err(HestError::SourceTruncated { index: 1 }));
    assert_eq!(sources.len(), 2);
}

#[test]
fn heads_that_are_wrong_are_refused() {
    assert_eq!(
        Hest::parse(b"HEST").unwrap_err().to_string(),
        "bad-length:0:have-4"
    );
    let mut other = QEMU.to_vec();
    other[0] = b'F';
    assert_eq!(Hest::parse(&other).unwrap_err(), HestError::NotHest);
    let mut bent = QEMU.to_vec();
    bent[50] ^= 1;
    assert_eq!(Hest::parse(&bent).unwrap_err(), HestError::BadChecksum);
    for length in [0u32, 39, 133, u32::MAX] {
        let mut table = QEMU.to_vec();
        table[4..8].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(
            Hest::parse(&table),
            Err(HestError::BadLength { .. })
        ));
    }
}

#[test]
fn acknowledging_touches_only_the_field() {
    // Four bits from bit 8 on: keep 0b1110 of them, set 0b0001.
    let ack = ReadAck::new(Pa::new(8), (8, 4), 0b1110, 0b0001).unwrap();
    assert_eq!(
        ack.acknowledge(0xffff_ffff_ffff_f0ff),
        0xffff_ffff_ffff_f1ff
    );
    assert_eq!(ack.acknowledge(0x0a00), 0x0b00);
    // Masks wider than the field do not reach outside it.
    let greedy = ReadAck::new(Pa::new(8), (8, 4), 0, u64::MAX).unwrap();
    assert_eq!(greedy.acknowledge(0x50_0005), 0x50_0f05);
    let qemu = ReadAck::new(Pa::new(8), (0, 64), !1, 1).unwrap();
    assert_eq!(qemu.acknowledge(0), 1);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn noise_behind_a_good_head_gives_a_bounded_walk_and_never_panics(
        bytes in proptest::collection::vec(prop_oneof![0u8..13, any::<u8>()], 0..NOISE),
        count in any::<u32>(),
    ) {
        let mut table = QEMU[..36].to_vec();
        table.extend(count.to_le_bytes());
        table.extend(&bytes);
        let table = with_checksum(table);
        let sources = Hest::parse(&table).unwrap().sources();
        // No source is shorter than 20 bytes.
        prop_assert!(sources.count() <= bytes.len() / 20 + 1);
    }
}
