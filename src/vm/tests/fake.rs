//! Two VMs on a machine of plain values. Both map one gigabyte of device memory, each at its own IPA,
//! and each has a 2 MiB block of RAM. Their guests' stage 1 is an offset.

use std::collections::{BTreeMap, BTreeSet};
use std::string::{String, ToString};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use crate::addr::{Ipa, Pa, PaRange, Vmid};
use crate::devmem::{DevMem, Kind, Mapping};
use crate::ras::event::Snapshot;
use crate::ras::inject::{Features, GuestState, Injected};
use crate::ras::media::{Healing, Media, MediaError};
use crate::ras::pipeline::Ras;
use crate::ras::pipeline::tests::{Firmware, Recorder, poison_set};
use crate::ras::triage;
use crate::stage2::{
    Attrs, Census, Config, FrameSource, Level, Lookup, MemoryType, Stage2, TableMemory, Tlb,
};
use crate::vm::access::env::GuestRegisters;
use crate::vm::access::pages::{Apertures, Caching, Page, PageError, Which};
use crate::vm::access::tests::plain_registers;
use crate::vm::boot::{Boot, Contents, Image, LoadError};
use crate::vm::config::{ERROR_AREA, IpaRange};
use crate::vm::cpu::{Denied, GuestCpu, Rights, Stage1};
use crate::vm::device::{Device, DeviceKind};
use crate::vm::error_device::ErrorDevice;
use crate::vm::exit::{Exit, Next};
use crate::vm::guest_acpi::place::shared;
use crate::vm::hypervisor::{Hypervisor, Platform, Vm};
use crate::vm::quick::Handled;
use crate::vm::vcpu::Vcpu;
use crate::vm::vgic::{CpuInterface, Others, PhysicalDistributor, Timers, Wire, Wiring};

pub(super) const G1: u64 = 1 << 30;
pub(super) const M2: u64 = 2 << 20;
pub(super) const K4: u64 = 4096;

/// The device memory that both VMs map.
pub(super) const DEVICE: Pa = Pa::new(0x80_0000_0000);
/// Where VM 0 and VM 1 have it.
pub(super) const DEVICE_AT: [u64; 2] = [0x10_0000_0000, 0x20_0000_0000];
/// RAM of each, at the same IPA in both.
pub(super) const RAM_AT: u64 = 0x4000_0000;
/// Where the first vCPU is told that its device tree is.
pub(super) const DTB_AT: u64 = RAM_AT + M2 / 2;
pub(super) const RAM: [Pa; 2] = [Pa::new(0x1_0000_0000), Pa::new(0x1_0020_0000)];
/// Registers of the device that each has, and its interrupt.
pub(super) const REGISTERS: [Pa; 2] = [Pa::new(0x0a00_0000), Pa::new(0x0a00_1000)];
pub(super) const INTERRUPTS: [u16; 2] = [100, 101];
/// Memory for spare pages.
pub(super) const SPARES: Pa = Pa::new(0x90_0000_0000);
/// Memory that is no region: Cordon's own.
pub(super) const CORDONS: Pa = Pa::new(0x7000_0000);

/// A guest's VA is its IPA plus this.
pub(super) const VA: u64 = 0x1000_0000_0000;
/// Its vectors.
pub(super) const VBAR: u64 = 0xffff_0000_0000_0800;
/// Where it is interrupted.
pub(super) const PC: u64 = 0xffff_0000_0010_0040;
/// EL1h, and flags that an exception keeps.
pub(super) const EL1H: u64 = 0x6000_0005;

/// Physical INTIDs of the guests' timers, unlike the virtual ones.
pub(super) const VIRTUAL_TIMER_WIRE: u16 = 20;
pub(super) const PHYSICAL_TIMER_WIRE: u16 = 21;

/// Bad pages that can be remembered.
pub(super) const POISON_CAPACITY: usize = 40;
/// What is loaded into RAM: four pages.
pub(super) const IMAGE_SIZE: u64 = 4 * K4;

const FIRST_FRAME: u64 = 0x6000_0000;
/// Of each VM: two root tables, one for its RAM, and these many for holes, as no test needs more.
const RESERVE: usize = 6;
const FRAMES: usize = 3 + RESERVE;

/// Frames for tables. One of them may be lost: then whoever looks at it brings the machine down.
#[derive(Clone)]
pub(super) struct Tables(Arc<Frames>);

