//! Several sources at once: which are read when, on whose behalf, and what happens if one of them is
//! itself poison.

use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::*;
use crate::addr::PaRange;
use crate::addr::{PAGE_SIZE, Pa, Vmid};
use crate::devmem::{DevMem, Kind};
use crate::ras::cper::{BlockWriter, Memory, MemoryErrorType, SectionHead, Severity, Timestamp};
use crate::ras::event::Subscriber;
use crate::ras::event::{Consumer, ErrorEvent, Origin, Stage};
use crate::ras::hest::{GenericSource, Notification, ReadAck};
use crate::ras::pipeline::tests::{Notes, poison_set};
use crate::ras::pipeline::{Occasion, Ras};

/// Each source has a page: pointer, acknowledgement, block.
const BASE: u64 = 0x10_0000;
const DEVICE: Pa = Pa::new(0x80_0000_0000);

const SEA: usize = 0;
const GSIV: usize = 1;
const POLLED: usize = 2;

#[derive(Clone, Default)]
struct Firmware(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// This source's block is poison; reading it leaves a record in the SEA source, as the firmware does.
    poisoned: Option<usize>,
    /// How often poison was consumed.
    consumed: usize,
}

fn page_of(source: usize) -> u64 {
    BASE + source as u64 * PAGE_SIZE
}

fn block(severity: Severity, pa: Pa) -> Vec<u8> {
    let mut buffer = [0; 512];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(severity, Timestamp::from_sequence(1));
    let memory = Memory::page(pa, MemoryErrorType::MULTI_BIT_ECC);
    writer.memory(&head, &memory).unwrap();
    writer.finish().to_vec()
}

impl Firmware {
    fn new() -> Self {
        let firmware = Self::default();
        firmware.0.lock().unwrap().bytes = std::vec![0; 3 * PAGE_SIZE as usize];
        for source in 0..3 {
            let page = page_of(source);
            firmware.put(page, &(page + 16).to_le_bytes());
            firmware.put(page + 8, &1u64.to_le_bytes());
        }
        firmware
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let start = usize::try_from(at - BASE).unwrap();
        self.0.lock().unwrap().bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn leave(&self, source: usize, severity: Severity, pa: Pa) {
        self.put(page_of(source) + 8, &0u64.to_le_bytes());
        self.put(page_of(source) + 16, &block(severity, pa));
    }

    fn is_free(&self, source: usize) -> bool {
        let start = source * PAGE_SIZE as usize;
        let state = self.0.lock().unwrap();
        state.bytes[start + 8] == 1 && state.bytes[start + 16..start + 20] == [0; 4]
    }

    fn sources(&self) -> Sources<Self> {
        let kinds = [
            Notification::Sea,
            Notification::Gsiv { gsiv: 232 },
            Notification::Polled { interval_ms: 100 },
        ];
        let list = kinds.into_iter().enumerate().map(|(number, notification)| {
            let page = page_of(number);
            Ghes::new(GenericSource {
                id: u16::try_from(number + 10).unwrap(),
                related: None,
                enabled: true,
                status_address: Pa::new(page),
                block_length: 1024,
                notification,
                read_ack: ReadAck::new(Pa::new(page + 8), (0, 64), !1, 1),
            })
        });
        Sources::new(self.clone(), list.collect())
    }
}

impl PhysMemory for Firmware {
    fn read(&mut self, from: Pa, to: &mut [u8]) -> Result<(), MemoryError> {
        let bad = self.0.lock().unwrap().poisoned;
        if let Some(bad) = bad.filter(|bad| from.get() >= page_of(*bad) + 16)
            && from.get() < page_of(bad + 1)
        {
            self.0.lock().unwrap().consumed += 1;
            if bad != SEA {
                self.leave(SEA, Severity::Recoverable, from);
            }
            return Err(MemoryError::Poisoned(from));
        }
        let start = usize::try_from(from.get() - BASE).unwrap();
        to.copy_from_slice(&self.0.lock().unwrap().bytes[start..start + to.len()]);
        Ok(())
    }

    fn write(&mut self, to: Pa, from: &[u8]) -> Result<(), MemoryError> {
        self.put(to.get(), from);
        Ok(())
    }

    fn read_u64(&mut self, from: Pa) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        self.read(from, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write_u64(&mut self, to: Pa, value: u64) -> Result<(), MemoryError> {
        self.write(to, &value.to_le_bytes())
    }
}

/// How each error was learned of, whether somebody had consumed it, and where it is.
type Events = Mutex<Vec<(Origin, bool, Option<Pa>)>>;

struct Bench {
    firmware: Firmware,
    ras: Ras<'static, Firmware>,
    spaces: Notes,
    events: &'static Events,
}

impl Bench {
    fn new() -> Self {
        let firmware = Firmware::new();
        let mut devmem = DevMem::new();
        let all = PaRange::new(DEVICE, 1 << 30).unwrap();
        devmem.register(Kind::Bar, all, "bar", None).unwrap();
        let ras = Ras::new(devmem, poison_set(8), firmware.sources());
        // Both live as long as the process, as subscribers must.
        static KEPT: Mutex<Vec<&'static Events>> = Mutex::new(Vec::new());
        let events: &'static Events = std::boxed::Box::leak(std::boxed::Box::default());
        KEPT.lock().unwrap().push(events);
        let notify = |event: &ErrorEvent, stage: Stage| {
            if stage == Stage::Detected {
                let consumed = event.is_action_required();
                events
                    .lock()
                    .unwrap()
                    .push((event.origin, consumed, event.pa()));
            }
        };
        static NOTIFIED: Mutex<Vec<&'static dyn Subscriber>> = Mutex::new(Vec::new());
        let notify: &'static dyn Subscriber = std::boxed::Box::leak(std::boxed::Box::new(notify));
        NOTIFIED.lock().unwrap().push(notify);
        ras.announcer.register(notify).unwrap();
        Self {
            firmware,
            ras,
            spaces: Notes::default(),
            events,
        }
    }

