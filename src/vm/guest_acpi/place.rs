//! Where a guest's ACPI description goes: into the last 2 MiB of its RAM, which with a device tree hold
//! nothing but that. What guest and Cordon both write is apart from RAM.

use crate::addr::Ipa;
use crate::vm::config::{ERROR_AREA, IpaRange};

/// Bytes that the pieces take up, from the start of the last 2 MiB.
pub const SIZE: u64 = 0x12_0000;

const EFI: u64 = 0x10_0000;
const TABLES: u64 = 0x11_0000;

/// The pieces. Each begins and ends at a multiple of 64 KiB, so that a guest with any granule can map
/// them one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The stub device tree.
    pub stub: IpaRange,
    /// EFI system table, configuration tables and memory map.
    pub efi: IpaRange,
    /// ACPI tables, RSDP first.
    pub tables: IpaRange,
    /// What guest and Cordon both write: error status blocks and the arguments of an injection.
    pub errors: IpaRange,
}

impl Places {
    /// The pieces within `area`, or `None` where it is too small.
    pub fn within(area: IpaRange) -> Option<Self> {
        if area.size() < SIZE {
            return None;
        }
        let piece = |from: u64, to: u64| {
            let start = area.start().checked_add(from)?;
            IpaRange::new(start, to - from)
        };
        Some(Self {
            stub: piece(0, EFI)?,
            efi: piece(EFI, TABLES)?,
            tables: piece(TABLES, SIZE)?,
            errors: IpaRange::new(ERROR_AREA.0, ERROR_AREA.1)?,
        })
    }

    /// The address of the RSDP.
    pub const fn rsdp(&self) -> Ipa {
        self.tables.start()
    }
}

/// What is where in the area that is shared ([`ERROR_AREA`]), as offsets in bytes.
pub mod shared {
    /// How many error sources a guest has.
    pub const SOURCES: usize = 2;
    /// `SET_ERROR_TYPE_WITH_ADDRESS` (ACPI 6.5, table 18.33).
    pub const INJECTION: u64 = 0x100;
    /// Its size.
    pub const INJECTION_SIZE: usize = 48;
    /// The trigger error action table.
    pub const TRIGGER: u64 = 0x200;
    /// The error status blocks.
    pub const BLOCK: [u64; SOURCES] = [0x1000, 0x2000];
    /// Bytes of one error status block.
    pub const BLOCK_SIZE: u64 = 0x1000;
    /// Bytes that are used of the place.
    pub const SIZE: u64 = 0x3000;
}
