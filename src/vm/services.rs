//! The answers to [`Hypercall`]s: about the caller's own VM, and nothing else.

use super::cpu::GuestCpu;
use super::exit::{Exit, Next};
use super::hypercall::{
    CALLS, Hypercall, MAX_INJECTED, MAX_INJECTED_EVER, MAX_RANGE, Pages, status,
};
use super::hypervisor::Platform;
use crate::addr::{Ipa, PAGE_SIZE, PaRange};
use crate::devmem::Policy;
use crate::ras::esr::{Access, SyncErrorType};
use crate::ras::event::{Attempt, Origin};
use crate::ras::inject::ExternalAbort;
use crate::ras::pipeline::{Injection, LostPage, Occasion};
use crate::ras::repair::{How, RepairError};
use core::sync::atomic::Ordering;

/// What CAPABILITIES says in x2 besides what the machine has ([`Capabilities`], in the low half): what
/// Cordon makes of it. Bits that are in neither are 0.
///
/// [`Capabilities`]: crate::ras::capabilities::Capabilities
pub mod capability {
    /// A lost page is cut out by itself; what is around it stays.
    pub const CONTAINED: u64 = 1 << 32;
    /// Consumption is told by a synchronous external abort.
    pub const ABORTS: u64 = 1 << 33;
    /// What is lost stays lost when the VM is reset, and its description then says what is.
    pub const REMEMBERED: u64 = 1 << 34;
    /// This VM is told of errors by records as well.
    pub const RECORDS: u64 = 1 << 35;
}

/// Size of HVC and SMC, which have been stepped over by now.
const CALL_SIZE: u64 = 4;

/// x0 to x3.
type Answer = [u64; 4];

