//! UEFI, as far as Cordon meets it (UEFI Specification 2.10).
//!
//! Cordon is an application for as long as it takes to find what it needs: the bundle, the words it is
//! started with, the tables that describe the machine, and room. Then it leaves boot services and goes on
//! as from any other boot loader. What it found goes with it as a [`Handover`]. Until the last moment
//! everything that is wrong is an [`EfiError`], of which the firmware gets a status back and a person a message.
//!
//! ```text
//!   start    find the bundle, leave boot services: over the trait `Firmware`, which tests fake
//!   map      what the memory map says is RAM, and what of that is taken
//!   runtime  what the firmware needs to be called once more
//! ```
//!
//! The calls themselves are made by `src/arch/aarch64/efi.rs`.

mod map;
mod runtime;
mod start;
#[cfg(test)]
mod tests;

use core::fmt;

pub use map::{MapError, Memory};
pub use runtime::{ResetService, RuntimeKind, RuntimeRegion};
pub use start::{Exited, File, Firmware, MapInfo, command_line, exit, load_bundle, load_text};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::bundle::BundleError;
use super::machine::MachineError;
use crate::addr::{Pa, PaRange};

/// A page, as UEFI counts memory (7.2).
pub const PAGE: u64 = 4096;

/// An `EFI_STATUS` of a call that failed (appendix D).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub usize);

