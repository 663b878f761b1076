//! What a guest asks for by EINJ (ACPI 6.5, 18.6).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::addr::Ipa;
use crate::vm::guest_acpi::place::shared::INJECTION_SIZE;

/// Error types (table 18.30).
const MEMORY_CORRECTABLE: u32 = 1 << 3;
const MEMORY_UNCORRECTABLE: u32 = 1 << 4;

/// The types that can be made.
pub(super) const CAPABILITIES: u64 = (MEMORY_CORRECTABLE | MEMORY_UNCORRECTABLE) as u64;

/// Maximum (bits 63:32) and nominal (31:0) time in microseconds.
pub(super) const TIMINGS: u64 = 1000 << 32 | 10;

/// Command status (table 18.29).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Success = 0,
    Invalid = 2,
}

/// What kind of error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectionKind {
    /// The page is bad from now on.
    Uncorrected,
    /// An error that was corrected: nothing is lost.
    Corrected,
}

/// An error to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injection {
    /// What kind.
    pub kind: InjectionKind,
    /// In which page of the guest.
    pub page: Ipa,
}

/// `SET_ERROR_TYPE_WITH_ADDRESS` data structure (table 18.33).
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Arguments {
    error_type: U32,
    vendor_extension: U32,
    flags: U32,
    processor: U32,
    address: U64,
    range: U64,
    pcie: U32,
    reserved: [u8; 12],
}
const _: () = assert!(size_of::<Arguments>() == INJECTION_SIZE);

impl Arguments {
    pub(super) fn read(bytes: &[u8; INJECTION_SIZE]) -> Self {
        zerocopy::transmute!(*bytes)
    }

    /// The injection, if it is one that can be made: of one known type, at an address.
    pub(super) fn injection(&self) -> Option<Injection> {
        /// Bit 1 of the flags: memory address and range are valid.
        const ADDRESS_VALID: u32 = 1 << 1;
        let kind = match self.error_type.get() {
            MEMORY_CORRECTABLE => InjectionKind::Corrected,
            MEMORY_UNCORRECTABLE => InjectionKind::Uncorrected,
            _ => return None,
        };
        let has_address = self.flags.get() & ADDRESS_VALID != 0;
        has_address.then(|| Injection {
            kind,
            page: Ipa::new(self.address.get()).page(),
        })
    }
}
