//! What a person at the monitor may ask for ([`crate::console::monitor`]), and what comes of it.
//!
//! A command is carried out on whichever CPU took what was typed, in the middle of somebody's exit or
//! of nobody's. So it allocates nothing, waits for no vCPU, holds no lock while it prints but a VM's
//! stage 2, and prints a bounded number of lines. What takes time, the loading of a VM, is left to
//! that VM's own CPUs.
//!
//! Its answer is lines, the last of which is always one `event=monitor`. They are printed whatever
//! `loglevel=` says: somebody has asked for them.

use super::hypercall::Pages;
use super::hypervisor::{End, Hypervisor, Platform, State, StopReason, Vm};
use super::injection::{InjectError, Target};
use super::protect;
use super::vcpu::Power;
use crate::addr::{Ipa, PAGE_SIZE, Pa};
use crate::console::line::Line;
use crate::console::monitor::{self, COMMANDS, Command, Mistake};
use crate::devmem::{By, Region};
use crate::ras::filter::FilterError;
use crate::ras::repair::RepairError;
use crate::stage2::Damage;
use core::fmt;

mod errors;

pub use errors::EXPORTED;

/// Most pages that one `poison list` shows.
pub const LISTED: usize = 32;

/// Why a command was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The line.
    Mistake(Mistake),
    /// There is no VM of that name.
    UnknownVm,
    /// The VM does not run.
    NotRunning,
    /// The VM is not off.
    NotOff,
    /// The VM was killed: its tables may be bad, and are not looked at.
    Killed,
    /// The range was not protected.
    Protect(protect::Refused),
    /// The VM's tables hold what Cordon did not write.
    Damaged(Damage),
    /// No error was made.
    NotInjected(InjectError),
    /// The rule is none, or there is no room for it.
    Filter(FilterError),
    /// Nothing was repaired.
    NotRepaired(RepairError),
    /// The VM has no memory there.
    NotMemory,
    /// No pages, too many, or an address that is no page's.
    BadRange,
    /// The machine has no PSCI: nobody can end it.
    NoPsci,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mistake(mistake) => mistake.fmt(f),
            Self::UnknownVm => f.write_str("unknown-vm"),
            Self::NotRunning => f.write_str("not-running"),
            Self::NotOff => f.write_str("not-off"),
            Self::Killed => f.write_str("killed"),
            Self::Protect(why) => why.fmt(f),
            Self::Damaged(damage) => damage.fmt(f),
            Self::NotInjected(error) => error.fmt(f),
            Self::Filter(error) => error.fmt(f),
            Self::NotRepaired(error) => error.fmt(f),
            Self::NotMemory => f.write_str("not-memory"),
            Self::BadRange => f.write_str("bad-range"),
            Self::NoPsci => f.write_str("no-psci"),
        }
    }
}

impl core::error::Error for Refused {}

impl From<Mistake> for Refused {
    fn from(mistake: Mistake) -> Self {
        Self::Mistake(mistake)
    }
}

type Done = Result<(), Refused>;

/// `Ok` where something was the case, else the refusal.
fn require(holds: bool, otherwise: Refused) -> Done {
    holds.then_some(()).ok_or(otherwise)
}

impl<P: Platform> Hypervisor<P> {
    /// Carries out what was typed at the monitor, and answers.
    pub fn operate(&self, line: &Line) {
        let name = monitor::name(line.as_str());
        match self.carry_out(line) {
            Ok(()) => self.tell(format_args!("event=monitor command={name} result=ok")),
            Err(why) => self.tell(format_args!(
                "event=monitor command={name} result=error why={why}"
            )),
        }
    }