struct Frames {
    words: Vec<[AtomicU64; 512]>,
    taken: AtomicUsize,
    lost: AtomicU64,
    visits: AtomicU64,
}

impl Tables {
    /// How often a table was looked up, to be read or written.
    pub(super) fn visits(&self) -> u64 {
        self.0.visits.load(Ordering::Relaxed)
    }

    /// Frames that were taken.
    pub(super) fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    pub(super) fn new(frames: usize) -> Self {
        let frame = || [const { AtomicU64::new(0) }; 512];
        Self(Arc::new(Frames {
            words: (0..frames).map(|_| frame()).collect(),
            taken: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            visits: AtomicU64::new(0),
        }))
    }
}

impl TableMemory for Tables {
    fn table(&self, frame: Pa) -> Option<&[AtomicU64]> {
        assert_ne!(
            frame.get(),
            self.0.lost.load(Ordering::Relaxed),
            "EL2 consumes the poison in a table"
        );
        self.0.visits.fetch_add(1, Ordering::Relaxed);
        let at = frame.get().checked_sub(FIRST_FRAME)? / K4;
        self.0
            .words
            .get(usize::try_from(at).ok()?)
            .map(|it| &it[..])
    }
}

impl FrameSource for Tables {
    fn take(&mut self, count: usize) -> Option<Pa> {
        let taken = self.0.taken.load(Ordering::Relaxed).next_multiple_of(count);
        self.0.taken.store(taken + count, Ordering::Relaxed);
        (taken + count <= self.0.words.len()).then(|| Pa::new(FIRST_FRAME + taken as u64 * K4))
    }

    fn give_back(&mut self, _: Pa, _: usize) {}
}

/// Counts invalidations.
#[derive(Clone, Default)]
pub(super) struct TlbLog(Arc<[AtomicUsize; 3]>);

impl TlbLog {
    /// By IPA, of a VM's stage 1, of all of a VM.
    pub(super) fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|at: usize| self.0[at].load(Ordering::Relaxed))
    }
}

impl Tlb for TlbLog {
    fn publish(&self) {}
    fn invalidate_ipa(&self, _: Vmid, _: Ipa, _: Option<Level>) {
        self.0[0].fetch_add(1, Ordering::Relaxed);
    }
    fn invalidate_vm(&self, _: Vmid) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }
    fn invalidate_vm_all(&self, _: Vmid) {
        self.0[2].fetch_add(1, Ordering::Relaxed);
    }
}

/// Logs what it is asked for.
#[derive(Default)]
pub(super) struct FakeMachine {
    pub(super) kicks: Mutex<Vec<usize>>,
    pub(super) printed: Mutex<Vec<(usize, u8)>>,
    pub(super) typed: Mutex<Vec<u8>>,
    pub(super) refused: Mutex<Vec<u16>>,
    pub(super) rested: Mutex<Vec<Pa>>,
    /// What the operator was answered.
    pub(super) answers: Mutex<Vec<String>>,
    /// The consoles of VMs that have ended, and the one in focus.
    pub(super) off: Mutex<Vec<usize>>,
    pub(super) focus: AtomicUsize,
    /// Memory that was written by loading.
    pub(super) loads: Mutex<Vec<PaRange>>,
    /// Memory that aborts when it is, and whether the CPU then says where.
    pub(super) bad: Mutex<Vec<(Pa, bool)>>,
    pub(super) media: Mutex<FakeMedia>,
    pub(super) memory: FakeMemory,
}

/// What guests' memory holds, by PA; zero where nobody wrote. A page in `bad` gives poison.
#[derive(Clone, Default)]
pub(super) struct FakeMemory {
    pub(super) bytes: Arc<Mutex<BTreeMap<u64, u8>>>,
    pub(super) bad: Arc<Mutex<BTreeSet<u64>>>,
    /// The pages that were opened, and how.
    pub(super) opened: Arc<Mutex<Vec<(u64, Caching)>>>,
    /// Lines that were written back.
    pub(super) cleaned: Arc<Mutex<Vec<u64>>>,
}

impl FakeMemory {
    pub(super) fn read(&self, pa: u64, size: u8) -> u128 {
        let bytes = self.bytes.lock().unwrap();
        (0..u64::from(size)).rev().fold(0, |value, at| {
            value << 8 | u128::from(*bytes.get(&(pa + at)).unwrap_or(&0))
        })
    }

