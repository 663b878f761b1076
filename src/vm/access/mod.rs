//! Accesses to good pages under a hole that is larger than the bad one, carried out for the guest.
//!
//! A hole is larger than a page where no table is left to split a block, or where the tables have larger
//! pages. An access to one of its good pages takes the same stage-2 fault as one to the bad page. It is
//! carried out here, so that the guest loses the bad page and no other:
//!
//! ```text
//!   which instruction?  the syndrome says (ISV), or the word at ELR is read       decode -> Operation
//!   which memory?       the operation's Extent: one page, or the end of one and the beginning of the next
//!   may it be?          stage 1 of the second page; both pages good, not being moved, as the guest may use them
//!   do it               on pages behind addresses of this CPU alone                execute, pages
//!   go on               behind the instruction                                     skip
//! ```
//!
//! What is not carried out gets the abort that a lost page gets: docs/carried-out.md has the list.
//!
//! # What stays true meanwhile
//!
//! The lock of the VM's map is held from the lookups to the last access. Whoever moves a page says that it is
//! busy, and then takes this lock to make it read-only; so either the access is made before the page is copied,
//! or it sees the page busy and is made again. A page that goes bad after it was looked up is met as poison, at a
//! place with a fix-up, and is contained as if the guest had met it. Under the lock only leaves are taken: the
//! poison set, the spares, the protections.
//!
//! The guest's own CPUs may change its tables, or its code, at any time. The page of the fault is what HPFAR says,
//! not what stage 1 says now; and what is read as the instruction must agree with the syndrome and with FAR. If
//! it does not, the access is made again; if it does not a second time running, it is not carried out.
//!
//! # Atomicity
//!
//! Each element that is aligned is one access of the CPU. What the guest does in one step (LDADD, SWP, CAS) is
//! done in one step, by exclusives of EL2 on the memory itself, so that others who have the memory mapped, other
//! VMs among them, see nothing between. Exclusives of the guest are carried out from the load to the store, in one
//! step as well ([`sequence`]).

pub mod decode;
pub mod execute;
pub mod operation;
pub mod pages;
pub mod sequence;
#[cfg(test)]
mod tests;

use super::cpu::{Denied, GuestCpu, Rights, Stage1};
use super::exit::{Exit, Next};
use super::hypervisor::{Hypervisor, Platform, StopReason};
use super::virtual_machine::Space;
use crate::addr::{Ipa, PAGE_SIZE, Pa};
use crate::ras::esr::{Abort, Access, Mmio};
use crate::ras::inject::{self, GuestState, pstate, sctlr};
use crate::ras::journal::Note;
use crate::ras::loops;
use crate::ras::media::MediaError;
use crate::ras::poison::Standing;
use crate::stage2::{Access as Permission, Attrs, Damage, Lookup, MemoryType};
use core::sync::atomic::{AtomicU64, Ordering};
use execute::{Execution, Extent, Kind, Memory, Stop, joined, parted};
use operation::{Addressing, Direction, Operation, Order, Registers};
use pages::{Caching, Opened, Page, PageError, Which};
use sequence::{End, Scratch};

/// What a vCPU keeps from one access to the next. Its own CPU alone uses it.
#[derive(Debug)]
pub struct Carried {
    /// Where an instruction did not agree with its syndrome.
    doubted: AtomicU64,
}

/// No instruction is there: it would not be aligned.
const NOWHERE: u64 = 1;

impl Carried {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            doubted: AtomicU64::new(NOWHERE),
        }
    }

    /// The instruction at `pc` is not what trapped. Whether that is so for the second time running.
    fn doubt(&self, pc: u64) -> bool {
        self.doubted.swap(pc, Ordering::Relaxed) == pc
    }

    fn trust(&self) {
        self.doubted.store(NOWHERE, Ordering::Relaxed);
    }
}

impl Default for Carried {
    fn default() -> Self {
        Self::new()
    }
}

