//! Interrupts of devices, wired to a fake of the physical distributor (IHI 0069, 4.1 and 4.6).

use super::super::*;
use super::fake::Guest;
use super::{config, offset};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use proptest::prelude::*;
use std::sync::Mutex;

/// The interrupt under test, for the guest and in the machine: GICD bank 1 here, bank 3 there.
pub const VIRTUAL: u16 = 48;
pub const PHYSICAL: u16 = 110;
const BIT: u32 = 1 << (VIRTUAL % 32);
const ROUTE: u64 = 0x6000 + 8 * VIRTUAL as u64;

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    enabled: bool,
    edge: bool,
    latch: bool,
    high: bool,
    active: bool,
    cpu: usize,
}

impl Line {
    fn pending(&self) -> bool {
        self.latch || !self.edge && self.high
    }
}

/// One physical interrupt.
#[derive(Debug, Default)]
pub struct FakeDistributor(Mutex<Line>);

impl FakeDistributor {
    fn with<R>(&self, physical: u16, body: impl FnOnce(&mut Line) -> R) -> R {
        assert_eq!(physical, PHYSICAL);
        body(&mut self.0.lock().unwrap())
    }

    /// The device's line is high, or low.
    pub fn set_line(&self, high: bool) {
        self.with(PHYSICAL, |line| {
            line.latch |= line.edge && high && !line.high;
            line.high = high;
        });
    }

    /// CPU `cpu` acknowledges the interrupt, if it gets it.
    pub fn acknowledge(&self, cpu: usize) -> Option<u16> {
        self.with(PHYSICAL, |line| {
            let taken = line.enabled && line.pending() && !line.active && line.cpu == cpu;
            if taken {
                line.active = true;
                line.latch = false;
            }
            taken.then_some(PHYSICAL)
        })
    }
}

impl PhysicalDistributor for FakeDistributor {
    fn set_enabled(&self, physical: u16, on: bool) {
        self.with(physical, |line| line.enabled = on);
    }
    fn set_edge(&self, physical: u16, edge: bool) {
        self.with(physical, |line| {
            assert!(!line.enabled, "its trigger changes while it is enabled");
            line.edge = edge;
        });
    }
    fn set_route(&self, physical: u16, cpu: usize) {
        self.with(physical, |line| line.cpu = cpu);
    }
    fn is_pending(&self, physical: u16) -> bool {
        self.with(physical, |line| line.pending())
    }
    fn clear_pending(&self, physical: u16) {
        self.with(physical, |line| line.latch = false);
    }
    fn is_active(&self, physical: u16) -> bool {
        self.with(physical, |line| line.active)
    }
    fn deactivate(&self, physical: u16) {
        self.with(physical, |line| line.active = false);
    }
}

/// A VM with the device's interrupt, all enabled. vCPU n is pinned to CPU n.
fn guest(vcpus: usize, lists: usize, two_steps: bool, edge: bool) -> Guest {
    let distributor: &'static FakeDistributor = Box::leak(Box::default());
    let guest = Guest::wired(vcpus, lists, two_steps, distributor);
    trigger(&guest, edge);
    guest
}

/// As a driver sets it.
fn trigger(guest: &Guest, edge: bool) {
    guest.write_shared(0, offset::CLEAR_ENABLE + 4, BIT);
    let word = if edge { 0b10 } else { 0 };
    guest.write_shared(0, offset::CONFIG + 8 + 4, word);
    guest.write_shared(0, offset::SET_ENABLE + 4, BIT);
}

fn physical(guest: &Guest) -> Line {
    *guest.device.unwrap().0.lock().unwrap()
}

#[test]
fn the_guests_end_is_the_machines_and_each_edge_comes_once() {
    for two_steps in [false, true] {
        let guest = guest(1, 4, two_steps, true);
        for _ in 0..3 {
            guest.pulse();
            assert!(physical(&guest).active);
            assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
            // One more while it is active waits in the machine.
            guest.pulse();
            assert_eq!(guest.acknowledge(0), None);
            guest.end(0, VIRTUAL);
            assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
            guest.end(0, VIRTUAL);
            assert_eq!(guest.acknowledge(0), None);
            assert!(!physical(&guest).active && !physical(&guest).pending());
        }
    }
}

