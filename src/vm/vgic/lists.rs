//! Which interrupts a vCPU's list registers hold.
//!
//! vCPUs are pinned, so list registers are live: they keep their contents over exits, and the CPU
//! interface works on them while the guest runs. Cordon looks at them only when it has a reason:
//!
//! - [`View::refresh`]: an SGI or a timer became pending. What the guest is done with leaves
//!   (ICH_ELRSR_EL2 says which), the new goes into a free register. No list register is read.
//! - [`View::rebuild`]: anything else. All registers are folded into the state, and filled anew.
//!
//! If there are more interrupts than registers, those with the highest priorities get one, and
//! maintenance interrupts bring Cordon back (IHI 0069, 12.4.7 ICH_HCR_EL2): NPIE when no pending one
//! is left; LRENPIE, together with the counter EOIcount, when one that has no register was
//! deactivated, which under EOImode = 0 can only have been the most urgent of those. Under
//! EOImode = 1 it can have been any, also one that another vCPU has taken, so ICC_DIR_EL1 is always
//! trapped (TDIR), and EOIcount says nothing: some implementations count priority drops there.

use super::bank::{Bank, Groups};
use super::distributor::{NOBODY, SpiBank, ones};
use super::hardware::Hardware;
use super::{CpuInterface, Timers};

/// Most list registers that the architecture allows.
pub const MAX_LISTS: usize = 16;

/// ICH_LR<n>_EL2.
mod entry {
    pub const PENDING: u64 = 1 << 62;
    pub const ACTIVE: u64 = 1 << 63;
    pub const HARDWARE: u64 = 1 << 61;
    pub const GROUP1: u64 = 1 << 60;
    pub const PRIORITY_SHIFT: u32 = 48;
    pub const MAINTENANCE_AT_END: u64 = 1 << 41;
    pub const PHYSICAL_SHIFT: u32 = 32;
}

/// ICH_HCR_EL2.
mod control {
    const ENABLE: u64 = 1;
    pub const NO_ENTRY: u64 = 1 << 2;
    pub const NONE_PENDING: u64 = 1 << 3;
    const TRAP_DIR: u64 = 1 << 14;
    /// What is always so.
    pub const BASE: u64 = ENABLE | TRAP_DIR;
    pub const EOI_COUNT_SHIFT: u32 = 27;
}

/// No INTID.
const NOTHING: u16 = u16::MAX;

/// What a vCPU's list registers hold.
#[derive(Debug, Default)]
pub struct Lists {
    /// INTIDs, where `used` says that there is one.
    held: [u16; MAX_LISTS],
    used: u16,
    /// Not everything has found room.
    overflow: bool,
}

impl Lists {
    /// Whether not everything has found room: what the guest ends then may be in none.
    pub const fn overflow(&self) -> bool {
        self.overflow
    }

    /// The guest has ended `intid`, which one of the registers still names: it is free to be signalled
    /// anew, elsewhere too. The register is given up when its CPU next looks at it.
    pub fn disown(&mut self, intid: u16) {
        for index in ones(self.used.into()) {
            if let Some(held) = self.held.get_mut(usize::from(index))
                && *held == intid
            {
                *held = NOTHING;
            }
        }
    }
}

/// A vCPU's interrupts, its own and those that come to it, and its list registers.
pub struct View<'a> {
    pub(super) vcpu: u8,
    pub(super) groups: Groups,
    pub(super) own: &'a mut Bank,
    pub(super) spis: &'a mut [SpiBank],
    pub(super) lists: &'a mut Lists,
    pub(super) timers: &'a Timers,
    pub(super) hardware: &'a Hardware,
}

/// The most urgent of many.
struct Top {
    /// Priority, then INTID.
    keys: [u32; MAX_LISTS],
    len: usize,
    /// There were more.
    more: bool,
}

impl Top {
    const fn new() -> Self {
        Self {
            keys: [u32::MAX; MAX_LISTS],
            len: 0,
            more: false,
        }
    }

    fn offer(&mut self, priority: u8, intid: u16) {
        let mut key = u32::from(priority) << 16 | u32::from(intid);
        for slot in &mut self.keys {
            if key < *slot {
                core::mem::swap(slot, &mut key);
            }
        }
        self.more |= key != u32::MAX;
        self.len = (self.len + 1).min(MAX_LISTS);
    }

    fn intids(&self, count: usize) -> impl Iterator<Item = u16> {
        self.keys
            .iter()
            .take(count)
            .map(|key| (key & 0xffff) as u16)
    }
}

