//! The device tree for the next stage: QEMU's, with what only the firmware knows.
//!
//! QEMU describes the machine it built, without PSCI, as its own is off, and without what was loaded
//! where. The tree is read and written anew, since properties grow; everything that is not named
//! here is copied as it is. Added or replaced are (`docs/protocols.md`, "To the next stage"):
//! `/psci`, `enable-method` of each CPU, the properties of `/chosen`, and `/reserved-memory`.

use alloc::string::String;
use alloc::vec::Vec;

use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use fdt::Fdt;
use fdt::node::FdtNode;
use vm_fdt::FdtWriter;

/// What the firmware has to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Additions<'a> {
    /// Where the initrd lies.
    pub initrd: Option<PaRange>,
    /// The kernel's command line.
    pub bootargs: Option<&'a str>,
    /// Where the RSDP lies.
    pub rsdp: Option<Pa>,
    /// The ACPI tables and error status blocks: RAM that the next stage must leave alone.
    pub acpi: Option<PaRange>,
}

/// The tree cannot be read, or not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is none.
    Malformed,
    /// It has a node or property that the specification does not allow.
    Unwritable,
}

impl From<vm_fdt::Error> for Error {
    fn from(_: vm_fdt::Error) -> Self {
        Self::Unwritable
    }
}

/// The affinity of each CPU, in the order of the tree.
///
/// # Errors
/// [`Error::Malformed`].
pub fn cpu_affinities(blob: &[u8]) -> Result<Vec<u64>, Error> {
    let tree = Fdt::new(blob).map_err(|_| Error::Malformed)?;
    let cpus = tree.find_node("/cpus").ok_or(Error::Malformed)?;
    Ok(cpus
        .children()
        .filter(is_cpu)
        .filter_map(|cpu| number(cpu.property("reg")?.value))
        .collect())
}

/// The size in bytes of the RAM that begins at `base`.
///
/// # Errors
/// [`Error::Malformed`].
pub fn ram_size(blob: &[u8], base: u64) -> Result<u64, Error> {
    let tree = Fdt::new(blob).map_err(|_| Error::Malformed)?;
    let root = tree.find_node("/").ok_or(Error::Malformed)?;
    root.children()
        .filter(|node| node.name.starts_with("memory@"))
        .filter_map(|node| {
            // #address-cells and #size-cells of QEMU's root are 2.
            let (start, rest) = node.property("reg")?.value.split_first_chunk::<8>()?;
            (u64::from_be_bytes(*start) == base).then(|| number(rest.get(..8)?))?
        })
        .next()
        .ok_or(Error::Malformed)
}

/// Writes the tree in `blob` with the additions.
///
/// # Errors
/// [`Error`].
pub fn extend(blob: &[u8], additions: &Additions<'_>) -> Result<Vec<u8>, Error> {
    let tree = Fdt::new(blob).map_err(|_| Error::Malformed)?;
    let root = tree.find_node("/").ok_or(Error::Malformed)?;
    let mut out = FdtWriter::new()?;
    let node = out.begin_node("")?;
    properties(&mut out, root, &[])?;
    write_psci(&mut out)?;
    write_reserved_memory(&mut out, additions.acpi)?;
    let mut chosen_done = false;
    for child in root.children() {
        match child.name {
            "psci" | "reserved-memory" => {}
            "chosen" => {
                write_chosen(&mut out, Some(child), additions)?;
                chosen_done = true;
            }
            "cpus" => write_cpus(&mut out, child)?,
            _ => copy(&mut out, child)?,
        }
    }
    if !chosen_done {
        write_chosen(&mut out, None, additions)?;
    }
    out.end_node(node)?;
    Ok(out.finish()?)
}

fn properties(out: &mut FdtWriter, node: FdtNode<'_, '_>, except: &[&str]) -> Result<(), Error> {
    for property in node
        .properties()
        .filter(|property| !except.contains(&property.name))
    {
        out.property(property.name, property.value)?;
    }
    Ok(())
}

