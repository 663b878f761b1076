//! Where firmware reports memory errors: HEST's generic sources, their blocks mapped for good.

use crate::arch::aarch64::mmio::SharedMemory;
use alloc::vec::Vec;
use cordon::addr::{PAGE_SIZE, Pa, PaRange, Pfn};
use cordon::platform::memory::FreeMemory;
use cordon::ras::ghes::{Ghes, PhysMemory};
use cordon::ras::hest::{GenericSource, Hest, Source};
use cordon::ras::pipeline::Sources;

/// Longest error status block that is taken for one, in bytes: firmware uses a few KiB.
const MAX_BLOCK: u32 = 1 << 20;

/// The usable sources of HEST, ready to be read. Each that is not usable is named. What they lie
/// in is taken out of `free`, should firmware have forgotten to reserve it: no guest may write
/// records.
pub fn find(hest: Option<&[u8]>, free: &mut FreeMemory) -> Sources<SharedMemory> {
    let mut memory = SharedMemory::default();
    let mut list = Vec::new();
    for source in hest.map(generic_sources).unwrap_or_default() {
        match share(&mut memory, &source) {
            Ok(block) => {
                log::info!(
                    "event=found what=ghes id={} notify={} block={block} ack={}",
                    source.id,
                    source.notification,
                    if source.read_ack.is_some() {
                        "yes"
                    } else {
                        "no"
                    }
                );
                list.push(Ghes::new(source));
            }
            Err(why) => log::error!("event=error what=ghes id={} why={why}", source.id),
        }
    }
    for pfn in memory.pages().flat_map(PaRange::pfns) {
        // An error says that it is reserved, as it should be.
        let taken = PaRange::new(Pfn::new(pfn).pa(), PAGE_SIZE).map(|page| free.take(page));
        if let Some(Ok(())) = taken {
            log::warn!(
                "event=error what=ghes why=not-reserved at={}",
                Pfn::new(pfn).pa()
            );
        }
    }
    Sources::new(memory, list)
}

fn generic_sources(hest: &[u8]) -> Vec<GenericSource> {
    let hest = match Hest::parse(hest) {
        Ok(hest) => hest,
        Err(error) => {
            log::error!("event=error what=hest why={error}");
            return Vec::new();
        }
    };
    let enabled = |source| match source {
        Ok(Source::Generic(source)) if source.enabled => Some(source),
        Ok(_) => None,
        Err(error) => {
            log::error!("event=error what=hest why={error}");
            None
        }
    };
    hest.sources().filter_map(enabled).collect()
}

/// Maps what reading `source` takes: the block's pointer, the block, the acknowledgement. Returns
/// where the block is.
fn share(memory: &mut SharedMemory, source: &GenericSource) -> Result<Pa, &'static str> {
    let mut share = |start: Pa, size: u64| {
        let range = PaRange::new(start, size).ok_or("address-wraps")?;
        memory.share(range).map_err(|_| "not-shareable-memory")
    };
    if source.block_length > MAX_BLOCK {
        return Err("block-too-long");
    }
    share(source.status_address, 8)?;
    if let Some(ack) = &source.read_ack {
        share(ack.address, 8)?;
    }
    let block = memory
        .read_u64(source.status_address)
        .map_err(|_| "no-block-pointer")?;
    let range = PaRange::new(Pa::new(block), source.block_length.into());
    let range = range.filter(|_| block != 0).ok_or("no-block")?;
    memory.share(range).map_err(|_| "not-shareable-memory")?;
    Ok(range.start())
}
