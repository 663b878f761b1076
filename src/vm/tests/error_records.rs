//! What a guest with ACPI finds in its error sources, and when.

use super::fake::{DEVICE, DEVICE_AT, EL1H, FakeCpu, K4, SPARES, VA, World, esr};
use crate::addr::{Pa, PaRange};
use crate::ras::cper::{
    BlockWriter, Body, MemoryErrorType, SectionFlags, SectionHead, Severity, StatusBlock, Timestamp,
};
use crate::ras::event::Origin;
use crate::ras::ghes::PhysMemory;
use crate::ras::pipeline::Occasion;
use crate::ras::pipeline::tests::{Firmware, page, record};
use crate::ras::soft_offline::Action;
use crate::ras::spares::Spares;
use crate::vm::config::ERROR_DEVICE;
use crate::vm::error_device::register;
use crate::vm::exit::Next;
use crate::vm::guest_acpi::place::shared;
use std::vec;
use std::vec::Vec;

const SEA: u64 = esr::data(esr::EXTERNAL);
const FAULT: u64 = esr::data(esr::TRANSLATION);
/// `ESR_EL2.ISS.CM`.
const CM: u64 = 1 << 8;
/// `PSTATE.M` is EL0t.
const EL0: u64 = EL1H & !0b1111;
const BAD: u64 = 0x1234_5000;
const IPA: u64 = DEVICE_AT[0] + BAD;

/// A VM with ACPI, and what it can read.
struct Bench {
    world: World,
    area: (Firmware, Pa),
}

/// A page, how bad it is, and whether a threshold was crossed.
type Told = (u64, Severity, bool);

impl Bench {
    fn new() -> Self {
        let (world, area) = World::with_acpi();
        Self { world, area }
    }

    /// An exit of VM 0 that runs in this mode.
    fn exit(&self, esr: u64, ipa: u64, mode: u64) -> (Next, FakeCpu) {
        let mut cpu = FakeCpu::new(esr);
        cpu.state.pstate = mode;
        (cpu.far, cpu.hpfar) = (VA + ipa, ipa >> 12 << 4);
        let next = self.world.synchronous(0, &mut cpu);
        (next, cpu)
    }

    /// What is in the block of `source`.
    fn told(&self, source: usize) -> Option<Told> {
        let (mut memory, at) = self.area.clone();
        let mut block = vec![0; usize::try_from(shared::BLOCK_SIZE).unwrap()];
        let from = at.checked_add(shared::BLOCK[source]).unwrap();
        memory.read(from, &mut block).unwrap();
        let block = StatusBlock::parse(&block).ok()?;
        if block.status().is_empty() {
            return None;
        }
        let section = block.sections().next()?.ok()?;
        let threshold = (section.flags).contains(SectionFlags::THRESHOLD_EXCEEDED);
        let Body::Memory(memory) = section.body else {
            return None;
        };
        let page = memory.poisoned().unwrap().start().get();
        Some((page, section.severity, threshold))
    }

    /// As Linux does it: the block's status becomes 0, then the record is acknowledged by a store.
    fn acknowledge(&self, source: usize) {
        let (mut memory, at) = self.area.clone();
        let block = at.checked_add(shared::BLOCK[source]).unwrap();
        memory.write(block, &[0; 4]).unwrap();
        self.store(register::ACK[source], 1);
    }

    /// A 64-bit store of x1 to the error device.
    fn store(&self, offset: u64, value: u64) {
        const DOUBLEWORD: u64 = 0b11 << 22 | 1 << 15;
        let ipa = ERROR_DEVICE.0.get() + offset;
        let mut cpu = FakeCpu::new(esr::data(
            esr::TRANSLATION | esr::ISV | esr::WNR | DOUBLEWORD | 1 << 16,
        ));
        (cpu.far, cpu.hpfar, cpu.x[1]) = (VA + ipa, ipa >> 12 << 4, value);
        assert_eq!(self.world.synchronous(0, &mut cpu), Next::Resume);
        assert!(cpu.delivered.is_empty());
    }

    /// What firmware has left is found by nobody in particular.
    fn poll(&self, block: &[u8]) {
        assert!(self.world.firmware.leave(block));
        let occasion = Occasion {
            origin: Origin::Ghes(0),
            cpu: 0,
            consumer: None,
        };
        let hypervisor = &self.world.hypervisor;
        hypervisor.ras.collect(&occasion, hypervisor);
    }
}

const LOST: Told = (IPA, Severity::Recoverable, false);

fn pa(offset: u64) -> Pa {
    Pa::new(DEVICE.get() + offset)
}

#[test]
fn a_process_that_consumes_finds_its_record_in_the_first_source_before_the_abort() {
    let bench = Bench::new();
    assert!(bench.world.firmware.report(pa(BAD)));
    let (_, cpu) = bench.exit(SEA, IPA, EL0);
    assert_eq!(cpu.delivered.len(), 1);
    assert_eq!((bench.told(0), bench.told(1)), (Some(LOST), None));
}

#[test]
fn a_kernel_that_consumes_is_told_by_the_second_source_for_it_does_not_look_into_the_first() {
    let bench = Bench::new();
    assert!(bench.world.firmware.report(pa(BAD)));
    let (_, cpu) = bench.exit(SEA, IPA, EL1H);
    assert_eq!(cpu.delivered.len(), 1);
    assert_eq!((bench.told(0), bench.told(1)), (None, Some(LOST)));
}

