//! Other attributes for part of a map: permissions, memory type.

use super::attrs::Encoding;
use super::bbm::{Change, Group, Place, Surgeon};
use super::descriptor::{Entry, Invalid, Leaf};
use super::env::{TableMemory, Tlb};
use super::granule::{Granule, Level};
use super::restore::KnownBad;
use super::walk::{Below, Damage, Found, Run, Visitor};
use super::{Attrs, Parts, Stage2};
use crate::addr::Ipa;
use core::fmt;
use core::sync::atomic::Ordering;

/// Why attributes were not changed. Unless the tables are damaged, none have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectError {
    /// The range is empty.
    Empty,
    /// IPA or size is not a multiple of the page size.
    Unaligned,
    /// The range does not end within the IPA space.
    BeyondIpa,
    /// Nothing was ever mapped at this IPA, the first in the range of which that is true.
    NotMapped(Ipa),
    /// The range begins or ends, at this IPA, inside of a hole that is larger than a page.
    InHole(Ipa),
    /// Blocks have to be split, and the reserve is spent.
    OutOfFrames,
    /// The tables are damaged.
    Damaged(Damage),
}

impl From<Damage> for ProtectError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl fmt::Display for ProtectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("empty-range"),
            Self::Unaligned => f.write_str("unaligned-range"),
            Self::BeyondIpa => f.write_str("beyond-ipa-space"),
            Self::NotMapped(ipa) => write!(f, "not-mapped-{ipa}"),
            Self::InHole(ipa) => write!(f, "in-hole-{ipa}"),
            Self::OutOfFrames => f.write_str("out-of-table-frames"),
            Self::Damaged(damage) => damage.fmt(f),
        }
    }
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Gives the `size` bytes from `ipa` the attributes `attrs`, splitting blocks at both ends where
    /// it must and healing them where it can. What is a hole stays one, and has the new attributes when
    /// it is mended. When it has returned, no CPU uses the old attributes.
    ///
    /// Other permissions come at once; for another memory type, each leaf is absent for a moment.
    ///
    /// # Errors
    /// See [`ProtectError`].
    pub fn protect(
        &mut self,
        ipa: Ipa,
        size: u64,
        attrs: Attrs,
        bad: &impl KnownBad,
    ) -> Result<(), ProtectError> {
        let range = self.whole_pages(ipa, size)?;
        for edge in [range.start, range.end] {
            self.bring_back_around(Ipa::new(edge), bad)?;
        }
        let (granule, how) = (self.config.granule(), self.config.encoding());
        let mut parts = self.parts();
        parts
            .tree
            .walk(range.clone(), &mut Vacancy { start: ipa })?;
        for edge in [range.start, range.end] {
            if let Err(error) = parts.cut_at(Ipa::new(edge)) {
                // The first cut may have been made for nothing.
                parts.heal(range, bad)?;
                return Err(error);
            }
        }
        let mut painter = Painter {
            granule,
            surgeon: &parts.surgeon,
            attrs,
            how,
            changed: 0,
            last: (Level::L3, ipa),
        };
        parts.tree.walk(range.clone(), &mut painter)?;
        match (painter.changed, painter.last) {
            (0, _) => parts.surgeon.tlb.publish(),
            (1, (level, ipa)) => parts.surgeon.invalidate_leaf(level, ipa),
            _ => parts.surgeon.forget_table(),
        }
        parts.heal_and_refine(range, bad)?;
        Ok(())
    }

    /// Brings back what is good of a dropped block that `edge` is inside of, so that it can be split there.
    fn bring_back_around(&mut self, edge: Ipa, bad: &impl KnownBad) -> Result<(), Damage> {
        let slot = self.tree().descend(edge)?;
        let inside = |slot: super::walk::Slot<'_>| {
            slot.base != edge && matches!(slot.leaf, Err(Invalid::Parked(_)))
        };
        if slot.is_some_and(inside) {
            self.reopen(edge, bad)?;
        }
        Ok(())
    }

    fn whole_pages(&self, ipa: Ipa, size: u64) -> Result<core::ops::Range<u64>, ProtectError> {
        if size == 0 {
            return Err(ProtectError::Empty);
        }
        if (ipa.get() | size) & (self.config.granule().page_size() - 1) != 0 {
            return Err(ProtectError::Unaligned);
        }
        let last = ipa.checked_add(size - 1);
        let last = last.filter(|last| self.config.has_ipa(*last));
        let last = last.ok_or(ProtectError::BeyondIpa)?;
        Ok(ipa.get()..last.get() + 1)
    }
}