    pub(super) fn write(&self, pa: u64, size: u8, value: u128) {
        let mut bytes = self.bytes.lock().unwrap();
        for (at, byte) in (pa..).zip(value.to_le_bytes()).take(size.into()) {
            bytes.insert(at, byte);
        }
    }
}

/// One of its pages.
pub(super) struct FakePage(FakeMemory, u64);

impl FakePage {
    fn at(&self, offset: u64, size: u64) -> Result<u64, PageError> {
        assert!(size > 0 && offset + size <= K4, "it leaves the page");
        match self.0.bad.lock().unwrap().contains(&self.1) {
            true => Err(PageError::Poisoned),
            false => Ok(self.1 + offset),
        }
    }
}

impl Page for FakePage {
    fn load(&self, offset: u64, size: u8) -> Result<u128, PageError> {
        Ok(self.0.read(self.at(offset, size.into())?, size))
    }
    fn store(&self, offset: u64, size: u8, value: u128) -> Result<(), PageError> {
        self.0.write(self.at(offset, size.into())?, size, value);
        Ok(())
    }
    fn exchange(
        &self,
        offset: u64,
        size: u8,
        expected: u128,
        new: u128,
    ) -> Result<u128, PageError> {
        assert!(offset.is_multiple_of(size.into()));
        let seen = self.load(offset, size)?;
        if seen == expected {
            self.store(offset, size, new)?;
        }
        Ok(seen)
    }
    fn zero(&self, offset: u64, length: u64) -> Result<(), PageError> {
        let at = self.at(offset, length)?;
        (at..at + length).for_each(|at| self.0.write(at, 1, 0));
        Ok(())
    }
    fn clean(&self, offset: u64) -> Result<(), PageError> {
        let at = self.at(offset, 1)?;
        self.0.cleaned.lock().unwrap().push(at);
        Ok(())
    }
}

impl Apertures for FakeMachine {
    type Page = FakePage;
    fn open(&self, _: Which, page: Pa, caching: Caching) -> Result<FakePage, MediaError> {
        assert!(page.is_aligned(K4));
        let memory = self.memory.clone();
        let mut opened = memory.opened.lock().unwrap();
        opened.push((page.get(), caching));
        drop(opened);
        Ok(FakePage(memory, page.get()))
    }
    fn fence(&self) {}
}

impl Media for FakeMachine {
    fn heal(&self, page: Pa) -> Healing {
        self.media.lock().unwrap().heal(page)
    }
    fn verify(&self, page: Pa) -> Result<(), MediaError> {
        self.media.lock().unwrap().access(page)
    }
    fn clear(&self, page: Pa) -> Result<(), MediaError> {
        self.media.lock().unwrap().clear(page)
    }
    fn copy(&self, from: Pa, to: Pa) -> Result<(), MediaError> {
        self.media.lock().unwrap().copy(from, to)
    }
}

/// Pages that have contents, and pages that are poisoned.
#[derive(Default)]
pub(super) struct FakeMedia {
    pub(super) contents: BTreeMap<u64, u64>,
    pub(super) poisoned: BTreeSet<u64>,
    /// The platform has a service that heals.
    pub(super) heals: bool,
    /// Writing takes poison away.
    pub(super) clears: bool,
}

impl FakeMedia {
    fn heal(&mut self, page: Pa) -> Healing {
        if !self.heals {
            return Healing::NoService;
        }
        self.poisoned.remove(&page.get());
        Healing::Done
    }

    fn access(&self, page: Pa) -> Result<(), MediaError> {
        assert!(page.is_aligned(K4));
        match self.poisoned.contains(&page.get()) {
            true => Err(MediaError::Poisoned),
            false => Ok(()),
        }
    }

    fn clear(&mut self, page: Pa) -> Result<(), MediaError> {
        if self.clears {
            self.poisoned.remove(&page.get());
        }
        self.access(page)?;
        self.contents.insert(page.get(), 0);
        Ok(())
    }

    fn copy(&mut self, from: Pa, to: Pa) -> Result<(), MediaError> {
        self.access(from)?;
        self.access(to)?;
        let contents = self.contents.get(&from.get()).copied().unwrap_or(0);
        self.contents.insert(to.get(), contents);
        Ok(())
    }
}

