//! The VMs that a bundle describes: `vms.dtb` as typed, checked values (`docs/protocols.md`).
//!
//! [`read`] either returns VMs that can be built without a further question to the text, or a
//! [`ConfigError`] that names the VM, the node, the property and what is wrong with it. Nothing is
//! defaulted: an unknown property or node, or one that is there twice, is refused, so a typing
//! mistake cannot become a setting.
//!
//! What depends on the machine is checked where the machine is known: [`Limits`] gives the number
//! of CPUs and the IPA size, [`DeviceMemory::place`] is asked with the PA range of the source.

mod devices;
mod error;
mod section;
mod sharing;
#[cfg(test)]
pub(crate) mod tests;

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

pub use devices::{DEVICE_INTERRUPTS, DeviceConfig, Devices, Given, Grant, MAX_DEVICES};
pub use error::{ConfigError, Why};
use section::Section;

use super::vgic;
use crate::addr::{Ipa, Pa, PaRange};
use crate::devmem::Policy;
use crate::platform::bundle::{Bundle, File};
use crate::platform::fdt::CheckedFdt;
use crate::platform::image::ImageHeader;
use crate::platform::memory::{BLOCK_2M, GIB};
use crate::stage2::{Granule, Granules, MemoryType};

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

/// Registers of the error device (`super::error_device`), which a VM with ACPI has.
pub const ERROR_DEVICE: (Ipa, u64) = (Ipa::new(0x0908_0000), 0x1000);

/// Memory that the error device and its guest share.
pub const ERROR_AREA: (Ipa, u64) = (Ipa::new(0x0920_0000), 0x1_0000);

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
    /// Granules of stage 2.
    pub granules: Granules,
}

/// How a guest learns of its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firmware {
    /// By a device tree (`super::guest_dt`).
    #[default]
    DeviceTree,
    /// By ACPI tables (`super::guest_acpi`), which is the only way to hear of memory errors by records.
    Acpi,
}

/// A VM to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig<'a> {
    /// Its name: 1 to 15 of `[a-z0-9-]`, unique.
    pub label: &'a str,
    /// How many vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Its RAM, 2 MiB aligned. Where `identity` is set, only its size is known before
    /// [`place_ram`](Self::place_ram).
    pub ram: IpaRange,
    /// Its RAM has the IPAs that are its PAs.
    pub identity: bool,
    /// Its kernel: an arm64 Image, or code without a header.
    pub kernel: File<'a>,
    /// What the kernel finds as its initrd.
    pub initrd: Option<File<'a>>,
    /// The kernel's command line.
    pub bootargs: Option<&'a str>,
    /// What describes the machine to the guest.
    pub firmware: Firmware,
    /// The granule of its tables: all its memory is aligned to it.
    pub granule: Granule,
    /// Further memory, in the order of the nodes.
    pub device_memory: Vec<DeviceMemory>,
    /// Devices of the machine, in the order of the nodes.
    pub devices: Vec<DeviceConfig>,
    /// Where in RAM everything goes.
    pub layout: Layout,
    /// What its files want of their places.
    wish: Wish,
    /// The node's path.
    origin: String,
}

/// Where a VM's files want to be, as offsets from the base of its RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    /// The kernel, and how much room it needs.
    kernel: (u64, u64),
    /// The DTB, if the description says so.
    dtb: Option<u64>,
}

impl VmConfig<'_> {
    /// Gives a VM with `identity` the RAM that it gets, which must have the size that it wants.
    ///
    /// # Errors
    /// Where an emulated device or device memory has these addresses, or an IPA does not reach them.
    pub fn place_ram(&mut self, ram: PaRange, limits: Limits) -> Result<(), ConfigError> {
        let (vm, node) = (Some(self.label), &self.origin);
        let error = |why| ConfigError::at(vm, node, Some("identity"), why);
        let bits = limits.ipa_bits;
        let place = IpaRange::new(Ipa::new(ram.start().get()), ram.size())
            .filter(|ram| ram.last().get().checked_shr(bits).unwrap_or(0) == 0)
            .ok_or_else(|| error(Why::BeyondIpa { bits }))?;
        let memory = self.device_memory.iter();
        let overlapping = memory
            .map(|memory| memory.ipa)
            .find(|it| it.overlaps(place));
        let with = section::emulated(place).or(overlapping.map(|_| "device-memory"));
        if let Some(with) = with {
            let with = with.to_owned();
            return Err(error(Why::Overlap { with }));
        }
        let place_error = |property: &str, why| ConfigError::at(vm, node, Some(property), why);
        self.layout = place_files(&place_error, place, &self.wish, self.initrd)?;
        self.ram = place;
        Ok(())
    }
}

/// What the guest is told that a piece of device memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appearance {
    /// Cordon's own `cordon,device-memory`, for guests that know it.
    Plain,
    /// A `pmem-region` (NVDIMM with ACPI), which Linux offers as a block device that can be mapped.
    Pmem,
    /// Memory for a special purpose, which Linux offers as a device that can be mapped. Only ACPI
    /// has a word for it.
    Dax,
}