#[test]
fn an_access_is_made_again_until_the_record_before_it_is_acknowledged() {
    let bench = Bench::new();
    let other = BAD + K4;
    for bad in [BAD, other] {
        bench.poll(&record(Severity::Recoverable, &[page(pa(bad))]));
    }
    let (_, first) = bench.exit(FAULT, IPA, EL0);
    assert_eq!(first.delivered.len(), 1);
    let touched = bench.world.counters().touched;
    for _ in 0..3 {
        let (next, cpu) = bench.exit(FAULT, IPA + K4, EL0);
        assert_eq!(next, Next::Resume);
        assert!(cpu.delivered.is_empty());
        assert_eq!(cpu.state.pc, FakeCpu::new(0).state.pc);
    }
    // It has not been counted while it waited, and what is to be read is still there.
    assert_eq!(bench.world.counters().touched, touched);
    assert_eq!(bench.told(0), Some(LOST));
    bench.acknowledge(0);
    let (_, cpu) = bench.exit(FAULT, IPA + K4, EL0);
    assert_eq!(cpu.delivered.len(), 1);
    assert_eq!(bench.told(0).unwrap().0, IPA + K4);
}

#[test]
fn a_guest_that_never_acknowledges_gets_its_aborts_all_the_same() {
    let bench = Bench::new();
    bench.poll(&record(Severity::Recoverable, &[page(pa(BAD))]));
    let mut aborts = 0;
    for _ in 0..3000 {
        let (_, cpu) = bench.exit(FAULT, IPA, EL0);
        aborts += cpu.delivered.len();
    }
    assert!(aborts > 1, "{aborts}");
}

#[test]
fn what_nobody_consumed_is_told_by_the_second_source_in_its_turn() {
    let bench = Bench::new();
    for bad in [BAD, BAD + K4] {
        bench.poll(&record(Severity::Recoverable, &[page(pa(bad))]));
    }
    assert_eq!((bench.told(0), bench.told(1)), (None, Some(LOST)));
    bench.acknowledge(1);
    assert_eq!(bench.told(1).unwrap().0, IPA + K4);
    bench.acknowledge(1);
    assert_eq!(bench.told(1), None);
}

#[test]
fn what_another_vm_consumed_is_told_by_the_second_source() {
    let bench = Bench::new();
    assert!(bench.world.firmware.report(pa(BAD)));
    let (_, cpu) = bench.world.sea(1, SEA, DEVICE_AT[1] + BAD);
    assert_eq!(cpu.delivered.len(), 1);
    assert_eq!((bench.told(0), bench.told(1)), (None, Some(LOST)));
}

#[test]
fn cleaning_lost_memory_consumes_nothing() {
    let bench = Bench::new();
    bench.poll(&record(Severity::Recoverable, &[page(pa(BAD))]));
    bench.acknowledge(1);
    for mode in [EL0, EL1H] {
        let (next, cpu) = bench.exit(FAULT | CM | esr::WNR, IPA, mode);
        assert_eq!(next, Next::Resume);
        assert!(cpu.delivered.is_empty());
        assert_eq!(cpu.state.pc, FakeCpu::new(0).state.pc + 4);
    }
    assert_eq!((bench.told(0), bench.told(1)), (None, None));
    // A walk that finds nothing because its table is lost is none of that.
    let (_, cpu) = bench.exit(FAULT | CM | esr::S1PTW, IPA, EL1H);
    assert_eq!(cpu.delivered.len(), 1);
}

/// A record of a corrected error with these flags.
fn corrected(flags: SectionFlags, at: Pa, sequence: u64) -> Vec<u8> {
    let mut buffer = [0; 512];
    let mut writer = BlockWriter::new(&mut buffer).unwrap();
    let head = SectionHead {
        flags,
        ..SectionHead::new(Severity::Corrected, Timestamp::from_sequence(sequence))
    };
    let mut memory = page(at);
    memory.error_type = Some(MemoryErrorType::SINGLE_BIT_ECC);
    writer.memory(&head, &memory).unwrap();
    writer.finish().to_vec()
}

/// What a guest is told of a corrected error, and of one that is one too many.
fn told_of_corrected(action: Action, spares: bool) -> [Option<Told>; 2] {
    let bench = Bench::new();
    let mender = &bench.world.hypervisor.ras.mender;
    mender.corrected.lock().policy.action = action;
    if spares {
        *mender.spares.lock() = Spares::new(PaRange::new(SPARES, 0x1000).unwrap());
    }
    let many = SectionFlags::PRIMARY | SectionFlags::THRESHOLD_EXCEEDED;
    let cases = [(SectionFlags::PRIMARY, 0, 1), (many, K4, 2)];
    let told = cases.map(|(flags, offset, sequence)| {
        bench.poll(&corrected(flags, pa(BAD + offset), sequence));
        bench.world.hypervisor.offline_due(0);
        let told = bench.told(1);
        if told.is_some() {
            bench.acknowledge(1);
        }
        told
    });
    assert!(bench.world.is_mapped(0, IPA) && bench.world.is_mapped(0, IPA + K4));
    assert_eq!(bench.told(0), None);
    told
}

#[test]
fn corrected_errors_are_told_as_the_policy_has_it() {
    let one = Some((IPA, Severity::Corrected, false));
    let many = Some((IPA + K4, Severity::Corrected, true));
    assert_eq!(told_of_corrected(Action::Tell, true), [one, many]);
    assert_eq!(told_of_corrected(Action::Ignore, true), [None, None]);
    // What Cordon moves is nothing to do anything about; what it cannot move is.
    assert_eq!(told_of_corrected(Action::Move, true), [one, None]);
    assert_eq!(told_of_corrected(Action::Move, false), [one, many]);
}
