//! Tests of the tables as a whole, on a machine that checks every step.
#![expect(clippy::panic, reason = "the machine fails a test by panicking")]

mod contiguous;
mod cpus;
mod heal;
mod hole;
mod lifetime;
mod machine;
mod map;
mod model;
mod rebuild;
mod storm;

use super::{Attrs, Config, Granule, Level, Stage2, Strategy};
use crate::addr::{Ipa, Pa, Vmid};
use cpus::Cpus;
use machine::{Frames, Memory};

/// A page of memory, which is what goes bad.
const K4: u64 = 4096;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

/// Frames of a machine: few enough to run out of, and to look at again and again.
const FRAMES: usize = 28;

/// All granules and formats but the usual one.
const OTHERS: [Granule; 4] = [
    Granule::K16,
    Granule::K64,
    Granule::K4Lpa2,
    Granule::K16Lpa2,
];

/// All ways to exchange a block; under Miri, which takes minutes for each, those that the third is made of.
#[cfg(miri)]
const STRATEGIES: [Strategy; 2] = [Strategy::BreakFirst, Strategy::SwapThenBreak];
#[cfg(not(miri))]
const STRATEGIES: [Strategy; 3] = [
    Strategy::BreakFirst,
    Strategy::MarkThenSwap,
    Strategy::SwapThenBreak,
];

fn vmid() -> Vmid {
    Vmid::new(3).unwrap()
}

/// A machine with 44 bits of PA: four levels.
fn config(strategy: Strategy) -> Config {
    Config::new(4).unwrap().with_strategy(strategy)
}

/// The sizes that tests of all granules go by.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    granule: Granule,
    page: u64,
    /// A block of level 2.
    block: u64,
    /// The next larger block, or, where there is none, as many blocks as a CPU can cache as one.
    large: u64,
}

impl Sizes {
    const fn of(granule: Granule) -> Self {
        let (page, block) = (granule.page_size(), granule.span(Level::L2));
        let large = match granule {
            Granule::K4 => G1,
            Granule::K16 | Granule::K64 => 32 * block,
            Granule::K4Lpa2 | Granule::K16Lpa2 => granule.span(granule.top_leaf_level()),
        };
        Self {
            granule,
            page,
            block,
            large,
        }
    }

    fn config(self, strategy: Strategy) -> Config {
        config(strategy).with_granule(self.granule).unwrap()
    }
}

type Map<'m> = Stage2<&'m Memory, &'m Cpus<'m>>;

/// Runs `test` with an empty map whose VM is running on [`Cpus`].
fn with_map<R>(
    config: Config,
    reserve: usize,
    test: impl FnOnce(&mut Map<'_>, &mut Frames, &Cpus<'_>) -> R,
) -> R {
    let memory = Memory::of(config.granule(), FRAMES);
    let mut frames = Frames::of(config.granule(), FRAMES);
    let cpus = Cpus::new(&memory, vmid());
    let mut map = Stage2::new(config, vmid(), &memory, &cpus, &mut frames, reserve).unwrap();
    let level = config.strategy().bbm_level();
    cpus.run(map.vttbr_el2(), map.vtcr_el2(), level);
    let result = test(&mut map, &mut frames, &cpus);
    cpus.settled();
    result
}

/// Maps `size` bytes of RAM.
fn map_ram(map: &mut Map<'_>, frames: &mut Frames, ipa: u64, pa: u64, size: u64) {
    map.map(Ipa::new(ipa), Pa::new(pa), size, Attrs::RAM, frames)
        .unwrap();
}