/// Where in a VM's RAM its files go. The pieces do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The kernel's image with what it clears behind itself; its first byte is the entry.
    pub kernel: IpaRange,
    /// The initrd, page-aligned.
    pub initrd: Option<IpaRange>,
    /// 2 MiB, the last ones unless the description says otherwise, at whose start the DTB goes.
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
    /// Where the piece begins in it, in bytes, aligned to the VM's granule.
    pub offset: u64,
    /// The VM's view, likewise.
    pub ipa: IpaRange,
    /// What it is told that this is.
    pub appearance: Appearance,
    /// What is done when a page of it goes bad.
    pub policy: Policy,
    /// How the VM sees it at most: its own stage 1 may weaken that.
    pub memory: MemoryType,
    /// Other pieces may have memory in common with this one, if they say so as well.
    pub shared: bool,
    /// The VM's label and the node's path, for what [`place`](Self::place) may find wrong.
    origin: (String, String),
}

impl DeviceMemory {
    /// Whether a guest with ACPI is to see it as memory for a special purpose rather than nothing.
    pub const fn is_special_purpose(&self) -> bool {
        matches!(self.appearance, Appearance::Dax)
    }

    fn error(&self, property: &str, why: Why) -> ConfigError {
        let (vm, node) = &self.origin;
        ConfigError::at(Some(vm), node, Some(property), why)
    }

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
        sharing::check(&vms)?;
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
        "label",
        "vcpus",
        "identity",
        "ram-base",
        "ram-size",
        "kernel",
        "kernel-offset",
        "dtb-offset",
        "initrd",
        "bootargs",
        "firmware",
        "granule",
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
    let identity = section.flag("identity")?;
    let ram = read_ram(&section, identity, limits)?;
    let kernel = section
        .file("kernel", bundle)?
        .ok_or_else(|| section.missing("kernel"))?;
    let initrd = section.file("initrd", bundle)?;
    let bootargs = section.optional_text("bootargs")?;
    let firmware = match section.optional_text("firmware")? {
        None | Some("device-tree") => Firmware::DeviceTree,
        Some("acpi") => Firmware::Acpi,
        Some(_) => return Err(section.error("firmware", Why::BadValue)),
    };
    let granule = read_granule(&section, limits)?;
    let error = |property: &str, why| section.error(property, why);
    let wish = Wish {
        kernel: kernel_place(&section, kernel)?,
        dtb: section.optional_offset("dtb-offset")?,
    };
    let layout = place_files(&error, ram, &wish, initrd)?;
    let taken = Some(ram).filter(|_| !identity);
    let device_memory = read_device_memory(&section, taken, granule, limits)?;
    let devices = devices::read(&section, &["device-memory@"], identity)?;
    if firmware == Firmware::DeviceTree
        && let Some(memory) = device_memory
            .iter()
            .find(|memory| memory.is_special_purpose())
    {
        return Err(memory.error("as", Why::BadValue));
    }
    Ok(VmConfig {
        label,
        vcpus,
        ram,
        identity,
        kernel,
        initrd,
        bootargs,
        firmware,
        granule,
        device_memory,
        devices,
        layout,
        wish,
        origin: section.path,
    })
}

/// The place of a VM's RAM; with `identity` its size alone, at IPA 0 for now.
fn read_ram(vm: &Section<'_, '_>, identity: bool, limits: Limits) -> Result<IpaRange, ConfigError> {
    if !identity {
        let ram = vm.range("ram-base", "ram-size", BLOCK_2M, limits)?;
        vm.not_emulated("ram-base", ram)?;
        return Ok(ram);
    }
    if vm.number("ram-base").is_ok() {
        return Err(vm.error("ram-base", Why::Unknown));
    }
    let bits = limits.ipa_bits;
    IpaRange::new(Ipa::new(0), vm.size("ram-size", BLOCK_2M)?)
        .filter(|ram| ram.last().get().checked_shr(bits).unwrap_or(0) == 0)
        .ok_or_else(|| vm.error("ram-size", Why::BeyondIpa { bits }))
}

/// The granule of a VM's tables, 4K where nothing is said.
fn read_granule(vm: &Section<'_, '_>, limits: Limits) -> Result<Granule, ConfigError> {
    let name = vm.optional_text("granule")?;
    let granule = name.map_or(Some(Granule::default()), Granule::from_name);
    let granule = granule.ok_or_else(|| vm.error("granule", Why::BadValue))?;
    if limits.granules.contains(granule) {
        Ok(granule)
    } else {
        let granule = granule.name();
        Err(vm.error("granule", Why::NoGranule { granule }))
    }
}

