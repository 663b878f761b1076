//! What distributor and redistributor have in common: the registers with a place for each
//! interrupt (IHI 0069, tables 12-25 and 12-29), and the identification registers.

/// Size in bytes of a frame: the distributor, and each of a redistributor's two.
pub const FRAME_SIZE: u64 = 0x1_0000;

/// A register with a place for each interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// IGROUPR.
    Group,
    /// ISENABLER.
    SetEnable,
    /// ICENABLER.
    ClearEnable,
    /// ISPENDR.
    SetPending,
    /// ICPENDR.
    ClearPending,
    /// ISACTIVER.
    SetActive,
    /// ICACTIVER.
    ClearActive,
    /// IPRIORITYR, a byte each.
    Priority,
    /// ICFGR, two bits each.
    Config,
}

/// A register, for which 32 interrupts, and how many bytes into their part of it.
pub type Place = (Register, usize, u64);

impl Register {
    /// Which register is at `offset` of its frame, for which 32 interrupts, and how many bytes into
    /// their part of it. ITARGETSR, IGRPMODR and NSACR are not among them: with affinity routing and
    /// one security state they read as zero and ignore writes.
    pub fn at(offset: u64) -> Option<Place> {
        let (register, start, bytes) = match offset {
            0x080..=0x0ff => (Self::Group, 0x080, 4),
            0x100..=0x17f => (Self::SetEnable, 0x100, 4),
            0x180..=0x1ff => (Self::ClearEnable, 0x180, 4),
            0x200..=0x27f => (Self::SetPending, 0x200, 4),
            0x280..=0x2ff => (Self::ClearPending, 0x280, 4),
            0x300..=0x37f => (Self::SetActive, 0x300, 4),
            0x380..=0x3ff => (Self::ClearActive, 0x380, 4),
            0x400..=0x7ff => (Self::Priority, 0x400, 32),
            0xc00..=0xcff => (Self::Config, 0xc00, 8),
            _ => return None,
        };
        let byte = offset - start;
        let bank = usize::try_from(byte / bytes).ok()?;
        Some((register, bank, byte % bytes))
    }

    /// Whether the answer depends on what is in list registers.
    pub const fn shows_state(self) -> bool {
        use Register::{ClearActive, ClearPending, SetActive, SetPending};
        matches!(self, SetPending | ClearPending | SetActive | ClearActive)
    }
}

/// Implementer Arm (JEP106 0x43b), product "C": no known implementation, so no driver looks for
/// its errata.
pub const IIDR: u64 = 0x4300_043b;

/// Identification registers: a GICv3 (PIDR2.ArchRev = 3) by Arm, CoreSight component class 0xf
/// (IHI 0069, 12.1.11).
pub fn identification(offset: u64) -> u64 {
    const FIRST: u64 = 0xffd0;
    const BYTES: [u8; 12] = [0x44, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
    let index = offset.checked_sub(FIRST).map(|offset| offset / 4);
    let index = index.and_then(|index| usize::try_from(index).ok());
    let byte = index.and_then(|index| BYTES.get(index));
    byte.copied().map_or(0, u64::from)
}
