//! The firmware that a guest with ACPI believes to have: it reports memory errors by HEST's two sources,
//! and makes some when it is asked to by EINJ (ACPI 6.5, chapter 18).
//!
//! ```text
//!   sources      what is reported, in order, one record at a time
//!   injection    what the guest asks for
//! ```
//!
//! All that guest and firmware agree on by a register is a page of trapped registers ([`register`]), so
//! nothing is polled: a record is acknowledged by a write that Cordon sees, and the next one follows at once.
//! Only the records themselves, and the arguments of an injection, lie in RAM of the guest, who may
//! scribble over all of it: what Cordon reads there is an allegation, what it writes is the guest's
//! to lose.

mod injection;
mod sources;
#[cfg(test)]
mod tests;

use spin::Mutex;

use crate::addr::{Ipa, Pa};
use crate::ras::cper::HEADER_SIZE;
use crate::ras::ghes::{MemoryError, PhysMemory};
use crate::vm::guest_acpi::errors::trigger_table;
use crate::vm::guest_acpi::place::shared;

use injection::{Arguments, Status};
pub use injection::{Injection, InjectionKind};
use sources::{Found, Source};
pub use sources::{NotTold, Report};

/// The registers, as offsets in bytes into the device's page. Each has 64 bits.
pub mod register {
    use crate::vm::guest_acpi::place::shared::SOURCES;

    /// Begins or ends an injection ([`STATE_BEGIN`], [`STATE_END`]).
    pub const STATE: u64 = 0x00;
    /// Reads as the address of the trigger error action table.
    pub const TRIGGER_TABLE: u64 = 0x08;
    /// The type of error to make, for who gives no address.
    pub const ERROR_TYPE: u64 = 0x10;
    /// Reads as the types of error that can be made.
    pub const CAPABILITIES: u64 = 0x18;
    /// Makes the error.
    pub const EXECUTE: u64 = 0x20;
    /// Reads as 1 while an error is being made: never.
    pub const BUSY: u64 = 0x28;
    /// Reads as what became of it.
    pub const STATUS: u64 = 0x30;
    /// Reads as how long it takes (18.6.1, `GET_EXECUTE_OPERATION_TIMINGS`).
    pub const TIMINGS: u64 = 0x38;
    /// Lets the error that was made show itself.
    pub const TRIGGER: u64 = 0x40;
    /// Reads as the addresses of the sources' error status blocks.
    pub const POINTER: [u64; SOURCES] = [0x80, 0x88];
    /// The sources' read acknowledge registers.
    pub const ACK: [u64; SOURCES] = [0xc0, 0xc8];

    /// Values of [`STATE`].
    pub const STATE_BEGIN: u64 = 1;
    /// See [`STATE_BEGIN`].
    pub const STATE_END: u64 = 0;
}

/// How often an access to lost memory is retried while the guest has a record to acknowledge: for seconds,
/// because the vCPU that has to do it may be one whose CPU is somewhere else, if the machine is a VM itself.
const PATIENCE: u32 = if cfg!(test) { 1000 } else { 1_000_000 };

/// What a write to a register leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing more.
    None,
    /// The error interrupt is due: source 1 has a record.
    Interrupt,
    /// The error that the guest had made shows itself: it is to be told of it.
    Show(Report),
    /// The guest wants an error made. Its answer goes to [`ErrorDevice::injected`].
    Inject(Injection),
}

/// One VM's.
pub struct ErrorDevice<M> {
    state: Mutex<State<M>>,
}

struct State<M> {
    memory: M,
    /// Where the shared area is: for Cordon, and for the guest.
    area: (Pa, Ipa),
    consumed: Source,
    /// How often somebody has waited for `consumed` since its last record.
    waits: u32,
    found: Found,
    sequence: u64,
    error_type: u64,
    status: Status,
    /// What was injected and has not shown itself yet.
    latent: Option<Report>,
    /// The page that is being made bad: what is found in it is what was asked for.
    making: Option<Ipa>,
}

impl<M: PhysMemory> ErrorDevice<M> {
    /// A device whose shared area begins at `pa` in `memory`, and at `ipa` for the guest.
    pub fn new(memory: M, pa: Pa, ipa: Ipa) -> Self {
        Self {
            state: Mutex::new(State {
                memory,
                area: (pa, ipa),
                consumed: Source::new(0),
                waits: 0,
                found: Found::new(),
                sequence: 0,
                error_type: 0,
                status: Status::Success,
                latent: None,
                making: None,
            }),
        }
    }

    /// As the guest finds it when its machine is turned on. Records are numbered on, so that none is
    /// ever taken for an older one.
    ///
    /// # Errors
    /// Where the shared area cannot be written, because it has gone bad.
    pub fn reset(&self) -> Result<(), MemoryError> {
        let state = &mut *self.state.lock();
        state.consumed = Source::new(0);
        state.waits = 0;
        state.found.reset();
        state.error_type = 0;
        state.status = Status::Success;
        state.latent = None;
        state.clear_area()
    }

