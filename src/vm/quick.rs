//! The exits that come often and are small: hypercalls, ID registers, SGIs, emulated devices.
//!
//! They need no more of the guest's registers than an ordinary function call saves, so the vectors
//! try [`Exit::quick`] before they save the others. It either does everything that
//! [`Exit::synchronous`] would do, or nothing and says so. Nothing in here can stop a VM or turn a vCPU
//! off.
//!
//! A VM that is stopped between the check here and the return to the guest is left at once again: who
//! stops it kicks its CPUs afterwards.

use super::cpu::GuestCpu;
use super::exit::{Exit, device};
use super::hypercall::{Hypercall, status};
use super::hypervisor::Platform;
use super::id_registers;
use super::psci::Call;
use crate::ras::esr::{Quick, System};

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// Handles the synchronous exception, if it is one of these; the guest is to go on then. False
    /// if it is not, and nothing has been done.
    #[inline]
    pub fn quick(&mut self) -> bool {
        if self.vm.is_stopped() {
            return false;
        }
        match Quick::decode(self.cpu.esr()) {
            Some(Quick::Call) => self.quick_call(),
            Some(Quick::System(system)) if self.cpu.has_register(system.rt) => {
                self.quick_system_register(&system)
            }
            Some(Quick::Access(access)) if self.cpu.has_register(access.register) => {
                let ipa = Quick::ipa(self.cpu.hpfar(), self.cpu.far());
                let Some(device) = device(ipa, self.vm.vcpus.len()) else {
                    return false;
                };
                self.emulate(&access, device);
                true
            }
            _ => false,
        }
    }

    /// A call whose answer its number decides.
    fn quick_call(&mut self) -> bool {
        // SMCCC: the function identifier is w0, whatever is in the upper half.
        let function = (self.cpu.register(0) & 0xffff_ffff) as u32;
        let answer = if Hypercall::is_one(function) {
            Hypercall::is_unknown(function).then_some(status::NOT_SUPPORTED)
        } else {
            Call::quick(function, || self.cpu.register(1))
        };
        if let Some(answer) = answer {
            self.cpu.set_register(0, answer.cast_unsigned());
        }
        answer.is_some()
    }

    /// The register of an ID that is read, or one that sends an interrupt.
    fn quick_system_register(&mut self, system: &System) -> bool {
        if system.is_read {
            if !id_registers::is_id_register(system.register) {
                return false;
            }
            let value = self.id_register(system.register);
            self.cpu.set_register(system.rt, value);
        } else if !self.write_interrupt_register(system) {
            return false;
        }
        self.cpu.skip_instruction();
        true
    }
}
