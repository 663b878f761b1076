//! Stage-2 faults that are no memory errors, and what is emulated.

use std::vec::Vec;

use super::fake::{DEVICE_AT, FakeCpu, K4, M2, PC, RAM_AT, VBAR, World, esr, esr_el1};
use crate::ras::event::Snapshot;
use crate::vm::exit::Next;

const FAULT: u64 = esr::data(esr::TRANSLATION);
const UART: u64 = 0x0900_0000;
const DR: u64 = 0x00;
const FR: u64 = 0x18;
const IBRD: u64 = 0x24;
const CR: u64 = 0x30;

/// What a bus says where nobody answers.
const BUS: u64 = esr_el1(0x25, 0x10);

/// A load or store of register `rt` that can be emulated: `size` is log2 of its bytes.
const fn access(size: u64, rt: u64) -> u64 {
    FAULT | esr::ISV | size << 22 | rt << 16
}

const X: u64 = 1 << 15;
const SIGNED: u64 = 1 << 21;
const STORE: u64 = esr::WNR;

fn assert_bus_abort(world: &World, (next, cpu): &(Next, FakeCpu)) {
    assert_eq!(*next, Next::Resume);
    assert_eq!(cpu.exception().esr_el1 & !esr::WNR, BUS);
    assert_eq!(cpu.exception().pc, VBAR + 0x200);
    assert_eq!(cpu.exception().elr_el1, PC, "it is not stepped over");
    assert_eq!(world.counters(), Snapshot::default(), "no memory error");
}

/// What a load of `offset` leaves in x5.
fn load(world: &World, syndrome: u64, offset: u64) -> u64 {
    let (next, cpu) = world.fault(0, syndrome | 5 << 16, UART + offset);
    assert_eq!((next, cpu.state.pc), (Next::Resume, PC + 4));
    assert!(cpu.delivered.is_empty());
    cpu.x[5]
}

/// Stores `value` from x5.
fn store(world: &World, size: u64, offset: u64, value: u64) {
    let mut cpu = FakeCpu::new(access(size, 5) | STORE);
    (cpu.far, cpu.hpfar) = (UART + offset, UART >> 12 << 4);
    cpu.x[5] = value;
    assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
    assert_eq!((cpu.state.pc, cpu.x[5]), (PC + 4, value));
}

fn printed(world: &World) -> Vec<(usize, u8)> {
    world.hypervisor.platform.printed.lock().unwrap().clone()
}

#[test]
fn where_there_is_nothing_the_guest_gets_an_external_abort() {
    let nowhere = [
        0,
        UART - 8,
        UART + K4,
        RAM_AT - 1,
        RAM_AT + M2,
        (1 << 40) - 8,
    ];
    let world = World::new();
    for ipa in nowhere {
        for syndrome in [FAULT, FAULT | STORE, access(2, 1), access(3, 31) | STORE] {
            let exit = world.fault(0, syndrome, ipa);
            assert_bus_abort(&world, &exit);
        }
    }
}

#[test]
fn a_fetch_from_nowhere_is_an_instruction_abort() {
    let world = World::new();
    let (_, cpu) = world.fault(0, esr::fetch(esr::TRANSLATION), 0x1000);
    assert_eq!(cpu.exception().esr_el1, esr_el1(0x21, 0x10));
}

#[test]
fn a_load_fills_the_register_as_its_width_and_extension_say() {
    let world = World::new();
    store(&world, 2, IBRD, 0xffff_8080);
    let cases = [
        (access(0, 0), 0x80),
        (access(0, 0) | SIGNED, 0xffff_ff80),
        (access(0, 0) | SIGNED | X, 0xffff_ffff_ffff_ff80),
        (access(1, 0), 0x8080),
        (access(1, 0) | SIGNED, 0xffff_8080),
        (access(1, 0) | SIGNED | X, 0xffff_ffff_ffff_8080),
        (access(2, 0), 0x8080),
        (access(2, 0) | SIGNED | X, 0x8080),
        (access(3, 0) | X, 0x8080),
    ];
    for (syndrome, expected) in cases {
        assert_eq!(load(&world, syndrome, IBRD), expected, "{syndrome:#x}");
    }
}

#[test]
fn a_store_takes_the_bytes_that_its_size_says() {
    let world = World::new();
    for (size, expected) in [(0, 0x88), (1, 0x7788), (2, 0x7788), (3, 0x7788)] {
        store(&world, size, CR, 0);
        store(&world, size, CR, 0x1122_3344_5566_7788);
        assert_eq!(load(&world, access(2, 0), CR), expected, "{size}");
    }
}

#[test]
fn loads_to_xzr_vanish_and_stores_of_xzr_are_zero() {
    let world = World::new();
    store(&world, 2, CR, 0xffff);
    let (_, cpu) = world.fault(0, access(2, 31), UART + CR);
    assert_eq!(cpu.x, FakeCpu::new(0).x);
    let _ = world.fault(0, access(2, 31) | STORE, UART + CR);
    assert_eq!(load(&world, access(2, 0), CR), 0);
}

