//! This machine, as the library's [`Platform`] sees it.

use crate::arch::aarch64::mmio::SharedMemory;
use crate::arch::aarch64::tables::HeapFrames;
use crate::arch::aarch64::tlb::HardwareTlb;
use crate::arch::aarch64::{cpu, gic, load, mmu, uart};
use cordon::addr::PaRange;
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

    fn typed(&self, console: usize) -> Option<u8> {
        let mut mux = uart::CONSOLE.lock();
        let _ = mux.guest_waits(console);
        (console == FOCUS).then(|| mux.sink().get())?
    }

    fn load(&self, to: PaRange, contents: &Contents, offset: u64) -> Result<(), mmu::Error> {
        load::load(to, contents, offset)
    }
}
