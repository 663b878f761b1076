//! How errors are reported to the guest (HEST), and how it may ask for some (EINJ). ACPI 6.5,
//! chapter 18.
//!
//! Source 0 is told of by a synchronous external abort: somebody has consumed an error. Source 1 is
//! told of by an interrupt: nobody has yet.

use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::place::{Places, shared};
use super::tables::{Gas, table};
use crate::addr::Ipa;
use crate::vm::config::ERROR_DEVICE;
use crate::vm::error_device::register;

/// Notification (table 18.14).
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Notification {
    kind: u8,
    length: u8,
    write_enable: U16,
    poll_interval: U32,
    vector: U32,
    polling_threshold: [U32; 2],
    error_threshold: [U32; 2],
}
const _: () = assert!(size_of::<Notification>() == 28);

/// Generic hardware error source version 2 (table 18.11).
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Source {
    kind: U16,
    id: U16,
    related: U16,
    flags: u8,
    enabled: u8,
    records: U32,
    sections: U32,
    raw_length: U32,
    pointer: Gas,
    notification: Notification,
    block_length: U32,
    ack: Gas,
    ack_preserve: U64,
    ack_write: U64,
}
const _: () = assert!(size_of::<Source>() == 92);

/// The source with the number `id`, told of by a notification of kind `notification`.
fn source(id: usize, notification: u8) -> Source {
    const GHES_V2: u16 = 10;
    const NOBODY: u16 = 0xffff;
    const ACK: u64 = 1;
    let at = |offsets: &[u64; shared::SOURCES]| device(offsets.get(id).copied().unwrap_or(0));
    Source {
        kind: GHES_V2.into(),
        id: (id as u16).into(),
        related: NOBODY.into(),
        flags: 0,
        enabled: 1,
        records: 1.into(),
        sections: 1.into(),
        raw_length: (shared::BLOCK_SIZE as u32).into(),
        pointer: at(&register::POINTER),
        notification: Notification {
            kind: notification,
            length: size_of::<Notification>() as u8,
            write_enable: 0.into(),
            poll_interval: 0.into(),
            vector: 0.into(),
            polling_threshold: [0.into(); 2],
            error_threshold: [0.into(); 2],
        },
        block_length: (shared::BLOCK_SIZE as u32).into(),
        ack: at(&register::ACK),
        ack_preserve: (!ACK).into(),
        ack_write: ACK.into(),
    }
}

fn place(places: &Places, offset: u64) -> Ipa {
    // The area ends below the IPA size.
    Ipa::new(places.errors.start().get().wrapping_add(offset))
}

/// Hardware Error Source Table (18.3.2).
pub(super) fn hest() -> Vec<u8> {
    const REVISION: u8 = 1;
    const BY_GPIO_SIGNAL: u8 = 7;
    const BY_SEA: u8 = 8;
    let mut hest = table(*b"HEST", REVISION);
    hest.append_slice(&(shared::SOURCES as u32).to_le_bytes());
    hest.append_slice(source(0, BY_SEA).as_bytes());
    hest.append_slice(source(1, BY_GPIO_SIGNAL).as_bytes());
    hest.as_slice().to_vec()
}

/// What an injection entry does with its register (table 18.28).
#[derive(Clone, Copy)]
#[repr(u8)]
enum Instruction {
    ReadRegister = 0,
    ReadRegisterValue = 1,
    WriteRegister = 2,
    WriteRegisterValue = 3,
}

/// What it is for (table 18.25).
#[derive(Clone, Copy)]
#[repr(u8)]
enum Action {
    BeginInjection = 0,
    GetTriggerTable = 1,
    SetErrorType = 2,
    GetErrorType = 3,
    EndOperation = 4,
    Execute = 5,
    CheckBusy = 6,
    GetStatus = 7,
    SetErrorTypeWithAddress = 8,
    GetExecuteTimings = 9,
    Trigger = 0xff,
}

/// Injection instruction entry (table 18.26).
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct Entry {
    action: u8,
    instruction: u8,
    flags: u8,
    reserved: u8,
    register: Gas,
    value: U64,
    mask: U64,
}
const _: () = assert!(size_of::<Entry>() == 32);

impl Entry {
    fn new(action: Action, instruction: Instruction, register: Gas, value: u64) -> Self {
        Self {
            action: action as u8,
            instruction: instruction as u8,
            flags: 0,
            reserved: 0,
            register,
            value: value.into(),
            mask: u64::MAX.into(),
        }
    }
}

fn device(offset: u64) -> Gas {
    Gas::u64(Ipa::new(ERROR_DEVICE.0.get() + offset))
}

/// Error Injection Table (18.6.1).
pub(super) fn einj(places: &Places) -> Vec<u8> {
    use Action as A;
    use Instruction::{ReadRegister, ReadRegisterValue, WriteRegister, WriteRegisterValue};
    const REVISION: u8 = 2;
    /// Bytes of the header behind the table's own: its length, flags, number of entries.
    const INJECTION_HEADER: u32 = 12;
    let injection = Gas::u64(place(places, shared::INJECTION));
    let begin = register::STATE_BEGIN;
    let end = register::STATE_END;
    let entries = [
        Entry::new(
            A::BeginInjection,
            WriteRegisterValue,
            device(register::STATE),
            begin,
        ),
        Entry::new(
            A::GetTriggerTable,
            ReadRegister,
            device(register::TRIGGER_TABLE),
            0,
        ),
        Entry::new(
            A::SetErrorType,
            WriteRegister,
            device(register::ERROR_TYPE),
            0,
        ),
        Entry::new(
            A::GetErrorType,
            ReadRegister,
            device(register::CAPABILITIES),
            0,
        ),
        Entry::new(
            A::EndOperation,
            WriteRegisterValue,
            device(register::STATE),
            end,
        ),
        Entry::new(A::Execute, WriteRegisterValue, device(register::EXECUTE), 1),
        Entry::new(A::CheckBusy, ReadRegisterValue, device(register::BUSY), 1),
        Entry::new(A::GetStatus, ReadRegister, device(register::STATUS), 0),
        Entry::new(A::SetErrorTypeWithAddress, WriteRegister, injection, 0),
        Entry::new(
            A::GetExecuteTimings,
            ReadRegister,
            device(register::TIMINGS),
            0,
        ),
    ];
    let mut einj = table(*b"EINJ", REVISION);
    einj.append_slice(&INJECTION_HEADER.to_le_bytes());
    einj.append_slice(&0_u32.to_le_bytes());
    einj.append_slice(&(entries.len() as u32).to_le_bytes());
    einj.append_slice(entries.as_bytes());
    einj.as_slice().to_vec()
}

/// Bytes of the trigger table.
const TRIGGER_SIZE: usize = 16 + size_of::<Entry>();

/// Trigger Error Action Table (18.6.4, table 18.35): one write, on which the injected error shows itself
/// as a scrubber would find it. Who does not trigger it leaves it to whoever consumes it.
pub(in crate::vm) fn trigger_table() -> [u8; TRIGGER_SIZE] {
    /// Header size, revision, table size, number of entries.
    #[derive(IntoBytes, Immutable)]
    #[repr(C)]
    struct Table {
        header: [U32; 4],
        entry: Entry,
    }
    let action = (Action::Trigger, Instruction::WriteRegisterValue);
    let table = Table {
        header: [16, 0, TRIGGER_SIZE as u32, 1].map(U32::new),
        entry: Entry::new(action.0, action.1, device(register::TRIGGER), 1),
    };
    zerocopy::transmute!(table)
}
