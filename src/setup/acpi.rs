//! ACPI tables, where there are any: what describes the machine, alone or as a second opinion, HEST for the error
//! sources, DSDT for the device by which some of them notify.

use crate::arch::aarch64::acpi_map::BootTables;
use crate::arch::aarch64::mmu::Window;
use alloc::vec::Vec;
use cordon::addr::{Pa, PaRange};
use cordon::platform::acpi::{AcpiError, CheckedTables, Madt, PhysicalBytes};
use cordon::platform::aml::{self, EventDevice};
use cordon::platform::machine::{AcpiParts, Description, Difference, Machine};

/// Most memory that is looked through for tables, in bytes. Firmware keeps them in one or two
/// reserved ranges of a few pages.
const MAX_TABLES: u64 = 16 << 20;

/// Memory in which tables may be, for as long as they are read.
pub struct TableMemory(Vec<Window>);

impl TableMemory {
    /// Opens windows on these ranges; one that cannot be opened is left out, and said to be.
    pub fn open(ranges: impl IntoIterator<Item = PaRange>) -> Self {
        let ranges = ranges
            .into_iter()
            .filter(|range| range.size() <= MAX_TABLES);
        let open = |range| {
            let window = Window::open_at_boot(range);
            window
                .inspect_err(|error| log::error!("event=error what=acpi why={error} at={range}"))
                .ok()
        };
        Self(ranges.filter_map(open).collect())
    }
}

impl PhysicalBytes for TableMemory {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        self.0.iter().find_map(|window| window.at(start, len))
    }
}

/// What the tables say.
#[derive(Debug, Default)]
pub struct Found {
    /// The bytes of HEST.
    pub hest: Option<Vec<u8>>,
    /// The generic event device, if HEST needs one.
    pub event_device: Option<EventDevice>,
}

/// Reads the tables behind `rsdp`, which are in `memory`.
pub fn read(rsdp: Pa, memory: &TableMemory, machine: &Machine) -> Found {
    match CheckedTables::new(memory, rsdp) {
        Ok(tables) => {
            log::info!("event=found what=acpi rsdp={rsdp} tables={}", tables.len());
            compare(&tables, memory, machine);
            let hest = tables.hest().and_then(|hest| {
                let bytes = memory.bytes(hest.start(), usize::try_from(hest.size()).ok()?)?;
                Some(bytes.to_vec())
            });
            let event_device = hest.as_ref().and_then(|_| event_device(&tables, memory));
            Found { hest, event_device }
        }
        Err(error) => {
            log::error!("event=error what=acpi {error}");
            Found::default()
        }
    }
}

/// The device tree decides; tables that say otherwise are worth a word.
fn compare(tables: &CheckedTables, memory: &TableMemory, machine: &Machine) {
    match describe(tables, memory) {
        Ok(described) => differ(&described.differences(machine)),
        Err(error) => log::error!("event=error what=acpi {error}"),
    }
}

/// Says what device tree and tables say differently.
pub fn differ(differences: &[Difference]) {
    for difference in differences {
        log::warn!("event=error what=acpi {difference}");
    }
}

/// The machine, by the tables.
///
/// # Errors
///
/// As [`AcpiError`] says.
pub fn describe(tables: &CheckedTables, memory: &TableMemory) -> Result<Description, AcpiError> {
    let madt = tables.madt();
    let madt = madt.map(|_| Madt::read(&BootTables::open(tables, memory)?));
    Description::read(AcpiParts {
        tables,
        memory,
        madt: madt.transpose()?,
    })
}

/// The generic event device of the DSDT. Where it is not found, nothing is said unless there is a
/// reason: most machines have none.
fn event_device(tables: &CheckedTables, memory: &TableMemory) -> Option<EventDevice> {
    let dsdt = tables
        .dsdt(memory)
        .inspect_err(|error| log::error!("event=error what=dsdt {error}"));
    let found = aml::find_event_device(dsdt.ok()??);
    match (found.device, found.incomplete) {
        (None, Some(why)) => log::warn!("event=error what=dsdt why={why}"),
        (None, None) => {}
        (Some(device), _) => log::info!(
            "event=found what=event-device interrupt={} trigger={} selector={}",
            device.interrupt,
            if device.edge { "edge" } else { "level" },
            device.selector.unwrap_or(Pa::new(0))
        ),
    }
    found.device
}
