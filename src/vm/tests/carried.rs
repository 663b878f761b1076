//! Accesses to good pages under a hole of 2 MiB, which a spent reserve leaves.

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, K4, M2, PC, RAM, RAM_AT, VA, World, esr, esr_el1};
use crate::addr::{Ipa, Pa};
use crate::stage2::Lookup;
use crate::vm::access::pages::Caching;
use crate::vm::cpu::{Denied, Stage1};
use crate::vm::exit::Next;
use std::vec::Vec;

/// The large hole, from the beginning of the device memory on; and the bad page in it.
const HOLE: u64 = 6 * M2;
const BAD: u64 = HOLE + 5 * K4;
/// Where the guest's instructions are, in its RAM.
const CODE: u64 = 0x1040;
const FAULT: u64 = esr::data(esr::TRANSLATION);
/// ldr x2, [x1]; str x2, [x1]; ldp x2, x3, [x1], #16; ldadd x2, x3, [x1]; ldxr x2, [x1]; add x2, x2, #1;
/// stxr w4, x2, [x1]; ret
const LDR: u32 = 0xf940_0022;
const STR: u32 = 0xf900_0022;
const LDP: u32 = 0xa8c1_0c22;
const LDADD: u32 = 0xf822_0023;
const LDXR: u32 = 0xc85f_7c22;
const ADD: u32 = 0x9100_0442;
const STXR: u32 = 0xc804_7c22;
const RET: u32 = 0xd65f_03c0;

/// A world whose VM 0 has spent its reserve: five pages in blocks of 2 MiB, then a sixth.
fn world() -> World {
    with_hole(World::new())
}

fn with_hole(world: World) -> World {
    for page in (0..5).map(|at| at * M2).chain([BAD]) {
        let _ = world.sea(0, esr::data(esr::EXTERNAL), DEVICE_AT[0] + page);
    }
    let found = world.lookup(0, DEVICE_AT[0] + BAD);
    assert!(
        matches!(found, Lookup::Poisoned { size: M2, .. }),
        "{found:?}"
    );
    world
}

/// The PA of what is `offset` bytes into the device memory.
fn pa(offset: u64) -> u64 {
    DEVICE.get() + offset
}

fn memory(world: &World, offset: u64, size: u8) -> u128 {
    world.hypervisor.platform.memory.read(pa(offset), size)
}

fn put(world: &World, offset: u64, size: u8, value: u128) {
    world
        .hypervisor
        .platform
        .memory
        .write(pa(offset), size, value);
}

/// A guest about to execute `words`, the first of which has faulted at `far`, with x1 = `base`. Both are offsets into
/// the device memory.
fn cpu(world: &World, words: &[u32], syndrome: u64, (base, far): (u64, u64)) -> FakeCpu {
    let mut cpu = FakeCpu::new(syndrome);
    for (at, word) in (0..).zip(words) {
        let memory = &world.hypervisor.platform.memory;
        memory.write(RAM[0].get() + CODE + 4 * at, 4, (*word).into());
    }
    cpu.state.pc = VA + RAM_AT + CODE;
    cpu.x[1] = VA + DEVICE_AT[0] + base;
    cpu.far = VA + DEVICE_AT[0] + far;
    cpu.hpfar = (DEVICE_AT[0] + far) >> 12 << 4;
    cpu
}

fn carried(world: &World) -> u64 {
    let count = &world.vm(0).carried_out;
    count.load(std::sync::atomic::Ordering::Relaxed)
}

/// The guests' pages that were opened, and as what.
fn opened(world: &World) -> Vec<(u64, Caching)> {
    let opened = world.hypervisor.platform.memory.opened.lock();
    opened.unwrap().clone()
}

/// What became of the access: it was carried out.
fn assert_carried(world: &World, cpu: &mut FakeCpu, instructions: u64) {
    let before = (carried(world), cpu.state.pc);
    assert_eq!(world.synchronous(0, cpu), Next::Resume);
    assert!(cpu.delivered.is_empty(), "{:#x?}", cpu.delivered);
    assert_eq!(cpu.state.pc, before.1 + 4 * instructions);
    assert_eq!(carried(world), before.0 + 1);
}

/// It was not: the guest has its abort, at this offset.
fn assert_aborted(world: &World, cpu: &mut FakeCpu, far: u64) {
    let before = carried(world);
    let registers = cpu.x;
    assert_eq!(world.synchronous(0, cpu), Next::Resume);
    let exception = cpu.exception();
    assert_eq!(exception.esr_el1 & !esr::WNR, esr_el1(0x25, 0x10));
    assert_eq!(exception.far_el1, Some(VA + DEVICE_AT[0] + far));
    assert_eq!((carried(world), cpu.x), (before, registers));
}

mod kinds;

