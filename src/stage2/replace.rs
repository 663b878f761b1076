//! Other memory behind the same IPA.

use super::bbm::{Change, link};
use super::descriptor::{Invalid, Leaf};
use super::env::{TableMemory, Tlb};
use super::granule::Level;
use super::restore::KnownBad;
use super::walk::Damage;
use super::{Attrs, Stage2};
use crate::addr::{Ipa, Pa};
use core::fmt;

/// Why a page was not replaced. Unless the tables are damaged, no translation has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceError {
    /// The new memory is no whole page.
    Unaligned,
    /// The new memory is not in the PA space.
    BeyondPa,
    /// The new memory is bad.
    Bad(Pa),
    /// Nothing was ever mapped there.
    NotMapped,
    /// The page cannot be told from its neighbours, as the reserve is spent.
    OutOfFrames,
    /// The tables are damaged.
    Damaged(Damage),
}

impl From<Damage> for ReplaceError {
    fn from(damage: Damage) -> Self {
        Self::Damaged(damage)
    }
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("unaligned-page"),
            Self::BeyondPa => f.write_str("beyond-pa-space"),
            Self::Bad(pa) => write!(f, "bad-page-{pa}"),
            Self::NotMapped => f.write_str("not-mapped"),
            Self::OutOfFrames => f.write_str("out-of-table-frames"),
            Self::Damaged(damage) => damage.fmt(f),
        }
    }
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Puts the page at `to` behind the page that holds `ipa`, which may be mapped, dropped or a hole,
    /// with the attributes that were there, or with `attrs`. When it has returned, no CPU reaches
    /// what was there by this IPA. Where `to` continues its neighbours, the block heals. Returns the
    /// size in bytes of the leaf that maps it.
    ///
    /// # Errors
    /// See [`ReplaceError`].
    pub fn replace(
        &mut self,
        ipa: Ipa,
        to: Pa,
        attrs: Option<Attrs>,
        bad: &impl KnownBad,
    ) -> Result<u64, ReplaceError> {
        let (granule, how) = (self.config.granule(), self.config.encoding());
        let ipa = ipa.align_down(granule.page_size());
        if !to.is_aligned(granule.page_size()) {
            return Err(ReplaceError::Unaligned);
        }
        if !self.config.has_pa(to) {
            return Err(ReplaceError::BeyondPa);
        }
        let renew = |leaf: Leaf| {
            let attrs = attrs.unwrap_or(leaf.attrs());
            leaf.with_pa(to).with_attrs(attrs, how)
        };
        let page = Leaf::new(to, Attrs::RAM, how).range(Level::L3, granule);
        if let Some(pa) = bad.first_in(page) {
            return Err(ReplaceError::Bad(pa));
        }
        self.tell_apart(ipa, bad)?;
        let mut parts = self.parts();
        let slot = parts.tree.descend(ipa)?.ok_or(ReplaceError::NotMapped)?;
        match (slot.leaf, slot.level) {
            (Err(Invalid::Poisoned(leaf)), Level::L3) => {
                link(slot.word, renew(leaf).encode(Level::L3));
                parts.surgeon.tlb.publish();
            }
            (Ok(leaf), level) => {
                let size = granule.span(level);
                let own = leaf.part(ipa.get() & (size - 1), granule.page_size());
                if own == renew(own) {
                    return Ok(size);
                }
                let place = slot.place(leaf, granule);
                if level == Level::L3 {
                    let change = Change::Leaf(renew(leaf));
                    parts.surgeon.change(&place, change, ipa);
                } else {
                    let subtree = parts.builder(ipa).split_all(&place, Level::L3);
                    let subtree = subtree.ok_or(ReplaceError::OutOfFrames)?;
                    let change = Change::Leaf(renew(subtree.part.leaf));
                    parts.surgeon.exchange(&place, &subtree, change, ipa);
                }
            }
            (Err(Invalid::Poisoned(_) | Invalid::Parked(_)), _) => {
                return Err(ReplaceError::OutOfFrames);
            }
            (Err(_), _) => return Err(ReplaceError::NotMapped),
        }
        let end = ipa.get().saturating_add(granule.page_size());
        parts.heal_and_refine(ipa.get()..end, bad)?;
        let slot = parts.tree.descend(ipa)?;
        Ok(slot.map_or(0, |slot| granule.span(slot.level)))
    }

    /// Makes an entry of its own for the page, where it is part of something larger that was taken out.
    fn tell_apart(&mut self, ipa: Ipa, bad: &impl KnownBad) -> Result<(), Damage> {
        self.reopen(ipa, bad)?;
        let slot = self.tree().descend(ipa)?;
        if slot.is_some_and(|slot| slot.level != Level::L3 && slot.leaf.is_err()) {
            self.refine(bad)?;
        }
        Ok(())
    }
}
