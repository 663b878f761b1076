//! Damage to ACPI's tables where UEFI has put them, while the machine runs: what broken firmware would have left.
//!
//! UEFI makes all checksums itself, whatever it was given, so there is no other way to a wrong one. Nobody says where
//! the tables are; firmware has them near the top of RAM, where the RSDP is looked for.

use crate::bundle::hex_bytes;
use crate::qtest::Qtest;
use crate::scenario::TablePatch;
use anyhow::{Context, Result, ensure};

/// Where RAM begins on QEMU's `virt`.
const RAM: u64 = 0x4000_0000;
/// How far down from its end is looked.
const DEPTH: u64 = 256 << 20;
/// How much at a time, a multiple of [`ALIGN`].
const PIECE: usize = 64 << 10;
/// UEFI has the RSDP in pool memory, which is at multiples of this (UEFI 2.10, 7.2.4).
const ALIGN: usize = 8;
/// Bytes of one, and of those which the first checksum covers.
const RSDP: usize = 36;
const RSDP_FIRST: usize = 20;
/// Bytes of a table's head.
const HEAD: usize = 36;
/// Most tables that firmware has.
const MAX_TABLES: usize = 128;

/// What is read and written.
trait Memory {
    fn read(&mut self, at: u64, length: usize) -> Result<Vec<u8>>;
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()>;
}

impl Memory for Qtest {
    fn read(&mut self, at: u64, length: usize) -> Result<Vec<u8>> {
        Self::read(self, at, length)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        Self::write(self, at, bytes)
    }
}

/// Does what `patch` says, on a machine with `size` bytes of RAM.
pub(crate) fn damage(memory: &mut Qtest, size: u64, patch: &TablePatch) -> Result<()> {
    apply(memory, size, patch)
}

fn apply(memory: &mut impl Memory, size: u64, patch: &TablePatch) -> Result<()> {
    let wanted = patch.table.as_ref().as_str();
    let table = find(memory, size, wanted)?;
    let bytes = hex_bytes(patch.bytes.as_ref()).unwrap_or_default();
    let at = table + patch.at;
    let old = memory.read(at, bytes.len().max(1))?;
    ensure!(old != bytes, "acpi: {wanted} has these bytes already");
    memory.write(at, &bytes)
}

/// Where the table called `wanted` is.
fn find(memory: &mut impl Memory, size: u64, wanted: &str) -> Result<u64> {
    let (rsdp, xsdt) = find_rsdp(memory, size)?;
    match wanted {
        "RSDP" => return Ok(rsdp),
        "XSDT" => return Ok(xsdt),
        _ => {}
    }
    let head = memory.read(xsdt, HEAD)?;
    let length = usize::try_from(word(&head, 4).context("a head")?)?;
    let count = length.saturating_sub(HEAD) / 8;
    ensure!(count <= MAX_TABLES, "the XSDT has {count} entries");
    let entries = memory.read(xsdt, HEAD + 8 * count)?;
    for entry in entries.get(HEAD..).unwrap_or_default().chunks_exact(8) {
        let at = quad(entry, 0).context("an entry")?;
        if memory.read(at, 4)? == wanted.as_bytes() {
            return Ok(at);
        }
    }
    anyhow::bail!("acpi: firmware has no table {wanted}")
}

/// Where the RSDP is, and the XSDT.
fn find_rsdp(memory: &mut impl Memory, size: u64) -> Result<(u64, u64)> {
    let end = RAM + size;
    let first = end.saturating_sub(DEPTH).max(RAM);
    let mut piece = end;
    while piece > first {
        piece -= PIECE as u64;
        // One that begins here may end in the next.
        let length = (PIECE + RSDP).min(usize::try_from(end - piece)?);
        let bytes = memory.read(piece, length)?;
        for at in (0..PIECE).step_by(ALIGN) {
            let Some(xsdt) = bytes.get(at..).and_then(xsdt) else {
                continue;
            };
            if memory.read(xsdt, 4)? == b"XSDT" {
                return Ok((piece + at as u64, xsdt));
            }
        }
    }
    anyhow::bail!("acpi: no RSDP is in the last {} MiB of RAM", DEPTH >> 20)
}

/// The address of the XSDT, where `bytes` begin with an RSDP.
fn xsdt(bytes: &[u8]) -> Option<u64> {
    let rsdp = bytes.get(..RSDP)?;
    let sum = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    };
    let is_one = rsdp.starts_with(b"RSD PTR ") && sum(rsdp.get(..RSDP_FIRST)?) == 0;
    (is_one && sum(rsdp) == 0).then(|| quad(rsdp, 24))?
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

fn quad(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use toml::Spanned;

    struct Fake(Vec<u8>);

    impl Memory for Fake {
        fn read(&mut self, at: u64, length: usize) -> Result<Vec<u8>> {
            let at = usize::try_from(at.checked_sub(RAM).context("below RAM")?)?;
            let bytes = self.0.get(at..at + length).context("beyond RAM")?;
            Ok(bytes.to_vec())
        }

        fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
            let at = usize::try_from(at - RAM)?;
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    const SIZE: usize = 1 << 20;

    fn machine() -> Fake {
        let mut ram = vec![0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| ram[at..at + bytes.len()].copy_from_slice(bytes);
        let (rsdp, xsdt, table) = (0x4_fff8, 0x2000, 0x3000);
        // A copy of the signature that is no RSDP.
        put(0x8_0000, b"RSD PTR ");
        put(rsdp, b"RSD PTR ");
        put(rsdp + 24, &(RAM + xsdt as u64).to_le_bytes());
        put(xsdt, b"XSDT");
        put(xsdt + 4, &44_u32.to_le_bytes());
        put(xsdt + HEAD, &(RAM + table as u64).to_le_bytes());
        put(table, b"APIC");
        let sum = |ram: &[u8]| ram.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
        ram[rsdp + 8] = sum(&ram[rsdp..rsdp + RSDP_FIRST]);
        ram[rsdp + 32] = sum(&ram[rsdp..rsdp + RSDP]);
        Fake(ram)
    }

    fn patch(table: &str, bytes: &str) -> TablePatch {
        TablePatch {
            table: Spanned::new(0..0, table.into()),
            at: 9,
            bytes: Spanned::new(0..0, bytes.into()),
        }
    }

    #[test]
    fn a_table_is_found_by_way_of_the_rsdp_and_damaged() {
        let mut memory = machine();
        for (table, at) in [("APIC", 0x3009), ("XSDT", 0x2009), ("RSDP", 0x5_0001)] {
            apply(&mut memory, SIZE as u64, &patch(table, "5a")).expect("it is there");
            assert_eq!(memory.0[at], 0x5a, "{table}");
            // By now the RSDP's own checksum is wrong, too.
        }
        assert!(apply(&mut memory, SIZE as u64, &patch("APIC", "00")).is_err());
    }

    #[test]
    fn damage_that_changes_nothing_is_an_error() {
        let mut memory = machine();
        assert!(apply(&mut memory, SIZE as u64, &patch("APIC", "00")).is_err());
        assert!(apply(&mut memory, SIZE as u64, &patch("HEST", "01")).is_err());
    }
}