impl Platform for FakeMachine {
    type Tables = Tables;
    type Tlb = TlbLog;
    type Shared = Firmware;
    type LoadError = &'static str;

    fn kick(&self, cpu: usize) {
        self.kicks.lock().unwrap().push(cpu);
    }
    fn print(&self, console: usize, byte: u8) {
        self.printed.lock().unwrap().push((console, byte));
    }
    fn pause(&self, _: usize) {}
    fn typed(&self, _: usize) -> Option<u8> {
        self.typed.lock().unwrap().pop()
    }
    fn load(&self, to: PaRange, _: &Contents, _: u64) -> Result<(), LoadError<&'static str>> {
        self.loads.lock().unwrap().push(to);
        let bad = self.bad.lock().unwrap();
        match bad.iter().find(|(pa, _)| to.contains(*pa)) {
            // The CPU may not say where.
            Some((pa, told)) => Err(LoadError::Poisoned(Some(*pa).filter(|_| *told))),
            None => Ok(()),
        }
    }
    fn cpu(&self) -> usize {
        7
    }
    fn powered(&self, console: usize, on: bool) {
        let mut off = self.off.lock().unwrap();
        off.retain(|other| *other != console);
        if !on {
            off.push(console);
        }
    }
    fn focus(&self) -> usize {
        self.focus.load(Ordering::Relaxed)
    }
    fn give_focus(&self, console: usize) -> bool {
        let on = !self.off.lock().unwrap().contains(&console);
        if on {
            self.focus.store(console, Ordering::Relaxed);
        }
        on
    }
    fn answer(&self, line: core::fmt::Arguments<'_>) {
        self.answers.lock().unwrap().push(line.to_string());
    }
    fn timer_lines(&self, _: usize) -> u32 {
        0
    }
    fn counter(&self) -> u64 {
        0
    }
    fn refuse_interrupt(&self, physical: u16) {
        self.refused.lock().unwrap().push(physical);
    }
    fn reset_device(&self, device: &Device) -> Result<(), &'static str> {
        self.rested.lock().unwrap().push(device.registers.start());
        Ok(())
    }
}

/// Something that happens at a certain moment.
#[derive(Clone, Default)]
pub(super) struct Hook(Option<Arc<dyn Fn() + Send + Sync>>);

impl Hook {
    pub(super) fn new(action: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(action)))
    }
}

impl core::fmt::Debug for Hook {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(if self.0.is_some() { "Hook" } else { "None" })
    }
}

/// A virtual CPU interface whose guest takes no interrupt: `vgic` has tests of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Interrupts {
    control: u64,
    lists: [u64; 4],
    /// The timers' lines, by virtual INTID.
    pub(super) lines: u32,
    /// Physical interrupts that were deactivated by hand, in order.
    pub(super) deactivated: Vec<u16>,
    /// When the timers are turned off.
    pub(super) when_silenced: Hook,
}

impl CpuInterface for Interrupts {
    fn list_registers(&self) -> usize {
        self.lists.len()
    }
    fn read_list(&self, index: usize) -> u64 {
        self.lists[index]
    }
    fn write_list(&mut self, index: usize, value: u64) {
        self.lists[index] = value;
    }
    fn empty_lists(&self) -> u16 {
        // Neither pending nor active.
        let empty = |at: usize| u16::from(self.lists[at] >> 62 == 0) << at;
        (0..self.lists.len()).map(empty).sum()
    }
    fn control(&self) -> u64 {
        self.control
    }
    fn set_control(&mut self, value: u64) {
        self.control = value;
    }
    fn splits_end(&self) -> bool {
        false
    }
    fn timer_line(&self, intid: u16) -> bool {
        self.lines >> intid & 1 != 0
    }
    fn wait(&self) {}
    fn silence_timers(&mut self) {
        self.lines = 0;
        if let Some(action) = &self.when_silenced.0 {
            action();
        }
    }
    fn deactivate(&mut self, physical: u16) {
        self.deactivated.push(physical);
    }
}

/// The other CPUs, which hold nothing.
pub(super) struct Nobody;

impl Others for Nobody {
    fn kick(&self, _: usize) {}
    fn timer_lines(&self, _: usize) -> u32 {
        0
    }
}

