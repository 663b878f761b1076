//! From the loader to `main`.
//!
//! The image begins with an arm64 Linux `Image` header (Linux, `booting.rst`) and may be loaded at
//! any 2 MiB boundary. vCPU 0 enters with the MMU off, x0 = device tree, and goes through these
//! steps; until the MMU is on it is alone, and uses neither locks nor read-modify-write atomics,
//! which need cacheable memory (Arm ARM B2.9.2).
//!
//! 1. Stale cache lines over data and `.bss` are dropped, `.bss` is cleared, relocations applied.
//! 2. At EL2, which is not what this guest is for: say so and power off.
//! 3. `early` maps the image and the device tree in tables within the image.
//! 4. The lines that a cache may have prefetched meanwhile are dropped again, the MMU goes on.
//! 5. `main` maps everything else.
//!
//! The other vCPUs come in by PSCI `CPU_ON` with their number in x0. They find the tables ready and
//! read no memory before their MMU is on.
#![expect(
    unsafe_code,
    reason = "the first instructions, and the device tree at a bare address"
)]

use super::{console, cpu, mmu, psci, smp};
use cordon_probe::PAGE_SIZE;
use cordon_probe::machine;
use cordon_probe::pages::Region;
use cordon_probe::paging::MAIR;
use core::arch::global_asm;
use fdt::Fdt;

/// Bytes of stack for each vCPU.
pub(super) const STACK_SIZE: u64 = 64 * 1024;

/// `TCR_EL1` without IPS: 48-bit addresses from TTBR0 alone (T0SZ, T1SZ, EPD1), 4 KiB granule,
/// walks through inner-shareable write-back memory (IRGN0, ORGN0, SH0).
const TCR: u64 = 16 | 1 << 8 | 1 << 10 | 0b11 << 12 | 16 << 16 | 1 << 23;

/// `SCTLR_EL1`: MMU (M), caches (C, I), stack alignment (SA, SA0); `wfi` and `wfe` not trapped from
/// EL0 (nTWI, nTWE); and the bits that are RES1 where their feature is missing (EOS, TSCXT, EIS,
/// SPAN, nTLSMD, LSMAOE).
const SCTLR: u64 = 0b1_1101
    | 1 << 11
    | 1 << 12
    | 1 << 16
    | 1 << 18
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 28
    | 1 << 29;

/// Relocation type: base + addend (ELF for AArch64, 5.7.15).
const R_AARCH64_RELATIVE: u64 = 0x403;

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
    "0: mrs x20, cntpct_el0",
    "mov x19, x0",
    "msr daifset, #0xf",
    "msr spsel, #1",
    "adrp x0, __data_start",
    "adrp x1, __image_end",
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
    "3: adrp x0, {stack}",
    "add x0, x0, :lo12:{stack}",
    "add sp, x0, {stack_size}",
    "mov x0, x19",
    "mrs x1, currentel",
    "cmp x1, #(1 << 2)",
    "b.ne {wrong_level}",
    "bl {early}",
    "adrp x0, __rodata_start",
    "adrp x1, __image_end",
    "bl drop_cache_lines",
    "bl enable_mmu",
    "mov x0, #0",
    "bl {init_cpu}",
    "mov x0, x19",
    "mov x1, x20",
    "b {main}",
    // Invalidates [x0, x1) to the point of coherency, by the smallest line of this machine.
    "drop_cache_lines:",
    "dsb sy",
    "mrs x2, ctr_el0",
    "ubfx x2, x2, #16, #4",
    "mov x3, #4",
    "lsl x3, x3, x2",
    "4: dc ivac, x0",
    "add x0, x0, x3",
    "cmp x0, x1",
    "b.lo 4b",
    "dsb sy",
    "ret",
    // Turns on this CPU's MMU and caches and sets its vectors. Uses no memory.
    "enable_mmu:",
    "adrp x1, vectors",
    "add x1, x1, :lo12:vectors",
    "msr vbar_el1, x1",
    "adrp x1, {root}",
    "add x1, x1, :lo12:{root}",
    "msr ttbr0_el1, x1",
    "mov x1, {mair}",
    "msr mair_el1, x1",
    // IPS: as many bits as there are, at most the 48 that descriptors hold.
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
    ".global secondary_start",
    "secondary_start:",
    "mov x19, x0",
    "msr daifset, #0xf",
    "msr spsel, #1",
    "bl enable_mmu",
    // vCPU n has the n-th stack; the first was vCPU 0's, which is in the image.
    "adrp x1, {stacks}",
    "ldr x1, [x1, :lo12:{stacks}]",
    "mov x2, {stack_size}",
    "madd x1, x19, x2, x1",
    "mov sp, x1",
    "mov x0, x19",
    "bl {init_cpu}",
    "mov x0, x19",
    "b {secondary}",
    ".ltorg",
    ".popsection",
    relative = const R_AARCH64_RELATIVE,
    stack = sym STACK,
    stack_size = const STACK_SIZE,
    wrong_level = sym wrong_level,
    early = sym mmu::map_image,
    init_cpu = sym init_cpu,
    main = sym super::main,
    root = sym mmu::ROOT,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    stacks = sym smp::STACKS,
    secondary = sym smp::secondary,
);

/// vCPU 0's stack.
#[repr(C, align(16))]
struct Stack(core::cell::UnsafeCell<[u8; STACK_SIZE as usize]>);

// SAFETY: only vCPU 0's stack pointer leads here.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(core::cell::UnsafeCell::new([0; STACK_SIZE as usize]));

// SAFETY: the label is defined above, and only its address is used.
unsafe extern "C" {
    safe static secondary_start: u8;
}

/// Where PSCI is to start the other vCPUs.
pub(super) fn secondary_entry() -> u64 {
    (&raw const secondary_start).addr() as u64
}

extern "C" fn init_cpu(id: u64) {
    cpu::init(id as usize);
}

/// The device tree at `address`, of which `mmu::map_image` has mapped the first part, and the pages
/// that it occupies.
pub(super) fn device_tree(address: u64) -> (Fdt<'static>, Region) {
    let pointer = core::ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the loader's contract is that x0 is the address of a device tree; its header is
    // mapped, and nobody writes to it. Word 1 of the header is its size (DTSpec 5.2).
    let size = unsafe { pointer.add(4).cast::<[u8; 4]>().read() };
    let first = address / PAGE_SIZE * PAGE_SIZE;
    let end = address + u64::from(u32::from_be_bytes(size));
    let range = Region {
        ipa: first,
        pages: (end - first).div_ceil(PAGE_SIZE),
    };
    mmu::map_rest_of_tree(range);
    // SAFETY: as above, and now all of it is mapped.
    match unsafe { Fdt::from_ptr(pointer) } {
        Ok(tree) => (tree, range),
        // Not a device tree: there is no UART to say so on.
        Err(_) => cpu::halt(),
    }
}

/// Entered at EL2 (or 3), MMU off: says so on the UART and powers off.
extern "C" fn wrong_level(tree: u64, current_el: u64) -> ! {
    let pointer = core::ptr::with_exposed_provenance::<u8>(tree as usize);
    // SAFETY: as in `device_tree`; with the MMU off everything is mapped.
    if let Ok(tree) = unsafe { Fdt::from_ptr(pointer) } {
        let level = current_el >> 2;
        if let Some(uart) = machine::uart(&tree) {
            console::print_unlocked(uart, format_args!("event=panic what=entered-at-el{level}"));
        }
        if let Some(conduit) = machine::conduit(&tree) {
            psci::off_by(conduit);
        }
    }
    cpu::halt()
}
