//! Why a guest stopped running, and what is done about it.
//!
//! Nothing a guest does can make this panic, wait for ever or touch another VM: what is not
//! understood gives the guest the exception that hardware without that thing would give it.

use super::config::UART;
use super::cpu::GuestCpu;
use super::hypervisor::{Hypervisor, Platform, StopReason, Vm};
use super::psci::{Call, status};
use super::system_registers::{self, Answer};
use super::vcpu::{Power, Vcpu};
use crate::addr::Ipa;
use crate::ras::esr::{Abort, Fault, Mmio, Syndrome, System};
use crate::ras::inject;
use crate::stage2::Lookup;

/// What the CPU does after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// The guest goes on.
    Resume,
    /// This vCPU is off: the CPU waits for its next start.
    Park,
    /// The whole machine stops.
    Halt,
}

/// A vCPU at an exit, and everything around it.
pub struct Exit<'a, P: Platform, C> {
    /// The machine.
    pub hypervisor: &'a Hypervisor<P>,
    /// Its VM.
    pub vm: &'a Vm<P>,
    /// The vCPU.
    pub vcpu: &'a Vcpu,
    /// The CPU that it is pinned to.
    pub cpu: &'a mut C,
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// Handles a synchronous exception.
    pub fn synchronous(&mut self) -> Next {
        match Syndrome::decode(self.cpu.esr()) {
            Syndrome::Abort(abort) if abort.fault.is_external() => self.external_abort(&abort),
            Syndrome::Abort(abort) => self.stage2_fault(&abort),
            Syndrome::Hvc(0) => self.call(),
            // HVC returns behind itself, a trapped SMC to itself (Arm ARM D1.3.5).
            Syndrome::Smc(0) => {
                self.cpu.skip_instruction();
                self.call()
            }
            Syndrome::System(access) => self.system_register(&access),
            _ => self.undefined(),
        }
    }

    fn system_register(&mut self, access: &System) -> Next {
        let ipa_bits = self.vm.ipa_bits;
        match system_registers::answer(access, self.cpu, ipa_bits) {
            Answer::Value(value) => {
                if access.is_read {
                    self.cpu.set_register(access.rt, value);
                }
                self.cpu.skip_instruction();
                Next::Resume
            }
            Answer::Undefined => self.undefined(),
        }
    }

    /// An interrupt came: somebody wants this CPU's attention.
    pub fn interrupt(&mut self) -> Next {
        if self.vm.is_stopped() {
            self.park()
        } else {
            Next::Resume
        }
    }

    /// SMCCC: function in w0, arguments from x1, result in x0.
    fn call(&mut self) -> Next {
        let [function, a, b, c] = [0, 1, 2, 3].map(|number| self.cpu.register(number));
        // SMCCC: the function identifier is w0, whatever is in the upper half.
        let function = (function & 0xffff_ffff) as u32;
        let answer = match Call::decode(function, [a, b, c]) {
            Call::Answer(value) => value,
            Call::CpuOn {
                target,
                entry,
                context,
            } => self.cpu_on(target, entry, context),
            Call::AffinityInfo { target, level } => self.affinity_info(target, level),
            Call::CpuOff => return self.park(),
            Call::SystemOff => return self.stop(StopReason::Off),
            Call::SystemReset => {
                self.hypervisor.reset(self.vm);
                return self.park();
            }
        };
        self.cpu.set_register(0, answer.cast_unsigned());
        Next::Resume
    }

    fn cpu_on(&self, target: u64, entry: u64, context: u64) -> i64 {
        let Some(vcpu) = self.vm.vcpus.iter().find(|vcpu| vcpu.mpidr() == target) else {
            return status::INVALID_PARAMETERS;
        };
        let entry_is_memory = entry.is_multiple_of(4)
            && matches!(
                self.vm.stage2.lock().lookup(Ipa::new(entry)),
                Ok(Lookup::Mapped { .. })
            );
        if !entry_is_memory {
            return status::INVALID_ADDRESS;
        }
        match vcpu.turn_on(entry, context) {
            Ok(()) => {
                self.hypervisor.platform.kick(vcpu.pcpu);
                status::SUCCESS
            }
            Err(Power::On) => status::ALREADY_ON,
            Err(_) => status::ON_PENDING,
        }
    }

    fn affinity_info(&self, target: u64, level: u64) -> i64 {
        let vcpu = self.vm.vcpus.iter().find(|vcpu| vcpu.mpidr() == target);
        match vcpu {
            Some(vcpu) if level == 0 => vcpu.power() as i64,
            _ => status::INVALID_PARAMETERS,
        }
    }

    /// A stage-2 fault: a hole, an emulated device, a moment's absence while a block is split, or
    /// nothing at all.
    fn stage2_fault(&mut self, abort: &Abort) -> Next {
        if abort.fault == Fault::TlbConflict {
            self.vm.stage2.lock().resolve_conflict();
            return Next::Resume;
        }
        let Some(page) = abort.ipa_page(self.cpu.hpfar()) else {
            return self.give_external_abort(abort);
        };
        // The offset is known but for walks, whose page is all that matters.
        let ipa = abort.ipa(self.cpu.hpfar(), self.cpu.far()).unwrap_or(page);
        let found = self.vm.stage2.lock().lookup(ipa);
        match found {
            Ok(Lookup::Poisoned { pa, .. }) => self.touched(abort, ipa, pa),
            Ok(Lookup::Mapped { .. }) if abort.fault.is_translation() => Next::Resume,
            Ok(Lookup::Parked { .. }) => Next::Resume,
            Ok(Lookup::Mapped { .. }) => self.give_external_abort(abort),
            Ok(Lookup::Unmapped) => self.unmapped(abort, ipa),
            Err(damage) => {
                log::error!("event=error what=stage2 vm={} why={damage}", self.vm.name);
                self.stop(StopReason::Killed)
            }
        }
    }

    /// An access to what is not memory: an emulated device, or the bus where nobody answers.
    fn unmapped(&mut self, abort: &Abort, ipa: Ipa) -> Next {
        let (base, size) = UART;
        let uart = ipa
            .checked_offset_from(base)
            .filter(|offset| *offset < size);
        match (abort.mmio, uart) {
            (Some(mmio), Some(offset)) if !abort.stage1_walk => self.uart(&mmio, offset),
            _ => self.give_external_abort(abort),
        }
    }

    fn uart(&mut self, mmio: &Mmio, offset: u64) -> Next {
        let platform = &self.hypervisor.platform;
        if mmio.write {
            let value = mmio.stored(self.cpu.register(mmio.register));
            self.vm
                .with_uart(platform, |uart, line| uart.write(offset, value, line));
        } else {
            let value = self
                .vm
                .with_uart(platform, |uart, line| uart.read(offset, line));
            self.cpu.set_register(mmio.register, mmio.loaded(value));
        }
        self.cpu.skip_instruction();
        Next::Resume
    }

    /// What a bus says where nobody answers: a synchronous external abort, no memory error.
    fn give_external_abort(&mut self, abort: &Abort) -> Next {
        let abort = inject::ExternalAbort::from_trap(abort, self.cpu.far(), None);
        self.deliver(inject::external_abort(&self.cpu.state(), &abort))
    }

    fn undefined(&mut self) -> Next {
        self.deliver(inject::undefined(&self.cpu.state()))
    }

    /// Lets the guest take an exception; a guest whose mode makes no sense is stopped.
    pub(super) fn deliver(&mut self, exception: Result<inject::Injected, inject::BadMode>) -> Next {
        match exception {
            Ok(exception) => {
                self.cpu.deliver(&exception);
                Next::Resume
            }
            Err(error) => {
                log::error!("event=error what=guest vm={} why={error}", self.vm.name);
                self.stop(StopReason::Killed)
            }
        }
    }

    pub(super) fn stop(&mut self, reason: StopReason) -> Next {
        self.hypervisor.stop(self.vm, reason);
        self.park()
    }

    /// This vCPU goes off. Whoever turns the last one off for good ends the machine.
    fn park(&mut self) -> Next {
        self.vcpu.turn_off();
        self.hypervisor.settle(self.vm);
        if self.hypervisor.is_idle() {
            Next::Halt
        } else {
            Next::Park
        }
    }
}
