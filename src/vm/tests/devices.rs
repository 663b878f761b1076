//! Devices of the machine that VMs were given: whose interrupts are whose, and what becomes of a device
//! whose VM does not run.

use super::fake::{FakeCpu, INTERRUPTS, REGISTERS, World, esr};
use crate::addr::Pa;
use crate::ras::esr::class;
use crate::vm::exit::{Arrived, DeviceInterrupts, Exit, Next};
use crate::vm::hypervisor::StopReason;
use crate::vm::vgic::Frame;
use std::vec::Vec;

const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
/// GICD_ISPENDR1 and 2, and the device's bit in the first.
const PENDING: u64 = 0x204;
const BIT: u64 = 1 << 16;

fn call(world: &World, who: (usize, usize), function: u64) -> Next {
    let mut cpu = FakeCpu::new(esr::of(class::HVC64, 0));
    cpu.x[0] = function;
    world.exit(who, &mut cpu, Exit::synchronous)
}

fn interrupt(world: &World, who: (usize, usize), devices: &[u16]) -> Next {
    let mut arrived = Arrived::default();
    for device in devices {
        assert!(arrived.devices.push(*device));
    }
    world.exit(who, &mut FakeCpu::new(0), |exit| exit.interrupt(arrived))
}

fn rested(world: &World) -> Vec<Pa> {
    std::mem::take(&mut *world.hypervisor.platform.rested.lock().unwrap())
}

fn refused(world: &World) -> Vec<u16> {
    std::mem::take(&mut *world.hypervisor.platform.refused.lock().unwrap())
}

#[test]
fn a_few_interrupts_are_taken_at_once() {
    let mut few = DeviceInterrupts::default();
    for intid in 0..DeviceInterrupts::MAX as u16 {
        assert!(!few.is_full() && few.push(100 + intid));
    }
    assert!(few.is_full() && !few.push(99));
    assert!(few.iter().eq(100..108));
}

#[test]
fn an_interrupt_is_its_own_vms_and_what_is_nobodys_is_switched_off() {
    let world = World::new();
    assert_eq!(interrupt(&world, (0, 0), &INTERRUPTS), Next::Resume);
    assert_eq!(refused(&world), [INTERRUPTS[1]]);
    let pending = |vm: usize| {
        let mut cpu = super::fake::Interrupts::default();
        let place = (Frame::Distributor, PENDING, 4);
        world
            .vm(vm)
            .vgic
            .read(0, place, &mut cpu, &super::fake::Nobody)
    };
    assert_eq!(pending(0) & BIT, BIT);
    assert_eq!(interrupt(&world, (0, 0), &[1000]), Next::Resume);
    assert_eq!(refused(&world), [1000]);
}

#[test]
fn a_device_comes_to_rest_when_the_last_vcpu_is_off_and_once_only() {
    let world = World::new();
    assert_eq!(call(&world, (0, 0), SYSTEM_OFF), Next::Park);
    assert_eq!(rested(&world), [], "a vCPU may be driving it");
    assert_eq!(interrupt(&world, (0, 1), &[]), Next::Park);
    assert_eq!(rested(&world), [REGISTERS[0]]);
    world.hypervisor.settle(world.vm(0));
    assert_eq!(rested(&world), []);
}

#[test]
fn so_it_does_where_the_vm_is_killed() {
    let world = World::new();
    assert!(world.hypervisor.stop(world.vm(1), StopReason::Killed));
    for vcpu in [0, 1] {
        assert_eq!(interrupt(&world, (1, vcpu), &[]), Next::Park);
    }
    assert_eq!(rested(&world), [REGISTERS[1]]);
}

#[test]
fn each_reset_of_a_vm_is_one_of_its_device() {
    let world = World::new();
    for _ in 0..2 {
        assert_eq!(call(&world, (0, 1), SYSTEM_RESET), Next::Park);
        assert_eq!(interrupt(&world, (0, 0), &[INTERRUPTS[0]]), Next::Park);
        assert_eq!(rested(&world), [REGISTERS[0]]);
        assert_eq!(refused(&world), []);
        assert!(!world.vm(0).is_stopped());
        for vcpu in &world.vm(0).vcpus {
            let _ = vcpu.turn_on(0, 0);
            assert!(vcpu.take_start().is_some());
        }
    }
}
