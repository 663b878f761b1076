//! Which tables translate an address: for people, who may want to know whose frame went bad.

use super::Stage2;
use super::env::{TableMemory, Tlb};
use super::granule::Level;
use super::walk::{Below, Damage, Run, Visitor};
use crate::addr::{Ipa, Pa};

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Calls `each` for every table on the way to `ipa` but the root, the lowest first, with its level.
    ///
    /// # Errors
    /// [`Damage`]; what came before it has been told.
    pub fn tables_of(&self, ipa: Ipa, each: impl FnMut(Level, Pa)) -> Result<(), Damage> {
        let mut path = Path {
            levels: [None; 5],
            depth: 0,
            each,
        };
        let first = ipa.page().get();
        self.tree().walk(first..first.saturating_add(1), &mut path)
    }
}

/// A walk that goes down one path.
struct Path<F> {
    /// The levels of the tables that it is in.
    levels: [Option<Level>; 5],
    depth: usize,
    each: F,
}

impl<F: FnMut(Level, Pa)> Visitor for Path<F> {
    type Stop = Damage;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, Damage> {
        if let Some(level) = self.levels.get_mut(self.depth) {
            *level = Some(run.level);
        }
        self.depth += 1;
        Ok(Below::Visit)
    }

    fn leave(&mut self, table: Pa) {
        self.depth = self.depth.saturating_sub(1);
        if let Some(level) = self.levels.get(self.depth).copied().flatten() {
            (self.each)(level, table);
        }
    }
}
