//! The few instructions of EL2 that are allowed to meet poison.
//!
//! Each stands in a function of its own, with a place to go on when it takes a synchronous
//! external abort. [`super::fault`] looks an abort's PC up here before it calls it fatal.
//!
//! Whatever is not Cordon's own is read and written by these while VMs exist: the RAM of a VM that is
//! loaded anew, and what firmware shares. At boot, the bundle, the DTB and ACPI tables are read as
//! Rust reads memory: poison in these is fatal.
#![expect(unsafe_code, reason = "instructions that may abort")]

use aarch64_cpu::registers::{Readable, SPSR_EL2};
use cordon::addr::Pa;
use cordon::vm::cpu::{Denied, Rights, Stage1};
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

/// The IPA that the current guest's stage 1 gives for `va`, or `None` if it gives none. A read
/// by EL1 is what is asked about: whatever EL0 or a store can reach, that can be read too.
pub fn stage1_translate(va: u64) -> Option<cordon::addr::Ipa> {
    /// PAR_EL1.PA, bits 51:12.
    const PAR_PA: u64 = 0x000f_ffff_ffff_f000;
    let par = at_s1e1r(va);
    (par & PAR_F == 0).then(|| cordon::addr::Ipa::new(par & PAR_PA | va & 0xfff))
}

/// Which address translation [`at_s1`] asks for.
const AS_EL0: u64 = 1 << 0;
const TO_WRITE: u64 = 1 << 1;
const WITH_PAN: u64 = 1 << 2;

/// The same with other rights: `AT S1E0R`, `S1E0W`, `S1E1R`, `S1E1W`, or, with FEAT_PAN2, `S1E1RP` and `S1E1WP`,
/// which heed PSTATE.PAN. That is the guest's still: entering EL2 does not change it (Arm ARM, TakeException).
#[unsafe(naked)]
extern "C" fn at_s1(va: u64, how: u64) -> u64 {
    naked_asm!(
        "mov x7, x1",
        "mrs x1, par_el1",
        "mrs x2, elr_el2",
        "mrs x3, spsr_el2",
        "mrs x4, esr_el2",
        "mrs x5, far_el2",
        "mrs x6, hpfar_el2",
        ".global at_s1_start, at_s1_end",
        "at_s1_start:",
        "tbnz x7, #2, 4f",
        "tbnz x7, #0, 2f",
        "tbnz x7, #1, 1f",
        "at  s1e1r, x0",
        "b   at_s1_end",
        "1: at s1e1w, x0",
        "b   at_s1_end",
        "2: tbnz x7, #1, 3f",
        "at  s1e0r, x0",
        "b   at_s1_end",
        "3: at s1e0w, x0",
        "b   at_s1_end",
        "4: tbnz x7, #1, 5f",
        "sys #0, c7, c9, #0, x0",
        "b   at_s1_end",
        "5: sys #0, c7, c9, #1, x0",
        "at_s1_end:",
        "isb",
        "mrs x0, par_el1",
        "msr par_el1, x1",
        "ret",
    )
}

/// What the current guest's stage 1 says of `va`.
///
/// # Errors
///
/// [`Denied`].
pub fn stage1(va: u64, rights: Rights) -> Result<Stage1, Denied> {
    /// PAR_EL1.PA, bits 51:12; with F = 1: FST, bits 6:1, and S, bit 9: stage 2 failed.
    const PAR_PA: u64 = 0x000f_ffff_ffff_f000;
    const PAR_S: u64 = 1 << 9;
    /// PSTATE.PAN, as MRS has it.
    const PAN: u64 = 1 << 22;
    let write = |write| if write { TO_WRITE } else { 0 };
    let how = match rights {
        Rights::Fetch => 0,
        Rights::El0 { write: it } => AS_EL0 | write(it),
        Rights::El1 { write: it } => {
            let features = super::features::get();
            let pan = features.pan && SPSR_EL2.get() & PAN != 0;
            match (pan, features.pan2) {
                (false, _) => write(it),
                (true, true) => WITH_PAN | write(it),
                (true, false) => return Err(Denied::Unknown),
            }
        }
    };
    let par = at_s1(va, how);
    if par & PAR_F == 0 {
        return Ok(Stage1 {
            ipa: cordon::addr::Ipa::new(par & PAR_PA | va & 0xfff),
            memory: (par >> 56) as u8,
        });
    }
    // The landing leaves nothing but F; status 0 would be an address size fault at level 0.
    match (par >> 1 & 0x3f) as u8 {
        status if status != 0 && par & PAR_S == 0 && !is_external(status) => {
            Err(Denied::Stage1(status))
        }
        _ => Err(Denied::Unknown),
    }
}

/// Synchronous external aborts on a walk.
const fn is_external(status: u8) -> bool {
    matches!(status, 0x10 | 0x12..=0x18 | 0x1b..=0x1f)
}

/// What a trapped access came to: the address that aborted and the syndrome, which is 0 where none did.
#[repr(C)]
struct Trapped {
    far: u64,
    esr: u64,
}