#[test]
fn a_line_that_stays_high_comes_again_and_one_that_dropped_does_not() {
    let guest = guest(1, 4, false, false);
    guest.device_line(true);
    for _ in 0..3 {
        assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
        guest.end(0, VIRTUAL);
    }
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
    guest.device_line(false);
    guest.end(0, VIRTUAL);
    assert_eq!(guest.acknowledge(0), None);
    assert!(!physical(&guest).active);
}

#[test]
fn what_the_guest_does_not_want_waits_in_the_machine() {
    for edge in [false, true] {
        let guest = guest(1, 4, false, edge);
        let disable: [(u64, u32, u64, u32); 2] = [
            (offset::CLEAR_ENABLE + 4, BIT, offset::SET_ENABLE + 4, BIT),
            (0, 0, 0, 0b11),
        ];
        for (off, off_value, on, on_value) in disable {
            guest.write_shared(0, off, off_value);
            guest.device_line(true);
            assert!(!physical(&guest).active && !physical(&guest).enabled);
            assert_eq!(guest.read_shared(0, offset::SET_PENDING + 4) & BIT, BIT);
            guest.write_shared(0, on, on_value);
            assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
            guest.device_line(false);
            guest.end(0, VIRTUAL);
            assert_eq!(guest.read_shared(0, offset::SET_PENDING + 4) & BIT, 0);
        }
    }
}

#[test]
fn a_line_that_drops_before_the_guest_looks_is_not_pending_any_more() {
    let guest = guest(1, 4, false, false);
    guest.device_line(true);
    guest.device_line(false);
    assert_eq!(guest.read_shared(0, offset::SET_PENDING + 4) & BIT, 0);
    assert_eq!(guest.acknowledge(0), None);
    assert!(!physical(&guest).active);
}

#[test]
fn the_guest_can_clear_an_edge_wherever_it_is() {
    let guest = guest(1, 4, false, true);
    guest.pulse();
    guest.write_shared(0, offset::CLEAR_PENDING + 4, BIT);
    assert_eq!(guest.acknowledge(0), None);
    assert!(!physical(&guest).active);
    guest.write_shared(0, offset::CLEAR_ENABLE + 4, BIT);
    guest.pulse();
    guest.write_shared(0, offset::CLEAR_PENDING + 4, BIT);
    guest.write_shared(0, offset::SET_ENABLE + 4, BIT);
    assert_eq!(guest.acknowledge(0), None);
    guest.pulse();
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
}

#[test]
fn software_can_make_it_pending_and_active_without_a_device() {
    for edge in [false, true] {
        let guest = guest(1, 4, false, edge);
        guest.write_shared(0, offset::SET_PENDING + 4, BIT);
        assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
        guest.end(0, VIRTUAL);
        assert_eq!(guest.acknowledge(0), None);
        guest.write_shared(0, offset::SET_ACTIVE + 4, BIT);
        guest.device_line(true);
        assert_eq!(guest.acknowledge(0), None);
        guest.write_shared(0, offset::CLEAR_ACTIVE + 4, BIT);
        assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
        guest.device_line(false);
        guest.write_shared(0, offset::CLEAR_ACTIVE + 4, BIT);
        assert!(!physical(&guest).active);
    }
}

#[test]
fn an_edge_while_one_of_softwares_own_is_active_is_not_lost() {
    let guest = guest(1, 4, false, true);
    guest.write_shared(0, offset::SET_PENDING + 4, BIT);
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
    guest.pulse();
    guest.end(0, VIRTUAL);
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
    guest.end(0, VIRTUAL);
    assert!(!physical(&guest).active);
    guest.pulse();
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
}

