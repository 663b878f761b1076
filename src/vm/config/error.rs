//! What can be wrong with a description of VMs, and how it is said.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use crate::addr::Pa;
use crate::platform::fdt::FdtError;
use crate::platform::image::ImageError;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The VM's label, where it is known.
    pub vm: Option<String>,
    /// Path of the node.
    pub node: String,
    /// The property, where it is about one.
    pub property: Option<String>,
    /// What is wrong.
    pub why: Why,
}

/// What is wrong with a node or property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is no device tree.
    BadTree(FdtError),
    /// There are no VMs.
    NoVms,
    /// The bundle has no such file, or it is empty.
    NoSuchFile {
        /// The name asked for.
        name: String,
    },
    /// Nobody knows such a node or property.
    Unknown,
    /// It is there twice, or another VM has the same label.
    Duplicate,
    /// More nodes than this.
    TooMany {
        /// How many may be there.
        max: usize,
    },
    /// The CPUs do not have this granule at stage 2.
    NoGranule {
        /// Its name.
        granule: &'static str,
    },
    /// The property is needed and not there.
    Missing,
    /// The value has the wrong length or form, or is none of the words.
    BadValue,
    /// The number is not in its range.
    OutOfRange {
        /// The number.
        value: u64,
    },
    /// The number is not the multiple that it must be.
    Misaligned {
        /// The number.
        value: u64,
    },
    /// The range ends beyond the size of an IPA.
    BeyondIpa {
        /// Bits of an IPA.
        bits: u32,
    },
    /// The range overlaps something of the same VM.
    Overlap {
        /// `ram`, an emulated device or the node of other device memory.
        with: String,
    },
    /// Other device memory has some of the same memory, and this does not say that it is shared.
    NotShared {
        /// The other VM's label, and the node.
        with: String,
    },
    /// All VMs together have more vCPUs than there are CPUs.
    TooManyVcpus {
        /// How many CPUs there are.
        cpus: usize,
    },
    /// The kernel is no arm64 Image.
    BadImage(ImageError),
    /// The kernel, the initrd or the DTB does not fit into RAM.
    NoRoom {
        /// Bytes of RAM.
        ram: u64,
    },
    /// The machine has no source of that number.
    NoSuchSource,
    /// The piece ends beyond its source.
    BeyondSource {
        /// Bytes of the source.
        size: u64,
    },
    /// A device may reach all memory, and the description does not say that it knows.
    DmaNotAllowed,
    /// A VM with a device needs IPAs that are PAs.
    NeedsIdentity,
    /// The machine has no such device there.
    NoSuchDevice,
    /// Cordon uses it, or everybody.
    DeviceInUse {
        /// What it is.
        by: &'static str,
    },
    /// Cordon does not know how such a device is put into its reset state.
    UnsupportedDevice,
    /// The device has no interrupt that could be forwarded.
    NoInterrupt,
    /// The device's interrupt is Cordon's, or another device's.
    InterruptTaken {
        /// Its physical INTID.
        intid: u16,
    },
    /// Something else has registers in the same page.
    PageShared {
        /// Its path in the machine's DTB.
        with: String,
    },
    /// Another VM has a device in the same page.
    PageTaken {
        /// The other VM's label.
        vm: String,
    },
    /// IPA and PA are not equal modulo 1 GiB.
    NotCongruent {
        /// The PA that the piece has.
        pa: Pa,
    },
}

impl ConfigError {
    pub(super) fn at(vm: Option<&str>, node: &str, property: Option<&str>, why: Why) -> Self {
        let owned = str::to_owned;
        Self {
            vm: vm.map(owned),
            node: node.to_owned(),
            property: property.map(owned),
            why,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.why)?;
        if let Some(vm) = &self.vm {
            write!(f, " vm={vm}")?;
        }
        write!(f, " node={}", self.node)?;
        self.property
            .as_ref()
            .map_or(Ok(()), |property| write!(f, " property={property}"))
    }
}

impl core::error::Error for ConfigError {}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadTree(error) => error.fmt(f),
            Self::NoVms => f.write_str("why=no-vms"),
            Self::NoSuchFile { name } => write!(f, "why=no-such-file file={name}"),
            Self::Unknown => f.write_str("why=unknown"),
            Self::Duplicate => f.write_str("why=duplicate"),
            Self::TooMany { max } => write!(f, "why=too-many max={max}"),
            Self::NoGranule { granule } => write!(f, "why=no-granule granule={granule}"),
            Self::Missing => f.write_str("why=missing"),
            Self::BadValue => f.write_str("why=bad-value"),
            Self::OutOfRange { value } => write!(f, "why=out-of-range value={value}"),
            Self::Misaligned { value } => write!(f, "why=misaligned value={value:#x}"),
            Self::BeyondIpa { bits } => write!(f, "why=beyond-ipa bits={bits}"),
            Self::Overlap { with } => write!(f, "why=overlap with={with}"),
            Self::NotShared { with } => write!(f, "why=not-shared with={with}"),
            Self::TooManyVcpus { cpus } => write!(f, "why=too-many-vcpus cpus={cpus}"),
            Self::BadImage(error) => error.fmt(f),
            Self::NoRoom { ram } => write!(f, "why=no-room ram={ram:#x}"),
            Self::NoSuchSource => f.write_str("why=no-such-source"),
            Self::BeyondSource { size } => write!(f, "why=beyond-source size={size:#x}"),
            Self::DmaNotAllowed => f.write_str("why=dma-not-allowed"),
            Self::NeedsIdentity => f.write_str("why=needs-identity"),
            Self::NoSuchDevice => f.write_str("why=no-such-device"),
            Self::DeviceInUse { by } => write!(f, "why=device-in-use by={by}"),
            Self::UnsupportedDevice => f.write_str("why=unsupported-device"),
            Self::NoInterrupt => f.write_str("why=no-interrupt"),
            Self::InterruptTaken { intid } => write!(f, "why=interrupt-taken intid={intid}"),
            Self::PageShared { with } => write!(f, "why=page-shared with={with}"),
            Self::PageTaken { vm } => write!(f, "why=page-taken by={vm}"),
            Self::NotCongruent { pa } => write!(f, "why=not-congruent pa={pa}"),
        }
    }
}
