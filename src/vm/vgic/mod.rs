//! The VM's interrupt controller: a GICv3 with affinity routing and one security state, without LPIs
//! (Arm IHI 0069, "GIC architecture").
//!
//! ```text
//!   bank           32 interrupts: what is pending, enabled, active
//!   registers      how the frames' registers lead there
//!   distributor    GICD: the shared interrupts, and where they go
//!   redistributor  GICR: each vCPU's own
//!   sgi            ICC_SGI1R_EL1 and its siblings
//!   lists          what is in the list registers
//!   hardware       shared interrupts that come from devices of the machine
//! ```
//!
//! The guest uses the CPU interface (ICC_*_EL1) by itself; hardware gives it the virtual one.
//! Distributor and redistributors are emulated. **One lock** per VM protects all their state; it is
//! the innermost of the VM's locks, and nothing is called while it is held. List registers belong to
//! the CPU that they are in, so a CPU changes the state, then [`knocks`](Vgic::knock) at the vCPUs
//! that this concerns and gets their CPUs out of their guests; each then looks after its own list
//! registers in [`answer`](Vgic::answer). The door is set after the state and looked at before it,
//! so no knock is missed. What must be known of an interrupt in another CPU's list register is had
//! by recalling it (`Vgic::recall`). An exit that has nothing to do with interrupts never comes here.

mod bank;
mod distributor;
mod hardware;
mod lists;
mod redistributor;
mod registers;
mod sgi;
mod state;
#[cfg(test)]
mod tests;

use crate::ras::esr::SystemRegister;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
pub use hardware::{PhysicalDistributor, Wire, Wiring};
pub use lists::MAX_LISTS;
use redistributor::Redistributor;
use registers::FRAME_SIZE;
use sgi::{Generator, Sgi};
use spin::{Mutex, MutexGuard};
use state::State;

/// Bytes of the distributor's registers.
pub const DISTRIBUTOR_SIZE: u64 = FRAME_SIZE;
/// Bytes of one vCPU's redistributor.
pub const REDISTRIBUTOR_SIZE: u64 = 2 * FRAME_SIZE;

/// INTID of the guest's EL1 virtual timer.
pub const VIRTUAL_TIMER: u16 = 27;
/// INTID of the guest's EL1 physical timer.
pub const PHYSICAL_TIMER: u16 = 30;

/// ICC_DIR_EL1: any vCPU may deactivate a shared interrupt, whoever has taken it (IHI 0069, 4.1.1).
const ICC_DIR: SystemRegister = SystemRegister {
    op0: 3,
    op1: 0,
    crn: 12,
    crm: 11,
    op2: 1,
};

/// The virtual CPU interface's hypervisor side on the CPU that runs this (ICH_*_EL2).
pub trait CpuInterface {
    /// How many list registers there are, 1 to 16.
    fn list_registers(&self) -> usize;
    /// ICH_LR`index`_EL2.
    fn read_list(&self, index: usize) -> u64;
    /// Sets ICH_LR`index`_EL2.
    fn write_list(&mut self, index: usize, value: u64);
    /// ICH_ELRSR_EL2: which list registers hold nothing any more.
    fn empty_lists(&self) -> u16;
    /// ICH_HCR_EL2.
    fn control(&self) -> u64;
    /// Sets ICH_HCR_EL2.
    fn set_control(&mut self, value: u64);
    /// Whether the guest ends an interrupt in two steps (ICH_VMCR_EL2.VEOIM, its EOImode).
    fn splits_end(&self) -> bool;
    /// Whether the guest's timer with this virtual INTID asks for an interrupt.
    fn timer_line(&self, intid: u16) -> bool;
    /// Sleeps until there may be an interrupt for the guest; not at all if one is in a list register.
    fn wait(&self);
    /// Turns the guest's timers off.
    fn silence_timers(&mut self);
    /// Deactivates a physical interrupt (ICC_DIR_EL1).
    fn deactivate(&mut self, physical: u16);
}