impl Status {
    const ERROR: usize = 1 << (usize::BITS - 1);
    /// `EFI_LOAD_ERROR`.
    pub const LOAD_ERROR: Self = Self(Self::ERROR | 1);
    /// `EFI_INVALID_PARAMETER`.
    pub const INVALID_PARAMETER: Self = Self(Self::ERROR | 2);
    /// `EFI_UNSUPPORTED`.
    pub const UNSUPPORTED: Self = Self(Self::ERROR | 3);
    /// `EFI_BUFFER_TOO_SMALL`.
    pub const BUFFER_TOO_SMALL: Self = Self(Self::ERROR | 5);
    /// `EFI_OUT_OF_RESOURCES`.
    pub const OUT_OF_RESOURCES: Self = Self(Self::ERROR | 9);
    /// `EFI_NOT_FOUND`.
    pub const NOT_FOUND: Self = Self(Self::ERROR | 14);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why Cordon goes back to the firmware. `Display` is the end of a line `event=error ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EfiError {
    /// Not at EL2.
    NotEl2 {
        /// Where.
        level: u8,
    },
    /// The firmware does not say where Cordon was loaded from, or what by.
    NoImage(Status),
    /// There is no bundle.
    NoBundle,
    /// A file could not be read.
    File {
        /// Which.
        name: &'static str,
        /// What the firmware says.
        status: Status,
    },
    /// A file is longer than is believed.
    TooLong {
        /// Which.
        name: &'static str,
        /// What it says of itself.
        size: u64,
    },
    /// What is in the bundle.
    Bundle(BundleError),
    /// No memory.
    Memory(Status),
    /// The memory map.
    Map(MapError),
    /// Neither ACPI tables nor a device tree, or wrong ones.
    Machine(MachineError),
    /// Boot services do not end.
    Exit(Status),
}

impl EfiError {
    /// What the firmware is told.
    pub const fn status(&self) -> Status {
        match self {
            Self::NotEl2 { .. } | Self::Machine(_) => Status::UNSUPPORTED,
            Self::NoBundle => Status::NOT_FOUND,
            Self::TooLong { .. } | Self::Bundle(_) | Self::Map(_) => Status::LOAD_ERROR,
            Self::NoImage(status) | Self::Memory(status) | Self::Exit(status) => *status,
            Self::File { status, .. } => *status,
        }
    }
}

impl fmt::Display for EfiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEl2 { level } => write!(f, "what=el why=not-el2 el={level}"),
            Self::NoImage(status) => write!(f, "what=efi why=no-loaded-image status={status}"),
            Self::NoBundle => f.write_str("what=bundle why=none"),
            Self::File { name, status } => {
                write!(
                    f,
                    "what=bundle why=not-readable file={name} status={status}"
                )
            }
            Self::TooLong { name, size } => {
                write!(f, "what=bundle why=too-long file={name} size={size}")
            }
            Self::Bundle(error) => write!(f, "what=bundle {error}"),
            Self::Memory(status) => write!(f, "what=efi why=no-memory status={status}"),
            Self::Map(error) => write!(f, "what=efi {error}"),
            Self::Machine(error) => write!(f, "what=machine {error}"),
            Self::Exit(status) => write!(f, "what=efi why=cannot-exit status={status}"),
        }
    }
}

impl core::error::Error for EfiError {}

impl From<MapError> for EfiError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// What the application leaves for the hypervisor that it becomes. All of it is in memory that the memory map
/// has as the loader's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Handover {
    map: [u64; 2],
    descriptor_size: u64,
    rsdp: u64,
    dtb: u64,
    reset: u64,
    bundle: [u64; 2],
    cmdline: [u64; 2],
}

impl Handover {
    /// Bytes of it.
    pub const SIZE: usize = size_of::<Self>();

    /// The bundle, and the words that Cordon is started with.
    pub const fn new(bundle: PaRange, cmdline: Option<PaRange>) -> Self {
        Self {
            map: [0; 2],
            descriptor_size: 0,
            rsdp: 0,
            dtb: 0,
            reset: 0,
            bundle: pair(bundle),
            cmdline: match cmdline {
                Some(range) => pair(range),
                None => [0; 2],
            },
        }
    }

    /// With what firmware's configuration tables point to (4.6): the ACPI RSDP, and a device tree.
    pub const fn with_tables(mut self, tables: Tables) -> Self {
        self.rsdp = match tables.rsdp {
            Some(at) => at.get(),
            None => 0,
        };
        self.dtb = match tables.dtb {
            Some(at) => at.get(),
            None => 0,
        };
        self
    }

    /// With the address of ResetSystem, as the runtime services' table has it.
    pub const fn with_reset(mut self, at: Pa) -> Self {
        self.reset = at.get();
        self
    }

    /// With the memory map that boot services were left with.
    pub const fn with_map(mut self, map: Exited) -> Self {
        self.map = pair(map.map);
        self.descriptor_size = map.descriptor_size as u64;
        self
    }

    /// The memory map's bytes, and those of one descriptor.
    pub fn map(&self) -> Option<(PaRange, usize)> {
        Some((
            range(self.map)?,
            usize::try_from(self.descriptor_size).ok()?,
        ))
    }

    /// What describes the machine.
    pub fn tables(&self) -> Tables {
        let at = |raw: u64| (raw != 0).then_some(Pa::new(raw));
        Tables {
            rsdp: at(self.rsdp),
            dtb: at(self.dtb),
        }
    }

    /// Where ResetSystem is.
    pub fn reset(&self) -> Option<Pa> {
        (self.reset != 0).then_some(Pa::new(self.reset))
    }

    /// The bundle.
    pub fn bundle(&self) -> Option<PaRange> {
        range(self.bundle)
    }

    /// The words that Cordon is started with, ASCII.
    pub fn cmdline(&self) -> Option<PaRange> {
        range(self.cmdline)
    }
}

const fn pair(range: PaRange) -> [u64; 2] {
    [range.start().get(), range.size()]
}

const fn range([start, size]: [u64; 2]) -> Option<PaRange> {
    PaRange::new(Pa::new(start), size)
}

/// What describes the machine, by firmware's configuration tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// The ACPI RSDP.
    pub rsdp: Option<Pa>,
    /// A device tree.
    pub dtb: Option<Pa>,
}

/// `EFI_ACPI_20_TABLE_GUID` and `EFI_DTB_TABLE_GUID` (4.6.1.3), as they lie in memory.
const ACPI_20: [u8; 16] = [
    0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11, 0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81,
];
const DTB: [u8; 16] = [
    0xd5, 0x21, 0xb6, 0xb1, 0x9c, 0xf1, 0xa5, 0x41, 0x83, 0x0b, 0xd9, 0x15, 0x2c, 0x69, 0xaa, 0xe0,
];

impl Tables {
    /// Takes note of a configuration table, of which the first of a kind counts.
    pub fn add(&mut self, guid: &[u8; 16], at: Pa) {
        let place = match *guid {
            ACPI_20 => &mut self.rsdp,
            DTB => &mut self.dtb,
            _ => return,
        };
        if at != Pa::new(0) {
            *place = place.or(Some(at));
        }
    }
}
