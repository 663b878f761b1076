//! Why a guest stopped running, and what is done about it.
//!
//! Nothing a guest does can make this panic, wait for ever or touch another VM: what is not
//! understood gives the guest the exception that hardware without that thing would give it.
//!
//! Any CPU may stop any VM at any time. So a VM that is stopped gets nothing done, none of its exits
//! ends in its guest, and its map is left alone: a stage-2 table gone bad may be why it was stopped.

use super::config::{DISTRIBUTOR, ERROR_DEVICE, REDISTRIBUTORS, UART};
use super::cpu::GuestCpu;
use super::error_device::{Effect, Injection as InjectionRequest, InjectionKind, Report};
use super::hypercall::{Hypercall, Pages};
use super::hypervisor::{Hypervisor, Platform, StopReason, Vm};
use super::id_registers::{self, IdRegisters};
use super::psci::{Call, status};
use super::system_registers::{self, Answer};
use super::vcpu::{Power, Vcpu};
use super::vgic::{
    CpuInterface, Frame, Others, PHYSICAL_TIMER, REDISTRIBUTOR_SIZE, VIRTUAL_TIMER, VcpuSet,
};
use crate::addr::{Ipa, PAGE_SIZE};
use crate::ras::cper::Severity;
use crate::ras::esr::{Abort, Access, Fault, Mmio, Syndrome, System, SystemRegister};
use crate::ras::event::Origin;
use crate::ras::inject;
use crate::ras::pipeline::{Injection, Occasion};
use crate::stage2::Lookup;

/// Size in bytes of HVC, which has been executed when it is seen.
const HVC_SIZE: u64 = 4;

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

/// The physical interrupts that ended a guest's run, as far as they are its own business. They have
/// been acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// The guest's virtual timer fired. The interrupt stays active.
    pub virtual_timer: bool,
    /// The guest's physical timer fired. The interrupt stays active.
    pub physical_timer: bool,
    /// The virtual CPU interface wants maintenance.
    pub maintenance: bool,
    /// Interrupts of devices. They stay active.
    pub devices: DeviceInterrupts,
}

/// Physical INTIDs of a few devices' interrupts that were acknowledged together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInterrupts {
    intids: [u16; Self::MAX],
    len: usize,
}

impl DeviceInterrupts {
    /// Most that are taken at one exit. The next one comes at the next.
    pub const MAX: usize = 8;

    /// Adds one. False if there is no room.
    pub fn push(&mut self, intid: u16) -> bool {
        let Some(slot) = self.intids.get_mut(self.len) else {
            return false;
        };
        *slot = intid;
        self.len += 1;
        true
    }

    /// Whether one more would be too many.
    pub const fn is_full(&self) -> bool {
        self.len == Self::MAX
    }

    /// Their INTIDs.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.intids.iter().take(self.len).copied()
    }
}

