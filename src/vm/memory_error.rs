//! Memory errors that a guest ran into.
//!
//! Whatever the way: an external abort by hardware the first time, a stage-2 fault on the hole every
//! time after, an SError where hardware could not be precise. The page is contained before the
//! guest hears of it, so that its handler runs with the hole in place.

use super::cpu::GuestCpu;
use super::error_device::{ErrorDevice, NotTold, Report};
use super::exit::{Exit, Next};
use super::hypervisor::{Platform, StopReason};
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange};
use crate::ras::cper::Severity;
use crate::ras::esr::{Abort, AsyncErrorType, SError, SErrorKind, Syndrome};
use crate::ras::event::{Attempt, Consumer, ErrorEvent, Origin, Stage};
use crate::ras::inject::{self, ExternalAbort, GuestState};
use crate::ras::journal::Note;
use crate::ras::loops::{self, Circle};
use crate::ras::pipeline::{Collected, Consumption, Occasion, Touch, Toucher};
use crate::ras::triage::{self, Interrupted, Verdict};
use crate::stage2::Lookup;
use core::fmt;

/// How the page of a consumption was found, as `event=resolved` says it.
mod by {
    /// The record says so.
    pub(super) const CPER: &str = "cper";
    /// The guest's stage 1 leads there from FAR.
    pub(super) const TRANSLATION: &str = "at";
    /// The CPU says so, in PFAR.
    pub(super) const PFAR: &str = "pfar";
}

/// A page of this VM that went bad.
#[derive(Clone, Copy, Debug)]
struct Resolved {
    pa: Pa,
    ipa: Ipa,
    by: &'static str,
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// A synchronous external abort: the guest consumed poison, or asked a bus where nobody
    /// answers.
    pub(super) fn external_abort(&mut self, abort: &Abort) -> Next {
        let (event, collected) = self.collect(Origin::Sea, Some(abort.into()));
        if let (Some(page), Some(level)) = (collected.own, abort.walk_error()) {
            // A page first consumed as a stage-1 table is a table to every later walk as well.
            self.hypervisor.ras.remember_walk(page, level);
        }
        // A table of Cordon's that has another in its place is none of the guest's business.
        if collected.rebuilt && collected.own.is_none() && abort.walk_error().is_some() {
            return Next::Resume;
        }
        // A walk may have met a table of the guest's, or one of Cordon's. A record that names memory
        // of this VM speaks for the former, even if another CPU's error came along with it.
        let ours = collected.unclaimed && collected.own.is_none();
        let who = triage::Consumer::of(abort, false, ours);
        let verdict = triage::sync(abort, who, self.hypervisor.triage)
            .map_or(Verdict::ContainAndAbort, |decision| decision.verdict);
        match verdict {
            _ if collected.fatal => self.fatal("firmware-says-fatal", &event, &collected),
            Verdict::StopMachine => self.fatal("uncontainable", &event, &collected),
            Verdict::StopVm if who == triage::Consumer::Stage2Walk => {
                self.give_up("stage2-table-lost", event)
            }
            Verdict::StopVm => self.give_up("uncontained-error", event),
            Verdict::Log => Next::Resume,
            // Without a record nothing has been contained, and the access would abort for ever.
            Verdict::Restart if collected.records > 0 => Next::Resume,
            // The access is made again, to memory that is in order; or it met another page, and will say so.
            _ if collected.is_repaired => Next::Resume,
            _ => {
                let resolved = self.resolve(abort, &event, &collected);
                let consumed = |it: Resolved| self.hypervisor.ras.consumed(self.toucher(), it.pa);
                self.count(resolved.map(consumed));
                let ipa = resolved.map(|resolved| resolved.ipa);
                self.meet(abort, ipa);
                self.tell(abort, &event, ipa, None)
            }
        }
    }

    /// An SError while the guest ran.
    pub fn serror(&mut self) -> Next {
        match Syndrome::decode(self.cpu.esr()) {
            Syndrome::SError(error) => self.asynchronous(error),
            _ => self.unless_stopped(Next::Resume),
        }
    }

    /// An SError that the guest left behind: the barrier at EL2's entry has found it pending, and put
    /// its syndrome into `DISR_EL1`. What the exit is about is still to be seen to.
    pub fn deferred_serror(&mut self, disr: u64) -> Next {
        self.asynchronous(SError::decode(disr))
    }

