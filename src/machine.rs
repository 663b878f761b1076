//! This machine, as the library's [`Platform`] sees it.

use crate::arch::aarch64::mmio::SharedMemory;
use crate::arch::aarch64::tables::HeapFrames;
use crate::arch::aarch64::tlb::HardwareTlb;
use crate::arch::aarch64::{cpu, gic, load, mmu, page_slot, smc, uart};
use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
use cordon::addr::{Pa, PaRange};
use cordon::ras::media::{Healing, Media, MediaError};
use cordon::vm::boot::Contents;
use cordon::vm::hypervisor::{Hypervisor, Platform};
use spin::Once;

/// The machine that Cordon runs on.
#[derive(Clone, Copy, Debug)]
pub struct ThisMachine;

/// The hypervisor, from the moment its VMs are built.
pub static HYPERVISOR: Once<Hypervisor<ThisMachine>> = Once::new();

/// Whether firmware heals pages.
static POISON_SWITCH: Once<bool> = Once::new();

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

impl Media for ThisMachine {
    fn heal(&self, page: Pa) -> Healing {
        if !*POISON_SWITCH.call_once(smc::poison_switch::is_there) {
            Healing::NoService
        } else if smc::poison_switch::heal(page.get()) {
            Healing::Done
        } else {
            Healing::Refused
        }
    }

    fn verify(&self, page: Pa) -> Result<(), MediaError> {
        page_slot::verify(page)
    }

    fn clear(&self, page: Pa) -> Result<(), MediaError> {
        page_slot::clear(page)
    }

    fn copy(&self, from: Pa, to: Pa) -> Result<(), MediaError> {
        page_slot::copy(from, to)
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
