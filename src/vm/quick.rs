//! The exits that come often and are small, or must not take long: hypercalls, ID registers, SGIs, emulated
//! devices; and memory errors.
//!
//! They need no more of the guest's registers than an ordinary function call saves, so the vectors
//! try [`Exit::quick`] before they save the others. It either does everything that
//! [`Exit::synchronous`] would do, or nothing and says so. What is but a [request](Handled::Request) can neither stop
//! a VM nor turn a vCPU off.
//!
//! A VM that is stopped between the check here and the return to the guest is left at once again: who
//! stops it kicks its CPUs afterwards.

use super::cpu::GuestCpu;
use super::exit::{Exit, Next, device};
use super::hypercall::{Hypercall, status};
use super::hypervisor::Platform;
use super::id_registers;
use super::psci::Call;
use crate::addr::{Ipa, Pa};
use crate::ras::esr::{Abort, Quick, System};

/// What became of an exit on the quick way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Handled {
    /// Nothing was done: it is for the thorough way.
    No,
    /// The guest has what it asked for, and goes on.
    Request,
    /// Nothing was done yet: it may be about lost memory, which [`Exit::memory_error`] knows.
    PerhapsLost,
}

impl Handled {
    const fn request(done: bool) -> Self {
        if done { Self::Request } else { Self::No }
    }
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// Handles the synchronous exception, if it is nothing but a request.
    #[inline]
    pub fn quick(&mut self) -> Handled {
        if self.vm.is_stopped() {
            return Handled::No;
        }
        match Quick::decode(self.cpu.esr()) {
            Some(Quick::Call) => Handled::request(self.quick_call()),
            Some(Quick::System(system)) if self.cpu.has_register(system.rt) => {
                Handled::request(self.quick_system_register(&system))
            }
            Some(Quick::Access(access)) if self.cpu.has_register(access.register) => {
                let ipa = Quick::ipa(self.cpu.hpfar(), self.cpu.far());
                let Some(device) = device(ipa, self.vm.vcpus.len()) else {
                    return Handled::PerhapsLost;
                };
                self.emulate(&access, device);
                Handled::Request
            }
            Some(Quick::Access(_) | Quick::Abort) => Handled::PerhapsLost,
            _ => Handled::No,
        }
    }

    /// Handles an external abort, or the touch of a hole of one page. `None` if it is neither, and nothing has
    /// been done. It is no part of [`Self::quick`], for requests would have to save the registers that it needs.
    pub fn memory_error(&mut self) -> Option<Next> {
        let esr = self.cpu.esr();
        let next = if let Some(abort) = Quick::translation_fault(esr) {
            let (ipa, pa) = self.page_sized_hole(&abort)?;
            self.touch(&abort, ipa, pa)
        } else {
            self.external_abort(&Quick::external_abort(esr)?)
        };
        Some(self.unless_stopped(next))
    }

    /// The hole of one page that the access met, and where in it. In a larger one there is good memory, too.
    fn page_sized_hole(&self, abort: &Abort) -> Option<(Ipa, Pa)> {
        let (hpfar, far) = (self.cpu.hpfar(), self.cpu.far());
        let page = abort.ipa_page(hpfar)?;
        let ipa = abort.ipa(hpfar, far).unwrap_or(page);
        let pa = self.vm.stage2.lock().page_sized_hole(ipa)?;
        Some((ipa, pa))
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