fn copy(out: &mut FdtWriter, source: FdtNode<'_, '_>) -> Result<(), Error> {
    let node = out.begin_node(source.name)?;
    properties(out, source, &[])?;
    // The writer refuses to nest deeper than a bound, and with that ends the recursion.
    for child in source.children() {
        copy(out, child)?;
    }
    Ok(out.end_node(node)?)
}

fn write_psci(out: &mut FdtWriter) -> Result<(), Error> {
    let node = out.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2"].map(String::from);
    out.property_string_list("compatible", compatible.into())?;
    out.property_string("method", "smc")?;
    Ok(out.end_node(node)?)
}

/// The pages that hold the tables. They stay mapped as RAM: the next stage reads them.
fn write_reserved_memory(out: &mut FdtWriter, acpi: Option<PaRange>) -> Result<(), Error> {
    let Some(acpi) = acpi else { return Ok(()) };
    let start = acpi.start().page().get();
    let size = (acpi.last().page().get() - start).saturating_add(PAGE_SIZE);
    let node = out.begin_node("reserved-memory")?;
    out.property_u32("#address-cells", 2)?;
    out.property_u32("#size-cells", 2)?;
    out.property_null("ranges")?;
    let acpi = out.begin_node(&alloc::format!("acpi@{start:x}"))?;
    out.property_array_u64("reg", &[start, size])?;
    out.end_node(acpi)?;
    Ok(out.end_node(node)?)
}

fn write_chosen(
    out: &mut FdtWriter,
    source: Option<FdtNode<'_, '_>>,
    additions: &Additions<'_>,
) -> Result<(), Error> {
    const OURS: [&str; 4] = [
        "bootargs",
        "linux,initrd-start",
        "linux,initrd-end",
        "cordon,acpi-rsdp",
    ];
    let node = out.begin_node("chosen")?;
    if let Some(source) = source {
        properties(out, source, &OURS)?;
    }
    if let Some(bootargs) = additions.bootargs {
        out.property_string("bootargs", bootargs)?;
    }
    if let Some(initrd) = additions.initrd {
        out.property_u64("linux,initrd-start", initrd.start().get())?;
        // The end is the first byte behind it.
        out.property_u64("linux,initrd-end", initrd.last().get().saturating_add(1))?;
    }
    if let Some(rsdp) = additions.rsdp {
        out.property_u64("cordon,acpi-rsdp", rsdp.get())?;
    }
    for child in source.iter().flat_map(|source| source.children()) {
        copy(out, child)?;
    }
    Ok(out.end_node(node)?)
}

fn is_cpu(node: &FdtNode<'_, '_>) -> bool {
    node.name.starts_with("cpu@")
}

fn write_cpus(out: &mut FdtWriter, source: FdtNode<'_, '_>) -> Result<(), Error> {
    let node = out.begin_node(source.name)?;
    properties(out, source, &[])?;
    for child in source.children() {
        if is_cpu(&child) {
            let cpu = out.begin_node(child.name)?;
            properties(out, child, &["enable-method"])?;
            out.property_string("enable-method", "psci")?;
            for grandchild in child.children() {
                copy(out, grandchild)?;
            }
            out.end_node(cpu)?;
        } else {
            copy(out, child)?;
        }
    }
    Ok(out.end_node(node)?)
}

