//! This machine, as the library's [`Platform`] sees it.

use crate::arch::aarch64::mmio::SharedMemory;
use crate::arch::aarch64::tables::HeapFrames;
use crate::arch::aarch64::tlb::HardwareTlb;
use crate::arch::aarch64::{alarm, cpu, gic, load, mmu, uart};
use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
use cordon::addr::PaRange;
use cordon::console::Mux;
use cordon::vm::boot::Contents;
use cordon::vm::hypervisor::{Hypervisor, Platform};
use spin::Once;

/// The machine that Cordon runs on.
#[derive(Clone, Copy, Debug)]
pub struct ThisMachine;

/// The hypervisor, from the moment its VMs are built.
pub static HYPERVISOR: Once<Hypervisor<ThisMachine>> = Once::new();

/// The console that gets what is typed: the first VM's.
const FOCUS: usize = 0;

/// Something was typed: it is for the VM that has the console.
pub fn console_input() {
    let here = cpu::try_this().map(|cpu| cpu.index);
    let Some(hypervisor) = HYPERVISOR.get() else {
        return;
    };
    if let Some(vm) = hypervisor.vms().iter().find(|vm| vm.console == FOCUS) {
        hypervisor.input(vm, here);
    }
}

/// Prints what waits to be said of memory errors, behind nothing else.
pub fn say_waiting(console: &mut Mux<uart::Port>) {
    if let Some(hypervisor) = HYPERVISOR.get() {
        hypervisor.ras.journal.drain(hypervisor, |line| {
            // The UART does not fail.
            let _ = console.line(format_args!("ras: {line}"));
        });
    }
}

fn is_something_waiting() -> bool {
    (HYPERVISOR.get()).is_some_and(|hypervisor| hypervisor.ras.journal.is_waiting())
}

/// Prints it now.
pub fn say_now() {
    if is_something_waiting() {
        drop(uart::console());
    }
}

/// Sees to it that it is printed soon, even if nobody prints anything else: this CPU's guest, which
/// goes on now, will be interrupted for it.
pub fn say_soon() {
    if is_something_waiting() {
        alarm::set();
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
        let _ = uart::console().guest_byte(console, byte);
    }

    fn pause(&self, console: usize) {
        // The UART does not fail.
        let _ = uart::console().guest_waits(console);
    }

    fn typed(&self, console: usize) -> Option<u8> {
        (console == FOCUS).then(|| uart::CONSOLE.lock().sink().get())?
    }

    fn listen(&self, console: usize) {
        if console == FOCUS {
            uart::CONSOLE.lock().sink().listen();
        }
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
}
