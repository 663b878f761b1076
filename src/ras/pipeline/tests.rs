//! From what firmware left to what is contained: the pipeline on a fake firmware, with address spaces
//! that only write down what they are asked to do.

use std::boxed::Box;
use std::string::String;
use std::sync::atomic::AtomicPtr;
use std::sync::{Arc, Mutex as StdMutex};
use std::vec::Vec;

use super::*;
use crate::addr::{Ipa, Vmid};
use crate::devmem::{Kind, Mapping};
use crate::ras::cper::{
    ArmRecord, BlockWriter, ErrorInfo, ErrorKind, Memory, MemoryErrorType, SectionHead, Timestamp,
};
use crate::ras::event::Subscriber;
use crate::ras::ghes::{Ghes, MemoryError};
use crate::ras::hest::{GenericSource, Notification, ReadAck};
use crate::ras::poison::PoisonedPage;
use crate::stage2::{Attrs, Damage, Hole, HoleOutcome, Level as TableLevel, Rebuilt, Suspect};
use core::fmt;

/// Memory that firmware and Cordon share: pointer, acknowledgement and block of one source.
#[derive(Clone, Default)]
pub(crate) struct Firmware(Arc<StdMutex<Shared>>);

#[derive(Default)]
struct Shared {
    bytes: Vec<u8>,
    /// Reads of the block go wrong.
    broken: bool,
}

const POINTER: Pa = Pa::new(0x1000);
const ACK: Pa = Pa::new(0x1008);
const BLOCK: Pa = Pa::new(0x1010);
const BLOCK_LENGTH: usize = 0x800;

impl Firmware {
    pub(crate) fn new() -> Self {
        let mut firmware = Self::default();
        firmware.0.lock().unwrap().bytes = std::vec![0; 0x1000];
        firmware.write_u64(POINTER, BLOCK.get()).unwrap();
        firmware.write_u64(ACK, 1).unwrap();
        firmware
    }

    /// Zeros in place of all that, and where they begin.
    pub(crate) fn zeros(size: usize) -> (Self, Pa) {
        let zeros = Self::default();
        zeros.0.lock().unwrap().bytes = std::vec![0; size];
        (zeros, POINTER)
    }

    /// The sources as Cordon knows them.
    pub(crate) fn sources(&self) -> Sources<Self> {
        let source = GenericSource {
            id: 0,
            related: None,
            enabled: true,
            status_address: POINTER,
            block_length: u32::try_from(BLOCK_LENGTH).unwrap(),
            notification: Notification::Sea,
            read_ack: ReadAck::new(ACK, (0, 64), !1, 1),
        };
        Sources::new(self.clone(), std::vec![Ghes::new(source)])
    }

    /// Leaves these bytes in the block; whether it was free. One that is not stays as it is.
    pub(crate) fn leave(&self, block: &[u8]) -> bool {
        if !self.is_free() {
            return false;
        }
        let mut firmware = self.clone();
        firmware.write_u64(ACK, 0).unwrap();
        firmware.write(BLOCK, block).unwrap();
        true
    }

    /// Leaves a record of one bad page.
    pub(crate) fn report(&self, pa: Pa) -> bool {
        self.leave(&record(Severity::Recoverable, &[page(pa)]))
    }

    /// Whether the last record was both cleared and acknowledged.
    pub(crate) fn is_free(&self) -> bool {
        let mut firmware = self.clone();
        let mut status = [0xff; 4];
        firmware.read(BLOCK, &mut status).unwrap();
        status == [0; 4] && firmware.read_u64(ACK).unwrap() & 1 == 1
    }
}

impl Shared {
    fn span(&mut self, at: Pa, length: usize) -> Result<&mut [u8], MemoryError> {
        at.checked_offset_from(POINTER)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| self.bytes.get_mut(start..start.checked_add(length)?))
            .ok_or(MemoryError::NotMapped(at))
    }
}

impl PhysMemory for Firmware {
    fn read(&mut self, from: Pa, to: &mut [u8]) -> Result<(), MemoryError> {
        let mut shared = self.0.lock().unwrap();
        if shared.broken && from == BLOCK {
            return Err(MemoryError::Poisoned(from));
        }
        to.copy_from_slice(shared.span(from, to.len())?);
        Ok(())
    }