#[test]
fn what_the_syndrome_describes_needs_no_fetch() {
    let world = world();
    put(&world, HOLE + 0x2018, 8, 0x8877_6655_4433_2211);
    let signed_byte = FAULT | esr::ISV | 1 << 21 | 7 << 16 | 1 << 15;
    let mut cpu = FakeCpu::new(signed_byte);
    (cpu.far, cpu.hpfar) = (
        VA + DEVICE_AT[0] + HOLE + 0x201f,
        (DEVICE_AT[0] + HOLE + 0x2000) >> 8,
    );
    assert_carried(&world, &mut cpu, 1);
    assert_eq!((cpu.x[7], cpu.state.pc), (0xffff_ffff_ffff_ff88, PC + 4));
    let store = FAULT | esr::ISV | esr::WNR | 2 << 22 | 7 << 16;
    let mut cpu = FakeCpu { esr: store, ..cpu };
    (cpu.far, cpu.x[7]) = (VA + DEVICE_AT[0] + HOLE + 0x2004, 0xdead_beef);
    assert_carried(&world, &mut cpu, 1);
    assert_eq!(memory(&world, HOLE + 0x2004, 8), 0xdead_beef);
    let opened = opened(&world);
    assert_eq!(opened, [(pa(HOLE + 0x2000), Caching::WriteBack); 2]);
}

#[test]
fn others_are_read_and_decoded() {
    let world = world();
    put(&world, HOLE + 0x3010, 16, 7 << 64 | 5);
    let mut pair = cpu(&world, &[LDP], FAULT, (HOLE + 0x3010, HOLE + 0x3010));
    assert_carried(&world, &mut pair, 1);
    assert_eq!((pair.x[2], pair.x[3]), (5, 7));
    assert_eq!(pair.x[1], VA + DEVICE_AT[0] + HOLE + 0x3020, "written back");
    // The syndrome of an atomic tells the read.
    let mut atomic = cpu(&world, &[LDADD], FAULT, (HOLE + 0x3010, HOLE + 0x3010));
    atomic.x[2] = 100;
    assert_carried(&world, &mut atomic, 1);
    assert_eq!((atomic.x[3], memory(&world, HOLE + 0x3010, 8)), (5, 105));
    assert_eq!(world.counters().touched, 0);
}

#[test]
fn an_atomic_need_but_lie_in_16_bytes() {
    let world = world();
    for odd in [1, 4, 7, 8] {
        let (around, at) = (HOLE + 0x3020, HOLE + 0x3020 + odd);
        let before = u128::MAX << 64 | 0x0102_0304_0506_0708;
        put(&world, around, 16, before);
        let old = memory(&world, at, 8);
        let mut atomic = cpu(&world, &[LDADD], FAULT, (at, at));
        atomic.x[2] = 0x1_0000_0001;
        assert_carried(&world, &mut atomic, 1);
        assert_eq!(u128::from(atomic.x[3]), old);
        let new = old as u64;
        let new = u128::from(new.wrapping_add(0x1_0000_0001));
        assert_eq!(memory(&world, at, 8), new);
        let mask = u128::from(u64::MAX) << (8 * odd);
        assert_eq!(memory(&world, around, 16) & !mask, before & !mask);
    }
}

#[test]
fn exclusives_are_carried_out_to_their_store() {
    let world = world();
    put(&world, HOLE + 0x4000, 8, 41);
    let at = (HOLE + 0x4000, HOLE + 0x4000);
    let mut both = cpu(&world, &[LDXR, ADD, STXR, RET], FAULT, at);
    assert_carried(&world, &mut both, 3);
    assert_eq!((both.x[4], memory(&world, HOLE + 0x4000, 8)), (0, 42));
    // Without a store that is understood, nothing is.
    assert_aborted(
        &world,
        &mut cpu(&world, &[LDXR, RET, STXR], FAULT, at),
        HOLE + 0x4000,
    );
}

#[test]
fn an_access_into_the_bad_page_aborts_at_its_first_byte_and_writes_nothing() {
    let world = world();
    let write = FAULT | esr::WNR;
    put(&world, BAD - 8, 8, 0x1111);
    let mut store = cpu(&world, &[STR], write, (BAD - 3, BAD - 3));
    assert_aborted(&world, &mut store, BAD);
    assert_eq!(memory(&world, BAD - 8, 8), 0x1111);
    // Out of it: at its own first byte.
    let last = BAD + K4 - 3;
    assert_aborted(&world, &mut cpu(&world, &[STR], write, (last, last)), last);
    assert_aborted(
        &world,
        &mut cpu(&world, &[LDR], FAULT, (BAD + 8, BAD + 8)),
        BAD + 8,
    );
    assert_eq!(world.counters().touched, 3);
}

#[test]
fn an_access_across_the_edge_is_made_on_both_sides() {
    let world = world();
    let write = FAULT | esr::WNR;
    // From mapped memory: the fault is at the beginning of the hole.
    let mut into = cpu(&world, &[STR], write, (HOLE - 3, HOLE));
    into.x[2] = 0x8877_6655_4433_2211;
    assert_carried(&world, &mut into, 1);
    assert_eq!(memory(&world, HOLE - 3, 8), 0x8877_6655_4433_2211);
    let end = HOLE + M2;
    put(&world, end - 5, 8, 0x0102_0304_0506_0708);
    let mut out = cpu(&world, &[LDR], FAULT, (end - 5, end - 5));
    assert_carried(&world, &mut out, 1);
    assert_eq!(out.x[2], 0x0102_0304_0506_0708);
}

