//! The VMs that a bundle describes: `vms.dtb` as typed, checked values (`docs/protocols.md`).
//!
//! [`read`] either returns VMs that can be built without a further question to the text, or a
//! [`ConfigError`] that names the VM, the node, the property and what is wrong with it. Nothing is
//! defaulted: an unknown property or node, or one that is there twice, is refused, so a typing
//! mistake cannot become a setting.
//!
//! What depends on the machine is checked where the machine is known: [`Limits`] gives the number
//! of CPUs and the IPA size, [`DeviceMemory::place`] is asked with the PA range of the source.

mod error;
mod section;
#[cfg(test)]
pub(crate) mod tests;

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

pub use error::{ConfigError, Why};
use section::Section;

use super::vgic;
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange};
use crate::devmem::Policy;
use crate::platform::bundle::{Bundle, File};
use crate::platform::fdt::CheckedFdt;
use crate::platform::image::ImageHeader;
use crate::platform::memory::{BLOCK_2M, GIB};

/// The file of the bundle that describes the VMs.
pub const FILE: &str = "vms.dtb";

/// Most vCPUs of one VM.
pub const MAX_VCPUS: u32 = 64;

/// Most pieces of device memory of one VM.
pub const MAX_DEVICE_MEMORY: usize = 16;

/// Room for the guest's DTB at the end of its RAM, in bytes.
pub const DTB_SIZE: u64 = BLOCK_2M;

/// Longest `label`, in bytes.
const MAX_LABEL: usize = 15;

/// Registers of the emulated PL011.
pub const UART: (Ipa, u64) = (Ipa::new(0x0900_0000), 0x1000);

/// Registers of the emulated GICv3's distributor.
pub const DISTRIBUTOR: (Ipa, u64) = (Ipa::new(0x0800_0000), vgic::DISTRIBUTOR_SIZE);

/// Registers of the redistributors, one behind the other, for as many vCPUs as a VM can have.
pub const REDISTRIBUTORS: (Ipa, u64) = (
    Ipa::new(0x080a_0000),
    vgic::REDISTRIBUTOR_SIZE * MAX_VCPUS as u64,
);

/// INTID of the PL011's interrupt: SPI 1.
pub const UART_INTERRUPT: u16 = 33;

/// A non-empty range of a guest's addresses that does not wrap around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpaRange {
    start: Ipa,
    size: u64,
}

impl IpaRange {
    /// The `size` bytes from `start`, or `None` where that is empty or wraps around.
    pub const fn new(start: Ipa, size: u64) -> Option<Self> {
        if size == 0 || start.checked_add(size - 1).is_none() {
            return None;
        }
        Some(Self { start, size })
    }

    /// First address.
    pub const fn start(self) -> Ipa {
        self.start
    }

    /// Size in bytes, never 0.
    pub const fn size(self) -> u64 {
        self.size
    }

    /// Last address inside the range.
    pub const fn last(self) -> Ipa {
        Ipa::new(self.start.get() + (self.size - 1))
    }

    /// Whether all of `other` lies inside.
    pub const fn contains_range(self, other: Self) -> bool {
        self.start.get() <= other.start.get() && other.last().get() <= self.last().get()
    }

    /// Whether the two share at least one byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.get() <= other.last().get() && other.start.get() <= self.last().get()
    }
}

/// What the machine has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CPUs that vCPUs may be pinned to.
    pub cpus: usize,
    /// Bits of an IPA, 32 to 52.
    pub ipa_bits: u32,
}

/// A VM to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig<'a> {
    /// Its name: 1 to 15 of `[a-z0-9-]`, unique.
    pub label: &'a str,
    /// How many vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Its RAM, 2 MiB aligned.
    pub ram: IpaRange,
    /// Its kernel, an arm64 Image.
    pub kernel: File<'a>,
    /// What the kernel finds as its initrd.
    pub initrd: Option<File<'a>>,
    /// The kernel's command line.
    pub bootargs: Option<&'a str>,
    /// Further memory, in the order of the nodes.
    pub device_memory: Vec<DeviceMemory>,
    /// Where in RAM everything goes.
    pub layout: Layout,
}

/// Where in a VM's RAM its files go. The pieces do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The kernel's image with what it clears behind itself; its first byte is the entry.
    pub kernel: IpaRange,
    /// The initrd, page-aligned.
    pub initrd: Option<IpaRange>,
    /// The last 2 MiB, at whose start the DTB goes.
    pub dtb: IpaRange,
}

