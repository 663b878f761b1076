//! What the operator may ask for while VMs run: memory errors as a test, and rules of the filter. A guest
//! asks for errors in its own memory by [`super::services`].

use super::hypercall::Pages;
use super::hypervisor::{Hypervisor, Platform};
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Vmid};
use crate::ras::event::Origin;
use crate::ras::filter::{FilterError, Rule};
use crate::ras::pipeline::{Injection, Occasion};
use core::fmt;

/// Most pages that one command takes.
pub const MAX_PAGES: u64 = 4096;

/// Where an error is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The page that holds this address.
    Pa(Pa),
    /// The page that a VM has here.
    Guest(Vmid, Ipa),
}

/// Why no error was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectError {
    /// No pages, more than [`MAX_PAGES`], or beyond the address space.
    BadRange,
    /// The VM has no memory there.
    NotMemory,
    /// An error that is consumed needs a vCPU which consumes it: only guests can ask for that.
    NoConsumer,
}

impl fmt::Display for InjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::BadRange => "bad-range",
            Self::NotMemory => "not-memory",
            Self::NoConsumer => "no-consumer",
        })
    }
}

impl core::error::Error for InjectError {}

impl<P: Platform> Hypervisor<P> {
    /// Makes an error of this kind in `pages` pages, for the operator, on physical CPU number `cpu`. Returns
    /// the memory that it was made in: less than was asked for where a VM's memory is not contiguous.
    ///
    /// # Errors
    /// As [`InjectError`] says; nothing has happened then.
    pub fn inject(
        &self,
        cpu: usize,
        target: Target,
        pages: u64,
        kind: Injection,
    ) -> Result<PaRange, InjectError> {
        if kind == Injection::Required {
            return Err(InjectError::NoConsumer);
        }
        let size = pages.checked_mul(PAGE_SIZE).filter(|_| pages <= MAX_PAGES);
        let size = size.ok_or(InjectError::BadRange)?;
        let range = match target {
            Target::Pa(pa) => PaRange::new(pa.page(), size).ok_or(InjectError::BadRange)?,
            Target::Guest(vm, ipa) => {
                let pages = Pages::new(ipa.page().get(), pages, MAX_PAGES);
                self.memory_behind(vm, pages.ok_or(InjectError::BadRange)?)
                    .ok_or(InjectError::NotMemory)?
            }
        };
        let occasion = Occasion {
            origin: Origin::Injected,
            cpu,
            consumer: None,
        };
        self.ras.inject(&occasion, range, kind, None, self);
        Ok(range)
    }

    /// Adds a rule to the filter, from its text ([`crate::ras::filter`]). Returns its number.
    ///
    /// # Errors
    /// As [`FilterError`] says.
    pub fn add_filter(&self, text: &str) -> Result<usize, FilterError> {
        let by_name = |name: &str| self.vms().iter().find(|vm| vm.name == name);
        let rule = Rule::parse(text, |name| Some(by_name(name)?.vmid))?;
        let number = self.ras.filter.lock().add(rule)?;
        log::info!(target: "ras", "event=filter rule={number} is={text}");
        Ok(number)
    }

    /// Takes all rules of the filter away.
    pub fn clear_filter(&self) {
        self.ras.filter.lock().clear();
        log::info!(target: "ras", "event=filter rule=none");
    }

    /// The memory behind the first of `pages`, and behind those after it as long as it is contiguous. By
    /// what is registered: holes do not count.
    pub(super) fn memory_behind(&self, vm: Vmid, pages: Pages) -> Option<PaRange> {
        let behind = |ipa| {
            Some(
                self.ras
                    .frame_of(self.ras.devmem.resolve(vm, ipa)?.0.page()),
            )
        };
        let first = behind(pages.range().start())?;
        let places = pages.iter().zip((0..).step_by(PAGE_SIZE as usize));
        let others = places.skip(1).take_while(|(ipa, offset)| {
            behind(*ipa).is_some_and(|pa| first.checked_add(*offset) == Some(pa))
        });
        PaRange::new(first, (1 + others.count() as u64) * PAGE_SIZE)
    }
}
