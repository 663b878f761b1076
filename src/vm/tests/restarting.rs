//! VMs that stop while they start, and start while they stop.

use super::fake::{
    DEVICE, DEVICE_AT, DTB_AT, FakeCpu, PHYSICAL_TIMER_WIRE, RAM_AT, VIRTUAL_TIMER_WIRE, World, esr,
};
use crate::vm::exit::{Arrived, Next};
use crate::vm::hypervisor::{Rest, State, StopReason};
use crate::vm::vcpu::Power;
use crate::vm::vgic::{PHYSICAL_TIMER, VIRTUAL_TIMER};

fn park(world: &World, who: (usize, usize)) -> Next {
    world.exit(who, &mut FakeCpu::new(0), |exit| {
        exit.interrupt(Arrived::default())
    })
}

fn rest(world: &World, (vm, vcpu): (usize, usize)) -> Rest {
    let vm = world.vm(vm);
    world.hypervisor.rest(vm, &vm.vcpus[vcpu])
}

fn power(world: &World, vm: usize) -> [Power; 2] {
    [0, 1].map(|at| world.vm(vm).vcpus[at].power())
}

/// VM 0's vCPU 1 is off, and was asked to start.
fn with_one_pending() -> World {
    let world = World::new();
    let vcpu = &world.vm(0).vcpus[1];
    vcpu.turn_off();
    vcpu.turn_on(0x1234_0000, 7).unwrap();
    world
}

#[test]
fn a_vcpu_that_was_asked_to_start_starts_once() {
    let world = with_one_pending();
    assert_eq!(rest(&world, (0, 1)), Rest::Start((0x1234_0000, 7)));
    assert_eq!(power(&world, 0), [Power::On, Power::On]);
    world.vm(0).vcpus[1].turn_off();
    assert_eq!(rest(&world, (0, 1)), Rest::Sleep);
}

#[test]
fn a_start_that_has_not_happened_is_called_off_by_a_reset_which_goes_on() {
    let world = with_one_pending();
    assert!(world.hypervisor.reset(world.vm(0)));
    // The other one is off first: the start that is to be called off holds the reset up.
    assert_eq!(park(&world, (0, 0)), Next::Park);
    assert_eq!(world.vm(0).state(), State::Resetting);
    assert_eq!(power(&world, 0), [Power::Off, Power::OnPending]);
    // Its CPU calls it off, and carries the reset out: the first vCPU starts, not this one.
    assert_eq!(rest(&world, (0, 1)), Rest::Sleep);
    assert_eq!(world.vm(0).state(), State::Running);
    assert_eq!(power(&world, 0), [Power::OnPending, Power::Off]);
    assert_eq!(rest(&world, (0, 0)), Rest::Start((RAM_AT, DTB_AT)));
}

#[test]
fn the_same_where_the_pending_one_is_asked_first() {
    let world = with_one_pending();
    assert!(world.hypervisor.reset(world.vm(0)));
    assert_eq!(rest(&world, (0, 1)), Rest::Sleep);
    assert_eq!(power(&world, 0), [Power::On, Power::Off]);
    assert_eq!(world.vm(0).state(), State::Resetting);
    assert_eq!(park(&world, (0, 0)), Next::Park);
    assert_eq!(world.vm(0).state(), State::Running);
    assert_eq!(power(&world, 0), [Power::OnPending, Power::Off]);
}

#[test]
fn a_reset_is_carried_out_once_by_whoever_comes_last() {
    let world = World::new();
    assert!(world.hypervisor.reset(world.vm(0)));
    assert!(!world.hypervisor.reset(world.vm(0)), "it is under way");
    assert_eq!(park(&world, (0, 1)), Next::Park);
    assert_eq!(park(&world, (0, 0)), Next::Park);
    assert_eq!(rest(&world, (0, 0)), Rest::Start((RAM_AT, DTB_AT)));
    // Nobody waits for a reset any more.
    world.vm(0).vcpus[0].turn_off();
    world.hypervisor.settle(world.vm(0));
    assert_eq!(power(&world, 0), [Power::Off, Power::Off]);
}

#[test]
fn a_vm_that_is_killed_before_its_reset_is_not_reset() {
    let world = World::new();
    assert!(world.hypervisor.reset(world.vm(0)));
    assert!(world.hypervisor.stop(world.vm(0), StopReason::Killed));
    for vcpu in [0, 1] {
        assert_eq!(park(&world, (0, vcpu)), Next::Park);
    }
    assert_eq!(power(&world, 0), [Power::Off, Power::Off]);
    assert_eq!(world.vm(0).state(), State::Killed);
    assert!(!world.hypervisor.reset(world.vm(0)));
    assert!(!world.hypervisor.revive(world.vm(0)));
}

