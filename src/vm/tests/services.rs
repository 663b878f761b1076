//! What a guest and the operator may ask for.

use super::fake::{
    CORDONS, DEVICE, DEVICE_AT, EL1H, FakeCpu, K4, PC, RAM, RAM_AT, VA, VBAR, World, esr,
};
use crate::addr::{Ipa, Pa, PaRange, Vmid};
use crate::ras::esr::class;
use crate::ras::event::Stage;
use crate::ras::filter::FilterError;
use crate::ras::loops::{Action, Policy};
use crate::ras::pipeline::Injection;
use crate::vm::exit::Next;
use crate::vm::hypercall::{CALLS, MAX_INJECTED, MAX_INJECTED_EVER, status};
use crate::vm::injection::{InjectError, Target};
use crate::vm::services::capability::{ABORTS, CONTAINED, RECORDS, REMEMBERED};

const CAPABILITIES: u64 = 0xc600_0000;
const INJECT: u64 = 0xc600_0001;
const QUERY: u64 = 0xc600_0002;
const ACKNOWLEDGE: u64 = 0xc600_0003;
const COUNTERS: u64 = 0xc600_0005;

const CE: u64 = 0;
const AO: u64 = 1;
const AR: u64 = 2;

/// x0 to x3 after a call by a VM's vCPU 0 that returns.
fn call(world: &World, vm: usize, function: u64, args: [u64; 3]) -> [u64; 4] {
    let mut cpu = FakeCpu::new(esr::of(class::HVC64, 0));
    cpu.x[0] = function;
    cpu.x[1..4].copy_from_slice(&args);
    assert_eq!(world.synchronous(vm, &mut cpu), Next::Resume);
    assert!(cpu.delivered.is_empty());
    [cpu.x[0], cpu.x[1], cpu.x[2], cpu.x[3]]
}

fn refused(status: i64) -> [u64; 4] {
    [status.cast_unsigned(), 0, 0, 0]
}

#[test]
fn each_capability_is_told_by_itself() {
    use crate::ras::capabilities::Capabilities;
    let own = CONTAINED | ABORTS | REMEMBERED;
    for capability in Capabilities::all().iter().chain([Capabilities::empty()]) {
        let mut world = World::new();
        world.hypervisor.capabilities = capability;
        let [x0, calls, bits, _] = call(&world, 0, CAPABILITIES, [0; 3]);
        assert_eq!((x0, calls), (0, CALLS));
        assert_eq!(bits, capability.bits() | own, "{capability}");
    }
    let (world, _) = World::with_acpi();
    let [_, _, bits, _] = call(&world, 0, CAPABILITIES, [0; 3]);
    assert_eq!(bits, own | RECORDS, "and its own records");
}

#[test]
fn an_optional_error_costs_the_caller_its_pages_and_nobody_hears_of_it() {
    let world = World::new();
    let answer = call(&world, 0, INJECT, [RAM_AT + K4, 2, AO]);
    assert_eq!(answer, [0, 2, 0, 0]);
    assert!(world.is_hole(0, RAM_AT + K4) && world.is_hole(0, RAM_AT + 2 * K4));
    assert!(world.is_mapped(0, RAM_AT) && world.is_mapped(0, RAM_AT + 3 * K4));
    assert!(
        world.is_mapped(1, RAM_AT + K4),
        "the same IPA of another VM"
    );
    let counters = world.counters();
    assert_eq!((counters.guest_aborts, counters.lost_pages), (0, 2));
}

#[test]
fn a_required_error_is_consumed_by_the_call_itself() {
    let world = World::new();
    let mut cpu = FakeCpu::new(esr::of(class::HVC64, 0));
    cpu.x[..4].copy_from_slice(&[INJECT, RAM_AT, 1, AR]);
    let before = cpu.x;
    assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
    let exception = cpu.exception();
    // A Data Abort of EL1's, external, whose FAR is not valid.
    assert_eq!(exception.esr_el1, 0x25 << 26 | 1 << 25 | 1 << 10 | 0x10);
    assert_eq!((exception.elr_el1, exception.pc), (PC - 4, VBAR + 0x200));
    assert_eq!(cpu.x, before, "there is no other answer");
    assert!(world.is_hole(0, RAM_AT));
    assert_eq!(world.counters().guest_aborts, 1);
}

