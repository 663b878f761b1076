//! How a VM starts: its files are put into its RAM, then its first vCPU is turned on. A reset is
//! the same once more.
//!
//! # A reset, step by step
//!
//! 1. A vCPU asks for it ([`Hypervisor::reset`]). The VM is marked, all its CPUs are kicked, and
//!    each vCPU goes off at its next exit, as it would where the VM ends. One that was about to
//!    start does not.
//! 2. Whoever turns a vCPU off looks whether it was the last ([`Hypervisor::settle`]). Two may go
//!    off at once: a barrier between the store of one's own state and the loads of the others'
//!    makes at least one of them see that all are off, and an exchange lets only one act on it.
//! 3. That CPU writes the files again. Nothing of the VM runs meanwhile, and what it has lost
//!    stays lost: a page that is a hole is passed over, for the memory behind it is as bad as before. One
//!    that turns out to be bad now, under Cordon's own hands, becomes a hole like any other.
//! 4. The mark goes, and the first vCPU is turned on.
//!
//! A VM that is ended in between, by an error that cannot be contained, stays ended.

use super::config::IpaRange;
use super::hypervisor::{Hypervisor, Platform, StopReason, Vm};
use super::vcpu::Power;
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange};
use crate::ras::cper::Severity;
use crate::ras::event::{Consumer, Origin, Stage};
use crate::ras::pipeline::Occasion;
use crate::stage2::Lookup;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

/// A file in a VM's RAM.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where it goes. What is behind its contents is zeroed.
    pub place: IpaRange,
    /// What it holds.
    pub contents: Contents,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// What this memory holds, which is kept for it.
    Memory(PaRange),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// Why a file was not loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadError<E> {
    /// Memory at this address, where the CPU gave one, has gone bad: the VM's or the file's.
    Poisoned(Option<Pa>),
    /// An error of the platform's.
    Platform(E),
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisoned(Some(pa)) => write!(f, "poisoned:{pa}"),
            Self::Poisoned(None) => f.write_str("poisoned"),
            Self::Platform(error) => error.fmt(f),
        }
    }
}

/// All that a VM is started with.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Its files.
    pub images: Vec<Image>,
    /// The first vCPU's first instruction.
    pub entry: Ipa,
    /// Its x0: the DTB.
    pub dtb: Ipa,
    /// Bytes of RAM.
    pub ram: u64,
}

impl<P: Platform> Hypervisor<P> {
    /// Starts a VM whose vCPUs are all off. One whose files cannot be loaded is ended.
    pub fn start(&self, vm: &Vm<P>) {
        if let Err(error) = self.load(vm) {
            log::error!("event=error what=load vm={} why={error}", vm.name);
            self.stop(vm, StopReason::Killed);
            return;
        }
        let boot = &vm.boot;
        self.announce(vm);
        // The guest's time begins now.
        let now = self.platform.counter();
        vm.counter_offset.store(now, Ordering::Relaxed);
        if let Some(first) = vm.vcpus.first()
            && first.turn_on(boot.entry.get(), boot.dtb.get()).is_ok()
        {
            self.platform.kick(first.pcpu);
        }
    }

    /// Whoever has turned a vCPU of `vm` off calls this: if the VM waits for its reset and this was
    /// the last one, it starts anew.
    pub fn settle(&self, vm: &Vm<P>) {
        fence(Ordering::SeqCst);
        let all_off = vm.vcpus.iter().all(|vcpu| vcpu.power() == Power::Off);
        if all_off && vm.begin_reload() {
            vm.reset_devices();
            if vm.end_reload() {
                self.start(vm);
            }
        }
    }

    /// Writes all files.
    fn load(&self, vm: &Vm<P>) -> Result<(), LoadError<P::LoadError>> {
        for image in &vm.boot.images {
            let lost = loop {
                match self.load_image(vm, image) {
                    // Each time a page less is to be written.
                    Err(LoadError::Poisoned(pa)) if self.cut_while_loading(vm, image, pa) => {}
                    result => break result?,
                }
            };
            if lost > 0 {
                let (name, at) = (&vm.name, image.place.start());
                log::warn!("event=error what=load vm={name} why=pages-lost ipa={at} pages={lost}");
            }
        }
        Ok(())
    }

    /// Writes one file. Returns how many of its pages are holes.
    fn load_image(&self, vm: &Vm<P>, image: &Image) -> Result<u64, LoadError<P::LoadError>> {
        let mut lost = 0;
        for run in Runs::new(image.place, |page| self.page_behind(vm, page)) {
            match run {
                Run::Memory { offset, to } => self.platform.load(to, &image.contents, offset)?,
                Run::Hole => lost += 1,
            }
        }
        Ok(lost)
    }

