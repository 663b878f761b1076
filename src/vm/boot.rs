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
//! 3. That CPU has the VM's devices leave its memory alone, and writes the files again. Nothing of the
//!    VM runs meanwhile, and what it has lost stays lost: kernel and DTB go around the holes, the DTB
//!    says where they are ([`bad_memory`]), and a page of an initrd that is a hole is passed over. One
//!    that turns out to be bad now, under Cordon's own hands, becomes a hole like any other.
//! 4. The mark goes, and the first vCPU is turned on.
//!
//! A VM that is ended in between, by an error that cannot be contained, stays ended.

use super::bad_memory::{self, EditError};
use super::config::IpaRange;
use super::guest_acpi;
use super::hypervisor::{Hypervisor, Platform, StopReason, Vm};
use super::vcpu::Power;
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange};
use crate::platform::memory::BLOCK_2M;
use crate::ras::contain::AddressSpaces;
use crate::ras::cper::Severity;
use crate::ras::event::{Consumer, Origin, Stage};
use crate::ras::journal::Note;
use crate::ras::pipeline::Occasion;
use crate::ras::poison::BadPage;
use crate::stage2::{ExtentKind, HoleOutcome, Lookup, Suspect};
use alloc::borrow::Cow;
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
    /// What is described to a guest with ACPI, anew at each start.
    pub acpi: Option<guest_acpi::Machine>,
}

impl<P: Platform> Hypervisor<P> {
    /// Starts a VM whose vCPUs are all off. One whose files cannot be loaded is ended.
    pub fn start(&self, vm: &Vm<P>) {
        // What a boot loader had them do is over as well.
        vm.rest_devices(&self.platform);
        self.cut_known(vm);
        let lost = self.lost_memory(vm);
        let plan = Plan::new(&vm.boot, &lost);
        let loaded = plan.and_then(|plan| match self.load(vm, &plan.images) {
            Ok(()) => Ok(plan),
            Err(error) => {
                log::error!("event=error what=load vm={} why={error}", vm.name);
                Err("memory-unreachable")
            }
        });
        let plan = match loaded {
            Ok(plan) => plan,
            Err(why) => {
                log::error!("event=error what=load vm={} why={why}", vm.name);
                self.stop(vm, StopReason::Killed);
                return;
            }
        };
        vm.reset_errors();
        vm.wake_devices();
        // The guest's time begins now.
        let now = self.platform.counter();
        vm.counter_offset.store(now, Ordering::Relaxed);
        self.announce(vm, plan.entry, now);
        if let Some(first) = vm.vcpus.first()
            && first.turn_on(plan.entry.get(), plan.dtb.get()).is_ok()
        {
            self.platform.kick(first.pcpu);
        }
    }

    /// What the VM must not be given to use: what is bad of its memory, and what coarse holes took with it.
    fn lost_memory(&self, vm: &Vm<P>) -> Vec<IpaRange> {
        let bad = self.ras.lost_pages_of(vm.vmid);
        let bad = bad.filter_map(|lost| IpaRange::new(lost.ipa, PAGE_SIZE));
        let mut lost: Vec<IpaRange> = bad.collect();
        let holes = vm.stage2.lock().extents(|extent| {
            if extent.kind == ExtentKind::Poisoned {
                lost.extend(IpaRange::new(extent.ipa, extent.size));
            }
        });
        if let Err(damage) = holes {
            log::error!("event=error what=stage2 vm={} why={damage}", vm.name);
        }
        bad_memory::runs(lost.into_iter())
    }

    /// Whoever has turned a vCPU of `vm` off calls this: if this was the last one of a VM that has
    /// ended, its devices come to rest; if it waits for its reset, it starts anew.
    pub fn settle(&self, vm: &Vm<P>) {
        fence(Ordering::SeqCst);
        let all_off = vm.vcpus.iter().all(|vcpu| vcpu.power() == Power::Off);
        if all_off && vm.has_ended() {
            vm.rest_devices(&self.platform);
        }
        if all_off && vm.begin_reload() {
            vm.rest_devices(&self.platform);
            vm.reset_devices();
            self.forget_protections(vm);
            if vm.end_reload() {
                self.start(vm);
            }
        }
    }

