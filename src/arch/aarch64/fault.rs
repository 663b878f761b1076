//! Exceptions that EL2 takes from itself.
//!
//! One kind is expected: a synchronous external abort in one of [`super::fixup`]'s instructions,
//! which goes on at its landing. Everything else is reported in full, and the machine stops.

use super::vectors::HypFrame;
use super::{crash, fixup, layout, page_slot};
use aarch64_cpu::registers::{ELR_EL2, ESR_EL2, FAR_EL2, Readable, SPSR_EL2, Writeable};
use cordon::addr::Pa;
use core::fmt::{self, Write};

/// ESR_ELx.EC of a data abort and of an instruction abort without a change of level (Arm ARM
/// D19.2.40).
const EC_DATA_ABORT: u64 = 0x25;
const EC_INSTRUCTION_ABORT: u64 = 0x21;

/// Fault status codes of synchronous external aborts: not on a walk, and on one, by level.
const FSC_SEA: u64 = 0x10;
const FSC_SEA_ON_WALK: core::ops::RangeInclusive<u64> = 0x13..=0x17;
/// ESR_ELx.FnV: FAR is not valid.
const FNV: u64 = 1 << 10;

/// A synchronous exception from EL2.
pub extern "C" fn hyp_sync(frame: &HypFrame) {
    let (esr, pc) = (ESR_EL2.get(), ELR_EL2.get());
    let landing = match is_external_abort(esr) {
        true if is_uncontained(esr) => None,
        true => fixup::landing(pc),
        // What a guest wants may be more than its memory can do.
        false => page_slot::landing(pc).filter(|_| is_refusal(esr)),
    };
    if let Some(landing) = landing {
        ELR_EL2.set(landing);
        return;
    }
    report_and_stop("exception", frame)
}

/// An SError from EL2, which masks them: it can come only from firmware that does not care, and has
/// overwritten where the guest goes on. One that EL2 causes itself is found before its guest goes on
/// (`exit::answer_for_own`).
pub extern "C" fn hyp_serror(frame: &HypFrame) {
    report_and_stop("serror", frame)
}

/// The stack ran over; there is no frame to show.
pub extern "C" fn stack_overflow() -> ! {
    crash::stop(|out| {
        writeln!(out, "cordon: crash: why=stack-overflow")?;
        write_syndrome(out)
    })
}

/// Prints everything that is known of an exception from EL2, and stops the machine.
pub fn report_and_stop(why: &str, frame: &HypFrame) -> ! {
    crash::stop(|out| {
        write_memory_error(out)?;
        writeln!(out, "cordon: crash: why={why}")?;
        write_syndrome(out)?;
        write!(out, "cordon: crash: sp={:#x}", frame.sp)?;
        for (number, value) in frame.x.iter().enumerate() {
            if number % 4 == 0 {
                write!(out, "\ncordon: crash:")?;
            }
            write!(out, " x{number}={value:#x}")?;
        }
        writeln!(out)
    })
}

/// An error that may have gone anywhere is no copy's alone (ESR_ELx.SET, FEAT_RAS: UC or reserved).
fn is_uncontained(esr: u64) -> bool {
    super::features::get().ras && matches!(esr >> 11 & 0b11, 0b01 | 0b10)
}

/// An access to a guest's page that the memory behind it does not do.
fn is_refusal(esr: u64) -> bool {
    esr >> 26 & 0x3f == EC_DATA_ABORT && page_slot::is_refusal(esr & 0x3f)
}

fn is_external_abort(esr: u64) -> bool {
    let fsc = esr & 0x3f;
    matches!(esr >> 26 & 0x3f, EC_DATA_ABORT | EC_INSTRUCTION_ABORT)
        && (fsc == FSC_SEA || FSC_SEA_ON_WALK.contains(&fsc))
}

/// If EL2 consumed poison: which address. Its map is the identity, so FAR says it.
fn write_memory_error(out: &mut dyn Write) -> fmt::Result {
    let esr = ESR_EL2.get();
    if !is_external_abort(esr) {
        return Ok(());
    }
    write!(out, "ras: event=fatal esr={esr:#x}")?;
    if esr & FNV != 0 {
        return writeln!(out, " why=hypervisor-consumed-poison");
    }
    let pa = Pa::new(FAR_EL2.get());
    let whose = match layout::own_memory() {
        Some(own) if own.contains(pa) => "hypervisor-memory",
        _ => "hypervisor-consumed-poison",
    };
    writeln!(out, " why={whose} pa={pa}")
}

fn write_syndrome(out: &mut dyn Write) -> fmt::Result {
    let (esr, elr) = (ESR_EL2.get(), ELR_EL2.get());
    let offset = elr.wrapping_sub(layout::image_start());
    writeln!(
        out,
        "cordon: crash: esr={esr:#x} ec={:#x} elr={elr:#x} image_offset={offset:#x} far={:#x} spsr={:#x}",
        esr >> 26 & 0x3f,
        FAR_EL2.get(),
        SPSR_EL2.get(),
    )
}
