//! Consumed poison: what is cut out, what the guest is told, what is counted.

use super::fake::{
    CORDONS, DEVICE, DEVICE_AT, FakeCpu, G1, K4, M2, PC, RAM, RAM_AT, VA, VBAR, World, esr, esr_el1,
};
use crate::addr::Pa;
use crate::ras::cper::{Memory, Severity};
use crate::ras::event::{Snapshot, Stage};
use crate::ras::pipeline::Toucher;
use crate::ras::pipeline::tests::{page, record};
use crate::ras::triage;
use crate::stage2::Level;
use crate::vm::exit::{Exit, Next};

const SEA: u64 = esr::data(esr::EXTERNAL);
const FAULT: u64 = esr::data(esr::TRANSLATION);
const CONTAINED: Stage = Stage::Contained { pages: 1 };

/// Data Abort from EL1, external.
const VSEA: u64 = esr_el1(0x25, 0x10);

const BAD: u64 = 0x1234_5000;
const IPA: u64 = DEVICE_AT[0] + BAD;

fn pa(offset: u64) -> Pa {
    Pa::new(DEVICE.get() + offset)
}

fn on_walk(level: u64) -> u64 {
    esr::data(esr::EXTERNAL_ON_WALK_0 + level)
}

/// A record of `BAD`, and the abort that goes with it.
fn consume(world: &World) -> FakeCpu {
    assert!(world.firmware.report(pa(BAD)));
    let (next, cpu) = world.sea(0, SEA, IPA + 0x18);
    assert_eq!(next, Next::Resume);
    cpu
}

#[test]
fn a_consumed_page_is_cut_out_of_its_block_with_two_tables_and_nothing_else() {
    let world = World::new();
    let tables = world.census(0).tables;
    consume(&world);
    let census = world.census(0);
    assert_eq!((census.holes, census.hole_bytes), (1, K4));
    assert_eq!(census.tables, tables + 2);
    assert_eq!(census.leaves(Level::L1), 0);
    assert_eq!(census.leaves(Level::L2), 511 + 1);
    assert_eq!(census.leaves(Level::L3), 511);
    assert!(world.is_hole(0, IPA) && world.is_hole(0, IPA + 0xfff));
    for neighbour in [
        IPA - 1,
        IPA + K4,
        DEVICE_AT[0],
        DEVICE_AT[0] + G1 - 1,
        RAM_AT,
    ] {
        assert!(world.is_mapped(0, neighbour), "{neighbour:#x}");
    }
}

#[test]
fn its_consumer_gets_the_abort_that_hardware_would_give_and_the_record_is_released() {
    let world = World::new();
    let cpu = consume(&world);
    let exception = cpu.exception();
    assert_eq!(exception.esr_el1, VSEA);
    assert_eq!(exception.far_el1, Some(VA + IPA + 0x18));
    assert_eq!(exception.elr_el1, PC);
    assert_eq!(exception.pc, VBAR + 0x200);
    assert!(world.firmware.is_free());
    assert_eq!(
        world.stages.take(),
        [Stage::Detected, CONTAINED, Stage::GuestAborted]
    );
    let expected = Snapshot {
        detected: 1,
        contained: 1,
        guest_aborts: 1,
        lost_pages: 1,
        ..Snapshot::default()
    };
    assert_eq!(world.counters(), expected);
    let [by_ipa, by_vm, _] = world.tlbs[0].counts();
    assert!(by_ipa >= 1 && by_vm >= 1);
}

#[test]
fn each_later_touch_is_told_from_the_poison_set_and_costs_nothing() {
    let world = World::new();
    consume(&world);
    let tables = world.census(0).tables;
    for count in 1..=2 {
        world.stages.take();
        let (next, cpu) = world.fault(0, FAULT | esr::WNR, IPA + 8);
        assert_eq!(next, Next::Resume);
        assert_eq!(cpu.exception().esr_el1, VSEA | esr::WNR);
        assert_eq!(cpu.exception().far_el1, Some(VA + IPA + 8));
        assert_eq!(world.stages.take(), [Stage::Touched, Stage::GuestAborted]);
        assert_eq!(world.counters().touched, count);
    }
    let somebody = Toucher {
        vm: world.vm(0).vmid,
        cpu: 0,
        siblings: 1,
    };
    let ras = &world.hypervisor.ras;
    assert_eq!(ras.touched(somebody, pa(BAD)).count, 3);
    assert_eq!(world.census(0).tables, tables);
    assert_eq!(world.counters().detected, 1);
}