    /// Takes every page that is known to be bad out of the VM's map. While it did not run nobody
    /// did ([`AddressSpaces::make_hole`]), and its files must not be written there.
    fn cut_known(&self, vm: &Vm<P>) {
        for lost in self.ras.lost_pages_of(vm.vmid) {
            self.cut(vm, lost.ipa, &lost.page);
        }
    }

    fn cut(&self, vm: &Vm<P>, ipa: Ipa, bad: &BadPage) {
        let suspect = Suspect {
            frame: bad.pa,
            is_bad: &|| self.ras.lost_to(vm.vmid, bad.pa).is_some(),
        };
        match self.make_hole(vm.vmid, ipa, suspect) {
            Some(Ok(HoleOutcome::Made(hole) | HoleOutcome::Coarse(hole))) => {
                self.ras
                    .say(&Note::contained(bad.sequence, vm.vmid, ipa, &hole), self);
            }
            Some(Err(damage)) => {
                self.give_up(vm.vmid, &damage);
            }
            Some(Ok(_)) | None => {}
        }
    }

    /// Writes all files.
    fn load(&self, vm: &Vm<P>, images: &[Cow<'_, Image>]) -> Result<(), LoadError<P::LoadError>> {
        for image in images {
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
            // One that is bad may be mapped all the same, or will be a hole when it is asked for.
            Ok(Lookup::Mapped { pa, .. } | Lookup::Parked { pa, .. }) => {
                (self.ras.lost_to(vm.vmid, pa).is_none()).then_some(pa)
            }
            _ => None,
        }
    }
}

/// Where a VM's files go this time, and what they hold: what it has lost may have been where they went
/// before.
struct Plan<'a> {
    images: Vec<Cow<'a, Image>>,
    entry: Ipa,
    dtb: Ipa,
}

impl<'a> Plan<'a> {
    /// Files go where they always do, but for what would be hit by `lost`: the DTB to another page of its
    /// place, the kernel up by a multiple of 2 MiB, which it must be able to bear (Linux,
    /// Documentation/arch/arm64/booting.rst, 4). An initrd stays, and misses pages.
    fn new(boot: &'a Boot, lost: &[IpaRange]) -> Result<Self, &'static str> {
        let (mut entry, mut dtb) = (boot.entry, boot.dtb);
        let mut images: Vec<_> = boot.images.iter().map(Cow::Borrowed).collect();
        for image in images.iter_mut().filter(|_| !lost.is_empty()) {
            let start = image.place.start();
            if start == boot.dtb {
                let moved = moved_dtb(image, lost)?;
                dtb = moved.place.start();
                *image = Cow::Owned(moved);
            } else if start == boot.entry {
                let moved = moved_kernel(image, boot, lost)?;
                entry = moved.place.start();
                *image = Cow::Owned(moved);
            }
        }
        if let Some(machine) = &boot.acpi {
            let described = machine.describe(lost).map_err(|error| {
                log::error!("event=error what=tables {error}");
                "tables-refused"
            })?;
            let [stub, ..] = &described;
            dtb = stub.place.start();
            images.extend(described.map(Cow::Owned));
        }
        Ok(Self { images, entry, dtb })
    }
}

/// The DTB with what is lost in it, at the first pages of its place that are good.
fn moved_dtb(image: &Image, lost: &[IpaRange]) -> Result<Image, &'static str> {
    let Contents::Bytes(blob) = &image.contents else {
        return Ok(image.clone());
    };
    let blob = bad_memory::describe(blob, lost).map_err(|error| match error {
        EditError::Damaged => "dtb-damaged",
        EditError::TooBig => "dtb-too-big",
    })?;
    let size = blob.len() as u64;
    let place = bad_memory::first_fit(image.place, size, PAGE_SIZE, lost)
        .and_then(|start| IpaRange::new(start, size))
        .ok_or("no-good-memory-for-dtb")?;
    let contents = Contents::Bytes(blob);
    Ok(Image { place, contents })
}