#[test]
fn a_corrected_error_costs_nothing() {
    let world = World::new();
    assert_eq!(call(&world, 0, INJECT, [RAM_AT, 1, CE]), [0, 1, 0, 0]);
    assert!(world.is_mapped(0, RAM_AT));
    assert_eq!(world.stages.take(), [Stage::Detected, Stage::Corrected]);
}

#[test]
fn what_is_not_the_callers_alone_is_refused_and_stays() {
    let world = World::new();
    // Both VMs map the device.
    let shared = call(&world, 0, INJECT, [DEVICE_AT[0], 1, AO]);
    assert_eq!(shared, refused(status::DENIED));
    assert!(world.is_mapped(0, DEVICE_AT[0]) && world.is_mapped(1, DEVICE_AT[1]));
    // The other's device, by its IPA; a device of the VM's; nothing.
    for ipa in [DEVICE_AT[1], 0x0800_0000, 0] {
        let foreign = call(&world, 0, INJECT, [ipa, 1, AO]);
        assert_eq!(foreign, refused(status::NOT_MEMORY), "{ipa:#x}");
        let asked = call(&world, 0, QUERY, [ipa, 1, 0]);
        assert_eq!(asked, refused(status::NOT_MEMORY), "{ipa:#x}");
    }
    assert!(world.stages.take().is_empty());
}

#[test]
fn a_run_that_leaves_the_memory_is_done_up_to_its_end() {
    let world = World::new();
    let last = RAM_AT + super::fake::M2 - K4;
    assert_eq!(call(&world, 0, INJECT, [last, 5, AO]), [0, 1, 0, 0]);
}

#[test]
fn a_guest_cannot_fill_everybodys_set() {
    let world = World::new();
    for round in 0..MAX_INJECTED_EVER / MAX_INJECTED {
        let ipa = RAM_AT + round * MAX_INJECTED * K4;
        let answer = call(&world, 0, INJECT, [ipa, MAX_INJECTED, CE]);
        assert_eq!(answer, [0, MAX_INJECTED, 0, 0]);
    }
    let more = call(&world, 0, INJECT, [RAM_AT, 1, CE]);
    assert_eq!(more, refused(status::DENIED));
    // That is between Cordon and this one guest.
    assert_eq!(call(&world, 1, INJECT, [RAM_AT, 1, CE]), [0, 1, 0, 0]);
}

#[test]
fn a_guest_can_ask_what_is_bad_and_say_that_it_knows() {
    let world = World::new();
    assert_eq!(
        call(&world, 0, QUERY, [RAM_AT, 512, 0]),
        [0, 0, u64::MAX, 0]
    );
    call(&world, 0, INJECT, [RAM_AT + 5 * K4, 2, AO]);
    call(&world, 0, INJECT, [RAM_AT + 3 * K4, 1, AO]);
    let answer = call(&world, 0, QUERY, [RAM_AT, 512, 0]);
    assert_eq!(answer, [0, 3, RAM_AT + 3 * K4, 0]);
    let part = call(&world, 0, QUERY, [RAM_AT + 4 * K4, 2, 0]);
    assert_eq!(part, [0, 1, RAM_AT + 5 * K4, 0]);
    assert_eq!(
        call(&world, 1, QUERY, [RAM_AT, 512, 0])[1],
        0,
        "not of others"
    );
    assert_eq!(call(&world, 0, ACKNOWLEDGE, [RAM_AT, 6, 0])[1], 2);
    assert_eq!(call(&world, 0, ACKNOWLEDGE, [RAM_AT, 512, 0])[1], 1);
    assert_eq!(call(&world, 0, ACKNOWLEDGE, [RAM_AT, 512, 0])[1], 0);
    assert_eq!(call(&world, 0, COUNTERS, [2, 0, 0]), [0, 3, 3, 0]);
}