/// A CPU stopped by an exit.
#[derive(Clone, Debug)]
pub(super) struct FakeCpu {
    pub(super) esr: u64,
    pub(super) far: u64,
    pub(super) hpfar: u64,
    pub(super) x: [u64; 31],
    pub(super) state: GuestState,
    pub(super) delivered: Vec<Injected>,
    pub(super) vserror: Option<u64>,
    /// V0 to V31.
    pub(super) v: [u128; 32],
    pub(super) sp: u64,
    /// VA minus IPA; `None` where stage 1 leads nowhere.
    pub(super) stage1: Option<u64>,
    /// What stage 1 says of single pages, where that is something else.
    pub(super) pages: BTreeMap<u64, Result<Stage1, Denied>>,
    pub(super) pfar: Option<u64>,
    pub(super) overstates: bool,
    pub(super) interrupts: Interrupts,
}

impl FakeCpu {
    pub(super) fn new(esr: u64) -> Self {
        Self {
            esr,
            far: 0,
            hpfar: 0,
            pfar: None,
            overstates: false,
            x: core::array::from_fn(|at| 0x1111_0000_0000_0000 + at as u64),
            state: GuestState {
                pc: PC,
                pstate: EL1H,
                vbar: VBAR,
                features: Features::RAS,
                ..GuestState::default()
            },
            delivered: Vec::new(),
            vserror: None,
            v: core::array::from_fn(|at| 0x2222 << 96 | 0x3333 << 32 | at as u128),
            sp: 0x5555_0000,
            stage1: Some(VA),
            pages: BTreeMap::new(),
            interrupts: Interrupts::default(),
        }
    }

    /// The one exception that the guest was given.
    pub(super) fn exception(&self) -> Injected {
        assert_eq!(self.delivered.len(), 1, "{self:#x?}");
        self.delivered[0]
    }
}

impl GuestRegisters for FakeCpu {
    plain_registers!();
    fn pc(&self) -> u64 {
        self.state.pc
    }
}

impl GuestCpu for FakeCpu {
    type Interrupts = Interrupts;

    fn esr(&self) -> u64 {
        self.esr
    }
    fn far(&self) -> u64 {
        self.far
    }
    fn pfar(&self) -> Option<u64> {
        self.pfar
    }
    fn overstates_serrors(&self) -> bool {
        self.overstates
    }
    fn hpfar(&self) -> u64 {
        self.hpfar
    }
    fn move_fault(&mut self, far: u64) {
        self.far = far;
    }
    fn skip_instruction(&mut self) {
        self.state.pc += 4;
    }
    fn go_on(&mut self, pc: u64, flags: u64) {
        self.state.pc = pc;
        self.state.pstate = self.state.pstate & !(0xf << 28) | flags;
    }
    fn id_register(&self, crm: u8, op2: u8) -> u64 {
        // Every field has something, and no two registers the same.
        0x1111_1111_1111_1111 * u64::from(crm & 7) + u64::from(op2)
    }
    fn interrupts(&mut self) -> &mut Interrupts {
        &mut self.interrupts
    }
    fn exception_level(&self) -> u8 {
        (self.state.pstate >> 2 & 3) as u8
    }
    fn state(&self) -> GuestState {
        self.state
    }
    fn deliver(&mut self, exception: &Injected) {
        self.delivered.push(*exception);
        (self.state.pc, self.state.pstate) = (exception.pc, exception.pstate);
    }
    fn virtual_serror(&mut self, vsesr: u64) {
        self.vserror = Some(vsesr);
    }
    fn translate(&self, va: u64) -> Option<Ipa> {
        self.stage1.map(|offset| Ipa::new(va.wrapping_sub(offset)))
    }
    fn translate_for(&self, va: u64, _: Rights) -> Result<Stage1, Denied> {
        if let Some(page) = self.pages.get(&(va & !(K4 - 1))) {
            return *page;
        }
        let ipa = self.translate(va).ok_or(Denied::Unknown)?;
        Ok(Stage1 { ipa, memory: 0xff })
    }
}

/// The machine with its VMs, and what it was seen to do.
pub(super) struct World {
    pub(super) hypervisor: Hypervisor<FakeMachine>,
    pub(super) firmware: Firmware,
    pub(super) stages: &'static Recorder,
    pub(super) tlbs: Vec<TlbLog>,
    tables: Vec<Tables>,
}

