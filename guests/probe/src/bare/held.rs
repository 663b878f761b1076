//! Vector registers that are held over a load: all of them, and with SVE all of each.
#![expect(
    unsafe_code,
    reason = "vector registers, which Rust does not use here, and their control registers"
)]

use super::access::fixup;
use super::forms;
use super::target::Va;
use aarch64_cpu::registers::{ID_AA64PFR0_EL1, Readable};
use cordon_probe::pattern;
use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// V0 to V31, or Z0 to Z31.
const REGISTERS: usize = 32;

/// Words of the longest register that there can be, of 2048 bits.
const LONGEST: usize = 32;

/// One register after the other.
type Buffer = [AtomicU64; REGISTERS * LONGEST];

/// What is loaded before, and what was found afterwards. Commands are obeyed by one vCPU.
static BEFORE: Buffer = [const { AtomicU64::new(0) }; REGISTERS * LONGEST];
static AFTER: Buffer = [const { AtomicU64::new(0) }; REGISTERS * LONGEST];

/// How a load went while the registers were held.
pub(super) struct Held {
    /// Bytes of each register.
    pub(super) bytes: u64,
    /// Registers that were others afterwards.
    pub(super) changed: usize,
    /// The load aborted.
    pub(super) aborted: bool,
}

/// Fills all vector registers, loads 64 bits from `at`, and looks at the registers again.
pub(super) fn over_a_load(at: Va) -> Held {
    forms::enable_vectors();
    let sve = has_sve();
    let bytes = if sve { enable_sve() } else { 16 };
    let each = bytes as usize / 8;
    for (word, number) in BEFORE.iter().zip(1..) {
        word.store(pattern::value(number), Relaxed);
    }
    AFTER.iter().for_each(|word| word.store(0, Relaxed));
    let hold = if sve { raw_hold_z } else { raw_hold_v };
    // SAFETY: a `Va` is no memory that Rust knows of, and the load may abort; both buffers have room for 32 of
    // the longest registers and are made of atomics; nothing in this guest has anything in a vector register.
    let aborted = unsafe { hold(at.get(), BEFORE.as_ptr(), AFTER.as_ptr()) } != 0;
    let registers = BEFORE.chunks(each).zip(AFTER.chunks(each)).take(REGISTERS);
    let same = |before: &[AtomicU64], after: &[AtomicU64]| {
        let mut words = before.iter().zip(after);
        words.all(|(before, after)| before.load(Relaxed) == after.load(Relaxed))
    };
    Held {
        bytes,
        changed: registers
            .filter(|(before, after)| !same(before, after))
            .count(),
        aborted,
    }
}

fn has_sve() -> bool {
    ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::SVE) != 0
}

/// From now on this vCPU may use SVE's registers (CPACR_EL1.ZEN beside FPEN), as long as they can be
/// (ZCR_EL1.LEN). The bytes of each. SVE must be there.
fn enable_sve() -> u64 {
    let bytes;
    // SAFETY: the guest's own control registers.
    unsafe {
        asm!(
            ".arch_extension sve",
            "msr cpacr_el1, {enable}",
            "isb",
            "msr s3_0_c1_c2_0, {longest}",
            "isb",
            "rdvl {bytes}, #1",
            ".arch_extension nosve",
            enable = in(reg) 0b11_u64 << 20 | 0b11 << 16,
            longest = in(reg) 0xf_u64,
            bytes = out(reg) bytes,
            options(nostack, preserves_flags)
        );
    }
    bytes
}

/// True, as a number, if the load from `at` aborted.
#[unsafe(naked)]
unsafe extern "C" fn raw_hold_v(at: u64, before: *const AtomicU64, after: *const AtomicU64) -> u64 {
    naked_asm!(
        ".arch_extension fp",
        ".arch_extension simd",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ldr q\\n, [x1], #16",
        ".endr",
        "1: ldr x0, [x0]",
        "mov x0, #0",
        "2:",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "str q\\n, [x2], #16",
        ".endr",
        "ret",
        "3: mov x0, #1",
        "b 2b",
        fixup!("1b", "3b"),
        ".arch_extension nosimd",
        ".arch_extension nofp",
    )
}

/// The same with SVE, which must be there.
#[unsafe(naked)]
unsafe extern "C" fn raw_hold_z(at: u64, before: *const AtomicU64, after: *const AtomicU64) -> u64 {
    naked_asm!(
        ".arch_extension sve",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "ldr z\\n, [x1, #\\n, mul vl]",
        ".endr",
        "1: ldr x0, [x0]",
        "mov x0, #0",
        "2:",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "str z\\n, [x2, #\\n, mul vl]",
        ".endr",
        "ret",
        "3: mov x0, #1",
        "b 2b",
        fixup!("1b", "3b"),
        ".arch_extension nosve",
    )
}
