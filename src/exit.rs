//! Exits from a guest: what the vectors call, and where a CPU goes that has no guest to run.

use crate::arch::aarch64::guest::{self, Saved, ThisCpu};
use crate::arch::aarch64::vectors::{self, GuestFrame};
use crate::arch::aarch64::vgic::VirtualInterface;
use crate::arch::aarch64::{cpu, crash, features, gic, power, spi};
use crate::machine::{self, HYPERVISOR, ThisMachine};
use cordon::ras::esr::SError;
use cordon::vm::exit::{Arrived, Exit, Next};
use cordon::vm::hypervisor::{End, Rest};
use cordon::vm::quick::Handled;
use cordon::vm::vcpu::Vcpu;
use core::sync::atomic::{AtomicBool, Ordering};

/// A synchronous exception from a guest, before all of its registers are saved. False if it has to
/// come again, to [`guest_sync`], with all of them.
pub extern "C" fn guest_quick(frame: &mut GuestFrame) -> bool {
    let Some(seat) = seat() else {
        return false;
    };
    match seat
        .exit(&mut ThisCpu::new(frame, Saved::CallerSaved))
        .quick()
    {
        Handled::No => false,
        Handled::Request => true,
        Handled::PerhapsLost => guest_lost(seat, frame),
    }
}

/// The same of one that may be about lost memory. As far as requests go, that is never.
#[cold]
fn guest_lost(seat: &Seat, frame: &mut GuestFrame) -> bool {
    let next = seat
        .exit(&mut ThisCpu::new(frame, Saved::CallerSaved))
        .memory_error();
    if let Some(next) = next {
        end_exit(seat.hypervisor, next);
    }
    next.is_some()
}

/// A synchronous exception from a guest.
pub extern "C" fn guest_sync(frame: &mut GuestFrame) {
    with_exit(frame, Saved::All, |exit| exit.synchronous());
}

/// An interrupt while a guest ran.
pub extern "C" fn guest_irq(frame: &mut GuestFrame) {
    let taken = gic::acknowledge_all();
    if machine::attend(&taken) {
        halt();
    }
    with_exit(frame, Saved::CallerSaved, |exit| {
        exit.interrupt(taken.arrived)
    });
}

/// An SError while a guest ran.
pub extern "C" fn guest_serror(frame: &mut GuestFrame) {
    with_exit(frame, Saved::CallerSaved, |exit| exit.serror());
}

/// What a guest left behind at an exit that is still to be handled.
pub extern "C" fn guest_deferred(frame: &mut GuestFrame, disr: u64) {
    vectors::forget_deferred();
    with_exit(frame, Saved::All, |exit| exit.deferred_serror(disr));
}

/// An SError that Cordon itself has caused since the exit is not the guest's, to which it would come
/// otherwise. Exits that are but requests touch no memory but the stack and are not looked at.
fn answer_for_own() {
    if !features::get().ras {
        return;
    }
    let disr = vectors::take_own_error();
    if disr == 0 {
        return;
    }
    let error = SError::decode(disr);
    let cpu = cpu::try_this().map_or(0, |cpu| cpu.index);
    if HYPERVISOR.get().is_none_or(|it| it.own_serror(error, cpu)) {
        halt();
    }
}

fn with_exit(
    frame: &mut GuestFrame,
    saved: Saved,
    handle: impl FnOnce(&mut Exit<'_, ThisMachine, ThisCpu<'_>>) -> Next,
) {
    let Some(seat) = seat() else {
        crash::stop(|out| writeln!(out, "cordon: crash: why=exit-without-vcpu"));
    };
    let mut cpu = ThisCpu::new(frame, saved);
    end_exit(seat.hypervisor, handle(&mut seat.exit(&mut cpu)));
}

/// What a CPU does after an exit, before its guest goes on, if it does.
fn end_exit(hypervisor: &Hypervisor, next: Next) {
    machine::poll_input();
    match next {
        Next::Resume => {
            machine::say_soon(hypervisor);
            answer_for_own();
        }
        Next::Park => guest::leave(idle),
        Next::Halt => halt(),
    }
}

type Hypervisor = cordon::vm::hypervisor::Hypervisor<ThisMachine>;
type Vm = cordon::vm::hypervisor::Vm<ThisMachine>;

/// What is pinned to a CPU.
#[derive(Clone, Copy)]
pub struct Seat {
    /// The machine.
    pub hypervisor: &'static Hypervisor,
    /// The VM.
    pub vm: &'static Vm,
    /// Its vCPU.
    pub vcpu: &'static Vcpu,
}

impl core::fmt::Debug for Seat {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "vCPU {} of {}", self.vcpu.index, self.vm.name)
    }
}

impl Seat {
    fn exit<'a, 'f>(&self, cpu: &'a mut ThisCpu<'f>) -> Exit<'a, ThisMachine, ThisCpu<'f>> {
        Exit {
            hypervisor: self.hypervisor,
            vm: self.vm,
            vcpu: self.vcpu,
            cpu,
        }
    }
}

/// What is pinned to this CPU.
fn seat() -> Option<&'static Seat> {
    cpu::try_this()?.seat.get()
}

/// A CPU without a guest to run sleeps until its vCPU is turned on.
pub extern "C" fn idle() -> ! {
    loop {
        let taken = gic::acknowledge_all();
        gic::forget_timers(&taken.arrived);
        if machine::attend(&taken) {
            halt();
        }
        take_devices(&taken.arrived);
        if let (Some(cpu), Some(seat)) = (cpu::try_this(), seat()) {
            let Seat {
                hypervisor,
                vm,
                vcpu,
            } = *seat;
            match hypervisor.rest(vm, vcpu) {
                Rest::Start(start) => guest::start(cpu, vm, vcpu.index, start),
                Rest::Halt => halt(),
                Rest::Sleep => {}
            }
        }
        machine::say_now();
        aarch64_cpu::asm::wfi();
    }
}

/// Interrupts of a device whose vCPU does not run are remembered until it does.
fn take_devices(arrived: &Arrived) {
    for physical in arrived.devices.iter() {
        match seat() {
            Some(seat) => {
                let nobody = None::<&mut VirtualInterface>;
                seat.hypervisor
                    .device_interrupt(seat.vm, seat.vcpu, physical, nobody);
            }
            None => spi::THE_DISTRIBUTOR.refuse(physical),
        }
    }
}

/// The machine stops in an orderly way: all that was counted is said, then the power goes. Every
/// CPU of the last VM comes here; the first one does it.
pub fn halt() -> ! {
    say_last(reason());
    power::off()
}

/// The operator ends the machine. Comes back where it cannot begin anew.
pub fn end(how: End) {
    match how {
        End::Off => {
            say_last("operator-off");
            power::off()
        }
        End::Reboot => {
            say_last("operator-reboot");
            power::reset();
            HALTING.store(false, Ordering::Release);
        }
    }
}

/// A CPU ends the machine.
static HALTING: AtomicBool = AtomicBool::new(false);

/// All that was counted, and why the machine ends.
fn say_last(reason: &str) {
    if HALTING.swap(true, Ordering::AcqRel) {
        crash::wait_for_ever();
    }
    if let Some(hypervisor) = HYPERVISOR.get() {
        hypervisor.print_poison();
        hypervisor.print_counters();
    }
    log::info!("event=halt reason={reason}");
}

fn reason() -> &'static str {
    match HYPERVISOR.get() {
        None => "no-vms",
        Some(hypervisor) if hypervisor.vms().is_empty() => "no-vms",
        Some(hypervisor) if hypervisor.is_idle() => "all-vms-stopped",
        Some(_) => "hypervisor-error",
    }
}