impl World {
    /// Two VMs of two vCPUs each, on pCPUs 0 to 3, all of them on.
    pub(super) fn new() -> Self {
        Self::with(triage::Machine {
            feat_ras: true,
            isolates_vms: false,
        })
    }

    /// VM 0 has ACPI. What Cordon shares with it is returned, and where that begins.
    pub(super) fn with_acpi() -> (Self, (Firmware, Pa)) {
        let (memory, at) = Firmware::zeros(usize::try_from(shared::SIZE).unwrap());
        let device = ErrorDevice::new(memory.clone(), at, ERROR_AREA.0);
        let promises = triage::Machine {
            feat_ras: true,
            isolates_vms: false,
        };
        let world = Self::build(promises, Some(device), Attrs::RAM);
        (world, (memory, at))
    }

    pub(super) fn with(promises: triage::Machine) -> Self {
        Self::build(promises, None, Attrs::RAM)
    }

    /// Stage 2 has the device memory as this.
    pub(super) fn of_type(memory: MemoryType) -> Self {
        let promises = triage::Machine {
            feat_ras: true,
            isolates_vms: false,
        };
        Self::build(promises, None, Attrs::of(memory))
    }

    fn build(
        promises: triage::Machine,
        mut errors: Option<ErrorDevice<Firmware>>,
        attrs: Attrs,
    ) -> Self {
        let firmware = Firmware::new();
        let tables: Vec<Tables> = (0..2).map(|_| Tables::new(FRAMES)).collect();
        let tlbs: Vec<TlbLog> = (0..2).map(|_| TlbLog::default()).collect();
        let vms =
            (0..2).map(|at| build((at, attrs), &tables[at], &tlbs[at]).with_errors(errors.take()));
        let vms = vms.collect();
        let ras = Ras::new(
            devmem(attrs),
            poison_set(POISON_CAPACITY),
            firmware.sources(),
        );
        let stages = Recorder::subscribed_to(&ras);
        let hypervisor = Hypervisor::new(FakeMachine::default(), ras, promises, vms);
        Self {
            hypervisor,
            firmware,
            stages,
            tlbs,
            tables,
        }
    }

    pub(super) fn vm(&self, vm: usize) -> &Vm<FakeMachine> {
        &self.hypervisor.vms()[vm]
    }

    /// What `handle` does at an exit of a vCPU.
    pub(super) fn exit<'a>(
        &'a self,
        (vm, vcpu): (usize, usize),
        cpu: &'a mut FakeCpu,
        handle: impl FnOnce(&mut Exit<'a, FakeMachine, FakeCpu>) -> Next,
    ) -> Next {
        let vm = self.vm(vm);
        handle(&mut Exit {
            hypervisor: &self.hypervisor,
            vm,
            vcpu: &vm.vcpus[vcpu],
            cpu,
        })
    }

    /// A synchronous exception, as the vectors have it handled: the quick way if that is one.
    pub(super) fn synchronous(&self, vm: usize, cpu: &mut FakeCpu) -> Next {
        self.exit((vm, 0), cpu, |exit| match exit.quick() {
            Handled::No => exit.synchronous(),
            Handled::Request => Next::Resume,
            Handled::PerhapsLost => exit.memory_error().unwrap_or_else(|| exit.synchronous()),
        })
    }

    /// The same the thorough way.
    pub(super) fn thoroughly(&self, vm: usize, cpu: &mut FakeCpu) -> Next {
        self.exit((vm, 0), cpu, Exit::synchronous)
    }

    /// A guest's external abort with this syndrome, at an IPA.
    pub(super) fn sea(&self, vm: usize, esr: u64, ipa: u64) -> (Next, FakeCpu) {
        let mut cpu = FakeCpu::new(esr);
        cpu.far = VA + ipa;
        let next = self.synchronous(vm, &mut cpu);
        (next, cpu)
    }

    /// A guest's stage-2 fault with this syndrome, at an IPA.
    pub(super) fn fault(&self, vm: usize, esr: u64, ipa: u64) -> (Next, FakeCpu) {
        let mut cpu = FakeCpu::new(esr);
        cpu.far = VA + ipa;
        cpu.hpfar = ipa >> 12 << 4;
        let next = self.synchronous(vm, &mut cpu);
        (next, cpu)
    }

    pub(super) fn lookup(&self, vm: usize, ipa: u64) -> Lookup {
        self.vm(vm).stage2.lock().lookup(Ipa::new(ipa)).unwrap()
    }