#[test]
fn a_page_reported_twice_is_known_and_costs_nothing_more() {
    let world = World::new();
    consume(&world);
    let before = world.census(0);
    world.stages.take();
    consume(&world);
    assert_eq!(world.census(0), before);
    assert_eq!(
        world.stages.take(),
        [Stage::Detected, Stage::Known, Stage::GuestAborted]
    );
    assert_eq!(world.counters().lost_pages, 1);
}

#[test]
fn of_two_consumers_with_one_block_each_loses_its_own_page_whoever_finds_the_record() {
    let world = World::new();
    let other = BAD + 0x10_0000;
    // vCPU 0 consumed `BAD` and firmware wrote it down; vCPU 1 consumed `other`, found the block
    // busy, and comes first.
    assert!(world.firmware.report(pa(BAD)));
    assert!(!world.firmware.report(pa(other)));
    let mut second = FakeCpu::new(SEA);
    second.far = VA + DEVICE_AT[0] + other;
    assert_eq!(
        world.exit((0, 1), &mut second, Exit::synchronous),
        Next::Resume
    );
    assert!(world.is_hole(0, DEVICE_AT[0] + other));
    assert_eq!(second.exception().far_el1, Some(second.far));
    let (_, first) = world.sea(0, SEA, IPA);
    assert!(world.is_hole(0, IPA));
    assert_eq!(first.exception().far_el1, Some(VA + IPA));
    assert_eq!(world.census(0).holes, 2);
    assert_eq!(world.counters().no_record, 1);
}

#[test]
fn consumers_in_two_vms_with_one_block_are_told_apart() {
    let world = World::new();
    assert!(world.firmware.report(RAM[0]));
    // VM 1 finds the record of VM 0's page.
    let (_, cpu) = world.sea(1, SEA, RAM_AT + 0x5000);
    assert_eq!(cpu.exception().far_el1, Some(VA + RAM_AT + 0x5000));
    assert!(world.is_hole(1, RAM_AT + 0x5000));
    assert!(world.is_mapped(1, RAM_AT));
    assert!(world.is_hole(0, RAM_AT));
}

#[test]
fn without_a_record_the_page_behind_far_is_lost_on_the_aborts_word() {
    let world = World::new();
    let (next, cpu) = world.sea(0, SEA, IPA + 0x18);
    assert_eq!(next, Next::Resume);
    assert_eq!(cpu.exception().esr_el1, VSEA);
    assert!(world.is_hole(0, IPA));
    assert_eq!(world.census(0).holes, 1);
    assert_eq!(
        world.stages.take(),
        [Stage::NoRecord, CONTAINED, Stage::GuestAborted]
    );
}

#[test]
fn bytes_that_are_no_record_count_as_none() {
    let world = World::new();
    assert!(world.firmware.leave(&[0xa5; 128]));
    let (_, cpu) = world.sea(0, SEA, IPA);
    assert_eq!(cpu.exception().esr_el1, VSEA);
    assert!(world.is_hole(0, IPA) && world.firmware.is_free());
    assert_eq!(world.counters().no_record, 1);
}

#[test]
fn without_a_record_and_without_an_address_the_guest_is_told_and_nothing_is_cut() {
    let world = World::new();
    let (next, cpu) = world.sea(0, SEA | esr::FNV, IPA);
    assert_eq!(next, Next::Resume);
    assert_eq!(cpu.exception().esr_el1, VSEA | esr::FNV);
    assert_eq!(cpu.exception().far_el1, Some(0));
    assert_eq!(world.census(0).holes, 0);
}

