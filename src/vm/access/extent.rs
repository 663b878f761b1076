//! What memory an operation accesses: said before it is, so that whoever carries it out can see to it that all of it is
//! there and allowed.

use super::arithmetic::sign_extended;
use super::env::GuestRegisters;
use super::operation::{Addressing, Direction, Exclusive, Extend, Operation, R31, Writeback};

/// Most bytes that an operation other than DC ZVA accesses: four vectors.
pub const MOST: usize = 64;

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is read.
    Read,
    /// It is written.
    Write,
    /// It is read and written, in one step.
    Update,
}

/// The memory that an operation accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first address.
    pub at: u64,
    /// How many bytes there are. At least one; more than [`MOST`] for DC ZVA alone, which lies in one page.
    pub length: u64,
    /// What is done to them.
    pub kind: Kind,
    /// Whether it is done in one step, or together with another that makes one of both.
    pub exclusive: bool,
    /// Whether it is done with the rights of EL0, whatever the level.
    pub unprivileged: bool,
}

/// What memory `operation` accesses; `None` if it accesses none.
pub fn extent(operation: &Operation, registers: &impl GuestRegisters) -> Option<Extent> {
    let plain = |at, length: u64, kind| Extent {
        at,
        length,
        kind,
        exclusive: false,
        unprivileged: false,
    };
    let base = |rn: u8| base(registers, rn);
    Some(match *operation {
        Operation::Nothing => return None,
        Operation::Transfer {
            direction,
            at,
            registers: what,
            unprivileged,
            ..
        } => {
            let kind = match direction {
                Direction::Load => Kind::Read,
                Direction::Store => Kind::Write,
            };
            Extent {
                unprivileged,
                ..plain(address(&at, registers).0, what.length().into(), kind)
            }
        }
        Operation::Modify { size, rn, .. } | Operation::CompareSwap { size, rn, .. } => Extent {
            exclusive: true,
            ..plain(base(rn), size.into(), Kind::Update)
        },
        Operation::LoadExclusive(Exclusive { size, rn, .. }) => Extent {
            exclusive: true,
            ..plain(base(rn), size.into(), Kind::Read)
        },
        Operation::StoreExclusive {
            what: Exclusive { size, rn, .. },
            ..
        } => Extent {
            exclusive: true,
            ..plain(base(rn), size.into(), Kind::Write)
        },
        Operation::ZeroBlock { rt } => {
            let block = registers.zero_block();
            let at = registers.register(rt) & !(block.wrapping_sub(1));
            plain(at, block, Kind::Write)
        }
    })
}

pub(super) fn base(registers: &impl GuestRegisters, rn: u8) -> u64 {
    match rn {
        R31 => registers.stack_pointer(),
        _ => registers.register(rn),
    }
}

/// Where an access is, and which register is written back with what.
pub(super) fn address(
    at: &Addressing,
    registers: &impl GuestRegisters,
) -> (u64, Option<(u8, u64)>) {
    match *at {
        Addressing::Absolute(address) => (address, None),
        Addressing::Literal(offset) => (registers.pc().wrapping_add_signed(offset), None),
        Addressing::Base {
            rn,
            offset,
            writeback,
        } => {
            let base = base(registers, rn);
            let moved = base.wrapping_add_signed(offset);
            match writeback {
                Writeback::None => (moved, None),
                Writeback::Before => (moved, Some((rn, moved))),
                Writeback::After => (base, Some((rn, moved))),
            }
        }
        Addressing::PostRegister { rn, rm } => {
            let base = base(registers, rn);
            let moved = base.wrapping_add(registers.register(rm));
            (base, Some((rn, moved)))
        }
        Addressing::Extended {
            rn,
            rm,
            extend,
            shift,
        } => {
            let index = registers.register(rm);
            let index = match extend {
                Extend::Lsl => index,
                Extend::Uxtw => index & u64::from(u32::MAX),
                Extend::Sxtw => sign_extended(index, 4),
            };
            (base(registers, rn).wrapping_add(index << shift), None)
        }
    }
}
