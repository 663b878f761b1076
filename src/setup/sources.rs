//! Where firmware reports memory errors: HEST's generic sources, their blocks mapped for good, and how
//! Cordon gets to know that there is something in them.

use crate::arch::aarch64::mmio::{EventRegister, SharedMemory};
use crate::arch::aarch64::{gic, timer};
use crate::machine::{self, Lookout};
use alloc::vec::Vec;
use arm_gic::Trigger;
use cordon::addr::{PAGE_SIZE, Pa, PaRange, Pfn};
use cordon::deadlines::Purpose;
use cordon::platform::aml::EventDevice;
use cordon::platform::memory::FreeMemory;
use cordon::ras::capabilities::Capabilities;
use cordon::ras::ghes::{Ghes, PhysMemory};
use cordon::ras::hest::{GenericSource, Hest, Source};
use cordon::ras::pipeline::Sources;
use cordon::ras::watch::Watch;

/// Longest error status block that is taken for one, in bytes: firmware uses a few KiB.
const MAX_BLOCK: u32 = 1 << 20;

/// The usable sources, and the memory that they are in.
pub struct Found {
    memory: SharedMemory,
    list: Vec<Ghes>,
}

impl Found {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }
}

/// The usable sources of HEST, ready to be read. Each that is not usable is named. What they lie
/// in is taken out of `free`, should firmware have forgotten to reserve it: no guest may write
/// records.
pub fn find(hest: Option<&[u8]>, free: &mut FreeMemory) -> Found {
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
    Found { memory, list }
}

/// Has this CPU told of records that nobody has consumed: by interrupts, and by its timer for sources
/// that have none. To be called when it can take interrupts.
pub fn watch(found: Found, device: Option<EventDevice>) -> (Sources<SharedMemory>, Capabilities) {
    let watches = found.list.iter().map(|ghes| {
        let source = ghes.source();
        let watch = Watch::of(source.notification, device.is_some());
        let watch = if listen(watch, device) {
            watch
        } else {
            log::error!(
                "event=error what=ghes id={} why=no-interrupt:{watch}",
                source.id
            );
            Watch::DEFAULT_TIMER
        };
        log::info!("event=watched what=ghes id={} by={watch}", source.id);
        watch
    });
    let watches: Vec<Watch> = watches.collect();
    let interval = watches.iter().filter_map(|watch| match watch {
        Watch::Timer { interval_ms } => Some(u64::from(*interval_ms)),
        _ => None,
    });
    // All are looked at as often as the most impatient one wants.
    let poll_ms = interval.min();
    let uses_device = watches.contains(&Watch::EventDevice);
    machine::LOOKOUT.call_once(|| Lookout {
        events: device.filter(|_| uses_device).and_then(event_register),
        poll_ms,
    });
    if let Some(interval) = poll_ms
        && !timer::set(Purpose::PollErrors, interval)
    {
        log::error!("event=error what=ghes why=no-timer");
    }
    let acknowledged = |ghes: &Ghes| ghes.source().read_ack.is_some();
    let ack = found.len() > 0 && found.list.iter().all(acknowledged);
    let capabilities = capabilities(&watches).with(Capabilities::GHES_ACK, ack);
    let sources = Sources::watched(found.memory, found.list.into_iter().zip(watches));
    (sources, capabilities)
}

/// What sources that are watched like this are good for.
fn capabilities(watches: &[Watch]) -> Capabilities {
    let any = |wanted: fn(&Watch) -> bool| watches.iter().any(wanted);
    let interrupt = |it: &Watch| matches!(it, Watch::Interrupt { .. } | Watch::EventDevice);
    let timer = |it: &Watch| matches!(it, Watch::Timer { .. });
    Capabilities::empty()
        .with(Capabilities::GHES_SYNC, any(|it| *it == Watch::Exception))
        .with(Capabilities::GHES_INTERRUPT, any(interrupt))
        .with(
            Capabilities::GHES_POLLED,
            any(timer) && gic::has_own_timer(),
        )
}

/// Enables the interrupt that `watch` needs, if it needs one. HEST does not say how an interrupt is
/// triggered: as an edge, a line that stays high cannot keep this CPU from its guest, and the block is
/// read to its end each time.
fn listen(watch: Watch, device: Option<EventDevice>) -> bool {
    match (watch, device) {
        (Watch::Interrupt { intid }, _) => gic::enable_notification(intid, Trigger::Edge),
        (Watch::EventDevice, Some(device)) => {
            let trigger = if device.edge {
                Trigger::Edge
            } else {
                Trigger::Level
            };
            // A line that only an unknown register would take down would never come down.
            let can_be_ended = device.edge || device.selector.is_some();
            can_be_ended && gic::enable_notification(device.interrupt, trigger)
        }
        _ => true,
    }
}

/// The register in which the event device says what happened.
fn event_register(device: EventDevice) -> Option<EventRegister> {
    let at = device.selector?;
    EventRegister::map(at)
        .inspect_err(|why| log::error!("event=error what=event-device why={why} at={at}"))
        .ok()
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