/// Why an access is not carried out although the page is good. The names are those of `why=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// A fetch, or the walk of a table.
    NoData,
    /// The guest accesses memory in big-endian order there.
    BigEndian,
    /// An instruction of AArch32 that the syndrome does not describe.
    Aarch32,
    /// The instruction is none of those that are carried out.
    Instruction,
    /// The instruction cannot be read, or is not the one that trapped.
    Fetch,
    /// An atomic access that is not aligned, or to memory that is not cached.
    Atomicity,
    /// What stands between a load-exclusive and its store is not understood.
    Sequence,
    /// Device memory.
    Device,
    /// Tags of addresses would have to be checked (FEAT_MTE).
    Tags,
    /// The poison set is full: which pages are bad is not known.
    Unknown,
    /// Cordon cannot reach the page.
    Unreachable,
    /// Whether the guest may access the second page is not known.
    Stage1,
}

impl Why {
    const fn name(self) -> &'static str {
        match self {
            Self::NoData => "no-data-access",
            Self::BigEndian => "big-endian",
            Self::Aarch32 => "aarch32",
            Self::Instruction => "instruction",
            Self::Fetch => "instruction-not-read",
            Self::Atomicity => "atomicity",
            Self::Sequence => "exclusive-sequence",
            Self::Device => "device-memory",
            Self::Tags => "tags",
            Self::Unknown => "poison-set-full",
            Self::Unreachable => "unreachable",
            Self::Stage1 => "stage-1",
        }
    }
}

/// What stands between an access and its being carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// It is to be made again.
    Again,
    /// The page of the byte at this address is lost.
    Lost(Byte),
    /// The page of the byte at this address was good, and gave poison.
    Consumed(Byte),
    /// The page of the instruction gave poison.
    Code(Byte),
    /// Nothing answers at this address, or not to a store.
    Nobody(u64),
    /// The guest's own stage 1 forbids the access to this address, with this status.
    Stage1(u64, u8),
    /// The page was dropped with its block, and has to be brought back.
    Parked(Ipa),
    /// It is not carried out.
    Refused(Why),
    /// The map is damaged.
    Damaged(Damage),
}

/// Where the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// Behind the instruction.
    Instruction,
    /// There, with these flags: a sequence of instructions was carried out.
    Sequence { pc: u64, flags: u64 },
}

/// A byte, by all its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Byte {
    va: u64,
    ipa: Ipa,
    pa: Pa,
}

/// A page that an access may go to.
#[derive(Clone, Copy, Debug)]
struct Good {
    ipa: Ipa,
    frame: Pa,
    caching: Caching,
}

