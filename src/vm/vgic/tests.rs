//! The whole, as a guest sees it: a fake of the virtual CPU interface runs against a model that knows
//! nothing of list registers.

mod devices;
mod fake;
mod model;
mod registers;

use super::*;
use alloc::vec::Vec;
use fake::Guest;
use model::{Model, Operation};
use proptest::prelude::*;

/// Offsets in a redistributor's second frame and, for shared interrupts, in the distributor.
mod offset {
    pub const GROUP: u64 = 0x080;
    pub const SET_ENABLE: u64 = 0x100;
    pub const CLEAR_ENABLE: u64 = 0x180;
    pub const SET_PENDING: u64 = 0x200;
    pub const CLEAR_PENDING: u64 = 0x280;
    pub const SET_ACTIVE: u64 = 0x300;
    pub const CLEAR_ACTIVE: u64 = 0x380;
    pub const PRIORITY: u64 = 0x400;
    pub const CONFIG: u64 = 0xc00;
}

const SGI1R: SystemRegister = SystemRegister {
    op0: 3,
    op1: 0,
    crn: 12,
    crm: 11,
    op2: 5,
};
const IRM: u64 = 1 << 40;

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// After whatever happened, the interrupt that the guest would take next is the one that the
    /// model says, however few list registers there are: none is lost, none comes twice, and
    /// those in list registers are always the most urgent.
    #[test]
    fn the_guest_takes_what_the_model_says(
        lists in 1_usize..=4,
        two_steps: bool,
        operations in prop::collection::vec(model::operation(), 1..if cfg!(miri) { 20 } else { 150 }),
    ) {
        let mut guest = Guest::new(1, lists, two_steps);
        let mut model = Model::new(two_steps);
        for operation in operations {
            // Nothing can be said of an interrupt whose priority changes while it is active.
            if let Operation::Priority(intid, _) = operation && model.active() >> intid & 1 != 0 {
                continue;
            }
            guest.obey(&operation);
            let expected = model.obey(&operation);
            if matches!(operation, Operation::Acknowledge) {
                prop_assert_eq!(guest.acknowledged, expected);
            }
            prop_assert_eq!(guest.next(), model.next(), "after {:?}", operation);
            prop_assert_eq!(guest.pending(), model.pending(), "after {:?}", operation);
            prop_assert_eq!(guest.active(), model.active(), "after {:?}", operation);
        }
    }
}

#[test]
fn an_sgi_reaches_exactly_those_that_are_meant() {
    for (value, expected) in [
        (0b0110, 0b0110),
        (IRM, 0b1110),
        (IRM | 0xf, 0b1110),
        (1 << 16 | 1, 0),
        (1 << 32 | 1, 0),
        (1 << 44 | 1, 0),
        (1 << 48 | 1, 0),
        (0xfff0, 0),
    ] {
        let guest = Guest::new(4, 4, false);
        guest.system_register(0, SGI1R, value | 5 << 24);
        let reached: Vec<usize> = (0..4)
            .filter(|vcpu| guest.acknowledge(*vcpu) == Some(5))
            .collect();
        let expected: Vec<usize> = (0..4).filter(|vcpu| expected >> vcpu & 1 != 0).collect();
        assert_eq!(reached, expected, "{value:#x}");
    }
}

#[test]
fn an_sgi_to_oneself_is_taken_once_and_a_second_while_it_is_active_is_not_lost() {
    let guest = Guest::new(1, 4, false);
    guest.system_register(0, SGI1R, 1 | 3 << 24);
    guest.system_register(0, SGI1R, 1 | 3 << 24);
    assert_eq!(guest.acknowledge(0), Some(3));
    guest.system_register(0, SGI1R, 1 | 3 << 24);
    assert_eq!(guest.acknowledge(0), None);
    guest.end(0, 3);
    assert_eq!(guest.acknowledge(0), Some(3));
    guest.end(0, 3);
    assert_eq!(guest.acknowledge(0), None);
}

