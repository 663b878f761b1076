//! Splitting a block: the tables that map what it maps, built while nobody can see them.
//!
//! Only the path to one place is split: a block becomes a table of the next smaller leaves, one of
//! those a table again, and so on. The tables come from the reserve. Their leaves are groups that CPUs may
//! cache as one, but for those around the path.

use super::bbm::{Place, Subtree, link};
use super::config::Config;
use super::descriptor::{CONTIGUOUS, split_word};
use super::env::TableMemory;
use super::granule::Level;
use super::reserve::Reserve;
use super::table::fill_group;
use crate::addr::{Ipa, Pa};

/// Builds the subtree for a split.
pub(super) struct Builder<'a, 'm, M> {
    pub(super) memory: &'m M,
    pub(super) reserve: &'a mut Reserve,
    pub(super) config: &'a Config,
    /// Where the path leads.
    pub(super) ipa: Ipa,
    /// Tables that the subtree consists of.
    pub(super) tables: usize,
}

impl<'m, M: TableMemory> Builder<'_, 'm, M> {
    /// Splits the leaf at `place` along the path, to leaves of `to` or as far down as the reserve
    /// goes; `None` when that is nowhere, or when the leaf is none to be split.
    pub(super) fn split(&mut self, place: &Place<'m>, to: Level) -> Option<Subtree<'m>> {
        let (mut top, mut part) = (None, *place);
        while let Some((table, smaller)) = self.split_once(&part, to) {
            match top {
                None => top = Some(table),
                Some(_) => link(part.word, split_word(table)),
            }
            part = smaller;
        }
        Some(Subtree { top: top?, part })
    }

    /// The same to leaves of `to` or not at all: then the reserve is as it was.
    pub(super) fn split_all(&mut self, place: &Place<'m>, to: Level) -> Option<Subtree<'m>> {
        let needed = to.number().checked_sub(place.level.number())?;
        let enough = self.reserve.len() >= needed as usize;
        let subtree = enough.then(|| self.split(place, to))??;
        // A frame of the reserve that cannot be reached any more can make it fall short even so.
        if subtree.part.level == to {
            return Some(subtree);
        }
        self.reserve.put(subtree.top);
        None
    }

    /// Makes a table that maps what the leaf at `place` maps, with leaves one level smaller. Its
    /// frame, and the one of its leaves that lies on the path. Always inlined: it would be handed over field by field,
    /// and byte by byte what lies between them.
    #[inline(always)]
    fn split_once(&mut self, place: &Place<'_>, to: Level) -> Option<(Pa, Place<'m>)> {
        let granule = self.config.granule();
        let level = place.level.below().filter(|level| *level <= to)?;
        let (frame, words) = self.reserve.take(granule, self.memory)?;
        self.tables += 1;
        let index = granule.index(self.ipa, level);
        let first = place.leaf.encode(level);
        if self.config.contiguous() {
            self.memory
                .fill(words, first | CONTIGUOUS, granule.span(level));
            // What is on the path is about to be changed.
            let start = index & !(granule.group(level) - 1);
            let around = words.get(start..start + granule.group(level))?;
            let (before, span) = (start as u64, granule.span(level));
            fill_group(around, first + before * span, span);
        } else {
            self.memory.fill(words, first, granule.span(level));
        }
        let offset = self.ipa.get() & (granule.span(place.level) - 1);
        let part = Place {
            word: words.get(index)?,
            level,
            leaf: place.leaf.part(offset, granule.span(level)),
            group: None,
        };
        Some((frame, part))
    }
}
