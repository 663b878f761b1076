//! Stage-2 translation tables: what a VM's addresses lead to, in the largest blocks that fit, and
//! holes of one page where memory has gone bad.
//!
//! # Who owns what
//!
//! A [`Stage2`] is one VM's map. It owns its root, every table below it, and a reserve of frames
//! for containment, all taken from a [`FrameSource`] while the VM is built. Frames come back by
//! [`Stage2::release`] alone.
//!
//! # Who locks
//!
//! One lock a VM, outside of this module, around the whole [`Stage2`]. Readers take it as well: while
//! a block is exchanged for a table it is missing from the map for a moment, and only the lock tells
//! that moment from a real hole. So a vCPU with a stage-2 fault takes the lock, looks up, and
//! retries its instruction when it finds [`Lookup::Mapped`]. What was looked up is true while the lock is
//! held: [`Followed`] keeps both together. CPUs walk the tables without asking, of
//! course; that is what [`bbm`] is about. The lock is a leaf but for the locks inside [`Tlb`] and
//! [`FrameSource`] implementations.
//!
//! # In what order
//!
//! Every change is prepared where no CPU can see it and then committed by steps that cannot fail and
//! cannot allocate:
//!
//! ```text
//!   map        check all -> link empty tables -> write leaves                    -> publish
//!     or, where nothing but blocks of one root table is needed:
//!              check all                      -> write leaves                    -> publish
//!   make_hole  build subtree -> break -> publish -> TLBI IPA -> TLBI VM -> make  -> publish
//!     or, with FEAT_BBM level 2:
//!              build subtree -> swap  -> publish -> TLBI IPA -> break one page
//!                                                -> publish -> TLBI IPA -> TLBI VM
//!   mend       make the leaf -> publish -> [all of a block again? -> heal]
//!   heal       break -> publish -> TLBI VM, both stages -> make -> publish -> table to the reserve
//!     or, with FEAT_BBM level 2:
//!              swap  -> publish -> TLBI VM, both stages            -> table to the reserve
//! ```
//!
//! # What is never mapped
//!
//! Whatever gives memory back to a guest asks a [`KnownBad`], under the VM's lock, before it does. An
//! error enters that set before anybody tries to cut the page out. So whichever of a containment and
//! a repair comes to the lock first, the page is out of the map when both are done.
//!
//! # What is where
//!
//! [`config`] works out the shape and the registers, `granule` the geometry, `descriptor` the bits,
//! `walk` is the one walker; `map`, `hole`, `heal`, `replace`, `protect`, `rebuild` and `census` are
//! what is done with it, by means of `split` (a block into tables) and `restore` (what is good of
//! what was taken out); [`bbm`] makes the changes that CPUs can see, and [`mod@env`] is what the
//! machine has to provide.

mod attrs;
pub mod bbm;
mod census;
pub mod config;
mod descriptor;
pub mod env;
mod follow;
mod granule;
mod heal;
mod hole;
mod map;
mod path;
mod protect;
mod rebuild;
mod replace;
mod reserve;
mod restore;
mod split;
mod table;
#[cfg(test)]
mod tests;
mod walk;

pub use attrs::{Access, Attrs, MemoryType};
pub use bbm::Strategy;
pub use census::{Census, Extent, ExtentKind};
pub use config::{Config, ConfigError, Granules};
pub use env::{FrameSource, TableMemory, Tlb};
pub use follow::Followed;
pub use granule::{Granule, Level};
pub use heal::{MendOutcome, Mended};
pub use hole::{Hole, HoleOutcome, Suspect};
pub use map::MapError;
pub use protect::ProtectError;
pub use rebuild::{Piece, RebuildError, Rebuilt, Territory};
pub use replace::ReplaceError;
pub use restore::{KnownBad, Reopened};
pub use walk::Damage;

use crate::addr::{Ipa, Pa, Vmid};
use bbm::Surgeon;
use core::fmt;
use reserve::Reserve;
use restore::Restorer;
use split::Builder;
use table::clear;
use walk::{Below, Run, Tree, Visitor};

/// Where an IPA leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// To memory.
    Mapped {
        /// The physical address of that very IPA.
        pa: Pa,
        /// Size in bytes of the block or page that maps it.
        size: u64,
        /// With what attributes.
        attrs: Attrs,
        /// The level of the block or page.
        level: Level,
    },
    /// Into a hole. In one larger than 4 KiB, which a larger granule makes and a spent reserve leaves, this
    /// IPA's own memory may be in order.
    Poisoned {
        /// The physical address that was behind that very IPA.
        pa: Pa,
        /// Size in bytes of the hole.
        size: u64,
        /// With what attributes it was mapped.
        attrs: Attrs,
    },
    /// To memory that was dropped with its block: [`Stage2::reopen`] brings back what is good of it.
    Parked {
        /// The physical address of that very IPA.
        pa: Pa,
        /// Size in bytes of the block or page that was taken out.
        size: u64,
    },
    /// Nowhere: never mapped, or outside of the IPA space.
    Unmapped,
}

/// Why a [`Stage2`] was not built. Whatever was taken has been given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The source of frames has none left.
    OutOfFrames,
    /// The source gave this frame, and [`TableMemory`] does not know it, or not as a whole table.
    NoTable(Pa),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("out-of-table-frames"),
            Self::NoTable(frame) => write!(f, "no-table-at-{frame}"),
        }
    }
}

