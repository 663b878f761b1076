//! Tables as QEMU 11.1 lays them out: two GHESv2 sources, SEA first, block addresses behind them.

use std::vec;
use std::vec::Vec;

use cordon::platform::acpi::Signature;
use cordon::ras::hest::{AddressError, Register};

use super::*;

const BASE: u64 = 0x4400_0000;
const XSDT: usize = 0x100;
const HEST: usize = 0x200;
const ERRORS: usize = 0x400;

#[derive(Clone)]
struct Ram(Vec<u8>);

impl PhysicalBytes for Ram {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(start.get().checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

impl Ram {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn seal(&mut self, at: usize, length: usize, checksum: usize) {
        self.0[at + checksum] = 0;
        let sum = self.0[at..at + length]
            .iter()
            .fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        self.0[at + checksum] = sum.wrapping_neg();
    }

    fn seal_hest(&mut self) {
        self.seal(HEST, 40 + 2 * 92, 9);
    }

    /// Where the field at `offset` of source `index` lies.
    fn source(index: usize, offset: usize) -> usize {
        HEST + 40 + 92 * index + offset
    }
}

fn address(offset: usize) -> [u8; 8] {
    (BASE + offset as u64).to_le_bytes()
}

fn machine() -> Ram {
    let mut ram = Ram(vec![0; 0x2000]);
    ram.put(0, b"RSD PTR ");
    ram.put(15, &[2]);
    ram.put(20, &36u32.to_le_bytes());
    ram.put(24, &address(XSDT));
    ram.seal(0, 20, 8);
    ram.seal(0, 36, 32);
    ram.put(XSDT, b"XSDT");
    ram.put(XSDT + 4, &52u32.to_le_bytes());
    ram.put(XSDT + 36, &address(0x180));
    ram.put(XSDT + 44, &address(HEST));
    ram.seal(XSDT, 52, 9);
    ram.put(0x180, b"FACP");
    ram.put(0x184, &36u32.to_le_bytes());
    ram.put(HEST, b"HEST");
    ram.put(HEST + 4, &(40u32 + 2 * 92).to_le_bytes());
    ram.put(HEST + 36, &2u32.to_le_bytes());
    for (index, notify) in [7u8, 8].into_iter().enumerate() {
        ram.put(Ram::source(index, 0), &[10, 0]);
        ram.put(Ram::source(index, 7), &[1]);
        ram.put(Ram::source(index, 20), &[0, 64, 0, 4]);
        ram.put(Ram::source(index, 24), &address(ERRORS + 8 * index));
        ram.put(Ram::source(index, 32), &[notify, 28]);
        ram.put(Ram::source(index, 60), &1024u32.to_le_bytes());
        ram.put(Ram::source(index, 64), &[0, 64, 0, 4]);
        ram.put(Ram::source(index, 68), &address(ERRORS + 16 + 8 * index));
        ram.put(Ram::source(index, 76), &(!1u64).to_le_bytes());
        ram.put(Ram::source(index, 84), &1u64.to_le_bytes());
        ram.put(ERRORS + 8 * index, &address(ERRORS + 32 + 1024 * index));
    }
    ram.seal_hest();
    ram
}

fn find(ram: &Ram) -> Result<RecordSource, Error> {
    find_sea_source(ram, Pa::new(BASE))
}

/// The machine after `bytes` were put at `at` in HEST, its checksum made good.
fn with(at: usize, bytes: &[u8]) -> Result<RecordSource, Error> {
    let mut ram = machine();
    ram.put(at, bytes);
    ram.seal_hest();
    find(&ram)
}

#[test]
fn the_source_notified_by_sea_is_found_wherever_it_stands() {
    let range = |at, size| PaRange::new(Pa::new(BASE + at as u64), size).unwrap();
    let ack = Ack {
        register: range(ERRORS + 24, 8),
        bits: 1,
    };
    let expected = RecordSource {
        block: range(ERRORS + 32 + 1024, 1024),
        ack: Some(ack),
    };
    assert_eq!(find(&machine()), Ok(expected));
}

#[test]
fn a_machine_without_hest_or_sea_source_is_told_by_name() {
    let mut ram = machine();
    ram.put(XSDT + 4, &44u32.to_le_bytes());
    ram.seal(XSDT, 44, 9);
    assert_eq!(find(&ram), Err(Error::NoHest));
    assert_eq!(with(Ram::source(1, 32), &[3]), Err(Error::NoSeaSource));
    assert_eq!(
        with(Ram::source(1, 7), &[0]),
        Err(Error::NoSeaSource),
        "disabled"
    );
    let unknown = HestError::UnknownType { index: 0, kind: 77 };
    assert_eq!(with(Ram::source(0, 0), &[77]), Err(Error::Hest(unknown)));
}

#[test]
fn a_bad_source_does_not_hide_the_good_one_behind_it() {
    assert!(with(Ram::source(0, 20), &[1]).is_ok(), "in I/O space");
}

#[test]
fn a_sea_source_that_cannot_be_used_is_told_by_name() {
    let space = |register| {
        Err(Error::Hest(HestError::BadAddress {
            id: 0,
            register,
            why: AddressError::NotMemory(1),
        }))
    };
    assert_eq!(with(Ram::source(1, 20), &[1]), space(Register::Status));
    assert_eq!(with(Ram::source(1, 64), &[1]), space(Register::ReadAck));
    assert_eq!(with(Ram::source(1, 84), &[0; 8]), Err(Error::NoAckBit));
    assert_eq!(
        with(Ram::source(1, 60), &171u32.to_le_bytes()),
        Err(Error::BlockTooShort)
    );
}

#[test]
fn a_block_or_register_that_the_firmware_cannot_reach_is_refused() {
    let outside = 0x9000_0000u64.to_le_bytes();
    assert_eq!(with(Ram::source(1, 24), &outside), Err(Error::Unreachable));
    assert_eq!(with(Ram::source(1, 68), &outside), Err(Error::Unreachable));
    for block in [0, 0x9000_0000, BASE + 0x2000 - 1016, BASE + 0x804] {
        let mut ram = machine();
        ram.put(ERRORS + 8, &block.to_le_bytes());
        assert_eq!(find(&ram), Err(Error::Unreachable), "{block:#x}");
    }
}

#[test]
fn a_flipped_bit_in_any_table_is_noticed() {
    for at in [0, 30, XSDT, XSDT + 40, HEST, HEST + 39, Ram::source(1, 90)] {
        let mut ram = machine();
        ram.0[at] ^= 0x10;
        assert!(find(&ram).is_err(), "{at:#x}");
    }
}

#[test]
fn a_source_for_reports_is_found_by_its_interrupt_or_for_being_polled() {
    let find = |notify: &[u8]| {
        let mut ram = machine();
        ram.put(Ram::source(0, 32), notify);
        ram.seal_hest();
        find_report_source(&ram, Pa::new(BASE)).map(|it| it.map(|it| it.interrupt))
    };
    let gsiv = |kind: u8, gsiv: u8| [kind, 28, 0, 0, 0, 0, 0, 0, gsiv, 0, 0, 0];
    assert_eq!(find(&gsiv(10, 232)), Ok(Some(Some(232))));
    assert_eq!(find(&gsiv(1, 32)), Ok(Some(Some(32))));
    assert_eq!(find(&gsiv(0, 0)), Ok(Some(None)), "polled");
    assert_eq!(find(&gsiv(10, 31)), Ok(None), "nothing that is shared");
    assert_eq!(find(&gsiv(7, 0)), Ok(None), "QEMU's own");
    let block = PaRange::new(Pa::new(BASE + ERRORS as u64 + 32), 1024).unwrap();
    let mut ram = machine();
    ram.put(Ram::source(0, 32), &gsiv(10, 232));
    ram.seal_hest();
    let found = find_report_source(&ram, Pa::new(BASE)).unwrap().unwrap();
    assert_eq!(found.records.block, block);
    assert!(
        find_sea_source(&ram, Pa::new(BASE)).is_ok(),
        "beside the other"
    );
}

#[test]
fn the_reason_is_one_key_after_the_other() {
    let why = |error: Error| std::format!("{error}");
    assert_eq!(why(Error::NoHest), "why=no-hest");
    assert_eq!(
        why(Error::Tables(AcpiError::BadChecksum {
            table: Signature::HEST
        })),
        "why=bad-checksum table=HEST"
    );
    assert_eq!(why(Error::Hest(HestError::BadChecksum)), "why=bad-checksum");
}