/// Keeps what tells of the exit that is being handled, which an abort overwrites, in x9 to x13. The
/// accesses until [`trapped_end`] may abort, and change none of these.
macro_rules! trapped_begin {
    ($start:literal) => {
        concat!(
            "mrs x9, elr_el2\n",
            "mrs x10, spsr_el2\n",
            "mrs x11, esr_el2\n",
            "mrs x12, far_el2\n",
            "mrs x13, hpfar_el2\n",
            ".global ",
            $start,
            "\n",
            $start,
            ":\n"
        )
    };
}

/// The accesses went well.
macro_rules! trapped_end {
    ($end:literal) => {
        concat!(".global ", $end, "\n", $end, ":\n", "mov x1, #0\n", "ret\n")
    };
}

/// Copies `size` bytes, 32 at a time as far as possible.
#[unsafe(naked)]
unsafe extern "C" fn trapped_copy(to: *mut u8, from: *const u8, size: usize) -> Trapped {
    naked_asm!(
        trapped_begin!("trapped_copy_start"),
        "subs x2, x2, #32",
        "b.lo 3f",
        "1: ldp x3, x4, [x1], #16",
        "ldp x5, x6, [x1], #16",
        "stp x3, x4, [x0], #16",
        "stp x5, x6, [x0], #16",
        "subs x2, x2, #32",
        "b.hs 1b",
        // What is left is x2 + 32, below 32.
        "3: tbz x2, #4, 4f",
        "ldp x3, x4, [x1], #16",
        "stp x3, x4, [x0], #16",
        "4: tbz x2, #3, 5f",
        "ldr x3, [x1], #8",
        "str x3, [x0], #8",
        "5: tbz x2, #2, 6f",
        "ldr w3, [x1], #4",
        "str w3, [x0], #4",
        "6: and x2, x2, #3",
        "2: cbz x2, trapped_copy_end",
        "ldrb w3, [x1], #1",
        "strb w3, [x0], #1",
        "sub x2, x2, #1",
        "b 2b",
        trapped_end!("trapped_copy_end"),
    )
}

/// Zeroes `size` bytes.
#[unsafe(naked)]
unsafe extern "C" fn trapped_zero(at: *mut u8, size: usize) -> Trapped {
    naked_asm!(
        trapped_begin!("trapped_zero_start"),
        "subs x1, x1, #128",
        "b.lo 3f",
        "1: stp xzr, xzr, [x0]",
        "stp xzr, xzr, [x0, #16]",
        "stp xzr, xzr, [x0, #32]",
        "stp xzr, xzr, [x0, #48]",
        "stp xzr, xzr, [x0, #64]",
        "stp xzr, xzr, [x0, #80]",
        "stp xzr, xzr, [x0, #96]",
        "stp xzr, xzr, [x0, #112]",
        "add x0, x0, #128",
        "subs x1, x1, #128",
        "b.hs 1b",
        // What is left is x1 + 128, below 128.
        "3: and x1, x1, #127",
        "2: cbz x1, trapped_zero_end",
        "strb wzr, [x0], #1",
        "sub x1, x1, #1",
        "b 2b",
        trapped_end!("trapped_zero_end"),
    )
}

/// Reads a word into `to`.
#[unsafe(naked)]
unsafe extern "C" fn trapped_read(from: *const u64, to: *mut u64) -> Trapped {
    naked_asm!(
        trapped_begin!("trapped_read_start"),
        "ldr x3, [x0]",
        "str x3, [x1]",
        trapped_end!("trapped_read_end"),
    )
}

/// Writes a word.
#[unsafe(naked)]
unsafe extern "C" fn trapped_write(to: *mut u64, value: u64) -> Trapped {
    naked_asm!(
        trapped_begin!("trapped_write_start"),
        "str x1, [x0]",
        trapped_end!("trapped_write_end"),
    )
}

/// Cleans and invalidates the data caches' lines of `line` bytes from `start`, which is at the beginning of
/// one, to `end`, to the point of coherency.
#[unsafe(naked)]
unsafe extern "C" fn trapped_clean(start: u64, end: u64, line: u64) -> Trapped {
    naked_asm!(
        trapped_begin!("trapped_clean_start"),
        "sub x1, x1, x2, lsl #2",
        "b 2f",
        // Four lines at once while there are as many.
        "1: dc civac, x0",
        "add x0, x0, x2",
        "dc civac, x0",
        "add x0, x0, x2",
        "dc civac, x0",
        "add x0, x0, x2",
        "dc civac, x0",
        "add x0, x0, x2",
        "2: cmp x0, x1",
        "b.ls 1b",
        "add x1, x1, x2, lsl #2",
        "3: cmp x0, x1",
        "b.hs trapped_clean_end",
        "dc civac, x0",
        "add x0, x0, x2",
        "b 3b",
        trapped_end!("trapped_clean_end"),
    )
}

