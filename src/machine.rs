//! This machine, as the library's [`Platform`] sees it.

use crate::arch::aarch64::gic::Acknowledged;
use crate::arch::aarch64::mmio::{EventRegister, SharedMemory};
use crate::arch::aarch64::tables::HeapFrames;
use crate::arch::aarch64::tlb::HardwareTlb;
use crate::arch::aarch64::{cpu, device, gic, load, mmu, page_slot, power, smc, spi, timer, uart};
use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
use cordon::addr::{Pa, PaRange};
use cordon::console::{Event, Switchboard};
use cordon::deadlines::{Due, Purpose};
use cordon::platform::aml::PlatformEvents;
use cordon::ras::media::{Healing, Media, MediaError};
use cordon::vm::access::pages::{Apertures, Caching, Which};
use cordon::vm::boot::{Contents, LoadError};
use cordon::vm::device::Device;
use cordon::vm::hypervisor::{End, Hypervisor, Platform};
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

/// Whether firmware heals pages.
static POISON_SWITCH: Once<bool> = Once::new();

/// How this machine tells of errors that nobody has consumed.
#[derive(Debug)]
pub struct Lookout {
    /// Where the generic event device says what happened, if that is how a source notifies.
    pub events: Option<EventRegister>,
    /// How often the sources are looked at that do not notify, in milliseconds.
    pub poll_ms: Option<u64>,
}

/// Filled at boot.
pub static LOOKOUT: Once<Lookout> = Once::new();

/// What an interrupt that is no guest's was about. True if the machine cannot go on.
#[must_use]
pub fn attend(taken: &Acknowledged) -> bool {
    if taken.console {
        console_input();
    }
    let due = match taken.deadline {
        true => timer::take_due(),
        false => Due::default(),
    };
    if due.has(Purpose::DrainLog) {
        say_now();
    }
    if due.has(Purpose::LookForInput) {
        console_input();
        look_for_input();
    }
    let poll = due.has(Purpose::PollErrors);
    if !poll && !taken.notified {
        return false;
    }
    let Some(lookout) = LOOKOUT.get() else {
        return false;
    };
    if let Some(interval) = lookout.poll_ms.filter(|_| poll) {
        // It has been set before, so the timer is there.
        let _ = timer::set(Purpose::PollErrors, interval);
    }
    if taken.notified {
        lookout.events.iter().for_each(say_events);
    }
    let here = cpu::try_this().map_or(0, |cpu| cpu.index);
    HYPERVISOR
        .get()
        .is_some_and(|hypervisor| hypervisor.look_for_errors(here))
}

/// What else the event device tells is not Cordon's to act on, but somebody will wonder where his
/// button press went.
fn say_events(register: &EventRegister) {
    let events = PlatformEvents::new(register.take());
    if events.has_unknown() {
        log::warn!("event=platform-event {events}");
    }
}

/// How often a UART without an interrupt is looked at, in milliseconds: a person does not notice, nor does a guest.
const LOOK_EVERY_MS: u64 = 20;

/// Where the UART has no interrupt, this CPU looks after it by its timer.
pub fn look_for_input() {
    if !gic::announces_input() {
        // Without a timer, guests that look for input are all there is.
        let _ = timer::set(Purpose::LookForInput, LOOK_EVERY_MS);
    }
}

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

/// How long something may wait to be said, in milliseconds.
const SAY_AFTER_MS: u64 = 1;

/// Prints what waits to be said of memory errors, behind nothing else.
pub fn say_waiting(console: &mut Switchboard<uart::Port>) {
    if let Some(hypervisor) = HYPERVISOR.get()
        && hypervisor.ras.journal.is_waiting()
    {
        drain(hypervisor, console);
    }
}

/// Kept apart from its callers: what it needs of registers, each interrupt would have to save.
#[cold]
fn drain(hypervisor: &Hypervisor<ThisMachine>, console: &mut Switchboard<uart::Port>) {
    hypervisor.ras.journal.drain(hypervisor, |line| {
        // The UART does not fail.
        let _ = console.line(format_args!("ras: {line}"));
    });
}

/// Prints it now.
pub fn say_now() {
    if (HYPERVISOR.get()).is_some_and(|hypervisor| hypervisor.ras.journal.is_waiting()) {
        drop(uart::console());
    }
}

/// Sees to it that it is printed soon, even if nobody prints anything else: this CPU's guest, which
/// goes on now, will be interrupted for it.
pub fn say_soon(hypervisor: &Hypervisor<ThisMachine>) {
    if hypervisor.ras.journal.is_waiting() {
        timer::set_once(Purpose::DrainLog, SAY_AFTER_MS);
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

impl Apertures for ThisMachine {
    type Page = page_slot::OpenPage;

    fn open(
        &self,
        which: Which,
        page: Pa,
        caching: Caching,
    ) -> Result<page_slot::OpenPage, MediaError> {
        page_slot::open(which, page, caching)
    }

    fn fence(&self) {
        page_slot::fence();
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

    fn end(&self, how: End) {
        if power::can_end() {
            crate::exit::end(how);
        }
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

    fn load(
        &self,
        to: PaRange,
        contents: &Contents,
        offset: u64,
    ) -> Result<(), LoadError<mmu::Error>> {
        load::load(to, contents, offset)
    }

    fn cpu(&self) -> usize {
        cpu::try_this().map_or(0, |cpu| cpu.index)
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