/// The other CPUs of a VM, by the numbers of their vCPUs.
pub trait Others {
    /// Gets a CPU out of its guest.
    fn kick(&self, vcpu: usize);
    /// Which of the timers of a vCPU ask for an interrupt at this moment, as bits by INTID.
    fn timer_lines(&self, vcpu: usize) -> u32;
}

/// Physical INTIDs of the two timers that guests have; `None` for one whose interrupt is not wired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    /// EL1 virtual timer.
    pub virtual_: Option<u16>,
    /// EL1 physical timer.
    pub physical: Option<u16>,
}

impl Timers {
    /// What is behind a virtual INTID.
    const fn physical_intid(&self, intid: u16) -> Option<u16> {
        match intid {
            VIRTUAL_TIMER => self.virtual_,
            PHYSICAL_TIMER => self.physical,
            _ => None,
        }
    }
}

/// Some vCPUs of a VM, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct VcpuSet(u64);

impl VcpuSet {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// Bit n stands for vCPU n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Numbers 0 to `count` - 1.
    pub const fn first(count: usize) -> Self {
        match 1_u64.checked_shl(count as u32) {
            Some(next) => Self(next - 1),
            None => Self(u64::MAX),
        }
    }

    /// One of them; nobody if there cannot be one with that number.
    pub const fn only(vcpu: usize) -> Self {
        if vcpu < 64 { Self(1 << vcpu) } else { Self(0) }
    }

    /// These and those.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These but one.
    pub const fn without(self, vcpu: usize) -> Self {
        Self(self.0 & !Self::only(vcpu).0)
    }

    /// Whether it is among them.
    pub const fn contains(self, vcpu: usize) -> bool {
        self.0 & Self::only(vcpu).0 != 0
    }

    /// Adds one.
    pub const fn insert(&mut self, vcpu: usize) {
        self.0 |= Self::only(vcpu).0;
    }

    /// Their numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..64)
            .filter(move |vcpu| self.contains(*vcpu))
            .take(self.0.count_ones() as usize)
    }
}

/// One of the two kinds of register frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// GICD.
    Distributor,
    /// GICR of all vCPUs, one behind the other.
    Redistributors,
}

/// The interrupt controller of one VM.
#[derive(Debug)]
pub struct Vgic {
    state: Mutex<State>,
    /// By vCPU.
    doors: Vec<Door>,
}

/// Where a vCPU hears of what others did.
#[derive(Debug, Default)]
struct Door {
    /// Something has changed that its list registers do not show yet.
    knocked: AtomicBool,
    /// How many want its list registers empty.
    recalls: AtomicU32,
}

impl Vgic {
    /// As after a reset, for `vcpus` vCPUs, at most 64.
    pub fn new(vcpus: usize, timers: Timers) -> Self {
        Self {
            state: Mutex::new(State::new(vcpus, timers)),
            doors: (0..vcpus).map(|_| Door::default()).collect(),
        }
    }

    /// Connects the VM's devices: their interrupts come from now on, if the guest wants them.
    pub fn connect(&self, wiring: Wiring) {
        self.state.lock().hardware.connect(wiring);
    }

    /// The VM does not run any more: none of its devices' interrupts comes, until it is reset.
    pub fn silence(&self) {
        self.state.lock().hardware.silence();
    }

    /// The machine is reset: no vCPU runs, and each has [stopped](Self::stop).
    pub fn reset(&self) {
        self.state.lock().reset();
    }

    /// `vcpu` is about to start, on this CPU, whose list registers are empty: its redistributor is
    /// as after a reset.
    pub fn start(&self, vcpu: usize, cpu: &mut impl CpuInterface) {
        let mut state = self.state.lock();
        let Some(mut view) = state.view(vcpu) else {
            return;
        };
        view.gather(cpu);
        view.own.active = 0;
        view.gather(cpu);
        *view.own = Redistributor::new().bank;
        view.begin(cpu);
    }