    fn carry_out(&self, line: &Line) -> Done {
        require(!line.is_cut(), Mistake::LineTooLong.into())?;
        match monitor::parse(line.as_str())? {
            Command::Help => self.tell_commands(),
            Command::Vms => self.tell_vms(),
            Command::Focus(name) => return self.give_focus(name),
            Command::Regions => self.tell_regions(),
            Command::Poison => self.tell_poison(),
            Command::PoisonList(from) => self.tell_bad_pages(from),
            Command::PoisonExport(from) => self.export_poison(from),
            Command::Stage2(name) => return self.tell_stage2(name),
            Command::Tables(name, ipa) => return self.tell_tables(name, ipa),
            Command::Counters => self.tell_counters(),
            Command::Protect(name, [ipa, pages], what) => {
                let vm = self.named(name)?;
                let pages = Pages::new(ipa, pages, protect::MAX_PAGES);
                let pages = pages.ok_or(Mistake::BadArgument)?;
                return self
                    .protect_range(vm, pages, what, By::Operator)
                    .map_err(Refused::Protect);
            }
            Command::CountersAll => self.say_counters(&mut |line| self.tell_ras(line)),
            Command::Inject(pa, kind, pages) => {
                return self.inject_for_operator(Target::Pa(pa), pages, kind);
            }
            Command::InjectVm(name, ipa, kind, pages) => {
                let target = Target::Guest(self.named(name)?.vmid, ipa);
                return self.inject_for_operator(target, pages, kind);
            }
            Command::Repair(name, ipa, pages, how) => {
                return self.repair_for_operator(self.named(name)?, ipa, pages, how);
            }
            Command::FilterAdd(rule) => {
                return self.add_filter(rule).map(drop).map_err(Refused::Filter);
            }
            Command::FilterClear => self.clear_filter(),
            Command::Policy(name, ipa, policy) => {
                let vm = self.named(name)?.vmid;
                let changed = self.set_policy(vm, ipa, policy, self.platform.cpu());
                return require(changed, Refused::NotMemory);
            }
            Command::Stop(name) => {
                let vm = self.named(name)?;
                return require(self.stop(vm, StopReason::Off), Refused::NotRunning);
            }
            Command::Reset(name) => {
                let vm = self.named(name)?;
                return require(self.reset(vm), Refused::NotRunning);
            }
            Command::Start(name) => {
                let vm = self.named(name)?;
                return require(self.revive(vm), Refused::NotOff);
            }
            Command::Off => return self.end(End::Off),
            Command::Reboot => return self.end(End::Reboot),
        }
        Ok(())
    }

    /// Comes back only where the machine has nobody to ask.
    fn end(&self, how: End) -> Result<(), Refused> {
        self.platform.end(how);
        Err(Refused::NoPsci)
    }

    fn tell(&self, line: fmt::Arguments<'_>) {
        self.platform.answer(format_args!("cordon: {line}"));
    }

    fn tell_ras(&self, line: fmt::Arguments<'_>) {
        self.platform.answer(format_args!("ras: {line}"));
    }

    fn named(&self, name: &str) -> Result<&Vm<P>, Refused> {
        let mut vms = self.vms().iter();
        vms.find(|vm| vm.name == name).ok_or(Refused::UnknownVm)
    }

    fn tell_commands(&self) {
        for entry in COMMANDS {
            let (name, arguments, does) = (entry.name, entry.arguments, entry.does);
            self.tell(format_args!(
                "event=help command={name} arguments={arguments} does={does}"
            ));
        }
    }

    fn tell_vms(&self) {
        let focus = self.platform.focus();
        for (number, vm) in (1..).zip(self.vms()) {
            let on = vm.vcpus.iter().filter(|it| it.power() == Power::On).count();
            let (name, state, vcpus) = (&vm.name, vm.state(), vm.vcpus.len());
            let focused = if vm.console == focus { "yes" } else { "no" };
            self.tell(format_args!(
                "event=vm number={number} vm={name} state={state} vcpus={vcpus} on={on} focus={focused}"
            ));
        }
    }

