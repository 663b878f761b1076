//! The state machine of an interrupt, for 32 of them at a time.
//!
//! One bit per interrupt and property, so that a bitmap register of the GIC is a field, and "which
//! may be signalled?" is one expression. What is *pending* is a latch (an edge, an SGI, a write to
//! ISPENDR) or, for a level-sensitive interrupt, the line itself (GIC architecture IHI 0069, 4.1.2
//! and 12.9, GICD_ISPENDR).
//!
//! While an interrupt is *in flight*, in a list register, the CPU that has it changes its state
//! without telling. Then `latch` holds only what came after, `in_lr` whether what is in the list
//! register came from the latch, and `active` what was true before.

use super::registers::Register;

/// Priorities have five bits, as the virtual CPU interface has them at least (IHI 0069, 4.8.1).
pub const PRIORITY_MASK: u8 = 0xf8;

/// 32 interrupts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    /// Group 1, rather than 0.
    pub group1: u32,
    /// Enabled.
    pub enabled: u32,
    /// Pending on its own account.
    pub latch: u32,
    /// The line is high. Means something where the interrupt is level-sensitive.
    pub line: u32,
    /// Active.
    pub active: u32,
    /// Edge-triggered.
    pub edge: u32,
    /// Interrupts whose trigger software can choose.
    pub configurable: u32,
    /// In a list register.
    pub in_flight: u32,
    /// The list register took the latch with it.
    pub in_lr: u32,
    /// A physical interrupt is active on this one's account.
    pub forwarded: u32,
    /// The list register is linked to it: the CPU deactivates both together.
    pub in_hardware: u32,
    /// Priorities, lower being more urgent.
    pub priority: [u8; 32],
}

impl Bank {
    /// Pending, as far as is known without looking into list registers.
    pub const fn pending(&self) -> u32 {
        self.latch | self.line & !self.edge
    }

    /// What may be signalled where the groups in `groups` are enabled, and is not yet.
    pub const fn candidates(&self, groups: Groups) -> u32 {
        self.pending() & self.forwardable(groups) & !self.active & !self.in_flight
    }

    /// What is enabled, and its group as well.
    pub const fn forwardable(&self, groups: Groups) -> u32 {
        self.enabled & groups.of(self.group1)
    }

    /// What became pending once more while it was in flight.
    pub const fn again(&self, groups: Groups) -> u32 {
        self.latch & self.in_flight & self.forwardable(groups)
    }

    /// The priority of interrupt `number`, of which five bits count.
    pub fn priority(&self, number: u16) -> u8 {
        self.priority[usize::from(number % 32)]
    }

    /// What a load of `size` bytes from `register`, `byte` bytes into this bank's part of it, gives.
    pub fn read(&self, register: Register, byte: u64, size: u8) -> u64 {
        let bits = match register {
            Register::Priority => return self.read_priority(byte, size),
            _ if size != 4 => 0,
            Register::Config => config(self.edge, byte),
            Register::Group => self.group1,
            Register::SetEnable | Register::ClearEnable => self.enabled,
            Register::SetPending | Register::ClearPending => self.pending(),
            Register::SetActive | Register::ClearActive => self.active,
        };
        bits.into()
    }

    /// Carries out a store. None of the interrupts that it is about may be in flight.
    pub fn write(&mut self, register: Register, byte: u64, size: u8, value: u64) {
        let bits = (value & 0xffff_ffff) as u32;
        match register {
            Register::Priority => self.write_priority(byte, size, value),
            _ if size != 4 => {}
            Register::Config => {
                let chosen = edges(self.edge, byte, bits);
                self.edge = self.edge & !self.configurable | chosen & self.configurable;
            }
            Register::Group => self.group1 = bits,
            Register::SetEnable => self.enabled |= bits,
            Register::ClearEnable => self.enabled &= !bits,
            Register::SetPending => self.latch |= bits,
            Register::ClearPending => self.latch &= !bits,
            Register::SetActive => self.active |= bits,
            Register::ClearActive => self.active &= !bits,
        }
    }

    /// A priority register holds four; they can be accessed as bytes too (IHI 0069, 12.1.3).
    fn read_priority(&self, byte: u64, size: u8) -> u64 {
        if !matches!(size, 1 | 4) {
            return 0;
        }
        let first = (byte % 32) as usize;
        let bytes = self.priority.iter().skip(first).take(size.into());
        bytes
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn write_priority(&mut self, byte: u64, size: u8, value: u64) {
        if !matches!(size, 1 | 4) {
            return;
        }
        let first = (byte % 32) as usize;
        let slots = self.priority.iter_mut().skip(first).take(size.into());
        for (slot, byte) in slots.zip(value.to_le_bytes()) {
            *slot = byte & PRIORITY_MASK;
        }
    }
}

/// GICD_ICFGR and GICR_ICFGR have two bits an interrupt, the upper of which says "edge"; a bank has
/// two of them.
fn config(edge: u32, byte: u64) -> u32 {
    let half = edge >> (16 * (byte / 4 % 2));
    (0..16).fold(0, |word, n| word | (half >> n & 1) << (2 * n + 1))
}

fn edges(edge: u32, byte: u64, word: u32) -> u32 {
    let shift = 16 * (byte / 4 % 2);
    let half = (0..16).fold(0, |half, n| half | (word >> (2 * n + 1) & 1) << n);
    edge & !(0xffff << shift) | half << shift
}

/// Which groups the distributor forwards: GICD_CTLR.EnableGrp0 and EnableGrp1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups(u8);

impl Groups {
    /// From the two lowest bits of GICD_CTLR.
    pub const fn from_control(control: u64) -> Self {
        Self((control & 0b11) as u8)
    }

    /// The two lowest bits of GICD_CTLR.
    pub const fn control(self) -> u64 {
        self.0 as u64
    }

    /// The enabled ones among interrupts, given which of them are in group 1.
    const fn of(self, group1: u32) -> u32 {
        let zero = if self.0 & 1 != 0 { !group1 } else { 0 };
        let one = if self.0 & 2 != 0 { group1 } else { 0 };
        zero | one
    }
}
