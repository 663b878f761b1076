//! The machine's counter, as programs see it.
#![cfg_attr(
    target_arch = "aarch64",
    expect(unsafe_code, reason = "a system register")
)]

/// The counter of this VM. Linux lets programs read it.
pub(crate) fn counter() -> u64 {
    #[cfg_attr(not(target_arch = "aarch64"), expect(unused_mut, reason = "no asm"))]
    let mut ticks: u64 = 0;
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the register is read and nothing else is touched; the barrier keeps it from being read early.
    unsafe {
        std::arch::asm!("isb", "mrs {ticks}, cntvct_el0", ticks = inout(reg) ticks, options(nostack))
    };
    ticks
}
