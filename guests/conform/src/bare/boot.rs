//! From the loader, and from PSCI, to Rust.
//!
//! The image begins with an arm64 Linux `Image` header (Linux, `booting.rst`). There is one constant
//! translation table with blocks of 1 GiB, for RAM that begins at 1 GiB:
//!
//! | virtual address | leads to | |
//! |---|---|---|
//! | 0 | 0 | devices |
//! | 1 GiB | 1 GiB | RAM, for EL1 to read, write and execute |
//! | 2 GiB ([`NOWHERE`]) | 2 GiB | the same attributes, but nothing is there |
//! | 3 GiB ([`EL0_ALIAS`]) | 1 GiB | RAM, for EL0 to read, write and execute |
//! | 4 GiB ([`EL0_NOWHERE`]) | 2 GiB | the same for EL0, but nothing is there |
#![expect(unsafe_code, reason = "the first instructions")]

use super::cpu::MAX_CPUS;
use core::arch::global_asm;
use core::cell::UnsafeCell;

/// An address behind which there is no memory, in a mapping that allows EL1 everything.
pub(super) const NOWHERE: u64 = 2 << 30;
/// What EL0 adds to an address in RAM.
pub(super) const EL0_ALIAS: u64 = 2 << 30;
/// As [`NOWHERE`], for EL0.
pub(super) const EL0_NOWHERE: u64 = 4 << 30;

/// Bytes of stack for each CPU.
const STACK_SIZE: usize = 64 * 1024;

/// Attribute 0 is Device-nGnRnE, 1 is write-back memory.
const MAIR: u64 = 0xff << 8;
/// `TCR_EL1` without IPS: 39-bit addresses from TTBR0 alone (T0SZ, T1SZ, EPD1), 4 KiB granule, walks
/// through inner-shareable write-back memory (IRGN0, ORGN0, SH0).
const TCR: u64 = 25 | 1 << 8 | 1 << 10 | 0b11 << 12 | 25 << 16 | 1 << 23;
/// `SCTLR_EL1`: MMU (M), caches (C, I), stack alignment (SA, SA0); cache maintenance (UCI), `DC ZVA`
/// (DZE), `CTR_EL0` (UCT), `wfi` and `wfe` not trapped from EL0 (nTWI, nTWE); and the bits that are RES1
/// where their feature is missing (EOS, TSCXT, EIS, SPAN, nTLSMD, LSMAOE).
const SCTLR: u64 = 0b1_1101
    | 1 << 11
    | 1 << 12
    | 1 << 14
    | 1 << 15
    | 1 << 16
    | 1 << 18
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 26
    | 1 << 28
    | 1 << 29;
/// Relocation type: base + addend (ELF for AArch64, 5.7.15).
const R_AARCH64_RELATIVE: u64 = 0x403;

/// Block descriptors (Arm ARM D8.3.1).
const BLOCK: u64 = 1 | 1 << 10;
const MEMORY: u64 = BLOCK | 1 << 2 | 0b11 << 8;
const EL0: u64 = 1 << 6;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

#[repr(C, align(4096))]
struct Table([u64; 512]);

static ROOT: Table = {
    let mut table = [0; 512];
    table[0] = BLOCK | PXN | UXN;
    table[1] = 1 << 30 | MEMORY | UXN;
    table[2] = 2 << 30 | MEMORY | UXN;
    table[3] = 1 << 30 | MEMORY | EL0 | PXN;
    table[4] = 2 << 30 | MEMORY | EL0 | PXN;
    Table(table)
};

/// Each CPU's stack, by number.
#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; MAX_CPUS]>);

// SAFETY: each is used by one CPU's stack pointer and by nobody else.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; MAX_CPUS]));

