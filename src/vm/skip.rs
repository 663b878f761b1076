//! Stepping over an instruction that was emulated.

use crate::ras::esr::IL;
use crate::ras::inject::pstate::AARCH32;

/// `SPSR_EL2.SS`.
const SS: u64 = 1 << 21;
/// `SPSR_EL2.BTYPE`, of AArch64 alone.
const BTYPE: u64 = 0b11 << 10;
/// `SPSR_EL2.IT[7:2]` and `IT[1:0]`, of AArch32 alone.
const IT_HIGH_SHIFT: u32 = 10;
const IT_LOW_SHIFT: u32 = 25;
const IT: u64 = 0x3f << IT_HIGH_SHIFT | 0b11 << IT_LOW_SHIFT;

/// `ELR_EL2` and `SPSR_EL2` as executing the instruction would have left them that trapped with
/// syndrome `esr`.
///
/// T32 instructions can be two bytes long, which `IL` tells, and stand in an IT block, which goes on
/// to its next condition (Arm ARM G1.4, "ITSTATE").
pub const fn behind(pc: u64, pstate: u64, esr: u64) -> (u64, u64) {
    let size = if esr & IL == 0 { 2 } else { 4 };
    let pc = pc.wrapping_add(size);
    let pstate = pstate & !SS;
    if pstate & AARCH32 == 0 {
        (pc, pstate & !BTYPE)
    } else {
        // A 32-bit PC.
        (pc & 0xffff_ffff, advance_it(pstate))
    }
}

/// Pseudocode `AArch32.ITAdvance`.
const fn advance_it(pstate: u64) -> u64 {
    let it = (pstate >> IT_HIGH_SHIFT & 0x3f) << 2 | pstate >> IT_LOW_SHIFT & 0b11;
    let next = if it & 0b111 == 0 {
        0
    } else {
        it & 0xe0 | it << 1 & 0x1f
    };
    pstate & !IT | (next >> 2) << IT_HIGH_SHIFT | (next & 0b11) << IT_LOW_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u64 = AARCH32 | 1 << 5;

    /// PSTATE of T32 user mode with this ITSTATE.
    const fn in_block(it: u64) -> u64 {
        USER | (it >> 2) << 10 | (it & 0b11) << 25
    }

    #[test]
    fn aarch64_loses_btype_and_ss() {
        let flags = 0x6000_0005;
        assert_eq!(
            behind(0x1000, flags | BTYPE | SS, IL),
            (0x1004, flags),
            "all else stays"
        );
        assert_eq!(behind(u64::MAX - 3, flags, IL), (0, flags));
    }

    #[test]
    fn a_short_instruction_is_two_bytes_long() {
        assert_eq!(behind(0x1000, USER, 0), (0x1002, USER));
        assert_eq!(behind(0x1000, USER | SS, IL), (0x1004, USER));
        assert_eq!(behind(0xffff_fffe, USER, 0), (0, USER));
    }

    #[test]
    fn an_it_block_goes_on() {
        // ITE EQ before its first instruction, then before its second, then behind the block.
        let (_, second) = behind(0, in_block(0b0000_1100), 0);
        assert_eq!(second, in_block(0b0001_1000));
        let (_, behind_it) = behind(0, second, 0);
        assert_eq!(behind_it, USER);
        // ITTTT NE has four.
        let mut pstate = in_block(0b0001_0001);
        for left in (0..4).rev() {
            (_, pstate) = behind(0, pstate, 0);
            assert_eq!(pstate == USER, left == 0);
        }
    }
}