    fn asynchronous(&mut self, error: SError) -> Next {
        let error = match self.cpu.overstates_serrors() {
            true => triage::not_overstated(error),
            false => error,
        };
        let (event, collected) = self.collect(Origin::SError, None);
        let decision = triage::serror(&error, Interrupted::Guest, self.hypervisor.triage);
        let next = match decision.verdict {
            _ if collected.fatal => self.fatal("firmware-says-fatal", &event, &collected),
            Verdict::StopMachine => self.fatal("uncontainable", &event, &collected),
            Verdict::StopVm => self.give_up("uncontained-error", event),
            Verdict::Log | Verdict::Restart => Next::Resume,
            _ => self.tell_by_serror(&error, &event),
        };
        self.unless_stopped(next)
    }

    /// The guest touched a hole that was there already.
    #[inline(never)]
    pub(super) fn touched(&mut self, abort: &Abort, ipa: Ipa, pa: Pa) -> Next {
        self.touch(abort, ipa, pa)
    }

    /// The same for the quick way. Always inlined: the abort stays in registers, and what a translation fault
    /// cannot be is not asked for.
    #[inline(always)]
    pub(super) fn touch(&mut self, abort: &Abort, ipa: Ipa, pa: Pa) -> Next {
        // There is nothing in lost memory that a cache would have to write back or forget, and a kernel
        // that cleans what others wrote there has not consumed anything.
        if abort.cache_maintenance && !abort.stage1_walk {
            self.cpu.skip_instruction();
            return Next::Resume;
        }
        if self.must_wait() || self.hypervisor.ras.mender.is_busy(pa) {
            return Next::Resume;
        }
        let touch = self.hypervisor.ras.touched(self.toucher(), pa);
        let event = ErrorEvent {
            range: PaRange::new(pa.page(), PAGE_SIZE),
            ..self.event(&self.occasion(Origin::Sea, Some(abort.into())))
        };
        self.announce(&event, Stage::Touched);
        self.count(Some(touch.consumption));
        self.meet(abort, Some(ipa));
        self.tell(abort, &event, Some(ipa), Some(touch))
    }

    /// An access was carried out for the guest, and the page met poison that nobody knew of: the guest has consumed
    /// it, by Cordon's hand.
    #[cold]
    pub(super) fn consumed(&mut self, abort: &Abort, ipa: Ipa, pa: Pa) -> Next {
        let (event, collected) = self.take_poison(abort, ipa, pa);
        if collected.fatal {
            return self.fatal("firmware-says-fatal", &event, &collected);
        }
        self.count(Some(self.hypervisor.ras.consumed(self.toucher(), pa)));
        self.meet(abort, Some(ipa));
        self.tell(abort, &event, Some(ipa), None)
    }

    /// Contains what Cordon met in its place; the page on this word alone if no record was about it.
    #[cold]
    pub(super) fn take_poison(&self, abort: &Abort, ipa: Ipa, pa: Pa) -> (ErrorEvent, Collected) {
        let (event, collected) = self.collect(Origin::Sea, Some(abort.into()));
        let by = by::TRANSLATION;
        if let Some(range) = PaRange::new(pa.page(), PAGE_SIZE)
            && !self.hypervisor.ras.is_bad(pa)
        {
            self.hypervisor.ras.contain(&event, range, self.hypervisor);
        }
        self.say_resolved(&event, &Resolved { pa, ipa, by });
        (event, collected)
    }

    /// The guest, for the poison set.
    const fn toucher(&self) -> Toucher {
        Toucher {
            vm: self.vm.vmid,
            cpu: self.vcpu.pcpu,
            siblings: self.vm.cpus(),
        }
    }

    /// Counts that this vCPU has consumed poison.
    fn count(&self, consumption: Option<Consumption>) {
        self.vcpu.count(consumption == Some(Consumption::First));
    }

    /// This vCPU meets poison, at `ipa` if that is known.
    fn meet(&self, abort: &Abort, ipa: Option<Ipa>) {
        // What the guest named, if that is known; where it led, if not.
        let far = abort.far(self.cpu.far());
        let address = far.or_else(|| ipa.map(Ipa::get));
        let now = self.hypervisor.platform.counter();
        let window = self.hypervisor.loops.window;
        self.vcpu.streak.meet(address.unwrap_or(0), now, window);
    }