/// Where a piece of device memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A BAR of a PCI function.
    Bar,
    /// RAM that the command line took from the pool.
    Reserved,
}

/// A piece of device memory and where the VM sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What kind of thing it is a part of.
    pub source: Source,
    /// Which one of that kind.
    pub index: u32,
    /// Where the piece begins in it, in bytes, page-aligned.
    pub offset: u64,
    /// The VM's view, page-aligned.
    pub ipa: IpaRange,
    /// What is done when a page of it goes bad.
    pub policy: Policy,
    /// The VM's label and the node's path, for what [`place`](Self::place) may find wrong.
    origin: (String, String),
}

impl DeviceMemory {
    /// The physical memory of this piece, where the source that it names is at `source`.
    ///
    /// # Errors
    /// [`Why::NoSuchSource`] without a source, [`Why::BeyondSource`] for a piece that leaves it, and
    /// [`Why::NotCongruent`] where IPA and PA are not equal modulo 1 GiB.
    pub fn place(&self, source: Option<PaRange>) -> Result<PaRange, ConfigError> {
        let (vm, node) = &self.origin;
        let error = |property, why| ConfigError::at(Some(vm), node, Some(property), why);
        let source = source.ok_or_else(|| error("index", Why::NoSuchSource))?;
        let start = source.start().checked_add(self.offset);
        let range = start.and_then(|start| PaRange::new(start, self.ipa.size()));
        let range = range.filter(|range| source.contains_range(*range));
        let range = range.ok_or_else(|| {
            error(
                "size",
                Why::BeyondSource {
                    size: source.size(),
                },
            )
        })?;
        let congruent = |pa: Pa, ipa: Ipa| pa.get() % GIB == ipa.get() % GIB;
        if !congruent(range.start(), self.ipa.start()) {
            return Err(error("ipa", Why::NotCongruent { pa: range.start() }));
        }
        Ok(range)
    }
}

/// Reads the VMs that `bundle` describes.
///
/// # Errors
/// The first thing found wrong, as [`ConfigError`].
pub fn read<'a>(bundle: &Bundle<'a>, limits: Limits) -> Result<Vec<VmConfig<'a>>, ConfigError> {
    let whole = |why| ConfigError::at(None, "/", None, why);
    let file = bundle.get(FILE).ok_or_else(|| {
        whole(Why::NoSuchFile {
            name: FILE.to_owned(),
        })
    })?;
    let tree = CheckedFdt::new(file.bytes).map_err(|error| whole(Why::BadTree(error)))?;
    let root = tree.root().ok_or_else(|| whole(Why::NoVms))?;
    let section = Section {
        vm: None,
        path: "/".to_owned(),
        node: root,
    };
    section.only(&["compatible"])?;
    if section.text("compatible")? != "cordon,bundle-v1" {
        return Err(section.error("compatible", Why::BadValue));
    }
    let mut vms: Vec<VmConfig<'a>> = Vec::new();
    let mut free_cpus = limits.cpus;
    for section in section.children("vm@", limits.cpus)? {
        let vm = read_vm(section.clone(), bundle, limits)?;
        let section = Section {
            vm: Some(vm.label),
            ..section
        };
        if vms.iter().any(|other| other.label == vm.label) {
            return Err(section.error("label", Why::Duplicate));
        }
        let taken = usize::try_from(vm.vcpus).ok();
        let left = taken.and_then(|taken| free_cpus.checked_sub(taken));
        let too_many = || section.error("vcpus", Why::TooManyVcpus { cpus: limits.cpus });
        free_cpus = left.ok_or_else(too_many)?;
        vms.push(vm);
    }
    if vms.is_empty() {
        Err(whole(Why::NoVms))
    } else {
        Ok(vms)
    }
}