    pub(super) fn is_hole(&self, vm: usize, ipa: u64) -> bool {
        matches!(self.lookup(vm, ipa), Lookup::Poisoned { .. })
    }

    pub(super) fn is_mapped(&self, vm: usize, ipa: u64) -> bool {
        matches!(self.lookup(vm, ipa), Lookup::Mapped { .. })
    }

    pub(super) fn census(&self, vm: usize) -> Census {
        self.vm(vm).stage2.lock().census().unwrap()
    }

    pub(super) fn counters(&self) -> Snapshot {
        self.hypervisor.ras.announcer.counters().snapshot()
    }

    pub(super) fn kicks(&self) -> Vec<usize> {
        core::mem::take(&mut *self.hypervisor.platform.kicks.lock().unwrap())
    }

    /// From now on, the VM's first root table is poison: no one may look at it.
    pub(super) fn lose_root_table(&self, vm: usize) -> Pa {
        let root = self.vm(vm).stage2.lock().vttbr_el2() & 0xffff_ffff_fffe;
        self.tables[vm].0.lost.store(root, Ordering::Relaxed);
        Pa::new(root)
    }

    /// From now on, the table that the VM's first block of device memory was split into is poison.
    pub(super) fn lose_split_table(&self, vm: usize) -> Pa {
        let root = self.vm(vm).stage2.lock().vttbr_el2() & 0xffff_ffff_fffe;
        let words = self.tables[vm].table(Pa::new(root)).unwrap();
        let at = usize::try_from(DEVICE_AT[vm] / G1).unwrap();
        let table = words[at].load(Ordering::Relaxed) & 0xffff_ffff_f000;
        self.tables[vm].0.lost.store(table, Ordering::Relaxed);
        Pa::new(table)
    }

    pub(super) fn media<R>(&self, with: impl FnOnce(&mut FakeMedia) -> R) -> R {
        with(&mut self.hypervisor.platform.media.lock().unwrap())
    }

    /// From now on, the VM's first root table holds a word that Cordon never writes.
    pub(super) fn damage_device_entry(&self, vm: usize) {
        let root = self.vm(vm).stage2.lock().vttbr_el2() & 0xffff_ffff_fffe;
        let words = self.tables[vm].table(Pa::new(root)).unwrap();
        let at = usize::try_from(DEVICE_AT[vm] / G1).unwrap();
        words[at].store(0x0000_5a5a_0000_0000, Ordering::Relaxed);
    }
}

fn number(vm: usize) -> Vmid {
    Vmid::new(u8::try_from(vm + 1).unwrap()).unwrap()
}

fn pieces(vm: usize, attrs: Attrs) -> [(u64, Pa, u64, Attrs); 2] {
    [
        (RAM_AT, RAM[vm], M2, Attrs::RAM),
        (DEVICE_AT[vm], DEVICE, G1, attrs),
    ]
}

fn devmem(attrs: Attrs) -> DevMem<'static> {
    let mut devmem = DevMem::new();
    let range = |pa, size| PaRange::new(pa, size).unwrap();
    let bar = devmem.register(Kind::Bar, range(DEVICE, G1), "bar", None);
    let rams = RAM.map(|pa| devmem.register(Kind::Ram, range(pa, M2), "ram", None));
    let spare = devmem.register(Kind::Spare, range(SPARES, M2), "spares", None);
    spare.unwrap();
    for (vm, ram) in rams.into_iter().enumerate() {
        for ((ipa, pa, size, attrs), region) in pieces(vm, attrs).into_iter().zip([ram, bar]) {
            let mapping = Mapping {
                vm: number(vm),
                ipa: Ipa::new(ipa),
                range: range(pa, size),
                attrs,
            };
            devmem.add_mapping(region.unwrap(), mapping).unwrap();
        }
    }
    devmem
}