#[test]
fn icc_sgi0r_does_not_send_what_is_in_group_1() {
    let sgi0r = SystemRegister { op2: 7, ..SGI1R };
    let guest = Guest::new(2, 4, false);
    guest.system_register(0, sgi0r, 0b10 | 4 << 24);
    assert_eq!(guest.acknowledge(1), None);
    guest.write_own(1, offset::GROUP, 0);
    guest.system_register(0, sgi0r, 0b10 | 4 << 24);
    assert_eq!(guest.acknowledge(1), Some(4));
}

#[test]
fn a_level_that_stays_high_comes_again_after_each_end() {
    let guest = Guest::new(1, 4, false);
    guest.set_line(33, true);
    for _ in 0..3 {
        assert_eq!(guest.acknowledge(0), Some(33));
        assert_eq!(guest.acknowledge(0), None);
        guest.end(0, 33);
    }
    guest.set_line(33, false);
    assert_eq!(guest.acknowledge(0), None);
}

#[test]
fn an_edge_comes_once() {
    let guest = Guest::new(1, 4, false);
    guest.write_shared(0, offset::CONFIG + 8, 0b10 << 2);
    guest.set_line(33, true);
    assert_eq!(guest.acknowledge(0), Some(33));
    guest.set_line(33, false);
    guest.end(0, 33);
    assert_eq!(guest.acknowledge(0), None);
    guest.set_line(33, true);
    assert_eq!(guest.acknowledge(0), Some(33));
}

#[test]
fn the_pending_register_follows_a_timers_line_even_where_it_is_not_enabled() {
    for timer in [VIRTUAL_TIMER, PHYSICAL_TIMER] {
        let guest = Guest::new(2, 4, false);
        let bit = 1 << timer;
        guest.write_own(0, offset::CLEAR_ENABLE, bit);
        assert_eq!(guest.read_own(0, 0, offset::SET_PENDING) & bit, 0);
        guest.set_timer(0, timer, true);
        for reader in [0, 1] {
            assert_eq!(guest.read_own(reader, 0, offset::SET_PENDING) & bit, bit);
            assert_eq!(guest.read_own(reader, 1, offset::SET_PENDING) & bit, 0);
        }
        guest.set_timer(0, timer, false);
        assert_eq!(guest.read_own(0, 0, offset::SET_PENDING) & bit, 0);
        guest.write_own(0, offset::SET_ENABLE, bit);
        assert_eq!(guest.acknowledge(0), None);
    }
}

#[test]
fn a_timer_that_goes_on_asking_comes_again() {
    let guest = Guest::new(1, 4, false);
    guest.set_timer(0, VIRTUAL_TIMER, true);
    for _ in 0..3 {
        assert_eq!(guest.acknowledge(0), Some(27));
        guest.end(0, 27);
    }
    assert_eq!(guest.acknowledge(0), Some(27));
    guest.set_timer(0, VIRTUAL_TIMER, false);
    guest.end(0, 27);
    assert_eq!(guest.acknowledge(0), None);
    assert_eq!(guest.physically_active(0), 0);
}

#[test]
fn a_shared_interrupt_goes_where_its_route_leads_and_follows_it() {
    let guest = Guest::new(3, 4, false);
    guest.write(0, (Frame::Distributor, 0x6000 + 8 * 40, 8), 2);
    guest.write_shared(0, offset::SET_PENDING + 4, 1 << 8);
    assert_eq!(
        [0, 1, 2].map(|vcpu| guest.next_of(vcpu)),
        [None, None, Some(40)]
    );
    guest.write(0, (Frame::Distributor, 0x6000 + 8 * 40, 4), 1);
    assert_eq!(
        [0, 1, 2].map(|vcpu| guest.next_of(vcpu)),
        [None, Some(40), None]
    );
    // Nobody has this affinity: it waits.
    guest.write(1, (Frame::Distributor, 0x6000 + 8 * 40, 8), 7);
    assert_eq!(
        [0, 1, 2].map(|vcpu| guest.next_of(vcpu)),
        [None, None, None]
    );
    guest.write(1, (Frame::Distributor, 0x6000 + 8 * 40, 8), 0);
    assert_eq!(guest.acknowledge(0), Some(40));
}

