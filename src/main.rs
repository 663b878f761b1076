//! The Cordon image: wires the parts together and nothing else.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod arch;
#[cfg(target_os = "none")]
mod exit;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod setup;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "Cordon runs at EL2 of an AArch64 machine. Build and start it with `cargo xtask run`."
    );
    std::process::exit(1);
}

/// The boot CPU's first Rust code: on its own stack, with the MMU on and the boot table.
#[cfg(target_os = "none")]
extern "C" fn boot_main(described_at: u64, door: u64) -> ! {
    use arch::aarch64::boot::door;
    open_vectors();
    if setup::early().is_err() {
        exit::halt();
    }
    let door = match door {
        door::UEFI => setup::Door::Uefi,
        door::RESET => setup::Door::Reset,
        _ => setup::Door::Image,
    };
    setup::run(cordon::addr::Pa::new(described_at), door);
    if machine::HYPERVISOR
        .get()
        .is_none_or(|all| all.vms().is_empty())
    {
        exit::halt();
    }
    ready();
    exit::idle()
}

/// The calling CPU may use vector registers.
#[cfg(target_os = "none")]
fn open_vectors() {
    use arch::aarch64::{features, guest};
    guest::open_vectors(features::get());
}

/// The calling CPU is about to have a guest.
#[cfg(target_os = "none")]
fn ready() {
    arch::aarch64::vectors::look_for_deferred(arch::aarch64::features::get());
    setup::confine();
}

/// The first Rust code of every other CPU.
#[cfg(target_os = "none")]
extern "C" fn secondary_main(cpu: &'static arch::aarch64::cpu::PerCpu) -> ! {
    open_vectors();
    arch::aarch64::cpu::install(cpu);
    arch::aarch64::gic::init_cpu(cpu);
    ready();
    cpu.online
        .store(true, core::sync::atomic::Ordering::Release);
    exit::idle()
}