impl<P: Platform, C: GuestCpu> Exit<'_, P, C> {
    /// The guest touched a hole that is larger than a page.
    #[cold]
    #[inline(never)]
    pub(super) fn under_hole(&mut self, abort: &Abort, ipa: Ipa, pa: Pa) -> Next {
        let obstacle = match self.carry_out(abort, ipa) {
            Ok(behind) => {
                match behind {
                    Behind::Instruction => self.cpu.skip_instruction(),
                    Behind::Sequence { pc, flags } => self.cpu.go_on(pc, flags),
                }
                self.count_carried(abort, ipa);
                return Next::Resume;
            }
            Err(obstacle) => obstacle,
        };
        match obstacle {
            Obstacle::Again => Next::Resume,
            Obstacle::Lost(byte) => {
                self.cpu.move_fault(byte.va);
                self.touched(abort, byte.ipa, byte.pa)
            }
            Obstacle::Consumed(byte) => {
                self.cpu.move_fault(byte.va);
                self.consumed(abort, byte.ipa, byte.pa)
            }
            // The guest meets it itself, when it fetches the instruction again.
            Obstacle::Code(byte) => {
                self.take_poison(abort, byte.ipa, byte.pa);
                Next::Resume
            }
            Obstacle::Nobody(va) => {
                self.cpu.move_fault(va);
                self.give_external_abort(abort)
            }
            Obstacle::Stage1(va, status) => {
                let write = abort.access == Access::Write;
                self.deliver(inject::stage1_fault(&self.cpu.state(), va, write, status))
            }
            Obstacle::Parked(ipa) => match self.vm.follow(ipa) {
                Ok(place) => self.reopen(ipa, place),
                Err(damage) => self.give_up_map(&damage),
            },
            Obstacle::Refused(why) => {
                self.say_refused(ipa, why);
                self.touched(abort, ipa, pa)
            }
            Obstacle::Damaged(damage) => self.give_up_map(&damage),
        }
    }

    fn give_up_map(&mut self, damage: &Damage) -> Next {
        log::error!("event=error what=stage2 vm={} why={damage}", self.vm.name);
        self.stop(StopReason::Killed)
    }

    fn count_carried(&self, abort: &Abort, ipa: Ipa) {
        let count = self.vm.carried_out.fetch_add(1, Ordering::Relaxed) + 1;
        if loops::is_worth_a_line(count) {
            let note = Note::CarriedOut {
                vm: self.vm.vmid,
                vcpu: self.vcpu.index,
                ipa,
                el: self.cpu.exception_level(),
                access: abort.access,
                count,
            };
            self.hypervisor.ras.say(&note, self.hypervisor);
        }
    }

    fn say_refused(&self, ipa: Ipa, why: Why) {
        let count = self.vm.not_carried_out.fetch_add(1, Ordering::Relaxed) + 1;
        if loops::is_worth_a_line(count) {
            let note = Note::NotCarriedOut {
                vm: self.vm.vmid,
                vcpu: self.vcpu.index,
                ipa,
                why: why.name(),
                count,
            };
            self.hypervisor.ras.say(&note, self.hypervisor);
        }
    }

    /// Does what the guest could not do itself at `ipa`.
    fn carry_out(&mut self, abort: &Abort, ipa: Ipa) -> Result<Behind, Obstacle> {
        let far = abort.far(self.cpu.far()).unwrap_or(0);
        let vm = self.vm;
        let map = vm.stage2.lock();
        // First of all: what is lost costs no more than under a hole of one page.
        let write = abort.access == Access::Write && !abort.cache_maintenance;
        let found = self.frame(&map, far, ipa, write)?;
        if abort.stage1_walk || abort.access == Access::Fetch {
            return Err(Obstacle::Refused(Why::NoData));
        }
        let here = self.good_at(&map, far, (ipa, None), found)?;
        if abort.cache_maintenance {
            self.maintain(far, &here)?;
            return Ok(Behind::Instruction);
        }
        let state = self.cpu.state();
        let (operation, extent) = self.identify(&map, abort, far, &state)?;
        let Some(extent) = extent else {
            return Ok(Behind::Instruction);
        };
        let unprivileged = extent.unprivileged && state.pstate & pstate::UAO == 0;
        if is_big_endian(&state, unprivileged) {
            return Err(Obstacle::Refused(Why::BigEndian));
        }
        let (first, second) = self.both(&map, &extent, (far, here), unprivileged)?;
        let aligned = extent.length.is_power_of_two() && extent.at.is_multiple_of(extent.length);
        if extent.exclusive && !(aligned && first.caching == Caching::WriteBack) {
            return Err(Obstacle::Refused(Why::Atomicity));
        }
        if let Operation::LoadExclusive { .. } = operation {
            // The store needs what the load does not.
            self.frame(&map, far, here.ipa, true)?;
            let words = self.sequence_words(&map, state.pc)?;
            return self.exclusive((&operation, &extent), first, &words, &state);
        }
        self.access((&operation, &extent), first, second)?;
        Ok(Behind::Instruction)
    }

    /// The words from the load-exclusive at `pc` to the end of its page.
    fn sequence_words(&self, map: &Space<P>, pc: u64) -> Result<Words, Obstacle> {
        let code = self.code(map, pc)?;
        let platform = &self.hypervisor.platform;
        let opened = platform.open(Which::First, code.frame, code.caching);
        let opened = opened.map_err(unreachable)?;
        let mut words = Words::default();
        let offsets = (pc & (PAGE_SIZE - 1) & !3..PAGE_SIZE).step_by(4);
        for (word, offset) in words.list.iter_mut().zip(offsets) {
            let loaded = opened.load(offset, 4);
            *word = loaded.map_err(|error| code.stopped_fetching(error, pc))? as u32;
            words.count += 1;
        }
        Ok(words)
    }

    /// A load-exclusive and what follows it, up to its store.
    fn exclusive(
        &mut self,
        (operation, extent): (&Operation, &Extent),
        page: Good,
        words: &Words,
        state: &GuestState,
    ) -> Result<Behind, Obstacle> {
        let refused = Obstacle::Refused(Why::Sequence);
        let Operation::LoadExclusive {
            size,
            rt,
            rt2,
            order,
            ..
        } = *operation
        else {
            return Err(refused);
        };
        let platform = &self.hypervisor.platform;
        let place = (page.frame, page.caching);
        let mut memory = Opened::new(platform, extent.at, place, None).map_err(unreachable)?;
        let stopped = |stop| stop_of(stop, extent, (page, None));
        let loaded = memory.load(extent.at, size).map_err(stopped)?;
        let mut scratch = Scratch::new(&*self.cpu, state.pstate);
        parted(
            |number, value| scratch.set(number, value),
            loaded,
            (rt, rt2),
            size,
        );
        let offset = match sequence::run(words.as_slice(), &mut scratch).ok_or(refused)? {
            End::Left(offset) => offset,
            End::Store { operation, offset } => {
                let new = self
                    .store_of(&operation, extent, &mut scratch)
                    .ok_or(refused)?;
                memory.fence();
                let seen = memory
                    .exchange(extent.at, size, loaded, new)
                    .map_err(stopped)?;
                if seen != loaded {
                    return Err(Obstacle::Again);
                }
                offset + 4
            }
        };
        if order.acquire {
            memory.fence();
        }
        scratch.commit(&mut *self.cpu);
        let pc = state.pc.wrapping_add_signed(offset);
        let flags = scratch.flags;
        Ok(Behind::Sequence { pc, flags })
    }

    /// What the store-exclusive of the sequence that loaded `extent` writes there, and its status, which is that it
    /// was written; `None` if it is to other memory.
    fn store_of(
        &self,
        operation: &Operation,
        extent: &Extent,
        scratch: &mut Scratch,
    ) -> Option<u128> {
        let Operation::StoreExclusive {
            size,
            rs,
            rt,
            rt2,
            rn,
            ..
        } = *operation
        else {
            return None;
        };
        let at = match rn {
            31 => self.cpu.stack_pointer(),
            rn => scratch.get(rn),
        };
        if at != extent.at || u64::from(size) != extent.length {
            return None;
        }
        let new = joined(|number| scratch.get(number), (rt, rt2), size);
        scratch.set(rs, 0);
        Some(new)
    }

    /// Writes a line back, of memory that nobody but a device may look at otherwise.
    fn maintain(&self, far: u64, here: &Good) -> Result<(), Obstacle> {
        let platform = &self.hypervisor.platform;
        let page = (platform.open(Which::First, here.frame, here.caching)).map_err(unreachable)?;
        let cleaned = page.clean(far & (PAGE_SIZE - 1));
        cleaned.map_err(|error| here.stopped(error, far))
    }

    /// What was tried, and what memory it is about.
    fn identify(
        &self,
        map: &Space<P>,
        abort: &Abort,
        far: u64,
        state: &GuestState,
    ) -> Result<(Operation, Option<Extent>), Obstacle> {
        let is_aarch32 = state.pstate & pstate::AARCH32 != 0;
        let described = abort.mmio.filter(|mmio| {
            is_whole(mmio, far) || is_aarch32 && fits(mmio, far) && self.begins_at(map, far)
        });
        if let Some(mmio) = described {
            let operation = described_transfer(&mmio, far);
            let extent = execute::extent(&operation, &*self.cpu);
            return Ok((operation, extent));
        }
        if is_aarch32 {
            return Err(Obstacle::Refused(Why::Aarch32));
        }
        let word = self.instruction(map, state.pc)?;
        let operation = decode::decode(word).ok_or(Obstacle::Refused(Why::Instruction));
        let found = operation.map(|operation| (operation, execute::extent(&operation, &*self.cpu)));
        match found {
            Ok((_, Some(extent))) if !agrees(abort, far, &extent) => self.doubt(state.pc),
            // A hint does not trap.
            Ok((_, None)) => self.doubt(state.pc),
            found => {
                self.vcpu.carried.trust();
                found
            }
        }
    }

    /// Whether an access that reported `far`, the beginning of a page, begins there: one that had begun in the page
    /// before would have failed in that.
    fn begins_at(&self, map: &Space<P>, far: u64) -> bool {
        let before = self.cpu.translate_for(far.wrapping_sub(1), Rights::Fetch);
        before.is_ok_and(|before| {
            let found = map.lookup(before.ipa);
            found.is_ok_and(|found| !matches!(found, Lookup::Mapped { .. }))
        })
    }

    /// The instruction is not what trapped: somebody has changed it since.
    fn doubt<T>(&self, pc: u64) -> Result<T, Obstacle> {
        Err(match self.vcpu.carried.doubt(pc) {
            true => Obstacle::Refused(Why::Fetch),
            false => Obstacle::Again,
        })
    }

    /// The page of the instruction at `pc`.
    fn code(&self, map: &Space<P>, pc: u64) -> Result<Good, Obstacle> {
        let found = self.cpu.translate_for(pc, Rights::Fetch);
        let stage1 = found.map_err(|_| Obstacle::Refused(Why::Fetch))?;
        match self.good(map, pc, (stage1.ipa, Some(stage1)), false) {
            Ok(page) => Ok(page),
            Err(obstacle @ Obstacle::Damaged(_)) => Err(obstacle),
            // The guest finds out when it fetches it.
            Err(_) => Err(Obstacle::Again),
        }
    }

    /// The word at `pc`.
    fn instruction(&self, map: &Space<P>, pc: u64) -> Result<u32, Obstacle> {
        let page = self.code(map, pc)?;
        let platform = &self.hypervisor.platform;
        let opened = platform.open(Which::First, page.frame, page.caching);
        let opened = opened.map_err(unreachable)?;
        let word = opened.load(pc & (PAGE_SIZE - 1) & !3, 4);
        Ok(word.map_err(|error| page.stopped_fetching(error, pc))? as u32)
    }

    /// The pages of the first and the last byte, of which `here` is one.
    fn both(
        &self,
        map: &Space<P>,
        extent: &Extent,
        (far, here): (u64, Good),
        unprivileged: bool,
    ) -> Result<(Good, Option<Good>), Obstacle> {
        let last = extent.at.wrapping_add(extent.length - 1);
        let write = extent.kind != Kind::Read;
        // The syndrome told only that it would have failed to read.
        if extent.kind == Kind::Update {
            self.frame(map, far, here.ipa, true)?;
        }
        if page_of(extent.at) == page_of(last) {
            return Ok((here, None));
        }
        let other = |va| {
            let rights = match unprivileged || self.cpu.exception_level() == 0 {
                true => Rights::El0 { write },
                false => Rights::El1 { write },
            };
            let stage1 = self
                .cpu
                .translate_for(va, rights)
                .map_err(|denied| denied.at(va))?;
            self.good(map, va, (stage1.ipa, Some(stage1)), write)
        };
        // FAR may be without the tag that the address has.
        if (page_of(far) ^ page_of(extent.at)) << TAG_BITS == 0 {
            let second = last & !(PAGE_SIZE - 1);
            Ok((here, Some(other(second)?)))
        } else {
            Ok((other(extent.at)?, Some(here)))
        }
    }

    /// The page of `va`, which is at `ipa`, if the guest has it and it is in order. `stage1` is what stage 1
    /// says of it, if it was asked.
    fn good(
        &self,
        map: &Space<P>,
        va: u64,
        (ipa, stage1): (Ipa, Option<Stage1>),
        write: bool,
    ) -> Result<Good, Obstacle> {
        let found = self.frame(map, va, ipa, write)?;
        self.good_at(map, va, (ipa, stage1), found)
    }

    fn good_at(
        &self,
        map: &Space<P>,
        va: u64,
        (ipa, stage1): (Ipa, Option<Stage1>),
        (frame, attrs): (Pa, Attrs),
    ) -> Result<Good, Obstacle> {
        let caching = self.caching(map, va, (ipa, stage1), attrs)?;
        Ok(Good {
            ipa,
            frame,
            caching,
        })
    }

    /// The frame behind `ipa`, and as what the VM has it, if it is in order.
    fn frame(
        &self,
        map: &Space<P>,
        va: u64,
        ipa: Ipa,
        write: bool,
    ) -> Result<(Pa, Attrs), Obstacle> {
        let ras = &self.hypervisor.ras;
        let (frame, attrs) = match map.lookup(ipa).map_err(Obstacle::Damaged)? {
            Lookup::Mapped { pa, attrs, .. } => (pa.page(), attrs),
            Lookup::Poisoned { pa, size, attrs } => {
                // By the registry, which knows what a hole does not: that a spare stands in for the page.
                let frame = ras.frame_of(pa.page());
                let lost = || {
                    let pa = Pa::new(frame.get() | pa.get() & (PAGE_SIZE - 1));
                    Obstacle::Lost(Byte { va, ipa, pa })
                };
                if size <= PAGE_SIZE {
                    return Err(lost());
                }
                match ras.standing(self.vm.vmid, frame) {
                    Standing::Good => {}
                    Standing::Lost => return Err(lost()),
                    Standing::Unknown => return Err(Obstacle::Refused(Why::Unknown)),
                }
                (frame, Hypervisor::<P>::narrowed(self.vm, ipa, attrs))
            }
            Lookup::Parked { .. } => return Err(Obstacle::Parked(ipa)),
            Lookup::Unmapped => return Err(Obstacle::Nobody(va)),
        };
        if ras.mender.is_busy(frame) {
            return Err(Obstacle::Again);
        }
        if write && attrs.access != Permission::ReadWrite {
            return Err(Obstacle::Nobody(va));
        }
        Ok((frame, attrs))
    }

    /// How the guest accesses memory that stage 2 gives it with these attributes.
    fn caching(
        &self,
        map: &Space<P>,
        va: u64,
        (ipa, stage1): (Ipa, Option<Stage1>),
        attrs: Attrs,
    ) -> Result<Caching, Obstacle> {
        match attrs.memory {
            MemoryType::DeviceNGnRE => return Err(Obstacle::Refused(Why::Device)),
            MemoryType::NormalNc => return Ok(Caching::NonCacheable),
            MemoryType::NormalWb => {}
        }
        let checks_tags = checks_tags(&self.cpu.state());
        let forced = map.config().fwb();
        if forced && !checks_tags {
            return Ok(Caching::WriteBack);
        }
        let stage1 = match stage1 {
            Some(stage1) => stage1,
            None => {
                let found = self.cpu.translate_for(va, Rights::Fetch);
                found.map_err(|_| Obstacle::Refused(Why::Stage1))?
            }
        };
        if stage1.ipa.page() != ipa.page() {
            // The guest has changed its map since.
            return Err(Obstacle::Again);
        }
        if checks_tags && stage1.is_tagged() {
            return Err(Obstacle::Refused(Why::Tags));
        }
        Ok(match forced || stage1.is_write_back() {
            true => Caching::WriteBack,
            false => Caching::NonCacheable,
        })
    }

    /// The access itself.
    fn access(
        &mut self,
        (operation, extent): (&Operation, &Extent),
        first: Good,
        second: Option<Good>,
    ) -> Result<(), Obstacle> {
        let open = |good: Good| (good.frame, good.caching);
        let platform = &self.hypervisor.platform;
        let opened = Opened::new(platform, extent.at, open(first), second.map(open));
        let mut memory = opened.map_err(unreachable)?;
        let mut execution = Execution {
            registers: &mut *self.cpu,
            memory: &mut memory,
        };
        let done = execution.run(operation, extent);
        done.map_err(|stop| stop_of(stop, extent, (first, second)))
    }
}