#[test]
fn every_offset_and_size_of_the_uart_is_emulated_and_misaligned_ones_read_zero() {
    let world = World::new();
    for offset in [1, 2, 3, 0x19, 0xfdf, 0xfe1, 0xff9, 0xfff] {
        for size in 0..4 {
            assert_eq!(load(&world, access(size, 0) | X, offset), 0, "{offset:#x}");
            store(&world, size, offset, u64::MAX);
        }
    }
    assert!(printed(&world).is_empty());
    assert_eq!(load(&world, access(2, 0), 0xfe0), 0x11);
}

#[test]
fn what_a_guest_prints_and_reads_is_its_own_consoles() {
    let world = World::new();
    store(&world, 0, DR, u64::from(b'A'));
    let _ = world.fault(1, access(2, 31) | STORE, UART + DR);
    assert_eq!(printed(&world), [(0, b'A'), (1, 0)]);
    assert_eq!(load(&world, access(2, 0), FR), 0x90);
    world.hypervisor.platform.typed.lock().unwrap().push(b'z');
    // Its FIFO is off: one character fills the receiver.
    assert_eq!(load(&world, access(2, 0), FR), 0xc0);
    assert_eq!(load(&world, access(2, 0), DR), u64::from(b'z'));
}

#[test]
fn what_of_the_uart_cannot_be_emulated_is_an_external_abort() {
    // A load pair, say; and walks and fetches, which have no business there.
    for syndrome in [FAULT, FAULT | STORE, access(2, 1) | esr::S1PTW] {
        let world = World::new();
        let (next, cpu) = world.fault(0, syndrome, UART + DR);
        assert_eq!(next, Next::Resume);
        assert_eq!(cpu.delivered.len(), 1, "{syndrome:#x}");
        assert_eq!(cpu.exception().elr_el1, PC);
        assert!(printed(&world).is_empty());
        assert_eq!(world.counters(), Snapshot::default());
    }
    let world = World::new();
    let (_, cpu) = world.fault(0, esr::fetch(esr::TRANSLATION), UART);
    assert_eq!(cpu.exception().esr_el1, esr_el1(0x21, 0x10));
}

#[test]
fn a_fault_on_what_is_mapped_was_a_split_under_way_and_is_tried_again() {
    let world = World::new();
    for ipa in [RAM_AT, DEVICE_AT[0] + 0x1238] {
        for syndrome in [FAULT, FAULT | esr::S1PTW, esr::fetch(esr::TRANSLATION)] {
            let (next, cpu) = world.fault(0, syndrome, ipa);
            assert_eq!((next, cpu.state.pc), (Next::Resume, PC));
            assert!(cpu.delivered.is_empty());
        }
    }
}

#[test]
fn a_permission_fault_is_not_tried_again() {
    let world = World::new();
    for syndrome in [
        esr::data(esr::PERMISSION),
        esr::data(esr::PERMISSION) | access(2, 0) & !FAULT,
    ] {
        let (next, cpu) = world.fault(0, syndrome, RAM_AT);
        assert_eq!((next, cpu.delivered.len()), (Next::Resume, 1));
        assert_eq!(world.counters(), Snapshot::default());
    }
}

#[test]
fn hpfar_of_a_fault_that_has_none_is_not_followed() {
    let world = World::new();
    // As if some earlier fault had left the UART's page there.
    let (_, cpu) = world.fault(0, esr::data(esr::PERMISSION) | esr::ISV | STORE, UART);
    assert_eq!(cpu.delivered.len(), 1);
    assert!(printed(&world).is_empty());
}

#[test]
fn a_misaligned_access_to_device_memory_is_no_memory_error() {
    let world = World::new();
    let (next, cpu) = world.fault(0, esr::data(0x21), DEVICE_AT[0]);
    assert_eq!(next, Next::Resume);
    let told: Vec<u64> = cpu.delivered.iter().map(|it| it.esr_el1).collect();
    assert_eq!(told, [0x9600_0021]);
    assert_eq!(world.hypervisor.aborts_of(world.vm(0)), 0);
}

#[test]
fn a_tlb_conflict_ends_with_everything_of_the_vm_invalidated() {
    let world = World::new();
    let (next, cpu) = world.fault(0, esr::data(esr::TLB_CONFLICT), RAM_AT);
    assert_eq!(next, Next::Resume);
    assert!(cpu.delivered.is_empty());
    assert_eq!(world.tlbs[0].counts(), [0, 0, 1]);
    assert_eq!(world.tlbs[1].counts(), [0, 0, 0]);
}

#[test]
fn a_damaged_map_stops_its_vm() {
    let world = World::new();
    world.damage_device_entry(0);
    let (next, cpu) = world.fault(0, FAULT, DEVICE_AT[0]);
    assert_eq!(next, Next::Park);
    assert!(cpu.delivered.is_empty());
    assert!(world.vm(0).is_stopped() && !world.vm(1).is_stopped());
}