    /// Takes and contains what firmware tells, on the occasion of an exception; the exception as an
    /// event of its own. Inlined, or all of both would be copied to the caller.
    #[inline(always)]
    fn collect(&self, origin: Origin, attempt: Option<Attempt>) -> (ErrorEvent, Collected) {
        let occasion = self.occasion(origin, attempt);
        let collected = self.hypervisor.ras.collect(&occasion, self.hypervisor);
        self.hypervisor.offline_due(self.vcpu.pcpu);
        let event = self.event(&occasion);
        if collected.records == 0 {
            self.announce(&event, Stage::NoRecord);
            self.say(&Note::NoRecord(event));
        }
        (event, collected)
    }

    pub(super) fn occasion(&self, origin: Origin, attempt: Option<Attempt>) -> Occasion {
        Occasion {
            origin,
            cpu: self.vcpu.pcpu,
            consumer: Some(Consumer::Vcpu {
                vm: self.vm.vmid,
                vcpu: u8::try_from(self.vcpu.index).unwrap_or(u8::MAX),
                el: self.cpu.exception_level(),
                attempt,
            }),
        }
    }

    /// The exception itself as an event, whatever records came with it.
    fn event(&self, occasion: &Occasion) -> ErrorEvent {
        let sequence = self.hypervisor.ras.next_sequence();
        occasion.event(sequence, Severity::Recoverable, None)
    }

    #[inline]
    fn say(&self, note: &Note) {
        self.hypervisor.ras.say(note, self.hypervisor);
    }

    #[inline(always)]
    fn say_made(&self, make: impl Fn() -> Note) {
        self.hypervisor.ras.say_made(make, self.hypervisor);
    }

    #[inline(always)]
    pub(super) fn announce(&self, event: &ErrorEvent, stage: Stage) {
        self.hypervisor.ras.announcer.announce(event, stage);
    }

    /// Which page of this VM the access met. HPFAR_EL2 is never valid here, so: what the CPU says, if it
    /// is one that does; where the guest's own stage 1 leads from FAR; the record's page where it leads
    /// nowhere.
    ///
    /// If the page behind FAR is no hole by now, no record was about it: none came, or only those of
    /// other CPUs, for firmware has one block for all of them. Then it is contained on the abort's word
    /// alone. The guest will be told FAR, and give up that page in any case.
    fn resolve(
        &self,
        abort: &Abort,
        event: &ErrorEvent,
        collected: &Collected,
    ) -> Option<Resolved> {
        let resolved = match self.page_in_pfar(abort) {
            Some(page) => self.contained(page, event)?,
            None => self.resolve_by_far(abort, event, collected)?,
        };
        self.say_resolved(event, &resolved);
        Some(resolved)
    }

    fn say_resolved(&self, event: &ErrorEvent, resolved: &Resolved) {
        self.say_made(|| Note::Resolved {
            seq: event.sequence,
            pa: resolved.pa.page(),
            ipa: resolved.ipa.page(),
            vm: self.vm.vmid,
            by: resolved.by,
        });
    }

    fn resolve_by_far(
        &self,
        abort: &Abort,
        event: &ErrorEvent,
        collected: &Collected,
    ) -> Option<Resolved> {
        let ipa = self.touched_address(abort);
        // What the record has made a hole of is one.
        if let (Some(ipa), Some(page)) = (ipa, collected.own)
            && collected.hole == Some(ipa.page())
        {
            let pa = Pa::new(page.get() | ipa.get() & (PAGE_SIZE - 1));
            let by = by::CPER;
            return Some(Resolved { pa, ipa, by });
        }
        let found = ipa.and_then(|ipa| Some((ipa, self.vm.stage2.lock().lookup(ipa).ok()?)));
        Some(match found {
            Some((ipa, Lookup::Poisoned { pa, .. })) => {
                let by = match collected.own {
                    Some(page) if page == pa.page() => by::CPER,
                    _ => by::TRANSLATION,
                };
                Resolved { pa, ipa, by }
            }
            Some((ipa, Lookup::Mapped { pa, .. } | Lookup::Parked { pa, .. })) => {
                let range = PaRange::new(pa.page(), PAGE_SIZE)?;
                self.hypervisor.ras.contain(event, range, self.hypervisor);
                let by = by::TRANSLATION;
                Resolved { pa, ipa, by }
            }
            _ => self.page_of(collected.own?)?,
        })
    }