impl View<'_> {
    /// One of this vCPU's own interrupts may have become pending. (Of shared ones it hears by a knock,
    /// and rebuilds.) `empty` is [`CpuInterface::empty_lists`] since the guest last ran.
    pub fn refresh(&mut self, empty: u16, cpu: &mut impl CpuInterface) {
        if self.lists.overflow || !self.has_room_for_own(empty, cpu) {
            self.rebuild(cpu);
        }
    }

    /// Whether no list register holds anything, and no physical interrupt waits for a virtual one to
    /// end: then the state is all there is.
    pub fn is_at_rest(&mut self, cpu: &impl CpuInterface) -> bool {
        self.retire(cpu.empty_lists());
        self.lists.used == 0 && !self.lists.overflow && self.own.forwarded == 0
    }

    /// Whether a shared interrupt waits for this vCPU: one that was recalled from another one's list
    /// register may be meant for it now.
    pub fn has_shared_candidates(&self) -> bool {
        self.spis.iter().any(|spis| {
            let candidates = spis.bank.candidates(self.groups);
            spis.of(candidates, &spis.target, self.vcpu) != 0
        })
    }

    /// Gives up the registers of interrupts that the guest is done with: those of `empty` that are in
    /// use.
    pub fn retire(&mut self, empty: u16) {
        for index in ones((self.lists.used & empty).into()) {
            self.fold(index, 0);
        }
    }

    /// Puts what of its own became pending into free registers. False if there are too few, or if what
    /// became pending is in one already.
    fn has_room_for_own(&mut self, empty: u16, cpu: &mut impl CpuInterface) -> bool {
        self.retire(empty);
        if self.own.again(self.groups) != 0 {
            return false;
        }
        ones(self.own.candidates(self.groups)).all(|number| self.place(number, cpu))
    }

    /// Fills the list registers of a CPU that has nothing in them, and sets its controls.
    pub fn begin(&mut self, cpu: &mut impl CpuInterface) {
        cpu.set_control(control::BASE);
        self.rebuild(cpu);
    }

    /// Takes stock of all list registers and fills them anew.
    pub fn rebuild(&mut self, cpu: &mut impl CpuInterface) {
        self.gather(cpu);
        self.fill(cpu);
    }

    /// Empties all list registers into the state. Nothing is in flight afterwards.
    pub fn gather(&mut self, cpu: &mut impl CpuInterface) {
        if self.lists.overflow {
            let mut deactivated = cpu.control() >> control::EOI_COUNT_SHIFT & 0x1f;
            if cpu.splits_end() {
                deactivated = 0;
            }
            for _ in 0..deactivated {
                self.deactivate_most_urgent();
            }
            cpu.set_control(control::BASE);
            self.lists.overflow = false;
        }
        for index in ones(self.lists.used.into()) {
            let value = cpu.read_list(index.into());
            cpu.write_list(index.into(), 0);
            self.fold(index, value);
        }
        self.settle_timers(cpu);
        self.hardware.settle(self.spis);
    }

    /// List register `index` holds `value`, and is given up.
    fn fold(&mut self, index: u16, value: u64) {
        self.lists.used &= !(1 << index);
        let held = self.lists.held.get(usize::from(index)).copied();
        let Some((intid, (bank, holder))) = held.and_then(|intid| Some((intid, self.bank(intid)?)))
        else {
            return;
        };
        let bit = 1 << (intid % 32);
        if value & entry::PENDING != 0 {
            bank.latch |= bank.in_lr & bit;
        }
        if value & entry::ACTIVE != 0 {
            bank.active |= bit;
        } else {
            bank.active &= !bit;
            if let Some(holder) = holder {
                *holder = NOBODY;
            }
        }
        let by_hardware = bank.forwarded & bank.in_hardware & bit != 0;
        if by_hardware && value & (entry::PENDING | entry::ACTIVE) == 0 {
            // The CPU has deactivated the physical interrupt as well. If its line is still high,
            // it comes again.
            bank.forwarded &= !bit;
            bank.line &= !bit;
        }
        bank.in_flight &= !bit;
        bank.in_lr &= !bit;
        bank.in_hardware &= !bit;
    }

    /// Timers that were forwarded, but whose line has dropped before the guest took the interrupt,
    /// or while it was active by other means.
    fn settle_timers(&mut self, cpu: &mut impl CpuInterface) {
        let idle = self.own.forwarded & !self.own.active & !self.own.in_flight;
        for intid in ones(idle) {
            if cpu.timer_line(intid) {
                continue;
            }
            self.own.forwarded &= !(1 << intid);
            self.own.line &= !(1 << intid);
            if let Some(physical) = self.timers.physical_intid(intid) {
                cpu.deactivate(physical);
            }
        }
    }

    fn fill(&mut self, cpu: &mut impl CpuInterface) {
        let (active, pending) = self.rank();
        let room = cpu.list_registers().min(MAX_LISTS);
        let for_active = active
            .len
            .min(room - usize::from(pending.len > 0).min(room));
        let for_pending = pending.len.min(room - for_active);
        for intid in active.intids(for_active).chain(pending.intids(for_pending)) {
            self.place(intid, cpu);
        }
        let mut flags = control::BASE;
        if pending.more || for_pending < pending.len {
            flags |= control::NONE_PENDING;
        }
        if active.more || for_active < active.len {
            flags |= control::NO_ENTRY;
        }
        if flags != control::BASE {
            self.lists.overflow = true;
            cpu.set_control(flags);
        }
    }

    /// What is active, and what is pending and may be signalled. What is both is active.
    fn rank(&self) -> (Top, Top) {
        let (mut active, mut pending) = (Top::new(), Top::new());
        for number in ones(self.own.active) {
            active.offer(self.own.priority(number), number);
        }
        for number in ones(self.own.candidates(self.groups)) {
            pending.offer(self.own.priority(number), number);
        }
        for (first, spis) in (32..).step_by(32).zip(self.spis.iter()) {
            for number in ones(spis.of(spis.bank.active, &spis.holder, self.vcpu)) {
                active.offer(spis.bank.priority(number), first + number);
            }
            let candidates = spis.bank.candidates(self.groups);
            for number in ones(spis.of(candidates, &spis.target, self.vcpu)) {
                pending.offer(spis.bank.priority(number), first + number);
            }
        }
        (active, pending)
    }

    /// Puts an interrupt into a free list register, if there is one.
    fn place(&mut self, intid: u16, cpu: &mut impl CpuInterface) -> bool {
        let index = (!self.lists.used).trailing_zeros() as usize;
        if index >= cpu.list_registers() {
            return false;
        }
        let physical = match intid {
            ..32 => self.timers.physical_intid(intid),
            _ => self.hardware.physical(intid),
        };
        let (vcpu, groups) = (self.vcpu, self.groups);
        let Some((bank, holder)) = self.bank(intid) else {
            return true;
        };
        cpu.write_list(index, launch(bank, groups, intid, physical));
        if let Some(holder) = holder {
            *holder = vcpu;
        }
        if let Some(held) = self.lists.held.get_mut(index) {
            *held = intid;
        }
        self.lists.used |= 1 << index;
        true
    }

    /// The guest has deactivated an interrupt that is in no list register, by a write to EOIR: the
    /// most urgent of those that are active.
    fn deactivate_most_urgent(&mut self) {
        let mut top = Top::new();
        for number in ones(self.own.active & !self.own.in_flight) {
            top.offer(self.own.priority(number), number);
        }
        for (first, spis) in (32..).step_by(32).zip(self.spis.iter()) {
            let active = spis.bank.active & !spis.bank.in_flight;
            for number in ones(spis.of(active, &spis.holder, self.vcpu)) {
                top.offer(spis.bank.priority(number), first + number);
            }
        }
        if let Some(intid) = top.intids(top.len.min(1)).next() {
            self.deactivate(intid);
        }
    }

    /// The guest has deactivated `intid`, which is in no list register.
    pub fn deactivate(&mut self, intid: u16) {
        if let Some((bank, holder)) = self.bank(intid) {
            bank.active &= !(1 << (intid % 32));
            if let Some(holder) = holder {
                *holder = NOBODY;
            }
        }
    }

    /// The bank that `intid` is in, and for a shared interrupt who has it.
    fn bank(&mut self, intid: u16) -> Option<(&mut Bank, Option<&mut u8>)> {
        match usize::from(intid / 32).checked_sub(1) {
            None => Some((&mut *self.own, None)),
            Some(index) => {
                let spis = self.spis.get_mut(index)?;
                let holder = &mut spis.holder[usize::from(intid % 32)];
                Some((&mut spis.bank, Some(holder)))
            }
        }
    }
}

