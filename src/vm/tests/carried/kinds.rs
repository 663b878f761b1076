//! Kinds of memory, of maintenance, and of guests: as what a page is accessed, and for whom it is not.

use super::super::fake::{DEVICE_AT, FakeCpu, RAM, RAM_AT, VA, World, esr, esr_el1};
use super::{
    BAD, CODE, FAULT, HOLE, LDADD, LDP, LDR, STR, assert_aborted, assert_carried, carried, cpu,
    memory, opened, pa, put, with_hole, world,
};
use crate::addr::Ipa;
use crate::stage2::MemoryType;
use crate::vm::access::pages::Caching;
use crate::vm::cpu::Stage1;
use crate::vm::exit::Next;

/// Where the guest accesses memory, and its page.
const AT: u64 = HOLE + 0x2010;
const PAGE: u64 = HOLE + 0x2000;
/// MAIR attributes: Device-nGnRnE, Normal non-cacheable, write-through.
const DEVICE: u8 = 0x00;
const NON_CACHEABLE: u8 = 0x44;
const WRITE_THROUGH: u8 = 0xbb;
/// dc zva, x1
const DC_ZVA: u32 = 0xd50b_7421;

/// A guest whose stage 1 has the page as this.
fn guest(world: &World, word: u32, memory: u8) -> FakeCpu {
    let mut guest = cpu(world, &[word], FAULT, (AT, AT));
    let page = Stage1 {
        ipa: Ipa::new(DEVICE_AT[0] + PAGE),
        memory,
    };
    guest.pages.insert(VA + DEVICE_AT[0] + PAGE, Ok(page));
    guest
}

#[test]
fn the_stronger_of_both_stages_counts() {
    use MemoryType::{DeviceNGnRE, NormalNc, NormalWb};
    for (stage2, stage1, expected) in [
        (NormalWb, 0xff, Caching::WriteBack),
        (NormalWb, NON_CACHEABLE, Caching::NonCacheable),
        (NormalWb, WRITE_THROUGH, Caching::NonCacheable),
        (NormalWb, DEVICE, Caching::Device),
        (NormalNc, 0xff, Caching::NonCacheable),
        (NormalNc, DEVICE, Caching::Device),
        (DeviceNGnRE, 0xff, Caching::Device),
        (DeviceNGnRE, NON_CACHEABLE, Caching::Device),
    ] {
        let world = with_hole(World::of_type(stage2));
        put(&world, AT, 16, 7 << 64 | 5);
        let mut guest = guest(&world, LDP, stage1);
        assert_carried(&world, &mut guest, 1);
        assert_eq!((guest.x[2], guest.x[3]), (5, 7));
        let page = (pa(PAGE), expected);
        assert_eq!(opened(&world).last(), Some(&page), "{stage2:?} {stage1:#x}");
    }
}

#[test]
fn what_is_not_aligned_in_device_memory_is_the_guests_own_fault() {
    const ALIGNMENT: u64 = 0x21;
    let world = with_hole(World::of_type(MemoryType::DeviceNGnRE));
    for (word, syndrome, at) in [
        (LDR, FAULT, AT + 4),
        (STR, FAULT | esr::WNR, AT + 4),
        // From one page into the next.
        (LDR, FAULT, PAGE + 0xffc),
    ] {
        let mut odd = cpu(&world, &[word], syndrome, (at, at));
        assert_eq!(world.synchronous(0, &mut odd), Next::Resume);
        let exception = odd.exception();
        let expected = esr_el1(0x25, syndrome & esr::WNR | ALIGNMENT);
        assert_eq!(exception.esr_el1, expected, "{word:#x}");
        assert_eq!(exception.far_el1, Some(VA + DEVICE_AT[0] + at));
    }
    // A block is zeroed in no Device memory, aligned or not; FAR is what the register has.
    let mut zero = cpu(&world, &[DC_ZVA], FAULT | esr::WNR, (AT, AT));
    assert_eq!(world.synchronous(0, &mut zero), Next::Resume);
    assert_eq!(
        zero.exception().esr_el1,
        esr_el1(0x25, esr::WNR | ALIGNMENT)
    );
    assert_eq!(zero.exception().far_el1, Some(VA + DEVICE_AT[0] + AT));
    assert_eq!((carried(&world), world.counters().touched), (0, 0));
}

