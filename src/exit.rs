//! Exits from a guest: what the vectors call, and where a CPU goes that has no guest to run.

use crate::arch::aarch64::guest::{self, ThisCpu};
use crate::arch::aarch64::vectors::GuestFrame;
use crate::arch::aarch64::{cpu, crash, gic, smc};
use crate::machine::{self, HYPERVISOR, ThisMachine};
use cordon::vm::exit::{Exit, Next};
use core::sync::atomic::{AtomicBool, Ordering};

/// A synchronous exception from a guest.
pub extern "C" fn guest_sync(frame: &mut GuestFrame) {
    with_exit(frame, |exit| exit.synchronous());
}

/// An interrupt while a guest ran.
pub extern "C" fn guest_irq(frame: &mut GuestFrame) {
    let taken = gic::acknowledge_all();
    if taken.console {
        machine::console_input();
    }
    with_exit(frame, |exit| exit.interrupt(taken.arrived));
}

/// An SError while a guest ran.
pub extern "C" fn guest_serror(frame: &mut GuestFrame) {
    with_exit(frame, |exit| exit.serror());
}

fn with_exit(
    frame: &mut GuestFrame,
    handle: impl FnOnce(&mut Exit<'_, ThisMachine, ThisCpu<'_>>) -> Next,
) {
    let Some((hypervisor, vm, vcpu)) = current() else {
        crash::stop(|out| writeln!(out, "cordon: crash: why=exit-without-vcpu"));
    };
    let mut cpu = ThisCpu::new(frame);
    let next = handle(&mut Exit {
        hypervisor,
        vm,
        vcpu,
        cpu: &mut cpu,
    });
    match next {
        Next::Resume => {}
        Next::Park => guest::leave(idle),
        Next::Halt => halt(),
    }
}

type Hypervisor = cordon::vm::hypervisor::Hypervisor<ThisMachine>;
type Vm = cordon::vm::hypervisor::Vm<ThisMachine>;

/// What is pinned to this CPU.
fn current() -> Option<(
    &'static Hypervisor,
    &'static Vm,
    &'static cordon::vm::vcpu::Vcpu,
)> {
    let (vm, vcpu) = *cpu::try_this()?.vcpu.get()?;
    let hypervisor = HYPERVISOR.get()?;
    let vm = hypervisor.vms().get(vm)?;
    Some((hypervisor, vm, vm.vcpus.get(vcpu)?))
}

/// A CPU without a guest to run sleeps until its vCPU is turned on.
pub extern "C" fn idle() -> ! {
    loop {
        let taken = gic::acknowledge_all();
        gic::forget_timers(&taken.arrived);
        if taken.console {
            machine::console_input();
        }
        if let (Some(cpu), Some((hypervisor, vm, vcpu))) = (cpu::try_this(), current()) {
            if vm.is_stopped() {
                vcpu.cancel_start();
                hypervisor.settle(vm);
            }
            if !vm.is_stopped()
                && let Some(start) = vcpu.take_start()
            {
                guest::start(cpu, vm, vcpu.index, start);
            }
        }
        aarch64_cpu::asm::wfi();
    }
}

/// The machine stops in an orderly way: all that was counted is said, then the power goes. Every
/// CPU of the last VM comes here; the first one does it.
pub fn halt() -> ! {
    static HALTING: AtomicBool = AtomicBool::new(false);
    if HALTING.swap(true, Ordering::AcqRel) {
        crash::wait_for_ever();
    }
    if let Some(hypervisor) = HYPERVISOR.get() {
        hypervisor.print_poison();
        hypervisor.print_counters();
    }
    log::info!("event=halt reason={}", reason());
    smc::system_off()
}

fn reason() -> &'static str {
    match HYPERVISOR.get() {
        None => "no-vms",
        Some(hypervisor) if hypervisor.vms().is_empty() => "no-vms",
        Some(hypervisor) if hypervisor.is_idle() => "all-vms-stopped",
        Some(_) => "hypervisor-error",
    }
}