    /// `vcpu` stops running, on this CPU: what is in its list registers is not forgotten. Its timers
    /// must be off.
    pub fn stop(&self, vcpu: usize, cpu: &mut impl CpuInterface) {
        if let Some(mut view) = self.state.lock().view(vcpu) {
            view.gather(cpu);
        }
    }

    /// The physical interrupt behind the timer `intid` of `vcpu` fired, on this CPU; its priority
    /// was dropped, but it is active until the guest deactivates the virtual one.
    pub fn timer(&self, vcpu: usize, intid: u16, cpu: &mut impl CpuInterface) {
        // All CPUs' timers like to fire at once, and this can be known without the lock.
        let empty = cpu.empty_lists();
        if let Some(mut view) = self.state.lock().view(vcpu) {
            // The last one has been deactivated, or this one could not have fired.
            view.retire(empty);
            view.own.line |= 1 << (intid % 32);
            view.own.forwarded |= 1 << (intid % 32);
            view.refresh(empty, cpu);
        }
    }

    /// The physical interrupt `physical` of a device came to this CPU, that of `vcpu`; its priority was
    /// dropped, but it is active until the guest deactivates the virtual one. `cpu` is `None` where the
    /// vCPU does not run: it finds the interrupt when it starts. Returns the vCPUs that have to be
    /// [knocked](Self::knock) at, or `None` where it is none of this VM's.
    pub fn device(
        &self,
        vcpu: usize,
        physical: u16,
        cpu: Option<&mut impl CpuInterface>,
    ) -> Option<VcpuSet> {
        let mut state = self.state.lock();
        let (intid, is_active) = state.hardware.arrival(physical)?;
        if !is_active {
            return Some(VcpuSet::NONE);
        }
        let target = state.arrive(intid)?;
        match cpu {
            Some(cpu) if usize::from(target) == vcpu => {
                state.view(vcpu)?.rebuild(cpu);
                Some(VcpuSet::NONE)
            }
            _ => Some(VcpuSet::only(target.into())),
        }
    }

    /// List registers want looking after: the maintenance interrupt, or a trapped deactivation.
    pub fn maintain(&self, vcpu: usize, cpu: &mut impl CpuInterface) {
        if let Some(mut view) = self.state.lock().view(vcpu) {
            view.rebuild(cpu);
        }
    }

    /// Tells vCPUs that their list registers are out of date. Their CPUs have to be kicked.
    pub fn knock(&self, vcpus: VcpuSet) {
        for vcpu in vcpus.iter() {
            if let Some(door) = self.doors.get(vcpu) {
                door.knocked.store(true, Ordering::Release);
            }
        }
    }

    /// On the CPU of `vcpu`, before its guest goes on: does what it was told to by a knock.
    pub fn answer(&self, vcpu: usize, cpu: &mut impl CpuInterface) {
        let Some(door) = self.doors.get(vcpu) else {
            return;
        };
        if !door.knocked.load(Ordering::Relaxed) || !door.knocked.swap(false, Ordering::Acquire) {
            return;
        }
        while self.surrender(vcpu, cpu) {
            core::hint::spin_loop();
        }
        self.maintain(vcpu, cpu);
    }

    /// Empties the list registers of `vcpu`, on its CPU, if somebody wants that. True if so.
    fn surrender(&self, vcpu: usize, cpu: &mut impl CpuInterface) -> bool {
        let recalled =
            (self.doors.get(vcpu)).is_some_and(|door| door.recalls.load(Ordering::Acquire) != 0);
        if recalled && let Some(mut view) = self.state.lock().view(vcpu) {
            view.gather(cpu);
        }
        recalled
    }

