//! Where instructions are made and executed.
//!
//! Each vCPU has a page for code, one for data, and a window (`mmu::Window`). Code is written through
//! the identity view, made visible to fetches, and executed in the views of `layout`. What it may
//! do is the caller's affair; it runs on registers of its own, and x29, x30 and SP are not its to use.
#![expect(unsafe_code, reason = "runs instructions that were made a moment ago")]

use super::forms::Form;
use crate::bare::aborts::{self, Abort};
use crate::bare::access::fixup;
use crate::bare::el0;
use crate::bare::mmu::{self, Window};
use crate::bare::{cpu, guest, ram};
use aarch64_cpu::registers::{DAIF, Readable, Writeable};
use cordon_probe::PAGE_SIZE;
use cordon_probe::attack::encoding::RET;
use cordon_probe::layout::Alias;
use cordon_probe::pages::Region;
use cordon_probe::paging::Attributes;
use cordon_probe::syndrome::Class;
use core::arch::{asm, naked_asm};
use core::ptr::with_exposed_provenance_mut;
use spin::Once;

/// The pages of all vCPUs, [`EACH`] of them each.
static PAGES: Once<Region> = Once::new();

/// A page for code, one for the forms, which stay, and one for data.
const EACH: u64 = 3;

/// Instructions in a page.
pub(super) const WORDS: usize = (PAGE_SIZE / 4) as usize;

/// Where the forms are: in the second page, two instructions each.
const FORMS: usize = WORDS;

/// The window's page that holds code for AArch32.
const LOW_CODE: usize = Window::PAGES - 1;

/// x0 to x28 before and after.
pub(in crate::bare) type Registers = [u64; 30];

/// This vCPU's workshop.
#[derive(Clone, Copy, Debug)]
pub(in crate::bare) struct Lab {
    code: u64,
    /// IPA and address of a page of data.
    pub(super) scratch: u64,
    pub(in crate::bare) window: Window,
}

/// On vCPU 0: makes the pages of all. `None` if there is no memory.
pub(in crate::bare) fn open() -> Option<()> {
    if PAGES.get().is_some() {
        return Some(());
    }
    let pages = EACH * guest::get().mpidrs().len() as u64;
    let region = Region {
        ipa: ram::take(pages, PAGE_SIZE)?,
        pages,
    };
    mmu::map_views(region)?;
    PAGES.call_once(|| region);
    Some(())
}

impl Lab {
    /// This vCPU's, after [`open`].
    pub(in crate::bare) fn here() -> Option<Self> {
        let vcpu = cpu::id();
        let code = PAGES.get()?.ipa + EACH * vcpu as u64 * PAGE_SIZE;
        let window = Window::new(vcpu)?;
        window.point(LOW_CODE, code, Attributes::EL0_CODE);
        // CPACR_EL1.{SMEN, FPEN, ZEN}: nobody but the instructions under test uses these registers.
        let enabled = 0b11_u64 << 24 | 0b11 << 20 | 0b11 << 16;
        // SAFETY: as said.
        unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) enabled, options(nostack)) };
        let lab = Self {
            code,
            scratch: code + 2 * PAGE_SIZE,
            window,
        };
        // Once: code that is written anew with every attempt takes most of an emulator's time.
        let forms = Form::all().flat_map(|form| [form.word, RET]);
        lab.load(FORMS, forms);
        Some(lab)
    }

    /// Puts `words` at instruction number `at`.
    pub(in crate::bare) fn load(&self, at: usize, words: impl IntoIterator<Item = u32>) {
        let page = with_exposed_provenance_mut::<u32>(self.code as usize);
        let mut end = self.code + at as u64 * 4;
        for (index, word) in (at..2 * WORDS).zip(words) {
            end += 4;
            // SAFETY: both pages are mapped, this vCPU's alone, and `index` within them.
            unsafe { page.add(index).write_volatile(word) };
        }
        // SAFETY: cache maintenance of what was written, by the smallest line there is.
        unsafe {
            asm!(
                "2: dc cvau, {at}",
                "add {at}, {at}, #16",
                "cmp {at}, {end}",
                "b.lo 2b",
                "dsb ish",
                "ic iallu",
                "dsb nsh",
                "isb",
                at = inout(reg) (self.code + at as u64 * 4) / 16 * 16 => _,
                end = in(reg) end,
                options(nostack)
            );
        }
    }

    /// IPA of the page of code.
    pub(in crate::bare) const fn code(&self) -> u64 {
        self.code
    }

    fn in_view(&self, alias: Alias, at: usize) -> u64 {
        // RAM has few enough bits.
        let base = alias.va(self.code).unwrap_or(0);
        base + (at % (2 * WORDS)) as u64 * 4
    }

    /// The address at EL1 of instruction number `at`.
    pub(super) fn address(&self, at: usize) -> u64 {
        self.in_view(Alias::El1Code, at)
    }

    /// Calls instruction number `at` at EL1.
    pub(super) fn run(&self, at: usize, registers: &mut Registers) -> Result<(), Abort> {
        self.run_at(self.address(at), registers)
    }

    /// Calls what is at `address` at EL1. An exception ends it.
    pub(in crate::bare) fn run_at(
        &self,
        address: u64,
        registers: &mut Registers,
    ) -> Result<(), Abort> {
        let masks = DAIF.get();
        // SAFETY: the code is this guest's own, made to do nothing that Rust would notice: it uses
        // no stack, and changes memory under attack, scratch pages and devices alone. Every
        // exception leads to the landing pad.
        let aborted = unsafe { raw_trial(address, registers) };
        DAIF.set(masks);
        if aborted == 0 {
            Ok(())
        } else {
            Err(aborts::last(cpu::id()))
        }
    }

    /// Number of the instruction that `form` is.
    pub(super) const fn form(form: &Form) -> usize {
        FORMS + 2 * form.index
    }

    /// Calls instruction number `at` at EL0. Returns x0, or the exception that was no `svc`.
    pub(super) fn run_el0(&self, at: usize, x0: u64, x1: u64) -> Result<u64, Abort> {
        self.run_el0_at(self.in_view(Alias::El0Code, at), x0, x1)
    }

    /// Calls what is at `address` at EL0.
    pub(super) fn run_el0_at(&self, address: u64, x0: u64, x1: u64) -> Result<u64, Abort> {
        let (x0, abort) = el0::visit(address, x0, x1, el0::SPSR_EL0);
        if abort.syndrome().class() == Class::Svc {
            Ok(x0)
        } else {
            Err(abort)
        }
    }

    /// Runs instruction number `at` at EL0 in AArch32, T32 where `thumb`, to its first exception.
    pub(in crate::bare) fn run_aarch32(
        &self,
        at: usize,
        x0: u64,
        x1: u64,
        thumb: bool,
    ) -> (u64, Abort) {
        let spsr = if thumb { el0::SPSR_THUMB } else { 0 } | el0::SPSR_AARCH32;
        let address = self.window.va(LOW_CODE) + (at % WORDS) as u64 * 4;
        el0::visit(address, x0, x1, spsr)
    }
}