#[test]
fn far_that_is_not_valid_is_neither_followed_nor_told() {
    let world = World::new();
    assert!(world.firmware.report(pa(BAD)));
    // A stale FAR, of a page that is in order.
    let (_, cpu) = world.sea(0, SEA | esr::FNV, DEVICE_AT[0]);
    assert_eq!(cpu.exception().far_el1, Some(0));
    assert!(world.is_hole(0, IPA) && world.is_mapped(0, DEVICE_AT[0]));
}

#[test]
fn where_stage_1_leads_nowhere_the_record_alone_decides() {
    let world = World::new();
    assert!(world.firmware.report(pa(BAD)));
    let mut cpu = FakeCpu::new(SEA);
    (cpu.far, cpu.stage1) = (VA + IPA, None);
    assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
    assert_eq!(cpu.exception().esr_el1, VSEA);
    assert_eq!(world.census(0).holes, 1);
}

#[test]
fn a_record_of_memory_that_nobody_owns_does_not_save_the_page_behind_far() {
    let world = World::new();
    assert!(world.firmware.report(CORDONS));
    let (next, cpu) = world.sea(0, SEA, IPA);
    assert_eq!((next, cpu.exception().esr_el1), (Next::Resume, VSEA));
    assert!(world.is_hole(0, IPA));
    assert_eq!(world.counters().unclaimed, 1);
}

#[test]
fn a_corrected_record_is_counted_and_the_page_behind_far_is_lost() {
    let world = World::new();
    let block = record(Severity::Corrected, &[page(pa(0))]);
    assert!(world.firmware.leave(&block));
    let _ = world.sea(0, SEA, IPA);
    assert!(world.is_hole(0, IPA) && world.is_mapped(0, DEVICE_AT[0]));
    assert_eq!(world.census(0).holes, 1);
    assert_eq!(world.counters().detected, 1);
}

#[test]
fn a_fatal_record_stops_the_machine_and_the_guest_hears_nothing() {
    let world = World::new();
    assert!(
        world
            .firmware
            .leave(&record(Severity::Fatal, &[page(pa(BAD))]))
    );
    let (next, cpu) = world.sea(0, SEA, IPA);
    assert_eq!(next, Next::Halt);
    assert!(cpu.delivered.is_empty());
    assert_eq!(world.counters().fatal, 1);
}

#[test]
fn a_record_with_an_absurd_mask_costs_the_page_behind_far_and_no_more() {
    let world = World::new();
    let error = Memory {
        address_mask: Some(0),
        ..page(pa(0))
    };
    assert!(
        world
            .firmware
            .leave(&record(Severity::Recoverable, &[error]))
    );
    let _ = world.sea(0, SEA, IPA);
    assert_eq!(world.census(0).hole_bytes, K4);
    assert!(world.is_hole(0, IPA));
}

#[test]
fn a_record_of_several_pages_costs_them_all_and_the_consumer_is_told_its_own() {
    let world = World::new();
    let errors = [0, BAD, BAD + K4].map(|offset| page(pa(offset)));
    assert!(
        world
            .firmware
            .leave(&record(Severity::Recoverable, &errors))
    );
    let (_, cpu) = world.sea(0, SEA, IPA);
    assert_eq!(cpu.exception().far_el1, Some(VA + IPA));
    assert_eq!(world.census(0).holes, 3);
    assert_eq!(cpu.delivered.len(), 1);
}

#[test]
fn a_page_of_two_vms_is_cut_out_of_both_and_only_the_consumer_is_told() {
    let world = World::new();
    consume(&world);
    assert!(world.is_hole(1, DEVICE_AT[1] + BAD));
    assert_eq!(world.census(1).holes, 1);
    assert_eq!(world.counters().guest_aborts, 1);
    assert_eq!(world.counters().lost_pages, 1);
    // The other one finds out when it gets there.
    let (_, cpu) = world.fault(1, FAULT, DEVICE_AT[1] + BAD);
    assert_eq!(cpu.exception().esr_el1, VSEA);
    assert_eq!(world.counters().touched, 1);
}

