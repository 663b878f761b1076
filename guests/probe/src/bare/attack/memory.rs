//! Addresses that are not the guest's: what is at them physically, the edges of its own regions, and
//! everything between. Read, written, fetched and walked, from EL1 and EL0.

use super::Attacker;
use super::forms::{self, Form};
use super::lab::{Lab, Registers};
use crate::bare::aborts::Abort;
use crate::bare::guest;
use crate::bare::mmu::Foreign;
use crate::bare::translation;
use cordon_probe::PAGE_SIZE;
use cordon_probe::attack::encoding::RET;
use cordon_probe::attack::places::{ENDS, MACHINE};
use cordon_probe::attack::verdict::{Access, Kind, Verdict, missing_table};
use cordon_probe::pages::Region;
use cordon_probe::paging::Attributes;
use cordon_probe::syndrome::Syndrome;

/// `ldr x0, [x1]`
const LOAD: u32 = 0xf940_0020;
const GIB: u64 = 1 << 30;

/// Everything, everywhere.
pub(super) fn all(attacker: &mut Attacker) {
    for at in MACHINE.iter().map(|(at, _)| *at).chain(beyond()) {
        if !guest::get().is_mapped(at) {
            page(attacker, at / PAGE_SIZE * PAGE_SIZE);
        }
    }
    for region in guest::get().own_regions() {
        edges(attacker, region);
    }
}

/// Where an IPA space could end.
fn beyond() -> impl Iterator<Item = u64> {
    let ends = ENDS.iter().map(|bits| 1_u64 << bits);
    ends.flat_map(|end| [end - PAGE_SIZE, end])
        .chain([(1 << 48) - PAGE_SIZE])
}

/// Every form at a page where there must be nothing, fetches, and walks.
fn page(attacker: &mut Attacker, at: u64) {
    for attributes in [Attributes::EL0_DATA, Attributes::EL0_DEVICE] {
        attacker.lab.window.point(0, at, attributes);
        for el0 in [false, true] {
            Form::all().for_each(|form| attacker.touch(form, at, 0, el0));
        }
    }
    for el0 in [false, true] {
        attacker.fetch(at, el0);
    }
    if at >> translation::ipa_bits() == 0 {
        (1..=3).for_each(|level| attacker.walk(at, level));
        attacker.walk_from_root(at);
    }
}

/// The pages before and behind an own region, and accesses that begin in it and end behind it.
fn edges(attacker: &mut Attacker, region: Region) {
    let end = region.ipa + region.size();
    if let Some(before) = region.ipa.checked_sub(PAGE_SIZE)
        && !guest::get().is_mapped(before)
    {
        page(attacker, before);
        let window = attacker.lab.window;
        window.point(0, before, Attributes::EL0_DATA);
        window.point(1, before, Attributes::EL0_DATA);
        Form::all().for_each(|form| attacker.touch(form, before, PAGE_SIZE - form.size, false));
    }
    if guest::get().is_mapped(end) {
        return;
    }
    page(attacker, end);
    if guest::get().is_memory(end - 1) {
        let window = attacker.lab.window;
        window.point(0, end - PAGE_SIZE, Attributes::EL0_DATA);
        window.point(1, end, Attributes::EL0_DATA);
        for form in Form::all().filter(|form| form.size >= 4 && form.kind == Kind::Load) {
            attacker.touch(form, end - PAGE_SIZE, PAGE_SIZE - form.size / 2, false);
        }
    }
}

/// Loads at every `step` bytes from `from` to `to`, own memory left out.
pub(super) fn sweep(attacker: &mut Attacker, from: u64, to: u64, step: u64) {
    let Some(block) = Foreign::new(0) else {
        return;
    };
    attacker.lab.load(0, [LOAD, RET]);
    let mut mapped = None;
    let mut at = from / 8 * 8;
    while at < to {
        if !guest::get().is_mapped(at) {
            if mapped != Some(at / GIB) {
                block.use_block(at / GIB * GIB);
                mapped = Some(at / GIB);
            }
            attacker.load_at(block.va() + at % GIB, at);
        }
        at = match at.checked_add(step.max(8)) {
            Some(next) => next / 8 * 8,
            None => break,
        };
    }
    block.clear();
}

impl Attacker {
    /// One instruction, `offset` bytes into window page 0, which maps the page at `at`.
    fn touch(&mut self, form: Form, at: u64, offset: u64, el0: bool) {
        let va = self.lab.window.va(0) + offset;
        let outcome = self.access(form, va, el0);
        let access = Access {
            va,
            kind: form.kind,
            el0,
            peculiar: form.peculiar || !offset.is_multiple_of(form.size),
        };
        let verdict = match outcome {
            Ok(_) if form.kind == Kind::Perhaps => Verdict::Value,
            Ok(_) => Verdict::Unexpected,
            Err(abort) if is_too_large(at, abort.syndrome()) => Verdict::Fault,
            Err(abort) => access.missing(abort.syndrome(), abort.far),
        };
        self.judge(verdict, (form.word, at + offset), outcome);
    }

