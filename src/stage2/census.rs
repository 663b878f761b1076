//! Looking at a map as a whole: how it is made up, and what is where.

use super::attrs::Attrs;
use super::descriptor::{Invalid, Leaf, poisoned_page};
use super::env::{TableMemory, Tlb};
use super::granule::Level;
use super::walk::{Below, Damage, Found, Run, Visitor};
use super::{Lookup, Stage2};
use crate::addr::{Ipa, PAGE_SIZE, Pa};
use core::sync::atomic::Ordering;

/// What a map is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    leaves: [u64; 4],
    /// Holes, whatever their size.
    pub holes: u64,
    /// Bytes of IPA space in holes.
    pub hole_bytes: u64,
    /// Parked entries. None while nobody is changing the map.
    pub parked: u64,
    /// Words that Cordon never writes: each is damage.
    pub unknown: u64,
    /// Leaves that CPUs may cache as one with their group.
    pub contiguous: u64,
    /// Tables in use, root included.
    pub tables: u64,
}

impl Census {
    /// Leaves of `level` that map memory.
    pub const fn leaves(&self, level: Level) -> u64 {
        match level {
            Level::L0 => self.leaves[0],
            Level::L1 => self.leaves[1],
            Level::L2 => self.leaves[2],
            Level::L3 => self.leaves[3],
        }
    }
}

/// What an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Mapped.
    Mapped,
    /// A hole over poisoned memory.
    Poisoned,
    /// Taken out for a moment.
    Parked,
}

/// Neighbouring leaves, or holes, of one size that continue each other in IPA and PA alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First IPA.
    pub ipa: Ipa,
    /// What it maps to, or used to.
    pub pa: Pa,
    /// Bytes.
    pub size: u64,
    /// The size in bytes of each leaf.
    pub leaf: u64,
    /// Mapped or not.
    pub kind: ExtentKind,
    /// With what attributes.
    pub attrs: Attrs,
}

impl Extent {
    /// Takes `next` in if it continues this one.
    fn absorb(&mut self, next: &Self) -> bool {
        let continues = self.ipa.checked_add(self.size) == Some(next.ipa)
            && self.pa.checked_add(self.size) == Some(next.pa)
            && (self.leaf, self.kind, self.attrs) == (next.leaf, next.kind, next.attrs);
        if continues {
            self.size += next.size;
        }
        continues
    }
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// Where `ipa` leads, as a table walk would find it.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn lookup(&self, ipa: Ipa) -> Result<Lookup, Damage> {
        let Some(slot) = self.tree().descend(ipa)? else {
            return Ok(Lookup::Unmapped);
        };
        let size = self.config.granule().span(slot.level);
        let at = |leaf: Leaf| Pa::new(leaf.pa().get() | (ipa.get() & (size - 1)));
        Ok(match slot.leaf {
            Ok(leaf) => Lookup::Mapped {
                pa: at(leaf),
                size,
                attrs: leaf.attrs(),
                level: slot.level,
            },
            Err(Invalid::Poisoned(leaf)) => Lookup::Poisoned {
                pa: at(leaf),
                size,
                attrs: leaf.attrs(),
            },
            Err(Invalid::Parked(leaf)) => Lookup::Parked { pa: at(leaf), size },
            Err(Invalid::NeverMapped | Invalid::Unknown(_)) => Lookup::Unmapped,
        })
    }

    /// What was behind `ipa`, if that is in a hole of a page: what [`Self::lookup`] says of it, for who wants to
    /// know nothing else.
    #[inline]
    pub fn page_sized_hole(&self, ipa: Ipa) -> Option<Pa> {
        let granule = self.config.granule();
        if granule.page_size() != PAGE_SIZE {
            return None;
        }
        let word = self.tree().page(ipa)?;
        let page = poisoned_page(word.load(Ordering::Relaxed), granule)?;
        Some(Pa::new(page.pa().get() | ipa.get() & (PAGE_SIZE - 1)))
    }

    /// Counts the whole map.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn census(&self) -> Result<Census, Damage> {
        self.census_of(Ipa::new(0), u64::MAX)
    }

    /// Counts what translates the `size` bytes from `ipa`, a leaf that reaches beyond them whole.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn census_of(&self, ipa: Ipa, size: u64) -> Result<Census, Damage> {
        let mut census = Census::default();
        let range = ipa.get()..ipa.get().saturating_add(size);
        self.tree().walk(range, &mut census)?;
        Ok(census)
    }

    /// Calls `each` for what is in the map, in order of IPA.
    ///
    /// # Errors
    /// [`Damage`]; what came before it has been reported.
    pub fn extents(&self, each: impl FnMut(&Extent)) -> Result<(), Damage> {
        let mut lister = Lister {
            current: None,
            each,
        };
        let walked = self.tree().walk(0..u64::MAX, &mut lister);
        lister.flush();
        walked
    }
}

impl Visitor for Census {
    type Stop = Damage;

    fn run(&mut self, _: &Run<'_>) -> Result<Below, Damage> {
        self.tables += 1;
        Ok(Below::Visit)
    }

    fn entry(&mut self, at: &Found) -> Result<(), Damage> {
        match at.leaf {
            Ok(_) => {
                self.contiguous += u64::from(at.contiguous);
                if let Some(count) = self.leaves.get_mut(at.level.number() as usize) {
                    *count += 1;
                }
            }
            Err(Invalid::Poisoned(_)) => {
                self.holes += 1;
                self.hole_bytes += at.span;
            }
            Err(Invalid::Parked(_)) => self.parked += 1,
            Err(Invalid::Unknown(_)) => self.unknown += 1,
            Err(Invalid::NeverMapped) => {}
        }
        Ok(())
    }
}

/// Counts holes larger than a page.
pub(super) struct CoarseHoles(pub(super) usize);

impl Visitor for CoarseHoles {
    type Stop = Damage;

    fn run(&mut self, run: &Run<'_>) -> Result<Below, Damage> {
        Ok(if run.level == Level::L3 {
            Below::Skip
        } else {
            Below::Visit
        })
    }

    fn entry(&mut self, at: &Found) -> Result<(), Damage> {
        self.0 += usize::from(matches!(at.leaf, Err(Invalid::Poisoned(_))));
        Ok(())
    }
}

/// Joins neighbours into extents.
struct Lister<F> {
    current: Option<Extent>,
    each: F,
}

impl<F: FnMut(&Extent)> Visitor for Lister<F> {
    type Stop = Damage;

    fn run(&mut self, _: &Run<'_>) -> Result<Below, Damage> {
        Ok(Below::Visit)
    }

    fn entry(&mut self, at: &Found) -> Result<(), Damage> {
        let (kind, leaf) = match at.leaf {
            Ok(leaf) => (ExtentKind::Mapped, leaf),
            Err(Invalid::Poisoned(leaf)) => (ExtentKind::Poisoned, leaf),
            Err(Invalid::Parked(leaf)) => (ExtentKind::Parked, leaf),
            Err(Invalid::NeverMapped | Invalid::Unknown(_)) => return Ok(()),
        };
        let next = Extent {
            ipa: at.ipa,
            pa: leaf.pa(),
            size: at.span,
            leaf: at.span,
            kind,
            attrs: leaf.attrs(),
        };
        let absorbed = self.current.as_mut().is_some_and(|it| it.absorb(&next));
        if !absorbed {
            self.flush();
            self.current = Some(next);
        }
        Ok(())
    }
}

impl<F: FnMut(&Extent)> Lister<F> {
    /// Reports the extent that is being put together.
    fn flush(&mut self) {
        if let Some(extent) = self.current.take() {
            (self.each)(&extent);
        }
    }
}
