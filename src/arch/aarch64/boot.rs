//! The first instructions: from whatever a loader left to Rust code with the MMU on.
//!
//! Four doors lead here, and none of them promises more than Linux's `booting.rst` (section 4):
//! EL2, MMU off, the image at a 2 MiB-aligned address. The image's headers are in [`super::image_header`].
//!
//! - *image*: QEMU `-kernel`, U-Boot `booti`, the EL3 firmware. x0 is the PA of the DTB.
//! - *uefi*: [`super::efi`] was a UEFI application, has moved the image and switched the MMU off.
//! - *reset*: QEMU `-bios` without EL3. The image stands in flash at address 0, cannot be written
//!   and got no x0; it copies itself to RAM and finds the DTB at the start of RAM.
//! - *secondary*: a further CPU, started by PSCI CPU_ON with x0 = PA of a [`SecondaryBoot`].
//!
//! At another exception level Cordon can do nothing but say so: with the MMU off, the image relocated and
//! nothing else set up, it goes to [`super::elsewhere`].
//!
//! The boot table maps the gigabyte that holds the image, and nothing else. It lasts until
//! [`super::mmu`] has built the real one.
#![expect(unsafe_code, reason = "reset code has no Rust to stand on yet")]

use core::arch::naked_asm;

/// Stage-1 memory attributes of EL2 (`MAIR_EL2`): index 0 Device-nGnRE, 1 Normal write-back,
/// 2 Normal non-cacheable (Arm ARM D19.2.101).
pub const MAIR_EL2_VALUE: u64 = 0x44_ff_04;

/// `TCR_EL2` without PS: 39-bit VA (T0SZ 25), walks write-back inner-shareable, 4K granule, and
/// the RES1 bits 31 and 23 (Arm ARM D19.2.161, E2H = 0).
const TCR_EL2_BASE: u64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 31;

/// `SCTLR_EL2`: MMU, data and instruction caches, stack alignment check, and the bits that are
/// RES1 where their feature is missing (Arm ARM D19.2.137, E2H = 0).
const SCTLR_EL2_VALUE: u64 = 0x30c5_0830 | 1 | 1 << 2 | 1 << 3 | 1 << 12;

/// `HCR_EL2` while no guest runs: AArch64 below, no E2H, nothing routed.
const HCR_EL2_BOOT: u64 = 1 << 31;

/// `HCR_EL2.E2H`: with it, EL2's registers have another layout. Where it cannot be cleared
/// (FEAT_E2H0 missing) Cordon cannot run.
const HCR_E2H_BIT: u32 = 34;

/// A level-1 block of the boot table: valid, attribute index 1, inner-shareable, accessed, and
/// AP\[1\], which is RES1 where a regime has no EL0 (Arm ARM D8.4.1).
const BOOT_BLOCK: u64 = 1 | 1 << 2 | 1 << 6 | 3 << 8 | 1 << 10;

/// Entries of the boot table, a gigabyte each: all that 39 bits can address.
const BOOT_ENTRIES: usize = 512;

/// Where the *reset* door copies the image to, and where it looks for the DTB: QEMU `virt` puts
/// the DTB at the start of RAM and leaves it 2 MiB (`hw/arm/boot.c`).
const RESET_IMAGE_PA: u64 = 0x4020_0000;
const RESET_DTB_PA: u64 = 0x4000_0000;

/// `R_AARCH64_RELATIVE` (AAELF64 5.7.20): the only kind a static PIE has.
const R_AARCH64_RELATIVE: u64 = 1027;

/// What `x22` says of how Cordon was started, and `boot_main` is told.
pub mod door {
    /// By a loader, with x0 = DTB.
    pub const IMAGE: u64 = 0;
    /// Out of reset.
    pub const RESET: u64 = 1;
    /// By UEFI: x20 is the PA of a [`cordon::platform::efi::Handover`].
    pub const UEFI: u64 = 2;
}

/// What a secondary CPU needs before it can see anything through the MMU.
#[repr(C)]
pub struct SecondaryBoot {
    /// `TTBR0_EL2` of the finished EL2 map.
    pub ttbr: u64,
    /// Top of the CPU's stack.
    pub stack_top: u64,
    /// Passed to `secondary_main`.
    pub cpu: u64,
}