    /// Where this VM has the page that the CPU says the access met (FEAT_PFAR).
    fn page_in_pfar(&self, abort: &Abort) -> Option<Resolved> {
        /// PFAR_EL2.PA, bits 55:0 (Arm ARM, PFAR_EL2).
        const ADDRESS: u64 = (1 << 56) - 1;
        // Reading the register is allowed only if it is valid: else firmware may have it trapped.
        let pfar = abort.pfar_valid.then(|| self.cpu.pfar())??;
        let resolved = self.page_of(Pa::new(pfar & ADDRESS).page())?;
        let by = by::PFAR;
        Some(Resolved { by, ..resolved })
    }

    /// `resolved`, which is a hole by now, whether a record was about it or not.
    fn contained(&self, resolved: Resolved, event: &ErrorEvent) -> Option<Resolved> {
        let found = self.vm.stage2.lock().lookup(resolved.ipa).ok()?;
        if matches!(found, Lookup::Mapped { .. }) {
            let range = PaRange::new(resolved.pa.page(), PAGE_SIZE)?;
            self.hypervisor.ras.contain(event, range, self.hypervisor);
        }
        Some(resolved)
    }

    /// Where FAR leads, if the abort has a FAR and was not on a walk: then FAR says nothing of
    /// the table that could not be read, and asking the MMU would only meet the same poison.
    fn touched_address(&self, abort: &Abort) -> Option<Ipa> {
        if abort.walk_error().is_some() || self.vm.is_stopped() {
            return None;
        }
        self.cpu.translate(abort.far(self.cpu.far())?)
    }

    /// Where this VM has the page `pa`.
    fn page_of(&self, pa: Pa) -> Option<Resolved> {
        let mut mapped = self.hypervisor.ras.users_of(pa);
        let page = mapped.find(|page| page.vm == self.vm.vmid)?;
        let by = by::CPER;
        Some(Resolved {
            pa,
            ipa: page.ipa,
            by,
        })
    }

    /// Gives the guest its synchronous external abort. Always inlined, as is what it calls, so that of the event
    /// and the guest's state what is known stays in registers. A guest whose handler is what was lost would
    /// take one after the other, for ever. `touch`: it was a hole, which is said with the abort.
    #[inline(always)]
    fn tell(
        &mut self,
        trap: &Abort,
        event: &ErrorEvent,
        ipa: Option<Ipa>,
        touch: Option<Touch>,
    ) -> Next {
        let walk = touch.and_then(|touch| touch.walk_level);
        let abort = ExternalAbort::from_trap(trap, self.cpu.far(), walk);
        let state = self.cpu.state();
        let running = self.vcpu.streak.count();
        let mut touched = touch.map(|touch| touch.count);
        if inject::handler_is_lost(&state) {
            let circle = (Circle::Vector, loops::Action::Stop);
            self.say_loop(*event, ipa, touched, circle);
            return self.give_up("handler-lost", *event);
        }
        // Before a touch was counted, it was asked.
        if touch.is_none() && self.must_wait() {
            return Next::Resume;
        }
        if let Some(circle) = loops::judge(&self.hypervisor.loops, running, &state) {
            self.say_loop(*event, ipa, touched.take(), circle);
            if circle.1 == loops::Action::Stop {
                return self.give_up("loop", *event);
            }
        }
        self.abort_guest(event, (ipa, touched), &abort, (&state, trap.into()))
    }

    /// Counts, says and gives an external abort, to a guest in this state that attempted that, at `ipa`, which it
    /// had touched so often, if it is a hole.
    #[inline(always)]
    pub(super) fn abort_guest(
        &mut self,
        event: &ErrorEvent,
        (ipa, touched): (Option<Ipa>, Option<u64>),
        abort: &ExternalAbort,
        (state, attempt): (&GuestState, Attempt),
    ) -> Next {
        let exception = inject::external_abort(state, abort);
        if let (Some(errors), Some(ipa)) = (&self.vm.errors, ipa)
            && exception.is_ok()
            && !self.leave_record(errors, event.sequence, ipa)
        {
            return Next::Resume;
        }
        if let Ok(injected) = &exception {
            self.announce(event, Stage::GuestAborted);
            if loops::is_worth_a_line(self.vcpu.streak.count()) {
                let el = self.cpu.exception_level();
                self.say_made(|| Note::Aborted {
                    seq: event.sequence,
                    vm: self.vm.vmid,
                    vcpu: self.vcpu.index,
                    ipa,
                    far: abort.far.unwrap_or(0),
                    esr: injected.esr_el1,
                    el,
                    access: attempt,
                    touched,
                });
            }
        }
        self.deliver(exception)
    }