    /// Executes `form` at `va`, with values by chance; returns x0.
    pub(super) fn access(&mut self, form: Form, va: u64, el0: bool) -> Result<u64, Abort> {
        if el0 {
            let value = self.random.number();
            return self.lab.run_el0(Lab::form(&form), value, va);
        }
        let mut registers: Registers = core::array::from_fn(|_| self.random.number());
        registers[1] = va;
        self.lab.run(Lab::form(&form), &mut registers)?;
        Ok(registers[0])
    }

    /// Executes what is at the page at `at`.
    fn fetch(&mut self, at: u64, el0: bool) {
        let (window, mut registers) = (self.lab.window, Registers::default());
        let va = window.va(0);
        let attributes = if el0 {
            Attributes::EL0_CODE
        } else {
            Attributes::EL1_CODE
        };
        window.point(0, at, attributes);
        let outcome = if el0 {
            self.lab.run_el0_at(va, 0, 0)
        } else {
            self.lab.run_at(va, &mut registers).map(|()| registers[0])
        };
        let access = Access {
            va,
            kind: Kind::Fetch,
            el0,
            peculiar: false,
        };
        let verdict = match outcome {
            Ok(_) => Verdict::Unexpected,
            Err(abort) if is_too_large(at, abort.syndrome()) => Verdict::Fault,
            Err(abort) if abort.elr != va || abort.far != va => Verdict::Unexpected,
            Err(abort) => access.missing(abort.syndrome(), abort.far),
        };
        self.judge(verdict, (0, at), outcome);
    }

    /// A translation through the page at `at` as a table of `level`.
    fn walk(&mut self, at: u64, level: u32) {
        let Some(foreign) = Foreign::new(level) else {
            return;
        };
        foreign.use_table(at);
        self.lab.load(0, [LOAD, RET]);
        let outcome = self.load(foreign.va());
        foreign.clear();
        self.judge_walk(at, foreign.va(), outcome);
    }

    /// A translation whose level-0 table is the page at `at`.
    fn walk_from_root(&mut self, at: u64) {
        let va = translation::UPPER_HALF;
        self.lab.load(0, [LOAD, RET]);
        let outcome = translation::with_upper_half(at, || self.load(va));
        self.judge_walk(at, va, outcome);
    }

    fn judge_walk(&mut self, at: u64, va: u64, outcome: Result<u64, Abort>) {
        let verdict = match outcome {
            Ok(_) => Verdict::Unexpected,
            Err(abort) => missing_table(abort.syndrome(), abort.far, va),
        };
        self.judge(verdict, (LOAD, at), outcome);
    }

    /// Loads from `va` by the `ldr` that is loaded already.
    fn load(&self, va: u64) -> Result<u64, Abort> {
        let mut registers = Registers::default();
        registers[1] = va;
        self.lab.run(0, &mut registers)?;
        Ok(registers[0])
    }

    fn load_at(&mut self, va: u64, at: u64) {
        let outcome = self.load(va);
        let access = Access {
            va,
            kind: Kind::Load,
            el0: false,
            peculiar: false,
        };
        let verdict = match outcome {
            Ok(_) => Verdict::Unexpected,
            Err(abort) if is_too_large(at, abort.syndrome()) => Verdict::Fault,
            Err(abort) => access.missing(abort.syndrome(), abort.far),
        };
        self.judge(verdict, (LOAD, at), outcome);
    }

    /// An access by chance to what is not the guest's.
    pub(super) fn touch_by_chance(&mut self) {
        let bits = self.random.below(49);
        let near = match self.random.below(3) {
            0 => self.random.choose(&MACHINE).map_or(0, |place| place.0),
            1 => 0x4000_0000 + self.random.below(1 << 32),
            _ => self.random.number() & ((1 << bits) - 1),
        };
        let at = near / PAGE_SIZE * PAGE_SIZE;
        if guest::get().is_mapped(at) || guest::get().is_mapped(at + PAGE_SIZE) {
            return;
        }
        let attributes = [Attributes::EL0_DATA, Attributes::EL0_DEVICE];
        let attributes = self.random.choose(&attributes);
        let attributes = attributes.unwrap_or(Attributes::EL0_DATA);
        let el0 = self.random.below(4) == 0;
        let window = self.lab.window;
        window.point(0, at, attributes);
        window.point(1, at + PAGE_SIZE, attributes);
        match Form::get(self.random.below(forms::COUNT as u64 + 2) as usize) {
            Some(form) => {
                let offset = self.random.below(PAGE_SIZE);
                self.touch(form, at, offset, el0);
            }
            None => self.fetch(at, el0),
        }
    }
}

/// Whether this is stage 1's refusal of an address that has too many bits.
fn is_too_large(at: u64, syndrome: Syndrome) -> bool {
    at >> translation::ipa_bits() != 0 && syndrome.is_abort() && syndrome.fault_status() < 4
}
