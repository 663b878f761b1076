//! From the reset vector to Rust, the exception vectors, and the ways out to EL2.
//!
//! All CPUs start at `reset` at once. CPU 0 copies .data, clears .bss and goes on. The others wait at
//! a gate until CPU 0 has set up the distributor: the gate is `GICD_CTLR.EnableGrp0` and not a flag
//! in RAM, because a reset clears the register while it leaves RAM, with a flag that a previous boot
//! has set, as it was.
//!
//! **MMU.** EL3 runs with its MMU and caches on. The locks need it: exclusive accesses are only
//! guaranteed for Normal cacheable memory (Arm ARM B2.17.5). So does sharing RAM with the normal
//! world: caches tag a line with its physical address space, and with the MMU off EL3's accesses
//! are Root, so they would not be coherent with Non-secure ones to the same location (Arm ARM
//! D9.1). The tables are constants in flash: flash, secure RAM and devices as Root, one GiB of
//! RAM as Non-secure Normal memory, one to one, everything else unmapped.
//!
//! **Stacks.** `TPIDR_EL3` holds the top of the CPU's stack. SP_EL3 is at the top whenever the normal
//! world runs, so an exception from there starts with an empty stack.
#![expect(
    unsafe_code,
    reason = "the reset path, vectors and exception returns are assembly"
)]

use core::arch::global_asm;

use cordon_firmware::layout::{
    DEVICES_BASE, DEVICES_SIZE, FLASH_BASE, FLASH_SIZE, GICD_BASE, MAX_CPUS, RAM_WINDOW,
    SECURE_RAM_BASE, SECURE_RAM_SIZE,
};

/// Bytes of stack of each CPU. The deepest path, a consumed error that is recorded, needs less than
/// 3 KiB.
const STACK_SIZE: usize = 8192;

/// The general-purpose registers of the interrupted state, as the vectors save them.
#[repr(C, align(16))]
pub(crate) struct Frame {
    /// x0 to x30.
    pub(crate) x: [u64; 31],
    reserved: u64,
}
const FRAME_SIZE: usize = size_of::<Frame>();
const _: () = assert!(FRAME_SIZE == 256 && core::mem::offset_of!(Frame, x) == 0);

/// `SCTLR_EL3` with MMU and caches off: the bits that are RES1 where their feature is absent.
const SCTLR_OFF: u64 = 0x30c5_0830;
/// M, C, SA, I and WXN.
const SCTLR_ON: u64 = SCTLR_OFF | 1 << 0 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 19;
/// Attribute 0: Normal, write-back. Attribute 1: Device-nGnRE.
const MAIR: u64 = 0x04ff;
/// 39 bits of VA, 4 KiB granule, walks inner shareable and write-back, 44 bits of PA.
const TCR: u64 = 1 << 31 | 1 << 23 | 0b100 << 16 | 0b11 << 12 | 0b01 << 10 | 0b01 << 8 | 25;

/// A block: valid, accessed, inner shareable, AP[1] = 1 as in any regime of a single level.
const BLOCK: u64 = 1 << 10 | 0b11 << 8 | 1 << 6 | 0b01;
const READ_ONLY: u64 = 1 << 7;
const EXECUTE_NEVER: u64 = 1 << 54;
const DEVICE: u64 = 1 << 2;
/// Output address space, bits NSE and NS: Root.
const ROOT: u64 = 1 << 11;
/// Output address space: Non-secure.
const NON_SECURE: u64 = 1 << 5;

const FLASH_BLOCK: u64 = BLOCK | READ_ONLY | ROOT;
const DEVICE_BLOCK: u64 = BLOCK | DEVICE | EXECUTE_NEVER | ROOT;
const SECURE_RAM_BLOCK: u64 = BLOCK | EXECUTE_NEVER | ROOT;
const RAM_BLOCK: u64 = BLOCK | EXECUTE_NEVER | NON_SECURE;

const GIB: u64 = 1 << 30;
const MIB_2: u64 = 2 << 20;
const _: () = assert!(RAM_WINDOW.start().get() == GIB && RAM_WINDOW.size() == GIB);
const _: () = assert!(FLASH_BASE == 0 && FLASH_BASE + FLASH_SIZE <= DEVICES_BASE);
const _: () = assert!(DEVICES_BASE + DEVICES_SIZE <= SECURE_RAM_BASE);

