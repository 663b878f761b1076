//! Platform memory sections (UEFI 2.10 N.2.5 and N.2.6) and the memory that they take away.

use core::fmt;

use super::wire::{self, Memory2, MemoryExtension, MemoryHead, MemoryShort};
use super::{CperError, What, valid};
use crate::addr::{PAGE_SIZE, Pa, PaRange};

/// Which of the three encodings a memory section has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryFormat {
    /// Platform Memory Error Section as before UEFI 2.3, 73 bytes.
    Short,
    /// Platform Memory Error Section, 80 bytes.
    #[default]
    Full,
    /// Platform Memory Error Section 2, 96 bytes.
    Second,
}

/// What a memory section says. A field is present where the record says that it is valid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The encoding.
    pub format: MemoryFormat,
    /// Error status, UEFI 2.10 N.2.12.
    pub error_status: Option<u64>,
    /// Where.
    pub address: Option<Pa>,
    /// Which bits of the address count; see [`Memory::poisoned`].
    pub address_mask: Option<u64>,
    /// Node.
    pub node: Option<u16>,
    /// Card.
    pub card: Option<u16>,
    /// Module.
    pub module: Option<u16>,
    /// Bank.
    pub bank: Option<u16>,
    /// Device.
    pub device: Option<u32>,
    /// Row, 18 bits in the full format.
    pub row: Option<u32>,
    /// Column.
    pub column: Option<u32>,
    /// Rank.
    pub rank: Option<u32>,
    /// Position of the bad bit.
    pub bit_position: Option<u32>,
    /// Chip.
    pub chip: Option<u8>,
    /// Who asked for the data.
    pub requestor: Option<u64>,
    /// Who answered.
    pub responder: Option<u64>,
    /// Whose data it was.
    pub target: Option<u64>,
    /// What kind of error.
    pub error_type: Option<MemoryErrorType>,
    /// SMBIOS handle of the memory array.
    pub card_handle: Option<u32>,
    /// SMBIOS handle of the memory device.
    pub module_handle: Option<u32>,
}

/// Validation bits that both kinds of memory section have in the same place.
pub(super) mod common_bit {
    pub(in super::super) const STATUS: u32 = 0;
    pub(in super::super) const ADDRESS: u32 = 1;
    pub(in super::super) const ADDRESS_MASK: u32 = 2;
    pub(in super::super) const NODE: u32 = 3;
    pub(in super::super) const CARD: u32 = 4;
    pub(in super::super) const MODULE: u32 = 5;
    pub(in super::super) const BANK: u32 = 6;
    pub(in super::super) const DEVICE: u32 = 7;
    pub(in super::super) const ROW: u32 = 8;
    pub(in super::super) const COLUMN: u32 = 9;
}

/// Validation bits of the Platform Memory Error Section.
pub(super) mod bit {
    pub(in super::super) const BIT_POSITION: u32 = 10;
    pub(in super::super) const REQUESTOR: u32 = 11;
    pub(in super::super) const RESPONDER: u32 = 12;
    pub(in super::super) const TARGET: u32 = 13;
    pub(in super::super) const ERROR_TYPE: u32 = 14;
    pub(in super::super) const RANK: u32 = 15;
    pub(in super::super) const CARD_HANDLE: u32 = 16;
    pub(in super::super) const MODULE_HANDLE: u32 = 17;
    pub(in super::super) const EXTENDED_ROW: u32 = 18;
    pub(in super::super) const CHIP: u32 = 21;
}

/// Validation bits of the Platform Memory Error Section 2.
pub(super) mod bit2 {
    pub(in super::super) const RANK: u32 = 10;
    pub(in super::super) const BIT_POSITION: u32 = 11;
    pub(in super::super) const CHIP: u32 = 12;
    pub(in super::super) const ERROR_TYPE: u32 = 13;
    pub(in super::super) const REQUESTOR: u32 = 15;
    pub(in super::super) const RESPONDER: u32 = 16;
    pub(in super::super) const TARGET: u32 = 17;
    pub(in super::super) const CARD_HANDLE: u32 = 18;
    pub(in super::super) const MODULE_HANDLE: u32 = 19;
}