#[test]
fn another_vcpu_sees_and_changes_what_is_in_list_registers() {
    let guest = Guest::new(2, 4, false);
    guest.system_register(0, SGI1R, 1 | 5 << 24);
    guest.set_line(33, true);
    assert_eq!(guest.acknowledge(0), Some(5));
    assert_eq!(guest.read_own(1, 0, offset::SET_ACTIVE), 1 << 5);
    assert_eq!(guest.read_shared(1, offset::SET_PENDING + 4), 0b10);
    guest.end(0, 5);
    assert_eq!(guest.acknowledge(0), Some(33));
    assert_eq!(guest.read_shared(1, offset::SET_ACTIVE + 4), 0b10);
    guest.write_shared(1, offset::CLEAR_ACTIVE + 4, 0b10);
    assert_eq!(guest.read_shared(0, offset::SET_ACTIVE + 4), 0);
    assert_eq!(guest.read_shared(0, offset::SET_PENDING + 4), 0b10);
}

#[test]
fn a_vcpu_that_starts_again_finds_its_own_interrupts_reset_and_keeps_the_shared_ones() {
    let guest = Guest::new(2, 4, false);
    guest.set_timer(1, VIRTUAL_TIMER, true);
    guest.system_register(0, SGI1R, 0b10 | 5 << 24);
    guest.write(0, (Frame::Distributor, 0x6000 + 8 * 33, 8), 1);
    guest.set_line(33, true);
    guest.restart(1);
    assert_eq!(guest.physically_active(1), 0);
    let second = REDISTRIBUTOR_SIZE + FRAME_SIZE;
    for register in [
        offset::SET_ENABLE,
        offset::SET_PENDING,
        offset::SET_ACTIVE,
        offset::PRIORITY,
    ] {
        assert_eq!(
            guest.read(1, (Frame::Redistributors, second + register, 4)),
            0
        );
    }
    assert_eq!(guest.acknowledge(1), Some(33));
    assert_eq!(guest.acknowledge(1), None);
}

#[test]
fn any_vcpu_may_deactivate_a_shared_interrupt_but_only_in_two_steps() {
    for two_steps in [true, false] {
        let guest = Guest::new(3, 4, two_steps);
        let active = || guest.read_shared(2, offset::SET_ACTIVE + 4);
        guest.write(0, (Frame::Distributor, 0x6000 + 8 * 40, 8), 1);
        for route in [1, 2] {
            guest.write_shared(0, offset::SET_PENDING + 4, 1 << 8);
            assert_eq!(guest.acknowledge(1), Some(40));
            // While it is active it becomes pending again, and in the end goes elsewhere.
            guest.write_shared(0, offset::SET_PENDING + 4, 1 << 8);
            guest.write(0, (Frame::Distributor, 0x6000 + 8 * 40, 8), route);
            guest.deactivate(0, 40);
            assert_eq!(active(), u32::from(!two_steps) << 8);
            guest.drop_priority(1, 40);
            assert_eq!(active(), 0);
            let taker = usize::try_from(route).unwrap();
            assert_eq!(guest.acknowledge(taker), Some(40));
            assert_eq!(guest.acknowledge(3 - taker), None);
            guest.end(taker, 40);
            assert_eq!(active(), 0);
            guest.write(0, (Frame::Distributor, 0x6000 + 8 * 40, 8), 1);
        }
    }
}

#[test]
fn a_priority_that_is_dropped_is_not_the_end_of_two_steps_where_there_are_too_few_registers() {
    let guest = Guest::new(1, 2, true);
    for sgi in 0..8 {
        let place = FRAME_SIZE + offset::PRIORITY + u64::from(sgi);
        guest.write(
            0,
            (Frame::Redistributors, place, 1),
            u64::from(0x80 - 8 * sgi),
        );
        guest.system_register(0, SGI1R, 1 | u64::from(sgi) << 24);
        assert_eq!(guest.acknowledge(0), Some(sgi));
    }
    for sgi in (0..8).rev() {
        guest.drop_priority(0, sgi);
    }
    let mut left = 0xff;
    for sgi in [3, 0, 7, 5, 1, 6, 2, 4] {
        assert_eq!(guest.read_own(0, 0, offset::SET_ACTIVE), left);
        guest.deactivate(0, sgi);
        left &= !(1 << sgi);
    }
    assert_eq!(guest.read_own(0, 0, offset::SET_ACTIVE), 0);
}