#[test]
fn the_last_vm_ends_the_machine_also_where_its_only_vcpu_has_not_started() {
    let world = World::new();
    assert!(world.hypervisor.stop(world.vm(1), StopReason::Off));
    for vcpu in [0, 1] {
        assert_eq!(park(&world, (1, vcpu)), Next::Park);
        world.vm(0).vcpus[vcpu].turn_off();
    }
    world.vm(0).vcpus[0].turn_on(RAM_AT, 0).unwrap();
    assert_eq!(rest(&world, (1, 0)), Rest::Sleep);
    assert!(world.hypervisor.stop(world.vm(0), StopReason::Off));
    assert_eq!(rest(&world, (0, 0)), Rest::Halt);
    assert_eq!(power(&world, 0), [Power::Off, Power::Off]);
}

#[test]
fn a_vm_that_is_off_starts_again_and_counts_again() {
    let world = World::new();
    let (one, hypervisor) = (world.vm(0), &world.hypervisor);
    assert!(!hypervisor.revive(one), "it runs");
    assert!(hypervisor.stop(one, StopReason::Off));
    assert_eq!(*hypervisor.platform.off.lock().unwrap(), [0]);
    assert_eq!(park(&world, (0, 1)), Next::Park);
    world.kicks();
    // One of its CPUs has not noticed yet that it was off: that one carries it out.
    assert!(hypervisor.revive(one));
    assert_eq!(world.kicks(), [0]);
    assert!(hypervisor.platform.off.lock().unwrap().is_empty());
    assert_eq!(park(&world, (0, 0)), Next::Park);
    assert_eq!(rest(&world, (0, 0)), Rest::Start((RAM_AT, DTB_AT)));
    // It is one of two again.
    assert!(hypervisor.stop(world.vm(1), StopReason::Off));
    assert!(!hypervisor.is_idle());
}

#[test]
fn what_went_bad_while_a_vm_was_off_is_out_of_its_map_before_it_starts() {
    let world = World::new();
    let bad = 0x5000;
    assert!(world.hypervisor.stop(world.vm(1), StopReason::Off));
    for vcpu in [0, 1] {
        assert_eq!(park(&world, (1, vcpu)), Next::Park);
    }
    assert!(
        world
            .firmware
            .report(crate::addr::Pa::new(DEVICE.get() + bad))
    );
    let sea = esr::data(esr::EXTERNAL);
    assert_eq!(world.sea(0, sea, DEVICE_AT[0] + bad).0, Next::Resume);
    assert!(world.is_mapped(1, DEVICE_AT[1] + bad), "nobody looked");
    assert!(world.hypervisor.revive(world.vm(1)));
    assert_eq!(rest(&world, (1, 0)), Rest::Start((RAM_AT, DTB_AT)));
    assert!(world.is_hole(1, DEVICE_AT[1] + bad));
    assert!(world.is_mapped(1, DEVICE_AT[1] + bad + 0x1000));
}

/// A timer's interrupt is active in the machine's GIC until somebody deactivates it: the guest, as a
/// rule. Where that has no time to, Cordon must, or the timer is silent in the next life of the vCPU.
#[test]
fn a_timer_that_fires_while_its_vm_stops_can_fire_again() {
    let timers = [
        (VIRTUAL_TIMER, VIRTUAL_TIMER_WIRE),
        (PHYSICAL_TIMER, PHYSICAL_TIMER_WIRE),
    ];
    for (intid, wire) in timers {
        let world = World::new();
        assert!(world.hypervisor.reset(world.vm(0)));
        let mut cpu = FakeCpu::new(0);
        cpu.interrupts.lines = 1 << intid;
        let arrived = Arrived {
            virtual_timer: intid == VIRTUAL_TIMER,
            physical_timer: intid == PHYSICAL_TIMER,
            ..Arrived::default()
        };
        let next = world.exit((0, 0), &mut cpu, |exit| exit.interrupt(arrived));
        assert_eq!(next, Next::Park);
        assert_eq!(cpu.interrupts.deactivated, [wire]);
    }
}

#[test]
fn nor_is_one_forgotten_that_the_guest_has_not_taken_when_its_vm_stops() {
    let world = World::new();
    let mut cpu = FakeCpu::new(0);
    cpu.interrupts.lines = 1 << VIRTUAL_TIMER;
    let arrived = Arrived {
        virtual_timer: true,
        ..Arrived::default()
    };
    let next = world.exit((0, 0), &mut cpu, |exit| exit.interrupt(arrived));
    assert_eq!(next, Next::Resume);
    assert!(cpu.interrupts.deactivated.is_empty(), "it is the guest's");
    assert!(world.hypervisor.stop(world.vm(0), StopReason::Off));
    let next = world.exit((0, 0), &mut cpu, |exit| exit.interrupt(Arrived::default()));
    assert_eq!(next, Next::Park);
    assert_eq!(cpu.interrupts.deactivated, [VIRTUAL_TIMER_WIRE]);
}
