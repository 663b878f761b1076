//! The distributor: the interrupts that all vCPUs share, and where each of them goes.

use super::VcpuSet;
use super::bank::{Bank, Groups};
use super::registers::{self, Place, Register};
use super::state::State;

/// Banks of shared interrupts: INTIDs 32 to 127.
pub const SPI_BANKS: usize = 3;

/// Nobody's number.
pub const NOBODY: u8 = u8::MAX;

const CTLR: u64 = 0x000;
const TYPER: u64 = 0x004;
const IIDR: u64 = 0x008;
const IROUTER: u64 = 0x6000;
const IROUTER_END: u64 = 0x7fdf;
const IDENTIFICATION: u64 = 0xffd0;

/// GICD_CTLR: affinity routing (ARE) and one security state (DS), both fixed.
const CTLR_FIXED: u64 = 1 << 4 | 1 << 6;

/// GICD_TYPER: no SPI goes to whoever has time (No1N), INTIDs have 10 bits (IDbits), the number of
/// banks (ITLinesNumber). No LPIs, no message-based SPIs, no second security state.
const TYPER_VALUE: u64 = 1 << 25 | 9 << 19 | SPI_BANKS as u64;

/// GICD_IROUTER: the affinity fields. IRM is not there (TYPER.No1N).
const ROUTE_MASK: u64 = 0xff_00ff_ffff;

/// 32 shared interrupts.
#[derive(Clone, Debug)]
pub struct SpiBank {
    /// Their state.
    pub bank: Bank,
    /// GICD_IROUTER.
    route: [u64; 32],
    /// The vCPU that this leads to.
    pub target: [u8; 32],
    /// The vCPU in whose list registers an interrupt is, or that has it active.
    pub holder: [u8; 32],
}

impl SpiBank {
    /// As after a reset: all go to the vCPU with affinity 0.
    pub fn new() -> Self {
        let bank = Bank {
            configurable: u32::MAX,
            ..Bank::default()
        };
        Self {
            bank,
            route: [0; 32],
            target: [0; 32],
            holder: [NOBODY; 32],
        }
    }

    /// Those among `interrupts` that belong to `vcpu` by `owner`.
    pub fn of(&self, interrupts: u32, owner: &[u8; 32], vcpu: u8) -> u32 {
        let mut mine = 0;
        for number in ones(interrupts) {
            if owner[usize::from(number % 32)] == vcpu {
                mine |= 1 << (number % 32);
            }
        }
        mine
    }

    /// Everybody whose list registers have to do with these interrupts, or will have.
    fn concerned(&self, groups: Groups) -> VcpuSet {
        let mut all = VcpuSet::NONE;
        for number in ones(self.bank.candidates(groups)) {
            all.insert(self.target[usize::from(number % 32)].into());
        }
        for number in ones(self.bank.in_flight | self.bank.active) {
            all.insert(self.holder[usize::from(number % 32)].into());
        }
        all
    }
}

/// A register that is about this interrupt alone. Of a vCPU's own it shows nothing.
pub const fn place_of(intid: u16) -> u64 {
    IROUTER + 8 * (intid as u64 % 1024)
}

/// The numbers of the bits that are set.
pub fn ones(mut bits: u32) -> impl Iterator<Item = u16> {
    core::iter::from_fn(move || {
        let number = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (number < 32).then_some(number as u16)
    })
}

