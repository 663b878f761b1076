use super::*;
use crate::ras::cper::{Body, Severity, StatusBlock};
use std::vec::Vec;

const AREA: Pa = Pa::new(0x8_0000_0000);
const IPA: Ipa = Ipa::new(0x4000_0000);
const ACK: [u64; 2] = register::ACK;

/// The shared area; `broken` says that it has gone bad itself.
struct Area {
    bytes: Vec<u8>,
    broken: bool,
}

impl PhysMemory for Area {
    fn read(&mut self, from: Pa, to: &mut [u8]) -> Result<(), MemoryError> {
        let at = from.checked_offset_from(AREA).unwrap() as usize;
        to.copy_from_slice(&self.bytes[at..at + to.len()]);
        if self.broken {
            Err(MemoryError::Poisoned(from))
        } else {
            Ok(())
        }
    }

    fn write(&mut self, to: Pa, from: &[u8]) -> Result<(), MemoryError> {
        if self.broken {
            return Err(MemoryError::Poisoned(to));
        }
        let at = to.checked_offset_from(AREA).unwrap() as usize;
        self.bytes[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn read_u64(&mut self, from: Pa) -> Result<u64, MemoryError> {
        Err(MemoryError::NotMapped(from))
    }

    fn write_u64(&mut self, to: Pa, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError::NotMapped(to))
    }
}

fn device() -> ErrorDevice<Area> {
    let bytes = std::vec![0; shared::SIZE as usize];
    let area = Area {
        bytes,
        broken: false,
    };
    ErrorDevice::new(area, AREA, IPA)
}

/// What the guest reads in the block of `source`: the page, how bad, and the whole block.
fn record(device: &ErrorDevice<Area>, source: usize) -> Option<(u64, Severity, Vec<u8>)> {
    let state = device.state.lock();
    let at = shared::BLOCK[source] as usize;
    let block = &state.memory.bytes[at..at + shared::BLOCK_SIZE as usize];
    let parsed = StatusBlock::parse(block).ok()?;
    if parsed.status().is_empty() {
        return None;
    }
    let section = parsed.sections().next()?.ok()?;
    let Body::Memory(memory) = section.body else {
        unreachable!("a memory section");
    };
    let page = memory.poisoned().unwrap().start().get();
    Some((page, section.severity, block[..256].to_vec()))
}

/// As Linux does it: the block's status becomes 0, then the record is acknowledged.
fn acknowledge(device: &ErrorDevice<Area>, source: usize) -> Effect {
    let at = shared::BLOCK[source] as usize;
    device.state.lock().memory.bytes[at..at + 4].fill(0);
    device.write(ACK[source], 1)
}

fn page(number: u64) -> Report {
    Report::lost(Ipa::new(0x5000_0000 + number * 0x1000))
}

#[test]
fn a_consumed_page_is_in_the_first_block_until_it_is_acknowledged() {
    let device = device();
    assert_eq!(device.read(ACK[0]), 1);
    assert_eq!(device.consumed(page(1)), Ok(()));
    let (at, severity, first) = record(&device, 0).unwrap();
    assert_eq!((at, severity), (0x5000_1000, Severity::Recoverable));
    assert_eq!((device.read(ACK[0]), device.read(ACK[1])), (0, 1));
    assert_eq!(device.consumed(page(1)), Err(NotTold::NotYet));
    assert_eq!(record(&device, 0).unwrap().2, first);
    assert_eq!(acknowledge(&device, 0), Effect::None);
    assert_eq!(device.consumed(page(1)), Ok(()));
    // The same page once more is another record: Linux would drop a repetition.
    assert_ne!(record(&device, 0).unwrap().2, first);
}

#[test]
fn what_was_found_waits_its_turn_and_none_is_lost_or_reordered() {
    let device = device();
    assert_eq!(device.found(page(0)), Some(Effect::Interrupt));
    for number in 1..20 {
        assert_eq!(device.found(page(number)), Some(Effect::None));
    }
    for number in 0..20 {
        assert_eq!(record(&device, 1).unwrap().0, page(number).ipa.get());
        let more = if number < 19 {
            Effect::Interrupt
        } else {
            Effect::None
        };
        assert_eq!(acknowledge(&device, 1), more);
    }
    assert_eq!(record(&device, 1), None);
    assert_eq!((device.read(ACK[1]), device.overflows()), (1, 0));
}

#[test]
fn a_full_queue_counts_what_it_cannot_hold_and_keeps_what_it_has() {
    let device = device();
    for number in 0..100 {
        let _ = device.found(page(number));
    }
    // One is in the block, 64 wait.
    assert_eq!(device.overflows(), 100 - 65);
    for number in 0..65 {
        assert_eq!(record(&device, 1).unwrap().0, page(number).ipa.get());
        let _ = acknowledge(&device, 1);
    }
    assert_eq!(record(&device, 1), None);
}

#[test]
fn only_bit_0_acknowledges() {
    let device = device();
    device.consumed(page(0)).unwrap();
    assert_eq!(device.write(ACK[0], !1), Effect::None);
    assert_eq!(device.consumed(page(1)), Err(NotTold::NotYet));
}

#[test]
fn a_bad_block_is_no_reason_to_stop() {
    let device = device();
    device.state.lock().memory.broken = true;
    assert!(matches!(device.consumed(page(0)), Err(NotTold::Memory(_))));
    assert_eq!(device.found(page(1)), Some(Effect::None));
    assert_eq!(device.write(register::EXECUTE, 1), Effect::None);
    assert_eq!(device.read(register::STATUS), 2);
}

fn arguments(device: &ErrorDevice<Area>, kind: u32, flags: u32, address: u64) {
    let at = shared::INJECTION as usize;
    let bytes = &mut device.state.lock().memory.bytes[at..];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..12].copy_from_slice(&flags.to_le_bytes());
    bytes[16..24].copy_from_slice(&address.to_le_bytes());
}