/// The contents of a list register for an interrupt, which is in flight from now on.
///
/// A list register cannot be both linked to a physical interrupt and pending while active
/// (IHI 0069, ICH_LR<n>_EL2.State): then the link is left out, and the physical interrupt is
/// settled when it ends, which must be seen. So must the end of a level-sensitive interrupt without a
/// link, since its line may still be high.
fn launch(bank: &mut Bank, groups: Groups, intid: u16, physical: Option<u16>) -> u64 {
    let bit = 1 << (intid % 32);
    let active = bank.active & bit != 0;
    // What is active may be disabled; then the latch stays where it is.
    let latched = bank.latch & bank.forwardable(groups) & bit != 0;
    let mut value = u64::from(intid);
    value |= u64::from(bank.priority(intid)) << entry::PRIORITY_SHIFT;
    if bank.group1 & bit != 0 {
        value |= entry::GROUP1;
    }
    if active {
        value |= entry::ACTIVE;
    }
    if latched || !active {
        value |= entry::PENDING;
    }
    match physical.filter(|_| bank.forwarded & bit != 0 && !(active && latched)) {
        Some(physical) => {
            value |= entry::HARDWARE | u64::from(physical) << entry::PHYSICAL_SHIFT;
            bank.in_hardware |= bit;
        }
        None if (!bank.edge | bank.forwarded) & bit != 0 => value |= entry::MAINTENANCE_AT_END,
        None => {}
    }
    bank.in_flight |= bit;
    if latched {
        bank.in_lr |= bit;
        bank.latch &= !bit;
    }
    value
}
