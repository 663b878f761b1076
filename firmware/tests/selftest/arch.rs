//! The parts of the test image that are assembly: entry, vectors, and accesses that may fault.
//!
//! An access that may fault is a small routine that leaves the address after it in this CPU's
//! [`Caught`]; every exception writes down what it was and goes on there.
#![expect(
    unsafe_code,
    reason = "entry, vectors and guarded accesses are assembly"
)]

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

/// CPUs that the image can use.
pub(crate) const MAX_CPUS: usize = 16;
const STACK_SIZE: usize = 16384;

/// What the last exception on a CPU was. `TPIDR_EL2` points to it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Caught {
    /// Offset of the vector, all ones if there was no exception.
    pub(crate) vector: u64,
    /// `ESR_EL2`.
    pub(crate) esr: u64,
    /// `FAR_EL2`.
    pub(crate) far: u64,
    /// `ELR_EL2`.
    pub(crate) elr: u64,
    /// `SPSR_EL2`.
    pub(crate) spsr: u64,
    resume: u64,
    /// PSTATE of the handler: DAIF and PAN as the vector found them.
    pub(crate) daif: u64,
    /// x0 as the vector found it.
    pub(crate) x0: u64,
}

/// [`Caught::vector`] when nothing was caught.
pub(crate) const NOTHING: u64 = u64::MAX;

