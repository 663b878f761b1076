//! A guest with its virtual CPU interfaces, as IHI 0069 4.6 and 12.4 describe them.

use super::super::*;
use super::devices::{self, FakeDistributor};
use super::model::{Kind, Operation};
use super::offset;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const HARDWARE: u64 = 1 << 61;
const EOI: u64 = 1 << 41;

/// One CPU's interface, and its guest's timers.
#[derive(Debug)]
pub struct Interface {
    lists: Vec<u64>,
    control: u64,
    /// Lines of the guest's timers, by virtual INTID.
    lines: u32,
    /// Physical interrupts that are active, by INTID.
    active: u32,
    /// Interrupts that have been acknowledged and not ended, in order, with their priorities.
    running: Vec<(u16, u8)>,
    /// Where a device's interrupt is active.
    device: Option<&'static FakeDistributor>,
    two_steps: bool,
}

impl Interface {
    pub fn new(lists: usize, two_steps: bool) -> Self {
        Self {
            lists: alloc::vec![0; lists],
            control: 1,
            lines: 0,
            active: 0,
            running: Vec::new(),
            device: None,
            two_steps,
        }
    }

    fn intid(entry: u64) -> u16 {
        (entry & 0xffff) as u16
    }

    fn priority(entry: u64) -> u8 {
        (entry >> 48) as u8
    }

    /// The list register with what is taken next. Both groups are enabled in the interface.
    fn most_urgent(&self) -> Option<usize> {
        let running = self.running.last().map_or(0xff, |(_, priority)| *priority);
        let pending = |index: &usize| self.lists[*index] & (PENDING | ACTIVE) == PENDING;
        let key = |index: &usize| {
            (
                Self::priority(self.lists[*index]),
                Self::intid(self.lists[*index]),
            )
        };
        let best = (0..self.lists.len()).filter(pending).min_by_key(key)?;
        (Self::priority(self.lists[best]) < running).then_some(best)
    }

    fn acknowledge(&mut self) -> Option<u16> {
        let index = self.most_urgent()?;
        let entry = &mut self.lists[index];
        *entry = *entry & !PENDING | ACTIVE;
        let taken = (Self::intid(*entry), Self::priority(*entry));
        self.running.push(taken);
        Some(taken.0)
    }

    /// The end, or its first step. Where the interrupt is in no list register that is counted, as some
    /// implementations do also for the first of two steps.
    fn end(&mut self, intid: u16) {
        self.running.pop();
        let here = |entry: &u64| Self::intid(*entry) == intid && *entry & ACTIVE != 0;
        if !self.two_steps {
            self.deactivate_virtual(intid);
        } else if !self.lists.iter().any(here) {
            self.control += 1 << 27;
        }
    }

    fn deactivate_virtual(&mut self, intid: u16) {
        let active = |entry: &&mut u64| Self::intid(**entry) == intid && **entry & ACTIVE != 0;
        match self.lists.iter_mut().find(active) {
            Some(entry) => {
                *entry &= !ACTIVE;
                if *entry & HARDWARE != 0 {
                    match (*entry >> 32 & 0x1fff) as u16 {
                        timer @ ..32 => self.active &= !(1 << timer),
                        device => self.device.unwrap().deactivate(device),
                    }
                }
            }
            None => self.control += 1 << 27,
        }
    }

    /// Whether the maintenance interrupt is asserted.
    fn maintenance(&self) -> bool {
        let none_pending = self
            .lists
            .iter()
            .all(|entry| entry & (PENDING | ACTIVE) != PENDING);
        let ended = |entry: &u64| entry & (PENDING | ACTIVE | HARDWARE | EOI) == EOI;
        self.control & 1 << 3 != 0 && none_pending
            || self.control & 1 << 2 != 0 && self.control >> 27 != 0
            || self.lists.iter().any(ended)
    }
}

impl CpuInterface for Interface {
    fn list_registers(&self) -> usize {
        self.lists.len()
    }

    fn read_list(&self, index: usize) -> u64 {
        self.lists[index]
    }

    fn write_list(&mut self, index: usize, value: u64) {
        let twin = |entry: &u64| {
            entry & (PENDING | ACTIVE) != 0
                && value != 0
                && Self::intid(*entry) == Self::intid(value)
        };
        assert!(
            !self.lists.iter().any(twin),
            "one INTID in two list registers"
        );
        let state = value & (PENDING | ACTIVE);
        assert!(value & HARDWARE == 0 || state != PENDING | ACTIVE);
        self.lists[index] = value;
    }