/// Loads x0 to x28 from `registers`, calls `entry`, stores them. Returns 1 after an exception.
#[unsafe(naked)]
unsafe extern "C" fn raw_trial(entry: u64, registers: &mut Registers) -> u64 {
    naked_asm!(
        "stp x29, x30, [sp, #-112]!",
        "stp x19, x20, [sp, #16]",
        "stp x21, x22, [sp, #32]",
        "stp x23, x24, [sp, #48]",
        "stp x25, x26, [sp, #64]",
        "stp x27, x28, [sp, #80]",
        "str x1, [sp, #96]",
        "mov x29, x0",
        "mov x30, x1",
        "ldp x0, x1, [x30]",
        "ldp x2, x3, [x30, #16]",
        "ldp x4, x5, [x30, #32]",
        "ldp x6, x7, [x30, #48]",
        "ldp x8, x9, [x30, #64]",
        "ldp x10, x11, [x30, #80]",
        "ldp x12, x13, [x30, #96]",
        "ldp x14, x15, [x30, #112]",
        "ldp x16, x17, [x30, #128]",
        "ldp x18, x19, [x30, #144]",
        "ldp x20, x21, [x30, #160]",
        "ldp x22, x23, [x30, #176]",
        "ldp x24, x25, [x30, #192]",
        "ldp x26, x27, [x30, #208]",
        "ldr x28, [x30, #224]",
        "blr x29",
        // The return address: by it an exception in the code is known to be ours.
        "1: mov x29, #0",
        "b 3f",
        "2: mov x29, #1",
        "3: ldr x30, [sp, #96]",
        "stp x0, x1, [x30]",
        "stp x2, x3, [x30, #16]",
        "stp x4, x5, [x30, #32]",
        "stp x6, x7, [x30, #48]",
        "stp x8, x9, [x30, #64]",
        "stp x10, x11, [x30, #80]",
        "stp x12, x13, [x30, #96]",
        "stp x14, x15, [x30, #112]",
        "stp x16, x17, [x30, #128]",
        "stp x18, x19, [x30, #144]",
        "stp x20, x21, [x30, #160]",
        "stp x22, x23, [x30, #176]",
        "stp x24, x25, [x30, #192]",
        "stp x26, x27, [x30, #208]",
        "str x28, [x30, #224]",
        "mov x0, x29",
        "ldp x27, x28, [sp, #80]",
        "ldp x25, x26, [sp, #64]",
        "ldp x23, x24, [sp, #48]",
        "ldp x21, x22, [sp, #32]",
        "ldp x19, x20, [sp, #16]",
        "ldp x29, x30, [sp], #112",
        "ret",
        fixup!("1b", "2b"),
    )
}