global_asm!(
    ".pushsection .head, \"ax\"",
    ".global _start",
    "_start:",
    "b 0f",
    ".long 0",
    ".quad 0",                    // text_offset
    ".quad __image_end - _start", // image_size
    ".quad 0xa",                  // flags: little-endian, 4 KiB pages, anywhere in memory
    ".quad 0, 0, 0",
    ".ascii \"ARM\\x64\"",
    ".long 0",
    "0: mov x19, x0",
    "msr daifset, #0xf",
    "msr spsel, #1",
    // What is written while the cache is off must not be hidden by old lines.
    "bl drop_cache_lines",
    "adrp x0, __bss_start",
    "adrp x1, __image_end",
    "1: stp xzr, xzr, [x0], #16",
    "cmp x0, x1",
    "b.lo 1b",
    "adrp x0, _start", // linked at 0, so this is the base
    "adrp x1, __rela_start",
    "add x1, x1, :lo12:__rela_start",
    "adrp x2, __rela_end",
    "add x2, x2, :lo12:__rela_end",
    "2: cmp x1, x2",
    "b.hs 3f",
    "ldp x3, x4, [x1], #16",
    "ldr x5, [x1], #8",
    "cmp w4, {relative}",
    "b.ne 2b",
    "add x5, x5, x0",
    "str x5, [x0, x3]",
    "b 2b",
    "3: bl drop_cache_lines",
    "mov x0, xzr",
    "bl enable_mmu",
    "mov x0, x19",
    "b {main}",
    // Invalidates the image's lines to the point of coherency.
    "drop_cache_lines:",
    "dsb sy",
    "adrp x0, _start",
    "adrp x1, __image_end",
    "mrs x2, ctr_el0",
    "ubfx x2, x2, #16, #4",
    "mov x3, #4",
    "lsl x3, x3, x2",
    "4: dc civac, x0",
    "add x0, x0, x3",
    "cmp x0, x1",
    "b.lo 4b",
    "dsb sy",
    "ret",
    // On CPU number x0: vectors, stack, MMU and caches. Uses no memory.
    "enable_mmu:",
    "msr tpidr_el1, x0",
    "mov x1, {stack_size}",
    "madd x1, x0, x1, x1",
    "adrp x2, {stacks}",
    "add x2, x2, :lo12:{stacks}",
    "add sp, x2, x1",
    "adrp x1, vectors",
    "add x1, x1, :lo12:vectors",
    "msr vbar_el1, x1",
    "adrp x1, {root}",
    "add x1, x1, :lo12:{root}",
    "msr ttbr0_el1, x1",
    "mov x1, {mair}",
    "msr mair_el1, x1",
    "mrs x2, id_aa64mmfr0_el1",
    "and x2, x2, #0xf",
    "mov x3, #5",
    "cmp x2, x3",
    "csel x2, x2, x3, lo",
    "ldr x1, ={tcr}",
    "orr x1, x1, x2, lsl #32",
    "msr tcr_el1, x1",
    "tlbi vmalle1",
    "ic iallu",
    "dsb nsh",
    "isb",
    "ldr x1, ={sctlr}",
    "msr sctlr_el1, x1",
    "isb",
    "ret",
    // CPU_ON leads here, with the CPU's number and what else is wanted of the context in x0. What the
    // CPU is like at its first instruction goes to `secondary`.
    ".global secondary_start",
    "secondary_start:",
    "mrs x20, sctlr_el1",
    "mrs x21, daif",
    "mrs x22, currentel",
    "mrs x23, spsel",
    "mov x19, x0",
    "msr daifset, #0xf",
    "msr spsel, #1",
    "and x0, x19, #0xff",
    "bl enable_mmu",
    "mov x0, x19",
    "mov x1, x20",
    "mov x2, x21",
    "orr x3, x22, x23",
    "b {secondary}",
    ".ltorg",
    ".popsection",
    relative = const R_AARCH64_RELATIVE,
    stack_size = const STACK_SIZE,
    stacks = sym STACKS,
    root = sym ROOT,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    main = sym super::main,
    secondary = sym super::cpu::secondary,
);

// SAFETY: the label is defined above, and only its address is used.
unsafe extern "C" {
    safe static secondary_start: u8;
}

/// Where PSCI is to start the other CPUs.
pub(super) fn secondary_entry() -> u64 {
    (&raw const secondary_start).addr() as u64
}
