//! How VMs end, and that the others do not notice.

use super::fake::{DEVICE, DEVICE_AT, FakeCpu, RAM_AT, World, esr};
use crate::addr::Pa;
use crate::ras::contain::AddressSpaces;
use crate::ras::esr::class;
use crate::vm::exit::{Arrived, Exit, Next};
use crate::vm::hypervisor::StopReason;
use crate::vm::vcpu::Power;

const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const SEA: u64 = esr::data(esr::EXTERNAL);

fn call(world: &World, who: (usize, usize), function: u64) -> Next {
    let mut cpu = FakeCpu::new(esr::of(class::HVC64, 0));
    cpu.x[0] = function;
    world.exit(who, &mut cpu, Exit::synchronous)
}

fn interrupt(world: &World, who: (usize, usize)) -> Next {
    world.exit(who, &mut FakeCpu::new(0), |exit| {
        exit.interrupt(Arrived::default())
    })
}

/// VM 0 is stopped because a table of its own was lost.
fn with_lost_table() -> World {
    let world = World::new();
    let root = world.lose_root_table(0);
    assert!(world.firmware.report(root));
    assert_eq!(world.sea(0, SEA + 7, DEVICE_AT[0]).0, Next::Park);
    world.kicks();
    world
}

#[test]
fn turning_off_kicks_the_vms_own_cpus_once_and_parks_them() {
    let world = World::new();
    assert_eq!(call(&world, (0, 0), SYSTEM_OFF), Next::Park);
    assert_eq!(world.kicks(), [0, 1]);
    assert_eq!(interrupt(&world, (0, 1)), Next::Park);
    assert!(world.vm(0).vcpus.iter().all(|it| it.power() == Power::Off));
    // The other vCPU had the same idea.
    assert_eq!(call(&world, (0, 1), SYSTEM_OFF), Next::Park);
    assert!(world.kicks().is_empty());
    assert!(!world.hypervisor.is_idle());
}

#[test]
fn an_interrupt_of_a_vm_that_runs_disturbs_nothing() {
    let world = World::new();
    assert_eq!(call(&world, (0, 0), SYSTEM_OFF), Next::Park);
    assert_eq!(interrupt(&world, (1, 0)), Next::Resume);
    assert_eq!(world.vm(1).vcpus[0].power(), Power::On);
}

#[test]
fn the_last_vm_ends_the_machine() {
    let world = World::new();
    assert_eq!(call(&world, (1, 1), SYSTEM_OFF), Next::Park);
    assert_eq!(call(&world, (0, 0), SYSTEM_OFF), Next::Halt);
    assert!(world.hypervisor.is_idle());
    assert_eq!(interrupt(&world, (0, 1)), Next::Halt);
}

#[test]
fn a_reset_starts_the_first_vcpu_again_when_the_last_one_is_off() {
    let world = World::new();
    assert_eq!(call(&world, (0, 1), SYSTEM_RESET), Next::Park);
    assert!(world.vm(0).is_stopped());
    assert_eq!(interrupt(&world, (0, 0)), Next::Park);
    assert!(!world.vm(0).is_stopped());
    let power = [0, 1].map(|at| world.vm(0).vcpus[at].power());
    assert_eq!(power, [Power::OnPending, Power::Off]);
    assert_eq!(interrupt(&world, (1, 0)), Next::Resume, "the other VM");
}

#[test]
fn of_several_reasons_the_first_counts_and_the_vm_is_counted_out_once() {
    let world = World::new();
    let hypervisor = &world.hypervisor;
    assert!(hypervisor.stop(world.vm(0), StopReason::Killed));
    assert!(!hypervisor.stop(world.vm(0), StopReason::Off));
    assert!(!hypervisor.stop(world.vm(0), StopReason::Reset));
    assert!(!hypervisor.is_idle());
    assert!(hypervisor.stop(world.vm(1), StopReason::Off));
    assert!(hypervisor.is_idle());
}

#[test]
fn the_map_of_a_vm_that_lost_a_table_is_not_looked_at_when_it_stops() {
    // The tables bring the test down if they are read.
    let world = with_lost_table();
    assert!(world.vm(0).is_stopped());
}

#[test]
fn nor_is_it_when_another_vm_loses_a_page_of_memory_that_both_map() {
    let world = with_lost_table();
    let bad = 0x6000;
    assert!(world.firmware.report(Pa::new(DEVICE.get() + bad)));
    assert_eq!(world.sea(1, SEA, DEVICE_AT[1] + bad).0, Next::Resume);
    assert!(world.is_hole(1, DEVICE_AT[1] + bad));
}

#[test]
fn nor_is_it_for_what_its_vcpus_want_before_they_notice() {
    let world = with_lost_table();
    let fault = esr::data(esr::TRANSLATION);
    for syndrome in [SEA, fault, esr::data(esr::TLB_CONFLICT)] {
        assert_eq!(
            world.fault(0, syndrome, RAM_AT).0,
            Next::Park,
            "{syndrome:#x}"
        );
    }
    let mut cpu = FakeCpu::new(esr::of(class::HVC64, 0));
    (cpu.x[0], cpu.x[1], cpu.x[2]) = (0xc400_0003, 1, RAM_AT);
    assert_eq!(world.exit((0, 1), &mut cpu, Exit::synchronous), Next::Park);
    let mut cpu = FakeCpu::new(esr::serror(0b011 << 10 | 0x11));
    assert_eq!(world.exit((0, 1), &mut cpu, Exit::serror), Next::Park);
    assert!(world.kicks().is_empty());
}

#[test]
fn a_vm_whose_map_is_found_damaged_while_it_consumes_does_not_go_on() {
    let world = World::new();
    world.damage_device_entry(0);
    assert!(world.firmware.report(DEVICE));
    let (next, _) = world.sea(0, SEA, DEVICE_AT[0]);
    assert_eq!(next, Next::Park);
    assert!(world.vm(0).is_stopped());
    assert!(world.is_hole(1, DEVICE_AT[1]));
    assert_eq!(world.counters().stopped_vms, 1);
}

#[test]
fn a_vm_whose_map_is_found_damaged_by_another_is_kicked_out_of_its_guests() {
    let world = World::new();
    world.damage_device_entry(1);
    assert!(world.firmware.report(DEVICE));
    let (next, cpu) = world.sea(0, SEA, DEVICE_AT[0]);
    assert_eq!((next, cpu.delivered.len()), (Next::Resume, 1));
    assert_eq!(world.kicks(), [2, 3]);
    assert_eq!(interrupt(&world, (1, 0)), Next::Park);
    assert_eq!(world.counters().stopped_vms, 1);
}

#[test]
fn vms_are_found_by_their_vmid_and_unknown_ones_have_no_map() {
    use crate::addr::{Ipa, Vmid};
    use crate::stage2::Suspect;
    let world = World::new();
    let hypervisor = &world.hypervisor;
    for (at, vm) in hypervisor.vms().iter().enumerate() {
        let found = hypervisor.vm(vm.vmid).unwrap();
        assert_eq!(found.name, ["one", "two"][at]);
        assert_eq!(hypervisor.name(vm.vmid), vm.name);
    }
    let unknown = Vmid::new(3).unwrap();
    let suspect = Suspect {
        frame: Pa::new(0),
        is_bad: &|| true,
    };
    assert!(hypervisor.vm(unknown).is_none());
    assert!(
        hypervisor
            .make_hole(unknown, Ipa::new(0), suspect)
            .is_none()
    );
    assert!(!hypervisor.give_up(unknown, &"nobody"));
}