#[test]
fn nothing_is_atomic_but_in_memory_that_is_cached() {
    for memory in [MemoryType::NormalNc, MemoryType::DeviceNGnRE] {
        let world = with_hole(World::of_type(memory));
        assert_aborted(&world, &mut cpu(&world, &[LDADD], FAULT, (AT, AT)), AT);
    }
}

#[test]
fn maintenance_by_address_reaches_the_line() {
    const CM: u64 = 1 << 8;
    // It counts as a write, and needs nothing that a write needs; what it is exactly is not asked.
    for memory in [
        MemoryType::NormalWb,
        MemoryType::NormalNc,
        MemoryType::DeviceNGnRE,
    ] {
        let world = with_hole(World::of_type(memory));
        let syndrome = FAULT | CM | esr::WNR;
        assert_carried(&world, &mut cpu(&world, &[], syndrome, (AT, AT)), 1);
        // There is nothing to maintain in a page that is lost.
        let bad = BAD + 0x40;
        let mut lost = cpu(&world, &[], syndrome, (bad, bad));
        let before = lost.state.pc;
        assert_eq!(world.synchronous(0, &mut lost), Next::Resume);
        assert_eq!((lost.state.pc, lost.delivered.len()), (before + 4, 0));
        let cleaned = world.hypervisor.platform.memory.cleaned.lock();
        assert_eq!(*cleaned.unwrap(), [pa(AT)]);
    }
}

#[test]
fn a_block_is_zeroed() {
    let world = world();
    for at in 0..4 {
        put(&world, PAGE + 16 * at + 0x30, 16, u128::MAX);
    }
    // FAR is the register's, in the middle of the block.
    let mut zero = cpu(
        &world,
        &[DC_ZVA],
        FAULT | esr::WNR,
        (PAGE + 0x50, PAGE + 0x50),
    );
    assert_carried(&world, &mut zero, 1);
    let words = [0x30, 0x40, 0x50, 0x60].map(|at| memory(&world, PAGE + at, 16));
    assert_eq!(words, [u128::MAX, 0, 0, 0]);
}

/// A guest's EL0 in AArch32, at the beginning of a page of code.
fn user(syndrome: u64, at: u64) -> FakeCpu {
    const USER: u64 = 1 << 4;
    let mut cpu = FakeCpu::new(syndrome);
    (cpu.state.pc, cpu.state.pstate) = (RAM_AT + CODE, USER);
    cpu.far = VA + DEVICE_AT[0] + at;
    cpu.hpfar = (DEVICE_AT[0] + at) >> 12 << 4;
    cpu
}

#[test]
fn of_aarch32_what_the_syndrome_describes() {
    let world = world();
    put(&world, AT, 4, 0x8877_6655);
    let word = FAULT | esr::ISV | 2 << 22 | 3 << 16;
    let mut load = user(word, AT);
    assert_carried(&world, &mut load, 1);
    assert_eq!(load.x[3], 0x8877_6655);
    let mut store = user(word | esr::WNR, AT);
    store.x[3] = 0x1122_3344;
    assert_carried(&world, &mut store, 1);
    assert_eq!(memory(&world, AT, 4), 0x1122_3344);
}

#[test]
fn of_aarch32_what_nothing_describes_gets_the_abort_of_a_lost_page() {
    const BIG_ENDIAN: u64 = 1 << 9;
    let world = world();
    put(&world, AT, 4, 0x8877_6655);
    // The word there would be a load in A64: it is not read.
    let code = &world.hypervisor.platform.memory;
    code.write(RAM[0].get() + CODE, 4, LDR.into());
    let mut other = user(FAULT, AT);
    let mut swapped = user(FAULT | esr::ISV | 2 << 22 | 3 << 16, AT);
    swapped.state.pstate |= BIG_ENDIAN;
    for cpu in [&mut other, &mut swapped] {
        let before = cpu.x;
        assert_eq!(world.synchronous(0, cpu), Next::Resume);
        let exception = cpu.exception();
        // An abort from a lower level, to the vector of those in AArch32.
        assert_eq!(exception.esr_el1, esr_el1(0x24, 0x10));
        assert_eq!(exception.pc & 0x7ff, 0x600);
        assert_eq!(exception.far_el1, Some(VA + DEVICE_AT[0] + AT));
        assert_eq!(cpu.x, before);
    }
    assert_eq!(carried(&world), 0);
}
