//! Repair: a page that was lost is given back, by its own memory or by another's.
//!
//! ```text
//!   in place   heal or clear the media -> read it -> forget the poison -> mend every map that had it
//!   by spare   clear a spare, read it  -> note whose it is   -> put it into every map that had the page
//!   home       heal the media of a page that a spare stands in for -> move the contents back
//! ```
//!
//! Until the media has been read without an error nothing has changed: the hole stays. Then the page
//! leaves the poison set *before* any map is mended, for no map takes what is in that set. A vCPU that
//! touches the page in between retries until the repair is over, which is soon: nothing in here waits.
//!
//! Repairs, and moves ([`soft_offline`](super::soft_offline)), go one after the other, under
//! [`Mender::work`], which is taken before any other lock of this module.

use super::contain::AddressSpaces;
use super::cper::Severity;
use super::event::{Consumer, Origin, Stage};
use super::ghes::PhysMemory;
use super::media::{Healing, Media, MediaError};
use super::pipeline::{Occasion, Ras};
use super::soft_offline::Corrected;
use super::spares::Spares;
use crate::addr::{Ipa, PAGE_SIZE, Pa, PaRange, Vmid};
use crate::devmem::{MappedPage, MappingsOf};
use crate::stage2::{Attrs, Damage, MendOutcome, ProtectError, ReplaceError};
use crate::sync::Mutex;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

mod shared;

/// What repairs need of the VMs' address spaces. `None`: there is no such VM, or it never runs again.
pub trait Mendable: AddressSpaces {
    /// Gives the VM the page at `ipa` back, if it is a hole over memory that is good.
    fn mend(&self, vm: Vmid, ipa: Ipa) -> Option<Result<MendOutcome, Damage>>;

    /// Puts `frame` behind the page at `ipa`. Returns the size of the leaf that maps it.
    fn replace(
        &self,
        vm: Vmid,
        ipa: Ipa,
        frame: Pa,
        attrs: Attrs,
    ) -> Option<Result<u64, ReplaceError>>;

    /// Size in bytes of the smallest page that the VM's map can tell from its neighbours; of no consequence
    /// where there is no such VM.
    fn smallest_page(&self, vm: Vmid) -> u64;

    /// Changes the attributes of the page at `ipa`.
    fn protect(&self, vm: Vmid, ipa: Ipa, attrs: Attrs) -> Option<Result<(), ProtectError>>;
}

/// How a page is to be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Its own memory is to be made good.
    InPlace,
    /// Another frame is to take its place, full of zeros.
    Spare,
}

impl How {
    /// By its number in hypercalls.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            0 => Some(Self::InPlace),
            1 => Some(Self::Spare),
            _ => None,
        }
    }

    /// By its name in commands.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "in-place" => Some(Self::InPlace),
            "spare" => Some(Self::Spare),
            _ => None,
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InPlace => "in-place",
            Self::Spare => "spare",
        })
    }
}

/// Why a page was not repaired. Unless it says otherwise, nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairError {
    /// It is not known to be bad, or was repaired before.
    NotPoisoned,
    /// Nobody's memory, or nobody's any more.
    NotMapped,
    /// Its memory still gives errors, or gave one again before the repair was over. It stays cut out.
    StillBad,
    /// The platform refuses to heal it.
    Refused,
    /// Cordon cannot reach its memory, so cannot look whether it is in order.
    Unreachable,
    /// There is no spare left.
    NoSpare,
    /// A VM's table reserve is spent, so that it cannot have the page by itself. Others may have it.
    OutOfFrames,
    /// Another VM has it as well, and would notice: [`shared`] says when.
    Shared,
    /// The tables of a VM that has it are of a larger granule, so that no other page can take its place alone.
    LargerGranule,
    /// There is no room to remember from whom it would be withheld. It stays cut out.
    NoRoom,
}

impl fmt::Display for RepairError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NotPoisoned => "not-poisoned",
            Self::NotMapped => "not-mapped",
            Self::StillBad => "still-bad",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NoSpare => "no-spare",
            Self::OutOfFrames => "out-of-table-frames",
            Self::Shared => "shared",
            Self::LargerGranule => "larger-granule",
            Self::NoRoom => "poison-set-full",
        })
    }
}

impl core::error::Error for RepairError {}

impl From<MediaError> for RepairError {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::Poisoned => Self::StillBad,
            MediaError::Unreachable => Self::Unreachable,
        }
    }
}

