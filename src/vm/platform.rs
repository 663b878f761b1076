//! What VMs need of the machine that they run on.

use super::access::pages::Apertures;
use super::boot::{Contents, LoadError};
use super::device::Device;
use super::hypervisor::End;
use crate::addr::PaRange;
use crate::ras::ghes::PhysMemory;
use crate::ras::media::Media;
use crate::stage2::{TableMemory, Tlb};
use core::fmt;

/// What the machine does for its VMs.
pub trait Platform: Media + Apertures {
    /// Reaches stage-2 tables.
    type Tables: TableMemory;
    /// Maintains TLBs.
    type Tlb: Tlb;
    /// Reaches error status blocks.
    type Shared: PhysMemory;
    /// Why memory could not be written.
    type LoadError: fmt::Display;

    /// Gets physical CPU number `cpu` out of its guest, or out of its sleep.
    fn kick(&self, cpu: usize);
    /// Prints a byte of a VM's console.
    fn print(&self, console: usize, byte: u8);
    /// A VM has printed all that it wants to for now: what is there of a line can be shown.
    fn pause(&self, console: usize);
    /// A byte typed for a VM's console. [`super::hypervisor::Hypervisor::input`] is called when there are more.
    fn typed(&self, console: usize) -> Option<u8>;
    /// A VM has ended for good, or begins again: only one that has not can have the focus.
    fn powered(&self, console: usize, on: bool);
    /// Which console has the focus.
    fn focus(&self) -> usize;
    /// Gives a console the focus. False if its VM has ended.
    fn give_focus(&self, console: usize) -> bool;
    /// Prints a line that the operator has asked for, whatever is logged.
    fn answer(&self, line: fmt::Arguments<'_>);
    /// Writes `to`, memory of a VM that does not run, with what `contents` hold from `offset` on, and
    /// with zeros behind their end, so that a CPU without caches sees it.
    ///
    /// # Errors
    ///
    /// Where the memory cannot be reached, or is poison; part of it may be written then.
    fn load(
        &self,
        to: PaRange,
        contents: &Contents,
        offset: u64,
    ) -> Result<(), LoadError<Self::LoadError>>;
    /// The number of the physical CPU that this runs on.
    fn cpu(&self) -> usize;
    /// Which of the timers of the guest on physical CPU number `cpu` ask for an interrupt at this
    /// moment, as bits by virtual INTID.
    fn timer_lines(&self, cpu: usize) -> u32;
    /// Ends the machine. Comes back where nobody is there who can.
    fn end(&self, how: End) {
        let _ = how;
    }
    /// The physical counter (CNTPCT_EL0).
    fn counter(&self) -> u64;
    /// Switches off and deactivates a physical interrupt that nobody wants.
    fn refuse_interrupt(&self, physical: u16);
    /// Puts a device of a VM that does not run into its reset state: it reads and writes no memory
    /// afterwards.
    ///
    /// # Errors
    ///
    /// Where its registers cannot be reached.
    fn reset_device(&self, device: &Device) -> Result<(), Self::LoadError>;
}