impl Memory {
    /// A section that says just this: the page at `address` is lost by an error of kind
    /// `error_type`. The form that guests handle best.
    pub fn page(address: Pa, error_type: MemoryErrorType) -> Self {
        Self {
            address: Some(address),
            address_mask: Some(!(PAGE_SIZE - 1)),
            error_type: Some(error_type),
            ..Self::default()
        }
    }

    /// Decodes a Platform Memory Error Section of either length.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, CperError> {
        let (short, rest) = wire::prefix::<MemoryShort>(bytes, What::Memory)?;
        if rest.is_empty() {
            return Ok(Self::from_short(&short));
        }
        check_length(bytes)?;
        let (extension, _) = wire::prefix::<MemoryExtension>(rest, What::Memory)?;
        Ok(Self::from_full(&short, &extension))
    }

    /// The memory that a section of either length says is lost: [`Self::poisoned`] for who wants to know no more.
    #[inline]
    pub(super) fn poisoned_in(bytes: &[u8]) -> Result<Result<PaRange, RangeError>, CperError> {
        check_length(bytes)?;
        let (head, _) = wire::prefix::<MemoryHead>(bytes, What::Memory)?;
        Ok(poisoned_by(&head))
    }

    /// The same of a Platform Memory Error Section 2.
    #[inline]
    pub(super) fn poisoned_in2(bytes: &[u8]) -> Result<Result<PaRange, RangeError>, CperError> {
        check_size(bytes, size_of::<Memory2>(), What::Memory2)?;
        let (head, _) = wire::prefix::<MemoryHead>(bytes, What::Memory2)?;
        Ok(poisoned_by(&head))
    }

    fn from_short(wire: &MemoryShort) -> Self {
        let v = wire.validation.get();
        Self {
            format: MemoryFormat::Short,
            error_status: valid(v, common_bit::STATUS, wire.error_status.get()),
            address: valid(v, common_bit::ADDRESS, Pa::new(wire.physical_address.get())),
            address_mask: valid(
                v,
                common_bit::ADDRESS_MASK,
                wire.physical_address_mask.get(),
            ),
            node: valid(v, common_bit::NODE, wire.node.get()),
            card: valid(v, common_bit::CARD, wire.card.get()),
            module: valid(v, common_bit::MODULE, wire.module.get()),
            bank: valid(v, common_bit::BANK, wire.bank.get()),
            device: valid(v, common_bit::DEVICE, wire.device.get().into()),
            row: valid(v, common_bit::ROW, wire.row.get().into()),
            column: valid(v, common_bit::COLUMN, wire.column.get().into()),
            bit_position: valid(v, bit::BIT_POSITION, wire.bit_position.get().into()),
            requestor: valid(v, bit::REQUESTOR, wire.requestor_id.get()),
            responder: valid(v, bit::RESPONDER, wire.responder_id.get()),
            target: valid(v, bit::TARGET, wire.target_id.get()),
            error_type: valid(v, bit::ERROR_TYPE, MemoryErrorType(wire.error_type)),
            ..Self::default()
        }
    }

    fn from_full(short: &MemoryShort, extension: &MemoryExtension) -> Self {
        let v = short.validation.get();
        let base = Self::from_short(short);
        let high_row = valid(
            v,
            bit::EXTENDED_ROW,
            u32::from(extension.extended & 0b11) << 16,
        );
        Self {
            format: MemoryFormat::Full,
            row: base.row.map(|row| row | high_row.unwrap_or(0)),
            chip: valid(v, bit::CHIP, extension.extended >> 5),
            rank: valid(v, bit::RANK, extension.rank.get().into()),
            card_handle: valid(v, bit::CARD_HANDLE, extension.card_handle.get().into()),
            module_handle: valid(v, bit::MODULE_HANDLE, extension.module_handle.get().into()),
            ..base
        }
    }

    /// Decodes a Platform Memory Error Section 2.
    pub(super) fn parse2(bytes: &[u8]) -> Result<Self, CperError> {
        let (wire, _) = wire::prefix::<Memory2>(bytes, What::Memory2)?;
        let v = wire.validation.get();
        Ok(Self {
            format: MemoryFormat::Second,
            error_status: valid(v, common_bit::STATUS, wire.error_status.get()),
            address: valid(v, common_bit::ADDRESS, Pa::new(wire.physical_address.get())),
            address_mask: valid(
                v,
                common_bit::ADDRESS_MASK,
                wire.physical_address_mask.get(),
            ),
            node: valid(v, common_bit::NODE, wire.node.get()),
            card: valid(v, common_bit::CARD, wire.card.get()),
            module: valid(v, common_bit::MODULE, wire.module.get()),
            bank: valid(v, common_bit::BANK, wire.bank.get()),
            device: valid(v, common_bit::DEVICE, wire.device.get()),
            row: valid(v, common_bit::ROW, wire.row.get()),
            column: valid(v, common_bit::COLUMN, wire.column.get()),
            rank: valid(v, bit2::RANK, wire.rank.get()),
            bit_position: valid(v, bit2::BIT_POSITION, wire.bit_position.get()),
            chip: valid(v, bit2::CHIP, wire.chip_id),
            requestor: valid(v, bit2::REQUESTOR, wire.requestor_id.get()),
            responder: valid(v, bit2::RESPONDER, wire.responder_id.get()),
            target: valid(v, bit2::TARGET, wire.target_id.get()),
            error_type: valid(v, bit2::ERROR_TYPE, MemoryErrorType(wire.error_type)),
            card_handle: valid(v, bit2::CARD_HANDLE, wire.card_handle.get()),
            module_handle: valid(v, bit2::MODULE_HANDLE, wire.module_handle.get()),
        })
    }

    /// The memory that is lost, whole pages, page-aligned.
    ///
    /// The mask has a 1 for each bit of the address that is known (UEFI 2.10 N.2.5, "Physical
    /// Address Mask"), so the zeroes at its low end are the size. Zeroes above bit 47 are common and
    /// mean an address bit that the platform doesn't have. Without a mask the error is in the one
    /// page of the address.
    ///
    /// # Errors
    ///
    /// [`RangeError`]: the record names no address, an impossible one, or an absurd size. Nothing
    /// should be taken away on the word of such a record.
    pub fn poisoned(&self) -> Result<PaRange, RangeError> {
        poisoned(self.address, self.address_mask)
    }
}

