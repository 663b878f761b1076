//! EL3 firmware for QEMU virt that makes every page of memory poisonable.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "Cordon runs at EL2 of an AArch64 machine. Build and start it with `cargo xtask run`."
    );
    std::process::exit(1);
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
