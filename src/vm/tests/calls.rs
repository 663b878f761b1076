//! HVC, SMC and what else a guest can trap on.

use std::sync::Arc;
use std::vec::Vec;

use super::fake::{DEVICE_AT, FakeCpu, Hook, PC, RAM_AT, VBAR, World, esr, esr_el1};
use crate::ras::esr::class;
use crate::vm::exit::{Exit, Next};
use crate::vm::vcpu::Power;

const HVC: u64 = esr::of(class::HVC64, 0);
const SMC: u64 = esr::of(class::SMC64, 0);

const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const CPU_ON_32: u64 = 0x8400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;

const SUCCESS: i64 = 0;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INVALID_ADDRESS: i64 = -9;

/// What VM 0's vCPU 0 finds in x0.
fn hvc(world: &World, function: u64, args: [u64; 3]) -> i64 {
    let mut cpu = FakeCpu::new(HVC);
    cpu.x[0] = function;
    cpu.x[1..4].copy_from_slice(&args);
    let before = cpu.x;
    assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
    assert_eq!(cpu.x[1..], before[1..], "x1 to x30 are kept");
    assert_eq!(cpu.state.pc, PC, "HVC has been stepped over by itself");
    cpu.x[0].cast_signed()
}

/// A world in which VM 0's vCPU 1 is off.
fn with_one_off() -> World {
    let world = World::new();
    world.vm(0).vcpus[1].turn_off();
    world
}

#[test]
fn each_function_that_only_answers_gives_its_answer() {
    let world = World::new();
    let answers = [
        (0x8400_0000, 0, 0x0001_0001),
        (0x8000_0000, 0, 0x0001_0001),
        (0x8400_0006, 0, 2),
        (0x8400_000a, CPU_ON, SUCCESS),
        (0x8400_000a, 0x8400_000b, NOT_SUPPORTED),
        (0x8000_0001, 0x8000_0000, SUCCESS),
        (0x8000_0001, 0x8000_8000, NOT_SUPPORTED),
    ];
    for (function, argument, answer) in answers {
        assert_eq!(
            hvc(&world, function, [argument, 0, 0]),
            answer,
            "{function:#x}"
        );
    }
}

#[test]
fn only_w0_names_the_function() {
    let world = World::new();
    assert_eq!(hvc(&world, 0xdead_beef_8400_0000, [0; 3]), 0x0001_0001);
}

#[test]
fn unknown_functions_and_the_firmwares_own_are_not_supported() {
    let world = World::new();
    for function in [0, 0x8400_0005, 0xc200_0000, 0xc200_0001, 0xffff_ffff] {
        assert_eq!(
            hvc(&world, function, [0; 3]),
            NOT_SUPPORTED,
            "{function:#x}"
        );
    }
}

#[test]
fn an_smc_is_answered_alike_and_stepped_over() {
    let world = World::new();
    let mut cpu = FakeCpu::new(SMC);
    cpu.x[0] = 0x8400_0000;
    assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
    assert_eq!((cpu.x[0], cpu.state.pc), (0x0001_0001, PC + 4));
}

#[test]
fn other_immediates_are_undefined_at_the_instruction_itself() {
    let world = World::new();
    // HVC has left PC behind itself, a trapped SMC has not (Arm ARM D1.3.5).
    for (class, at) in [(class::HVC64, PC - 4), (class::SMC64, PC)] {
        for immediate in [1, 0xffff] {
            let mut cpu = FakeCpu::new(esr::of(class, immediate));
            cpu.x[0] = 0x8400_0008;
            assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
            assert_eq!(cpu.exception().esr_el1, esr_el1(0, 0));
            assert_eq!(cpu.exception().elr_el1, at, "{class:#x}");
            assert_eq!(cpu.exception().pc, VBAR + 0x200);
            assert_eq!(cpu.exception().far_el1, None);
        }
    }
    assert!(!world.vm(0).is_stopped());
}

#[test]
fn what_is_trapped_without_being_emulated_is_undefined() {
    let traps = [class::SYS64, class::FP, class::UNKNOWN, 0x19, 0x3f];
    let world = World::new();
    for class in traps {
        let mut cpu = FakeCpu::new(esr::of(class, 0x1f_ffff));
        assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
        assert_eq!(cpu.exception().esr_el1, esr_el1(0, 0), "{class:#x}");
        assert_eq!(cpu.exception().elr_el1, PC);
    }
}

#[test]
fn cpu_on_starts_the_vcpu_where_it_says_and_kicks_its_cpu() {
    let world = with_one_off();
    let start = [1, RAM_AT + 0x40, 0x77];
    assert_eq!(hvc(&world, AFFINITY_INFO, [1, 0, 0]), 1);
    assert_eq!(hvc(&world, CPU_ON, start), SUCCESS);
    assert_eq!(world.kicks(), [1]);
    assert_eq!(hvc(&world, AFFINITY_INFO, [1, 0, 0]), 2);
    assert_eq!(hvc(&world, CPU_ON, start), ON_PENDING);
    assert_eq!(
        world.vm(0).vcpus[1].take_start(),
        Some((start[1], start[2]))
    );
    assert_eq!(hvc(&world, AFFINITY_INFO, [1, 0, 0]), 0);
    assert_eq!(hvc(&world, CPU_ON, start), ALREADY_ON);
    assert!(world.kicks().is_empty());
}

