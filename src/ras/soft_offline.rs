//! Soft offline: memory that gives more and more corrected errors is left before it gives one that
//! cannot be corrected.
//!
//! The guest does not notice. Its page is made read-only wherever it is mapped; then nobody can write it,
//! and its contents are copied to a spare; then the spare is put behind every IPA, writable. A vCPU
//! that writes meanwhile takes a permission fault, finds the page busy, and tries again; so no write
//! is lost, nor made to the frame that was left. The old frame counts as bad from then on.

use super::contain::AddressSpaces;
use super::cper::Severity;
use super::event::{Origin, Stage};
use super::ghes::PhysMemory;
use super::media::{Media, MediaError};
use super::pipeline::{Occasion, Ras};
use super::repair::{Mendable, RepairError};
use crate::addr::{PAGE_SIZE, Pa, PaRange, Pfn};
use crate::stage2::{Access, Attrs, ReplaceError};
use alloc::boxed::Box;
use core::fmt;

/// What is done about pages with corrected errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Their contents are moved to spares.
    Move,
    /// It is said, and the owner of the region is told; nothing else.
    Tell,
    /// Nothing.
    Ignore,
}

impl Action {
    /// By its name on the command line.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "move" => Self::Move,
            "tell" => Self::Tell,
            "ignore" => Self::Ignore,
            _ => return None,
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Move => "move",
            Self::Tell => "tell",
            Self::Ignore => "ignore",
        })
    }
}

/// What is done about corrected errors, and after how many of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftOffline {
    /// What is done.
    pub action: Action,
    /// After how many errors of one page. Firmware that says that a threshold was exceeded has counted
    /// itself.
    pub threshold: u32,
}

impl SoftOffline {
    /// Move after sixteen.
    pub const DEFAULT: Self = Self {
        action: Action::Move,
        threshold: 16,
    };
}

/// Pages with corrected errors that are counted apart. Of more, the one whose last error is longest ago
/// is forgotten.
const TRACKED: usize = 64;
/// Pages that can wait to be dealt with.
const DUE: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Tracked {
    page: Pfn,
    errors: u32,
    /// The number of its last error.
    last: u64,
}

/// Corrected errors, by page.
#[derive(Debug)]
pub struct Corrected {
    /// What is done about them.
    pub policy: SoftOffline,
    tracked: Box<[Option<Tracked>]>,
    due: Box<[Option<Pfn>]>,
    /// How many places of `due` are taken.
    waiting: usize,
    seen: u64,
}

impl Corrected {
    /// None seen. Allocates all that it will need.
    pub fn new() -> Self {
        Self {
            policy: SoftOffline::DEFAULT,
            tracked: alloc::vec![None; TRACKED].into_boxed_slice(),
            due: alloc::vec![None; DUE].into_boxed_slice(),
            waiting: 0,
            seen: 0,
        }
    }

    /// The page that holds `pa` had a corrected error; with `exceeded`, firmware has counted enough of
    /// them. Returns how many there were, and whether that makes the page due.
    pub fn note(&mut self, pa: Pa, exceeded: bool) -> (u32, bool) {
        self.seen += 1;
        let (page, last) = (pa.pfn(), self.seen);
        let own = |slot: &Option<Tracked>| slot.is_some_and(|it| it.page == page);
        let at = self.tracked.iter().position(own).or_else(|| {
            let ages = self.tracked.iter().enumerate();
            let oldest = ages.min_by_key(|(_, slot)| slot.map_or(0, |it| it.last));
            oldest.map(|(at, _)| at)
        });
        let Some(slot) = at.and_then(|at| self.tracked.get_mut(at)) else {
            return (0, false);
        };
        let before = slot.filter(|it| it.page == page).map_or(0, |it| it.errors);
        let errors = before.saturating_add(1);
        let enough = exceeded || errors >= self.policy.threshold;
        // Enough is enough: the count begins anew.
        *slot = (!enough).then_some(Tracked { page, errors, last });
        let wanted = enough && self.policy.action != Action::Ignore;
        (errors, wanted && self.is_news(page))
    }

    /// Whether the page does not wait already, and could; then it does.
    fn is_news(&mut self, page: Pfn) -> bool {
        if self.due.contains(&Some(page)) {
            return false;
        }
        let free = self.due.iter_mut().find(|slot| slot.is_none());
        let Some(slot) = free else {
            return false;
        };
        *slot = Some(page);
        self.waiting += 1;
        true
    }

    /// The next page that is to be dealt with.
    #[inline]
    pub fn next_due(&mut self) -> Option<Pa> {
        // Asked after every collection of records.
        if self.waiting == 0 {
            return None;
        }
        let page = self.due.iter_mut().find_map(Option::take)?;
        self.waiting -= 1;
        Some(page.pa())
    }
}