/// Where all of the above go on after an abort.
#[unsafe(naked)]
extern "C" fn trapped_landing() {
    naked_asm!(
        "mrs x0, far_el2",
        "mrs x1, esr_el2",
        "msr elr_el2, x9",
        "msr spsr_el2, x10",
        "msr esr_el2, x11",
        "msr far_el2, x12",
        "msr hpfar_el2, x13",
        "ret",
    )
}

/// EL2 met poison, and went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poisoned {
    /// The address, if the CPU knows it: EL2's map is the identity.
    pub pa: Option<Pa>,
}

impl Trapped {
    fn result(&self) -> Result<(), Poisoned> {
        /// ESR_ELx.FnV: FAR is not valid.
        const FNV: u64 = 1 << 10;
        match self.esr {
            0 => Ok(()),
            esr => Err(Poisoned {
                pa: (esr & FNV == 0).then(|| Pa::new(self.far)),
            }),
        }
    }
}

/// Copies as much of `from` as `to` has room for.
///
/// # Errors
///
/// If either is poison. What `to` then holds is unspecified.
pub fn copy(to: &mut [u8], from: &[u8]) -> Result<(), Poisoned> {
    let size = to.len().min(from.len());
    // SAFETY: both are valid for `size` bytes and do not overlap; an abort is caught.
    unsafe { trapped_copy(to.as_mut_ptr(), from.as_ptr(), size) }.result()
}

/// Zeroes `at`.
///
/// # Errors
///
/// If it is poison.
pub fn zero(at: &mut [u8]) -> Result<(), Poisoned> {
    // SAFETY: valid for its length; an abort is caught.
    unsafe { trapped_zero(at.as_mut_ptr(), at.len()) }.result()
}

/// Copies to or from memory that is shared with firmware, where Rust has no object.
///
/// # Errors
///
/// If it is poison.
///
/// # Safety
///
/// Both must be mapped for `size` bytes and not overlap, and `to` may be written.
pub unsafe fn copy_raw(to: *mut u8, from: *const u8, size: usize) -> Result<(), Poisoned> {
    // SAFETY: as the caller says; an abort is caught.
    unsafe { trapped_copy(to, from, size) }.result()
}

/// Reads a word in one access.
///
/// # Errors
///
/// If it is poison.
///
/// # Safety
///
/// It must be mapped, and aligned.
pub unsafe fn read_u64(from: *const u64) -> Result<u64, Poisoned> {
    let mut value = 0;
    // SAFETY: as the caller says; an abort is caught.
    unsafe { trapped_read(from, &raw mut value) }.result()?;
    Ok(value)
}

/// Writes a word in one access.
///
/// # Errors
///
/// If it is poison.
///
/// # Safety
///
/// It must be mapped, aligned, and free to be written.
pub unsafe fn write_u64(to: *mut u64, value: u64) -> Result<(), Poisoned> {
    // SAFETY: as the caller says; an abort is caught.
    unsafe { trapped_write(to, value) }.result()
}

/// Cleans and invalidates the lines of `line` bytes from `start`, a multiple of that, to `end`.
///
/// # Errors
///
/// If it is poison.
pub fn clean(start: u64, end: u64, line: u64) -> Result<(), Poisoned> {
    // SAFETY: contents are kept; an abort is caught. A fault of another kind, where nothing is mapped,
    // is reported like that of any access.
    unsafe { trapped_clean(start, end, line) }.result()
}

unsafe extern "C" {
    static at_s1e1r_instruction: u8;
    static at_s1e1r_landing: u8;
    static at_s1_start: u8;
    static at_s1_end: u8;
    static trapped_copy_start: u8;
    static trapped_copy_end: u8;
    static trapped_zero_start: u8;
    static trapped_zero_end: u8;
    static trapped_read_start: u8;
    static trapped_read_end: u8;
    static trapped_write_start: u8;
    static trapped_write_end: u8;
    static trapped_clean_start: u8;
    static trapped_clean_end: u8;
}

/// Where to go on after a synchronous external abort at `pc`, if that was allowed.
pub fn landing(pc: u64) -> Option<u64> {
    if let Some(landing) = super::page_slot::landing(pc) {
        return Some(landing);
    }
    let address = |label: *const u8| label.addr() as u64;
    let asked = address(&raw const at_s1_start)..address(&raw const at_s1_end);
    if pc == address(&raw const at_s1e1r_instruction) || asked.contains(&pc) {
        return Some(address(&raw const at_s1e1r_landing));
    }
    let trapped = [
        (&raw const trapped_copy_start, &raw const trapped_copy_end),
        (&raw const trapped_zero_start, &raw const trapped_zero_end),
        (&raw const trapped_read_start, &raw const trapped_read_end),
        (&raw const trapped_write_start, &raw const trapped_write_end),
        (&raw const trapped_clean_start, &raw const trapped_clean_end),
    ];
    let within = |(start, end)| (address(start)..address(end)).contains(&pc);
    let landing = trapped_landing as *const () as u64;
    trapped.into_iter().any(within).then_some(landing)
}
