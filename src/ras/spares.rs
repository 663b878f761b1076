//! Spare frames, and which pages they stand in for.
//!
//! The registry of device memory is read-only once VMs run, and says which PA a VM was given: its
//! *home*. A page that was moved has its home there still; that another frame is behind it says the
//! table in here, both ways. All of it is allocated at boot, at its full size: one entry a spare.

use crate::addr::{PAGE_SIZE, Pa, PaRange, Pfn};
use alloc::vec::Vec;

/// What a spare frame is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Nothing.
    Free,
    /// It stands in for the page with this home.
    For(Pfn),
    /// It is bad, and never used again.
    Retired,
}

/// Spare frames. The lock around it is a leaf.
#[derive(Debug, Default)]
pub struct Spares {
    range: Option<PaRange>,
    /// By frame of `range`, and whether it is in `stack`.
    uses: Vec<(Use, bool)>,
    /// All free frames, by their place in `uses`, and some that are not free any more.
    stack: Vec<u32>,
    /// How many are free.
    free: usize,
    /// Homes whose pages were moved, with where they are now; in order of home.
    moved: Vec<(Pfn, Pfn)>,
}

impl Spares {
    /// No spares.
    pub const fn none() -> Self {
        Self {
            range: None,
            uses: Vec::new(),
            stack: Vec::new(),
            free: 0,
            moved: Vec::new(),
        }
    }

    /// The whole pages of `range`, which nobody else uses. Allocates.
    pub fn new(range: PaRange) -> Self {
        let count = u32::try_from(range.size() / PAGE_SIZE).unwrap_or(0);
        let stack: Vec<u32> = (0..count).rev().collect();
        let count = stack.len();
        Self {
            range: Some(range),
            uses: alloc::vec![(Use::Free, true); count],
            stack,
            free: count,
            moved: Vec::with_capacity(count),
        }
    }

    /// How many are free.
    pub const fn free(&self) -> usize {
        self.free
    }

    /// How many pages were moved to spares.
    pub fn moved(&self) -> usize {
        self.moved.len()
    }

    /// A free frame, the lowest one as long as none has become free again. It stays free until
    /// [`Self::assign`]. O(1), for each frame that is passed over here was freed, or there at the start.
    pub fn any(&mut self) -> Option<Pa> {
        loop {
            let at = *self.stack.last()?;
            let (usage, listed) = self.uses.get_mut(at as usize)?;
            if *usage == Use::Free {
                return self.range?.start().checked_add(u64::from(at) * PAGE_SIZE);
            }
            *listed = false;
            self.stack.pop();
        }
    }

    /// Of the pages that were moved, the one with the lowest home from `home` on, and its frame.
    pub fn moved_from(&self, home: Pa) -> Option<(Pa, Pa)> {
        let (Ok(at) | Err(at)) = self.find(home.pfn());
        self.moved
            .get(at)
            .map(|(home, frame)| (home.pa(), frame.pa()))
    }

    /// The frame that is behind the page with this home.
    pub fn frame_of(&self, home: Pa) -> Pa {
        match self.find(home.pfn()) {
            Ok(at) => self
                .moved
                .get(at)
                .map_or(home.page(), |(_, frame)| frame.pa()),
            Err(_) => home.page(),
        }
    }

    /// The home of the page that `frame` is behind; `None` if it is behind none: because its page was
    /// moved away, or because it is a spare that stands in for none.
    pub fn home_of(&self, frame: Pa) -> Option<Pa> {
        match self.use_of(frame) {
            Some(Use::For(home)) => Some(home.pa()),
            Some(Use::Free | Use::Retired) => None,
            None => self.find(frame.pfn()).is_err().then_some(frame.page()),
        }
    }

    /// `spare` is behind the page with this home from now on, and what was there before is not.
    /// False where `spare` is no free one.
    pub fn assign(&mut self, home: Pa, spare: Pa) -> bool {
        if self.use_of(spare) != Some(Use::Free) {
            return false;
        }
        let entry = (home.pfn(), spare.pfn());
        match self.find(home.pfn()) {
            Ok(at) => {
                if let Some(old) = self.moved.get_mut(at) {
                    let before = old.1.pa();
                    *old = entry;
                    self.set(before, Use::Free);
                }
            }
            // One entry a spare fits.
            Err(_) if self.moved.len() == self.moved.capacity() => return false,
            Err(at) => self.moved.insert(at, entry),
        }
        self.set(spare, Use::For(home.pfn()))
    }