impl Default for Corrected {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: PhysMemory> Ras<'_, S> {
    /// A corrected error was reported for the page that holds `pa`. What its guests are told: nothing, or
    /// that there was one, and whether there were too many. A page that is about to be moved is nothing
    /// that they should do anything about.
    pub(super) fn note_corrected(&self, pa: Pa, exceeded: bool, seq: u64) -> Option<bool> {
        // What was left already is nobody's.
        self.users_of(pa).next()?;
        let mut corrected = self.mender.corrected.lock();
        let policy = corrected.policy;
        let (count, due) = corrected.note(pa, exceeded);
        drop(corrected);
        let action = policy.action;
        if due {
            let page = pa.page();
            log::warn!(target: "ras", "event=corrected seq={seq} pa={page} count={count} action={action}");
        }
        let enough = exceeded || count >= policy.threshold;
        match action {
            Action::Move => (!enough).then_some(false),
            Action::Tell => Some(enough),
            Action::Ignore => None,
        }
    }

    /// Deals with the pages whose corrected errors have become too many, on physical CPU number `cpu`.
    /// To be called after records were collected, or errors injected, with no lock held.
    #[inline]
    pub fn offline_due<V: Mendable>(&self, cpu: usize, spaces: &V, media: &impl Media) {
        while let Some((page, action)) = self.next_due() {
            self.offline(page, action, cpu, (spaces, media));
        }
    }

    #[inline]
    fn next_due(&self) -> Option<(Pa, Action)> {
        let mut corrected = self.mender.corrected.lock();
        let page = corrected.next_due()?;
        Some((page, corrected.policy.action))
    }

    #[cold]
    fn offline<V: Mendable>(
        &self,
        page: Pa,
        action: Action,
        cpu: usize,
        (spaces, media): (&V, &impl Media),
    ) {
        match action {
            Action::Move => {
                // It says itself what came of it. Its guests may still be able to do without.
                if self.soft_offline(page, cpu, spaces, media).is_err() {
                    for user in self.users_of(page) {
                        spaces.corrected(user.vm, user.ipa, true);
                    }
                }
            }
            Action::Tell => {
                self.devmem.notify_failure(page);
            }
            Action::Ignore => {}
        }
    }

    /// Moves the contents of the page that holds `frame` to a spare, while its guests go on.
    ///
    /// # Errors
    /// As [`RepairError`] says. With [`RepairError::StillBad`], the page gave an error that was not
    /// corrected while it was read, and was contained.
    pub fn soft_offline<V: Mendable>(
        &self,
        frame: Pa,
        cpu: usize,
        spaces: &V,
        media: &impl Media,
    ) -> Result<Pa, RepairError> {
        let page = frame.page();
        let seq = self.next_sequence();
        let work = self.mender.work.lock();
        let busy = self.mender.begin(page);
        let done = self.leave(page, (seq, cpu), spaces, media);
        drop((busy, work));
        match done {
            Ok(spare) => {
                let occasion = Occasion {
                    origin: Origin::Repair,
                    cpu,
                    consumer: None,
                };
                let event = occasion.event(seq, Severity::Corrected, PaRange::new(page, PAGE_SIZE));
                self.announcer.announce(&event, Stage::Moved { pages: 1 });
                log::info!(target: "ras", "event=moved seq={seq} pa={page} to={spare}");
            }
            Err(error) => {
                log::warn!(target: "ras", "event=not-moved seq={seq} pa={page} why={error}");
            }
        }
        done
    }

    fn leave<V: Mendable>(
        &self,
        page: Pa,
        on: (u64, usize),
        spaces: &V,
        media: &impl Media,
    ) -> Result<Pa, RepairError> {
        if self.is_bad(page) {
            return Err(RepairError::StillBad);
        }
        let home = self.mender.spares.lock().home_of(page);
        let home = home.ok_or(RepairError::NotMapped)?;
        if self.users_of(page).next().is_none() {
            return Err(RepairError::NotMapped);
        }
        self.is_page_of_all(page, spaces)?;
        let spare = self.clean_spare(on.1, spaces, media)?;
        self.move_page(home, (page, spare), on, spaces, media)?;
        // It works, still. But it is not to be given to anybody again.
        let _ = self.poison.lock().insert(page.pfn(), on.0);
        Ok(spare)
    }

    /// Moves the page with this home from one frame to another, of which one is its home or both are
    /// spares. [`super::repair::Mender::work`] is held; `from` is good, and `to` nobody's.
    pub(super) fn move_page<V: Mendable>(
        &self,
        home: Pa,
        (from, to): (Pa, Pa),
        (seq, cpu): (u64, usize),
        spaces: &V,
        media: &impl Media,
    ) -> Result<(), RepairError> {
        // Both directions of a move may be met by a vCPU, and only one frame can be called busy: what
        // is mapped until the last step is `from`.
        let _busy = self.mender.begin(from);
        let done = self
            .freeze(home, spaces)
            .and_then(|()| self.copy(from, to, (seq, cpu), spaces, media))
            .and_then(|()| self.switch(home, to, spaces));
        if done.is_err() {
            self.thaw(home, spaces);
        }
        done
    }

