//! Good inputs: QEMU's own where they are small, made here where not.

use cordon::vm::config;
use vm_fdt::{Error, FdtWriter};

use super::{TABLES, seal, seal_tables};
use crate::Seed;

/// Seeds of all targets of [`super`].
pub(crate) fn seeds() -> Vec<Seed> {
    let virt = include_bytes!("../../../src/platform/testdata/qemu-virt.dtb");
    let secure = include_bytes!("../../../src/platform/testdata/qemu-virt-secure.dtb");
    let tree = vms_tree().expect("a tree");
    let bundle = archive(&[
        (config::FILE, &tree),
        ("probe.img", &kernel()),
        ("initrd", &[1; 64]),
    ]);
    vec![
        ("fdt", "qemu-virt", virt.to_vec()),
        ("fdt", "qemu-virt-secure", secure.to_vec()),
        ("bundle", "two-vms", bundle),
        ("vms", "two-vms", tree),
        ("acpi", "madt-and-hest", tables()),
        ("table_loader", "as-qemu", script()),
    ]
}

/// An arm64 `Image` without code.
pub(super) fn kernel() -> Vec<u8> {
    let mut image = vec![0; 256];
    image[8..16].copy_from_slice(&0x8_0000_u64.to_le_bytes());
    image[16..24].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    image[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// A `newc` cpio archive, cpio(5).
pub(super) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    let trailer = ("TRAILER!!!", &[][..]);
    for (name, content) in files.iter().chain([&trailer]) {
        // inode, mode, uid, gid, nlink, mtime, size, device (2), rdevice (2), name size, checksum
        let (size, name_size) = (content.len(), name.len() + 1);
        let fields = [0, 0o100_644, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// Two VMs, between them with everything that docs/protocols.md has.
fn vms_tree() -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "cordon,bundle-v1")?;
    for (index, label) in ["probe", "other"].into_iter().enumerate() {
        let vm = fdt.begin_node(&format!("vm@{index}"))?;
        fdt.property_string("label", label)?;
        fdt.property_u32("vcpus", 2)?;
        match index {
            0 => fdt.property_u64("ram-base", 0x4000_0000)?,
            _ => fdt.property_null("identity")?,
        }
        fdt.property_u64("ram-size", 0x0400_0000)?;
        fdt.property_string("kernel", "probe.img")?;
        fdt.property_string("initrd", "initrd")?;
        fdt.property_string("bootargs", "console=ttyAMA0 quiet")?;
        let memory = fdt.begin_node("device-memory@0")?;
        fdt.property_string("source", if index == 0 { "bar" } else { "reserved" })?;
        fdt.property_u32("index", 0)?;
        fdt.property_u64("offset", 0)?;
        fdt.property_u64("size", 0x4000_0000)?;
        fdt.property_u64("ipa", 0x10_0000_0000)?;
        if index == 1 {
            fdt.property_string("as", "pmem")?;
        }
        fdt.end_node(memory)?;
        if index == 1 {
            let device = fdt.begin_node("device@0")?;
            fdt.property_string("compatible", "virtio,mmio")?;
            fdt.property_u64("address", 0x0a00_0000)?;
            fdt.property_string("dma", "unconfined")?;
            fdt.end_node(device)?;
        }
        fdt.end_node(vm)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

/// RSDP, XSDT, a MADT for GICv3, and QEMU's HEST.
fn tables() -> Vec<u8> {
    const XSDT: usize = 0x40;
    const MADT: usize = 0x80;
    const HEST: usize = 0x180;
    let pa = |at: usize| (TABLES + at as u64).to_le_bytes();
    let hest = include_bytes!("../../../src/ras/testdata/hest_qemu_10.0.2.bin");
    let rsdp = [
        &b"RSD PTR \0CORDON\x02"[..],
        &[0; 4],
        &36_u32.to_le_bytes(),
        &pa(XSDT),
        &[0; 4],
    ];
    let mut memory = rsdp.concat();
    for (at, bytes) in [
        (XSDT, table(b"XSDT", &[pa(MADT), pa(HEST)].concat())),
        (MADT, table(b"APIC", &madt_entries())),
        (HEST, hest.to_vec()),
        // What the reader wants behind MADT, and room for a table to grow.
        (HEST + 0x180, vec![0; 4]),
    ] {
        memory.resize(at, 0);
        memory.extend(bytes);
    }
    seal_tables(&mut memory);
    memory
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(36 + body.len()).expect("a short table");
    let head = [&signature[..], &length.to_le_bytes(), &[1, 0]];
    let mut table = [&head.concat()[..], b"CORDONFUZZTABL", &[0; 12], body].concat();
    let length = table.len();
    seal(&mut table, 0, length, 9);
    table
}

/// A distributor, redistributors and one CPU (ACPI 6.5, 5.2.12).
fn madt_entries() -> Vec<u8> {
    let mut gicc = [0; 80];
    gicc[..2].copy_from_slice(&[0xb, 80]);
    gicc[12] = 1;
    let gicd = [
        &[0xc, 24, 0, 0, 0, 0, 0, 0][..],
        &0x0800_0000_u64.to_le_bytes(),
        &[0, 0, 0, 0, 3, 0, 0, 0],
    ];
    let gicr = [
        &[0xe, 16, 0, 0][..],
        &0x080a_0000_u64.to_le_bytes(),
        &0x2_0000_u32.to_le_bytes(),
    ];
    [&[0; 8][..], &gicd.concat(), &gicr.concat(), &gicc].concat()
}

/// The commands that QEMU's own script has, each once or twice.
fn script() -> Vec<u8> {
    const RSDP: &str = "etc/acpi/rsdp";
    const TABLES: &str = "etc/acpi/tables";
    const ERRORS: &str = "etc/hardware_errors";
    const BACK: &str = "etc/acpi_table_hest_addr";
    let (name, word) = (file_name, u32::to_le_bytes);
    let commands = [
        command(1, &[&name(RSDP), &word(16), &[2]]),
        command(1, &[&name(TABLES), &word(64), &[1]]),
        command(1, &[&name(ERRORS), &word(8), &[1]]),
        command(2, &[&name(TABLES), &name(ERRORS), &word(40), &[8]]),
        command(2, &[&name(RSDP), &name(TABLES), &word(24), &[8]]),
        command(3, &[&name(TABLES), &word(9), &word(0), &word(512)]),
        command(3, &[&name(RSDP), &word(8), &word(0), &word(20)]),
        command(4, &[&name(BACK), &name(ERRORS), &word(0), &word(0), &[8]]),
    ];
    commands.concat()
}

fn file_name(text: &str) -> [u8; 56] {
    let mut name = [0; 56];
    name[..text.len()].copy_from_slice(text.as_bytes());
    name
}

fn command(number: u32, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [&number.to_le_bytes()[..], &fields.concat()].concat();
    bytes.resize(128, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;

    #[test]
    fn seeds_are_accepted_so_that_fuzzing_starts_deep_inside() {
        for (target, name, bytes) in seeds() {
            match target {
                "fdt" => {
                    let fdt = CheckedFdt::new(&bytes).expect(name);
                    Machine::from_fdt(&fdt, Pa::new(0x4000_0000)).expect(name);
                }
                "bundle" => {
                    let bundle = Bundle::parse(&bytes).expect(name);
                    let limits = Limits {
                        cpus: 8,
                        ipa_bits: 40,
                        granules: Granules::ALL,
                    };
                    assert_eq!(config::read(&bundle, limits).expect(name).len(), 2);
                }
                "acpi" => {
                    let memory = Memory(Rc::new(bytes));
                    let tables = CheckedTables::new(&memory, Pa::new(TABLES)).expect(name);
                    assert!(tables.madt().is_some() && tables.hest().is_some());
                }
                "table_loader" => {
                    let loaded = table_loader::run(&bytes, &mut Loader::new()).expect(name);
                    assert_eq!(loaded.blobs().len(), 3);
                }
                "vms" => vms(&bytes),
                other => panic!("no target {other}"),
            }
        }
    }
}
