//! Accesses that may be answered with SIGBUS.
//!
//! The handler notes what the signal says and steps over the instruction, which is one load or one store
//! of this module: nothing else in a victim touches its memory. It runs on the thread that made the access
//! and uses nothing but atomics, so it is safe wherever the signal comes.
#![expect(
    unsafe_code,
    reason = "a signal handler that steps over the access it interrupted"
)]

use anyhow::{Result, ensure};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::SeqCst};

/// What SIGBUS said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BusError {
    /// `si_code`: 4 is BUS_MCEERR_AR, 3 BUS_OBJERR.
    pub(super) code: i32,
    /// `si_addr`.
    pub(super) address: u64,
    /// `si_addr_lsb`: the least significant bit of the address that means something.
    pub(super) lsb: i32,
    /// CNTVCT_EL0 in the handler.
    pub(super) at: u64,
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static LSB: AtomicI32 = AtomicI32::new(0);
static AT: AtomicU64 = AtomicU64::new(0);

/// `siginfo_t` of a fault, as far as it is read here (Linux `include/uapi/asm-generic/siginfo.h`).
#[repr(C)]
struct Fault {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    address: u64,
    lsb: libc::c_short,
}

/// Installs the handler.
pub(super) fn prepare() -> Result<()> {
    // SAFETY: an all-zero `sigaction` is a valid one: no flags, nothing masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = libc::SA_SIGINFO;
    action.sa_sigaction = on_bus_error as *const () as usize;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and uses atomics only.
    let done = unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
    ensure!(done == 0, "no SIGBUS handler");
    Ok(())
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    AT.store(crate::counter::counter(), SeqCst);
    // SAFETY: the kernel passes a siginfo_t, whose first fields for a fault are these.
    let fault = unsafe { &*info.cast::<Fault>() };
    CODE.store(fault.code, SeqCst);
    ADDRESS.store(fault.address, SeqCst);
    LSB.store(fault.lsb.into(), SeqCst);
    SIGNALS.fetch_add(1, SeqCst);
    step_over(context, fault.address);
}

#[cfg(target_arch = "aarch64")]
fn step_over(context: *mut libc::c_void, address: u64) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's ucontext_t. What was
    // interrupted is one of the instructions below, whose results have values before it, or the call
    // to an instruction that cannot be fetched, which returns.
    let machine = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    let is_fetch = machine.pc & !0xfff == address & !0xfff;
    machine.pc = if is_fetch {
        machine.regs[30]
    } else {
        machine.pc + 4
    };
}

/// Elsewhere there are no victims: this program is a guest's.
#[cfg(not(target_arch = "aarch64"))]
fn step_over(_: *mut libc::c_void, _: u64) {
    std::process::abort();
}

/// Loads the word at `address`.
///
/// # Errors
/// What SIGBUS said.
pub(super) fn load(address: u64) -> std::result::Result<u64, BusError> {
    attempt(|| {
        #[cfg_attr(not(target_arch = "aarch64"), expect(unused_mut, reason = "no asm"))]
        let mut value: u64 = 0;
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the address is one of the victim's own mapping; a SIGBUS is stepped over.
        unsafe {
            std::arch::asm!("ldr {value}, [{address}]", value = inout(reg) value, address = in(reg) address)
        };
        let _ = address;
        value
    })
}

/// Stores a word at `address`.
///
/// # Errors
/// What SIGBUS said.
pub(super) fn store(address: u64, value: u64) -> std::result::Result<(), BusError> {
    attempt(|| {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("str {value}, [{address}]", value = in(reg) value, address = in(reg) address)
        };
        let _ = (address, value);
    })
}

/// Calls the function at `address`, which returns at once.
///
/// # Errors
/// What SIGBUS said.
pub(super) fn call(address: u64) -> std::result::Result<(), BusError> {
    attempt(|| {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the page was filled with RET, all of it. It clobbers the link register.
        unsafe {
            std::arch::asm!("blr {address}", address = in(reg) address, out("x30") _, clobber_abi("C"))
        };
        let _ = address;
    })
}

/// Runs `access`, and says what signal it met.
fn attempt<T>(access: impl FnOnce() -> T) -> std::result::Result<T, BusError> {
    let before = SIGNALS.load(SeqCst);
    let value = access();
    if SIGNALS.load(SeqCst) == before {
        return Ok(value);
    }
    Err(BusError {
        code: CODE.load(SeqCst),
        address: ADDRESS.load(SeqCst),
        lsb: LSB.load(SeqCst),
        at: AT.load(SeqCst),
    })
}

/// Has the kernel read the word at `address`, as a set of signals for a purpose that there is not.
/// Nothing is locked meanwhile, so a kernel that dies of it takes nothing along. Whether it could read it.
pub(super) fn show_kernel(address: u64) -> bool {
    const NO_PURPOSE: libc::c_int = 999;
    let (none, size) = (0_usize, size_of::<u64>());
    // SAFETY: the address is one of the victim's own mapping; the kernel reads it or says that it cannot.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_PURPOSE, address, none, size) };
    std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}
