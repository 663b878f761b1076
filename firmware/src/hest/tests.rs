//! Tables as QEMU 11.1 lays them out: two GHESv2 sources, SEA first, block addresses behind them.

use std::vec;
use std::vec::Vec;

use super::*;

const BASE: u64 = 0x4400_0000;
const XSDT: usize = 0x100;
const HEST: usize = 0x200;
const ERRORS: usize = 0x400;

#[derive(Clone)]
struct Ram(Vec<u8>);

impl Memory for Ram {
    fn read(&self, from: Pa, out: &mut [u8]) -> Option<()> {
        let start = usize::try_from(from.get().checked_sub(BASE)?).ok()?;
        out.copy_from_slice(self.0.get(start..start.checked_add(out.len())?)?);
        Some(())
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
    ram.put(24, &address(XSDT));
    ram.seal(0, 36, 8);
    ram.put(XSDT, b"XSDT");
    ram.put(XSDT + 4, &52u32.to_le_bytes());
    ram.put(XSDT + 36, &address(0x180));
    ram.put(XSDT + 44, &address(HEST));
    ram.seal(XSDT, 52, 9);
    ram.put(0x180, b"FACP");
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

fn find(ram: &Ram) -> Result<SeaSource, Error> {
    find_sea_source(ram, Pa::new(BASE))
}

/// The machine after `bytes` were put at `at` in HEST, its checksum made good.
fn with(at: usize, bytes: &[u8]) -> Result<SeaSource, Error> {
    let mut ram = machine();
    ram.put(at, bytes);
    ram.seal_hest();
    find(&ram)
}

#[test]
fn the_source_notified_by_sea_is_found_wherever_it_stands() {
    let source = find(&machine()).unwrap();
    let block = Pa::new(BASE + (ERRORS + 32 + 1024) as u64);
    assert_eq!(source.block, PaRange::new(block, 1024).unwrap());
    assert_eq!(source.ack, Pa::new(BASE + (ERRORS + 24) as u64));
    assert_eq!(source.ack_mask, 1);
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
    assert_eq!(with(Ram::source(0, 0), &[77]), Err(Error::UnknownSource));
}

#[test]
fn registers_outside_memory_are_unsupported() {
    assert_eq!(
        with(Ram::source(1, 20), &[1]),
        Err(Error::Unsupported),
        "I/O space"
    );
    assert_eq!(
        with(Ram::source(1, 65), &[32]),
        Err(Error::Unsupported),
        "narrow"
    );
    assert_eq!(
        with(Ram::source(1, 24), &address(ERRORS + 4)),
        Err(Error::Unsupported)
    );
    assert_eq!(
        with(Ram::source(1, 84), &[0; 8]),
        Err(Error::Unsupported),
        "no ack bit"
    );
    assert_eq!(
        with(Ram::source(1, 60), &[0; 4]),
        Err(Error::Unsupported),
        "empty block"
    );
    let mut ram = machine();
    ram.put(ERRORS + 8, &[0; 8]);
    assert_eq!(find(&ram), Err(Error::Unsupported), "block at 0");
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
fn tables_outside_memory_are_unreadable() {
    assert_eq!(
        find_sea_source(&machine(), Pa::new(0)),
        Err(Error::Unreadable)
    );
    assert_eq!(
        find_sea_source(&machine(), Pa::new(u64::MAX - 3)),
        Err(Error::Unreadable)
    );
    assert_eq!(with(Ram::source(1, 24), &[0xf8; 8]), Err(Error::Unreadable));
    assert_eq!(with(HEST + 4, &2000u32.to_le_bytes()), Err(Error::BadTable));
}
