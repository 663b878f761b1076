//! EL3 firmware for QEMU virt that makes every page of memory poisonable.
//!
//! `docs/firmware.md` explains the whole. This file is the order of things: CPU 0 boots the machine
//! in [`primary`], the others go through [`secondary`] to the holding [`pen`], and from the moment
//! a CPU has entered the normal world it comes back through [`traps`] alone.
//!
//! **Locks**, each held for a bounded time with everything masked, taken in this order: the line
//! buffer or the turn to record, the service, the UART. A CPU's PSCI state and the interrupt
//! controller are taken with none of them held. Only the turn to record is held while something is
//! waited for; the CPU that is waited for never takes it, unless it consumes poison itself.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!(
        "This is EL3 firmware for QEMU's virt machine. Build it for aarch64-unknown-none-softfloat."
    );
    std::process::exit(1);
}

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod load;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod state;
#[cfg(target_os = "none")]
mod traps;

#[cfg(target_os = "none")]
use image::{pen, primary, secondary};

#[cfg(target_os = "none")]
mod image {
    use core::fmt::Write;
    use core::panic::PanicInfo;
    use core::sync::atomic::{AtomicUsize, Ordering};

    use cordon_firmware::psci::EntryPoint;

    use crate::machine::{cpu, gic, heap, power, sysreg, uart};
    use crate::{load, state, traps};

    /// CPU 0: the machine, then what it shall run.
    pub(crate) extern "C" fn primary(_: usize) -> ! {
        uart::init();
        heap::init();
        if !cpu::has_rme() {
            stop(format_args!("why=no-rme"));
        }
        state::init();
        cpu::init(state::level0());
        let result = gic::init_distributor().and_then(|()| gic::init_cpu(0));
        if let Err(error) = result {
            stop(format_args!("why=gic error={error:?}"));
        }
        let loaded = match load::load() {
            Ok(loaded) => loaded,
            Err(error) => stop(format_args!("why={error}")),
        };
        state::CPUS.boot(0);
        uart::enable_receive_interrupt();
        let mut line = uart::Line::new();
        let _ = writeln!(line, "! ready cpus={}", loaded.cpus);
        uart::write(line.as_str());
        cpu::enter_el2(EntryPoint {
            address: loaded.entry.get(),
            context: loaded.device_tree.get(),
        })
    }

    /// Every other CPU, once CPU 0 has opened the gate.
    pub(crate) extern "C" fn secondary(cpu: usize) -> ! {
        cpu::init(state::level0());
        if let Err(error) = gic::init_cpu(cpu) {
            stop(format_args!("why=gic cpu={cpu} error={error:?}"));
        }
        pen(cpu)
    }

    /// Where CPUs that are off wait. A pending interrupt of the firmware's ends the WFI, masked as
    /// it is; those of the normal world do not reach this CPU, or it would not rest.
    pub(crate) extern "C" fn pen(cpu: usize) -> ! {
        gic::mute_normal_world();
        loop {
            if let Some(entry) = state::CPUS.take_entry(cpu) {
                cpu::enter_el2(entry);
            }
            sysreg::wait_for_interrupt();
            traps::serve_interrupts();
        }
    }

    /// The CPU that ends the machine, counted from 1; 0 until one does.
    static ENDING: AtomicUsize = AtomicUsize::new(0);

    /// Ends the machine with a message on both UARTs. The first CPU's reason is the one that is said:
    /// others leave it to that CPU, and if saying it fails as well, the machine ends without.
    pub(crate) fn stop(why: core::fmt::Arguments<'_>) -> ! {
        let this = cpu::number() + 1;
        match ENDING.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                let mut line = uart::Line::new();
                let _ = writeln!(line, "! stopped {why}");
                uart::last_words(line.as_str());
            }
            Err(ending) if ending == this => {}
            Err(_) => loop {
                sysreg::wait_for_interrupt();
            },
        }
        power::off()
    }

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        match info.location() {
            Some(at) => stop(format_args!("why=panic at={}:{}", at.file(), at.line())),
            None => stop(format_args!("why=panic")),
        }
    }
}