    fn give_focus(&self, name: &str) -> Done {
        let vm = self.named(name)?;
        require(self.platform.give_focus(vm.console), Refused::NotRunning)
    }

    fn tell_regions(&self) {
        for region in self.ras.devmem.regions() {
            self.tell_region(region);
        }
    }

    /// Not as boot says it: `event=region` and `event=vm-mapped` are what it has found and done.
    fn tell_region(&self, region: &Region<'_>) {
        let (id, kind, owner) = (region.id(), region.kind(), region.owner());
        let (pa, size) = (region.range().start(), region.range().size());
        let mappings = region.mappings().count();
        self.tell(format_args!(
            "event=memory id={id} kind={kind} pa={pa} size={size:#x} owner={owner} mappings={mappings}"
        ));
        for mapping in region.mappings() {
            let vm = self.vm(mapping.vm).map_or("?", |vm| &vm.name);
            let (ipa, pa, size) = (mapping.ipa, mapping.range.start(), mapping.range.size());
            self.tell(format_args!(
                "event=mapping region={id} vm={vm} ipa={ipa} pa={pa} size={size:#x}"
            ));
        }
    }

    fn tell_poison(&self) {
        let (pages, capacity) = self.ras.poison_set_fill();
        self.platform.answer(format_args!(
            "ras: event=poison pages={pages} capacity={capacity}"
        ));
    }

    /// The pages as they are when each is looked at. The last line says where to go on.
    fn tell_bad_pages(&self, from: Pa) {
        let (mut next, mut shown) = (Some(from.page()), 0);
        while shown < LISTED
            && let Some(bad) = next.and_then(|pa| self.ras.next_bad(pa))
        {
            self.platform.answer(format_args!(
                "ras: event=bad-page pa={} seq={} touches={} walk={}",
                bad.pa,
                bad.sequence,
                bad.touches,
                WalkLevel(bad.walk_level.map(|level| level.get()))
            ));
            next = bad.pa.checked_add(PAGE_SIZE);
            shown += 1;
        }
        match next.and_then(|pa| self.ras.next_bad(pa)) {
            Some(bad) => self.platform.answer(format_args!(
                "ras: event=bad-pages shown={shown} next={}",
                bad.pa
            )),
            None => self
                .platform
                .answer(format_args!("ras: event=bad-pages shown={shown} next=none")),
        }
    }

    fn tell_stage2(&self, name: &str) -> Done {
        let vm = self.named(name)?;
        require(vm.state() != State::Killed, Refused::Killed)?;
        self.say_stage2(vm, "asked", &mut |line| self.tell(line))
            .map_err(Refused::Damaged)
    }

    /// The root is not among them: it cannot be replaced, and is one frame or more.
    fn tell_tables(&self, name: &str, ipa: Ipa) -> Done {
        let vm = self.named(name)?;
        require(vm.state() != State::Killed, Refused::Killed)?;
        let told = vm.stage2.lock().tables_of(ipa, |level, pa| {
            let level = level.number();
            self.tell(format_args!(
                "event=table vm={name} ipa={ipa} level={level} pa={pa}"
            ));
        });
        told.map_err(Refused::Damaged)
    }

    fn tell_counters(&self) {
        let all = self.ras.announcer.counters().snapshot();
        self.platform.answer(format_args!(
            "ras: event=counters {all} known={} no_record={} vserror={} unclaimed={} overflows={} stopped_vms={}",
            all.known, all.no_record, all.guest_serrors, all.unclaimed, all.overflows, all.stopped_vms
        ));
        for vm in self.vms() {
            let vseas = self.aborts_of(vm);
            self.platform.answer(format_args!(
                "ras: event=vm-counters vm={} vsea={vseas}",
                vm.name
            ));
        }
    }
}

/// A level, or `none`.
struct WalkLevel(Option<i8>);

impl fmt::Display for WalkLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(level) => level.fmt(f),
            None => f.write_str("none"),
        }
    }
}