#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
pub(super) unsafe extern "C" fn primary_entry() -> ! {
    naked_asm!(
        "msr    daifset, #0xf",
        "mov    x20, x0",                       // DTB
        "adrp   x21, __image_start",            // where the image is
        "mov    x22, #{image}",
        "cbnz   x21, {in_ram}",
        // Address 0: flash, straight out of reset.
        "ldr    x20, ={reset_dtb}",
        "ldr    x21, ={reset_image}",
        "mov    x22, #{reset}",
        "mov    x0, #0",
        "mov    x1, x21",
        "ldr    x2, =__file_size",
    "1:  ldp    x3, x4, [x0], #16",
        "stp    x3, x4, [x1], #16",
        "subs   x2, x2, #16",
        "b.hi   1b",
        "dsb    sy",
        "ic     iallu",
        "dsb    sy",
        "isb",
        "adr    x0, {in_ram}",                  // its offset: the image was linked at 0
        "add    x0, x0, x21",
        "br     x0",
        in_ram = sym relocate_and_start,
        image = const door::IMAGE,
        reset = const door::RESET,
        reset_dtb = const RESET_DTB_PA,
        reset_image = const RESET_IMAGE_PA,
    )
}

/// x20 = DTB or what the door has in its place, x21 = image, x22 = door.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
pub(super) unsafe extern "C" fn relocate_and_start() -> ! {
    naked_asm!(
        // Whatever writes of a loader still wait in a cache must not land on top of these.
        "mov    x1, x21",
        "adrp   x3, __bss_end",
        "bl     {invalidate}",
        "bl     {relocate}",
        // .bss
        "adrp   x0, __bss_start",
        "adrp   x1, __bss_end",
    "3:  stp    xzr, xzr, [x0], #16",
        "cmp    x0, x1",
        "b.lo   3b",
        "mrs    x4, CurrentEL",
        "cmp    x4, #(2 << 2)",
        "b.ne   5f",
        // The boot table: the gigabytes of the image's first and last byte.
        "adrp   x0, {table}",
        "add    x0, x0, :lo12:{table}",
        "ldr    x4, ={block}",
        "mov    x1, x21",
        "adrp   x2, __image_end",
        "sub    x2, x2, #1",
    "4:  lsr    x3, x1, #30",
        "cmp    x3, #{entries}",
        "b.hs   {park}",                        // beyond what EL2's map can reach
        "lsl    x5, x3, #30",
        "orr    x5, x5, x4",
        "str    x5, [x0, x3, lsl #3]",
        "cmp    x1, x2",
        "mov    x1, x2",
        "b.ne   4b",
        // All of that was written past the caches: stale lines must not be found in them.
        "mov    x1, x21",
        "adrp   x3, __bss_end",
        "bl     {invalidate}",
        "adrp   x0, {table}",
        "add    x0, x0, :lo12:{table}",
        "bl     {enable_mmu}",
        "adrp   x0, __stacks_start",
        "ldr    x1, =__stack_slot_size",
        "add    sp, x0, x1",
        "mov    x29, #0",
        "mov    x30, #0",
        "mov    x0, x20",
        "mov    x1, x22",
        "b      {main}",
        // Not EL2.
    "5:  msr    spsel, #1",
        "adrp   x0, __stacks_start",
        "ldr    x1, =__stack_slot_size",
        "add    sp, x0, x1",
        "mov    x29, #0",
        "mov    x30, #0",
        "mov    x0, x20",
        "b      {elsewhere}",
        elsewhere = sym super::elsewhere::say_so,
        relocate = sym relocate,
        park = sym park,
        invalidate = sym invalidate_to_poc,
        table = sym BOOT_TABLE,
        block = const BOOT_BLOCK,
        entries = const BOOT_ENTRIES,
        enable_mmu = sym enable_mmu,
        main = sym crate::boot_main,
    )
}

/// Applies the relocations, whose addends are relative to 0, for an image at x21. Again, and elsewhere, it does
/// the same for there. Uses x0 to x4.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn relocate() {
    naked_asm!(
        "adrp   x0, __rela_start",
        "add    x0, x0, :lo12:__rela_start",
        "adrp   x1, __rela_end",
        "add    x1, x1, :lo12:__rela_end",
    "1:  cmp    x0, x1",
        "b.hs   2f",
        "ldp    x2, x3, [x0], #16",
        "ldr    x4, [x0], #8",
        "cmp    x3, #{relative}",
        "b.ne   {park}",
        "add    x4, x4, x21",
        "str    x4, [x21, x2]",
        "b      1b",
    "2:  ret",
        relative = const R_AARCH64_RELATIVE,
        park = sym park,
    )
}