    fn empty_lists(&self) -> u16 {
        let empty = |entry: &u64| {
            entry & (PENDING | ACTIVE) == 0 && (entry & HARDWARE != 0 || entry & EOI == 0)
        };
        let bits = self.lists.iter().enumerate();
        bits.fold(0, |bits, (index, entry)| {
            bits | u16::from(empty(entry)) << index
        })
    }

    fn control(&self) -> u64 {
        self.control
    }

    fn set_control(&mut self, value: u64) {
        self.control = value;
    }

    fn splits_end(&self) -> bool {
        self.two_steps
    }

    fn timer_line(&self, intid: u16) -> bool {
        self.lines >> intid & 1 != 0
    }

    fn wait(&self) {}

    fn silence_timers(&mut self) {
        self.lines = 0;
    }

    fn deactivate(&mut self, physical: u16) {
        assert_ne!(self.active >> physical & 1, 0, "not active");
        self.active &= !(1 << physical);
    }
}

/// A VM whose vCPUs have each a CPU.
pub struct Guest {
    pub vgic: Vgic,
    cpus: Vec<RefCell<Interface>>,
    /// Timers' lines, by vCPU.
    lines: Vec<Cell<u32>>,
    two_steps: bool,
    /// What its device is wired to, if it has one.
    pub device: Option<&'static FakeDistributor>,
    /// What the last [`Operation::Acknowledge`] gave.
    pub acknowledged: Option<u16>,
}

impl Guest {
    /// All interrupts enabled, in group 1, with priority 0x80.
    pub fn new(vcpus: usize, lists: usize, two_steps: bool) -> Self {
        let timers = Timers {
            virtual_: Some(VIRTUAL_TIMER),
            physical: Some(PHYSICAL_TIMER),
        };
        let guest = Self {
            vgic: Vgic::new(vcpus, timers),
            cpus: (0..vcpus)
                .map(|_| RefCell::new(Interface::new(lists, two_steps)))
                .collect(),
            lines: (0..vcpus).map(|_| Cell::new(0)).collect(),
            two_steps,
            device: None,
            acknowledged: None,
        };
        for vcpu in 0..vcpus {
            guest.vgic.start(vcpu, &mut *guest.cpus[vcpu].borrow_mut());
        }
        guest.enable_all();
        guest
    }

    /// One that was given a device as well.
    pub fn wired(
        vcpus: usize,
        lists: usize,
        two_steps: bool,
        device: &'static FakeDistributor,
    ) -> Self {
        let mut guest = Self::new(vcpus, lists, two_steps);
        guest.device = Some(device);
        for cpu in &guest.cpus {
            cpu.borrow_mut().device = guest.device;
        }
        guest.vgic.connect(Wiring {
            wires: alloc::vec![Wire {
                virtual_: devices::VIRTUAL,
                physical: devices::PHYSICAL,
            }],
            cpus: (0..vcpus).collect(),
            distributor: device,
        });
        guest.enable_all();
        guest
    }

    /// As an operating system would, when it starts.
    pub fn enable_all(&self) {
        let guest = self;
        guest.write(0, (Frame::Distributor, 0, 4), 0b11);
        for vcpu in 0..guest.cpus.len() {
            guest.write_own(vcpu, offset::GROUP, u32::MAX);
            guest.write_own(vcpu, offset::SET_ENABLE, u32::MAX);
            for word in 0..8 {
                guest.write_own(vcpu, offset::PRIORITY + 4 * word, 0x8080_8080);
            }
        }
        for bank in 1..4 {
            guest.write_shared(0, offset::GROUP + 4 * bank, u32::MAX);
            guest.write_shared(0, offset::SET_ENABLE + 4 * bank, u32::MAX);
            for word in 0..8 {
                guest.write_shared(0, offset::PRIORITY + 32 * bank + 4 * word, 0x8080_8080);
            }
        }
    }

    /// The VM is reset: all vCPUs stop, and start again.
    pub fn reset(&self) {
        for (vcpu, cpu) in self.cpus.iter().enumerate() {
            self.vgic.stop(vcpu, &mut *cpu.borrow_mut());
        }
        self.vgic.reset();
        for vcpu in 0..self.cpus.len() {
            self.restart(vcpu);
        }
    }

    /// The device's line changes.
    pub fn device_line(&self, high: bool) {
        self.device.unwrap().set_line(high);
        self.settle();
    }

