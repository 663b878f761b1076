//! Where a guest's ACPI description goes: into the last 2 MiB of its RAM, which with a device tree hold
//! nothing but that. What guest and Cordon both write is apart from RAM.

use crate::addr::Ipa;
use crate::vm::bad_memory;
use crate::vm::config::{ERROR_AREA, IpaRange};

/// Bytes that the pieces take up.
const SIZE: u64 = TABLES + 0x1_0000;
/// Where the pieces are among them. A stub tree has a command line in it, a memory map a descriptor or two
/// for each page that was lost.
const EFI: u64 = 0x2_0000;
const TABLES: u64 = EFI + 0x6_0000;
/// A guest with any granule can map them one by one.
const ALIGN: u64 = 0x1_0000;

/// The pieces.
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
    /// The first good memory for the pieces within `area`; `None` where there is none.
    pub fn within(area: IpaRange, lost: &[IpaRange]) -> Option<Self> {
        let start = bad_memory::first_fit(area, SIZE, ALIGN, lost)?;
        let piece = |from: u64, to: u64| IpaRange::new(start.checked_add(from)?, to - from);
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
    /// Bytes that are used of the area.
    pub const SIZE: u64 = 0x3000;
}