const fn refused(status: i64) -> Answer {
    [status.cast_unsigned(), 0, 0, 0]
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// Answers a call.
    pub(super) fn service(&mut self, call: Hypercall) -> Next {
        let answer = match call {
            // What is not there changes no register but the one that says so.
            Hypercall::Answer([x0, ..]) if x0.cast_signed() == status::NOT_SUPPORTED => {
                self.cpu.set_register(0, x0);
                return Next::Resume;
            }
            Hypercall::Answer(answer) => answer,
            Hypercall::Capabilities => self.capabilities(),
            Hypercall::Inject(pages, kind) => return self.inject(pages, kind),
            Hypercall::Query(pages) => self.query(pages),
            Hypercall::Acknowledge(pages) => self.acknowledge(pages),
            Hypercall::Counters(group) => self.counters(group),
            Hypercall::Repair(pages, how) => self.repair(pages, how),
            Hypercall::Policy(ipa, policy) => self.policy(ipa, policy),
            Hypercall::Protect(pages, narrowing) => refused(self.protect(pages, narrowing)),
        };
        self.answer(answer);
        Next::Resume
    }

    fn answer(&mut self, answer: Answer) {
        for (register, value) in (0..).zip(answer) {
            self.cpu.set_register(register, value);
        }
    }

    fn capabilities(&self) -> Answer {
        use capability::{ABORTS, CONTAINED, RECORDS, REMEMBERED};
        let records = self.vm.errors.as_ref().map_or(0, |_| RECORDS);
        let own = CONTAINED | ABORTS | REMEMBERED | records;
        let bits = self.hypervisor.capabilities.bits() | own;
        [0, CALLS, bits, MAX_INJECTED << 32 | MAX_RANGE]
    }

    /// An error in the caller's own memory. One that is consumed has no answer but the abort: the call
    /// itself is the access, and its registers stay as they are.
    fn inject(&mut self, pages: Pages, kind: Injection) -> Next {
        let range = match self.injectable(pages) {
            Ok(range) => range,
            Err(status) => {
                self.answer(refused(status));
                return Next::Resume;
            }
        };
        let (hypervisor, vm) = (self.hypervisor, self.vm);
        let attempt = Attempt::Access(Access::Read);
        let consumed = self.occasion(Origin::Injected, Some(attempt));
        let required = kind == Injection::Required;
        let occasion = Occasion {
            consumer: consumed.consumer.filter(|_| required),
            ..consumed
        };
        let by = Some(vm.vmid);
        let event = hypervisor
            .ras
            .inject(&occasion, range, kind, by, hypervisor);
        hypervisor.offline_due(self.vcpu.pcpu);
        if !required {
            self.answer([0, range.size() / PAGE_SIZE, 0, 0]);
            return Next::Resume;
        }
        let abort = ExternalAbort {
            access: Access::Read,
            walk: None,
            // No instruction has named a virtual address.
            far: None,
            cache_maintenance: false,
            ea: false,
            error_type: Some(SyncErrorType::Recoverable),
        };
        let mut state = self.cpu.state();
        state.pc = state.pc.wrapping_sub(CALL_SIZE);
        let ipa = Some(pages.range().start());
        self.abort_guest(&event, (ipa, None), &abort, (&state, attempt))
    }

    /// The memory behind the first of `pages`, as far as the guest may have errors there; it is then
    /// charged with them.
    pub(super) fn injectable(&self, pages: Pages) -> Result<PaRange, i64> {
        let vm = self.vm;
        let range = self.hypervisor.memory_behind(vm.vmid, pages);
        let range = range.ok_or(status::NOT_MEMORY)?;
        let devmem = &self.hypervisor.ras.devmem;
        let region = devmem.find(range.start()).ok_or(status::NOT_MEMORY)?;
        // A run over the border of two regions is refused as well: it can be asked for in two calls.
        let shared = !region.range().contains_range(range)
            || region
                .mappings()
                .any(|other| other.vm != vm.vmid && other.range.overlaps(range));
        if shared {
            return Err(status::DENIED);
        }
        let pages = range.size() / PAGE_SIZE;
        let within = |injected: u64| {
            let injected = injected.saturating_add(pages);
            (injected <= MAX_INJECTED_EVER).then_some(injected)
        };
        let charged = vm
            .injected
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        charged.map(|_| range).map_err(|_| status::DENIED)
    }

    /// What is bad of `pages`.
    fn lost(&self, pages: Pages) -> impl Iterator<Item = LostPage> {
        let (first, last) = (pages.range().start(), pages.range().last());
        (self.hypervisor.ras).lost_pages_in(self.vm.vmid, first, last)
    }

    fn query(&self, pages: Pages) -> Answer {
        let first = pages.range().start();
        if self
            .hypervisor
            .ras
            .devmem
            .resolve(self.vm.vmid, first)
            .is_none()
        {
            return refused(status::NOT_MEMORY);
        }
        let none = (0, u64::MAX);
        let (count, first) = self.lost(pages).fold(none, |(count, first), page| {
            (count + 1, first.min(page.ipa.get()))
        });
        [0, count, first, 0]
    }

    fn acknowledge(&self, pages: Pages) -> Answer {
        let ras = &self.hypervisor.ras;
        let news = self
            .lost(pages)
            .filter(|lost| ras.acknowledge(self.vm.vmid, lost.page.pa));
        let news = news.count() as u64;
        if news > 0 {
            let (name, ipa) = (&self.vm.name, pages.range().start());
            log::info!(target: "ras", "event=acknowledged vm={name} ipa={ipa} pages={news}");
        }
        [0, news, 0, 0]
    }

    fn repair(&self, pages: Pages, how: How) -> Answer {
        let (hypervisor, vm) = (self.hypervisor, self.vm.vmid);
        let first = pages.range().start();
        if hypervisor.ras.devmem.resolve(vm, first).is_none() {
            return refused(status::NOT_MEMORY);
        }
        match hypervisor.repair_range(vm, pages, how, self.vcpu.pcpu) {
            Ok(done) => [0, done.pages, done.left, 0],
            Err(RepairError::NotPoisoned | RepairError::NotMapped) => refused(status::NOT_BAD),
            Err(RepairError::NoSpare | RepairError::OutOfFrames | RepairError::NoRoom) => {
                refused(status::NO_ROOM)
            }
            Err(RepairError::Shared | RepairError::LargerGranule) => refused(status::DENIED),
            Err(_) => refused(status::STILL_BAD),
        }
    }

    fn policy(&self, ipa: Ipa, policy: Policy) -> Answer {
        let cpu = self.vcpu.pcpu;
        if self.hypervisor.set_policy(self.vm.vmid, ipa, policy, cpu) {
            [0; 4]
        } else {
            refused(status::NOT_MEMORY)
        }
    }

    fn counters(&self, group: u64) -> Answer {
        let ras = &self.hypervisor.ras;
        let met = ras
            .announcer
            .counters()
            .vm(self.vm.vmid)
            .unwrap_or_default();
        let lost = || ras.lost_pages_of(self.vm.vmid);
        match group {
            0 => [0, lost().count() as u64, met.aborts, met.serrors],
            1 => [0, met.distinct, met.repeated(), met.touched],
            2 => {
                let known = lost().filter(|lost| lost.page.acknowledged);
                let injected = self.vm.injected.load(Ordering::Relaxed);
                [0, injected, known.count() as u64, met.filtered]
            }
            _ => refused(status::INVALID),
        }
    }
}
