//! ACPI tables of a scenario's own, in place of those that QEMU builds.
//!
//! They come the way QEMU's come: as fw_cfg files with a table-loader script that links them and
//! makes their checksums once they are placed (QEMU `hw/acpi/bios-linker-loader.c`). So a table can
//! be wrong in one field and sound in all others. With `acpi=off` the names are free for `-fw_cfg`.
//!
//! ```text
//! etc/acpi/rsdp         RSDP
//! etc/acpi/tables       XSDT, MADT, HEST with one GHESv2 source or two
//! etc/hardware_errors   block pointer, read-ack register, block of each
//! etc/table-loader      the script
//! ```

use crate::bundle::hex_bytes;
use crate::scenario::{AcpiFile, AcpiSpec, Link, Notify, Scenario};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";
const ERRORS: &str = "etc/hardware_errors";
const LOADER: &str = "etc/table-loader";

/// Length of a table's header, and where its checksum is (ACPI 6.5, table 5.4).
const HEADER: usize = 36;
const CHECKSUM: usize = 9;

/// The offset of the HEST's first source, and within it those of its two addresses (18.3.2.8).
const SOURCE: usize = 40;
const STATUS_ADDRESS: usize = SOURCE + 20 + 4;
const ACK_ADDRESS: usize = SOURCE + 64 + 4;

/// Length of a source.
const SOURCE_LENGTH: usize = 92;
/// What a source has among the errors: pointer, read-ack register and block.
const ERRORS_LENGTH: usize = 16 + BLOCK as usize;

/// Bytes of the error status block.
const BLOCK: u32 = 1024;

/// Writes the files below `directory` and returns the arguments that hand them over.
pub(crate) fn store(scenario: &Scenario, directory: &Path) -> Result<Vec<String>> {
    let Some(acpi) = &scenario.acpi else {
        return Ok(Vec::new());
    };
    let mut arguments = Vec::new();
    for (name, bytes) in files(*scenario.machine.cpus.as_ref(), acpi)? {
        let path: PathBuf = directory.join(name.replace('/', "-"));
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        arguments.push(format!("name={name},file={}", path.display()));
    }
    Ok(arguments)
}