    /// Whether the access is to be made again, and comes here again, because a guest with ACPI has a record
    /// of another one before it.
    fn must_wait(&self) -> bool {
        self.cpu.exception_level() == 0
            && self.vm.errors.as_ref().is_some_and(ErrorDevice::must_wait)
    }

    /// Tells a guest with ACPI which page its access met, before the abort does. Linux looks for a record
    /// when a process is interrupted; when its kernel is, it does not, and one that was left there would stay
    /// and be taken for another page's. So it hears of that page as of one that nobody has consumed.
    ///
    /// False where the access is to be made again, because another vCPU left a record a moment ago.
    fn leave_record(&self, errors: &ErrorDevice<P::Shared>, seq: u64, ipa: Ipa) -> bool {
        let report = Report::lost(ipa.page());
        if self.cpu.exception_level() != 0 {
            self.hypervisor.report(self.vm, report);
            return true;
        }
        match errors.consumed(report) {
            Ok(()) if !loops::is_worth_a_line(self.vcpu.streak.count()) => {}
            Ok(()) => self.say(&Note::Reported {
                seq: Some(seq),
                vm: self.vm.vmid,
                source: 0,
                severity: None,
                ipa: report.ipa,
            }),
            Err(NotTold::NotYet) => return false,
            Err(why) => {
                let vm = &self.vm.name;
                log::warn!("event=error what=guest-record vm={vm} why={why} seq={seq}");
            }
        }
        true
    }

    #[cold]
    fn say_loop(
        &self,
        event: ErrorEvent,
        ipa: Option<Ipa>,
        touched: Option<u64>,
        (circle, action): (Circle, loops::Action),
    ) {
        if let (Some(count), Some(ipa)) = (touched, ipa) {
            self.say(&Note::Touched {
                seq: event.sequence,
                vm: self.vm.vmid,
                vcpu: self.vcpu.index,
                ipa,
                count,
            });
        }
        self.announce(&event, Stage::Looped);
        log::warn!(target: "ras", "event=loop seq={} vm={} vcpu={}{} count={} kind={circle} action={action}",
            event.sequence, self.vm.name, self.vcpu.index, Optional(" ipa=", ipa), self.vcpu.streak.count());
    }

    fn tell_by_serror(&mut self, error: &SError, event: &ErrorEvent) -> Next {
        let kind = match error.kind {
            SErrorKind::Classified(kind) => kind,
            _ => AsyncErrorType::Uncontainable,
        };
        let vsesr = inject::virtual_serror(kind);
        self.announce(event, Stage::GuestSError);
        self.say(&Note::SError {
            seq: event.sequence,
            vm: self.vm.vmid,
            vcpu: self.vcpu.index,
            vsesr,
        });
        self.cpu.virtual_serror(vsesr);
        Next::Resume
    }

    /// The VM cannot go on, and it is not its own doing.
    #[cold]
    fn give_up(&mut self, why: &str, event: ErrorEvent) -> Next {
        log::error!(
            "event=error what=vm vm={} why={why} seq={}",
            self.vm.name,
            event.sequence
        );
        if self.hypervisor.stop(self.vm, StopReason::Killed) {
            self.announce(&event, Stage::VmStopped);
        }
        self.park()
    }

    /// Nobody can go on.
    fn fatal(&self, why: &str, event: &ErrorEvent, collected: &Collected) -> Next {
        self.announce(event, Stage::Fatal);
        let page = Optional(" pa=", collected.page);
        log::error!(target: "ras", "event=fatal seq={} why={why}{page}", event.sequence);
        Next::Halt
    }
}

/// A key with its value, or nothing.
struct Optional<T>(&'static str, Option<T>);

impl<T: fmt::Display> fmt::Display for Optional<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            Some(value) => write!(f, "{}{value}", self.0),
            None => Ok(()),
        }
    }
}