    /// Makes the page read-only wherever it is mapped.
    fn freeze<V: Mendable>(&self, home: Pa, spaces: &V) -> Result<(), RepairError> {
        for mapped in self.devmem.mappings_of(home) {
            let attrs = Attrs {
                access: Access::ReadOnly,
                ..mapped.mapping.attrs
            };
            match spaces.protect(mapped.vm, mapped.ipa, attrs) {
                Some(Ok(())) | None => {}
                Some(Err(_)) => return Err(RepairError::OutOfFrames),
            }
        }
        Ok(())
    }

    /// Gives the page its attributes back.
    fn thaw<V: Mendable>(&self, home: Pa, spaces: &V) {
        for mapped in self.devmem.mappings_of(home) {
            let thawed = spaces.protect(mapped.vm, mapped.ipa, mapped.mapping.attrs);
            if let Some(Err(error)) = thawed {
                let vm = spaces.name(mapped.vm);
                log::error!(
                    "event=error what=stage2 vm={vm} why={error} ipa={}",
                    mapped.ipa
                );
            }
        }
    }

    fn copy<V: AddressSpaces>(
        &self,
        from: Pa,
        to: Pa,
        (seq, cpu): (u64, usize),
        spaces: &V,
        media: &impl Media,
    ) -> Result<(), RepairError> {
        let copied = media.copy(from, to);
        if copied == Err(MediaError::Poisoned) {
            // Too late: what it has is lost.
            self.collect_own(cpu, spaces);
            let occasion = Occasion {
                origin: Origin::Repair,
                cpu,
                consumer: Some(super::event::Consumer::Hypervisor),
            };
            if let Some(range) = PaRange::new(from, PAGE_SIZE).filter(|_| !self.is_bad(from)) {
                let event = occasion.event(seq, Severity::Recoverable, Some(range));
                self.contain(&event, range, spaces);
            }
        }
        Ok(copied?)
    }

    /// Puts `to` behind the page wherever it is mapped, as it was.
    fn switch<V: Mendable>(&self, home: Pa, to: Pa, spaces: &V) -> Result<(), RepairError> {
        let before = self.frame_of(home);
        self.put_behind(home, to)?;
        for mapped in self.devmem.mappings_of(home) {
            match spaces.replace(mapped.vm, mapped.ipa, to, mapped.mapping.attrs) {
                Some(Err(ReplaceError::Bad(_))) => {
                    // An error in the new frame, just now. Those who have it already lose it as anybody
                    // would; the first in the list tells whether there are any.
                    self.put_behind(home, before)?;
                    return Err(RepairError::StillBad);
                }
                Some(Err(ReplaceError::Damaged(damage))) => {
                    spaces.give_up(mapped.vm, &damage);
                }
                Some(Ok(_) | Err(_)) | None => {}
            }
        }
        Ok(())
    }

    fn put_behind(&self, home: Pa, frame: Pa) -> Result<(), RepairError> {
        let mut spares = self.mender.spares.lock();
        if frame == home {
            spares.return_home(home);
        } else if spares.frame_of(home) != frame && !spares.assign(home, frame) {
            return Err(RepairError::NoSpare);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_due_at_its_threshold_and_not_twice() {
        let mut corrected = Corrected::new();
        corrected.policy.threshold = 3;
        let page = Pa::new(0x1000);
        assert_eq!(corrected.note(page, false), (1, false));
        assert_eq!(corrected.note(Pa::new(0x1008), false), (2, false));
        assert_eq!(corrected.note(page, false), (3, true));
        assert_eq!(corrected.note(page, true), (1, false), "it waits already");
        assert_eq!(
            (corrected.next_due(), corrected.next_due()),
            (Some(page), None)
        );
    }

    #[test]
    fn firmware_that_has_counted_is_believed() {
        let mut corrected = Corrected::new();
        assert_eq!(corrected.note(Pa::new(0x1000), true), (1, true));
    }

    #[test]
    fn nothing_is_due_where_nothing_is_to_be_done() {
        let mut corrected = Corrected::new();
        corrected.policy.action = Action::Ignore;
        assert_eq!(corrected.note(Pa::new(0x1000), true), (1, false));
        assert_eq!(corrected.next_due(), None);
    }

    #[test]
    fn of_too_many_pages_the_one_that_was_quiet_longest_is_forgotten() {
        let mut corrected = Corrected::new();
        let page = |at: usize| Pa::new(at as u64 * PAGE_SIZE);
        for at in 0..TRACKED {
            assert_eq!(corrected.note(page(at), false), (1, false));
        }
        assert_eq!(corrected.note(page(0), false), (2, false));
        assert_eq!(corrected.note(page(TRACKED), false), (1, false));
        assert_eq!(
            corrected.note(page(1), false),
            (1, false),
            "it was forgotten"
        );
        assert_eq!(corrected.note(page(0), false), (3, false));
    }

    #[test]
    fn a_full_queue_takes_no_more_and_loses_none() {
        let mut corrected = Corrected::new();
        let page = |at: usize| Pa::new(at as u64 * PAGE_SIZE);
        let due = (0..DUE + 3).filter(|at| corrected.note(page(*at), true).1);
        assert_eq!(due.count(), DUE);
        let queued = core::iter::from_fn(|| corrected.next_due());
        assert_eq!(queued.count(), DUE);
    }
}
