//! Mapping, with the largest blocks that fit.
//!
//! A mapping is made in three walks over its range, so that it happens completely or not at all:
//!
//! 1. [`Check`]: everything in the range is vacant. Nothing is changed.
//! 2. [`Prepare`]: tables are linked where blocks do not fit. All that can fail has failed by its
//!    end; a table it leaves behind empty changes no translation and is used by a later attempt.
//! 3. [`Commit`]: every vacant entry becomes a leaf, and where all of a group are, they may be cached as one.
//!    It cannot fail for want of anything.
//!
//! Where the range is vacant entries of one root table that blocks fill, as it is for memory that deserves the
//! largest, one look is the first, nothing is left for the second, and the third begins at once.
//!
//! All changes go from invalid to valid, which needs a barrier and no TLB maintenance: faults are
//! not cached (Arm ARM D8.16, "Using break-before-make").

use super::Stage2;
use super::attrs::{Attrs, Encoding};
use super::config::Config;
use super::descriptor::{CONTIGUOUS, Invalid, Leaf, table_of, table_word};
use super::env::{FrameSource, TableMemory, Tlb};
use super::granule::{Granule, Level};
use super::table::{SMALLEST_GROUP, clear, fill_group};
use super::walk::{Below, Damage, Found, Run, Visitor};
use crate::addr::{Ipa, Pa};
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

/// Why a range was not mapped. Unless the tables are damaged, no translation has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The range is empty.
    Empty,
    /// IPA, PA or size is not a multiple of the page size.
    Unaligned,
    /// The range does not end within the IPA space.
    BeyondIpa,
    /// The range does not end within the PA space.
    BeyondPa,
    /// Something is mapped at this IPA, the first in the range of which that is true.
    Overlap(Ipa),
    /// There is a hole at this IPA, and nothing before it is in the way. A mapping never covers
    /// poison up.
    Poisoned(Ipa),
    /// The source of frames has none left.
    OutOfFrames,
    /// The tables are damaged.
    Damaged(Damage),
}

impl From<Damage> for MapError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty-range"),
            Self::Unaligned => f.write_str("unaligned-range"),
            Self::BeyondIpa => f.write_str("beyond-ipa-space"),
            Self::BeyondPa => f.write_str("beyond-pa-space"),
            Self::Overlap(ipa) => write!(f, "already-mapped-{ipa}"),
            Self::Poisoned(ipa) => write!(f, "poisoned-{ipa}"),
            Self::OutOfFrames => f.write_str("out-of-table-frames"),
            Self::Damaged(damage) => damage.fmt(f),
        }
    }
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Maps the `size` bytes from `ipa` to `pa`, with the largest blocks that the alignment of both
    /// allows, so congruent addresses (modulo 1 GiB, say) get the most of it. Tables come from
    /// `frames`, never from the reserve.
    ///
    /// The VM may be running; its CPUs see the mapping when this has returned, perhaps earlier.
    ///
    /// # Errors
    /// See [`MapError`]. After an error every IPA translates as it did before; tables that had been
    /// added stay, empty, and a later `map` uses them. ([`MapError::Damaged`] promises nothing.)
    pub fn map(
        &mut self,
        ipa: Ipa,
        pa: Pa,
        size: u64,
        attrs: Attrs,
        frames: &mut impl FrameSource,
    ) -> Result<(), MapError> {
        let plan = Plan::new(&self.config, ipa, pa, size, attrs)?;
        let tree = self.tree();
        if let Some(run) = tree.root_run(&plan.range())?
            && plan.is_filled_by(&run)
            && is_empty(&run)
        {
            Commit { plan: &plan }.run(&run)?;
            self.tlb.publish();
            return Ok(());
        }
        tree.walk(plan.range(), &mut Check { start: ipa })?;
        tree.walk(
            plan.range(),
            &mut Prepare {
                plan: &plan,
                memory: &self.memory,
                frames,
            },
        )?;
        tree.walk(plan.range(), &mut Commit { plan: &plan })?;
        self.tlb.publish();
        Ok(())
    }
}

/// A request that has been checked against the configuration.
struct Plan {
    granule: Granule,
    contiguous: bool,
    how: Encoding,
    ipa: u64,
    pa: u64,
    end: u64,
    attrs: Attrs,
}

impl Plan {
    fn new(config: &Config, ipa: Ipa, pa: Pa, size: u64, attrs: Attrs) -> Result<Self, MapError> {
        let granule = config.granule();
        if size == 0 {
            return Err(MapError::Empty);
        }
        if (ipa.get() | pa.get() | size) & (granule.page_size() - 1) != 0 {
            return Err(MapError::Unaligned);
        }
        let last = ipa.checked_add(size - 1).ok_or(MapError::BeyondIpa)?;
        if !config.has_ipa(last) {
            return Err(MapError::BeyondIpa);
        }
        match pa.checked_add(size - 1) {
            Some(last) if config.has_pa(last) => {}
            _ => return Err(MapError::BeyondPa),
        }
        Ok(Self {
            granule,
            contiguous: config.contiguous(),
            how: config.encoding(),
            ipa: ipa.get(),
            pa: pa.get(),
            end: last.get() + 1,
            attrs,
        })
    }

    fn range(&self) -> Range<u64> {
        self.ipa..self.end
    }

    /// Whether leaves of `level` can be used: the level has them, and both addresses have the same
    /// offset in one.
    fn has_leaves(&self, level: Level) -> bool {
        self.granule.has_leaves(level) && (self.ipa ^ self.pa) & (self.granule.span(level) - 1) == 0
    }

    /// Whether the range is leaves in all entries of `run`.
    fn is_filled_by(&self, run: &Run<'_>) -> bool {
        let aligned = (self.ipa | self.end) & (run.span() - 1) == 0;
        aligned && self.has_leaves(run.level)
    }