/// Drops what the caches hold of x1 up to x3, and waits for the writes before it. Uses x1, x2, x4.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn invalidate_to_poc() {
    naked_asm!(
        "dsb    sy",
        // CTR_EL0.DminLine: log2 of the words in the smallest line.
        "mrs    x2, ctr_el0",
        "ubfx   x2, x2, #16, #4",
        "mov    x4, #4",
        "lsl    x2, x4, x2",
        "1:  dc     ivac, x1",
        "add    x1, x1, x2",
        "cmp    x1, x3",
        "b.lo   1b",
        "dsb    sy",
        "ret",
    )
}

/// Entry of a CPU started by PSCI CPU_ON. x0 = PA of its [`SecondaryBoot`].
///
/// # Safety
///
/// Only for PSCI to jump to: expects EL2, the MMU off, and a record that was cleaned to the point
/// of coherency.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
pub unsafe extern "C" fn secondary_entry() -> ! {
    naked_asm!(
        "msr    daifset, #0xf",
        "mrs    x4, CurrentEL",
        "cmp    x4, #(2 << 2)",
        "b.ne   {park}",
        "ldp    x6, x7, [x0]",
        "ldr    x8, [x0, #16]",
        "mov    x0, x6",
        "bl     {enable_mmu}",
        "mov    sp, x7",
        "mov    x29, #0",
        "mov    x30, #0",
        "mov    x0, x8",
        "b      {main}",
        park = sym park,
        enable_mmu = sym enable_mmu,
        main = sym crate::secondary_main,
    )
}

/// Turns on the MMU and the caches with the tables at x0, and puts what reset leaves UNKNOWN into
/// a known state: TPIDR_EL2 says that this CPU has no record yet, and no TLB entry, of whatever
/// VMID, is left over from before. Uses x1 and x2 only.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn enable_mmu() {
    naked_asm!(
        "msr    spsel, #1",
        "msr    tpidr_el2, xzr",
        "ldr    x1, ={hcr}",
        "msr    hcr_el2, x1",
        "isb",
        "mrs    x1, hcr_el2",
        "tbnz   x1, #{e2h}, {park}",
        "ldr    x1, ={mair}",
        "msr    mair_el2, x1",
        "ldr    x1, ={tcr}",
        // PS = min(PARange, 48 bits): the tables never reach further.
        "mrs    x2, id_aa64mmfr0_el1",
        "and    x2, x2, #0xf",
        "cmp    x2, #5",
        "b.ls   1f",
        "mov    x2, #5",
    "1:  orr    x1, x1, x2, lsl #16",
        "msr    tcr_el2, x1",
        "msr    ttbr0_el2, x0",
        "adrp   x1, {vectors}",
        "add    x1, x1, :lo12:{vectors}",
        "msr    vbar_el2, x1",
        "tlbi   alle2",
        "tlbi   alle1",
        "ic     iallu",
        "dsb    sy",
        "isb",
        "ldr    x1, ={sctlr}",
        "msr    sctlr_el2, x1",
        "isb",
        "ret",
        hcr = const HCR_EL2_BOOT,
        e2h = const HCR_E2H_BIT,
        park = sym park,
        mair = const MAIR_EL2_VALUE,
        tcr = const TCR_EL2_BASE,
        sctlr = const SCTLR_EL2_VALUE,
        vectors = sym super::vectors::vectors,
    )
}

/// Goes over from the table in use to the one at x0, which maps the caller at the same address.
///
/// The MMU is off in between: the two tables map the same addresses by blocks of different sizes,
/// which a TLB must never hold together (break-before-make, Arm ARM D8.16.1).
///
/// # Safety
///
/// The new table must map everything that runs or is referred to.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
pub unsafe extern "C" fn switch_table(root: u64) {
    naked_asm!(
        "dsb    ish", // the new table is complete
        "mrs    x1, sctlr_el2",
        "bic    x2, x1, #1",
        "msr    sctlr_el2, x2",
        "isb",
        "msr    ttbr0_el2, x0",
        "tlbi   alle2",
        "dsb    nsh",
        "isb",
        "msr    sctlr_el2, x1",
        "isb",
        "ret",
    )
}

/// Nothing can be said or done: no console is known yet.
#[unsafe(naked)]
#[unsafe(link_section = ".text.boot")]
unsafe extern "C" fn park() -> ! {
    naked_asm!("1: wfi", "b 1b")
}

/// The boot table, written by the reset code alone.
#[repr(C, align(4096))]
struct BootTable(core::cell::UnsafeCell<[u64; BOOT_ENTRIES]>);

// SAFETY: written before any Rust code runs and read by the table walker alone.
unsafe impl Sync for BootTable {}

static BOOT_TABLE: BootTable = BootTable(core::cell::UnsafeCell::new([0; BOOT_ENTRIES]));