    fn write(&mut self, to: Pa, from: &[u8]) -> Result<(), MemoryError> {
        let mut shared = self.0.lock().unwrap();
        shared.span(to, from.len())?.copy_from_slice(from);
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

/// What one section says of memory.
pub(crate) fn page(pa: Pa) -> Memory {
    Memory::page(pa, MemoryErrorType::MULTI_BIT_ECC)
}

/// A block with one section of `severity` for each of `errors`.
pub(crate) fn record(severity: Severity, errors: &[Memory]) -> Vec<u8> {
    let mut buffer = [0; BLOCK_LENGTH];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(severity, Timestamp::from_sequence(1));
    for error in errors {
        writer.memory(&head, error).unwrap();
    }
    writer.finish().to_vec()
}

/// A block with one processor section.
fn processor_record(errors: &[ErrorInfo]) -> Vec<u8> {
    let mut buffer = [0; BLOCK_LENGTH];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead::new(Severity::Recoverable, Timestamp::from_sequence(1));
    let arm = ArmRecord {
        mpidr: Some(0),
        affinity_level: None,
        midr: 0x410f_d0c1,
        running: Some(true),
        errors,
    };
    writer.arm_processor(&head, &arm).unwrap();
    writer.finish().to_vec()
}

fn error_at(kind: ErrorKind, pa: u64) -> ErrorInfo {
    ErrorInfo {
        kind,
        physical_address: Some(Pa::new(pa)),
        ..ErrorInfo::default()
    }
}

/// A set of `capacity` nodes. They live as long as the process, as the image's do; keeping their
/// address shows leak checkers that this is meant.
pub(crate) fn poison_set(capacity: usize) -> PoisonSet<'static> {
    static KEPT: StdMutex<Vec<AtomicPtr<PoisonedPage>>> = StdMutex::new(Vec::new());
    let nodes: Box<[PoisonedPage]> = (0..capacity).map(|_| PoisonedPage::new()).collect();
    let nodes = Box::leak(nodes);
    KEPT.lock()
        .unwrap()
        .push(AtomicPtr::new(nodes.as_mut_ptr()));
    PoisonSet::new(nodes)
}

/// Writes down every stage.
#[derive(Default)]
pub(crate) struct Recorder(StdMutex<Vec<(Stage, Option<Pa>)>>);

impl Recorder {
    /// One that lives as long as the process.
    pub(crate) fn subscribed_to<S>(ras: &Ras<'_, S>) -> &'static Self {
        static KEPT: StdMutex<Vec<&'static Recorder>> = StdMutex::new(Vec::new());
        let recorder: &'static Self = Box::leak(Box::default());
        KEPT.lock().unwrap().push(recorder);
        ras.announcer.register(recorder).unwrap();
        recorder
    }

    /// The stages since the last call.
    pub(crate) fn take(&self) -> Vec<Stage> {
        let events = core::mem::take(&mut *self.0.lock().unwrap());
        events.into_iter().map(|(stage, _)| stage).collect()
    }

    fn take_with_pages(&self) -> Vec<(Stage, Option<Pa>)> {
        core::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Subscriber for Recorder {
    fn notify(&self, event: &ErrorEvent, stage: Stage) {
        self.0.lock().unwrap().push((stage, event.pa()));
    }
}

/// Two VMs, of which the second maps the upper half of what the first maps.
const DEVICE: u64 = 0x80_0000_0000;
const HALF: u64 = 64 << 20;
const SECOND_AT: u64 = 0x20_0000_0000;

fn vm(number: u8) -> Vmid {
    Vmid::new(number).unwrap()
}

/// Address spaces that say what they were asked.
#[derive(Default)]
pub(crate) struct Notes {
    /// Holes in order.
    holes: StdMutex<Vec<(u8, Ipa)>>,
    given_up: StdMutex<Vec<u8>>,
    /// Maps of these VMs are damaged.
    damaged: Vec<u8>,
    /// How large every hole comes out, in bytes; 0 is a page.
    coarse: u64,
}

impl Notes {
    fn take(&self) -> Vec<(u8, u64)> {
        let holes = self.holes.lock().unwrap();
        holes.iter().map(|(vm, ipa)| (*vm, ipa.get())).collect()
    }
}

impl AddressSpaces for Notes {
    fn make_hole(&self, vm: Vmid, ipa: Ipa, _: Suspect<'_>) -> Option<Result<HoleOutcome, Damage>> {
        let size = self.coarse.max(PAGE_SIZE);
        if self.damaged.contains(&vm.get()) {
            let (table, level) = (Pa::new(0x5000), TableLevel::L2);
            return Some(Err(Damage { table, level, ipa }));
        }
        let ipa = ipa.align_down(size);
        let mut holes = self.holes.lock().unwrap();
        if holes.contains(&(vm.get(), ipa)) {
            return Some(Ok(HoleOutcome::AlreadyPoisoned { ipa, size }));
        }
        holes.push((vm.get(), ipa));
        let hole = Hole {
            ipa,
            pa: Pa::new(0),
            size,
            block: 1 << 30,
            tables: 2,
            reserve_left: 0,
        };
        Some(Ok(match self.coarse {
            0 => HoleOutcome::Made(hole),
            _ => HoleOutcome::Coarse(hole),
        }))
    }

    fn drop_block(&self, _: Vmid, _: Ipa, _: Suspect<'_>) -> Option<Result<HoleOutcome, Damage>> {
        None
    }

    fn rebuild(&self, _: Pa) -> Option<(Vmid, Rebuilt)> {
        None
    }

    fn name(&self, _: Vmid) -> &str {
        "vm"
    }

    fn counter(&self) -> u64 {
        0
    }

    fn lost(&self, _: Vmid, _: Ipa, _: &ErrorEvent) {}

    fn give_up(&self, vm: Vmid, _: &dyn fmt::Display) -> bool {
        let mut given_up = self.given_up.lock().unwrap();
        given_up.push(vm.get());
        given_up.len() == 1
    }
}

struct Bench {
    firmware: Firmware,
    ras: Ras<'static, Firmware>,
    stages: &'static Recorder,
    spaces: Notes,
}

impl Bench {
    fn new() -> Self {
        Self::with_capacity(64)
    }

    fn with_capacity(capacity: usize) -> Self {
        let firmware = Firmware::new();
        let ras = Ras::new(devmem(), poison_set(capacity), firmware.sources());
        let stages = Recorder::subscribed_to(&ras);
        Self {
            firmware,
            ras,
            stages,
            spaces: Notes::default(),
        }
    }

    /// Takes what is there, on behalf of a guest of VM `number`.
    fn collect(&self, number: u8) -> Collected {
        let consumer = Consumer::Vcpu {
            vm: vm(number),
            vcpu: 0,
            el: 1,
            attempt: None,
        };
        let occasion = Occasion {
            origin: Origin::Sea,
            cpu: 0,
            consumer: Some(consumer),
        };
        self.ras.collect(&occasion, &self.spaces)
    }

    fn collect_record(&self, block: &[u8]) -> Collected {
        assert!(self.firmware.leave(block));
        let collected = self.collect(1);
        assert!(self.firmware.is_free(), "cleared and acknowledged");
        collected
    }
}

fn devmem() -> DevMem<'static> {
    let mut devmem = DevMem::new();
    let all = PaRange::new(Pa::new(DEVICE), 2 * HALF).unwrap();
    let upper = PaRange::new(Pa::new(DEVICE + HALF), HALF).unwrap();
    let id = devmem.register(Kind::Bar, all, "bar", None).unwrap();
    for (number, ipa, range) in [(1, DEVICE, all), (2, SECOND_AT + HALF, upper)] {
        let mapping = Mapping {
            vm: vm(number),
            ipa: Ipa::new(ipa),
            range,
            attrs: Attrs::RAM,
        };
        devmem.add_mapping(id, mapping).unwrap();
    }
    devmem
}

#[test]
fn without_a_record_nothing_happens() {
    let bench = Bench::new();
    let collected = bench.collect(1);
    assert_eq!((collected.records, collected.page), (0, None));
    assert!(bench.stages.take().is_empty());
}

#[test]
fn a_record_costs_its_page_in_every_vm_that_maps_it() {
    let bench = Bench::new();
    let bad = DEVICE + HALF + 0x3000;
    let collected = bench.collect_record(&record(Severity::Recoverable, &[page(Pa::new(bad + 8))]));
    assert_eq!(collected.page, Some(Pa::new(bad)));
    assert_eq!(
        bench.spaces.take(),
        [(1, bad), (2, SECOND_AT + HALF + 0x3000)]
    );
    let contained = Stage::Contained { pages: 1 };
    assert_eq!(bench.stages.take(), [Stage::Detected, contained]);
}

#[test]
fn the_same_page_again_is_known_and_costs_nothing() {
    let bench = Bench::new();
    let block = record(Severity::Recoverable, &[page(Pa::new(DEVICE))]);
    bench.collect_record(&block);
    bench.stages.take();
    bench.collect_record(&block);
    assert_eq!(bench.stages.take(), [Stage::Detected, Stage::Known]);
    assert_eq!(bench.spaces.take().len(), 1);
    assert_eq!(bench.ras.announcer.counters().snapshot().lost_pages, 1);
}

#[test]
fn a_known_page_is_out_of_reach_even_if_its_first_finder_has_not_cut_it_yet() {
    let bench = Bench::new();
    let bad = Pa::new(DEVICE + 0x5000);
    // As another CPU has it a moment before it cuts.
    let _ = bench.ras.poison.lock().insert(bad.pfn(), 99);
    bench.collect_record(&record(Severity::Recoverable, &[page(bad)]));
    assert_eq!(bench.spaces.take(), [(1, DEVICE + 0x5000)]);
}

#[test]
fn several_sections_are_several_errors() {
    let bench = Bench::new();
    let pages = [DEVICE, DEVICE + 0x7000, DEVICE + 0x9000];
    let errors = pages.map(|pa| page(Pa::new(pa)));
    let collected = bench.collect_record(&record(Severity::Recoverable, &errors));
    assert_eq!(collected.records, 1);
    assert_eq!(bench.spaces.take(), pages.map(|pa| (1, pa)));
    let counters = bench.ras.announcer.counters().snapshot();
    assert_eq!((counters.detected, counters.contained), (3, 3));
}

#[test]
fn of_several_pages_the_consumers_own_is_told_from_the_first() {
    let bench = Bench::new();
    let errors = [0x1000, DEVICE, DEVICE + HALF].map(|pa| page(Pa::new(pa)));
    assert!(
        bench
            .firmware
            .leave(&record(Severity::Recoverable, &errors))
    );
    let collected = bench.collect(2);
    assert_eq!(collected.page, Some(Pa::new(0x1000)));
    assert_eq!(collected.own, Some(Pa::new(DEVICE + HALF)));
    assert!(collected.unclaimed);
}

#[test]
fn a_corrected_error_is_counted_and_costs_nothing() {
    let bench = Bench::new();
    let collected = bench.collect_record(&record(Severity::Corrected, &[page(Pa::new(DEVICE))]));
    assert_eq!((collected.records, collected.page), (1, None));
    assert!(!collected.fatal);
    assert_eq!(bench.stages.take(), [Stage::Detected, Stage::Corrected]);
    assert!(bench.spaces.take().is_empty());
}

#[test]
fn a_fatal_record_says_so_and_is_contained_all_the_same() {
    let bench = Bench::new();
    let collected = bench.collect_record(&record(Severity::Fatal, &[page(Pa::new(DEVICE))]));
    assert!(collected.fatal);
    assert_eq!(bench.spaces.take(), [(1, DEVICE)]);
}

#[test]
fn a_record_of_memory_that_nobody_owns_cuts_nothing() {
    let bench = Bench::new();
    let collected = bench.collect_record(&record(Severity::Recoverable, &[page(Pa::new(0x4000))]));
    assert_eq!((collected.own, collected.unclaimed), (None, true));
    assert_eq!(bench.stages.take(), [Stage::Detected, Stage::Unclaimed]);
    assert!(bench.spaces.take().is_empty());
}

#[test]
fn bytes_that_are_no_record_cut_nothing_and_free_the_block() {
    let bench = Bench::new();
    for garbage in [[0xff; 64], [0x5a; 64], [1; 64]] {
        let collected = bench.collect_record(&garbage);
        assert_eq!((collected.records, collected.page), (0, None));
    }
    assert!(bench.stages.take().is_empty());
    assert!(bench.spaces.take().is_empty());
    // The source is not silenced: the next one is heard.
    bench.collect_record(&record(Severity::Recoverable, &[page(Pa::new(DEVICE))]));
    assert_eq!(bench.spaces.take(), [(1, DEVICE)]);
}

#[test]
fn a_block_that_is_poisoned_itself_is_no_record() {
    let bench = Bench::new();
    assert!(bench.firmware.report(Pa::new(DEVICE)));
    bench.firmware.0.lock().unwrap().broken = true;
    assert_eq!(bench.collect(1).records, 0);
}

#[test]
fn masks_that_make_no_sense_cut_nothing() {
    let bench = Bench::new();
    for mask in [0, !0x0f0f_0000, !0xffff_ffff_ffff] {
        let error = Memory {
            address_mask: Some(mask),
            ..page(Pa::new(DEVICE))
        };
        let collected = bench.collect_record(&record(Severity::Recoverable, &[error]));
        assert_eq!((collected.records, collected.page), (1, None), "{mask:#x}");
    }
    assert!(bench.spaces.take().is_empty());
}

#[test]
fn a_mask_of_more_than_a_page_costs_each_of_its_pages() {
    let bench = Bench::new();
    let error = Memory {
        address_mask: Some(!0x3fff),
        ..page(Pa::new(DEVICE + 0x5000))
    };
    let collected = bench.collect_record(&record(Severity::Recoverable, &[error]));
    assert_eq!(collected.page, Some(Pa::new(DEVICE + 0x4000)));
    let expected = [0x4000, 0x5000, 0x6000, 0x7000].map(|offset| (1, DEVICE + offset));
    assert_eq!(bench.spaces.take(), expected);
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of pages")]
fn a_range_beyond_all_measure_is_cut_up_to_the_bound_and_says_so() {
    let bench = Bench::with_capacity(1);
    let range = PaRange::new(Pa::new(DEVICE), (MAX_PAGES + 1) * PAGE_SIZE).unwrap();
    let event = Occasion {
        origin: Origin::Injected,
        cpu: 0,
        consumer: None,
    }
    .event(1, Severity::Recoverable, Some(range));
    let spaces = Notes {
        coarse: 1 << 30,
        ..Notes::default()
    };
    assert!(bench.ras.contain(&event, range, &spaces).is_some());
    let counters = bench.ras.announcer.counters().snapshot();
    let seen = counters.contained + counters.known + counters.unclaimed;
    assert_eq!(seen, MAX_PAGES);
    assert_eq!(bench.stages.take()[0], Stage::Overflow);
}

#[test]
fn a_processor_section_costs_the_pages_of_its_cache_errors_and_no_others() {
    let bench = Bench::new();
    let errors = [
        error_at(ErrorKind::TLB, DEVICE),
        error_at(ErrorKind::CACHE, DEVICE + 0x2008),
        error_at(ErrorKind::MICROARCHITECTURE, DEVICE + 0x3000),
        error_at(ErrorKind::CACHE | ErrorKind::BUS, DEVICE + 0x4000),
    ];
    let collected = bench.collect_record(&processor_record(&errors));
    assert_eq!(collected.page, Some(Pa::new(DEVICE + 0x2000)));
    assert_eq!(
        bench.spaces.take(),
        [(1, DEVICE + 0x2000), (1, DEVICE + 0x4000)]
    );
    assert_eq!(
        bench.stages.take_with_pages()[0],
        (Stage::Detected, Some(Pa::new(DEVICE + 0x2000)))
    );
}

#[test]
fn what_is_not_in_the_set_was_never_touched() {
    let bench = Bench::new();
    let (bad, good) = (Pa::new(DEVICE + 0x1008), Pa::new(DEVICE + 0x2000));
    bench.collect_record(&record(Severity::Recoverable, &[page(bad)]));
    let level = Level::new(2).unwrap();
    bench.ras.remember_walk(bad, level);
    bench.ras.remember_walk(good, level);
    let who = Toucher {
        vm: vm(1),
        cpu: 3,
        siblings: 1 << 3,
    };
    let touch = |count, walk_level, consumption| Touch {
        count,
        walk_level,
        consumption,
    };
    let [first, again] = [Consumption::First, Consumption::Repeated];
    assert_eq!(bench.ras.touched(who, bad), touch(1, Some(level), first));
    assert_eq!(bench.ras.touched(who, bad), touch(2, Some(level), again));
    assert_eq!(bench.ras.consumed(who, bad), again);
    let unknown = touch(0, None, Consumption::Unknown);
    assert_eq!(bench.ras.touched(who, good), unknown);
}

/// Containment itself is tested in its own module, on the same bench.
pub(crate) struct ContainBench(Bench);

impl ContainBench {
    /// A set of `capacity` nodes; `damaged` VMs cannot be cut; `coarse` as in [`Notes`].
    pub(crate) fn new(capacity: usize, damaged: &[u8], coarse: u64) -> Self {
        let mut bench = Bench::with_capacity(capacity);
        bench.spaces.damaged = damaged.to_vec();
        bench.spaces.coarse = coarse;
        Self(bench)
    }

    /// Contains the page at this offset of the device, as an error of its own.
    pub(crate) fn contain(&self, offset: u64) -> bool {
        let range = PaRange::new(Pa::new(DEVICE + offset), PAGE_SIZE).unwrap();
        let occasion = Occasion {
            origin: Origin::Injected,
            cpu: 0,
            consumer: None,
        };
        let event = occasion.event(
            self.0.ras.next_sequence(),
            Severity::Recoverable,
            Some(range),
        );
        self.0.ras.contain(&event, range, &self.0.spaces).is_some()
    }

    /// An offset that both VMs map.
    pub(crate) const fn shared() -> u64 {
        HALF
    }

    pub(crate) fn stages(&self) -> Vec<Stage> {
        self.0.stages.take()
    }

    pub(crate) fn holes(&self) -> usize {
        self.0.spaces.take().len()
    }

    pub(crate) fn given_up(&self) -> Vec<u8> {
        self.0.spaces.given_up.lock().unwrap().clone()
    }

    pub(crate) fn lost_pages(&self) -> u64 {
        self.0.ras.announcer.counters().snapshot().lost_pages
    }
}

#[test]
fn an_event_is_of_its_vm_by_name() {
    let bench = Bench::new();
    let consumer = Consumer::Vcpu {
        vm: vm(1),
        vcpu: 0,
        el: 0,
        attempt: None,
    };
    let occasion = Occasion {
        origin: Origin::Sea,
        cpu: 2,
        consumer: Some(consumer),
    };
    let event = occasion.event(7, Severity::Recoverable, None);
    let line = Line {
        note: &Note::NoRecord(event),
        at: 5,
        section: &[],
        spaces: &bench.spaces,
    };
    let text: String = std::format!("{line}");
    assert_eq!(
        text,
        "event=no-record seq=7 via=sea cpu=2 vcpu=0 el=0 vm=vm at=5"
    );
}

/// What is known of bad pages, by offset from `DEVICE`.
fn bad_offsets(ras: &Ras<'_, Firmware>) -> Vec<u64> {
    let pages = ras.all_bad_pages();
    pages
        .map(|page| page.pa.get().wrapping_sub(DEVICE))
        .collect()
}

fn pages(offset: u64, pages: u64) -> PaRange {
    PaRange::new(Pa::new(DEVICE + offset), pages * PAGE_SIZE).unwrap()
}

#[test]
fn what_is_nobodys_is_remembered_and_whoever_maps_it_later_starts_with_the_hole() {
    let mut bench = Bench::new();
    let beyond = 2 * HALF;
    let imported = [pages(beyond + 0x3000, 2), pages(beyond + 0x3000, 1)];
    let news = bench.ras.import(imported.into_iter(), 0, &bench.spaces);
    assert_eq!(news, 2);
    let [detected, unclaimed] = [Stage::Detected, Stage::Unclaimed];
    assert_eq!(
        bench.stages.take(),
        [detected, unclaimed, unclaimed, detected, unclaimed]
    );
    assert!(bench.spaces.take().is_empty());
    let range = pages(beyond, 16);
    let id = bench.ras.devmem.register(Kind::Bar, range, "late", None);
    let mapping = Mapping {
        vm: vm(2),
        ipa: Ipa::new(DEVICE + beyond),
        range,
        attrs: Attrs::RAM,
    };
    bench.ras.devmem.add_mapping(id.unwrap(), mapping).unwrap();
    assert_eq!(bench.ras.cut_known(&mapping, &bench.spaces), 2);
    let holes = [0x3000, 0x4000].map(|offset| (2, DEVICE + beyond + offset));
    assert_eq!(bench.spaces.take(), holes);
    // They are there already.
    assert_eq!(bench.ras.cut_known(&mapping, &bench.spaces), 0);
}

#[test]
fn a_region_that_goes_takes_mappings_and_filter_and_leaves_the_poison() {
    let mut bench = Bench::new();
    bench.collect_record(&record(Severity::Recoverable, &[page(Pa::new(DEVICE))]));
    let id = bench.ras.devmem.find(Pa::new(DEVICE)).unwrap().id();
    let rule = crate::ras::filter::Rule::parse(&std::format!("region={id}"), |_| None).unwrap();
    bench.ras.filter.lock().add(rule).unwrap();
    let gone = bench.ras.remove_region(id).unwrap();
    assert_eq!(gone.mappings().count(), 2);
    assert_eq!(bench.ras.filter.lock().rules().count(), 0);
    assert!(
        bench
            .ras
            .devmem
            .mappings_of(Pa::new(DEVICE))
            .next()
            .is_none()
    );
    assert_eq!(bad_offsets(&bench.ras), [0]);
    assert!(bench.ras.remove_region(id).is_none());
    // A number does not come again, so no rule can mean another region.
    let again = bench
        .ras
        .devmem
        .register(Kind::Bar, pages(0, 1), "next", None);
    assert_ne!(again.unwrap(), id);
}

#[test]
fn a_mapping_over_a_damaged_map_costs_that_vm() {
    let mut bench = Bench::new();
    bench
        .ras
        .import([pages(0, 1)].into_iter(), 0, &bench.spaces);
    bench.spaces.damaged = std::vec![1];
    let region = bench.ras.devmem.find(Pa::new(DEVICE)).unwrap();
    let mapping = *region.mappings().next().unwrap();
    assert_eq!(bench.ras.cut_known(&mapping, &bench.spaces), 0);
    assert_eq!(*bench.spaces.given_up.lock().unwrap(), [1]);
}

#[test]
fn bad_pages_are_listed_by_where_each_vm_has_them() {
    let bench = Bench::new();
    let list = [
        pages(HALF + 0x2000, 1),
        pages(0x1000, 1),
        pages(2 * HALF, 1),
    ];
    bench.ras.import(list.into_iter(), 0, &bench.spaces);
    assert_eq!(bad_offsets(&bench.ras), [0x1000, HALF + 0x2000, 2 * HALF]);
    let of = |number| -> Vec<u64> {
        let lost = bench.ras.lost_pages_of(vm(number));
        lost.map(|page| page.ipa.get()).collect()
    };
    assert_eq!(of(1), [DEVICE + 0x1000, DEVICE + HALF + 0x2000]);
    assert_eq!(of(2), [SECOND_AT + HALF + 0x2000]);
    let last = PaRange::new(Pa::new(DEVICE + 2 * HALF), 1).unwrap();
    assert_eq!(bench.ras.bad_in(last).count(), 1);
}

#[test]
fn a_filter_drops_pages_one_by_one_and_says_so_once() {
    let bench = Bench::new();
    let text = "pa=0x8000001000+8K";
    let rule = crate::ras::filter::Rule::parse(text, |_| None).unwrap();
    bench.ras.filter.lock().add(rule).unwrap();
    let error = Memory {
        address_mask: Some(!0x3fff),
        ..page(Pa::new(DEVICE))
    };
    bench.collect_record(&record(Severity::Recoverable, &[error]));
    assert_eq!(bench.spaces.take(), [(1, DEVICE), (1, DEVICE + 0x3000)]);
    let contained = Stage::Contained { pages: 1 };
    let filtered = Stage::Filtered { pages: 2 };
    assert_eq!(
        bench.stages.take(),
        [Stage::Detected, contained, contained, filtered]
    );
    assert_eq!(bad_offsets(&bench.ras), [0, 0x3000]);
    let corrected = record(Severity::Corrected, &[page(Pa::new(DEVICE + 0x1000))]);
    bench.collect_record(&corrected);
    let filtered = Stage::Filtered { pages: 1 };
    let corrected = Stage::Corrected;
    assert_eq!(bench.stages.take(), [Stage::Detected, corrected, filtered]);
}