#[test]
fn it_goes_to_the_cpu_of_the_vcpu_that_the_guest_routes_it_to() {
    let guest = guest(3, 4, false, true);
    for vcpu in [2, 0, 1] {
        guest.write(0, (Frame::Distributor, ROUTE, 8), vcpu);
        guest.pulse();
        assert_eq!(physical(&guest).cpu, vcpu as usize);
        let taken = [0, 1, 2].map(|vcpu| guest.acknowledge(vcpu));
        assert_eq!(taken[vcpu as usize], Some(VIRTUAL));
        assert_eq!(taken.iter().flatten().count(), 1);
        guest.end(vcpu as usize, VIRTUAL);
    }
    // Nobody is there: it waits in the machine.
    guest.write(0, (Frame::Distributor, ROUTE, 8), 9);
    guest.pulse();
    assert!(!physical(&guest).enabled && physical(&guest).pending());
    guest.write(0, (Frame::Distributor, ROUTE, 8), 1);
    assert_eq!(guest.acknowledge(1), Some(VIRTUAL));
}

#[test]
fn one_that_was_ended_on_another_cpu_comes_again_where_it_is_routed_now() {
    let guest = guest(2, 4, false, true);
    guest.pulse();
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
    guest.write(1, (Frame::Distributor, ROUTE, 8), 1);
    guest.pulse();
    guest.end(0, VIRTUAL);
    assert_eq!(
        [0, 1].map(|vcpu| guest.acknowledge(vcpu)),
        [None, Some(VIRTUAL)]
    );
    guest.end(1, VIRTUAL);
    guest.pulse();
    assert_eq!(
        [0, 1].map(|vcpu| guest.acknowledge(vcpu)),
        [None, Some(VIRTUAL)]
    );
}

#[test]
fn the_cpu_that_had_it_before_does_not_take_it_from_the_one_that_has_it() {
    let guest = guest(2, 4, false, true);
    guest.pulse();
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
    guest.write(1, (Frame::Distributor, ROUTE, 8), 1);
    guest.pulse();
    guest.end(0, VIRTUAL);
    assert_eq!(guest.acknowledge(1), Some(VIRTUAL));
    // CPU 0 looks at its list registers, one of which still names the interrupt.
    guest.system_register(1, super::SGI1R, 1 | 5 << 24);
    assert_eq!(guest.acknowledge(0), Some(5));
    assert_eq!(guest.read_shared(0, offset::SET_ACTIVE + 4) & BIT, BIT);
    guest.end(1, VIRTUAL);
    assert_eq!(guest.read_shared(0, offset::SET_ACTIVE + 4) & BIT, 0);
}

#[test]
fn a_vm_that_stops_hears_nothing_and_a_reset_leaves_nothing_behind() {
    let guest = guest(2, 4, false, true);
    guest.pulse();
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
    guest.pulse();
    guest.vgic.silence();
    let line = physical(&guest);
    assert!(!line.enabled && !line.active && !line.pending());
    // A write of a vCPU that has not noticed yet turns nothing on.
    guest.write_shared(1, offset::SET_ENABLE + 4, BIT);
    guest.pulse();
    assert!(!physical(&guest).enabled);
    guest.reset();
    assert!(!physical(&guest).enabled && !physical(&guest).pending());
    guest.enable_all();
    trigger(&guest, true);
    assert_eq!([0, 1].map(|vcpu| guest.acknowledge(vcpu)), [None, None]);
    guest.pulse();
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
}

#[test]
fn what_was_just_being_taken_at_a_reset_is_dropped() {
    let guest = guest(1, 4, false, true);
    let device = guest.device.unwrap();
    device.set_line(true);
    let taken = device.acknowledge(0).unwrap();
    device.set_line(false);
    guest.reset();
    let none = guest
        .vgic
        .device(0, taken, None::<&mut super::fake::Interface>);
    assert_eq!(none, Some(VcpuSet::NONE));
    guest.enable_all();
    assert_eq!(guest.acknowledge(0), None);
    let foreign = guest
        .vgic
        .device(0, 99, None::<&mut super::fake::Interface>);
    assert_eq!(foreign, None);
}

#[test]
fn one_that_comes_while_the_vcpu_is_off_is_there_when_it_starts() {
    let guest = guest(1, 4, false, true);
    let device = guest.device.unwrap();
    device.set_line(true);
    let taken = device.acknowledge(0).unwrap();
    let concerned = guest
        .vgic
        .device(0, taken, None::<&mut super::fake::Interface>);
    assert_eq!(concerned, Some(VcpuSet::only(0)));
    guest.restart(0);
    assert_eq!(guest.acknowledge(0), Some(VIRTUAL));
}