    /// The device's line goes up and down.
    pub fn pulse(&self) {
        self.device_line(true);
        self.device_line(false);
    }

    /// Takes what the device's interrupt does to a CPU. True if one came.
    fn take_device(&self, vcpu: usize) -> bool {
        let Some(physical) = self.device.and_then(|device| device.acknowledge(vcpu)) else {
            return false;
        };
        let mut cpu = self.cpus[vcpu].borrow_mut();
        let concerned = self.vgic.device(vcpu, physical, Some(&mut *cpu));
        self.vgic.knock(concerned.unwrap());
        true
    }

    /// Everything that interrupts would do happens: knocks are answered, timers fire, maintenance
    /// is done.
    fn settle(&self) {
        self.settle_once();
        while (0..self.cpus.len()).any(|vcpu| self.take_device(vcpu)) {
            self.settle_once();
        }
    }

    fn settle_once(&self) {
        for (vcpu, cpu) in self.cpus.iter().enumerate() {
            let cpu = &mut *cpu.borrow_mut();
            for round in 0.. {
                assert!(round < 40, "an endless row of interrupts");
                self.vgic.answer(vcpu, cpu);
                let firing = cpu.lines & !cpu.active;
                for intid in [VIRTUAL_TIMER, PHYSICAL_TIMER] {
                    if firing >> intid & 1 != 0 {
                        cpu.active |= 1 << intid;
                        self.vgic.timer(vcpu, intid, cpu);
                    }
                }
                if cpu.maintenance() {
                    self.vgic.maintain(vcpu, cpu);
                } else if firing == 0 {
                    break;
                }
            }
        }
    }

    pub fn write(&self, vcpu: usize, place: (Frame, u64, u8), value: u64) {
        let mut cpu = self.cpus[vcpu].borrow_mut();
        let concerned = self.vgic.write(vcpu, place, value, &mut *cpu, self);
        self.vgic.knock(concerned);
        drop(cpu);
        self.settle();
    }

    pub fn read(&self, vcpu: usize, place: (Frame, u64, u8)) -> u64 {
        let mut cpu = self.cpus[vcpu].borrow_mut();
        let value = self.vgic.read(vcpu, place, &mut *cpu, self);
        drop(cpu);
        self.settle();
        value
    }

    pub fn write_own(&self, vcpu: usize, register: u64, value: u32) {
        let base = vcpu as u64 * REDISTRIBUTOR_SIZE + FRAME_SIZE;
        let place = (Frame::Redistributors, base + register, 4);
        self.write(vcpu, place, value.into());
    }

    pub fn read_own(&self, vcpu: usize, owner: usize, register: u64) -> u32 {
        let base = owner as u64 * REDISTRIBUTOR_SIZE + FRAME_SIZE;
        self.read(vcpu, (Frame::Redistributors, base + register, 4)) as u32
    }

    pub fn write_shared(&self, vcpu: usize, register: u64, value: u32) {
        self.write(vcpu, (Frame::Distributor, register, 4), value.into());
    }

    pub fn read_shared(&self, vcpu: usize, register: u64) -> u32 {
        self.read(vcpu, (Frame::Distributor, register, 4)) as u32
    }

    pub fn system_register(&self, vcpu: usize, register: SystemRegister, value: u64) {
        let mut cpu = self.cpus[vcpu].borrow_mut();
        let vgic = &self.vgic;
        let concerned = vgic.write_system_register(vcpu, register, value, &mut *cpu, self);
        vgic.knock(concerned.unwrap());
        drop(cpu);
        self.settle();
    }

    pub fn set_line(&self, intid: u16, high: bool) {
        let concerned = self.vgic.set_line(intid, high);
        self.vgic.knock(concerned);
        self.settle();
    }

    /// A timer's line changes. A pending interrupt whose line drops is withdrawn when somebody
    /// looks at the list registers next, so somebody does.
    pub fn set_timer(&self, vcpu: usize, intid: u16, high: bool) {
        let mut cpu = self.cpus[vcpu].borrow_mut();
        cpu.lines = cpu.lines & !(1 << intid) | u32::from(high) << intid;
        self.lines[vcpu].set(cpu.lines);
        self.vgic.maintain(vcpu, &mut *cpu);
        drop(cpu);
        self.settle();
    }