#[test]
fn stage_1_of_the_second_page_is_asked() {
    let world = world();
    let end = HOLE + M2;
    let mut out = cpu(&world, &[LDR], FAULT, (end - 5, end - 5));
    let second = VA + DEVICE_AT[0] + end;
    out.pages.insert(second, Err(Denied::Stage1(0x07)));
    assert_eq!(world.synchronous(0, &mut out), Next::Resume);
    let exception = out.exception();
    assert_eq!(
        (exception.esr_el1, exception.far_el1),
        (esr_el1(0x25, 0x07), Some(second))
    );
    // Where it leads elsewhere, the bytes are there.
    let elsewhere = Stage1 {
        ipa: Ipa::new(DEVICE_AT[0] + HOLE + 0x9000),
        memory: 0xff,
    };
    let mut out = cpu(&world, &[LDR], FAULT, (end - 5, end - 5));
    out.pages.insert(second, Ok(elsewhere));
    put(&world, HOLE + 0x9000, 4, 0x00aa_bbcc);
    assert_carried(&world, &mut out, 1);
    assert_eq!(out.x[2] >> 40, 0x00aa_bbcc);
}

#[test]
fn code_that_changed_is_executed_again_once() {
    let world = world();
    // A store, says the syndrome; a load, says memory.
    let at = (HOLE + 0x2000, HOLE + 0x2000);
    let mut changed = cpu(&world, &[LDR], FAULT | esr::WNR, at);
    let before = changed.state.pc;
    assert_eq!(world.synchronous(0, &mut changed), Next::Resume);
    assert!(changed.delivered.is_empty());
    assert_eq!((changed.state.pc, carried(&world)), (before, 0));
    assert_aborted(&world, &mut changed, HOLE + 0x2000);
    // FAR is not where the instruction would have gone.
    let mut elsewhere = cpu(&world, &[LDR], FAULT, (HOLE + 0x2010, HOLE + 0x2000));
    assert_eq!(world.synchronous(0, &mut elsewhere), Next::Resume);
    assert_eq!(carried(&world), 0);
}

#[test]
fn poison_that_nobody_knew_of_is_contained_and_told() {
    let world = world();
    let frame = Pa::new(pa(HOLE + 0x2000));
    world
        .hypervisor
        .platform
        .memory
        .bad
        .lock()
        .unwrap()
        .insert(frame.get());
    assert!(!world.hypervisor.ras.is_bad(frame));
    let at = (HOLE + 0x2008, HOLE + 0x2008);
    assert_aborted(&world, &mut cpu(&world, &[LDR], FAULT, at), HOLE + 0x2008);
    assert!(world.hypervisor.ras.is_bad(frame));
    assert_eq!(
        world.counters().touched,
        0,
        "it was no hole of its own before"
    );
    // From now on it is.
    assert_aborted(&world, &mut cpu(&world, &[LDR], FAULT, at), HOLE + 0x2008);
    assert_eq!(world.counters().touched, 1);
}

#[test]
fn a_page_that_is_being_moved_is_waited_for() {
    let world = world();
    let at = (HOLE + 0x2000, HOLE + 0x2000);
    let mut store = cpu(&world, &[STR], FAULT | esr::WNR, at);
    let busy = world
        .hypervisor
        .ras
        .mender
        .begin(Pa::new(pa(HOLE + 0x2000)));
    let before = store.state.pc;
    assert_eq!(world.synchronous(0, &mut store), Next::Resume);
    assert_eq!((store.state.pc, carried(&world)), (before, 0));
    assert!(store.delivered.is_empty());
    drop(busy);
    assert_carried(&world, &mut store, 1);
}

#[test]
fn what_is_not_carried_out_gets_the_abort_of_a_lost_page() {
    let world = world();
    let at = (HOLE + 0x2000, HOLE + 0x2000);
    // Big-endian data, an atomic across two of the 16 bytes that are one, an unknown instruction, a fetch.
    let mut big = cpu(&world, &[LDR], FAULT, at);
    big.state.sctlr = 1 << 25;
    assert_aborted(&world, &mut big, HOLE + 0x2000);
    let odd = (HOLE + 0x200c, HOLE + 0x200c);
    assert_aborted(
        &world,
        &mut cpu(&world, &[LDADD], FAULT, odd),
        HOLE + 0x200c,
    );
    assert_aborted(&world, &mut cpu(&world, &[RET], FAULT, at), HOLE + 0x2000);
    let mut fetch = cpu(&world, &[LDR], esr::fetch(esr::TRANSLATION), at);
    assert_eq!(world.synchronous(0, &mut fetch), Next::Resume);
    assert_eq!(fetch.exception().esr_el1, esr_el1(0x21, 0x10));
    let mut user = cpu(&world, &[LDR], FAULT, at);
    (user.state.sctlr, user.state.pstate) = (1 << 24, 0);
    let _ = world.synchronous(0, &mut user);
    assert_eq!((user.delivered.len(), carried(&world)), (1, 0));
}