/// The kernel where it fits, below the next file.
fn moved_kernel(image: &Image, boot: &Boot, lost: &[IpaRange]) -> Result<Image, &'static str> {
    let (start, size) = (image.place.start(), image.place.size());
    let above = boot.images.iter().map(|other| other.place.start());
    let end = above.filter(|other| *other > start).min();
    let room = end.map_or(Some(size), |end| end.checked_offset_from(start));
    let place = room
        .and_then(|room| IpaRange::new(start, room))
        .and_then(|room| bad_memory::first_fit(room, size, BLOCK_2M, lost))
        .and_then(|start| IpaRange::new(start, size))
        .ok_or("no-good-memory-for-kernel")?;
    Ok(Image {
        place,
        ..image.clone()
    })
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

    fn place(start: u64, size: u64) -> IpaRange {
        IpaRange::new(Ipa::new(start), size).unwrap()
    }

    /// A kernel of 3 MiB, an initrd 16 MiB above it, and a DTB at the end of RAM.
    fn boot() -> Boot {
        use crate::vm::config::tests::{Tree, read};
        let bundle = Tree::full().bundle();
        let vm = &read(&bundle).unwrap()[0];
        let surroundings = crate::vm::guest_dt::Surroundings::default();
        let blob = crate::vm::guest_dt::build(vm, surroundings).unwrap();
        let file = PaRange::new(Pa::new(0x1000), 0x1000).unwrap();
        let image = |place, contents| Image { place, contents };
        Boot {
            acpi: None,
            images: alloc::vec![
                image(place(0x4000_0000, 3 << 20), Contents::Memory(file)),
                image(place(0x4100_0000, 1 << 20), Contents::Memory(file)),
                image(place(0x43e0_0000, 2 << 20), Contents::Bytes(blob)),
            ],
            entry: Ipa::new(0x4000_0000),
            dtb: Ipa::new(0x43e0_0000),
            ram: 64 << 20,
        }
    }

    #[test]
    fn without_holes_all_files_go_where_they_always_do() {
        let boot = boot();
        let plan = Plan::new(&boot, &[]).unwrap();
        assert_eq!((plan.entry, plan.dtb), (boot.entry, boot.dtb));
        assert!(plan.images.iter().all(|it| matches!(it, Cow::Borrowed(_))));
    }

    #[test]
    fn kernel_and_dtb_go_around_what_is_lost_and_the_dtb_tells() {
        let boot = boot();
        let lost = [place(0x4020_0000, PAGE_SIZE), place(0x43e0_0000, PAGE_SIZE)];
        let plan = Plan::new(&boot, &lost).unwrap();
        assert_eq!(plan.entry, Ipa::new(0x4040_0000));
        assert_eq!(plan.images[0].place, place(0x4040_0000, 3 << 20));
        assert_eq!(plan.dtb, Ipa::new(0x43e0_1000));
        assert_eq!(plan.images[2].place.start(), plan.dtb);
        let blob = match &plan.images[2].contents {
            Contents::Bytes(blob) => &blob[..],
            Contents::Memory(_) => &[],
        };
        let has = |text: &[u8]| blob.windows(text.len()).any(|window| window == text);
        assert!(has(b"bad@40200000\0") && has(b"bad@43e00000\0"));
    }

    #[test]
    fn a_vm_with_no_good_place_for_its_kernel_or_dtb_is_not_started() {
        let boot = boot();
        let every = |start: u64, pages: u64| {
            let lost = (0..pages).map(|at| place(start + at * (1 << 20), PAGE_SIZE));
            Plan::new(&boot, &lost.collect::<Vec<_>>()).map(|_| ())
        };
        assert_eq!(every(0x4000_0000, 16), Err("no-good-memory-for-kernel"));
        let all = [place(0x43e0_0000, 2 << 20)];
        let plan = Plan::new(&boot, &all).map(|_| ());
        assert_eq!(plan, Err("no-good-memory-for-dtb"));
    }
}