    /// The guest reads the register at `offset`. What is none reads as 0.
    pub fn read(&self, offset: u64) -> u64 {
        let state = self.state.lock();
        let (_, ipa) = state.area;
        let at = |offset: u64| ipa.get().wrapping_add(offset);
        match offset {
            register::TRIGGER_TABLE => at(shared::TRIGGER),
            register::ERROR_TYPE => state.error_type,
            register::CAPABILITIES => injection::CAPABILITIES,
            register::STATUS => state.status as u64,
            register::TIMINGS => injection::TIMINGS,
            _ if offset == register::POINTER[0] => at(shared::BLOCK[0]),
            _ if offset == register::POINTER[1] => at(shared::BLOCK[1]),
            _ if offset == register::ACK[0] => state.consumed.is_free().into(),
            _ if offset == register::ACK[1] => state.found.is_free().into(),
            _ => 0,
        }
    }

    /// The guest writes the register at `offset`.
    pub fn write(&self, offset: u64, value: u64) -> Effect {
        let state = &mut *self.state.lock();
        let acknowledges = value & 1 != 0;
        match offset {
            register::ERROR_TYPE => state.error_type = value,
            register::EXECUTE if value == 1 => return state.execute(),
            register::TRIGGER => {
                if let Some(report) = state.latent.take() {
                    return Effect::Show(report);
                }
            }
            _ if offset == register::ACK[0] && acknowledges => state.consumed.release(),
            _ if offset == register::ACK[1] && acknowledges => {
                state.found.release();
                return state.publish_next();
            }
            _ => {}
        }
        Effect::None
    }

    /// What became of an [`Effect::Inject`]: the report that its trigger makes, or that it was refused.
    pub fn injected(&self, result: Option<Report>) {
        let state = &mut *self.state.lock();
        state.status = match result {
            Some(_) => Status::Success,
            None => Status::Invalid,
        };
        state.latent = result;
        state.making = None;
    }

    /// Whether who has consumed an error should try again, for the last record has not been
    /// acknowledged yet. That is a matter of some hundred instructions of another vCPU, so a guest that
    /// is waited for in vain is not waited for ever.
    pub fn must_wait(&self) -> bool {
        self.state.lock().must_wait()
    }

    /// Leaves a record of an error that somebody is about to be told of by an abort.
    ///
    /// # Errors
    /// [`NotTold`]: the guest has not acknowledged the last one, or cannot be left one.
    pub fn consumed(&self, report: Report) -> Result<(), NotTold> {
        let state = &mut *self.state.lock();
        if state.must_wait() {
            return Err(NotTold::NotYet);
        }
        if !state.consumed.is_free() {
            return Err(NotTold::Busy);
        }
        state.waits = 0;
        let sequence = state.next_sequence();
        let (pa, _) = state.area;
        state
            .consumed
            .publish(&mut state.memory, pa, &report, sequence)
    }

    /// Has the guest told of an error that nobody has consumed, in its turn. `None` where that is the one
    /// that it is having made: it decides by itself when that shows.
    pub fn found(&self, report: Report) -> Option<Effect> {
        let state = &mut *self.state.lock();
        let is_own = state.making == Some(report.ipa);
        (!is_own).then(|| state.find(report))
    }

    /// Reports that found no room in the queue since the VM was made.
    pub fn overflows(&self) -> u64 {
        self.state.lock().found.overflows()
    }
}

impl<M: PhysMemory> State<M> {
    /// No record in the blocks, no arguments, and what triggers an injected error.
    fn clear_area(&mut self) -> Result<(), MemoryError> {
        for block in shared::BLOCK {
            self.put(block, &[0; HEADER_SIZE])?;
        }
        self.put(shared::INJECTION, &[0; shared::INJECTION_SIZE])?;
        self.put(shared::TRIGGER, &trigger_table())
    }

    fn must_wait(&mut self) -> bool {
        if self.consumed.is_free() || self.waits == PATIENCE {
            return false;
        }
        self.waits += 1;
        true
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let (pa, _) = self.area;
        let at = pa.checked_add(offset).ok_or(MemoryError::NotMapped(pa))?;
        self.memory.write(at, bytes)
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    fn find(&mut self, report: Report) -> Effect {
        self.found.push(report);
        self.publish_next()
    }

    /// Leaves the next record of source 1, if it is free and there is one.
    fn publish_next(&mut self) -> Effect {
        while let Some(report) = self.found.next() {
            let sequence = self.next_sequence();
            let (pa, _) = self.area;
            match self.found.publish(&mut self.memory, pa, &report, sequence) {
                Ok(()) => return Effect::Interrupt,
                // The block itself is bad: nothing can be reported there any more.
                Err(error) => log::warn!("event=error what=guest-record why={error}"),
            }
        }
        Effect::None
    }

    fn execute(&mut self) -> Effect {
        match self.arguments() {
            Ok(Some(injection)) => {
                self.making = Some(injection.page);
                Effect::Inject(injection)
            }
            Ok(None) | Err(_) => {
                self.status = Status::Invalid;
                Effect::None
            }
        }
    }

    fn arguments(&mut self) -> Result<Option<Injection>, MemoryError> {
        let (pa, _) = self.area;
        let at = pa
            .checked_add(shared::INJECTION)
            .ok_or(MemoryError::NotMapped(pa))?;
        let mut bytes = [0; shared::INJECTION_SIZE];
        self.memory.read(at, &mut bytes)?;
        Ok(Arguments::read(&bytes).injection())
    }
}
