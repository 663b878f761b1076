//! What the firmware does for its two kinds of caller, the control line and the SMC interface, and
//! for consumed errors.
//!
//! One [`Service`] exists, under one lock. Its methods run at EL3 with everything masked, so
//! they are not re-entered on a CPU, and other CPUs wait for the lock: a change of the granule
//! protection table, the writing of a record and the counters are one step each. Answers and
//! messages are written to a buffer; the caller sends them after the lock is released.
//!
//! Nobody waits inside: a record of a consumed error for which the block is not free yet is tried again by the caller,
//! who holds another lock for that. Else the reader could not free it: it may be on its way through
//! here, by a call or because the control line has interrupted it. One that has waited too long, and
//! errors that nobody has consumed, wait in a queue: for the source of such errors, whose reader is
//! reminded by an interrupt, or, on a machine without one, for the next record of a consumed error, of
//! which they become further sections.
//!
//! What touches the machine is behind [`Machine`], so that all of this runs in host tests.

use core::fmt::{self, Write};

use cordon::addr::{Pa, PaRange};
use cordon::ras::esr::AsyncErrorType;

use crate::control::{self, Command, Record, Signal};
use crate::exception::{self, El2Controls, Kind};
use crate::fault::GranuleFault;
use crate::gpt::{Gpt, Refusal, Span, Tlb};
use crate::queue::Queue;
use crate::record::{self, ErrorKind, Report};
use crate::source::{RecordSource, ReportSource};

/// The machine as the service needs it.
pub trait Machine: Tlb {
    /// Reads the 64-bit register in memory at `at`, which lies in [`crate::layout::RAM_WINDOW`].
    fn read_u64(&mut self, at: Pa) -> u64;

    /// Writes it in one access. Earlier writes are visible to all CPUs before, and it is when the
    /// call returns.
    fn write_u64(&mut self, at: Pa, value: u64);

    /// Writes to memory that lies in [`crate::layout::RAM_WINDOW`].
    fn write(&mut self, to: Pa, bytes: &[u8]);

    /// Seconds since 1970 UTC.
    fn now(&mut self) -> u64;

    /// Makes the shared interrupt `intid` pending. What was written before is visible to who takes it.
    fn signal(&mut self, intid: u32);

    /// Has [`Service::flush`] called in [`REMIND_MS`] milliseconds.
    fn remind(&mut self);

    /// The counter (CNTPCT) now.
    fn counter(&mut self) -> u64;

    /// The counter (CNTPCT) at which EL2 was last entered with an error, 0 if it never was.
    fn told(&mut self) -> u64;
}

/// How long after an attempt in vain a report is tried again.
pub const REMIND_MS: u64 = 10;

/// Reports that can wait.
const QUEUE: usize = 32;

/// How long a consumed error waits for the reader of the one before. A reader on another CPU needs
/// microseconds; an emulated one may have to be scheduled first, on a busy host for a while. One
/// that is stuck, or was never there, must not stop the machine.
pub const ACK_WAIT_MS: u64 = 1000;

/// QEMU's blocks are 1 KiB. Of a longer one no more is written.
const BLOCK_MAX: usize = 1024;

/// What became of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is in the block.
    Written,
    /// The one before was not acknowledged in time, and stays; this one waits.
    Queued,
    /// The one before was not acknowledged in time, and stays; too many wait already.
    Busy,
    /// There is no block, it is itself poisoned, or records are off.
    None,
}

impl Written {
    const fn name(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Queued => "queued",
            Self::Busy => "busy",
            Self::None => "none",
        }
    }
}

/// The registers of the interrupted state that decide how consumption is signalled.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted {
    /// The CPU's number.
    pub cpu: usize,
    /// `SPSR_EL3`.
    pub spsr: u64,
    /// `FAR_EL3`.
    pub far: u64,
    /// How EL2 takes exceptions.
    pub controls: El2Controls,
    /// The counter (CNTPCT) when the firmware began to see to it.
    pub at: u64,
}