/// What became of the contents of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// They are as they were.
    Kept,
    /// They are zeros.
    Cleared,
    /// They are what others have made of them, who had the page back before.
    Shared,
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kept => "kept",
            Self::Cleared => "cleared",
            Self::Shared => "shared",
        })
    }
}

/// What repairs and moves have in common.
#[derive(Debug)]
pub struct Mender {
    /// Held for the whole of a repair or move of one page.
    pub(super) work: Mutex<()>,
    /// The frame that is being worked on; [`NOTHING`] between.
    busy: AtomicU64,
    /// Spare frames, and what they stand in for. A leaf.
    pub spares: Mutex<Spares>,
    /// Corrected errors, by page. A leaf.
    pub corrected: Mutex<Corrected>,
}

/// No frame's number.
const NOTHING: u64 = u64::MAX;

impl Mender {
    /// Without spares. Allocates.
    pub fn new() -> Self {
        Self {
            work: Mutex::new(()),
            busy: AtomicU64::new(NOTHING),
            spares: Mutex::new(Spares::none()),
            corrected: Mutex::new(Corrected::new()),
        }
    }

    /// Whether the page that holds `frame` is just being repaired or moved, so that an access to it is
    /// to be tried again.
    pub fn is_busy(&self, frame: Pa) -> bool {
        self.busy.load(Ordering::Acquire) == frame.pfn().get()
    }

    /// Keeps repairs, moves and changes of attributes from happening while the answer is kept. To be taken
    /// before any other lock.
    pub fn alone(&self) -> impl Sized + '_ {
        self.work.lock()
    }

    /// Says that `frame` is being worked on until the guard goes. [`Self::work`] must be held.
    pub(crate) fn begin(&self, frame: Pa) -> Busy<'_> {
        self.busy.store(frame.pfn().get(), Ordering::Release);
        Busy(&self.busy)
    }
}

impl Default for Mender {
    fn default() -> Self {
        Self::new()
    }
}

/// A frame is being worked on.
pub(crate) struct Busy<'a>(&'a AtomicU64);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(NOTHING, Ordering::Release);
    }
}

impl<'s, S: PhysMemory> Ras<'s, S> {
    /// Everyone who has the page that holds `frame` behind an IPA now: by its home, where it is a
    /// spare; nobody, where another frame has taken its place.
    pub fn users_of(&self, frame: Pa) -> MappingsOf<'_> {
        let home = self.mender.spares.lock().home_of(frame);
        home.map_or(MappingsOf::NONE, |home| self.devmem.mappings_of(home))
    }

    /// The frame that is behind the page with this home, by the registry, now.
    pub fn frame_of(&self, home: Pa) -> Pa {
        self.mender.spares.lock().frame_of(home)
    }

    /// Of the pages that live in spares, the one with the lowest home from `home` on, and where it is.
    pub fn moved_from(&self, home: Pa) -> Option<(Pa, Pa)> {
        self.mender.spares.lock().moved_from(home)
    }

    /// Whether the page that holds `pa` is known to be bad.
    pub fn is_bad(&self, pa: Pa) -> bool {
        self.poison.lock().contains(pa.pfn())
    }

    /// Repairs the page that holds `frame`, on physical CPU number `cpu`, for everyone who has it.
    ///
    /// # Errors
    /// As [`RepairError`] says.
    pub fn repair<V: Mendable>(
        &self,
        frame: Pa,
        how: How,
        cpu: usize,
        spaces: &V,
        media: &impl Media,
    ) -> Result<Contents, RepairError> {
        self.repair_for(None, (frame, how), cpu, spaces, media)
    }

    /// The same on behalf of VM `by` alone: see [`shared`].
    ///
    /// # Errors
    /// As [`RepairError`] says.
    pub fn repair_for<V: Mendable>(
        &self,
        by: Option<Vmid>,
        (frame, how): (Pa, How),
        cpu: usize,
        spaces: &V,
        media: &impl Media,
    ) -> Result<Contents, RepairError> {
        let (page, seq) = (frame.page(), self.next_sequence());
        let step = Step {
            ras: self,
            by,
            page,
            seq,
            cpu,
            spaces,
            media,
        };
        let work = self.mender.work.lock();
        let busy = self.mender.begin(page);
        let done = step.carry_out(how);
        drop((busy, work));
        match done {
            Ok(Contents::Shared) => {
                let vm = by.map_or("?", |vm| spaces.name(vm));
                log::info!(target: "ras", "event=returned seq={seq} pa={page} vm={vm}");
            }
            Ok(contents) => {
                let occasion = Occasion {
                    origin: Origin::Repair,
                    cpu,
                    consumer: None,
                };
                let event =
                    occasion.event(seq, Severity::Recoverable, PaRange::new(page, PAGE_SIZE));
                self.announcer
                    .announce(&event, Stage::Repaired { pages: 1 });
                log::info!(target: "ras", "event=repaired seq={seq} pa={page} how={how} contents={contents}");
            }
            Err(error) => {
                log::warn!(target: "ras", "event=not-repaired seq={seq} pa={page} how={how} why={error}");
            }
        }
        done
    }

    /// The record that Cordon's own consumption has left, if it has, is nobody's to wait for.
    pub(super) fn collect_own<V: AddressSpaces>(&self, cpu: usize, spaces: &V) {
        let occasion = Occasion {
            origin: Origin::Sea,
            cpu,
            consumer: Some(Consumer::Hypervisor),
        };
        let _ = self.collect(&occasion, spaces);
    }
}