    fn exception(&self) -> crate::ras::pipeline::Collected {
        let occasion = Occasion {
            origin: Origin::Sea,
            cpu: 3,
            consumer: Some(Consumer::Vcpu {
                vm: Vmid::new(1).unwrap(),
                vcpu: 0,
                el: 0,
                attempt: None,
            }),
        };
        self.ras.collect(&occasion, &self.spaces)
    }

    fn detected(&self) -> Vec<(Origin, bool, Option<Pa>)> {
        core::mem::take(&mut self.events.lock().unwrap())
    }
}

#[test]
fn an_interrupt_takes_what_nobody_has_consumed_and_leaves_the_consumers_record() {
    let bench = Bench::new();
    let [a, b, c] = [0, 1, 2].map(|page| Pa::new(DEVICE.get() + page * PAGE_SIZE));
    bench.firmware.leave(SEA, Severity::Recoverable, a);
    bench.firmware.leave(GSIV, Severity::Recoverable, b);
    bench.firmware.leave(POLLED, Severity::Recoverable, c);
    let collected = bench.ras.collect_unconsumed(0, &bench.spaces);
    assert_eq!((collected.records, collected.own), (0, None));
    let expected = [
        (Origin::Ghes(11), false, Some(b)),
        (Origin::Ghes(12), false, Some(c)),
    ];
    assert_eq!(bench.detected(), expected);
    assert!(bench.firmware.is_free(GSIV) && bench.firmware.is_free(POLLED));
    assert!(
        !bench.firmware.is_free(SEA),
        "its consumer will come for it"
    );
    let collected = bench.exception();
    assert_eq!((collected.records, collected.page), (1, Some(a)));
    assert_eq!(bench.detected(), [(Origin::Sea, true, Some(a))]);
}

#[test]
fn an_exception_takes_all_but_only_its_own_is_its_own() {
    let bench = Bench::new();
    bench.firmware.leave(GSIV, Severity::Recoverable, DEVICE);
    let collected = bench.exception();
    assert_eq!((collected.records, collected.page), (0, None));
    assert!(!collected.unclaimed);
    assert_eq!(bench.detected(), [(Origin::Ghes(11), false, Some(DEVICE))]);
}

#[test]
fn whoever_reads_it_a_fatal_record_is_fatal() {
    let bench = Bench::new();
    bench.firmware.leave(POLLED, Severity::Fatal, DEVICE);
    assert!(bench.ras.collect_unconsumed(0, &bench.spaces).fatal);
    bench.firmware.leave(GSIV, Severity::Fatal, DEVICE);
    assert!(bench.exception().fatal);
}

#[test]
fn corrected_errors_are_counted_and_nothing_is_cut() {
    let bench = Bench::new();
    bench.firmware.leave(GSIV, Severity::Corrected, DEVICE);
    bench.ras.collect_unconsumed(0, &bench.spaces);
    bench.firmware.leave(GSIV, Severity::Recoverable, DEVICE);
    bench.ras.collect_unconsumed(0, &bench.spaces);
    let counters = bench.ras.announcer.counters().snapshot();
    assert_eq!(
        (counters.detected, counters.corrected, counters.contained),
        (2, 1, 1)
    );
}

#[test]
fn a_source_that_is_itself_poison_is_read_once_and_costs_no_other() {
    let bench = Bench::new();
    bench.firmware.0.lock().unwrap().poisoned = Some(GSIV);
    bench.firmware.leave(POLLED, Severity::Recoverable, DEVICE);
    bench.ras.collect_unconsumed(0, &bench.spaces);
    let block = Pa::new(page_of(GSIV) + 16);
    let expected = [
        (Origin::Ghes(12), false, Some(DEVICE)),
        // Cordon's own consumption, by the firmware's record of it.
        (Origin::Sea, true, Some(block)),
    ];
    assert_eq!(
        bench.detected(),
        expected.map(|(o, c, pa)| (o, c, pa.map(|pa| if c { pa.page() } else { pa })))
    );
    assert!(bench.firmware.is_free(SEA));
    for _ in 0..3 {
        bench.ras.collect_unconsumed(0, &bench.spaces);
        bench.exception();
    }
    assert_eq!(bench.firmware.0.lock().unwrap().consumed, 1);
}

#[test]
fn without_its_sea_source_cordon_goes_on_too() {
    let bench = Bench::new();
    bench.firmware.0.lock().unwrap().poisoned = Some(SEA);
    assert_eq!(bench.exception().records, 0);
    bench.firmware.leave(GSIV, Severity::Recoverable, DEVICE);
    bench.exception();
    assert_eq!(bench.detected(), [(Origin::Ghes(11), false, Some(DEVICE))]);
    assert_eq!(bench.firmware.0.lock().unwrap().consumed, 1);
}