#[test]
fn a_guest_reads_its_own_counters() {
    let world = World::new();
    call(&world, 0, INJECT, [RAM_AT, 2, AO]);
    for ipa in [RAM_AT, RAM_AT, RAM_AT + K4] {
        let _ = world.fault(0, esr::data(esr::TRANSLATION), ipa);
    }
    assert_eq!(call(&world, 0, COUNTERS, [0, 0, 0]), [0, 2, 3, 0]);
    // Two pages for the first time, one of them again; three accesses.
    assert_eq!(call(&world, 0, COUNTERS, [1, 0, 0]), [0, 2, 1, 3]);
    assert_eq!(call(&world, 1, COUNTERS, [1, 0, 0]), [0, 0, 0, 0]);
    assert_eq!(
        call(&world, 0, COUNTERS, [3, 0, 0]),
        refused(status::INVALID)
    );
}

#[test]
fn a_page_is_distinct_once_a_vm_and_once_a_vcpu() {
    use core::sync::atomic::Ordering::Relaxed;
    let world = World::new();
    call(&world, 0, INJECT, [RAM_AT, 1, AO]);
    for vcpu in [0, 1, 1] {
        let mut cpu = FakeCpu::new(esr::data(esr::TRANSLATION));
        (cpu.far, cpu.hpfar) = (VA + RAM_AT, RAM_AT >> 12 << 4);
        let _ = world.exit((0, vcpu), &mut cpu, |exit| exit.synchronous());
    }
    let of = |vcpu: usize| {
        let vcpu = &world.vm(0).vcpus[vcpu];
        (vcpu.distinct.load(Relaxed), vcpu.consumed.load(Relaxed))
    };
    assert_eq!((of(0), of(1)), ((1, 1), (1, 2)));
    assert_eq!(call(&world, 0, COUNTERS, [1, 0, 0]), [0, 1, 2, 3]);
}

#[test]
fn the_operator_may_do_more_but_for_what_needs_a_consumer() {
    let world = World::new();
    let (one, two) = (Vmid::new(1).unwrap(), Vmid::new(2).unwrap());
    let inject = |target, pages, kind| world.hypervisor.inject(0, target, pages, kind);
    let ao = Injection::Optional;
    let range = |pa: Pa, pages| PaRange::new(pa, pages * K4).unwrap();
    let shared = Target::Guest(two, Ipa::new(DEVICE_AT[1] + 8));
    assert_eq!(inject(shared, 1, ao), Ok(range(DEVICE, 1)));
    assert!(world.is_hole(0, DEVICE_AT[0]) && world.is_hole(1, DEVICE_AT[1]));
    assert_eq!(inject(Target::Pa(RAM[0]), 1, ao), Ok(range(RAM[0], 1)));
    assert!(world.is_hole(0, RAM_AT));
    let nowhere = Target::Guest(one, Ipa::new(0));
    assert_eq!(inject(nowhere, 1, ao), Err(InjectError::NotMemory));
    for (target, pages) in [(shared, 0), (shared, 1 << 60), (Target::Pa(RAM[0]), 4097)] {
        assert_eq!(inject(target, pages, ao), Err(InjectError::BadRange));
    }
    let ar = Injection::Required;
    assert_eq!(inject(shared, 1, ar), Err(InjectError::NoConsumer));
}

#[test]
fn a_filter_by_name_keeps_a_vm_whole_and_counts() {
    let world = World::new();
    assert_eq!(world.hypervisor.add_filter("vm=one,via=injected"), Ok(0));
    let unknown = world.hypervisor.add_filter("vm=three");
    assert_eq!(unknown, Err(FilterError::NoSuchVm));
    call(&world, 0, INJECT, [RAM_AT, 2, AO]);
    assert!(world.is_mapped(0, RAM_AT));
    let filtered = Stage::Filtered { pages: 2 };
    assert_eq!(world.stages.take(), [Stage::Detected, filtered]);
    call(&world, 1, INJECT, [RAM_AT, 1, AO]);
    assert!(world.is_hole(1, RAM_AT));
    world.hypervisor.clear_filter();
    call(&world, 0, INJECT, [RAM_AT, 1, AO]);
    assert!(world.is_hole(0, RAM_AT));
}