    /// Whether whole groups of leaves of `level`, which can be used, are to be cached as one: both addresses
    /// have the same offset in a group as well.
    fn has_groups(&self, level: Level) -> bool {
        let size = self.granule.span(level) * self.granule.group(level) as u64;
        self.contiguous && (self.ipa ^ self.pa) & (size - 1) == 0
    }

    /// Whether the entry for `base`, of `span` bytes, lies inside the range as a whole.
    fn covers(&self, base: u64, span: u64) -> bool {
        self.ipa <= base && base + span <= self.end
    }
}

/// Whether nothing was ever mapped there.
fn is_empty(run: &Run<'_>) -> bool {
    run.words.iter().all(is_vacant)
}

/// Finds what is in the way.
struct Check {
    start: Ipa,
}

impl Visitor for Check {
    type Stop = MapError;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, MapError> {
        Ok(if is_empty(run) {
            Below::Skip
        } else {
            Below::Visit
        })
    }

    fn entry(&mut self, at: &Found) -> Result<(), MapError> {
        let ipa = at.ipa.max(self.start);
        match at.leaf {
            Err(Invalid::NeverMapped) => Ok(()),
            Err(Invalid::Poisoned(_)) => Err(MapError::Poisoned(ipa)),
            Ok(_) | Err(Invalid::Parked(_) | Invalid::Unknown(_)) => Err(MapError::Overlap(ipa)),
        }
    }
}

/// Links a table wherever a leaf does not fit.
struct Prepare<'a, M, F> {
    plan: &'a Plan,
    memory: &'a M,
    frames: &'a mut F,
}

impl<M: TableMemory, F: FrameSource> Visitor for Prepare<'_, M, F> {
    type Stop = MapError;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, MapError> {
        let leaves = self.plan.has_leaves(run.level);
        let mut below = Below::Skip;
        for (ipa, word) in run.slots() {
            let vacant = is_vacant(word);
            if vacant && leaves && self.plan.covers(ipa, run.span()) {
                continue;
            }
            if vacant {
                self.link(word, run.level, Ipa::new(ipa))?;
            }
            below = Below::Visit;
        }
        Ok(below)
    }
}

impl<M: TableMemory, F: FrameSource> Prepare<'_, M, F> {
    /// Puts an empty table into a vacant entry.
    fn link(&mut self, word: &AtomicU64, level: Level, ipa: Ipa) -> Result<(), MapError> {
        let frame = self.frames.take(1).ok_or(MapError::OutOfFrames)?;
        let Some(words) = self.memory.table(frame) else {
            self.frames.give_back(frame, 1);
            return Err(MapError::Damaged(Damage {
                table: frame,
                level: level.below().unwrap_or(level),
                ipa,
            }));
        };
        clear(words);
        // Release: a walk that sees the table also sees that it is empty.
        word.store(table_word(frame), Ordering::Release);
        Ok(())
    }
}

/// Makes leaves of all vacant entries. After [`Prepare`], an entry of the range that is still vacant
/// is one that a leaf of its level fills exactly.
struct Commit<'a> {
    plan: &'a Plan,
}

impl Visitor for Commit<'_> {
    type Stop = Damage;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, Damage> {
        let leaves = self.plan.has_leaves(run.level);
        let first = if leaves { self.first_leaf(run) } else { 0 };
        if run.words.len() < SMALLEST_GROUP || !leaves || !self.plan.has_groups(run.level) {
            return Ok(commit(run.words, run, first));
        }
        let size = self.plan.granule.group(run.level);
        let (head, rest) = run.words.split_at(run.before_groups().min(run.words.len()));
        let mut below = commit(head, run, first);
        let mut first = first.wrapping_add(run.span().wrapping_mul(head.len() as u64));
        for words in rest.chunks(size) {
            if words.len() == size && are_vacant(words) {
                // From invalid to valid one by one: what a CPU takes the group for meanwhile is what it will be.
                fill_group(words, first | CONTIGUOUS, run.span());
            } else if commit(words, run, first) == Below::Visit {
                below = Below::Visit;
            }
            first = first.wrapping_add(run.span().wrapping_mul(words.len() as u64));
        }
        Ok(below)
    }
}

/// Makes leaves of the vacant entries among `words` of `run`: `first`, and so on.
fn commit(words: &[AtomicU64], run: &Run<'_>, first: u64) -> Below {
    let (mut raw, mut below) = (first, Below::Skip);
    for word in words {
        let old = word.load(Ordering::Relaxed);
        if old == 0 {
            word.store(raw, Ordering::Relaxed);
        } else if table_of(old, run.level).is_some() {
            below = Below::Visit;
        }
        raw = raw.wrapping_add(run.span());
    }
    below
}

fn is_vacant(word: &AtomicU64) -> bool {
    word.load(Ordering::Relaxed) == 0
}

/// Whether all entries of a group are vacant.
fn are_vacant(group: &[AtomicU64]) -> bool {
    let (portions, _) = group.as_chunks::<SMALLEST_GROUP>();
    portions.iter().all(|portion| {
        let all = |all, word: &AtomicU64| all | word.load(Ordering::Relaxed);
        portion.iter().fold(0, all) == 0
    })
}

impl Commit<'_> {
    /// The word for the first entry of the run. The two addresses are congruent here, so the start
    /// of an entry that begins before the range has a PA, too, though it is not used.
    fn first_leaf(&self, run: &Run<'_>) -> u64 {
        let pa = run
            .base
            .get()
            .wrapping_sub(self.plan.ipa)
            .wrapping_add(self.plan.pa);
        Leaf::new(Pa::new(pa), self.plan.attrs, self.plan.how).encode(run.level)
    }
}