fn stop_of(stop: Stop, extent: &Extent, (first, second): (Good, Option<Good>)) -> Obstacle {
    match stop {
        Stop::Contended => Obstacle::Again,
        Stop::Unsupported => Obstacle::Refused(Why::Atomicity),
        Stop::Poisoned(at) => {
            let in_first = page_of(at) == page_of(extent.at);
            let page = second.filter(|_| !in_first).unwrap_or(first);
            page.stopped(PageError::Poisoned, at)
        }
    }
}

/// The code of a sequence.
#[derive(Default)]
struct Words {
    list: [u32; sequence::WORDS],
    count: usize,
}

impl Words {
    fn as_slice(&self) -> &[u32] {
        self.list.get(..self.count).unwrap_or_default()
    }
}

/// Bits of an address above those that are translated, if the guest ignores its top byte.
const TAG_BITS: u32 = 8;

const fn page_of(va: u64) -> u64 {
    va / PAGE_SIZE
}

fn unreachable(_: MediaError) -> Obstacle {
    Obstacle::Refused(Why::Unreachable)
}

impl Good {
    /// What an access to the byte at `va` came to.
    fn stopped(&self, error: PageError, va: u64) -> Obstacle {
        let offset = va & (PAGE_SIZE - 1);
        match error {
            PageError::Contended => Obstacle::Again,
            PageError::Unsupported => Obstacle::Refused(Why::Atomicity),
            PageError::Poisoned => Obstacle::Consumed(Byte {
                va,
                ipa: Ipa::new(self.ipa.page().get() | offset),
                pa: Pa::new(self.frame.get() | offset),
            }),
        }
    }
}