/// That a Platform Memory Error Section is as long as it was before UEFI 2.3 or is since. There has never been a
/// version of it between these.
fn check_length(bytes: &[u8]) -> Result<(), CperError> {
    const SHORT: usize = size_of::<MemoryShort>();
    const FULL: usize = SHORT + size_of::<MemoryExtension>();
    check_size(bytes, SHORT, What::Memory)?;
    match bytes.len() {
        SHORT | FULL.. => Ok(()),
        length => Err(CperError::BadLength {
            what: What::Memory,
            length,
        }),
    }
}

fn check_size(bytes: &[u8], need: usize, what: What) -> Result<(), CperError> {
    let have = bytes.len();
    if have < need {
        return Err(CperError::Truncated { what, need, have });
    }
    Ok(())
}

fn poisoned_by(head: &MemoryHead) -> Result<PaRange, RangeError> {
    let v = head.validation.get();
    let address = Pa::new(head.physical_address.get());
    let mask = head.physical_address_mask.get();
    poisoned(
        valid(v, common_bit::ADDRESS, address),
        valid(v, common_bit::ADDRESS_MASK, mask),
    )
}

fn poisoned(address: Option<Pa>, mask: Option<u64>) -> Result<PaRange, RangeError> {
    let address = address.ok_or(RangeError::NoAddress)?;
    if address.get() >> MAX_PA_BITS != 0 {
        return Err(RangeError::AddressTooHigh(address));
    }
    let size = match mask {
        None => PAGE_SIZE,
        Some(mask) => size_of_mask(mask)?.max(PAGE_SIZE),
    };
    PaRange::new(address.align_down(size), size).ok_or(RangeError::AddressTooHigh(address))
}

