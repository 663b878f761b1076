//! What a stage-2 leaf says about the memory behind it: type, access, execution.
//!
//! The stage-2 memory type is encoded in one of two ways, by `HCR_EL2.FWB`: as a limit that is
//! combined with the guest's own stage 1, or, with FEAT_S2FWB, as an override. Both are here, and
//! all values that Cordon writes differ enough for one decoder to read both. In the descriptors of FEAT_LPA2
//! nothing is said of shareability: `VTCR_EL2.SH0` says it for all, and its two bits are of the address.

use core::fmt;

/// What kind of memory a mapping gives the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// Normal, Inner and Outer Write-Back Cacheable, Inner Shareable. With FEAT_S2FWB this is
    /// forced; without it, the guest may still choose something weaker for itself.
    NormalWb,
    /// Normal Non-cacheable: the strongest type that still allows unaligned access and write
    /// combining, for device memory that is not coherent.
    NormalNc,
    /// Device-nGnRE: for registers.
    DeviceNGnRE,
}

impl MemoryType {
    /// What it is called in lines and descriptions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NormalWb => "write-back",
            Self::NormalNc => "non-cacheable",
            Self::DeviceNGnRE => "device",
        }
    }

    /// The one that is called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::NormalWb, Self::NormalNc, Self::DeviceNGnRE];
        all.into_iter().find(|memory| memory.name() == name)
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the guest may do to memory, besides executing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads only.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// The attributes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attrs {
    /// Memory type.
    pub memory: MemoryType,
    /// Access permission.
    pub access: Access,
    /// Whether instructions may be fetched, at EL1 and EL0 alike.
    pub execute: bool,
}

/// How attributes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    /// `HCR_EL2.FWB`.
    pub(super) fwb: bool,
    /// `VTCR_EL2.DS`.
    pub(super) lpa2: bool,
}

// Fields of a stage-2 block or page descriptor (Arm ARM D8.3, "Stage 2 attribute fields").
const MEM_ATTR_SHIFT: u32 = 2;
const MEM_ATTR_MASK: u64 = 0xf << MEM_ATTR_SHIFT;
const S2AP_SHIFT: u32 = 6;
const S2AP_MASK: u64 = 0b11 << S2AP_SHIFT;
const SH_SHIFT: u32 = 8;
const AF: u64 = 1 << 10;
const XN_SHIFT: u32 = 53;
const XN_MASK: u64 = 0b11 << XN_SHIFT;

/// The bits of a leaf that say what may be done to its memory.
pub(super) const PERMISSIONS: u64 = S2AP_MASK | XN_MASK;

const S2AP_READ: u64 = 0b01;
const S2AP_READ_WRITE: u64 = 0b11;

const SH_OUTER: u64 = 0b10;
const SH_INNER: u64 = 0b11;

/// Bit 54 alone: no execution at EL1 or EL0, whether or not FEAT_XNX gives bit 53 a meaning.
const XN_NONE: u64 = 0b10;

const WB: u64 = 0b1111;
const WB_FWB: u64 = 0b0110;
const NC: u64 = 0b0101;
const DEVICE_NGNRE: u64 = 0b0001;

impl Attrs {
    /// Ordinary guest RAM: cacheable, writable, executable.
    pub const RAM: Self = Self {
        memory: MemoryType::NormalWb,
        access: Access::ReadWrite,
        execute: true,
    };

    /// Registers of a device: Device-nGnRE, writable, not executable.
    pub const DEVICE: Self = Self {
        memory: MemoryType::DeviceNGnRE,
        access: Access::ReadWrite,
        execute: false,
    };

    /// Memory of this type that a guest may write, and execute unless it is a device.
    pub const fn of(memory: MemoryType) -> Self {
        match memory {
            MemoryType::NormalWb | MemoryType::NormalNc => Self {
                memory,
                ..Self::RAM
            },
            MemoryType::DeviceNGnRE => Self::DEVICE,
        }
    }

    /// The attribute bits of a leaf descriptor. The Access flag is always set: Cordon does not
    /// age guest memory, and a clear flag would fault on first use.
    pub(super) const fn encode(self, how: Encoding) -> u64 {
        let mem_attr = match (self.memory, how.fwb) {
            (MemoryType::NormalWb, false) => WB,
            (MemoryType::NormalWb, true) => WB_FWB,
            (MemoryType::NormalNc, _) => NC,
            (MemoryType::DeviceNGnRE, _) => DEVICE_NGNRE,
        };
        let sh = if how.lpa2 { 0 } else { shareability(mem_attr) };
        let s2ap = match self.access {
            Access::ReadOnly => S2AP_READ,
            Access::ReadWrite => S2AP_READ_WRITE,
        };
        let xn = if self.execute { 0 } else { XN_NONE };
        mem_attr << MEM_ATTR_SHIFT | s2ap << S2AP_SHIFT | sh << SH_SHIFT | AF | xn << XN_SHIFT
    }