impl State {
    /// What a load from the distributor gives.
    pub fn read_distributor(&self, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (CTLR, 4) => CTLR_FIXED | self.groups.control(),
            (TYPER, 4) => TYPER_VALUE,
            (IIDR, 4) => registers::IIDR,
            (IROUTER..=IROUTER_END, _) => self.read_route(offset, size),
            (IDENTIFICATION.., 4) => registers::identification(offset),
            _ => Register::at(offset).map_or(0, |place| self.read_shared(place, size)),
        }
    }

    /// What a load of `size` bytes from a register with a place for each shared interrupt gives.
    pub fn read_shared(&self, (register, bank, byte): Place, size: u8) -> u64 {
        match register {
            Register::SetPending | Register::ClearPending if size == 4 => bank
                .checked_sub(1)
                .map_or(0, |bank| self.pending_spis(bank)),
            _ => self
                .spi_bank(bank)
                .map_or(0, |spis| spis.bank.read(register, byte, size)),
        }
    }

    /// What is pending of the shared interrupts of bank `index`. Of a wired one, `line` says that it
    /// came; how it is now, the machine knows.
    fn pending_spis(&self, index: usize) -> u64 {
        let Some(spis) = self.spis.get(index) else {
            return 0;
        };
        let (wired, now) = self.hardware.pending(index);
        (spis.bank.pending() & !wired | spis.bank.latch | now).into()
    }

    /// Whose list registers hold interrupts that the state at `offset` is about.
    pub fn distributor_away(&self, offset: u64) -> VcpuSet {
        match (offset, Register::at(offset)) {
            (_, Some((register, bank, _))) if register.shows_state() => self.spis_away(bank),
            (IROUTER..=IROUTER_END, _) => {
                let intid = (offset - IROUTER) / 8;
                self.away_of((intid / 32) as usize, 1 << (intid % 32))
            }
            _ => VcpuSet::NONE,
        }
    }

    /// Whose list registers hold shared interrupts of this bank.
    pub fn spis_away(&self, bank: usize) -> VcpuSet {
        self.away_of(bank, u32::MAX)
    }

    fn away_of(&self, bank: usize, interrupts: u32) -> VcpuSet {
        let mut away = VcpuSet::NONE;
        if let Some(spis) = self.spi_bank(bank) {
            for number in ones(spis.bank.in_flight & interrupts) {
                away.insert(spis.holder[usize::from(number % 32)].into());
            }
        }
        away
    }

    /// Carries out a store to the distributor. Returns whom it may concern.
    pub fn write_distributor(&mut self, offset: u64, size: u8, value: u64) -> VcpuSet {
        let concerned = self.store(offset, size, value);
        self.hardware.follow(&self.spis, self.groups);
        concerned
    }

    fn store(&mut self, offset: u64, size: u8, value: u64) -> VcpuSet {
        match (offset, size) {
            (CTLR, 4) => {
                self.groups = Groups::from_control(value);
                VcpuSet::first(self.cpus.len())
            }
            (IROUTER..=IROUTER_END, _) => self.write_route(offset, size, value),
            _ => match Register::at(offset) {
                Some((register, bank, byte)) => self.write_spis(register, bank, byte, size, value),
                None => VcpuSet::NONE,
            },
        }
    }

    /// The vCPU that a shared interrupt may be signalled to and is not yet.
    pub fn wanted_by(&mut self, intid: u16) -> VcpuSet {
        let groups = self.groups;
        let Some((spis, bit)) = self.spi(intid) else {
            return VcpuSet::NONE;
        };
        if spis.bank.candidates(groups) & bit == 0 {
            return VcpuSet::NONE;
        }
        VcpuSet::only(spis.target[usize::from(intid % 32)].into())
    }

    fn write_spis(
        &mut self,
        register: Register,
        bank: usize,
        byte: u64,
        size: u8,
        value: u64,
    ) -> VcpuSet {
        let groups = self.groups;
        let Some(spis) = self.spi_bank_mut(bank) else {
            return VcpuSet::NONE;
        };
        let before = spis.concerned(groups);
        let was_active = spis.bank.active;
        spis.bank.write(register, byte, size, value);
        let clears = register == Register::ClearPending && size == 4;
        for number in ones(spis.bank.active & !was_active) {
            // Made active by software: it ends where it would have gone.
            let number = usize::from(number % 32);
            spis.holder[number] = spis.target[number];
        }
        let concerned = before.union(spis.concerned(groups));
        if clears && let Some(index) = bank.checked_sub(1) {
            self.hardware
                .clear_pending(index, (value & 0xffff_ffff) as u32);
        }
        concerned
    }

    /// The bank with the `number`-th 32 INTIDs. With affinity routing the first is not here.
    pub fn spi_bank(&self, number: usize) -> Option<&SpiBank> {
        self.spis.get(number.checked_sub(1)?)
    }

    fn spi_bank_mut(&mut self, number: usize) -> Option<&mut SpiBank> {
        self.spis.get_mut(number.checked_sub(1)?)
    }

    /// 64 bits that can be accessed by halves (IHI 0069, 12.9.22).
    fn read_route(&self, offset: u64, size: u8) -> u64 {
        let intid = (offset - IROUTER) / 8;
        let (bank, number) = ((intid / 32) as usize, (intid % 32) as usize);
        let route = self.spi_bank(bank).map_or(0, |spis| spis.route[number]);
        match (size, offset % 8) {
            (8, 0) => route,
            (4, 0) => route & 0xffff_ffff,
            (4, 4) => route >> 32,
            _ => 0,
        }
    }

    fn write_route(&mut self, offset: u64, size: u8, value: u64) -> VcpuSet {
        let intid = (offset - IROUTER) / 8;
        let (bank, number) = ((intid / 32) as usize, (intid % 32) as usize);
        let (vcpus, groups) = (self.cpus.len(), self.groups);
        let Some(spis) = self.spi_bank_mut(bank) else {
            return VcpuSet::NONE;
        };
        let before = spis.concerned(groups);
        let old = spis.route[number];
        let route = match (size, offset % 8) {
            (8, 0) => value,
            (4, 0) => old & !0xffff_ffff | value & 0xffff_ffff,
            (4, 4) => old & 0xffff_ffff | value << 32,
            _ => return VcpuSet::NONE,
        };
        spis.route[number] = route & ROUTE_MASK;
        spis.target[number] = vcpu_at(route & ROUTE_MASK, vcpus);
        before.union(spis.concerned(groups))
    }
}

/// The number of the vCPU with this affinity.
fn vcpu_at(affinity: u64, vcpus: usize) -> u8 {
    let number = (0..vcpus).find(|number| crate::vm::vcpu::mpidr(*number) == affinity);
    number
        .and_then(|number| u8::try_from(number).ok())
        .unwrap_or(NOBODY)
}