/// The largest physical address of the architecture has 56 bits (FEAT_D128, Arm ARM D8.1.6).
const MAX_PA_BITS: u32 = 56;

/// Bits of a mask that are looked at; platforms fill in what they have wires for.
const MASK_BITS: u32 = 48;

/// The largest loss that is believed, 4 GiB. A record that claims more is taken for broken rather
/// than obeyed: it would take down every VM of the machine.
const MAX_SIZE: u64 = 1 << 32;

fn size_of_mask(mask: u64) -> Result<u64, RangeError> {
    let unknown = !mask & ((1 << MASK_BITS) - 1);
    // 2^n - 1 has no bit in common with its successor; with all else a hole is in the middle.
    if unknown & (unknown + 1) != 0 {
        return Err(RangeError::MaskHasHoles(mask));
    }
    let size = unknown + 1;
    if size > MAX_SIZE {
        return Err(RangeError::MaskTooWide(mask));
    }
    Ok(size)
}

/// Why a memory section does not tell what is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// The address is not valid.
    NoAddress,
    /// No machine has such an address.
    AddressTooHigh(Pa),
    /// The mask leaves bits unknown above bits that are known.
    MaskHasHoles(u64),
    /// The mask claims the loss of more than 4 GiB at once.
    MaskTooWide(u64),
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("no-address"),
            Self::AddressTooHigh(address) => write!(f, "address-too-high:{address}"),
            Self::MaskHasHoles(mask) => write!(f, "mask-has-holes:{mask:#x}"),
            Self::MaskTooWide(mask) => write!(f, "mask-too-wide:{mask:#x}"),
        }
    }
}

impl core::error::Error for RangeError {}

/// The kind of a memory error (UEFI 2.10 N.2.5, "Memory Error Type"). Any value may come from
/// firmware; those of the specification have names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MemoryErrorType(u8);

impl MemoryErrorType {
    /// Firmware doesn't know.
    pub const UNKNOWN: Self = Self(0);
    /// One bit was wrong and has been corrected.
    pub const SINGLE_BIT_ECC: Self = Self(2);
    /// More bits were wrong than the code can correct.
    pub const MULTI_BIT_ECC: Self = Self(3);
    /// The patrol scrubber corrected data.
    pub const SCRUB_CORRECTED: Self = Self(13);
    /// The patrol scrubber found data that it can't correct; nobody has used it yet.
    pub const SCRUB_UNCORRECTED: Self = Self(14);

    /// Wraps a raw value.
    pub const fn new(raw: u8) -> Self {
        Self(raw)
    }

    /// The raw value.
    pub const fn raw(self) -> u8 {
        self.0
    }

    const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "unknown",
            1 => "no-error",
            2 => "single-bit-ecc",
            3 => "multi-bit-ecc",
            4 => "single-symbol-chipkill",
            5 => "multi-symbol-chipkill",
            6 => "master-abort",
            7 => "target-abort",
            8 => "parity",
            9 => "watchdog-timeout",
            10 => "invalid-address",
            11 => "mirror-broken",
            12 => "memory-sparing",
            13 => "scrub-corrected",
            14 => "scrub-uncorrected",
            15 => "memory-map-out",
            _ => return None,
        })
    }
}

impl fmt::Display for MemoryErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => write!(f, "reserved-{}", self.0),
        }
    }
}

impl fmt::Debug for MemoryErrorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryErrorType({self})")
    }
}