    /// Reads attribute bits back. Bits that [`Self::encode`] never makes come out as something
    /// weaker: [`Self::are_valid`] tells them apart.
    pub(super) const fn decode(raw: u64) -> Self {
        Self {
            memory: match (raw & MEM_ATTR_MASK) >> MEM_ATTR_SHIFT {
                WB | WB_FWB => MemoryType::NormalWb,
                NC => MemoryType::NormalNc,
                _ => MemoryType::DeviceNGnRE,
            },
            access: match (raw & S2AP_MASK) >> S2AP_SHIFT {
                S2AP_READ_WRITE => Access::ReadWrite,
                _ => Access::ReadOnly,
            },
            execute: raw & XN_MASK == 0,
        }
    }

    /// Whether `raw` is what [`Self::encode`] makes of some attributes in a format, FEAT_LPA2's or the other, and
    /// nothing besides.
    pub(super) const fn are_valid(raw: u64, lpa2: bool) -> bool {
        /// What a leaf may have or not: the right to write, and that not to be executed.
        const EITHER: u64 = (S2AP_READ_WRITE ^ S2AP_READ) << S2AP_SHIFT | XN_NONE << XN_SHIFT;
        let mem_attr = (raw & MEM_ATTR_MASK) >> MEM_ATTR_SHIFT;
        let sh = match mem_attr {
            WB | WB_FWB | NC | DEVICE_NGNRE if lpa2 => 0,
            WB | WB_FWB | NC | DEVICE_NGNRE => shareability(mem_attr),
            _ => return false,
        };
        raw & !(MEM_ATTR_MASK | EITHER) == AF | S2AP_READ << S2AP_SHIFT | sh << SH_SHIFT
    }
}

/// What a descriptor that has the field says in SH. Hardware treats Non-cacheable and Device memory as Outer
/// Shareable whatever it says (Arm ARM D8.6, "Stage 2 Shareability"), so it says the same.
const fn shareability(mem_attr: u64) -> u64 {
    match mem_attr {
        WB | WB_FWB => SH_INNER,
        _ => SH_OUTER,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Without FEAT_S2FWB and FEAT_LPA2.
    pub(in crate::stage2) const PLAIN: Encoding = Encoding {
        fwb: false,
        lpa2: false,
    };
    const FWB: Encoding = Encoding { fwb: true, ..PLAIN };

    /// All ways to write attributes of a format.
    fn encodings(lpa2: bool) -> [Encoding; 2] {
        [false, true].map(|fwb| Encoding { fwb, lpa2 })
    }

    /// Every value of [`Attrs`].
    pub(in crate::stage2) fn all() -> impl Iterator<Item = Attrs> {
        use Access::{ReadOnly, ReadWrite};
        use MemoryType::{DeviceNGnRE, NormalNc, NormalWb};
        [NormalWb, NormalNc, DeviceNGnRE]
            .into_iter()
            .flat_map(|memory| [ReadOnly, ReadWrite].map(|access| (memory, access)))
            .flat_map(|(memory, access)| {
                [false, true].map(|execute| Attrs {
                    memory,
                    access,
                    execute,
                })
            })
    }

    #[test]
    fn every_attribute_survives_a_descriptor_in_all_encodings_and_is_of_one_format() {
        for attrs in all() {
            for lpa2 in [false, true] {
                for how in encodings(lpa2) {
                    let raw = attrs.encode(how);
                    assert!(Attrs::are_valid(raw, lpa2) && !Attrs::are_valid(raw, !lpa2));
                    assert_eq!(Attrs::decode(raw), attrs);
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes minutes, and touches no memory")]
    fn of_all_values_of_the_fields_those_are_attributes_that_are_made_of_some() {
        for lpa2 in [false, true] {
            let ways = encodings(lpa2);
            let made = |raw| all().any(|attrs| ways.map(|how| attrs.encode(how)).contains(&raw));
            for low in 0..1 << 11 {
                for xn in 0..8 {
                    let raw = low | xn << 52;
                    assert_eq!(Attrs::are_valid(raw, lpa2), made(raw), "{raw:#x}");
                }
            }
        }
    }

    #[test]
    fn ram_has_the_bits_of_the_architecture() {
        // MemAttr 0b1111, S2AP 0b11, SH 0b11, AF.
        assert_eq!(Attrs::RAM.encode(PLAIN), 0x7fc);
        // MemAttr 0b0110: Write-Back whatever stage 1 says.
        assert_eq!(Attrs::RAM.encode(FWB), 0x7d8);
        // Bits [9:8] are of the address.
        assert_eq!(
            encodings(true).map(|how| Attrs::RAM.encode(how)),
            [0x4fc, 0x4d8]
        );
    }

    #[test]
    fn registers_have_the_bits_of_the_architecture() {
        // XN 0b10, AF, SH 0b10, S2AP 0b11, MemAttr 0b0001 with and without FWB.
        assert_eq!(Attrs::DEVICE.encode(PLAIN), 0x0040_0000_0000_06c4);
        assert_eq!(Attrs::DEVICE.encode(FWB), Attrs::DEVICE.encode(PLAIN));
    }

    #[test]
    fn bits_that_are_never_written_are_not_attributes() {
        let ram = Attrs::RAM.encode(PLAIN);
        for raw in [
            ram & !AF,
            ram & !S2AP_MASK,
            ram & !MEM_ATTR_MASK,
            ram | 1 << XN_SHIFT, // execution at EL0 only (FEAT_XNX)
            ram | 1 << 52,       // Contiguous
        ] {
            assert!(!Attrs::are_valid(raw, false), "{raw:#x}");
        }
    }
}