global_asm!(
    r#"
    .section .rodata.tables, "a"
    .balign 4096
level1_table:
    .quad   level2_table + 3
    .quad   {RAM} | {RAM_BLOCK}
    .fill   510, 8, 0

level2_table:
    .macro blocks from, size, attributes
    .set    block, \from
    .rept   (\size) / {MIB_2}
    .quad   block | (\attributes)
    .set    block, block + {MIB_2}
    .endr
    .endm
    .macro hole from, to
    .fill   ((\to) - (\from)) / {MIB_2}, 8, 0
    .endm
    blocks  {FLASH}, {FLASH_SIZE}, {FLASH_BLOCK}
    hole    {FLASH} + {FLASH_SIZE}, {DEVICES}
    blocks  {DEVICES}, {DEVICES_SIZE}, {DEVICE_BLOCK}
    hole    {DEVICES} + {DEVICES_SIZE}, {SECURE_RAM}
    blocks  {SECURE_RAM}, {SECURE_RAM_SIZE}, {SECURE_RAM_BLOCK}
    hole    {SECURE_RAM} + {SECURE_RAM_SIZE}, {GIB}
    "#,
    RAM = const RAM_WINDOW.start().get(),
    RAM_BLOCK = const RAM_BLOCK,
    FLASH = const FLASH_BASE,
    FLASH_SIZE = const FLASH_SIZE,
    FLASH_BLOCK = const FLASH_BLOCK,
    DEVICES = const DEVICES_BASE,
    DEVICES_SIZE = const DEVICES_SIZE,
    DEVICE_BLOCK = const DEVICE_BLOCK,
    SECURE_RAM = const SECURE_RAM_BASE,
    SECURE_RAM_SIZE = const SECURE_RAM_SIZE,
    SECURE_RAM_BLOCK = const SECURE_RAM_BLOCK,
    GIB = const GIB,
    MIB_2 = const MIB_2,
);

global_asm!(
    r#"
    .section .bss.stacks, "aw", @nobits
    .balign 16
stacks:
    .space  {MAX_CPUS} * {STACK_SIZE}

    .section .text.reset, "ax"
    .global reset
reset:
    msr     daifset, #0xf
    ldr     x0, ={SCTLR_OFF}
    msr     sctlr_el3, x0
    isb
    ldr     x0, =vectors
    msr     vbar_el3, x0

    // x19: the CPU's number, as in layout::cpu_index. A CPU that cannot be counted is left alone.
    mrs     x1, mpidr_el1
    ubfx    x2, x1, #8, #8
    and     x19, x1, #0xff
    cmp     x19, #16
    b.hs    park
    add     x19, x19, x2, lsl #4
    cmp     x19, #{MAX_CPUS}
    b.hs    park
    ubfx    x2, x1, #16, #8
    cbnz    x2, park
    ubfx    x2, x1, #32, #8
    cbnz    x2, park
    cbz     x19, 2f

    // The gate.
    ldr     x0, ={GICD}
1:  ldr     w1, [x0]
    tbnz    w1, #0, enable_mmu
    wfe
    b       1b

2:  ldr     x0, =data_start
    ldr     x1, =data_end
    ldr     x2, =data_load
3:  cmp     x0, x1
    b.hs    4f
    ldp     x3, x4, [x2], #16
    stp     x3, x4, [x0], #16
    b       3b
4:  ldr     x0, =bss_start
    ldr     x1, =bss_end
5:  cmp     x0, x1
    b.hs    enable_mmu
    stp     xzr, xzr, [x0], #16
    b       5b

enable_mmu:
    ldr     x0, ={MAIR}
    msr     mair_el3, x0
    ldr     x0, ={TCR}
    msr     tcr_el3, x0
    ldr     x0, =level1_table
    msr     ttbr0_el3, x0
    tlbi    alle3
    ic      iallu
    dsb     sy
    isb
    ldr     x0, ={SCTLR_ON}
    msr     sctlr_el3, x0
    isb

    ldr     x0, =stacks
    mov     x1, #{STACK_SIZE}
    add     x2, x19, #1
    madd    x0, x1, x2, x0
    msr     tpidr_el3, x0
    mov     sp, x0
    mov     x0, x19
    cbz     x19, 6f
    bl      {secondary}
6:  bl      {primary}

park:
    wfi
    b       park
    "#,
    MAX_CPUS = const MAX_CPUS,
    STACK_SIZE = const STACK_SIZE,
    SCTLR_OFF = const SCTLR_OFF,
    SCTLR_ON = const SCTLR_ON,
    GICD = const GICD_BASE,
    MAIR = const MAIR,
    TCR = const TCR,
    primary = sym crate::primary,
    secondary = sym crate::secondary,
);