fn read_vm<'a>(
    mut section: Section<'_, 'a>,
    bundle: &Bundle<'a>,
    limits: Limits,
) -> Result<VmConfig<'a>, ConfigError> {
    let label = section.text("label")?;
    let in_label = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !(1..=MAX_LABEL).contains(&label.len()) || !label.bytes().all(in_label) {
        return Err(section.error("label", Why::BadValue));
    }
    section.vm = Some(label);
    section.only(&[
        "label", "vcpus", "ram-base", "ram-size", "kernel", "initrd", "bootargs",
    ])?;
    let vcpus = section.cell("vcpus")?;
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        return Err(section.error(
            "vcpus",
            Why::OutOfRange {
                value: vcpus.into(),
            },
        ));
    }
    let ram = section.range("ram-base", "ram-size", BLOCK_2M, limits)?;
    section.not_emulated("ram-base", ram)?;
    let kernel = section
        .file("kernel", bundle)?
        .ok_or_else(|| section.missing("kernel"))?;
    let initrd = section.file("initrd", bundle)?;
    let bootargs = section.optional_text("bootargs")?;
    let layout = place_files(&section, ram, kernel, initrd)?;
    let device_memory = read_device_memory(&section, ram, limits)?;
    Ok(VmConfig {
        label,
        vcpus,
        ram,
        kernel,
        initrd,
        bootargs,
        device_memory,
        layout,
    })
}

fn read_device_memory(
    vm: &Section<'_, '_>,
    ram: IpaRange,
    limits: Limits,
) -> Result<Vec<DeviceMemory>, ConfigError> {
    let mut all: Vec<DeviceMemory> = Vec::new();
    for section in vm.children("device-memory@", MAX_DEVICE_MEMORY)? {
        section.only(&["source", "index", "offset", "size", "ipa", "policy"])?;
        section.no_children()?;
        let source = match section.text("source")? {
            "bar" => Source::Bar,
            "reserved" => Source::Reserved,
            _ => return Err(section.error("source", Why::BadValue)),
        };
        let index = section.cell("index")?;
        let offset = section.number("offset")?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(section.error("offset", Why::Misaligned { value: offset }));
        }
        let ipa = section.range("ipa", "size", PAGE_SIZE, limits)?;
        section.not_emulated("ipa", ipa)?;
        if ipa.overlaps(ram) {
            return Err(section.error(
                "ipa",
                Why::Overlap {
                    with: "ram".to_owned(),
                },
            ));
        }
        if let Some(other) = all.iter().find(|other| other.ipa.overlaps(ipa)) {
            return Err(section.error(
                "ipa",
                Why::Overlap {
                    with: other.origin.1.clone(),
                },
            ));
        }
        let policy = section
            .optional_text("policy")?
            .map_or(Some(Policy::default()), Policy::from_name);
        let policy = policy.ok_or_else(|| section.error("policy", Why::BadValue))?;
        let origin = (section.vm.unwrap_or_default().to_owned(), section.path);
        all.push(DeviceMemory {
            source,
            index,
            offset,
            ipa,
            policy,
            origin,
        });
    }
    Ok(all)
}

/// Finds places for a VM's files in its RAM (Linux `booting.rst`): the kernel at its offset from
/// the base, the DTB in the last 2 MiB, the initrd below it, but within 32 GiB of the kernel.
fn place_files(
    vm: &Section<'_, '_>,
    ram: IpaRange,
    kernel: File<'_>,
    initrd: Option<File<'_>>,
) -> Result<Layout, ConfigError> {
    let bad_image = |error| vm.error("kernel", Why::BadImage(error));
    let header = ImageHeader::parse(kernel.bytes).map_err(bad_image)?;
    let no_room = |property| vm.error(property, Why::NoRoom { ram: ram.size() });
    let dtb = (ram.size().checked_sub(DTB_SIZE))
        .and_then(|offset| IpaRange::new(ram.start().checked_add(offset)?, DTB_SIZE))
        .ok_or_else(|| no_room("ram-size"))?;
    let kernel = (ram.start().checked_add(header.text_offset))
        .and_then(|start| IpaRange::new(start, header.size))
        .filter(|kernel| kernel.last() < dtb.start())
        .ok_or_else(|| no_room("kernel"))?;
    let Some(initrd) = initrd else {
        return Ok(Layout {
            kernel,
            initrd: None,
            dtb,
        });
    };
    let window = kernel.start().align_down(GIB).checked_add(32 * GIB);
    let end = window.map_or(dtb.start(), |window| window.min(dtb.start()));
    let size = u64::try_from(initrd.bytes.len()).unwrap_or(u64::MAX);
    let initrd = (end.get().checked_sub(size))
        .and_then(|start| IpaRange::new(Ipa::new(start).page(), size))
        .filter(|initrd| initrd.start() > kernel.last())
        .ok_or_else(|| no_room("initrd"))?;
    Ok(Layout {
        kernel,
        initrd: Some(initrd),
        dtb,
    })
}
