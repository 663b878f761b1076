//! The few instructions of EL2 that are allowed to meet poison.
//!
//! Each stands in a function of its own, with a place to go on when it takes a synchronous
//! external abort. [`super::fault`] looks an abort's PC up here before it calls it fatal.
#![expect(unsafe_code, reason = "instructions that may abort")]

use core::arch::naked_asm;

/// `PAR_EL1.F`: the translation failed (Arm ARM D19.2.119).
const PAR_F: u64 = 1;

/// Stage 1 of the current guest for `va`, as `AT S1E1R` gives it in PAR_EL1, whose own value is
/// kept for the guest. Poison in the guest's tables counts as a translation that failed.
///
/// An abort of the instruction overwrites the registers in which the exit that is being handled
/// was reported, and where the guest goes on: they are brought back at the landing.
#[unsafe(naked)]
extern "C" fn at_s1e1r(va: u64) -> u64 {
    naked_asm!(
        "mrs x1, par_el1",
        "mrs x2, elr_el2",
        "mrs x3, spsr_el2",
        "mrs x4, esr_el2",
        "mrs x5, far_el2",
        "mrs x6, hpfar_el2",
        ".global at_s1e1r_instruction",
    "at_s1e1r_instruction:",
        "at  s1e1r, x0",
        "isb",
        "mrs x0, par_el1",
        "msr par_el1, x1",
        "ret",
        ".global at_s1e1r_landing",
    "at_s1e1r_landing:",
        "msr par_el1, x1",
        "msr elr_el2, x2",
        "msr spsr_el2, x3",
        "msr esr_el2, x4",
        "msr far_el2, x5",
        "msr hpfar_el2, x6",
        "mov x0, #{failed}",
        "ret",
        failed = const PAR_F,
    )
}

unsafe extern "C" {
    static at_s1e1r_instruction: u8;
    static at_s1e1r_landing: u8;
}

/// The IPA that the current guest's stage 1 gives for `va`, or `None` if it gives none. A read
/// by EL1 is what is asked about: whatever EL0 or a store can reach, that can be read too.
pub fn stage1_translate(va: u64) -> Option<cordon::addr::Ipa> {
    /// PAR_EL1.PA, bits 51:12.
    const PAR_PA: u64 = 0x000f_ffff_ffff_f000;
    let par = at_s1e1r(va);
    (par & PAR_F == 0).then(|| cordon::addr::Ipa::new(par & PAR_PA | va & 0xfff))
}

/// Where to go on after a synchronous external abort at `pc`, if that was allowed.
pub fn landing(pc: u64) -> Option<u64> {
    if let Some(landing) = super::page_slot::landing(pc) {
        return Some(landing);
    }
    let instruction = (&raw const at_s1e1r_instruction).addr() as u64;
    let landing = (&raw const at_s1e1r_landing).addr() as u64;
    (pc == instruction).then_some(landing)
}
