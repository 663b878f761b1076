//! The machine as UEFI left it, of which the application (`arch::aarch64::efi`) has left word.
//!
//! The application has been through all of this before boot services ended, so that what is wrong was
//! said to the firmware. What goes wrong here nevertheless is said on the console that the tables name.

use super::acpi::{self, TableMemory};
use super::machine::{self, boot_memory};
use crate::arch::aarch64::uart;
use alloc::string::String;
use cordon::addr::{Pa, PaRange};
use cordon::platform::acpi::{AcpiError, CheckedTables};
use cordon::platform::efi::{Handover, Memory};
use cordon::platform::machine::{Description, HostUart, Machine, MachineError};
use zerocopy::FromBytes;

/// What there is to say, and where.
struct Failure {
    why: String,
    console: Option<HostUart>,
}

impl From<MachineError> for Failure {
    fn from(error: MachineError) -> Self {
        Self::new(&error)
    }
}

impl Failure {
    fn new(why: &dyn core::fmt::Display) -> Self {
        let why = alloc::format!("{why}");
        Self { why, console: None }
    }
}

/// The machine of the [`Handover`] at `at`.
pub fn find_machine(at: Pa) -> Option<Machine> {
    let failure = match read(at) {
        Ok(machine) => return Some(machine),
        Err(failure) => failure,
    };
    let console = failure.console.unwrap_or(uart::VIRT_PL011);
    let _ = uart::init(&console, log::LevelFilter::Info);
    log::error!("event=error what=machine {}", failure.why);
    None
}

fn read(at: Pa) -> Result<Machine, Failure> {
    let lost = || Failure::new(&"why=no-handover");
    let handover = PaRange::new(at, Handover::SIZE as u64).ok_or_else(lost)?;
    let handover = boot_memory(handover).map_err(|_| lost())?;
    let handover = Handover::read_from_bytes(&handover).map_err(|_| lost())?;
    let (map, descriptor) = handover.map().ok_or_else(lost)?;
    let map = boot_memory(map).map_err(|_| lost())?;
    let memory = Memory::read(&map, descriptor).map_err(|error| Failure::new(&error))?;
    let tables = handover.tables();
    let acpi = tables.rsdp.map(|rsdp| describe(&memory, rsdp)).transpose();
    let acpi = acpi.map_err(|error| Failure::new(&error))?;
    let mut machine = match tables.dtb {
        Some(dtb) => machine::with_tree(dtb, |fdt| {
            Machine::from_efi(&memory, Some((fdt, dtb)), acpi.as_ref())
        })
        .map_err(|error| Failure {
            console: error.console(),
            ..Failure::new(&error)
        })?,
        None => Machine::from_efi(&memory, None, acpi.as_ref())?,
    };
    machine.rsdp = tables.rsdp;
    machine.reset = (handover.reset()).and_then(|entry| memory.reset_service(entry));
    let words = handover
        .cmdline()
        .map(|range| boot_memory(range).map_err(|_| lost()));
    let words = words.transpose()?;
    let words = words
        .as_deref()
        .map(|bytes| core::str::from_utf8(bytes).unwrap_or_default());
    Ok(machine.started_with(words.unwrap_or_default().into(), handover.bundle()))
}

fn describe(memory: &Memory, rsdp: Pa) -> Result<Description, AcpiError> {
    let memory = TableMemory::open(memory.tables.iter().copied());
    acpi::describe(&CheckedTables::new(&memory, rsdp)?, &memory)
}
