//! This machine, as the library's [`Platform`] sees it.

use crate::arch::aarch64::mmio::SharedMemory;
use crate::arch::aarch64::tables::HeapFrames;
use crate::arch::aarch64::tlb::HardwareTlb;
use crate::arch::aarch64::{cpu, device, gic, load, mmu, spi, uart};
use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
use cordon::addr::PaRange;
use cordon::console::Event;
use cordon::vm::boot::Contents;
use cordon::vm::device::Device;
use cordon::vm::hypervisor::{Hypervisor, Platform};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;

/// The machine that Cordon runs on.
#[derive(Clone, Copy, Debug)]
pub struct ThisMachine;

/// The hypervisor, from the moment its VMs are built.
pub static HYPERVISOR: Once<Hypervisor<ThisMachine>> = Once::new();

/// Most bursts of input that are dealt with at once. A keyboard that is faster than Cordon must not
/// keep this CPU's guest from running.
const BURSTS: usize = 8;

/// A guest has looked for input on a machine whose UART has no interrupt.
static LOOKED_FOR: AtomicBool = AtomicBool::new(false);

/// Something was typed: it is for the VM in focus, or for the monitor. Called without any lock, and
/// before the calling CPU's guest, if it has one, looks after its interrupts.
pub fn console_input() {
    take_input(cpu::try_this().map(|cpu| cpu.index));
}

/// `here` as for [`cordon::vm::hypervisor::Vm::knock`].
fn take_input(here: Option<usize>) {
    let Some(hypervisor) = HYPERVISOR.get() else {
        return;
    };
    for _ in 0..BURSTS {
        // The lock is released with the statement: what follows takes others.
        let event = uart::CONSOLE.lock().look();
        match event {
            Ok(Event::Nothing) | Err(fmt::Error) => break,
            Ok(Event::Handled) => {}
            Ok(Event::Typed(console)) => {
                if let Some(vm) = hypervisor.vms().iter().find(|vm| vm.console == console) {
                    hypervisor.input(vm, here);
                }
            }
            Ok(Event::Command(line)) => {
                hypervisor.operate(&line);
                // The UART does not fail.
                let _ = uart::CONSOLE.lock().answered();
            }
        }
    }
    // What is left over raises the interrupt again.
    uart::listen();
}

/// Where the UART has no interrupt, guests that look for input make Cordon look too. Called without
/// any lock, after each exit.
pub fn poll_input() {
    if LOOKED_FOR.load(Ordering::Relaxed) && LOOKED_FOR.swap(false, Ordering::Relaxed) {
        // The guest here has looked after its interrupts already: it needs a kick.
        take_input(None);
    }
}

impl Platform for ThisMachine {
    type Tables = HeapFrames;
    type Tlb = HardwareTlb;
    type Shared = SharedMemory;
    type LoadError = mmu::Error;

    fn kick(&self, cpu: usize) {
        if let Some(cpu) = cpu::all().get(cpu) {
            gic::kick(cpu);
        }
    }

    fn print(&self, console: usize, byte: u8) {
        // The UART does not fail.
        let _ = uart::CONSOLE.lock().guest_byte(console, byte);
    }

    fn pause(&self, console: usize) {
        // The UART does not fail.
        let _ = uart::CONSOLE.lock().guest_waits(console);
    }

    fn typed(&self, console: usize) -> Option<u8> {
        if !gic::announces_input() {
            LOOKED_FOR.store(true, Ordering::Relaxed);
        }
        uart::CONSOLE.lock().typed(console)
    }

    fn powered(&self, console: usize, on: bool) {
        // The UART does not fail.
        let _ = uart::CONSOLE.lock().set_powered(console, on);
    }

    fn focus(&self) -> usize {
        uart::CONSOLE.lock().focus()
    }

    fn give_focus(&self, console: usize) -> bool {
        uart::CONSOLE.lock().give_focus(console) == Ok(true)
    }

    fn answer(&self, line: fmt::Arguments<'_>) {
        // The UART does not fail.
        let _ = uart::CONSOLE.lock().line(line);
    }

    fn timer_lines(&self, cpu: usize) -> u32 {
        cpu::all().get(cpu).map_or(0, gic::timer_lines)
    }

    fn load(&self, to: PaRange, contents: &Contents, offset: u64) -> Result<(), mmu::Error> {
        load::load(to, contents, offset)
    }

    fn counter(&self) -> u64 {
        CNTPCT_EL0.get()
    }

    fn refuse_interrupt(&self, physical: u16) {
        spi::THE_DISTRIBUTOR.refuse(physical);
    }

    fn reset_device(&self, device: &Device) -> Result<(), mmu::Error> {
        device::reset(device)
    }
}