/// A big-endian number of one or two cells.
fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => value
            .first_chunk()
            .map(|cell| u64::from(u32::from_be_bytes(*cell))),
        8 => value.first_chunk().map(|cells| u64::from_be_bytes(*cells)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qemu_like() -> Vec<u8> {
        let mut out = FdtWriter::new().unwrap();
        let root = out.begin_node("").unwrap();
        out.property_u32("#address-cells", 2).unwrap();
        out.property_u32("#size-cells", 2).unwrap();
        let memory = out.begin_node("memory@40000000").unwrap();
        out.property_array_u64("reg", &[0x4000_0000, 0x2000_0000])
            .unwrap();
        out.end_node(memory).unwrap();
        let cpus = out.begin_node("cpus").unwrap();
        for affinity in [0u32, 1, 0x100] {
            let cpu = out.begin_node(&std::format!("cpu@{affinity:x}")).unwrap();
            out.property_u32("reg", affinity).unwrap();
            out.end_node(cpu).unwrap();
        }
        let map = out.begin_node("cpu-map").unwrap();
        out.end_node(map).unwrap();
        out.end_node(cpus).unwrap();
        let chosen = out.begin_node("chosen").unwrap();
        out.property_string("stdout-path", "/pl011@9000000")
            .unwrap();
        out.property_string("bootargs", "old").unwrap();
        out.end_node(chosen).unwrap();
        out.end_node(root).unwrap();
        out.finish().unwrap()
    }

    fn additions() -> Additions<'static> {
        Additions {
            initrd: PaRange::new(Pa::new(0x4440_0000), 0x1234),
            bootargs: Some("quiet"),
            rsdp: Some(Pa::new(0x4430_0000)),
            acpi: PaRange::new(Pa::new(0x4430_0000), 0x1001),
        }
    }

    #[test]
    fn the_next_stage_learns_what_was_loaded_where() {
        let blob = extend(&qemu_like(), &additions()).unwrap();
        let tree = Fdt::new(&blob).unwrap();
        let chosen = tree.find_node("/chosen").unwrap();
        let value = |name| number(chosen.property(name).unwrap().value).unwrap();
        assert_eq!(value("linux,initrd-start"), 0x4440_0000);
        assert_eq!(value("linux,initrd-end"), 0x4440_1234);
        assert_eq!(value("cordon,acpi-rsdp"), 0x4430_0000);
        assert_eq!(tree.chosen().bootargs(), Some("quiet"));
        let uart = chosen.property("stdout-path").unwrap();
        assert_eq!(uart.as_str(), Some("/pl011@9000000"), "QEMU's own stay");
        let reserved = tree.find_node("/reserved-memory/acpi@44300000").unwrap();
        let region = reserved.property("reg").unwrap().value;
        assert_eq!(number(&region[..8]), Some(0x4430_0000));
        assert_eq!(number(&region[8..]), Some(0x2000), "whole pages");
    }

    #[test]
    fn every_cpu_is_started_by_psci() {
        let blob = extend(&qemu_like(), &Additions::default()).unwrap();
        let tree = Fdt::new(&blob).unwrap();
        let psci = tree.find_node("/psci").unwrap();
        assert_eq!(psci.property("method").unwrap().as_str(), Some("smc"));
        assert_eq!(
            psci.property("compatible").unwrap().value,
            b"arm,psci-1.0\0arm,psci-0.2\0"
        );
        for name in ["cpu@0", "cpu@1", "cpu@100"] {
            let cpu = tree.find_node(&std::format!("/cpus/{name}")).unwrap();
            assert_eq!(
                cpu.property("enable-method").unwrap().as_str(),
                Some("psci")
            );
        }
        let map = tree.find_node("/cpus/cpu-map").unwrap();
        assert!(map.property("enable-method").is_none());
    }

    #[test]
    fn what_was_not_loaded_is_not_mentioned() {
        let blob = extend(&qemu_like(), &Additions::default()).unwrap();
        let tree = Fdt::new(&blob).unwrap();
        let chosen = tree.find_node("/chosen").unwrap();
        for name in ["linux,initrd-start", "bootargs", "cordon,acpi-rsdp"] {
            assert!(chosen.property(name).is_none(), "{name}");
        }
        assert!(tree.find_node("/reserved-memory").is_none());
    }

    #[test]
    fn extending_twice_replaces_and_does_not_repeat() {
        let once = extend(&qemu_like(), &additions()).unwrap();
        let twice = extend(&once, &additions()).unwrap();
        assert_eq!(once.len(), twice.len());
    }

    #[test]
    fn cpus_and_ram_are_read_from_the_tree() {
        let blob = qemu_like();
        assert_eq!(cpu_affinities(&blob).unwrap(), [0, 1, 0x100]);
        assert_eq!(ram_size(&blob, 0x4000_0000), Ok(0x2000_0000));
        assert_eq!(ram_size(&blob, 0), Err(Error::Malformed));
        assert_eq!(cpu_affinities(&[0; 64]), Err(Error::Malformed));
    }
}