global_asm!(
    r#"
    .section .bss.stacks, "aw", @nobits
    .balign 16
stacks:
    .space  {MAX_CPUS} * {STACK_SIZE}
    .balign 64
caught:
    .space  {MAX_CPUS} * 64

    .section .text.header, "ax"
image_header:
    b       start
    .long   0
    .quad   0
    .quad   image_size
    .quad   0b1010
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

start:
    mov     x20, x0
    ldr     x0, =bss_start
    ldr     x1, =bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:  mov     x0, #0
    bl      set_up
    mov     x0, x20
    bl      {main}

    // A CPU that was switched on: x0 is its number.
    .global secondary_start
secondary_start:
    mov     x20, x0
    bl      set_up
    mov     x0, x20
    bl      {secondary}

set_up:
    ldr     x1, =vectors
    msr     vbar_el2, x1
    ldr     x1, =stacks
    mov     x2, #{STACK_SIZE}
    add     x3, x0, #1
    madd    x1, x2, x3, x1
    mov     sp, x1
    ldr     x1, =caught
    add     x1, x1, x0, lsl #6
    msr     tpidr_el2, x1
    isb
    ret

    .section .text.vectors, "ax"
    .macro  vector number
    .balign 0x80
    mrs     x14, tpidr_el2
    str     x0, [x14, #56]
    mov     x9, #\number * 0x80
    b       catch
    .endm
    .balign 0x800
vectors:
    .set    n, 0
    .rept   16
    vector  n
    .set    n, n + 1
    .endr
catch:
    mrs     x10, esr_el2
    mrs     x11, far_el2
    mrs     x12, elr_el2
    mrs     x13, spsr_el2
    stp     x9, x10, [x14]
    stp     x11, x12, [x14, #16]
    str     x13, [x14, #32]
    mrs     x10, daif
    str     x10, [x14, #48]
    ldr     x15, [x14, #40]
    msr     elr_el2, x15
    mov     x15, #0x3c9
    msr     spsr_el2, x15
    eret

    .macro  guarded name, instruction:vararg
    .global \name
\name:
    mrs     x14, tpidr_el2
    adr     x15, 1f
    str     x15, [x14, #40]
    mov     x15, #-1
    str     x15, [x14]
    dsb     sy
    \instruction
    dsb     sy
1:  ret
    .endm
    guarded guarded_load, ldr x0, [x0]
    guarded guarded_store, str x1, [x0]

    // Unmasks IRQs only when the place to go on is known: one may be pending already.
    .global guarded_wfi
guarded_wfi:
    mrs     x14, tpidr_el2
    adr     x15, 1f
    str     x15, [x14, #40]
    mov     x15, #-1
    str     x15, [x14]
    dsb     sy
    msr     daifclr, #2
    wfi
    isb
1:  msr     daifset, #2
    ret

    .global guarded_call
guarded_call:
    stp     x29, x30, [sp, #-16]!
    mrs     x14, tpidr_el2
    adr     x15, 1f
    str     x15, [x14, #40]
    mov     x15, #-1
    str     x15, [x14]
    ic      iallu
    dsb     sy
    isb
    blr     x0
1:  ldp     x29, x30, [sp], #16
    ret

    // x0: ELR, x1: SPSR, x2: the guest's x0.
    .global run_guest
run_guest:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mrs     x14, tpidr_el2
    adr     x15, 1f
    str     x15, [x14, #40]
    mov     x15, #-1
    str     x15, [x14]
    msr     elr_el2, x0
    msr     spsr_el2, x1
    mov     x0, x2
    dsb     sy
    isb
    eret
1:  ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret

    .global guest_load
guest_load:
    ldr     x0, [x0]
    hvc     #0
    b       .

    .global return_7
return_7:
    mov     x0, #7
    ret
    "#,
    MAX_CPUS = const MAX_CPUS,
    STACK_SIZE = const STACK_SIZE,
    main = sym crate::image::main,
    secondary = sym crate::image::secondary,
);

unsafe extern "C" {
    fn guarded_load(address: u64) -> u64;
    fn guarded_store(address: u64, value: u64);
    safe fn guarded_wfi();
    fn guarded_call(address: u64) -> u64;
    fn run_guest(elr: u64, spsr: u64, x0: u64);
    safe fn secondary_start();
    safe fn guest_load();
    safe fn return_7();
}

fn caught() -> Caught {
    let address: usize;
    // SAFETY: `set_up` has put this CPU's own `Caught` there, which only its vectors write.
    unsafe {
        asm!("mrs {}, tpidr_el2", out(reg) address, options(nostack));
        core::ptr::with_exposed_provenance::<Caught>(address).read_volatile()
    }
}

/// Loads from `address`.
pub(crate) fn load(address: u64) -> (u64, Caught) {
    // SAFETY: a load has no effect, and if it faults it is caught.
    let value = unsafe { guarded_load(address) };
    (value, caught())
}

/// Stores to `address`, which must be memory that no Rust object lies in, or a [`Page`].
pub(crate) fn store(address: u64, value: u64) -> Caught {
    // SAFETY: the callers name pages of their own or device registers.
    unsafe { guarded_store(address, value) };
    caught()
}

/// Calls the code at `address`.
pub(crate) fn call(address: u64) -> (u64, Caught) {
    // SAFETY: the callers put a copy of `return_7` there.
    let value = unsafe { guarded_call(address) };
    (value, caught())
}

/// Waits for an interrupt and takes it.
pub(crate) fn wait() -> Caught {
    guarded_wfi();
    caught()
}

/// Runs a guest at `elr` until its first exception to EL2.
pub(crate) fn guest(elr: u64, spsr: u64, x0: u64) -> Caught {
    // SAFETY: the guest's code is `guest_load`, which changes no memory.
    unsafe { run_guest(elr, spsr, x0) };
    caught()
}

/// The guest's code: loads from x0, then HVC.
pub(crate) fn guest_code() -> u64 {
    guest_load as *const () as u64
}

/// Two instructions that return 7, as one word.
pub(crate) fn code_that_returns_7() -> u64 {
    load(return_7 as *const () as u64).0
}

/// Where a CPU is to be switched on.
pub(crate) fn secondary_entry() -> u64 {
    secondary_start as *const () as u64
}

/// A page of memory for tests, outside of what Rust believes to know. The alignment is that of two
/// concatenated stage-2 tables.
#[repr(C, align(8192))]
pub(crate) struct Page<const N: usize = 4096>(UnsafeCell<[u8; N]>);

// SAFETY: it is accessed by address through volatile assembly alone.
unsafe impl<const N: usize> Sync for Page<N> {}

impl<const N: usize> Page<N> {
    /// A page of zeros.
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new([0; N]))
    }

    /// Its address.
    pub(crate) fn address(&self) -> u64 {
        self.0.get().expose_provenance() as u64
    }
}

/// An SMC with up to three arguments; returns x0 and x1.
pub(crate) fn smc(function: u64, arguments: [u64; 3]) -> (u64, u64) {
    let (mut x0, mut x1) = (function, arguments[0]);
    // SAFETY: the firmware changes x0 to x3 at most (SMCCC 2.6), and memory only as asked.
    unsafe {
        asm!("smc #0", inout("x0") x0, inout("x1") x1, inout("x2") arguments[1] => _,
            inout("x3") arguments[2] => _, options(nostack));
    }
    (x0, x1)
}

/// Reads memory as one volatile byte at a time.
pub(crate) fn read(address: u64, out: &mut [u8]) {
    for (offset, byte) in out.iter_mut().enumerate() {
        // SAFETY: the callers name memory of the machine; reading it is harmless.
        *byte = unsafe {
            core::ptr::with_exposed_provenance::<u8>(address as usize + offset).read_volatile()
        };
    }
}

/// The `length` bytes of RAM from `address` on, which nobody writes while the slice is used.
pub(crate) fn memory(address: u64, length: usize) -> &'static [u8] {
    // SAFETY: the callers name what the firmware has loaded: it is RAM, and only this CPU runs.
    unsafe {
        core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address as usize), length)
    }
}

/// Waits for so many milliseconds.
pub(crate) fn delay_ms(milliseconds: u64) {
    let (start, frequency) = counter();
    while counter().0 - start < frequency / 1000 * milliseconds {}
}

/// The counter and its frequency.
fn counter() -> (u64, u64) {
    let (count, frequency);
    // SAFETY: reading the counter has no effect.
    unsafe {
        asm!("isb", "mrs {}, cntpct_el0", "mrs {}, cntfrq_el0", out(reg) count, out(reg) frequency,
            options(nostack));
    }
    (count, frequency)
}

/// Writes a system register.
macro_rules! set {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the test image's own state, or its guest's.
        #[expect(unsafe_code, reason = "a system register")]
        unsafe {
            core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack))
        };
    }};
}
pub(crate) use set;

/// Removes all stage-1 and stage-2 translations from this CPU's TLB.
pub(crate) fn flush_tlb() {
    // SAFETY: TLB maintenance.
    unsafe { asm!("dsb sy", "tlbi alle1", "dsb sy", "isb", options(nostack)) };
}

/// Acknowledges an interrupt of Group 1 and ends it; returns its number.
pub(crate) fn acknowledge() -> u64 {
    let intid: u64;
    // SAFETY: the GIC's registers of this CPU.
    unsafe {
        asm!("mrs {0}, icc_iar1_el1", "msr icc_eoir1_el1, {0}", "isb", out(reg) intid,
            options(nostack));
    }
    intid
}

/// Reads a 32-bit device register.
pub(crate) fn load_u32(address: u64) -> u32 {
    // SAFETY: the callers name registers of the machine.
    unsafe { core::ptr::with_exposed_provenance::<u32>(address as usize).read_volatile() }
}

/// Writes a 32-bit device register.
pub(crate) fn store_u32(address: u64, value: u32) {
    // SAFETY: the callers name registers of the machine whose effects they want.
    unsafe {
        core::ptr::with_exposed_provenance_mut::<u32>(address as usize).write_volatile(value)
    };
}

/// The libraries can allocate, this image never does.
struct NoHeap;

// SAFETY: an allocator may always fail, and what was never allocated is never freed.
unsafe impl core::alloc::GlobalAlloc for NoHeap {
    unsafe fn alloc(&self, _: core::alloc::Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: core::alloc::Layout) {}
}

#[global_allocator]
static HEAP: NoHeap = NoHeap;