impl<M: TableMemory, T: Tlb> Parts<'_, M, T> {
    /// Splits the block that `edge` lies in, so that a leaf begins there.
    fn cut_at(&mut self, edge: Ipa) -> Result<(), ProtectError> {
        let granule = self.config.granule();
        let Some(slot) = self.tree.descend(edge)?.filter(|slot| slot.base != edge) else {
            return Ok(());
        };
        let leaf = match slot.leaf {
            Ok(leaf) => leaf,
            Err(Invalid::NeverMapped) => return Ok(()),
            Err(_) => return Err(ProtectError::InHole(edge)),
        };
        let level = slot.level;
        let place = slot.place(leaf, granule);
        let to = Level::ALL
            .into_iter()
            .find(|to| *to > level && edge.is_aligned(granule.span(*to)));
        let subtree = self
            .builder(edge)
            .split_all(&place, to.unwrap_or(Level::L3));
        let subtree = subtree.ok_or(ProtectError::OutOfFrames)?;
        self.surgeon
            .exchange(&place, &subtree, Change::Nothing, edge);
        Ok(())
    }
}

/// Finds what was never mapped.
struct Vacancy {
    start: Ipa,
}

impl Visitor for Vacancy {
    type Stop = ProtectError;

    fn run(&mut self, _: &Run<'_>) -> Result<Below, ProtectError> {
        Ok(Below::Visit)
    }

    fn entry(&mut self, at: &Found) -> Result<(), ProtectError> {
        match at.leaf {
            Err(Invalid::NeverMapped) => Err(ProtectError::NotMapped(at.ipa.max(self.start))),
            _ => Ok(()),
        }
    }
}

/// Changes the attributes of all leaves that it is shown, which lie in the range as a whole.
struct Painter<'a, T> {
    granule: Granule,
    surgeon: &'a Surgeon<'a, T>,
    attrs: Attrs,
    how: Encoding,
    /// Leaves that have been changed in place, and are still to be invalidated.
    changed: usize,
    /// The last of them.
    last: (Level, Ipa),
}

impl<T: Tlb> Visitor for Painter<'_, T> {
    type Stop = Damage;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, Damage> {
        let level = run.level;
        for group in run.groups().filter(Group::is_marked) {
            self.surgeon.regroup(&group, false);
        }
        for (ipa, word) in run.slots() {
            let raw = word.load(Ordering::Relaxed);
            let renew = |leaf: Leaf| leaf.with_attrs(self.attrs, self.how);
            let value = match Entry::parse(raw, level, self.granule) {
                Entry::Leaf(leaf) if renew(leaf).differs_in_permissions(leaf) => {
                    if renew(leaf) == leaf {
                        continue;
                    }
                    self.changed += 1;
                    self.last = (level, Ipa::new(ipa));
                    renew(leaf).encode(level)
                }
                Entry::Leaf(leaf) => {
                    let place = Place {
                        word,
                        level,
                        leaf,
                        group: None,
                    };
                    let change = Change::Leaf(renew(leaf));
                    self.surgeon.change(&place, change, Ipa::new(ipa));
                    continue;
                }
                Entry::Invalid(Invalid::Poisoned(leaf)) => {
                    Invalid::Poisoned(renew(leaf)).encode(level)
                }
                Entry::Invalid(Invalid::Parked(leaf)) => Invalid::Parked(renew(leaf)).encode(level),
                Entry::Table(..) | Entry::Invalid(_) => continue,
            };
            word.store(value, Ordering::Relaxed);
        }
        Ok(Below::Visit)
    }
}