/// One repair.
struct Step<'a, 's, S, V, M> {
    ras: &'a Ras<'s, S>,
    /// Who asked; `None`: somebody who speaks for all.
    by: Option<Vmid>,
    page: Pa,
    seq: u64,
    cpu: usize,
    spaces: &'a V,
    media: &'a M,
}

impl<S: PhysMemory, V: Mendable, M: Media> Step<'_, '_, S, V, M> {
    fn carry_out(&self, how: How) -> Result<Contents, RepairError> {
        if !self.ras.is_bad(self.page) {
            return match self.by {
                Some(vm) if self.ras.lost_to(vm, self.page).is_some() => self.give_back(vm, how),
                _ => Err(RepairError::NotPoisoned),
            };
        }
        if self.ras.devmem.find(self.page).is_none() {
            return Err(RepairError::NotMapped);
        }
        let others = self.others(how)?;
        match how {
            How::InPlace => self.in_place(others),
            How::Spare => self.by_spare(),
        }
    }

    fn in_place(&self, others: shared::Vms) -> Result<Contents, RepairError> {
        let contents = self.make_good()?;
        let home = self.ras.mender.spares.lock().home_of(self.page);
        self.forget(others)?;
        if home.is_none() && self.is_home_of_a_spare() {
            self.bring_home()?;
            return Ok(Contents::Kept);
        }
        self.mend_all()?;
        Ok(contents)
    }

    /// Gives the page to those who have asked for it.
    fn mend_all(&self) -> Result<(), RepairError> {
        let asked = |user: &MappedPage<'_>| self.by.is_none_or(|vm| user.vm == vm);
        for mapped in self.ras.users_of(self.page).filter(asked) {
            self.mend(&mapped)?;
        }
        Ok(())
    }

    fn is_home_of_a_spare(&self) -> bool {
        self.ras.frame_of(self.page) != self.page
    }

    /// Has the media of the page in order, by its own word and by reading it.
    fn make_good(&self) -> Result<Contents, RepairError> {
        let checked = match self.media.heal(self.page) {
            Healing::Refused => return Err(RepairError::Refused),
            Healing::Done => self.media.verify(self.page).map(|()| Contents::Kept),
            Healing::NoService => match self.media.verify(self.page) {
                Err(MediaError::Poisoned) => self
                    .media
                    .clear(self.page)
                    .and_then(|()| self.media.verify(self.page))
                    .map(|()| Contents::Cleared),
                sound => sound.map(|()| Contents::Kept),
            },
        };
        if checked == Err(MediaError::Poisoned) {
            self.ras.collect_own(self.cpu, self.spaces);
        }
        Ok(checked?)
    }

    fn mend(&self, mapped: &MappedPage<'_>) -> Result<(), RepairError> {
        let (vm, ipa, seq) = (mapped.vm, mapped.ipa, self.seq);
        let name = self.spaces.name(vm);
        match self.spaces.mend(vm, ipa) {
            Some(Ok(MendOutcome::Mended(it))) => {
                let (block, tables, reserve) = (
                    super::contain::BlockSize(it.block),
                    it.tables,
                    it.reserve_left,
                );
                log::info!(target: "ras", "event=healed seq={seq} pa={} vm={name} ipa={ipa} block={block} tables={tables} reserve={reserve} regained={:#x}", self.page, it.regained);
            }
            Some(Ok(MendOutcome::Waiting { size })) => {
                log::warn!(target: "ras", "event=waiting seq={seq} pa={} vm={name} ipa={ipa} hole={size:#x}", self.page);
            }
            Some(Ok(MendOutcome::StillBad)) => return Err(RepairError::StillBad),
            Some(Ok(MendOutcome::NoHole | MendOutcome::NotMapped)) | None => {}
            Some(Err(damage)) => {
                self.spaces.give_up(vm, &damage);
            }
        }
        Ok(())
    }