#[test]
fn an_injected_error_shows_itself_when_it_is_triggered() {
    let device = device();
    assert_eq!(device.read(register::CAPABILITIES), 0x18);
    arguments(&device, 0x10, 2, 0x4123_4567);
    let page = Ipa::new(0x4123_4000);
    let kind = InjectionKind::Uncorrected;
    let effect = device.write(register::EXECUTE, 1);
    assert_eq!(effect, Effect::Inject(Injection { kind, page }));
    // Cordon reports what is lost to whoever loses it; here that would be too soon.
    assert_eq!(device.found(Report::lost(page)), None);
    device.injected(Some(Report::lost(page)));
    assert_eq!(device.read(register::STATUS), 0);
    assert_eq!(record(&device, 1), None);
    let report = Report::lost(page);
    assert_eq!(device.write(register::TRIGGER, 1), Effect::Show(report));
    assert_eq!(device.found(report), Some(Effect::Interrupt));
    assert_eq!(record(&device, 1).unwrap().0, page.get());
    // Once.
    let _ = acknowledge(&device, 1);
    assert_eq!(device.write(register::TRIGGER, 1), Effect::None);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let device = device();
    for (kind, flags) in [
        (0, 2),
        (0x18, 2),
        (0x20, 2),
        (0x10, 0),
        (0x10, 1),
        (u32::MAX, !0),
    ] {
        arguments(&device, kind, flags, u64::MAX);
        assert_eq!(device.write(register::EXECUTE, 1), Effect::None);
        assert_eq!(device.read(register::STATUS), 2, "{kind:#x} {flags}");
    }
    arguments(&device, 8, 2, 0x1000);
    assert!(matches!(
        device.write(register::EXECUTE, 1),
        Effect::Inject(_)
    ));
    device.injected(None);
    assert_eq!(device.read(register::STATUS), 2);
    assert_eq!(device.write(register::TRIGGER, 1), Effect::None);
}

#[test]
fn a_reset_forgets_all_but_the_numbers_of_records() {
    let device = device();
    device.consumed(page(0)).unwrap();
    let before = record(&device, 0).unwrap().2;
    for number in 0..10 {
        let _ = device.found(page(number));
    }
    device.reset().unwrap();
    assert_eq!((record(&device, 0), record(&device, 1)), (None, None));
    assert_eq!((device.read(ACK[0]), device.read(ACK[1])), (1, 1));
    device.consumed(page(0)).unwrap();
    assert_ne!(record(&device, 0).unwrap().2, before);
    assert_eq!(device.write(ACK[1], 1), Effect::None);
}
