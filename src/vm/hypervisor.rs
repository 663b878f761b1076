//! All VMs, and what they share.
//!
//! Built once at boot, then only shared: every field that changes has a lock or is atomic.

use super::error_device::Report;
use super::vcpu::Vcpu;
use super::vgic::CpuInterface;
use crate::addr::{Ipa, Vmid};
use crate::ras::capabilities::Capabilities;
use crate::ras::journal::Note;
use crate::ras::loops;
use crate::ras::pipeline::Ras;
use crate::ras::triage;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

pub use super::platform::Platform;
pub use super::virtual_machine::{Line, Space, State, StopReason, Vm};

/// How a machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is turned off.
    Off,
    /// It begins anew.
    Reboot,
}

/// What a CPU does whose vCPU is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Rest {
    /// The vCPU is on now: this is its entry, and its x0.
    Start((u64, u64)),
    /// It waits for an interrupt.
    Sleep,
    /// The whole machine stops.
    Halt,
}

/// The machine as a hypervisor has it.
pub struct Hypervisor<P: Platform> {
    /// What the machine does.
    pub platform: P,
    /// The memory errors' pipeline.
    pub ras: Ras<'static, P::Shared>,
    /// What the machine promises about its errors.
    pub triage: triage::Machine,
    /// What is done about guests that go round in circles.
    pub loops: loops::Policy,
    /// What the machine has for memory errors.
    pub capabilities: Capabilities,
    vms: Vec<Vm<P>>,
    running: AtomicUsize,
}

impl<P: Platform> Hypervisor<P> {
    /// These VMs on this machine. VMIDs count from 1, in the order of `vms`.
    pub fn new(
        platform: P,
        ras: Ras<'static, P::Shared>,
        triage: triage::Machine,
        vms: Vec<Vm<P>>,
    ) -> Self {
        let running = AtomicUsize::new(vms.len());
        Self {
            platform,
            ras,
            triage,
            loops: loops::Policy::DEFAULT,
            capabilities: Capabilities::empty(),
            vms,
            running,
        }
    }

    /// All VMs.
    pub fn vms(&self) -> &[Vm<P>] {
        &self.vms
    }

    /// The VM with this VMID.
    pub fn vm(&self, vmid: Vmid) -> Option<&Vm<P>> {
        self.vms.get(usize::from(vmid.get()).checked_sub(1)?)
    }

    /// Says that `vm` is about to run its first instruction, and how the counter stands when its own begins.
    pub(super) fn announce(&self, vm: &Vm<P>, entry: Ipa, at: u64) {
        log::info!(
            "event=vm-start vm={} vcpus={} ram={:#x} entry={entry} at={at}",
            vm.name,
            vm.vcpus.len(),
            vm.boot.ram,
        );
        self.print_stage2(vm, "start");
    }

    /// Ends a VM for good: none of its vCPUs runs a guest instruction after its next exit, which
    /// comes at once. True if it had not been ended before: of several reasons the first counts, but
    /// a reset that has not been carried out is not carried out.
    pub fn stop(&self, vm: &Vm<P>, reason: StopReason) -> bool {
        if !vm.end(reason) {
            return false;
        }
        self.say_stopped(vm, reason);
        self.platform.powered(vm.console, false);
        self.running.fetch_sub(1, Ordering::AcqRel);
        true
    }

    /// Starts a VM anew as soon as its vCPUs are off (see [`super::boot`]). False if it does not run.
    pub fn reset(&self, vm: &Vm<P>) -> bool {
        let runs = vm.begin_reset();
        if runs {
            self.say_stopped(vm, StopReason::Reset);
        }
        runs
    }

    /// Starts a VM again that was turned off: from here on it is one that waits for its reset. False
    /// if it is not off; one that was killed stays so, for its tables may be bad. Comes too late
    /// for the last VM, whose end is the machine's.
    pub fn revive(&self, vm: &Vm<P>) -> bool {
        if !vm.begin_revival() {
            return false;
        }
        self.running.fetch_add(1, Ordering::AcqRel);
        self.platform.powered(vm.console, true);
        // Any of its CPUs can load it, and no other has the time.
        if let Some(first) = vm.vcpus.first() {
            self.platform.kick(first.pcpu);
        }
        true
    }

    /// What the CPU of `vcpu`, which is off, does now. It asks after every interrupt.
    pub fn rest(&self, vm: &Vm<P>, vcpu: &Vcpu) -> Rest {
        if vm.is_stopped() {
            // It was asked to start, and its VM stopped before it did.
            vcpu.cancel_start();
            self.settle(vm);
        }
        if self.is_idle() {
            return Rest::Halt;
        }
        if vm.is_stopped() {
            return Rest::Sleep;
        }
        vcpu.take_start().map_or(Rest::Sleep, Rest::Start)
    }

    fn say_stopped(&self, vm: &Vm<P>, reason: StopReason) {
        vm.vgic.silence();
        for vcpu in &vm.vcpus {
            self.platform.kick(vcpu.pcpu);
        }
        // Of a VM that was killed not even the map is looked at: its tables may be what went bad, and
        // reading them would make Cordon the one who consumes the poison.
        if reason != StopReason::Killed {
            self.print_stage2(vm, "stop");
        }
        log::info!(
            "event=vm-stop vm={} reason={reason} vseas={}",
            vm.name,
            self.aborts_of(vm)
        );
    }

    /// External aborts that the vCPUs of `vm` were given for memory errors.
    pub fn aborts_of(&self, vm: &Vm<P>) -> u64 {
        let met = self.ras.announcer.counters().vm(vm.vmid);
        met.map_or(0, |met| met.aborts)
    }

    /// Tells a guest with ACPI of an error that it need not act on at once.
    pub fn report(&self, vm: &Vm<P>, report: Report) {
        if let Some(effect) = (vm.errors.as_ref()).and_then(|errors| errors.found(report)) {
            let note = Note::Reported {
                seq: None,
                vm: vm.vmid,
                source: 1,
                severity: Some(report.severity),
                ipa: report.ipa,
            };
            self.ras.say(&note, self);
            vm.signal(&self.platform, effect, None);
        }
    }

    /// The physical interrupt `physical` came to the CPU of `vcpu` and is active; `cpu` is `None` where
    /// the vCPU is off. One that is no VM's here is switched off: nobody would ever end it.
    pub fn device_interrupt(
        &self,
        vm: &Vm<P>,
        vcpu: &Vcpu,
        physical: u16,
        cpu: Option<&mut impl CpuInterface>,
    ) {
        match vm.vgic.device(vcpu.index, physical, cpu) {
            Some(concerned) => vm.knock(&self.platform, concerned, Some(vcpu.pcpu)),
            None => {
                log::warn!("event=error what=interrupt why=unexpected id={physical}");
                self.platform.refuse_interrupt(physical);
            }
        }
    }

    /// Something was typed for a VM's console. `here` as for [`Vm::knock`].
    pub fn input(&self, vm: &Vm<P>, here: Option<usize>) {
        let ((), concerned) = vm.with_uart(&self.platform, |uart, line| uart.receive(line));
        vm.knock(&self.platform, concerned, here);
    }

    /// Whether no VM runs any more.
    pub fn is_idle(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }
}