#[derive(Clone, Debug)]
enum Step {
    Pulse,
    Acknowledge(usize),
    End(usize),
    Enable(bool),
    Group(bool),
    Route(u8),
    Look(usize),
    ClearActive,
    Crowd(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Pulse),
        4 => (0..2_usize).prop_map(Step::Acknowledge),
        4 => (0..2_usize).prop_map(Step::End),
        1 => any::<bool>().prop_map(Step::Enable),
        1 => any::<bool>().prop_map(Step::Group),
        1 => (0..3_u8).prop_map(Step::Route),
        1 => (0..2_usize).prop_map(Step::Look),
        1 => Just(Step::ClearActive),
        1 => (64..70_u16).prop_map(Step::Crowd),
    ]
}

proptest! {
    #![proptest_config(config())]

    /// Whatever a guest does, with however few list registers, an edge that nobody has seen is not
    /// lost, none is made up, and the machine's interrupt does not stay active.
    #[test]
    fn no_edge_is_lost_and_none_is_made_up(
        lists in 1_usize..=3,
        two_steps: bool,
        steps in prop::collection::vec(step(), 1..if cfg!(miri) { 15 } else { 100 }),
    ) {
        let guest = guest(2, lists, two_steps, true);
        // Edges merge while one is pending: what counts is whether there was one since the last, and
        // that no more are taken than there were.
        let unseen = Cell::new(false);
        let left = Cell::new(0_u32);
        let running: [Cell<Vec<u16>>; 2] = Default::default();
        let take = |vcpu: usize| {
            let taken = guest.acknowledge(vcpu);
            if let Some(intid) = taken {
                let mut stack = running[vcpu].take();
                stack.push(intid);
                running[vcpu].set(stack);
            }
            if taken == Some(VIRTUAL) {
                assert_ne!(left.get(), 0, "an edge that nobody made");
                left.set(left.get() - 1);
                unseen.set(false);
            }
            taken.is_some()
        };
        let end = |vcpu: usize| {
            let mut stack = running[vcpu].take();
            let last = stack.pop();
            running[vcpu].set(stack);
            if let Some(intid) = last {
                guest.end(vcpu, intid);
            }
        };
        for step in steps {
            match step {
                Step::Pulse => {
                    unseen.set(true);
                    left.set(left.get() + 1);
                    guest.pulse();
                }
                Step::Acknowledge(vcpu) => { take(vcpu); }
                Step::End(vcpu) => end(vcpu),
                Step::Enable(true) => guest.write_shared(0, offset::SET_ENABLE + 4, BIT),
                Step::Enable(false) => guest.write_shared(1, offset::CLEAR_ENABLE + 4, BIT),
                Step::Group(on) => guest.write_shared(1, 0, if on { 0b11 } else { 0 }),
                Step::Route(to) => guest.write(0, (Frame::Distributor, ROUTE, 8), to.into()),
                Step::Look(vcpu) => {
                    let pending = guest.read_shared(vcpu, offset::SET_PENDING + 4) & BIT != 0;
                    prop_assert!(pending || !unseen.get());
                }
                Step::ClearActive => guest.write_shared(0, offset::CLEAR_ACTIVE + 4, BIT),
                Step::Crowd(intid) => {
                    guest.write_shared(1, offset::SET_PENDING + 8, 1 << (intid % 32));
                }
            }
        }
        guest.write_shared(0, 0, 0b11);
        guest.write_shared(0, offset::SET_ENABLE + 4, BIT);
        guest.write(0, (Frame::Distributor, ROUTE, 8), 0);
        for _ in 0..40 {
            for vcpu in [0, 1] {
                if !take(vcpu) {
                    end(vcpu);
                }
            }
        }
        prop_assert!(!unseen.get(), "an edge was lost");
        let line = physical(&guest);
        prop_assert!(!line.active && !line.pending(), "{:?}", line);
    }
}
