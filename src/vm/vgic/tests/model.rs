//! What a GIC without list registers would do, for one vCPU and INTIDs 0 to 63.

use super::super::{PHYSICAL_TIMER, VIRTUAL_TIMER};
use alloc::vec::Vec;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Enabled,
    Pending,
}

/// What a guest, or a device, does.
#[derive(Clone, Debug)]
pub enum Operation {
    Set(Kind, u16, bool),
    Priority(u16, u8),
    Send(u16),
    Line(u16, bool),
    Timer(u16, bool),
    Groups(u8),
    Acknowledge,
    End,
}

/// Few interrupts, so that things happen to the same ones.
fn intid() -> impl Strategy<Value = u16> {
    prop::sample::select(
        &[
            0_u16,
            1,
            2,
            3,
            20,
            VIRTUAL_TIMER,
            PHYSICAL_TIMER,
            33,
            34,
            40,
        ][..],
    )
}

pub fn operation() -> impl Strategy<Value = Operation> {
    let timer = prop::sample::select(&[VIRTUAL_TIMER, PHYSICAL_TIMER][..]);
    let kind = prop_oneof![Just(Kind::Enabled), Just(Kind::Pending)];
    prop_oneof![
        3 => (kind, intid(), any::<bool>()).prop_map(|(k, i, on)| Operation::Set(k, i, on)),
        2 => (intid(), 0_u8..31).prop_map(|(i, p)| Operation::Priority(i, p << 3 | p & 7)),
        2 => (0_u16..4).prop_map(Operation::Send),
        2 => (33_u16..35, any::<bool>()).prop_map(|(i, high)| Operation::Line(i, high)),
        2 => (timer, any::<bool>()).prop_map(|(i, high)| Operation::Timer(i, high)),
        1 => prop_oneof![1 => Just(0), 4 => Just(2), 1 => Just(3)].prop_map(Operation::Groups),
        5 => Just(Operation::Acknowledge),
        4 => Just(Operation::End),
    ]
}

#[derive(Clone, Copy, Debug)]
struct Interrupt {
    enabled: bool,
    latch: bool,
    line: bool,
    active: bool,
    priority: u8,
}

pub struct Model {
    interrupts: [Interrupt; 64],
    running: Vec<u16>,
    /// Priorities at the time of the acknowledgement.
    priorities: Vec<u8>,
    forwarding: bool,
}

impl Model {
    pub fn new(_two_steps: bool) -> Self {
        let interrupt = Interrupt {
            enabled: true,
            latch: false,
            line: false,
            active: false,
            priority: 0x80,
        };
        Self {
            interrupts: [interrupt; 64],
            running: Vec::new(),
            priorities: Vec::new(),
            forwarding: true,
        }
    }

    fn bits(&self, test: impl Fn(&Interrupt) -> bool) -> u64 {
        let all = self.interrupts.iter().enumerate();
        all.fold(0, |bits, (intid, one)| bits | u64::from(test(one)) << intid)
    }

    pub fn pending(&self) -> u64 {
        self.bits(|one| one.latch || one.line)
    }

    pub fn active(&self) -> u64 {
        self.bits(|one| one.active)
    }

    pub fn next(&self) -> Option<u16> {
        let running = self.priorities.last().copied().unwrap_or(0xff);
        let ready = |intid: &u16| {
            let one = &self.interrupts[usize::from(*intid)];
            self.forwarding && one.enabled && (one.latch || one.line) && !one.active
        };
        let priority = |intid: u16| self.interrupts[usize::from(intid)].priority;
        let best = (0..64)
            .filter(ready)
            .min_by_key(|intid| (priority(*intid), *intid))?;
        (priority(best) < running).then_some(best)
    }

    pub fn obey(&mut self, operation: &Operation) -> Option<u16> {
        match *operation {
            Operation::Set(Kind::Enabled, intid, on) => self.of(intid).enabled = on,
            Operation::Set(Kind::Pending, intid, on) => self.of(intid).latch = on,
            Operation::Priority(intid, priority) => self.of(intid).priority = priority & 0xf8,
            Operation::Send(intid) => self.of(intid).latch = true,
            Operation::Line(intid, high) | Operation::Timer(intid, high) => {
                self.of(intid).line = high;
            }
            // All interrupts are in group 1.
            Operation::Groups(groups) => self.forwarding = groups & 2 != 0,
            Operation::Acknowledge => {
                let taken = self.next()?;
                let one = self.of(taken);
                one.latch = false;
                one.active = true;
                let priority = one.priority;
                self.running.push(taken);
                self.priorities.push(priority);
                return Some(taken);
            }
            Operation::End => {
                self.priorities.pop();
                if let Some(intid) = self.running.pop() {
                    self.of(intid).active = false;
                }
            }
        }
        None
    }

    fn of(&mut self, intid: u16) -> &mut Interrupt {
        &mut self.interrupts[usize::from(intid)]
    }
}