#[test]
fn cpu_on_counts_cpus_of_the_pcpu_that_is_pinned() {
    let world = World::new();
    world.vm(1).vcpus[1].turn_off();
    let mut cpu = FakeCpu::new(HVC);
    (cpu.x[0], cpu.x[1], cpu.x[2]) = (CPU_ON, 1, RAM_AT);
    assert_eq!(world.synchronous(1, &mut cpu), Next::Resume);
    assert_eq!((cpu.x[0], world.kicks().as_slice()), (0, [3].as_slice()));
}

#[test]
fn cpu_on_refuses_cpus_and_entries_that_are_not_there() {
    let world = with_one_off();
    for target in [2, 0x100, 1 << 31 | 1, 1 << 32 | 1, u64::MAX] {
        assert_eq!(hvc(&world, CPU_ON, [target, RAM_AT, 0]), INVALID_PARAMETERS);
    }
    let hole = DEVICE_AT[0] + 0x5000;
    let _ = world.sea(0, esr::data(esr::EXTERNAL), hole);
    for entry in [
        0,
        0x0900_0000,
        RAM_AT + 2,
        RAM_AT + 1,
        1 << 45,
        u64::MAX - 3,
        hole,
    ] {
        assert_eq!(
            hvc(&world, CPU_ON, [1, entry, 0]),
            INVALID_ADDRESS,
            "{entry:#x}"
        );
    }
    assert_eq!(world.vm(0).vcpus[1].power(), Power::Off);
    assert!(world.kicks().is_empty());
}

#[test]
fn the_32_bit_cpu_on_ignores_upper_halves() {
    let world = with_one_off();
    let high = 0xffff_ffff_0000_0000;
    assert_eq!(
        hvc(&world, CPU_ON_32, [high | 1, high | RAM_AT, high | 7]),
        SUCCESS
    );
    assert_eq!(world.vm(0).vcpus[1].take_start(), Some((RAM_AT, 7)));
}

#[test]
fn of_cpus_that_turn_one_on_at_once_one_succeeds() {
    let rounds = if cfg!(miri) { 2 } else { 20 };
    for _ in 0..rounds {
        let world = with_one_off();
        let turn_on = |context| hvc(&world, CPU_ON, [1, RAM_AT, context]);
        let mut answers: Vec<i64> = std::thread::scope(|scope| {
            let threads = [1, 2, 3].map(|context| scope.spawn(move || turn_on(context)));
            threads.map(|thread| thread.join().unwrap()).to_vec()
        });
        answers.sort_unstable();
        assert_eq!(answers, [ON_PENDING, ON_PENDING, SUCCESS]);
        assert_eq!(world.kicks(), [1]);
    }
}

#[test]
fn affinity_info_knows_level_0_and_the_vms_own_cpus() {
    let world = World::new();
    assert_eq!(hvc(&world, AFFINITY_INFO, [0, 0, 0]), 0);
    assert_eq!(hvc(&world, 0x8400_0004, [0xffff_ffff_0000_0001, 0, 0]), 0);
    for args in [[0, 1, 0], [2, 0, 0], [0, u64::MAX, 0], [u64::MAX, 0, 0]] {
        assert_eq!(hvc(&world, AFFINITY_INFO, args), INVALID_PARAMETERS);
    }
}

#[test]
fn cpu_off_parks_the_vcpu_until_it_is_turned_on_again() {
    let world = World::new();
    let mut cpu = FakeCpu::new(HVC);
    cpu.x[0] = CPU_OFF;
    assert_eq!(world.exit((0, 1), &mut cpu, Exit::synchronous), Next::Park);
    assert_eq!(world.vm(0).vcpus[1].power(), Power::Off);
    assert!(!world.vm(0).is_stopped());
    assert_eq!(hvc(&world, CPU_ON, [1, RAM_AT, 0]), SUCCESS);
}

#[test]
fn a_vm_whose_last_vcpu_goes_off_has_turned_itself_off() {
    let world = World::new();
    for (vm, ends) in [(0, Next::Park), (1, Next::Halt)] {
        let mut cpu = FakeCpu::new(HVC);
        cpu.x[0] = CPU_OFF;
        assert_eq!(world.exit((vm, 0), &mut cpu, Exit::synchronous), Next::Park);
        assert!(!world.vm(vm).is_stopped());
        assert_eq!(world.exit((vm, 1), &mut cpu, Exit::synchronous), ends);
        assert!(world.vm(vm).is_stopped());
    }
}

#[test]
fn a_vcpu_that_is_being_turned_on_keeps_its_vm_alive() {
    let world = with_one_off();
    assert_eq!(hvc(&world, CPU_ON, [1, RAM_AT, 0]), SUCCESS);
    let mut cpu = FakeCpu::new(HVC);
    cpu.x[0] = CPU_OFF;
    assert_eq!(world.synchronous(0, &mut cpu), Next::Park);
    assert!(!world.vm(0).is_stopped());
}

/// Whoever reads that it is off may turn it on at once. So it is on until all else has been done, or its
/// going off would overtake its new start.
#[test]
fn a_vcpu_is_on_until_its_state_has_been_put_away() {
    let world = Arc::new(World::new());
    let mut cpu = FakeCpu::new(HVC);
    cpu.x[0] = CPU_OFF;
    let (silenced, heard) = std::sync::mpsc::channel();
    let same_world = Arc::clone(&world);
    cpu.interrupts.when_silenced = Hook::new(move || {
        let _ = silenced.send(same_world.vm(0).vcpus[1].turn_on(RAM_AT, 5));
    });
    assert_eq!(world.exit((0, 1), &mut cpu, Exit::synchronous), Next::Park);
    assert_eq!(heard.recv(), Ok(Err(Power::On)));
    assert_eq!(world.vm(0).vcpus[1].power(), Power::Off);
}