fn read_device_memory(
    vm: &Section<'_, '_>,
    ram: Option<IpaRange>,
    granule: Granule,
    limits: Limits,
) -> Result<Vec<DeviceMemory>, ConfigError> {
    let mut all: Vec<DeviceMemory> = Vec::new();
    for section in vm.children_among("device-memory@", &["device@"], MAX_DEVICE_MEMORY)? {
        section.only(&[
            "source",
            "index",
            "offset",
            "size",
            "ipa",
            "as",
            "policy",
            "memory-type",
            "shared",
        ])?;
        section.no_children()?;
        let source = match section.text("source")? {
            "bar" => Source::Bar,
            "reserved" => Source::Reserved,
            _ => return Err(section.error("source", Why::BadValue)),
        };
        let appearance = match section.optional_text("as")? {
            None => Appearance::Plain,
            Some("pmem") => Appearance::Pmem,
            Some("dax") => Appearance::Dax,
            Some(_) => return Err(section.error("as", Why::BadValue)),
        };
        let index = section.cell("index")?;
        let offset = section.number("offset")?;
        if !offset.is_multiple_of(granule.page_size()) {
            return Err(section.error("offset", Why::Misaligned { value: offset }));
        }
        let ipa = section.range("ipa", "size", granule.page_size(), limits)?;
        section.not_emulated("ipa", ipa)?;
        if ram.is_some_and(|ram| ipa.overlaps(ram)) {
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
        let memory = section
            .optional_text("memory-type")?
            .map_or(Some(MemoryType::NormalWb), MemoryType::from_name)
            // What is offered as memory is used as memory.
            .filter(|memory| appearance == Appearance::Plain || *memory == MemoryType::NormalWb)
            .ok_or_else(|| section.error("memory-type", Why::BadValue))?;
        let shared = section.flag("shared")?;
        let origin = (section.vm.unwrap_or_default().to_owned(), section.path);
        all.push(DeviceMemory {
            source,
            index,
            offset,
            ipa,
            appearance,
            policy,
            memory,
            shared,
            origin,
        });
    }
    Ok(all)
}

/// Where a VM's kernel goes, as an offset from the base of its RAM, and how much room it needs: as the
/// header of the arm64 Image says, or, where `kernel-offset` is there, as that does of code that has no
/// header, whose first byte is the entry.
fn kernel_place(vm: &Section<'_, '_>, kernel: File<'_>) -> Result<(u64, u64), ConfigError> {
    if let Some(offset) = vm.optional_offset("kernel-offset")? {
        let size = u64::try_from(kernel.bytes.len()).unwrap_or(u64::MAX);
        return Ok((offset, size));
    }
    let bad_image = |error| vm.error("kernel", Why::BadImage(error));
    let header = ImageHeader::parse(kernel.bytes).map_err(bad_image)?;
    Ok((header.text_offset, header.size))
}

/// Finds places for a VM's files in its RAM (Linux `booting.rst`): the kernel at its offset from
/// the base, the DTB in the last 2 MiB or where `dtb-offset` says, the initrd above the kernel as far as
/// there is room, but within 32 GiB of it.
fn place_files(
    error: &dyn Fn(&str, Why) -> ConfigError,
    ram: IpaRange,
    wish: &Wish,
    initrd: Option<File<'_>>,
) -> Result<Layout, ConfigError> {
    let no_room = |property| error(property, Why::NoRoom { ram: ram.size() });
    let place = |offset, size| {
        let start = ram.start().checked_add(offset)?;
        IpaRange::new(start, size).filter(|place| ram.contains_range(*place))
    };
    let chosen = wish.dtb;
    let dtb = (chosen.or_else(|| ram.size().checked_sub(DTB_SIZE)))
        .and_then(|offset| place(offset, DTB_SIZE))
        .ok_or_else(|| {
            no_room(if chosen.is_some() {
                "dtb-offset"
            } else {
                "ram-size"
            })
        })?;
    let (offset, size) = wish.kernel;
    let kernel = place(offset, size)
        .filter(|kernel| !kernel.overlaps(dtb))
        .ok_or_else(|| no_room("kernel"))?;
    let Some(initrd) = initrd else {
        return Ok(Layout {
            kernel,
            initrd: None,
            dtb,
        });
    };
    let window = kernel.start().align_down(GIB).checked_add(32 * GIB);
    // What is above the kernel ends with the RAM, or with the DTB.
    let end = if dtb.start() > kernel.start() {
        dtb.start().get()
    } else {
        ram.last().get().saturating_add(1)
    };
    let end = window.map_or(end, |window| window.get().min(end));
    let size = u64::try_from(initrd.bytes.len()).unwrap_or(u64::MAX);
    let initrd = (end.checked_sub(size))
        .and_then(|start| IpaRange::new(Ipa::new(start).page(), size))
        .filter(|initrd| initrd.start() > kernel.last())
        .ok_or_else(|| no_room("initrd"))?;
    Ok(Layout {
        kernel,
        initrd: Some(initrd),
        dtb,
    })
}