    /// Cordon itself met poison while it wrote `image`, at `pa` if that is known. Takes the page away from
    /// the VM. False if it is none of the file's place: then the file itself is lost, or nobody knows what.
    fn cut_while_loading(&self, vm: &Vm<P>, image: &Image, pa: Option<Pa>) -> bool {
        let occasion = Occasion {
            origin: Origin::Sea,
            cpu: self.platform.cpu(),
            consumer: Some(Consumer::Hypervisor),
        };
        let collected = self.ras.collect(&occasion, self);
        let Some(page) = pa.or(collected.page).map(Pa::page) else {
            return false;
        };
        let mut mapped = self.ras.devmem.mappings_of(page);
        let ipa = mapped.find(|it| it.vm == vm.vmid).map(|it| it.ipa);
        let Some(ipa) = ipa.filter(|ipa| (image.place.start()..=image.place.last()).contains(ipa))
        else {
            return false;
        };
        if self.page_behind(vm, ipa).is_some() {
            // No record was about it: the abort's word has to do.
            let seq = self.ras.next_sequence();
            let range = PaRange::new(page, PAGE_SIZE);
            let event = occasion.event(seq, Severity::Recoverable, range);
            self.ras.announcer.announce(&event, Stage::NoRecord);
            log::warn!(target: "ras", "event=no-record {event} vm={}", vm.name);
            range.map(|range| self.ras.contain(&event, range, self));
        }
        self.page_behind(vm, ipa).is_none()
    }

    /// The memory behind a page of a VM; `None` for a hole.
    fn page_behind(&self, vm: &Vm<P>, page: Ipa) -> Option<Pa> {
        match vm.stage2.lock().lookup(page) {
            Ok(Lookup::Mapped { pa, .. }) => Some(pa),
            _ => None,
        }
    }
}

/// A part of a file's place.
#[derive(Debug, PartialEq, Eq)]
enum Run {
    /// Contiguous memory, for what is in the file from `offset` on.
    Memory { offset: u64, to: PaRange },
    /// A page that cannot be written.
    Hole,
}

/// Takes a place apart into contiguous memory and holes. A place begins at a page.
struct Runs<F> {
    place: IpaRange,
    offset: u64,
    behind: F,
}

impl<F: FnMut(Ipa) -> Option<Pa>> Runs<F> {
    fn new(place: IpaRange, behind: F) -> Self {
        Self {
            place,
            offset: 0,
            behind,
        }
    }

    /// The page at `offset`: how much of it belongs to the place, and what is behind it.
    fn page(&mut self, offset: u64) -> Option<(u64, Option<Pa>)> {
        let left = self
            .place
            .size()
            .checked_sub(offset)
            .filter(|left| *left > 0)?;
        let ipa = self.place.start().checked_add(offset)?;
        Some((left.min(PAGE_SIZE), (self.behind)(ipa)))
    }
}

impl<F: FnMut(Ipa) -> Option<Pa>> Iterator for Runs<F> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let offset = self.offset;
        let (mut size, first) = self.page(offset)?;
        self.offset += size;
        let Some(start) = first else {
            return Some(Run::Hole);
        };
        while let Some((more, Some(pa))) = self.page(self.offset)
            && start.checked_add(size) == Some(pa)
        {
            size += more;
            self.offset += more;
        }
        let to = PaRange::new(start, size);
        Some(to.map_or(Run::Hole, |to| Run::Memory { offset, to }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(pages: &[Option<u64>], size: u64) -> Vec<Run> {
        let start = Ipa::new(0x4000_0000);
        let place = IpaRange::new(start, size).unwrap();
        let behind = |ipa: Ipa| {
            let index = (ipa.checked_offset_from(start).unwrap() / PAGE_SIZE) as usize;
            pages[index].map(Pa::new)
        };
        Runs::new(place, behind).collect()
    }

    fn memory(offset: u64, start: u64, size: u64) -> Run {
        let to = PaRange::new(Pa::new(start), size).unwrap();
        Run::Memory { offset, to }
    }

    #[test]
    fn contiguous_memory_is_one_run_and_ends_where_the_place_does() {
        let pages = [Some(0x8000), Some(0x9000), Some(0xa000)];
        assert_eq!(runs(&pages, 0x2800), [memory(0, 0x8000, 0x2800)]);
    }

    #[test]
    fn a_hole_is_passed_over_and_what_follows_keeps_its_place_in_the_file() {
        let pages = [Some(0x8000), None, Some(0xa000), Some(0xb000)];
        let expected = [
            memory(0, 0x8000, 0x1000),
            Run::Hole,
            memory(0x2000, 0xa000, 0x1010),
        ];
        assert_eq!(runs(&pages, 0x3010), expected);
    }

    #[test]
    fn memory_that_is_elsewhere_is_a_run_of_its_own() {
        let pages = [Some(0x8000), Some(0x2_0000)];
        let expected = [memory(0, 0x8000, 0x1000), memory(0x1000, 0x2_0000, 0x1000)];
        assert_eq!(runs(&pages, 0x2000), expected);
    }
}
