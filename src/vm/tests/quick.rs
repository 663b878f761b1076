//! The quick way through an exit does what the thorough one does, or nothing.

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, FakeMachine, K4, M2, VA, World, esr};
use crate::addr::{Ipa, PaRange};
use crate::ras::esr::class;
use crate::ras::event::Origin;
use crate::ras::pipeline::{Injection, Occasion};
use crate::stage2::HoleOutcome;
use crate::vm::config::{DISTRIBUTOR, UART};
use crate::vm::exit::{Exit, Next};
use crate::vm::hypervisor::StopReason;
use crate::vm::quick::Handled;
use proptest::prelude::*;

/// A load of 32 bits to x3, by a translation fault of level 3.
const LOAD: u64 = esr::of(
    class::DATA_ABORT_LOWER,
    1 << 24 | 0b10 << 22 | 3 << 16 | 0b111,
);

/// A fetch, by a translation fault of level 3.
const FETCH: u64 = esr::of(class::INSTRUCTION_ABORT_LOWER, 0b111);

/// Registers that have no side effect, and no device.
const ADDRESSES: &[u64] = &[0x0800_0008, 0x0900_0018, 0x4000_0000, 0];

fn exit<'a>(world: &'a World, cpu: &'a mut FakeCpu) -> Exit<'a, FakeMachine, FakeCpu> {
    let vm = world.vm(0);
    Exit {
        hypervisor: &world.hypervisor,
        vm,
        vcpu: &vm.vcpus[0],
        cpu,
    }
}

fn quick(world: &World, cpu: &mut FakeCpu) -> Handled {
    exit(world, cpu).quick()
}

/// A CPU that loads from this address.
fn load(address: u64) -> FakeCpu {
    let mut cpu = FakeCpu::new(LOAD);
    cpu.far = address;
    cpu.hpfar = address >> 12 << 4;
    cpu
}

/// What a guest can see of it.
fn seen(cpu: &FakeCpu) -> ([u64; 31], u64, usize) {
    (cpu.x, cpu.state.pc, cpu.delivered.len())
}

#[test]
fn what_is_frequent_goes_the_quick_way() {
    let world = World::new();
    let hvc = esr::of(class::HVC64, 0);
    let id_aa64pfr0_to_x5 = esr::of(class::SYS64, 3 << 20 | 4 << 1 | 5 << 5 | 1);
    for mut cpu in [
        FakeCpu::new(hvc),
        FakeCpu::new(id_aa64pfr0_to_x5),
        load(DISTRIBUTOR.0.get() + 4),
        load(UART.0.get() + 0x18),
    ] {
        let mut thorough = cpu.clone();
        assert_eq!(quick(&world, &mut cpu), Handled::Request, "{cpu:#x?}");
        assert_eq!(world.thoroughly(0, &mut thorough), Next::Resume);
        assert_eq!(seen(&cpu), seen(&thorough));
    }
}

#[test]
fn nothing_is_done_for_a_vm_that_is_stopped() {
    let world = World::new();
    world.hypervisor.stop(world.vm(0), StopReason::Killed);
    let mut cpu = load(DISTRIBUTOR.0.get() + 4);
    let before = seen(&cpu);
    assert_eq!(quick(&world, &mut cpu), Handled::No);
    assert_eq!(seen(&cpu), before);
}

/// Of two worlds in which the page of `DEVICE_AT[0]` is a hole, and `large` too, which is more than a page.
fn worlds(large: u64) -> [World; 2] {
    [World::new(), World::new()].map(|world| {
        let occasion = Occasion {
            origin: Origin::Injected,
            cpu: 0,
            consumer: None,
        };
        let range = PaRange::new(DEVICE, K4).unwrap();
        let ras = &world.hypervisor.ras;
        ras.inject(
            &occasion,
            range,
            Injection::Optional,
            None,
            &world.hypervisor,
        );
        assert!(world.is_hole(0, DEVICE_AT[0]));
        let mut map = world.vm(0).stage2.lock();
        let dropped = map.drop_block(Ipa::new(large)).unwrap();
        assert!(matches!(dropped, HoleOutcome::Dropped(_)));
        drop(map);
        world
    })
}

#[test]
fn what_is_lost_is_told_on_the_quick_way_and_nothing_else_that_is_not_mapped() {
    let large = DEVICE_AT[0] + M2;
    let [one, other] = worlds(large);
    for (address, esr, handled) in [
        (DEVICE_AT[0] + 8, LOAD, Some(Next::Resume)),
        (DEVICE_AT[0] + 8, LOAD | 1 << 7, Some(Next::Resume)),
        (DEVICE_AT[0] + 8, LOAD & !(1 << 24), Some(Next::Resume)),
        (DEVICE_AT[0] + 8, FETCH, Some(Next::Resume)),
        (
            DEVICE_AT[0] + 8,
            esr::data(esr::EXTERNAL),
            Some(Next::Resume),
        ),
        (large, LOAD, None),
        (0, LOAD, None),
        (DEVICE_AT[0] + K4, esr::data(0b1111), None),
    ] {
        let mut cpu = FakeCpu::new(esr);
        cpu.far = VA + address;
        cpu.hpfar = address >> 12 << 4;
        let mut thorough = cpu.clone();
        assert_eq!(quick(&one, &mut cpu), Handled::PerhapsLost);
        assert_eq!(seen(&cpu), seen(&thorough));
        assert_eq!(
            exit(&one, &mut cpu).memory_error(),
            handled,
            "{address:#x} {esr:#x}"
        );
        if handled.is_none() {
            assert_eq!(seen(&cpu), seen(&thorough));
            continue;
        }
        assert_eq!(other.thoroughly(0, &mut thorough), Next::Resume);
        assert_eq!(cpu.delivered, thorough.delivered);
        assert_eq!(one.counters(), other.counters());
        let [streak, expected] = [&one, &other].map(|world| world.vm(0).vcpus[0].streak.count());
        assert_eq!(streak, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_it_is_both_ways_agree_or_the_quick_one_declines(
        class in proptest::sample::select(&[class::HVC64, class::SMC64, class::SYS64, class::DATA_ABORT_LOWER, class::UNKNOWN][..]),
        iss in 0_u64..1 << 25,
        function in proptest::sample::select(&[0_u64, 0x8400_0000, 0x8400_000a, 0xc400_0004, 0xffff_ffff_8000_0000][..]),
        address in proptest::sample::select(ADDRESSES),
    ) {
        // Only translation faults: the others are memory errors, which need a record.
        let iss = if class == class::DATA_ABORT_LOWER { iss & !0x3f | 0b0111 } else { iss };
        let (one, other) = (World::new(), World::new());
        let mut cpu = load(address);
        cpu.esr = esr::of(class, iss);
        cpu.x[0] = function;
        let before = seen(&cpu);
        let mut thorough = cpu.clone();
        match quick(&one, &mut cpu) {
            Handled::No | Handled::PerhapsLost => prop_assert_eq!(seen(&cpu), before),
            Handled::Request => {
                prop_assert_eq!(other.thoroughly(0, &mut thorough), Next::Resume);
                prop_assert_eq!(seen(&cpu), seen(&thorough));
            }
        }
    }
}