    pub fn restart(&self, vcpu: usize) {
        let mut cpu = self.cpus[vcpu].borrow_mut();
        cpu.silence_timers();
        self.lines[vcpu].set(0);
        self.vgic.stop(vcpu, &mut *cpu);
        assert!(cpu.lists.iter().all(|entry| *entry == 0));
        cpu.running.clear();
        self.vgic.start(vcpu, &mut *cpu);
        drop(cpu);
        self.settle();
    }

    pub fn physically_active(&self, vcpu: usize) -> u32 {
        self.cpus[vcpu].borrow().active
    }

    pub fn acknowledge(&self, vcpu: usize) -> Option<u16> {
        let taken = self.cpus[vcpu].borrow_mut().acknowledge();
        self.settle();
        taken
    }

    /// Ends `intid`: priority drop and deactivation, which is trapped if it is a step of its own.
    pub fn end(&self, vcpu: usize, intid: u16) {
        self.drop_priority(vcpu, intid);
        if self.two_steps {
            self.deactivate(vcpu, intid);
        }
    }

    /// Writes ICC_EOIR1_EL1: with two steps this is only the first.
    pub fn drop_priority(&self, vcpu: usize, intid: u16) {
        self.cpus[vcpu].borrow_mut().end(intid);
        self.settle();
    }

    /// Writes ICC_DIR_EL1.
    pub fn deactivate(&self, vcpu: usize, intid: u16) {
        let control = self.cpus[vcpu].borrow().control;
        assert_ne!(control & 1 << 14, 0, "ICC_DIR_EL1 is not trapped");
        self.system_register(vcpu, ICC_DIR, intid.into());
    }

    /// What vCPU 0 takes next.
    pub fn next(&self) -> Option<u16> {
        self.next_of(0)
    }

    pub fn next_of(&self, vcpu: usize) -> Option<u16> {
        let cpu = self.cpus[vcpu].borrow();
        cpu.most_urgent()
            .map(|index| Interface::intid(cpu.lists[index]))
    }

    /// What is pending of INTIDs 0 to 63.
    pub fn pending(&mut self) -> u64 {
        let shared = u64::from(self.read_shared(0, offset::SET_PENDING + 4));
        u64::from(self.read_own(0, 0, offset::SET_PENDING)) | shared << 32
    }

    /// What is active of INTIDs 0 to 63.
    pub fn active(&mut self) -> u64 {
        let shared = u64::from(self.read_shared(0, offset::SET_ACTIVE + 4));
        u64::from(self.read_own(0, 0, offset::SET_ACTIVE)) | shared << 32
    }

    pub fn obey(&mut self, operation: &Operation) {
        match *operation {
            Operation::Set(kind, intid, on) => self.set(kind, intid, on),
            Operation::Priority(intid, priority) => {
                let at = offset::PRIORITY + u64::from(intid);
                let place = match intid {
                    ..32 => (Frame::Redistributors, FRAME_SIZE + at, 1),
                    _ => (Frame::Distributor, at, 1),
                };
                self.write(0, place, priority.into());
            }
            Operation::Send(intid) => {
                self.system_register(0, super::SGI1R, 1 | u64::from(intid) << 24);
            }
            Operation::Line(intid, high) => self.set_line(intid, high),
            Operation::Timer(intid, high) => self.set_timer(0, intid, high),
            Operation::Groups(groups) => self.write(0, (Frame::Distributor, 0, 4), groups.into()),
            Operation::Acknowledge => self.acknowledged = self.acknowledge(0),
            Operation::End => {
                let last = self.cpus[0].borrow().running.last().copied();
                if let Some((intid, _)) = last {
                    self.end(0, intid);
                }
            }
        }
    }

    fn set(&mut self, kind: Kind, intid: u16, on: bool) {
        let (set, clear) = match kind {
            Kind::Enabled => (offset::SET_ENABLE, offset::CLEAR_ENABLE),
            Kind::Pending => (offset::SET_PENDING, offset::CLEAR_PENDING),
        };
        let (register, bit) = (if on { set } else { clear }, 1 << (intid % 32));
        match intid {
            ..32 => self.write_own(0, register, bit),
            _ => self.write_shared(0, register + 4 * u64::from(intid / 32), bit),
        }
    }
}

/// A CPU that is kicked empties its list registers at once. A timer's line can be seen from
/// everywhere, that of the calling CPU without being borrowed.
impl Others for Guest {
    fn kick(&self, vcpu: usize) {
        self.vgic
            .surrender(vcpu, &mut *self.cpus[vcpu].borrow_mut());
    }

    fn timer_lines(&self, vcpu: usize) -> u32 {
        self.lines[vcpu].get()
    }
}