fn build((at, attrs): (usize, Attrs), tables: &Tables, tlb: &TlbLog) -> Vm<FakeMachine> {
    let (mut frames, config) = (tables.clone(), Config::new(2).unwrap());
    let map = Stage2::new(
        config,
        number(at),
        tables.clone(),
        tlb.clone(),
        &mut frames,
        RESERVE,
    );
    let mut map = map.unwrap();
    for (ipa, pa, size, attrs) in pieces(at, attrs) {
        map.map(Ipa::new(ipa), pa, size, attrs, &mut frames)
            .unwrap();
    }
    let vcpus = [0, 1].map(|index| Vcpu::new(index, 2 * at + index));
    for vcpu in &vcpus {
        vcpu.turn_on(RAM_AT, 0).unwrap();
        vcpu.take_start().unwrap();
    }
    let name = ["one", "two"][at];
    let boot = Boot {
        acpi: None,
        images: [Image {
            place: IpaRange::new(Ipa::new(RAM_AT), IMAGE_SIZE).unwrap(),
            contents: Contents::Bytes(Vec::new()),
        }]
        .into(),
        entry: Ipa::new(RAM_AT),
        dtb: Ipa::new(DTB_AT),
        ram: 0,
    };
    let timers = Timers {
        virtual_: Some(VIRTUAL_TIMER_WIRE),
        physical: Some(PHYSICAL_TIMER_WIRE),
    };
    let vm = Vm::new(name.into(), number(at), vcpus.into(), map, at, timers, boot);
    let device = Device {
        kind: DeviceKind::VirtioMmio,
        registers: PaRange::new(REGISTERS[at], 0x200).unwrap(),
    };
    let wiring = Wiring {
        wires: [Wire {
            virtual_: 48,
            physical: INTERRUPTS[at],
        }]
        .into(),
        cpus: [0, 1].map(|index| 2 * at + index).into(),
        distributor: std::boxed::Box::leak(std::boxed::Box::default()) as &FakeDistributor,
    };
    vm.with_devices([device].into(), wiring)
}

/// A distributor whose interrupts are active as long as nobody deactivates them.
#[derive(Debug, Default)]
pub(super) struct FakeDistributor(Mutex<Vec<u16>>);

impl PhysicalDistributor for FakeDistributor {
    fn set_enabled(&self, physical: u16, on: bool) {
        if on {
            self.0.lock().unwrap().retain(|ended| *ended != physical);
        }
    }
    fn set_edge(&self, _: u16, _: bool) {}
    fn set_route(&self, _: u16, _: usize) {}
    fn is_pending(&self, _: u16) -> bool {
        true
    }
    fn clear_pending(&self, _: u16) {}
    fn is_active(&self, physical: u16) -> bool {
        !self.0.lock().unwrap().contains(&physical)
    }
    fn deactivate(&self, physical: u16) {
        self.0.lock().unwrap().push(physical);
    }
}

/// Syndromes, put together from the fields of `ESR_EL2`.
pub(super) mod esr {
    use crate::ras::esr::{CLASS_SHIFT, IL, class};

    pub(in super::super) const WNR: u64 = 1 << 6;
    pub(in super::super) const S1PTW: u64 = 1 << 7;
    pub(in super::super) const FNV: u64 = 1 << 10;
    pub(in super::super) const ISV: u64 = 1 << 24;
    pub(in super::super) const UC: u64 = 0b10 << 11;
    pub(in super::super) const UEO: u64 = 0b11 << 11;
    /// External abort; on the walk's access to a table of level 0.
    pub(in super::super) const EXTERNAL: u64 = 0x10;
    pub(in super::super) const EXTERNAL_ON_WALK_0: u64 = 0x14;
    /// Translation and permission fault at level 3; TLB conflict.
    pub(in super::super) const TRANSLATION: u64 = 0x07;
    pub(in super::super) const PERMISSION: u64 = 0x0f;
    pub(in super::super) const TLB_CONFLICT: u64 = 0x30;

    pub(in super::super) const fn of(class: u64, iss: u64) -> u64 {
        class << CLASS_SHIFT | IL | iss
    }

    pub(in super::super) const fn data(iss: u64) -> u64 {
        of(class::DATA_ABORT_LOWER, iss)
    }

    pub(in super::super) const fn fetch(iss: u64) -> u64 {
        of(class::INSTRUCTION_ABORT_LOWER, iss)
    }

    pub(in super::super) const fn serror(iss: u64) -> u64 {
        of(class::SERROR, iss)
    }
}

/// What `ESR_EL1` must be for a guest in EL1, by the Arm ARM's fields and not by Cordon's encoder.
pub(super) const fn esr_el1(class: u64, iss: u64) -> u64 {
    class << 26 | 1 << 25 | iss
}