    /// The state, when nothing that the register at `offset` of `frame` shows is in another vCPU's
    /// list registers.
    ///
    /// Their owners are [kicked](Others::kick) and empty them; they keep them empty while they are
    /// recalled, and look after them when that is over. Whoever waits here may be recalled too, and
    /// obeys, so that two who want something of each other both get it.
    ///
    /// Also whether anybody was recalled: what was in their list registers may be for this vCPU now.
    #[inline]
    fn recall(
        &self,
        vcpu: usize,
        away: impl Fn(&State) -> VcpuSet,
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> (MutexGuard<'_, State>, bool) {
        let state = self.state.lock();
        if away(&state).without(vcpu) == VcpuSet::NONE {
            return (state, false);
        }
        drop(state);
        (self.recall_all(vcpu, &away, cpu, others), true)
    }

    /// The same where somebody has to be recalled, or had to be a moment ago.
    #[cold]
    fn recall_all(
        &self,
        vcpu: usize,
        away: &dyn Fn(&State) -> VcpuSet,
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> MutexGuard<'_, State> {
        let mut recalled = VcpuSet::NONE;
        loop {
            let state = self.state.lock();
            let away = away(&state).without(vcpu);
            if away == VcpuSet::NONE {
                for door in recalled.iter().filter_map(|vcpu| self.doors.get(vcpu)) {
                    door.recalls.fetch_sub(1, Ordering::Release);
                }
                return state;
            }
            drop(state);
            for owner in away.iter().filter(|owner| !recalled.contains(*owner)) {
                if let Some(door) = self.doors.get(owner) {
                    door.recalls.fetch_add(1, Ordering::Release);
                    self.knock(VcpuSet::only(owner));
                    others.kick(owner);
                }
            }
            recalled = recalled.union(away);
            self.surrender(vcpu, cpu);
            core::hint::spin_loop();
        }
    }

    /// A device's line, INTID `intid` from 32 up, is now high or low. Returns the vCPUs whose list
    /// registers this concerns.
    pub fn set_line(&self, intid: u16, high: bool) -> VcpuSet {
        let mut state = self.state.lock();
        let groups = state.groups;
        let Some((spis, bit)) = state.spi(intid) else {
            return VcpuSet::NONE;
        };
        let was_high = spis.bank.line & bit != 0;
        if was_high == high {
            return VcpuSet::NONE;
        }
        spis.bank.line ^= bit;
        if high && spis.bank.edge & bit != 0 {
            spis.bank.latch |= bit;
        }
        let number = usize::from(intid % 32);
        let concerned = if spis.bank.in_flight & bit != 0 {
            spis.holder[number]
        } else if spis.bank.candidates(groups) & bit != 0 {
            spis.target[number]
        } else {
            distributor::NOBODY
        };
        VcpuSet::only(concerned.into())
    }

    /// `vcpu`, on this CPU, writes `value` to a system register of the GIC. Returns the vCPUs that
    /// have to be [knocked](Self::knock) at, or `None` where there is no such register.
    pub fn write_system_register(
        &self,
        vcpu: usize,
        register: SystemRegister,
        value: u64,
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> Option<VcpuSet> {
        if let Some(generator) = Generator::from_register(register) {
            return Some(self.send(vcpu, generator, value, cpu));
        }
        (register == ICC_DIR).then(|| {
            // INTIDs have 10 bits here; what is larger is nobody's.
            let intid = u16::try_from(value & 0xff_ffff).unwrap_or(u16::MAX);
            self.deactivate(vcpu, intid, cpu, others)
        })
    }

    /// `vcpu`, on this CPU, deactivates `intid`, whose priority has been dropped before by whoever
    /// took it. Without EOImode = 1 that is nothing to be done by itself (IHI 0069, ICC_DIR_EL1).
    fn deactivate(
        &self,
        vcpu: usize,
        intid: u16,
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> VcpuSet {
        if !cpu.splits_end() {
            return VcpuSet::NONE;
        }
        let away = |state: &State| state.distributor_away(distributor::place_of(intid));
        let (mut state, _) = self.recall(vcpu, away, cpu, others);
        if let Some(mut view) = state.view(vcpu) {
            view.gather(cpu);
            view.deactivate(intid);
            view.rebuild(cpu);
        }
        state.wanted_by(intid).without(vcpu)
    }

    fn send(
        &self,
        from: usize,
        generator: Generator,
        value: u64,
        cpu: &mut impl CpuInterface,
    ) -> VcpuSet {
        let mut state = self.state.lock();
        let sgi = Sgi::decode(generator, value, from, state.cpus.len());
        let (bit, groups) = (1 << sgi.intid, state.groups);
        let mut others = VcpuSet::NONE;
        for target in sgi.targets.iter() {
            let Some(own) = state.own(target) else {
                break;
            };
            if generator == Generator::Group0 && own.group1 & bit != 0 {
                continue;
            }
            own.latch |= bit;
            // What is in flight is candidate for nothing, but becomes pending again.
            if (own.candidates(groups) | own.in_flight) & bit == 0 {
                continue;
            }
            others.insert(target);
        }
        if others.contains(from)
            && let Some(mut view) = state.view(from)
        {
            view.refresh(cpu.empty_lists(), cpu);
        }
        others.without(from)
    }

    /// `vcpu`, on this CPU, loads `size` bytes at `offset` of `frame`.
    pub fn read(
        &self,
        vcpu: usize,
        (frame, offset, size): (Frame, u64, u8),
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> u64 {
        if !offset.is_multiple_of(size.into()) {
            return 0;
        }
        if let Some(place) = state_at(frame, offset) {
            return self.read_state(vcpu, place, size, cpu, others);
        }
        let state = self.state.lock();
        match frame {
            Frame::Distributor => state.read_distributor(offset, size),
            Frame::Redistributors => {
                let (owner, offset) = split(offset);
                state.read_redistributor(owner, offset, size)
            }
        }
    }

    /// The same of a register that shows what may be in list registers. Mostly there is nothing in them of what
    /// it shows.
    fn read_state(
        &self,
        vcpu: usize,
        shown: (Option<usize>, registers::Place),
        size: u8,
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> u64 {
        let state = self.state.lock();
        if state.is_settled(vcpu, shown) {
            return state.read_shown(vcpu, shown, size, cpu, others);
        }
        drop(state);
        self.read_gathered(vcpu, shown, size, cpu, others)
    }

    /// The same where something may be.
    #[cold]
    fn read_gathered(
        &self,
        vcpu: usize,
        shown: (Option<usize>, registers::Place),
        size: u8,
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> u64 {
        let (owner, place) = shown;
        let away = |state: &State| match owner {
            None => state.spis_away(place.1),
            Some(owner) => state.own_away(owner),
        };
        let (mut state, recalled) = self.recall(vcpu, away, cpu, others);
        let mut gathered = false;
        if let Some(mut view) = state.view(vcpu)
            && !view.is_at_rest(cpu)
        {
            view.gather(cpu);
            gathered = true;
        }
        let value = state.read_shown(vcpu, shown, size, cpu, others);
        if let Some(mut view) = state.view(vcpu)
            && (gathered || recalled && view.has_shared_candidates())
        {
            view.rebuild(cpu);
        }
        value
    }

    /// `vcpu`, on this CPU, stores. Returns the vCPUs that have to be [knocked](Self::knock) at.
    pub fn write(
        &self,
        vcpu: usize,
        (frame, offset, size): (Frame, u64, u8),
        value: u64,
        cpu: &mut impl CpuInterface,
        others: &impl Others,
    ) -> VcpuSet {
        if !offset.is_multiple_of(size.into()) {
            return VcpuSet::NONE;
        }
        let away = |state: &State| state.away(frame, offset);
        let (mut state, _) = self.recall(vcpu, away, cpu, others);
        if let Some(mut view) = state.view(vcpu) {
            view.gather(cpu);
        }
        let concerned = match frame {
            Frame::Distributor => state.write_distributor(offset, size, value),
            Frame::Redistributors => {
                let (owner, offset) = split(offset);
                state.write_redistributor(owner, offset, size, value)
            }
        };
        if let Some(mut view) = state.view(vcpu) {
            view.rebuild(cpu);
        }
        concerned.without(vcpu)
    }
}

impl State {
    /// A wired interrupt came. Returns the vCPU that it is for.
    fn arrive(&mut self, intid: u16) -> Option<u8> {
        let number = usize::from(intid % 32);
        let (spis, bit) = self.spi(intid)?;
        let (target, holder) = (spis.target[number], spis.holder[number]);
        let bank = &mut spis.bank;
        let ended = bank.in_flight & bank.in_hardware & bit != 0;
        if ended {
            // The one before has been deactivated, or this one could not have come.
            bank.in_flight &= !bit;
            bank.in_lr &= !bit;
            bank.in_hardware &= !bit;
            bank.active &= !bit;
            spis.holder[number] = distributor::NOBODY;
        }
        bank.forwarded |= bit;
        if bank.edge & bit != 0 {
            bank.latch |= bit;
        } else {
            bank.line |= bit;
        }
        if ended && let Some(cpu) = self.cpus.get_mut(usize::from(holder)) {
            cpu.lists.disown(intid);
        }
        Some(target)
    }

    /// Whether the state is all there is to know of the 32 interrupts that a register shows: none of them is in a
    /// list register, none has a physical interrupt that waits for its end, and what `vcpu` has ended since it
    /// was last looked at was none without a register.
    #[inline]
    fn is_settled(&self, vcpu: usize, (owner, place): (Option<usize>, registers::Place)) -> bool {
        let Some(reader) = self.cpus.get(vcpu) else {
            return true;
        };
        let bank = match owner {
            None => self.spi_bank(place.1).map(|spis| &spis.bank),
            Some(owner) if owner == vcpu => Some(&reader.own.bank),
            Some(owner) => self.cpus.get(owner).map(|cpu| &cpu.own.bank),
        };
        bank.is_none_or(|bank| bank.in_flight | bank.forwarded == 0) && !reader.lists.overflow()
    }

    /// What a load from the register gives to `vcpu`, on this CPU.
    #[inline]
    fn read_shown(
        &self,
        vcpu: usize,
        (owner, place): (Option<usize>, registers::Place),
        size: u8,
        cpu: &impl CpuInterface,
        others: &impl Others,
    ) -> u64 {
        match owner {
            None => self.read_shared(place, size),
            Some(owner) if owner == vcpu => {
                self.read_own(owner, place, size, self.timer_lines(cpu))
            }
            Some(owner) => self.read_own(owner, place, size, others.timer_lines(owner)),
        }
    }

    /// Whose list registers hold what the register at `offset` of `frame` is about.
    fn away(&self, frame: Frame, offset: u64) -> VcpuSet {
        match frame {
            Frame::Distributor => self.distributor_away(offset),
            Frame::Redistributors => {
                let shown = state_at(frame, offset).and_then(|(owner, _)| owner);
                shown.map_or(VcpuSet::NONE, |owner| self.own_away(owner))
            }
        }
    }

    /// The vCPU itself, if its list registers hold interrupts of its own.
    fn own_away(&self, owner: usize) -> VcpuSet {
        match self.cpus.get(owner) {
            Some(cpu) if cpu.own.bank.in_flight != 0 => VcpuSet::only(owner),
            _ => VcpuSet::NONE,
        }
    }
}

/// Whose redistributor, and where in it.
fn split(offset: u64) -> (usize, u64) {
    let owner = usize::try_from(offset / REDISTRIBUTOR_SIZE).unwrap_or(usize::MAX);
    (owner, offset % REDISTRIBUTOR_SIZE)
}

/// The register at `offset` of `frame`, if it shows what may be in list registers, and the vCPU whose own
/// interrupts it is about; `None` for shared ones.
fn state_at(frame: Frame, offset: u64) -> Option<(Option<usize>, registers::Place)> {
    let (owner, offset) = match frame {
        Frame::Distributor => (None, offset),
        Frame::Redistributors => {
            let (owner, offset) = split(offset);
            (Some(owner), offset.checked_sub(FRAME_SIZE)?)
        }
    };
    let place = registers::Register::at(offset)?;
    place.0.shows_state().then_some((owner, place))
}