/// One VM's map from IPA to PA. See the [module](self) for who locks it.
#[derive(Debug)]
pub struct Stage2<M, T> {
    config: Config,
    vmid: Vmid,
    root: Pa,
    reserve: Reserve,
    /// Holes larger than a page.
    coarse: usize,
    memory: M,
    tlb: T,
}

impl<M: TableMemory, T: Tlb> Stage2<M, T> {
    /// An empty map, with `reserve` frames set aside for containment: two for each page that is to
    /// be contained at its exact size, wherever it lies, and fewer when pages share a block; one more for the
    /// first in a block of 512 GiB.
    ///
    /// `vmid` must not be in any TLB: the first VM to use it since reset, or
    /// [`Tlb::invalidate_vm_all`] since the last.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(
        config: Config,
        vmid: Vmid,
        memory: M,
        tlb: T,
        frames: &mut impl FrameSource,
        reserve: usize,
    ) -> Result<Self, BuildError> {
        let root = new_root(&config, &memory, frames)?;
        let reserve = match Reserve::fill(reserve, config.granule(), &memory, frames) {
            Ok(reserve) => reserve,
            Err(error) => {
                frames.give_back(root, config.root_tables());
                return Err(error);
            }
        };
        tlb.publish();
        Ok(Self {
            config,
            vmid,
            root,
            reserve,
            coarse: 0,
            memory,
            tlb,
        })
    }

    /// The shape of the tables.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The VM's tag in the TLB.
    pub const fn vmid(&self) -> Vmid {
        self.vmid
    }

    /// The value for `VTTBR_EL2` while the VM runs.
    pub const fn vttbr_el2(&self) -> u64 {
        self.config.vttbr_el2(self.root, self.vmid)
    }

    /// The value for `VTCR_EL2` while the VM runs.
    pub const fn vtcr_el2(&self) -> u64 {
        self.config.vtcr_el2()
    }

    /// Frames left for containment.
    pub fn reserve_left(&self) -> usize {
        self.reserve.len()
    }

    /// Ends a TLB conflict (a fault with status 0x30, Arm ARM "TLB conflict abort"), which a CPU may
    /// report after a direct swap at FEAT_BBM level 2. The access is to be retried.
    pub fn resolve_conflict(&self) {
        self.tlb.invalidate_vm_all(self.vmid);
    }

    /// Takes the map apart and gives all frames back, those of the reserve, too. None of the VM's
    /// vCPUs may be running, nor run again.
    ///
    /// # Errors
    /// [`Damage`]: the tables found before it have been given back, the others are lost.
    pub fn release(self, frames: &mut impl FrameSource) -> Result<(), Damage> {
        self.tlb.invalidate_vm_all(self.vmid);
        let walked = self.tree().walk(0..u64::MAX, &mut Release { frames });
        frames.give_back(self.root, self.config.root_tables());
        self.reserve.release(frames);
        walked
    }

    fn tree(&self) -> Tree<'_, M> {
        Tree::new(&self.memory, &self.config, self.root)
    }

    /// What a change to the map works on.
    fn parts(&mut self) -> Parts<'_, M, T> {
        Parts {
            memory: &self.memory,
            config: &self.config,
            tree: Tree::new(&self.memory, &self.config, self.root),
            surgeon: Surgeon {
                tlb: &self.tlb,
                vmid: self.vmid,
                granule: self.config.granule(),
                strategy: self.config.strategy(),
            },
            reserve: &mut self.reserve,
            coarse: &mut self.coarse,
        }
    }
}

/// A map, taken apart so that each part can be borrowed alone.
struct Parts<'m, M, T> {
    memory: &'m M,
    config: &'m Config,
    tree: Tree<'m, M>,
    surgeon: Surgeon<'m, T>,
    reserve: &'m mut Reserve,
    /// Holes larger than a page.
    coarse: &'m mut usize,
}

impl<'m, M: TableMemory, T> Parts<'m, M, T> {
    /// For building the path to `ipa`.
    fn builder(&mut self, ipa: Ipa) -> Builder<'_, 'm, M> {
        Builder {
            memory: self.memory,
            reserve: self.reserve,
            config: self.config,
            ipa,
            tables: 0,
        }
    }

    /// For giving back what is good by the word of `bad`.
    fn restorer<'a, B>(&'a mut self, bad: &'a B) -> Restorer<'a, 'm, M, B> {
        Restorer {
            granule: self.config.granule(),
            contiguous: self.config.contiguous(),
            memory: self.memory,
            reserve: self.reserve,
            bad,
            tables: 0,
            lost: 0,
            coarse: 0,
        }
    }
}

fn new_root(
    config: &Config,
    memory: &impl TableMemory,
    frames: &mut impl FrameSource,
) -> Result<Pa, BuildError> {
    let root = frames
        .take(config.root_tables())
        .ok_or(BuildError::OutOfFrames)?;
    let size = config.granule().page_size();
    for at in (0_u64..).take(config.root_tables()) {
        let frame = Pa::new(root.get() + at * size);
        match memory.table(frame) {
            Some(words) if words.len() == config.granule().entries() => clear(words),
            _ => {
                frames.give_back(root, config.root_tables());
                return Err(BuildError::NoTable(frame));
            }
        }
    }
    Ok(root)
}

/// Gives every table but the root back, once it has been left for good.
struct Release<'a, F> {
    frames: &'a mut F,
}

impl<F: FrameSource> Visitor for Release<'_, F> {
    type Stop = Damage;

    fn run(&mut self, _: &Run<'_>) -> Result<Below, Damage> {
        Ok(Below::Visit)
    }

    fn leave(&mut self, table: Pa) {
        self.frames.give_back(table, 1);
    }
}