#[test]
fn what_a_filter_drops_is_told_to_who_consumed_it_all_the_same() {
    let world = World::new();
    world.hypervisor.add_filter("pass:via=injected").unwrap();
    world.hypervisor.add_filter("drop:").unwrap();
    assert!(world.firmware.report(DEVICE));
    let (next, cpu) = world.sea(0, esr::data(esr::EXTERNAL), DEVICE_AT[0]);
    assert_eq!(next, Next::Resume);
    assert_eq!(cpu.exception().far_el1, Some(VA + DEVICE_AT[0]));
    assert!(world.is_mapped(0, DEVICE_AT[0]));
}

#[test]
fn what_is_imported_is_gone_before_anyone_runs_and_told_in_pages() {
    let world = World::new();
    let range = |pa, pages| PaRange::new(pa, pages * K4).unwrap();
    let ranges = [
        range(DEVICE, 2),
        range(RAM[1], 1),
        range(CORDONS, 1),
        range(DEVICE, 1),
    ];
    world.hypervisor.import_poison(&ranges, 0);
    assert!(world.is_hole(0, DEVICE_AT[0]) && world.is_hole(1, DEVICE_AT[1] + K4));
    assert!(world.is_hole(1, RAM_AT) && world.is_mapped(0, RAM_AT));
    let bad = world.hypervisor.ras.all_bad_pages().map(|page| page.pa);
    let bad: std::vec::Vec<Pa> = bad.collect();
    let second = Pa::new(DEVICE.get() + K4);
    assert_eq!(bad, [CORDONS, RAM[1], DEVICE, second]);
}

/// One access of VM 0's guest in this state to the first word of its RAM, which is lost.
fn touch(world: &World, pstate: u64) -> Next {
    let mut cpu = FakeCpu::new(esr::data(esr::TRANSLATION));
    (cpu.far, cpu.hpfar) = (VA + RAM_AT, RAM_AT >> 12 << 4);
    cpu.state.pstate = pstate;
    world.synchronous(0, &mut cpu)
}

#[test]
fn a_handler_that_meets_the_same_address_for_ever_is_stopped_and_a_process_is_not() {
    const MASKED: u64 = 0x3c5;
    let world = World::new();
    call(&world, 0, INJECT, [RAM_AT, 1, AO]);
    for _ in 0..1000 {
        assert_eq!(touch(&world, 0), Next::Resume, "EL0");
        assert_eq!(touch(&world, EL1H), Next::Resume, "EL1 with interrupts on");
    }
    assert_eq!(world.counters().loops, 5);
    // Anything else in between begins anew.
    call(&world, 0, INJECT, [RAM_AT + K4, 1, AO]);
    let _ = world.fault(0, esr::data(esr::TRANSLATION), RAM_AT + K4);
    for _ in 1..64 {
        assert_eq!(touch(&world, MASKED), Next::Resume);
    }
    assert_eq!(touch(&world, MASKED), Next::Park);
    assert!(world.vm(0).is_stopped() && !world.vm(1).is_stopped());
}

#[test]
fn by_policy_a_process_is_a_reason_as_well() {
    let mut world = World::new();
    world.hypervisor.loops = Policy {
        action: Action::Stop,
        limit: 3,
        ..Policy::DEFAULT
    };
    call(&world, 0, INJECT, [RAM_AT, 1, AO]);
    assert_eq!([touch(&world, 0), touch(&world, 0)], [Next::Resume; 2]);
    assert_eq!(touch(&world, 0), Next::Park);
    let counters = world.counters();
    assert_eq!((counters.loops, counters.stopped_vms), (1, 1));
}