    fn by_spare(&self) -> Result<Contents, RepairError> {
        let home = self.ras.mender.spares.lock().home_of(self.page);
        let home = home.ok_or(RepairError::NotPoisoned)?;
        self.ras.is_page_of_all(self.page, self.spaces)?;
        let spare = self.ras.clean_spare(self.cpu, self.spaces, self.media)?;
        if !self.ras.mender.spares.lock().assign(home, spare) {
            return Err(RepairError::NoSpare);
        }
        let mut result = Ok(Contents::Cleared);
        let mut used = false;
        for mapped in self.ras.devmem.mappings_of(home) {
            match self.put(&mapped, spare, mapped.mapping.attrs) {
                Ok(had) => used |= had,
                Err(error) => result = Err(error),
            }
        }
        if result.is_err() && !used {
            self.ras.mender.spares.lock().return_home(home);
        }
        result
    }

    /// Puts `frame` behind a page; whether there was anybody to do that for.
    fn put(&self, mapped: &MappedPage<'_>, frame: Pa, attrs: Attrs) -> Result<bool, RepairError> {
        let (vm, ipa, seq) = (mapped.vm, mapped.ipa, self.seq);
        let name = self.spaces.name(vm);
        match self.spaces.replace(vm, ipa, frame, attrs) {
            Some(Ok(size)) => {
                let block = super::contain::BlockSize(size);
                log::info!(target: "ras", "event=replaced seq={seq} pa={} frame={frame} vm={name} ipa={ipa} block={block}", self.page);
                Ok(true)
            }
            Some(Err(ReplaceError::Bad(_))) => Err(RepairError::StillBad),
            Some(Err(ReplaceError::OutOfFrames)) => Err(RepairError::OutOfFrames),
            Some(Err(ReplaceError::Damaged(damage))) => {
                self.spaces.give_up(vm, &damage);
                Ok(false)
            }
            Some(Err(_)) | None => Ok(false),
        }
    }

    /// The page is good again, but lives in a spare: its contents move back.
    fn bring_home(&self) -> Result<(), RepairError> {
        let (home, from) = (self.page, self.ras.frame_of(self.page));
        let moved = self.ras.move_page(
            home,
            (from, home),
            (self.seq, self.cpu),
            self.spaces,
            self.media,
        );
        moved.inspect_err(|_| {
            // It is good, but nothing is there: remembering it as bad keeps it from being used.
            let _ = self.ras.poison.lock().insert(home.pfn(), self.seq);
        })
    }
}

impl<S: PhysMemory> Ras<'_, S> {
    /// That everyone who has the page that holds `frame` could have another in its place.
    pub(super) fn is_page_of_all<V: Mendable>(
        &self,
        frame: Pa,
        spaces: &V,
    ) -> Result<(), RepairError> {
        let mut users = self.users_of(frame);
        if users.any(|user| spaces.smallest_page(user.vm) > PAGE_SIZE) {
            return Err(RepairError::LargerGranule);
        }
        Ok(())
    }

    /// A spare that is full of zeros and in order. Spares that are not are retired on the way.
    pub(super) fn clean_spare<V: AddressSpaces>(
        &self,
        cpu: usize,
        spaces: &V,
        media: &impl Media,
    ) -> Result<Pa, RepairError> {
        loop {
            let spare = self.mender.spares.lock().any();
            let spare = spare.ok_or(RepairError::NoSpare)?;
            if !self.is_bad(spare) {
                match media.clear(spare).and_then(|()| media.verify(spare)) {
                    Ok(()) => return Ok(spare),
                    Err(MediaError::Unreachable) => return Err(RepairError::Unreachable),
                    Err(MediaError::Poisoned) => self.collect_own(cpu, spaces),
                }
            }
            self.mender.spares.lock().retire(spare);
            log::warn!(target: "ras", "event=spare-lost pa={spare}");
        }
    }
}