impl Good {
    /// What a fetch of the instruction at `pc` came to.
    fn stopped_fetching(&self, error: PageError, pc: u64) -> Obstacle {
        match self.stopped(error, pc) {
            Obstacle::Consumed(byte) => Obstacle::Code(byte),
            obstacle => obstacle,
        }
    }
}

impl Denied {
    const fn at(self, va: u64) -> Obstacle {
        match self {
            Self::Stage1(status) => Obstacle::Stage1(va, status),
            Self::Unknown => Obstacle::Refused(Why::Stage1),
        }
    }
}

/// Whether FAR is where the access begins, and it ends in the same page. An access that began in the page before
/// would have FAR at the beginning of this one.
const fn is_whole(mmio: &Mmio, far: u64) -> bool {
    (far & (PAGE_SIZE - 1) != 0 || mmio.size == 1) && fits(mmio, far)
}

const fn fits(mmio: &Mmio, far: u64) -> bool {
    (far & (PAGE_SIZE - 1)) + mmio.size as u64 <= PAGE_SIZE
}

/// What the syndrome describes. Whether it is ordered is not asked: it is made so.
const fn described_transfer(mmio: &Mmio, far: u64) -> Operation {
    Operation::Transfer {
        direction: if mmio.write {
            Direction::Store
        } else {
            Direction::Load
        },
        at: Addressing::Absolute(far),
        registers: Registers::General {
            rt: mmio.register,
            rt2: None,
            size: mmio.size,
            signed: mmio.sign_extend,
            wide: mmio.wide,
        },
        order: Order::BOTH,
        unprivileged: false,
    }
}