#[test]
fn the_handler_is_found_from_every_mode_and_told_the_level() {
    const LOWER: u64 = 0x24;
    const SAME: u64 = 0x25;
    let cases = [
        (0b0_0000, 0x400, LOWER),
        (0b0_0100, 0x000, SAME),
        (0b0_0101, 0x200, SAME),
        (0b1_0000, 0x600, LOWER),
    ];
    let world = World::new();
    for (mode, vector, class) in cases {
        for (syndrome, fetch) in [(SEA, 0), (esr::fetch(esr::EXTERNAL), 4)] {
            let mut cpu = FakeCpu::new(syndrome);
            (cpu.far, cpu.state.pstate) = (VA + IPA, mode);
            assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
            let exception = cpu.exception();
            assert_eq!(exception.pc, VBAR + vector, "{mode:#x}");
            assert_eq!(exception.esr_el1, esr_el1(class - fetch, 0x10), "{mode:#x}");
            assert_eq!(exception.spsr_el1, mode);
        }
    }
}

#[test]
fn a_guest_in_a_mode_that_does_not_exist_is_stopped_and_the_other_goes_on() {
    let world = World::new();
    let mut cpu = FakeCpu::new(SEA);
    cpu.state.pstate = 0b1001;
    assert_eq!(world.synchronous(0, &mut cpu), Next::Park);
    assert!(world.vm(0).is_stopped() && !world.vm(1).is_stopped());
    assert_eq!(world.counters().guest_aborts, 0);
}

#[test]
fn a_lost_stage_1_table_is_told_with_its_level_then_and_at_every_later_walk() {
    let world = World::new();
    assert!(world.firmware.report(pa(BAD)));
    // FAR is the access that wanted the walk, not the table.
    let (next, cpu) = world.sea(0, on_walk(2), DEVICE_AT[0] + 0x5008);
    assert_eq!(next, Next::Resume);
    assert_eq!(cpu.exception().esr_el1, esr_el1(0x25, 0x14 + 2));
    assert!(world.is_hole(0, IPA) && world.is_mapped(0, DEVICE_AT[0] + 0x5000));
    let (_, cpu) = world.fault(0, FAULT | esr::S1PTW, IPA);
    assert_eq!(cpu.exception().esr_el1, esr_el1(0x25, 0x14 + 2));
    // As data, it is data.
    let (_, cpu) = world.fault(0, FAULT, IPA);
    assert_eq!(cpu.exception().esr_el1, VSEA);
}

#[test]
fn a_hole_that_a_walk_meets_first_counts_as_a_last_level_table() {
    let world = World::new();
    consume(&world);
    let (_, cpu) = world.fault(0, FAULT | esr::S1PTW, IPA);
    assert_eq!(cpu.exception().esr_el1, esr_el1(0x25, 0x14 + 3));
}

#[test]
fn a_lost_stage_2_table_stops_its_vm_and_no_other() {
    for syndrome in [on_walk(3), on_walk(1) | esr::S1PTW] {
        let world = World::new();
        let root = world.lose_root_table(0);
        assert!(world.firmware.report(root));
        let (next, cpu) = world.sea(0, syndrome, IPA);
        assert_eq!(next, Next::Park);
        assert!(cpu.delivered.is_empty());
        assert!(world.vm(0).is_stopped() && !world.vm(1).is_stopped());
        assert_eq!(world.counters().stopped_vms, 1);
        assert_eq!(world.kicks(), [0, 1]);
        let (next, cpu) = world.sea(1, SEA, DEVICE_AT[1]);
        assert_eq!((next, cpu.exception().esr_el1), (Next::Resume, VSEA));
    }
}

#[test]
fn an_own_table_is_not_taken_for_cordons_because_another_error_came_along() {
    let world = World::new();
    let errors = [page(CORDONS), page(pa(BAD))];
    assert!(
        world
            .firmware
            .leave(&record(Severity::Recoverable, &errors))
    );
    let (next, cpu) = world.sea(0, on_walk(3), 0x5000);
    assert_eq!(next, Next::Resume);
    assert_eq!(cpu.exception().esr_el1, esr_el1(0x25, 0x14 + 3));
    assert!(!world.vm(0).is_stopped());
}