/// An emulated device, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Gic(Frame, u64),
    Uart(u64),
    Errors(u64),
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
        let next = match Syndrome::decode(self.cpu.esr()) {
            Syndrome::Abort(abort) if abort.fault.is_external() => self.external_abort(&abort),
            _ if self.vm.is_stopped() => Next::Resume,
            Syndrome::Abort(abort) => self.stage2_fault(&abort),
            Syndrome::System(system) => self.system_register(&system),
            Syndrome::Hvc(0) => self.call(),
            // HVC returns behind itself, a trapped SMC to itself (Arm ARM D1.3.5).
            Syndrome::Smc(0) => {
                self.cpu.skip_instruction();
                self.call()
            }
            Syndrome::Hvc(_) => self.undefined(HVC_SIZE),
            _ => self.undefined(0),
        };
        self.unless_stopped(next)
    }

    /// `next`, but the guest only where its VM has not been stopped, by whomever.
    pub(super) fn unless_stopped(&mut self, next: Next) -> Next {
        if next == Next::Resume && self.vm.is_stopped() {
            self.park()
        } else {
            next
        }
    }

    /// Interrupts came.
    pub fn interrupt(&mut self, arrived: Arrived) -> Next {
        let (vgic, vcpu) = (&self.vm.vgic, self.vcpu.index);
        let cpu = self.cpu.interrupts();
        // Also where the vCPU is about to stop: a physical interrupt that nobody knew to be active
        // would never come again, in no later life of this vCPU.
        if arrived.virtual_timer {
            vgic.timer(vcpu, VIRTUAL_TIMER, cpu);
        }
        if arrived.physical_timer {
            vgic.timer(vcpu, PHYSICAL_TIMER, cpu);
        }
        let (vm, hypervisor) = (self.vm, self.hypervisor);
        for physical in arrived.devices.iter() {
            hypervisor.device_interrupt(vm, self.vcpu, physical, Some(&mut *cpu));
        }
        if self.vm.is_stopped() {
            return self.park();
        }
        if arrived.maintenance {
            vgic.maintain(vcpu, cpu);
        }
        vgic.answer(vcpu, cpu);
        Next::Resume
    }

    /// An access to a system register that is not the guest's own.
    fn system_register(&mut self, system: &System) -> Next {
        if !system.is_read && self.write_interrupt_register(system) {
            self.cpu.skip_instruction();
            return Next::Resume;
        }
        if system.is_read && id_registers::is_id_register(system.register) {
            let value = self.id_register(system.register);
            self.cpu.set_register(system.rt, value);
            self.cpu.skip_instruction();
            return Next::Resume;
        }
        match system_registers::answer(system) {
            Answer::Value(value) => {
                if system.is_read {
                    self.cpu.set_register(system.rt, value);
                }
                self.cpu.skip_instruction();
                Next::Resume
            }
            Answer::Undefined => self.undefined(0),
        }
    }

    /// What the guest reads in an ID register. It is worked out once for each of them: this CPU is the
    /// only one that the vCPU ever runs on.
    pub(super) fn id_register(&self, register: SystemRegister) -> u64 {
        let shown = self.vcpu.id_registers.call_once(|| {
            let host = |crm, op2| self.cpu.id_register(crm, op2);
            IdRegisters::new(host, self.vm.ipa_bits)
        });
        shown.get(register)
    }

    /// False where the interrupt controller has no such register.
    pub(super) fn write_interrupt_register(&mut self, system: &System) -> bool {
        let value = self.cpu.register(system.rt);
        let (vm, platform) = (self.vm, &self.hypervisor.platform);
        let others = OtherCpus { vm, platform };
        let (register, cpu) = (system.register, self.cpu.interrupts());
        let written =
            (vm.vgic).write_system_register(self.vcpu.index, register, value, cpu, &others);
        if let Some(concerned) = written {
            self.concern(concerned);
        }
        written.is_some()
    }

    /// Has vCPUs look after their list registers: this one at once, the others by a kick.
    fn concern(&mut self, concerned: VcpuSet) {
        if concerned == VcpuSet::NONE {
            return;
        }
        let (vm, platform) = (self.vm, &self.hypervisor.platform);
        vm.knock(platform, concerned, Some(self.vcpu.pcpu));
        vm.vgic.answer(self.vcpu.index, self.cpu.interrupts());
    }

    /// SMCCC: function in w0, arguments from x1, result in x0.
    fn call(&mut self) -> Next {
        let [function, a, b, c] = [0, 1, 2, 3].map(|number| self.cpu.register(number));
        // SMCCC: the function identifier is w0, whatever is in the upper half.
        let function = (function & 0xffff_ffff) as u32;
        if let Some(call) = Hypercall::decode(function, [a, b, c]) {
            return self.service(call);
        }
        let answer = match Call::decode(function, [a, b, c]) {
            Call::Answer(value) => value,
            Call::CpuOn {
                target,
                entry,
                context,
            } => self.cpu_on(target, entry, context),
            Call::AffinityInfo { target, level } => self.affinity_info(target, level),
            Call::CpuSuspend => {
                self.cpu.interrupts().wait();
                status::SUCCESS
            }
            Call::CpuOff => return self.cpu_off(),
            Call::SystemOff => return self.stop(StopReason::Off),
            Call::SystemReset => {
                let _ = self.hypervisor.reset(self.vm);
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
        // Kept until the vCPU is on.
        let place = self.vm.follow(Ipa::new(entry));
        let entry_is_memory = entry.is_multiple_of(4)
            && place.as_ref().is_ok_and(|place| {
                matches!(
                    place.lookup(),
                    Lookup::Mapped { .. } | Lookup::Parked { .. }
                )
            });
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

    /// A VM whose last vCPU goes off can never run again, for only its own vCPUs can turn one on.
    fn cpu_off(&mut self) -> Next {
        self.go_off();
        let all_off = self.vm.vcpus.iter().all(|it| it.power() == Power::Off);
        if all_off && !self.vm.is_stopped() {
            self.hypervisor.stop(self.vm, StopReason::Off);
        }
        self.leave()
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
        if let Some(refusal) = inject::Refusal::of(abort.fault) {
            let write = abort.access == Access::Write;
            let (state, far) = (self.cpu.state(), self.cpu.far());
            return self.deliver(inject::stage1_fault(&state, far, write, refusal.status()));
        }
        let Some(page) = self.faulting_page(abort) else {
            return self.give_external_abort(abort);
        };
        // The offset is known but for walks, whose page is all that matters.
        let ipa = abort.ipa(self.cpu.hpfar(), self.cpu.far()).unwrap_or(page);
        // No memory is mapped where an emulated device is (`config`), so this needs no look at the
        // map, and no lock.
        if let (Some(mmio), Some(device)) = (abort.mmio, self.device(ipa))
            && !abort.stage1_walk
            && !abort.fault.is_permission()
        {
            self.emulate(&mmio, device);
            return Next::Resume;
        }
        let vm = self.vm;
        let place = match vm.follow(ipa) {
            Ok(place) => place,
            Err(damage) => {
                log::error!("event=error what=stage2 vm={} why={damage}", vm.name);
                return self.stop(StopReason::Killed);
            }
        };
        match place.lookup() {
            // The access was made while the page was a hole. What is told of it takes locks of its own.
            Lookup::Poisoned { pa, size, .. } => {
                drop(place);
                match size {
                    PAGE_SIZE => self.touched(abort, ipa, pa),
                    _ => self.under_hole(abort, ipa, pa),
                }
            }
            Lookup::Mapped { .. } if abort.fault.is_translation() => Next::Resume,
            Lookup::Mapped { pa, attrs, .. } if self.may_retry(abort, pa, attrs) => Next::Resume,
            Lookup::Parked { .. } => self.reopen(ipa, place),
            Lookup::Mapped { .. } | Lookup::Unmapped => {
                drop(place);
                self.give_external_abort(abort)
            }
        }
    }

    /// The page that the fault is about. HPFAR_EL2 has none for most permission faults (Arm ARM, "HPFAR_EL2");
    /// then it is where the guest's stage 1 leads now.
    fn faulting_page(&self, abort: &Abort) -> Option<Ipa> {
        let page = abort.ipa_page(self.cpu.hpfar());
        if page.is_some() || !abort.fault.is_permission() {
            return page;
        }
        let far = abort.far(self.cpu.far())?;
        self.cpu.translate(far).map(Ipa::page)
    }

    /// A load from or store to an emulated device.
    pub(super) fn emulate(&mut self, mmio: &Mmio, device: Device) {
        let (size, vcpu) = (mmio.size, self.vcpu.index);
        let (vm, platform) = (self.vm, &self.hypervisor.platform);
        let others = OtherCpus { vm, platform };
        let concerned = if mmio.write {
            let value = mmio.stored(self.cpu.register(mmio.register));
            match device {
                Device::Gic(frame, offset) => {
                    let place = (frame, offset, size);
                    vm.vgic
                        .write(vcpu, place, value, self.cpu.interrupts(), &others)
                }
                Device::Uart(offset) => {
                    let write =
                        vm.with_uart(platform, |uart, line| uart.write(offset, value, line));
                    write.1
                }
                Device::Errors(offset) => {
                    self.write_errors(offset, value);
                    VcpuSet::NONE
                }
            }
        } else {
            let (value, concerned) = match device {
                Device::Gic(frame, offset) => {
                    let place = (frame, offset, size);
                    let value = vm.vgic.read(vcpu, place, self.cpu.interrupts(), &others);
                    (value, VcpuSet::NONE)
                }
                Device::Uart(offset) => {
                    vm.with_uart(platform, |uart, line| uart.read(offset, line))
                }
                Device::Errors(offset) => {
                    let value = vm.errors.as_ref().map_or(0, |errors| errors.read(offset));
                    (value, VcpuSet::NONE)
                }
            };
            self.cpu.set_register(mmio.register, mmio.loaded(value));
            concerned
        };
        self.concern(concerned);
        self.cpu.skip_instruction();
    }

    /// The emulated device that has registers at `ipa`.
    fn device(&self, ipa: Ipa) -> Option<Device> {
        device(ipa, self.vm.vcpus.len()).or_else(|| {
            let (base, size) = ERROR_DEVICE;
            let offset = ipa.checked_offset_from(base)?;
            (offset < size && self.vm.errors.is_some()).then_some(Device::Errors(offset))
        })
    }

    fn write_errors(&mut self, offset: u64, value: u64) {
        let Some(errors) = &self.vm.errors else {
            return;
        };
        match errors.write(offset, value) {
            Effect::Inject(injection) => errors.injected(self.inject_for_firmware(&injection)),
            Effect::Show(report) => self.hypervisor.report(self.vm, report),
            effect => {
                let here = Some(self.vcpu.pcpu);
                self.vm.signal(&self.hypervisor.platform, effect, here);
                self.vm.vgic.answer(self.vcpu.index, self.cpu.interrupts());
            }
        }
    }

    /// Makes an error that the guest asks its firmware for. It stays latent: the guest decides whether it
    /// is found or consumed. Returns what it will be told when it is found.
    fn inject_for_firmware(&self, injection: &InjectionRequest) -> Option<Report> {
        let (kind, severity) = match injection.kind {
            InjectionKind::Corrected => (Injection::Corrected, Severity::Corrected),
            InjectionKind::Uncorrected => (Injection::Optional, Severity::Recoverable),
        };
        let range = self
            .injectable(Pages::new(injection.page.get(), 1, 1)?)
            .ok()?;
        let occasion = Occasion {
            origin: Origin::Injected,
            cpu: self.vcpu.pcpu,
            consumer: None,
        };
        let by = Some(self.vm.vmid);
        let ras = &self.hypervisor.ras;
        ras.inject(&occasion, range, kind, by, self.hypervisor);
        Some(Report {
            severity,
            ..Report::lost(injection.page)
        })
    }

    /// What a bus says where nobody answers: a synchronous external abort, no memory error.
    pub(super) fn give_external_abort(&mut self, abort: &Abort) -> Next {
        let abort = inject::ExternalAbort::from_trap(abort, self.cpu.far(), None);
        self.deliver(inject::external_abort(&self.cpu.state(), &abort))
    }

    /// The instruction that ends `behind` bytes before PC, or begins there, is undefined.
    fn undefined(&mut self, behind: u64) -> Next {
        let mut state = self.cpu.state();
        state.pc = state.pc.wrapping_sub(behind);
        self.deliver(inject::undefined(&state))
    }

    /// Lets the guest take an exception; a guest whose mode makes no sense is stopped. Always inlined, so that what
    /// was worked out goes from registers to registers.
    #[inline(always)]
    pub(super) fn deliver(&mut self, exception: Result<inject::Injected, inject::BadMode>) -> Next {
        match exception {
            Ok(exception) => {
                self.cpu.deliver(&exception);
                Next::Resume
            }
            Err(error) => self.stop_nonsense(error),
        }
    }

    #[cold]
    fn stop_nonsense(&mut self, error: inject::BadMode) -> Next {
        log::error!("event=error what=guest vm={} why={error}", self.vm.name);
        self.stop(StopReason::Killed)
    }

    pub(super) fn stop(&mut self, reason: StopReason) -> Next {
        self.hypervisor.stop(self.vm, reason);
        self.park()
    }

    /// This vCPU goes off. Whoever turns the last one off for good ends the machine.
    pub(super) fn park(&mut self) -> Next {
        self.go_off();
        self.leave()
    }

    /// Puts this vCPU's state away, then turns it off. The latter is the last that is done to it, and is
    /// done once: from then on another vCPU may turn it on, and what is written over that is lost.
    fn go_off(&mut self) {
        self.cpu.interrupts().silence_timers();
        self.vm.vgic.stop(self.vcpu.index, self.cpu.interrupts());
        self.vcpu.turn_off();
    }

    /// What the CPU does now that its vCPU is off.
    fn leave(&self) -> Next {
        self.hypervisor.settle(self.vm);
        if self.hypervisor.is_idle() {
            Next::Halt
        } else {
            Next::Park
        }
    }
}

/// The emulated device of a VM with `vcpus` vCPUs that has registers at `ipa`.
pub(super) fn device(ipa: Ipa, vcpus: usize) -> Option<Device> {
    let offset = |(base, size): (Ipa, u64)| {
        ipa.checked_offset_from(base)
            .filter(|offset| *offset < size)
    };
    if let Some(offset) = offset(DISTRIBUTOR) {
        return Some(Device::Gic(Frame::Distributor, offset));
    }
    let redistributors = (REDISTRIBUTORS.0, REDISTRIBUTOR_SIZE * vcpus as u64);
    if let Some(offset) = offset(redistributors) {
        return Some(Device::Gic(Frame::Redistributors, offset));
    }
    offset(UART).map(Device::Uart)
}

/// A VM's CPUs, as its interrupt controller needs them.
struct OtherCpus<'a, P: Platform> {
    vm: &'a Vm<P>,
    platform: &'a P,
}

impl<P: Platform> Others for OtherCpus<'_, P> {
    fn kick(&self, vcpu: usize) {
        if let Some(vcpu) = self.vm.vcpus.get(vcpu) {
            self.platform.kick(vcpu.pcpu);
        }
    }

    fn timer_lines(&self, vcpu: usize) -> u32 {
        let vcpu = self.vm.vcpus.get(vcpu);
        vcpu.map_or(0, |vcpu| self.platform.timer_lines(vcpu.pcpu))
    }
}
