//! The generic event device (ACPI0013, ACPI 6.5 section 5.6.9) in a DSDT: which interrupt it raises, and
//! where it says why; and the PCI Express host bridge (PNP0A08): which addresses it forwards.
//!
//! A DSDT is a program, AML, and the `acpi` crate has an interpreter for it. Running firmware's
//! programs at EL2 is more than Cordon wants for three numbers: they may loop, write to any register, and
//! allocate. So nothing is executed here. The table is walked as the declarations that it begins with,
//! scopes, devices, names and regions (ACPI 6.5 section 20.2), each of which says how long it is; methods are
//! stepped over. What is declared by running code is not found, and a term that this walk does not know ends
//! the scope that it is in. Each byte is looked at a bounded number of times.
//!
//! Firmware that signals by this device has a register that tells what happened, and an `_EVT` method that
//! reads it. Cordon takes the first operation region of the device in system memory for that register,
//! which is so on QEMU's machines; without one the interrupt alone counts.

use core::fmt;

use super::acpi::Signature;
use crate::addr::Pa;

mod cursor;
mod resources;
#[cfg(test)]
mod tests;

use cursor::Cursor;
pub use resources::PciWindows;

/// Deepest nesting of scopes and devices that is followed.
const MAX_DEPTH: u32 = 16;

/// Bytes of a table's header (5.2.6).
const HEADER_SIZE: usize = 36;

/// The generic event device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventDevice {
    /// Its interrupt: a GSIV, which on Arm machines is the INTID (5.2.12.14).
    pub interrupt: u32,
    /// The interrupt is edge-triggered rather than level-sensitive.
    pub edge: bool,
    /// A register of 32 bits that says what happened, and forgets it when it is read.
    pub selector: Option<Pa>,
}

/// What the selector said: one bit a kind of event. Which bit is which, QEMU's
/// `hw/acpi/generic_event_device.h` says; nothing else in the world does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlatformEvents(u32);

impl PlatformEvents {
    const POWER_BUTTON: u32 = 1 << 1;
    const ERROR: u32 = 1 << 5;

    /// The register's value.
    pub const fn new(selector: u32) -> Self {
        Self(selector)
    }

    /// Whether there is anything but an error record, which is somewhere else.
    pub const fn has_unknown(self) -> bool {
        self.0 & !Self::ERROR != 0
    }
}

/// The keys of `event=platform-event`.
impl fmt::Display for PlatformEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = |bit: u32| if self.0 & bit != 0 { "yes" } else { "no" };
        let (button, error) = (is(Self::POWER_BUTTON), is(Self::ERROR));
        write!(
            f,
            "selector={:#x} power_button={button} error={error}",
            self.0
        )
    }
}

/// Why a table was not walked to its end. `Display` has no blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmlError {
    /// The bytes are no DSDT.
    NotDsdt,
    /// Something is longer than what it is in.
    Truncated,
    /// Scopes are nested too deeply.
    TooDeep,
    /// A term that is no declaration begins with this byte.
    UnknownTerm(u8),
}

impl fmt::Display for AmlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDsdt => f.write_str("not-dsdt"),
            Self::Truncated => f.write_str("truncated"),
            Self::TooDeep => f.write_str("too-deep"),
            Self::UnknownTerm(byte) => write!(f, "unknown-term:{byte:#x}"),
        }
    }
}

impl core::error::Error for AmlError {}

/// What a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The first generic event device that has an interrupt.
    pub device: Option<EventDevice>,
    /// What the first PCI or PCI Express host bridge forwards.
    windows: Option<PciWindows>,
    /// Why some of the table may not have been seen: the first such thing.
    pub incomplete: Option<AmlError>,
}

/// What the first PCI host bridge in `dsdt`, a whole table, forwards; nothing where none is found.
pub fn find_pci_windows(dsdt: &[u8]) -> PciWindows {
    find(dsdt).windows.unwrap_or_default()
}

/// Looks through `dsdt`, a whole table.
pub fn find_event_device(dsdt: &[u8]) -> Found {
    find(dsdt)
}

fn find(dsdt: &[u8]) -> Found {
    let mut walk = Walk(Found::default());
    if Signature::DSDT.is_of(dsdt) {
        let terms = Cursor::new(dsdt.get(HEADER_SIZE..).unwrap_or_default());
        walk.terms(terms, &mut Candidate::default(), 0);
    } else {
        walk.incomplete(AmlError::NotDsdt);
    }
    walk.0
}

/// What is known of the device whose declarations are being walked.
#[derive(Default)]
struct Candidate {
    is_event_device: bool,
    is_host_bridge: bool,
    windows: Option<PciWindows>,
    interrupt: Option<(u32, bool)>,
    selector: Option<Pa>,
}

/// What PCI Express and PCI host bridges are called, as text or compressed into a number (6.1.5, 19.3.4).
const HOST_BRIDGES: [cursor::Data<'_>; 4] = [
    cursor::Data::Text(b"PNP0A08"),
    cursor::Data::Text(b"PNP0A03"),
    cursor::Data::Number(0x080a_d041),
    cursor::Data::Number(0x030a_d041),
];