/// The four files, damaged.
fn files(cpus: u32, acpi: &AcpiSpec) -> Result<[(&'static str, Vec<u8>); 4]> {
    let mutations = &acpi.mutate;
    let unlinked: Vec<Link> = mutations.iter().filter_map(|m| m.unlink).collect();
    let madt = madt(cpus);
    let madt_at = HEADER + 2 * 8;
    let hest_at = madt_at + madt.len();
    let places = [madt_at, hest_at].map(|at| (at as u64).to_le_bytes());
    let xsdt = table(b"XSDT", &places.concat());
    let mut hest = hest(acpi.unconsumed);
    let sources = 1 + usize::from(acpi.unconsumed.is_some());
    let mut errors = vec![0; ERRORS_LENGTH * sources];
    for source in 0..sources {
        let at = source * ERRORS_LENGTH;
        errors[at..at + 8].copy_from_slice(&(at as u64 + 16).to_le_bytes());
        // Read-ack as QEMU has it at first: the block is firmware's.
        errors[at + 8] = 1;
    }
    let mut rsdp = rsdp();
    let lengths = [xsdt.len(), madt.len(), hest.len()];
    let mut loader = script(lengths, &unlinked, sources);
    for patch in mutations.iter().filter_map(|m| m.patch.as_ref()) {
        let file = match patch.file {
            AcpiFile::Rsdp => &mut rsdp,
            AcpiFile::Hest => &mut hest,
            AcpiFile::Errors => &mut errors,
            AcpiFile::Loader => &mut loader,
        };
        let bytes = hex_bytes(patch.bytes.as_ref()).unwrap_or_default();
        let target = file.get_mut(patch.at..patch.at.saturating_add(bytes.len()));
        target
            .with_context(|| format!("acpi.mutate.patch.at: {} is beyond the file", patch.at))?
            .copy_from_slice(&bytes);
    }
    let tables = [xsdt, madt, hest].concat();
    // What the reader wants to be mapped behind a MADT is there: the HEST and this.
    let tables = [tables, vec![0; 256]].concat();
    Ok([
        (RSDP, rsdp),
        (TABLES, tables),
        (ERRORS, errors),
        (LOADER, loader),
    ])
}

/// Places everything, links what is not in `unlinked`, and sums up last.
fn script([xsdt, madt, hest]: [usize; 3], unlinked: &[Link], sources: usize) -> Vec<u8> {
    let hest_at = xsdt + madt;
    let mut commands = vec![
        allocate(RSDP, 16, 2),
        allocate(TABLES, 64, 1),
        allocate(ERRORS, 4096, 1),
        add_pointer(RSDP, TABLES, 24),
        add_pointer(TABLES, TABLES, HEADER),
        add_pointer(TABLES, TABLES, HEADER + 8),
    ];
    let linked = [
        (Link::Block, add_pointer(ERRORS, ERRORS, 0)),
        (
            Link::Status,
            add_pointer(TABLES, ERRORS, hest_at + STATUS_ADDRESS),
        ),
        (
            Link::Ack,
            add_pointer(TABLES, ERRORS, hest_at + ACK_ADDRESS),
        ),
    ];
    let linked = linked
        .into_iter()
        .filter(|(link, _)| !unlinked.contains(link));
    commands.extend(linked.map(|(_, command)| command));
    for source in 1..sources {
        let at = hest_at + source * SOURCE_LENGTH;
        commands.push(add_pointer(ERRORS, ERRORS, source * ERRORS_LENGTH));
        commands.push(add_pointer(TABLES, ERRORS, at + STATUS_ADDRESS));
        commands.push(add_pointer(TABLES, ERRORS, at + ACK_ADDRESS));
    }
    for (start, length) in [(0, xsdt), (xsdt, madt), (hest_at, hest)] {
        commands.push(add_checksum(TABLES, start + CHECKSUM, start, length));
    }
    commands.push(add_checksum(RSDP, 8, 0, 20));
    commands.push(add_checksum(RSDP, 32, 0, 36));
    commands.concat()
}

fn rsdp() -> Vec<u8> {
    // Signature, checksum, OEM, revision, no RSDT, length, XSDT at the start of the tables.
    let mut rsdp = b"RSD PTR \0CORDON\x02\0\0\0\0".to_vec();
    rsdp.extend(36_u32.to_le_bytes());
    rsdp.resize(36, 0);
    rsdp
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut table = signature.to_vec();
    table.extend(length.to_le_bytes());
    table.extend(*b"\x01\0CORDONSCENARIO");
    table.resize(HEADER, 0);
    table.extend(body);
    table
}

/// One GICC a CPU (5.2.12.14), with the affinities that `virt` gives with a GICv3.
fn madt(cpus: u32) -> Vec<u8> {
    let mut body = vec![0; 8];
    for cpu in 0..cpus {
        let mut gicc = [0; 80];
        gicc[..2].copy_from_slice(&[0xb, 80]);
        gicc[12] = 1;
        let mpidr = u64::from(cpu / 16) << 8 | u64::from(cpu % 16);
        gicc[68..76].copy_from_slice(&mpidr.to_le_bytes());
        body.extend(gicc);
    }
    table(b"APIC", &body)
}

/// GHESv2 sources (18.3.2.8): one notified by SEA, as QEMU's own is, and the one that is asked for.
fn hest(unconsumed: Option<Notify>) -> Vec<u8> {
    const SEA: u8 = 8;
    const POLLED: u8 = 0;
    const GSIV: u8 = 10;
    let mut sources = source(0, (SEA, 0, 0));
    if let Some(notify) = unconsumed {
        sources.extend(match notify {
            Notify::Gsiv(gsiv) => source(1, (GSIV, 0, gsiv)),
            Notify::Polled(interval) => source(1, (POLLED, interval, 0)),
        });
    }
    let count = 1 + u32::from(unconsumed.is_some());
    table(b"HEST", &[&count.to_le_bytes()[..], &sources].concat())
}

/// Source `id`, notified by `kind` with this interval and vector (18.3.2.9).
fn source(id: u16, (kind, interval, vector): (u8, u32, u32)) -> Vec<u8> {
    const SYSTEM_MEMORY: [u8; 4] = [0, 64, 0, 4];
    let errors = u64::from(id) * ERRORS_LENGTH as u64;
    let mut body = vec![10, 0];
    body.extend(id.to_le_bytes());
    body.extend([0xff, 0xff, 0, 1]); // GHESv2, unrelated, enabled
    for number in [1, 1, BLOCK] {
        body.extend(number.to_le_bytes());
    }
    body.extend(SYSTEM_MEMORY);
    body.extend(errors.to_le_bytes()); // the block pointer
    body.extend([kind, 28, 0, 0]);
    body.extend(interval.to_le_bytes());
    body.extend(vector.to_le_bytes());
    body.resize(60, 0);
    body.extend(BLOCK.to_le_bytes());
    body.extend(SYSTEM_MEMORY);
    body.extend((errors + 8).to_le_bytes()); // the read-ack register, behind it
    body.extend((!1_u64).to_le_bytes());
    body.extend(1_u64.to_le_bytes());
    body
}

fn allocate(file: &str, align: u32, zone: u8) -> Vec<u8> {
    command(1, &[&name(file), &align.to_le_bytes(), &[zone]])
}

fn add_pointer(in_file: &str, to_file: &str, at: usize) -> Vec<u8> {
    command(2, &[&name(in_file), &name(to_file), &word(at), &[8]])
}

fn add_checksum(file: &str, at: usize, start: usize, length: usize) -> Vec<u8> {
    command(3, &[&name(file), &word(at), &word(start), &word(length)])
}

fn word(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

fn name(text: &str) -> Vec<u8> {
    let mut name = text.as_bytes().to_vec();
    name.resize(56, 0);
    name
}

fn command(number: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [&number.to_le_bytes()[..], &fields.concat()].concat();
    bytes.resize(128, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_has_its_fields_where_the_specification_has_them() {
        let hest = hest(None);
        assert_eq!(hest.len(), 40 + 92);
        assert_eq!(hest[4..8], 132_u32.to_le_bytes());
        assert_eq!(hest[STATUS_ADDRESS - 4..STATUS_ADDRESS], [0, 64, 0, 4]);
        assert_eq!(hest[SOURCE + 32..SOURCE + 34], [8, 28]);
        assert_eq!(hest[SOURCE + 60..SOURCE + 64], BLOCK.to_le_bytes());
        assert_eq!(hest[ACK_ADDRESS..ACK_ADDRESS + 8], 8_u64.to_le_bytes());
    }

    #[test]
    fn a_second_source_says_how_it_notifies_and_has_errors_of_its_own() {
        let hest = hest(Some(Notify::Gsiv(232)));
        assert_eq!(hest.len(), 40 + 2 * 92);
        assert_eq!(hest[36], 2);
        let second = &hest[SOURCE + SOURCE_LENGTH..];
        assert_eq!(second[2], 1, "id");
        assert_eq!(second[24..32], 1040_u64.to_le_bytes());
        assert_eq!(second[32..36], [10, 28, 0, 0]);
        assert_eq!(second[40..44], 232_u32.to_le_bytes());
        assert_eq!(second[68..76], 1048_u64.to_le_bytes());
        let hest = self::hest(Some(Notify::Polled(100)));
        let second = &hest[SOURCE + SOURCE_LENGTH..];
        assert_eq!(second[32..40], [0, 28, 0, 0, 100, 0, 0, 0]);
    }

    #[test]
    fn what_is_unlinked_is_left_out_of_the_script() {
        let all = script([52, 44, 132], &[], 1).len() / 128;
        let fewer = script([52, 44, 132], &[Link::Block, Link::Ack], 1).len() / 128;
        assert_eq!((all, fewer), (14, 12));
    }
}