    /// The page with this home is at home again. The spare that stood in for it is free.
    pub fn return_home(&mut self, home: Pa) {
        if let Ok(at) = self.find(home.pfn()) {
            let (_, spare) = self.moved.remove(at);
            self.set(spare.pa(), Use::Free);
        }
    }

    /// `spare` is bad. It is not used again, but where it stands in for a page, it still does so.
    pub fn retire(&mut self, spare: Pa) {
        if self.use_of(spare) == Some(Use::Free) {
            self.set(spare, Use::Retired);
        }
    }

    fn find(&self, home: Pfn) -> Result<usize, usize> {
        self.moved.binary_search_by_key(&home, |(home, _)| *home)
    }

    fn index(&self, frame: Pa) -> Option<usize> {
        let range = self.range.filter(|range| range.contains(frame))?;
        let offset = frame.checked_offset_from(range.start())?;
        usize::try_from(offset / PAGE_SIZE).ok()
    }

    fn use_of(&self, frame: Pa) -> Option<Use> {
        self.uses.get(self.index(frame)?).map(|(usage, _)| *usage)
    }

    fn set(&mut self, frame: Pa, to: Use) -> bool {
        let Some(at) = self.index(frame) else {
            return false;
        };
        let (Some((usage, listed)), Ok(place)) = (self.uses.get_mut(at), u32::try_from(at)) else {
            return false;
        };
        let (was, is) = (*usage == Use::Free, to == Use::Free);
        *usage = to;
        self.free = (self.free + usize::from(is)).saturating_sub(usize::from(was));
        // Each is there once at most, so there is room.
        if is && !*listed {
            *listed = true;
            self.stack.push(place);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SPARE: u64 = 0x10_0000;
    const HOME: u64 = 0x4000_0000;

    fn spares(pages: u64) -> Spares {
        Spares::new(PaRange::new(Pa::new(SPARE), pages * PAGE_SIZE).unwrap())
    }

    #[test]
    fn a_page_that_was_moved_is_found_both_ways_and_its_home_is_nobodys() {
        let mut spares = spares(2);
        let (home, spare) = (Pa::new(HOME), spares.any().unwrap());
        assert_eq!(
            (spares.frame_of(home), spares.home_of(home)),
            (home, Some(home))
        );
        assert!(spares.assign(home, spare));
        assert_eq!((spares.frame_of(home), spares.home_of(home)), (spare, None));
        assert_eq!(spares.home_of(spare), Some(home));
        assert_eq!((spares.free(), spares.moved()), (1, 1));
        spares.return_home(home);
        assert_eq!(
            (spares.frame_of(home), spares.home_of(home)),
            (home, Some(home))
        );
        assert_eq!((spares.home_of(spare), spares.free()), (None, 2));
    }

    #[test]
    fn what_is_no_free_spare_cannot_be_assigned() {
        let mut spares = spares(1);
        assert!(!spares.assign(Pa::new(HOME), Pa::new(HOME + 0x1000)));
        let spare = spares.any().unwrap();
        assert!(spares.assign(Pa::new(HOME), spare));
        assert!(!spares.assign(Pa::new(HOME + 0x1000), spare));
        assert_eq!(spares.any(), None);
        assert_eq!(Spares::none().any(), None);
    }

    #[test]
    fn a_bad_spare_is_not_offered_again() {
        let mut spares = spares(2);
        spares.retire(Pa::new(SPARE));
        assert_eq!(spares.any(), Some(Pa::new(SPARE + 0x1000)));
        assert_eq!((spares.free(), spares.home_of(Pa::new(SPARE))), (1, None));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 2 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn both_ways_agree_whatever_is_moved(moves in prop::collection::vec((0u64..6, any::<bool>()), 0..60)) {
            let mut spares = spares(4);
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            for (page, away) in moves {
                let home = Pa::new(HOME + page * PAGE_SIZE);
                match (away, spares.any()) {
                    (true, Some(spare)) => {
                        prop_assert!(spares.assign(home, spare));
                        model.insert(home.get(), spare.get());
                    }
                    (true, None) => prop_assert_eq!(model.len(), 4),
                    (false, _) => {
                        spares.return_home(home);
                        model.remove(&home.get());
                    }
                }
                prop_assert_eq!(spares.free() + model.len(), 4);
                for page in 0..6 {
                    let home = HOME + page * PAGE_SIZE;
                    let frame = model.get(&home).copied().unwrap_or(home);
                    prop_assert_eq!(spares.frame_of(Pa::new(home)).get(), frame);
                    prop_assert_eq!(spares.home_of(Pa::new(frame)).map(Pa::get), Some(home));
                }
            }
        }
    }
}