/// Opcodes (20.3). Those of two bytes begin with [`op::EXTENDED`].
mod op {
    pub(super) const ALIAS: u8 = 0x06;
    pub(super) const NAME: u8 = 0x08;
    pub(super) const SCOPE: u8 = 0x10;
    pub(super) const METHOD: u8 = 0x14;
    pub(super) const EXTERNAL: u8 = 0x15;
    pub(super) const IF: u8 = 0xa0;
    pub(super) const ELSE: u8 = 0xa1;
    pub(super) const WHILE: u8 = 0xa2;
    pub(super) const EXTENDED: u8 = 0x5b;
    pub(super) const MUTEX: u8 = 0x01;
    pub(super) const EVENT: u8 = 0x02;
    pub(super) const REGION: u8 = 0x80;
    pub(super) const FIELD: u8 = 0x81;
    pub(super) const DEVICE: u8 = 0x82;
    pub(super) const PROCESSOR: u8 = 0x83;
    pub(super) const POWER_RESOURCE: u8 = 0x84;
    pub(super) const THERMAL_ZONE: u8 = 0x85;
    pub(super) const INDEX_FIELD: u8 = 0x86;
    pub(super) const BANK_FIELD: u8 = 0x87;
}

struct Walk(Found);

impl Walk {
    fn incomplete(&mut self, why: AmlError) {
        self.0.incomplete = self.0.incomplete.or(Some(why));
    }

    /// Walks the declarations of `device`, or of a scope, which is a device without a meaning.
    fn terms(&mut self, mut terms: Cursor<'_>, device: &mut Candidate, depth: u32) {
        while !terms.is_empty() {
            if let Err(why) = self.term(&mut terms, device, depth) {
                return self.incomplete(why);
            }
        }
    }

    fn term(
        &mut self,
        terms: &mut Cursor<'_>,
        device: &mut Candidate,
        depth: u32,
    ) -> Result<(), AmlError> {
        match terms.byte()? {
            op::SCOPE => self.block(terms, depth)?,
            op::NAME => self.name(terms, device)?,
            op::ALIAS => {
                terms.name()?;
                terms.name()?;
            }
            op::EXTERNAL => {
                terms.name()?;
                terms.take(2)?;
            }
            op::METHOD | op::IF | op::ELSE | op::WHILE => drop(terms.package()?),
            op::EXTENDED => self.extended(terms, device, depth)?,
            other => return Err(AmlError::UnknownTerm(other)),
        }
        Ok(())
    }

    fn extended(
        &mut self,
        terms: &mut Cursor<'_>,
        device: &mut Candidate,
        depth: u32,
    ) -> Result<(), AmlError> {
        match terms.byte()? {
            op::DEVICE => self.block(terms, depth)?,
            op::REGION => {
                let region = terms.region()?;
                device.selector = device.selector.or(region);
            }
            op::MUTEX => {
                terms.name()?;
                terms.byte()?;
            }
            op::EVENT => drop(terms.name()?),
            op::FIELD
            | op::PROCESSOR
            | op::POWER_RESOURCE
            | op::THERMAL_ZONE
            | op::INDEX_FIELD
            | op::BANK_FIELD => drop(terms.package()?),
            other => return Err(AmlError::UnknownTerm(other)),
        }
        Ok(())
    }

    /// A scope or a device: a package that begins with its name.
    fn block(&mut self, terms: &mut Cursor<'_>, depth: u32) -> Result<(), AmlError> {
        let mut inner = terms.package()?;
        inner.name()?;
        if depth >= MAX_DEPTH {
            self.incomplete(AmlError::TooDeep);
            return Ok(());
        }
        let mut device = Candidate::default();
        self.terms(inner, &mut device, depth + 1);
        if let (true, Some((interrupt, edge))) = (device.is_event_device, device.interrupt) {
            let selector = device.selector;
            self.0.device = self.0.device.or(Some(EventDevice {
                interrupt,
                edge,
                selector,
            }));
        }
        if device.is_host_bridge {
            self.0.windows = self.0.windows.or(device.windows);
        }
        Ok(())
    }

    fn name(&self, terms: &mut Cursor<'_>, device: &mut Candidate) -> Result<(), AmlError> {
        let name = terms.name()?;
        let value = terms.data()?;
        match (name, value) {
            (b"_HID", cursor::Data::Text(b"ACPI0013")) => device.is_event_device = true,
            (b"_HID" | b"_CID", id) => device.is_host_bridge |= HOST_BRIDGES.contains(&id),
            (b"_CRS", cursor::Data::Bytes(bytes)) => {
                device.interrupt = device.interrupt.or(resources::interrupt(bytes));
                device.windows = device.windows.or(Some(resources::windows(bytes)));
            }
            _ => {}
        }
        Ok(())
    }
}