/// Whether the instruction could have made the access that failed. Of one that reads and writes, the syndrome
/// tells the read if that fails as well.
fn agrees(abort: &Abort, far: u64, extent: &Extent) -> bool {
    let direction = match extent.kind {
        Kind::Read => abort.access == Access::Read,
        Kind::Write => abort.access == Access::Write,
        Kind::Update => true,
    };
    let behind = far.wrapping_sub(extent.at) << TAG_BITS >> TAG_BITS;
    direction && behind < extent.length
}

/// Whether data is in big-endian order at the level that accesses it.
const fn is_big_endian(state: &GuestState, unprivileged: bool) -> bool {
    let el0 = state.pstate & pstate::MODE_EL == 0;
    let user = state.sctlr & sctlr::E0E != 0;
    if state.pstate & pstate::AARCH32 != 0 {
        state.pstate & pstate::AARCH32_E != 0
    } else if el0 {
        user
    } else {
        state.sctlr & sctlr::EE != 0 || unprivileged && user
    }
}

/// Whether the guest has the tags of addresses checked.
fn checks_tags(state: &GuestState) -> bool {
    let el0 = state.pstate & pstate::MODE_EL == 0;
    let mode = if el0 { sctlr::TCF0 } else { sctlr::TCF };
    let has_tags = state.features.contains(inject::Features::MTE);
    has_tags && state.sctlr & mode != 0 && state.pstate & pstate::TCO == 0
}