/// How to enter EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offset from `VBAR_EL2`.
    pub vector: u64,
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`, where the exception defines it.
    pub far: Option<u64>,
    /// PSTATE of the vector.
    pub pstate: u64,
}

/// An SMC's result for x0 where it failed.
pub const SMC_NOT_SUPPORTED: i64 = -1;
const SMC_INVALID: i64 = -2;
const SMC_NO_SOURCE: i64 = -3;
const SMC_NO_TABLE: i64 = -4;

/// The interface's functions: SMCCC fast calls, 64-bit, SiP service range.
const SMC_IDENTIFY: u32 = 0xc200_0000;
const SMC_POISON: u32 = 0xc200_0001;
const SMC_HEAL: u32 = 0xc200_0002;
const SMC_MODE: u32 = 0xc200_0003;
const SMC_REPORT: u32 = 0xc200_0004;
/// "CORD".
const SMC_MAGIC: u64 = 0x434f_5244;
const SMC_VERSION: u64 = 1;

/// The firmware's state after boot.
#[derive(Debug)]
pub struct Service<'a, const N: usize> {
    gpt: Gpt<'a, N>,
    source: Option<RecordSource>,
    reports: Option<ReportSource>,
    queue: Queue<QUEUE>,
    cpus: usize,
    signal: Signal,
    record: Record,
    consumed: u64,
    unacked: u64,
    /// Reports made so far.
    sequence: u64,
}

impl<'a, const N: usize> Service<'a, N> {
    /// With no error source yet, signalling by SEA, records on.
    pub const fn new(gpt: Gpt<'a, N>, cpus: usize) -> Self {
        Self {
            gpt,
            source: None,
            reports: None,
            queue: Queue::new(),
            cpus,
            signal: Signal::Sea,
            record: Record::On,
            consumed: 0,
            unacked: 0,
            sequence: 0,
        }
    }

    /// Records go to `source` from now on.
    pub const fn set_source(&mut self, source: RecordSource) {
        self.source = Some(source);
    }

    /// Errors that nobody has consumed are reported to `source` from now on.
    pub const fn set_report_source(&mut self, source: ReportSource) {
        self.reports = Some(source);
    }

    /// How many CPUs the machine has.
    pub const fn set_cpus(&mut self, cpus: usize) {
        self.cpus = cpus;
    }

    /// Executes one line and writes its answer, nothing for a blank line.
    ///
    /// # Errors
    /// `out` is full.
    pub fn line(
        &mut self,
        line: Result<&[u8], control::Error>,
        machine: &mut impl Machine,
        out: &mut impl Write,
    ) -> fmt::Result {
        match line.and_then(control::parse) {
            Ok(None) => Ok(()),
            Ok(Some(command)) => self.command(command, machine, out),
            Err(error) => writeln!(out, "error {}", error.name()),
        }
    }

    fn command(
        &mut self,
        command: Command,
        machine: &mut impl Machine,
        out: &mut impl Write,
    ) -> fmt::Result {
        match command {
            Command::Poison { pa, pages } => match self.poison(pa, pages, machine) {
                Ok(changed) => {
                    writeln!(out, "ok poisoned pages={changed} at={}", machine.counter())
                }
                Err(refusal) => refuse(refusal, pa, out),
            },
            Command::Heal { pa, pages } => match self.heal(pa, pages, machine) {
                Ok(changed) => writeln!(out, "ok healed pages={changed}"),
                Err(refusal) => refuse(refusal, pa, out),
            },
            Command::Report { pa, kind, pages } => {
                let lost = self.queue.lost();
                match self.report(pa, kind, pages, machine) {
                    Ok(true) => {
                        let (queued, lost) = (self.queue.len(), self.queue.lost() - lost);
                        writeln!(out, "ok reported pages={pages} queued={queued} lost={lost}")
                    }
                    Ok(false) => writeln!(out, "error no-source"),
                    Err(refusal) => refuse(refusal, pa, out),
                }
            }
            Command::Mode(signal) => {
                self.signal = signal;
                writeln!(out, "ok mode={}", signal.name())
            }
            Command::Record(record) => {
                self.record = record;
                writeln!(out, "ok record={}", record.name())
            }
            Command::Status => writeln!(
                out,
                "ok poisoned={} consumed={} unacked={} mode={} record={} cpus={} tables_free={} told={} queued={} lost={}",
                self.gpt.poisoned(),
                self.consumed,
                self.unacked,
                self.signal.name(),
                self.record.name(),
                self.cpus,
                self.gpt.tables_free(),
                machine.told(),
                self.queue.len(),
                self.queue.lost(),
            ),
            Command::Help => writeln!(
                out,
                "ok commands=poison,heal,report,mode,record,status,help"
            ),
        }
    }

    /// Executes a call of the SMC interface. Returns x0 and, where it is defined, x1; `None` where
    /// the function is not one of the interface's.
    pub fn smc(
        &mut self,
        function: u32,
        arguments: [u64; 2],
        machine: &mut impl Machine,
    ) -> Option<(u64, Option<u64>)> {
        let [first, second] = arguments;
        let result = match function {
            SMC_IDENTIFY => return Some((SMC_MAGIC, Some(SMC_VERSION))),
            SMC_POISON => self.poison(first, second, machine).map_err(smc_error),
            SMC_HEAL => self.heal(first, second, machine).map_err(smc_error),
            SMC_MODE => self.smc_mode(first),
            SMC_REPORT => self.smc_report(first, second, machine),
            _ => return None,
        };
        Some((result.unwrap_or_else(i64::cast_unsigned), None))
    }

    const fn smc_mode(&mut self, mode: u64) -> Result<u64, i64> {
        self.signal = match mode {
            0 => Signal::Sea,
            1 => Signal::SError(AsyncErrorType::Recoverable),
            _ => return Err(SMC_INVALID),
        };
        Ok(0)
    }

    fn smc_report(&mut self, pa: u64, kind: u64, machine: &mut impl Machine) -> Result<u64, i64> {
        let kind = match kind {
            0 => ErrorKind::Latent,
            1 => ErrorKind::Corrected,
            2 => ErrorKind::Threshold,
            3 => ErrorKind::Deferred,
            _ => return Err(SMC_INVALID),
        };
        match self.report(pa, kind, 1, machine) {
            Ok(true) => Ok(0),
            Ok(false) => Err(SMC_NO_SOURCE),
            Err(refusal) => Err(smc_error(refusal)),
        }
    }

    /// Reports an error of each page. False where there is no source for that.
    fn report(
        &mut self,
        pa: u64,
        kind: ErrorKind,
        pages: u64,
        machine: &mut impl Machine,
    ) -> Result<bool, Refusal> {
        let span = Span::new(pa, pages)?;
        if self.reports.is_none() {
            return Ok(false);
        }
        for page in span.pages() {
            let report = self.number(page, kind);
            self.queue.push(report);
            self.flush(machine);
        }
        Ok(true)
    }

    fn number(&mut self, page: Pa, kind: ErrorKind) -> Report {
        self.sequence += 1;
        Report {
            page,
            kind,
            sequence: self.sequence,
        }
    }

    /// Hands the oldest report to its source, if that has been read, and sees to it that the next one will
    /// be.
    pub fn flush(&mut self, machine: &mut impl Machine) {
        let Some(reports) = self.reports else {
            return;
        };
        let source = reports.records;
        let oldest = self.queue.iter().next();
        if let Some(oldest) = oldest
            && self.is_good(source)
            && is_free(source, machine)
        {
            let mut buffer = [0; BLOCK_MAX];
            if let Some((bytes, _)) = self.contents(oldest, 0, source.block, &mut buffer, machine) {
                publish(source, bytes, machine);
            }
            self.queue.remove(1);
            if let Some(intid) = reports.interrupt {
                machine.signal(intid);
            }
        }
        if !self.queue.is_empty() {
            machine.remind();
        }
    }

    /// Gives up waiting for the reader of the record before: this one, that `page` was consumed, waits.
    pub fn postpone(&mut self, page: Pa, machine: &mut impl Machine) -> Written {
        let report = self.number(page, ErrorKind::Consumed);
        let queued = self.queue.push(report);
        self.flush(machine);
        if queued {
            Written::Queued
        } else {
            Written::Busy
        }
    }

    fn poison(&mut self, pa: u64, pages: u64, machine: &mut impl Machine) -> Result<u64, Refusal> {
        self.gpt.poison(Span::new(pa, pages)?, machine)
    }

    fn heal(&mut self, pa: u64, pages: u64, machine: &mut impl Machine) -> Result<u64, Refusal> {
        Ok(self.gpt.heal(Span::new(pa, pages)?, machine))
    }

    /// Somebody met poison, and its record is what `written` says: counts it, writes a message, and
    /// says how to enter EL2.
    pub fn consume(
        &mut self,
        fault: GranuleFault,
        state: Interrupted,
        written: Written,
        out: &mut impl Write,
    ) -> Entry {
        self.consumed += 1;
        self.unacked += u64::from(matches!(written, Written::Busy | Written::Queued));
        let entry = self.entry(fault, state);
        let signal = if entry.far.is_some() { "sea" } else { "serror" };
        // A message that does not fit is cut: the exception is what matters.
        let _ = writeln!(
            out,
            "! consumed pa={} cpu={} el={} access={} record={} signal={} far={:#x} at={}",
            fault.page,
            state.cpu,
            exception::source_el(state.spsr),
            fault.access.name(),
            written.name(),
            signal,
            state.far,
            state.at,
        );
        entry
    }

    /// EL2 that masks SErrors could not take one at this instruction, nor go on without the data:
    /// it gets the SEA.
    fn entry(&self, fault: GranuleFault, state: Interrupted) -> Entry {
        let Interrupted {
            spsr,
            far,
            controls,
            ..
        } = state;
        let pstate = exception::pstate(spsr, controls);
        match self.signal {
            Signal::SError(kind) if exception::takes_serror(spsr, controls) => Entry {
                vector: exception::vector_offset(Kind::SError, spsr, controls),
                esr: fault.serror_syndrome(kind),
                far: None,
                pstate,
            },
            _ => Entry {
                vector: exception::vector_offset(Kind::Synchronous, spsr, controls),
                esr: fault.sea_syndrome(exception::source_el(spsr) == 2),
                far: Some(far),
                pstate,
            },
        }
    }

    /// Records that `page` was consumed. `None` while the record before is not acknowledged: then
    /// this is to be called again, for [`ACK_WAIT_MS`], and then [`Self::postpone`].
    pub fn record(&mut self, page: Pa, machine: &mut impl Machine) -> Option<Written> {
        let Some(source) = self.source.filter(|_| self.record != Record::Off) else {
            return Some(Written::None);
        };
        if !self.is_good(source) {
            return Some(Written::None);
        }
        if !is_free(source, machine) {
            return None;
        }
        let mut buffer = [0; BLOCK_MAX];
        if self.record == Record::Garbage {
            let bytes = buffer.get_mut(..room(source.block))?;
            record::garbage(bytes);
            publish(source, bytes, machine);
            return Some(Written::Written);
        }
        let report = self.number(page, ErrorKind::Consumed);
        // Where they have no source of their own, others have waited for this one.
        let others = match self.reports {
            Some(_) => 0,
            None => self.queue.len(),
        };
        let contents = self.contents(report, others, source.block, &mut buffer, machine);
        let Some((bytes, taken)) = contents else {
            return Some(Written::None);
        };
        publish(source, bytes, machine);
        self.queue.remove(taken);
        Some(Written::Written)
    }

    /// The firmware must not consume the poison it made.
    fn is_good(&self, source: RecordSource) -> bool {
        let ack = source.ack.map(|ack| ack.register);
        !self.gpt.is_poisoned(source.block) && !ack.is_some_and(|ack| self.gpt.is_poisoned(ack))
    }

    /// What goes into the block: `report`, and as many of the `others` oldest of the queue as fit, whose
    /// number is returned.
    fn contents<'b>(
        &mut self,
        report: Report,
        others: usize,
        block: PaRange,
        buffer: &'b mut [u8; BLOCK_MAX],
        machine: &mut impl Machine,
    ) -> Option<(&'b [u8], usize)> {
        let buffer = buffer.get_mut(..room(block))?;
        let others = self.queue.iter().take(others);
        let (bytes, taken) = record::memory_record(buffer, report, others, machine.now()).ok()?;
        if self.queue.take_overflowed() {
            record::mark_overflow(bytes);
        }
        Some((bytes, taken))
    }
}

/// How much of `block` is used, in bytes.
fn room(block: PaRange) -> usize {
    usize::try_from(block.size()).map_or(BLOCK_MAX, |size| size.min(BLOCK_MAX))
}

/// Whether the reader is done with the block (ACPI 6.5 sections 18.3.2.7 and 18.3.2.8).
fn is_free(source: RecordSource, machine: &mut impl Machine) -> bool {
    const BLOCK_STATUS: u64 = 0xffff_ffff;
    match source.ack {
        Some(ack) => machine.read_u64(ack.register.start()) & ack.bits != 0,
        None => machine.read_u64(source.block.start()) & BLOCK_STATUS == 0,
    }
}

/// Writes the block. The reader owns it from the moment the ack bit is set again, which is after
/// it was notified: so the ack is cleared first. Block Status, which says that there is something to
/// read, comes last, in one access with the word behind it.
fn publish(source: RecordSource, bytes: &[u8], machine: &mut impl Machine) {
    let start = source.block.start();
    let (Some((first, rest)), Some(second)) = (bytes.split_first_chunk(), start.checked_add(8))
    else {
        return;
    };
    if let Some(ack) = source.ack {
        let register = ack.register.start();
        let old = machine.read_u64(register);
        machine.write_u64(register, old & !ack.bits);
    }
    machine.write(second, rest);
    machine.write_u64(start, u64::from_le_bytes(*first));
}

fn refuse(refusal: Refusal, pa: u64, out: &mut impl Write) -> fmt::Result {
    match refusal {
        Refusal::NotMemory => writeln!(out, "error not-memory pa={pa:#x}"),
        Refusal::Empty => writeln!(out, "error empty-block"),
        Refusal::NoTable => writeln!(out, "error no-table"),
    }
}

const fn smc_error(refusal: Refusal) -> i64 {
    match refusal {
        Refusal::NotMemory | Refusal::Empty => SMC_INVALID,
        Refusal::NoTable => SMC_NO_TABLE,
    }
}

#[cfg(test)]
mod tests;