#[test]
fn what_can_be_executed_again_is_once_the_records_are_contained() {
    let world = World::new();
    assert!(world.firmware.report(pa(BAD)));
    let (next, cpu) = world.sea(0, SEA | esr::UEO, IPA);
    assert_eq!(next, Next::Resume);
    assert!(cpu.delivered.is_empty());
    assert!(world.is_hole(0, IPA));
    // Without a record it would abort again and again.
    let (_, cpu) = world.sea(0, SEA | esr::UEO, IPA + K4);
    assert_eq!(cpu.exception().esr_el1, VSEA | esr::UEO);
    assert!(world.is_hole(0, IPA + K4));
}

#[test]
fn an_abort_that_is_not_contained_costs_the_machine_or_by_its_promise_the_vm() {
    let world = World::new();
    assert_eq!(world.sea(0, SEA | esr::UC, IPA).0, Next::Halt);
    assert_eq!(world.counters().fatal, 1);
    let world = World::with(triage::Machine {
        feat_ras: true,
        isolates_vms: true,
    });
    assert_eq!(world.sea(0, SEA | esr::UC, IPA).0, Next::Park);
    assert!(world.vm(0).is_stopped() && !world.vm(1).is_stopped());
}

#[test]
fn a_guest_whose_handler_is_lost_is_stopped_instead_of_aborting_for_ever() {
    let world = World::new();
    let cpu = consume(&world);
    let mut again = FakeCpu::new(esr::fetch(esr::TRANSLATION));
    again.state.pc = cpu.exception().pc;
    (again.far, again.hpfar) = (VA + IPA, IPA >> 12 << 4);
    assert_eq!(world.synchronous(0, &mut again), Next::Park);
    assert!(world.vm(0).is_stopped() && again.delivered.is_empty());
    assert_eq!(world.counters().stopped_vms, 1);
}

#[test]
fn a_page_of_ram_takes_one_table_out_of_its_2m_block() {
    let world = World::new();
    let tables = world.census(0).tables;
    assert!(world.firmware.report(Pa::new(RAM[0].get() + M2 - K4)));
    let _ = world.sea(0, SEA, RAM_AT + M2 - K4);
    assert!(world.is_hole(0, RAM_AT + M2 - K4));
    assert_eq!(world.census(0).tables, tables + 1);
}

#[test]
fn a_vms_count_of_aborts_is_its_own() {
    let world = World::new();
    consume(&world);
    let _ = world.fault(0, FAULT, IPA);
    let _ = world.fault(1, FAULT, DEVICE_AT[1] + BAD);
    let vseas = [0, 1].map(|vm| world.hypervisor.aborts_of(world.vm(vm)));
    assert_eq!(vseas, [2, 1]);
}

#[test]
fn the_cpus_own_word_on_the_address_is_believed_where_it_gives_one() {
    const PFV: u64 = 1 << 14;
    let (said, far) = (0x8000, 0x3000);
    for (syndrome, expected) in [(SEA | PFV, said), (SEA, far)] {
        let world = World::new();
        let mut cpu = FakeCpu::new(syndrome);
        cpu.far = VA + DEVICE_AT[0] + far;
        // NS is set, and the address is not that of the page.
        cpu.pfar = Some(1 << 63 | (DEVICE.get() + said + 0x123));
        assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
        assert!(world.is_hole(0, DEVICE_AT[0] + expected), "{syndrome:#x}");
        assert_eq!(world.census(0).holes, 1);
        assert_eq!(cpu.delivered.len(), 1);
    }
}

#[test]
fn an_address_that_is_none_of_the_vms_is_not() {
    const PFV: u64 = 1 << 14;
    let world = World::new();
    let mut cpu = FakeCpu::new(SEA | PFV);
    cpu.far = VA + DEVICE_AT[0] + 0x3000;
    cpu.pfar = Some(CORDONS.get());
    assert_eq!(world.synchronous(0, &mut cpu), Next::Resume);
    assert!(world.is_hole(0, DEVICE_AT[0] + 0x3000), "FAR has to do");
}
