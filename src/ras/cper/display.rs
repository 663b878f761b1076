//! Records as text: one line of `key=value` for the log, or a report for people.
//!
//! Both come from one list of fields, so that they cannot tell different stories. No value has a
//! blank in it, whatever firmware wrote.

use core::fmt;

use super::{ArmProcessor, Body, ErrorFlags, ErrorInfo, Memory, MemoryFormat, Pcie, Section};

/// Receives the fields of a record one by one.
type Emit<'e> = dyn FnMut(&str, &dyn fmt::Display) -> fmt::Result + 'e;

/// A number in hexadecimal.
struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Emits `value` as `key` if it is there.
fn optional<T: fmt::Display>(emit: &mut Emit<'_>, key: &str, value: Option<T>) -> fmt::Result {
    value.map_or(Ok(()), |value| emit(key, &value))
}

/// The same, in hexadecimal.
fn optional_hex<T: Into<u64>>(emit: &mut Emit<'_>, key: &str, value: Option<T>) -> fmt::Result {
    optional(emit, key, value.map(|value| Hex(value.into())))
}

impl<'a> Section<'a> {
    /// One line, `section=... severity=... key=value ...`, without a line end.
    pub fn line(&self) -> Line<'_, 'a> {
        Line(self)
    }

    /// Several lines for people, each with a line end.
    pub fn report(&self) -> Report<'_, 'a> {
        Report(self)
    }

    fn name(&self) -> &'static str {
        match self.body {
            Body::Memory(memory) if memory.format == MemoryFormat::Second => "memory2",
            Body::Memory(_) => "memory",
            Body::ArmProcessor(_) => "arm-processor",
            Body::Pcie(_) => "pcie",
            Body::Raw(_) => "unknown",
        }
    }

    fn fields(&self, emit: &mut Emit<'_>) -> fmt::Result {
        emit("section", &self.name())?;
        emit("severity", &self.severity)?;
        match &self.body {
            Body::Memory(memory) => memory_fields(memory, emit)?,
            Body::ArmProcessor(arm) => arm_fields(arm, emit)?,
            Body::Pcie(pcie) => pcie_fields(pcie, emit)?,
            Body::Raw(bytes) => {
                emit("guid", &self.kind)?;
                emit("bytes", &bytes.len())?;
            }
        }
        if !self.flags.is_empty() {
            emit("flags", &Hex(self.flags.bits().into()))?;
        }
        optional(emit, "fru_id", self.fru_id)?;
        optional(emit, "fru", self.fru_text.filter(|text| !text.is_empty()))?;
        optional(emit, "time", self.timestamp)
    }
}

fn memory_fields(memory: &Memory, emit: &mut Emit<'_>) -> fmt::Result {
    optional(emit, "pa", memory.address)?;
    optional_hex(emit, "mask", memory.address_mask)?;
    optional(emit, "type", memory.error_type)?;
    optional_hex(emit, "status", memory.error_status)?;
    optional(emit, "node", memory.node)?;
    optional(emit, "card", memory.card)?;
    optional(emit, "module", memory.module)?;
    optional(emit, "rank", memory.rank)?;
    optional(emit, "bank", memory.bank)?;
    optional(emit, "device", memory.device)?;
    optional(emit, "chip", memory.chip)?;
    optional(emit, "row", memory.row)?;
    optional(emit, "column", memory.column)?;
    optional(emit, "bit", memory.bit_position)?;
    optional_hex(emit, "requestor", memory.requestor)?;
    optional_hex(emit, "responder", memory.responder)?;
    optional_hex(emit, "target", memory.target)?;
    optional_hex(emit, "card_handle", memory.card_handle)?;
    optional_hex(emit, "module_handle", memory.module_handle)
}

fn arm_fields(arm: &ArmProcessor<'_>, emit: &mut Emit<'_>) -> fmt::Result {
    // The address first, where it is looked for: under the key that a memory section has.
    let mut errors = arm.errors();
    if let Some(first) = errors.next() {
        error_fields(&first, emit)?;
    }
    let more = errors.count();
    if more != 0 {
        emit("more_errors", &more)?;
    }
    optional_hex(emit, "mpidr", arm.mpidr)?;
    optional(emit, "affinity_level", arm.affinity_level)?;
    emit("midr", &Hex(arm.midr))?;
    optional(emit, "running", arm.running)?;
    optional_hex(emit, "psci_state", arm.psci_state)?;
    let contexts = arm.contexts().count();
    if contexts != 0 {
        emit("contexts", &contexts)?;
    }
    Ok(())
}

fn error_fields(error: &ErrorInfo, emit: &mut Emit<'_>) -> fmt::Result {
    optional(emit, "pa", error.physical_address)?;
    optional_hex(emit, "va", error.virtual_address)?;
    emit("type", &error.kind)?;
    optional(emit, "multiple", error.multiple)?;
    optional_hex(
        emit,
        "error_flags",
        error.flags.map(|flags: ErrorFlags| flags.bits()),
    )?;
    optional_hex(emit, "details", error.details)
}

fn pcie_fields(pcie: &Pcie, emit: &mut Emit<'_>) -> fmt::Result {
    if let Some(device) = &pcie.device {
        emit("device", device)?;
        emit("vendor_id", &Hex(device.vendor_id.into()))?;
        emit("device_id", &Hex(device.device_id.into()))?;
        emit("class", &Hex(device.class_code.into()))?;
        emit("slot", &device.slot)?;
    }
    optional(emit, "port_type", pcie.port_type)?;
    optional_hex(emit, "uncorrectable", pcie.uncorrectable)?;
    optional_hex(emit, "correctable", pcie.correctable)?;
    optional_hex(emit, "command", pcie.command)?;
    optional_hex(emit, "pci_status", pcie.status)?;
    optional_hex(emit, "serial", pcie.serial_number)
}

/// A section as one line; see [`Section::line`].
#[derive(Clone, Copy, Debug)]
pub struct Line<'s, 'a>(&'s Section<'a>);

impl fmt::Display for Line<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        self.0.fields(&mut |key, value| {
            write!(f, "{separator}{key}={value}")?;
            separator = " ";
            Ok(())
        })
    }
}

/// A section for people; see [`Section::report`].
#[derive(Clone, Copy, Debug)]
pub struct Report<'s, 'a>(&'s Section<'a>);

impl fmt::Display for Report<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, key: &str, value: &dyn fmt::Display| {
            writeln!(f, "  {key:<15} {value}")
        };
        self.0.fields(&mut |key, value| line(f, key, value))?;
        if let Body::ArmProcessor(arm) = &self.0.body {
            for (number, error) in arm.errors().enumerate().skip(1) {
                writeln!(f, "  error {number}")?;
                error_fields(&error, &mut |key, value| {
                    write!(f, "  ")?;
                    line(f, key, value)
                })?;
            }
        }
        Ok(())
    }
}