global_asm!(
    r#"
    .macro  own number
    .balign 0x80
    mov     x0, #\number
    b       own_exception
    .endm

    // From a lower level: 19 instructions, a vector has room for 32.
    .macro  lower handler
    .balign 0x80
    sub     sp, sp, #{FRAME_SIZE}
    stp     x0, x1, [sp, #0x00]
    stp     x2, x3, [sp, #0x10]
    stp     x4, x5, [sp, #0x20]
    stp     x6, x7, [sp, #0x30]
    stp     x8, x9, [sp, #0x40]
    stp     x10, x11, [sp, #0x50]
    stp     x12, x13, [sp, #0x60]
    stp     x14, x15, [sp, #0x70]
    stp     x16, x17, [sp, #0x80]
    stp     x18, x19, [sp, #0x90]
    stp     x20, x21, [sp, #0xa0]
    stp     x22, x23, [sp, #0xb0]
    stp     x24, x25, [sp, #0xc0]
    stp     x26, x27, [sp, #0xd0]
    stp     x28, x29, [sp, #0xe0]
    str     x30, [sp, #0xf0]
    mov     x0, sp
    bl      \handler
    b       return_to_lower
    .endm

    .section .text.vectors, "ax"
    .balign 0x800
vectors:
    own     0
    own     1
    own     2
    own     3
    own     4
    own     5
    own     6
    own     7
    .rept   2
    lower   {synchronous}
    lower   {interrupt}
    lower   {interrupt}
    lower   {serror}
    .endr
    .balign 0x80

return_to_lower:
    ldp     x0, x1, [sp, #0x00]
    ldp     x2, x3, [sp, #0x10]
    ldp     x4, x5, [sp, #0x20]
    ldp     x6, x7, [sp, #0x30]
    ldp     x8, x9, [sp, #0x40]
    ldp     x10, x11, [sp, #0x50]
    ldp     x12, x13, [sp, #0x60]
    ldp     x14, x15, [sp, #0x70]
    ldp     x16, x17, [sp, #0x80]
    ldp     x18, x19, [sp, #0x90]
    ldp     x20, x21, [sp, #0xa0]
    ldp     x22, x23, [sp, #0xb0]
    ldp     x24, x25, [sp, #0xc0]
    ldp     x26, x27, [sp, #0xd0]
    ldp     x28, x29, [sp, #0xe0]
    ldr     x30, [sp, #0xf0]
    add     sp, sp, #{FRAME_SIZE}
    // A return is an event to the CPU (Arm ARM D1.7.1), which QEMU 11.1 forgets.
    sevl
    eret

    // The firmware's own fault. What led to it is on the stack, which may be what is wrong:
    // report from an empty one.
own_exception:
    mrs     x1, tpidr_el3
    mov     sp, x1
    b       {own}

    .global enter_normal_world
enter_normal_world:
    mrs     x1, tpidr_el3
    mov     sp, x1
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
    eret

    .global return_to_pen
return_to_pen:
    mrs     x1, tpidr_el3
    mov     sp, x1
    b       {pen}
    "#,
    FRAME_SIZE = const FRAME_SIZE,
    synchronous = sym crate::traps::synchronous,
    interrupt = sym crate::traps::interrupt,
    serror = sym crate::traps::serror,
    own = sym crate::traps::own,
    pen = sym crate::pen,
);

unsafe extern "C" {
    /// Returns from EL3 to what `ELR_EL3` and `SPSR_EL3` say, with `context` in x0, zeros in the
    /// other registers, and an empty stack for the next exception.
    safe fn enter_normal_world(context: u64) -> !;

    /// Goes to [`crate::pen`] with an empty stack.
    safe fn return_to_pen(cpu: usize) -> !;
}

/// Leaves EL3 for the first time on this CPU since it was off.
pub(crate) fn enter(context: u64) -> ! {
    enter_normal_world(context)
}

/// Leaves whatever the CPU does for the holding pen.
pub(crate) fn abandon_for_pen(cpu: usize) -> ! {
    return_to_pen(cpu)
}
