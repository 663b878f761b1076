//! All VMs, and what they share.
//!
//! Built once at boot, then only shared: every field that changes has a lock or is atomic.

use super::boot::{Boot, Contents, LoadError};
use super::config::UART_INTERRUPT;
use super::device::Device;
use super::error_device::{Effect, ErrorDevice, Report};
use super::guest_acpi::ERROR_INTERRUPT;
use super::vcpu::Vcpu;
use super::vgic::{CpuInterface, Timers, VcpuSet, Vgic, Wiring};
use super::vuart::{Terminal, Vuart};
use crate::addr::{Ipa, Pa, PaRange, Vmid};
use crate::ras::contain::AddressSpaces;
use crate::ras::cper::Severity;
use crate::ras::event::{Consumer, ErrorEvent};
use crate::ras::ghes::PhysMemory;
use crate::ras::journal::Note;
use crate::ras::loops;
use crate::ras::media::Media;
use crate::ras::pipeline::Ras;
use crate::ras::poison::cpu_bit;
use crate::ras::triage;
use crate::stage2::{
    Census, Damage, HoleOutcome, Level, Lookup, Rebuilt, Stage2, TableMemory, Tlb,
};
use crate::sync::Mutex;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

/// What the machine does for its VMs.
pub trait Platform: Media {
    /// Reaches stage-2 tables.
    type Tables: TableMemory;
    /// Maintains TLBs.
    type Tlb: Tlb;
    /// Reaches error status blocks.
    type Shared: PhysMemory;
    /// Why memory could not be written.
    type LoadError: fmt::Display;

    /// Gets physical CPU number `cpu` out of its guest, or out of its sleep.
    fn kick(&self, cpu: usize);
    /// Prints a byte of a VM's console.
    fn print(&self, console: usize, byte: u8);
    /// A VM has printed all that it wants to for now: what is there of a line can be shown.
    fn pause(&self, console: usize);
    /// A byte typed for a VM's console. [`Hypervisor::input`] is called when there are more.
    fn typed(&self, console: usize) -> Option<u8>;
    /// A VM has ended for good, or begins again: only one that has not can have the focus.
    fn powered(&self, console: usize, on: bool);
    /// Which console has the focus.
    fn focus(&self) -> usize;
    /// Gives a console the focus. False if its VM has ended.
    fn give_focus(&self, console: usize) -> bool;
    /// Prints a line that the operator has asked for, whatever is logged.
    fn answer(&self, line: fmt::Arguments<'_>);
    /// Writes `to`, memory of a VM that does not run, with what `contents` hold from `offset` on, and
    /// with zeros behind their end, so that a CPU without caches sees it.
    ///
    /// # Errors
    ///
    /// Where the memory cannot be reached, or is poison; part of it may be written then.
    fn load(
        &self,
        to: PaRange,
        contents: &Contents,
        offset: u64,
    ) -> Result<(), LoadError<Self::LoadError>>;
    /// The number of the physical CPU that this runs on.
    fn cpu(&self) -> usize;
    /// Which of the timers of the guest on physical CPU number `cpu` ask for an interrupt at this
    /// moment, as bits by virtual INTID.
    fn timer_lines(&self, cpu: usize) -> u32;
    /// The physical counter (CNTPCT_EL0).
    fn counter(&self) -> u64;
    /// Switches off and deactivates a physical interrupt that nobody wants.
    fn refuse_interrupt(&self, physical: u16);
    /// Puts a device of a VM that does not run into its reset state: it reads and writes no memory
    /// afterwards.
    ///
    /// # Errors
    ///
    /// Where its registers cannot be reached.
    fn reset_device(&self, device: &Device) -> Result<(), Self::LoadError>;
}

/// Why a VM does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StopReason {
    /// It turned itself off.
    Off = 1,
    /// It asked to be reset, and will run again.
    Reset = 2,
    /// It could not go on.
    Killed = 3,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Reset => "reset",
            Self::Killed => "killed",
        })
    }
}

/// What a VM does, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It is about to run again.
    Resetting,
    /// It has turned itself off, or was.
    Off,
    /// It could not go on.
    Killed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Resetting => "resetting",
            Self::Off => "off",
            Self::Killed => "killed",
        })
    }
}

/// What a CPU does whose vCPU is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Rest {
    /// The vCPU is on now: this is its entry, and its x0.
    Start((u64, u64)),
    /// It waits for an interrupt.
    Sleep,
    /// The whole machine stops.
    Halt,
}

/// Values of [`Vm`]'s `stopped` that are no [`StopReason`]: it runs, it is being loaded anew.
const RUNNING: u8 = 0;
const RELOADING: u8 = 4;

/// A VM's address space.
pub type Space<P> = Stage2<<P as Platform>::Tables, <P as Platform>::Tlb>;

/// A virtual machine.
pub struct Vm<P: Platform> {
    /// Its name.
    pub name: String,
    /// Its tag in the TLB, and its number everywhere.
    pub vmid: Vmid,
    /// Its vCPUs, by number.
    pub vcpus: Vec<Vcpu>,
    /// Bits of its addresses.
    pub ipa_bits: u32,
    /// Its map. Readers lock too: see [`crate::stage2`].
    pub stage2: Mutex<Space<P>>,
    /// Where it prints.
    pub console: usize,
    /// What it is started with.
    pub boot: Boot,
    /// Virtual aborts that its vCPUs were given for memory errors.
    pub vseas: AtomicU64,
    /// Pages that its guest has injected errors into.
    pub injected: AtomicU64,
    /// Its interrupt controller.
    pub vgic: Vgic,
    /// How a guest with ACPI is told of errors by records.
    pub errors: Option<ErrorDevice<P::Shared>>,
    /// What its virtual counter lags behind the physical one (CNTVOFF_EL2).
    pub counter_offset: AtomicU64,
    /// Devices of the machine that are its own.
    devices: Vec<Device>,
    /// They do nothing any more.
    devices_at_rest: AtomicBool,
    uart: Mutex<Vuart>,
    /// [`RUNNING`], a [`StopReason`] or, after [`StopReason::Reset`], [`RELOADING`].
    stopped: AtomicU8,
}

impl<P: Platform> Vm<P> {
    /// A VM that has not been started. Its vCPUs are all off.
    pub fn new(
        name: String,
        vmid: Vmid,
        vcpus: Vec<Vcpu>,
        stage2: Space<P>,
        console: usize,
        timers: Timers,
        boot: Boot,
    ) -> Self {
        Self {
            name,
            vmid,
            vgic: Vgic::new(vcpus.len(), timers),
            errors: None,
            counter_offset: AtomicU64::new(0),
            vcpus,
            ipa_bits: stage2.config().ipa_bits(),
            stage2: Mutex::new(stage2),
            console,
            boot,
            vseas: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            devices: Vec::new(),
            devices_at_rest: AtomicBool::new(false),
            uart: Mutex::new(Vuart::default()),
            stopped: AtomicU8::new(RUNNING),
        }
    }

    /// The same VM with an error device.
    #[must_use]
    pub fn with_errors(mut self, device: Option<ErrorDevice<P::Shared>>) -> Self {
        self.errors = device;
        self
    }

    /// The CPUs that its vCPUs are pinned to, as [`cpu_bit`] has them.
    pub fn cpus(&self) -> u64 {
        let bits = self.vcpus.iter().map(|vcpu| cpu_bit(vcpu.pcpu));
        bits.fold(0, |all, bit| all | bit)
    }

    /// The same VM with devices of the machine, whose interrupts are wired as `wiring` says.
    #[must_use]
    pub fn with_devices(mut self, devices: Vec<Device>, wiring: Wiring) -> Self {
        self.devices = devices;
        self.vgic.connect(wiring);
        self
    }

    /// Whether its vCPUs must not run any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire) != RUNNING
    }

    /// Whether they never will again.
    pub(super) fn has_ended(&self) -> bool {
        let ended = [StopReason::Off as u8, StopReason::Killed as u8];
        ended.contains(&self.stopped.load(Ordering::Acquire))
    }

    /// What it does.
    pub fn state(&self) -> State {
        const OFF: u8 = StopReason::Off as u8;
        const KILLED: u8 = StopReason::Killed as u8;
        match self.stopped.load(Ordering::Acquire) {
            RUNNING => State::Running,
            OFF => State::Off,
            KILLED => State::Killed,
            _ => State::Resetting,
        }
    }

    /// Exchanges `stopped`. True if it was `from`.
    fn pass(&self, from: u8, to: u8) -> bool {
        self.stopped
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Whether its vCPUs run, or will once more.
    pub(super) fn has_future(&self) -> bool {
        let stopped = self.stopped.load(Ordering::Acquire);
        ![StopReason::Off as u8, StopReason::Killed as u8].contains(&stopped)
    }

    /// Claims the VM for loading it anew, if it waits for that.
    pub(super) fn begin_reload(&self) -> bool {
        self.pass(StopReason::Reset as u8, RELOADING)
    }

    /// Lets it run again, if it was not ended meanwhile.
    pub(super) fn end_reload(&self) -> bool {
        self.pass(RELOADING, RUNNING)
    }

    /// Puts its devices into the state of a machine that was turned on.
    pub(super) fn reset_devices(&self) {
        *self.uart.lock() = Vuart::default();
        self.vgic.reset();
    }

    /// Puts the error device into the state that its guest finds first. One whose memory is bad has
    /// nothing to say any more; the VM does without.
    pub(super) fn reset_errors(&self) {
        if let Some(Err(error)) = self.errors.as_ref().map(ErrorDevice::reset) {
            log::warn!("event=error what=guest-record vm={} why={error}", self.name);
        }
    }

    /// Raises the edge of the error interrupt, if `effect` says that it is due.
    pub fn signal(&self, platform: &P, effect: Effect, here: Option<usize>) {
        if effect == Effect::Interrupt {
            let concerned = self.vgic.set_line(ERROR_INTERRUPT, true);
            let fallen = self.vgic.set_line(ERROR_INTERRUPT, false);
            self.knock(platform, concerned.union(fallen), here);
        }
    }

    /// None of its vCPUs runs: its devices are told to leave its memory alone. A VM that has ended
    /// for good has this done once.
    pub(super) fn rest_devices(&self, platform: &P) {
        if self.devices_at_rest.swap(true, Ordering::AcqRel) {
            return;
        }
        for device in &self.devices {
            if let Err(error) = platform.reset_device(device) {
                let (name, at) = (&self.name, device.registers.start());
                log::error!("event=error what=device vm={name} why={error} pa={at}");
            }
        }
    }

    /// It is about to run: its devices may be used.
    pub(super) fn wake_devices(&self) {
        self.devices_at_rest.store(false, Ordering::Release);
    }

    /// Uses its console's registers. Returns whom the console's interrupt concerns as well.
    pub fn with_uart<R>(
        &self,
        platform: &P,
        access: impl FnOnce(&mut Vuart, &mut Line<'_, P>) -> R,
    ) -> (R, VcpuSet) {
        let mut line = Line {
            platform,
            console: self.console,
        };
        let mut uart = self.uart.lock();
        let result = access(&mut uart, &mut line);
        // Before the lock is released: of two changes, the later must be the last to arrive.
        let concerned = uart.line_change().map_or(VcpuSet::NONE, |high| {
            self.vgic.set_line(UART_INTERRUPT, high)
        });
        (result, concerned)
    }

    /// Has vCPUs look after their list registers. `here` is the calling CPU's number: a vCPU that
    /// is pinned to it does so before it goes on, without a kick.
    pub fn knock(&self, platform: &P, concerned: VcpuSet, here: Option<usize>) {
        self.vgic.knock(concerned);
        for vcpu in concerned.iter().filter_map(|vcpu| self.vcpus.get(vcpu)) {
            if Some(vcpu.pcpu) != here {
                platform.kick(vcpu.pcpu);
            }
        }
    }
}

/// The terminal end of a VM's console.
pub struct Line<'a, P> {
    platform: &'a P,
    console: usize,
}

impl<P: Platform> Terminal for Line<'_, P> {
    fn put(&mut self, byte: u8) {
        self.platform.print(self.console, byte);
    }

    fn get(&mut self) -> Option<u8> {
        self.platform.typed(self.console)
    }

    fn pause(&mut self) {
        self.platform.pause(self.console);
    }
}

/// The machine as a hypervisor has it.
pub struct Hypervisor<P: Platform> {
    /// What the machine does.
    pub platform: P,
    /// The memory errors' pipeline.
    pub ras: Ras<'static, P::Shared>,
    /// What the machine promises about its errors.
    pub triage: triage::Machine,
    /// What is done about guests that go round in circles.
    pub loops: loops::Policy,
    vms: Vec<Vm<P>>,
    running: AtomicUsize,
}

impl<P: Platform> Hypervisor<P> {
    /// These VMs on this machine. VMIDs count from 1, in the order of `vms`.
    pub fn new(
        platform: P,
        ras: Ras<'static, P::Shared>,
        triage: triage::Machine,
        vms: Vec<Vm<P>>,
    ) -> Self {
        let running = AtomicUsize::new(vms.len());
        Self {
            platform,
            ras,
            triage,
            loops: loops::Policy::DEFAULT,
            vms,
            running,
        }
    }

    /// All VMs.
    pub fn vms(&self) -> &[Vm<P>] {
        &self.vms
    }

    /// The VM with this VMID.
    pub fn vm(&self, vmid: Vmid) -> Option<&Vm<P>> {
        self.vms.get(usize::from(vmid.get()).checked_sub(1)?)
    }

    /// Says that `vm` is about to run its first instruction, and how the counter stands when its own begins.
    pub(super) fn announce(&self, vm: &Vm<P>, entry: Ipa, at: u64) {
        log::info!(
            "event=vm-start vm={} vcpus={} ram={:#x} entry={entry} at={at}",
            vm.name,
            vm.vcpus.len(),
            vm.boot.ram,
        );
        self.print_stage2(vm, "start");
    }

    /// Ends a VM for good: none of its vCPUs runs a guest instruction after its next exit, which
    /// comes at once. True if it had not been ended before: of several reasons the first counts, but
    /// a reset that has not been carried out is not carried out.
    pub fn stop(&self, vm: &Vm<P>, reason: StopReason) -> bool {
        let end = |seen| {
            let ended = [StopReason::Off as u8, StopReason::Killed as u8].contains(&seen);
            (!ended).then_some(reason as u8)
        };
        let before = vm
            .stopped
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, end);
        if before.is_err() {
            return false;
        }
        self.say_stopped(vm, reason);
        self.platform.powered(vm.console, false);
        self.running.fetch_sub(1, Ordering::AcqRel);
        true
    }

    /// Starts a VM anew as soon as its vCPUs are off (see [`super::boot`]). False if it does not run.
    pub fn reset(&self, vm: &Vm<P>) -> bool {
        let runs = vm.pass(RUNNING, StopReason::Reset as u8);
        if runs {
            self.say_stopped(vm, StopReason::Reset);
        }
        runs
    }

    /// Starts a VM again that was turned off: from here on it is one that waits for its reset. False
    /// if it is not off; one that was killed stays so, for its tables may be bad. Comes too late
    /// for the last VM, whose end is the machine's.
    pub fn revive(&self, vm: &Vm<P>) -> bool {
        if !vm.pass(StopReason::Off as u8, StopReason::Reset as u8) {
            return false;
        }
        self.running.fetch_add(1, Ordering::AcqRel);
        self.platform.powered(vm.console, true);
        // Any of its CPUs can load it, and no other has the time.
        if let Some(first) = vm.vcpus.first() {
            self.platform.kick(first.pcpu);
        }
        true
    }

    /// What the CPU of `vcpu`, which is off, does now. It asks after every interrupt.
    pub fn rest(&self, vm: &Vm<P>, vcpu: &Vcpu) -> Rest {
        if vm.is_stopped() {
            // It was asked to start, and its VM stopped before it did.
            vcpu.cancel_start();
            self.settle(vm);
        }
        if self.is_idle() {
            return Rest::Halt;
        }
        if vm.is_stopped() {
            return Rest::Sleep;
        }
        vcpu.take_start().map_or(Rest::Sleep, Rest::Start)
    }

    fn say_stopped(&self, vm: &Vm<P>, reason: StopReason) {
        vm.vgic.silence();
        for vcpu in &vm.vcpus {
            self.platform.kick(vcpu.pcpu);
        }
        // Of a VM that was killed not even the map is looked at: its tables may be what went bad, and
        // reading them would make Cordon the one who consumes the poison.
        if reason != StopReason::Killed {
            self.print_stage2(vm, "stop");
        }
        log::info!(
            "event=vm-stop vm={} reason={reason} vseas={}",
            vm.name,
            vm.vseas.load(Ordering::Relaxed)
        );
    }

    fn print_stage2(&self, vm: &Vm<P>, when: &str) {
        let said = self.say_stage2(vm, when, &mut |line| log::info!("{line}"));
        if let Err(damage) = said {
            log::error!("event=error what=stage2 vm={} why={damage}", vm.name);
        }
    }

    /// Says what a VM's map is made of, as a whole and by the regions that it maps.
    pub(super) fn say_stage2(
        &self,
        vm: &Vm<P>,
        when: &str,
        say: &mut dyn FnMut(fmt::Arguments<'_>),
    ) -> Result<(), Damage> {
        let stage2 = vm.stage2.lock();
        let census = stage2.census()?;
        say(format_args!(
            "event=stage2 vm={} when={when} {} tables={} reserve={}",
            vm.name,
            Leaves(&census),
            census.tables,
            stage2.reserve_left()
        ));
        for region in self.ras.devmem.regions() {
            for mapping in region.mappings().filter(|mapping| mapping.vm == vm.vmid) {
                if let Ok(census) = stage2.census_of(mapping.ipa, mapping.range.size()) {
                    let (id, kind) = (region.id(), region.kind());
                    let (ipa, leaves) = (mapping.ipa, Leaves(&census));
                    say(format_args!(
                        "event=leaves vm={} when={when} region={id} kind={kind} ipa={ipa} {leaves}",
                        vm.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// Tells a guest with ACPI of an error that it need not act on at once.
    pub fn report(&self, vm: &Vm<P>, report: Report) {
        if let Some(effect) = (vm.errors.as_ref()).and_then(|errors| errors.found(report)) {
            let note = Note::Reported {
                seq: None,
                vm: vm.vmid,
                source: 1,
                severity: Some(report.severity),
                ipa: report.ipa,
            };
            self.ras.say(&note, self);
            vm.signal(&self.platform, effect, None);
        }
    }

    /// The physical interrupt `physical` came to the CPU of `vcpu` and is active; `cpu` is `None` where
    /// the vCPU is off. One that is no VM's here is switched off: nobody would ever end it.
    pub fn device_interrupt(
        &self,
        vm: &Vm<P>,
        vcpu: &Vcpu,
        physical: u16,
        cpu: Option<&mut impl CpuInterface>,
    ) {
        match vm.vgic.device(vcpu.index, physical, cpu) {
            Some(concerned) => vm.knock(&self.platform, concerned, Some(vcpu.pcpu)),
            None => {
                log::warn!("event=error what=interrupt why=unexpected id={physical}");
                self.platform.refuse_interrupt(physical);
            }
        }
    }

    /// Something was typed for a VM's console. `here` as for [`Vm::knock`].
    pub fn input(&self, vm: &Vm<P>, here: Option<usize>) {
        let ((), concerned) = vm.with_uart(&self.platform, |uart, line| uart.receive(line));
        vm.knock(&self.platform, concerned, here);
    }

    /// Whether no VM runs any more.
    pub fn is_idle(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }
}

impl<P: Platform> AddressSpaces for Hypervisor<P> {
    /// Keeps off the map of a VM that is stopped, for the same reason as [`Hypervisor::stop`].
    fn make_hole(&self, vm: Vmid, ipa: Ipa, frame: Pa) -> Option<Result<HoleOutcome, Damage>> {
        let vm = self.vm(vm).filter(|vm| !vm.is_stopped())?;
        let mut stage2 = vm.stage2.lock();
        Some(match holds(&stage2, ipa, frame) {
            Ok(true) => stage2.make_hole(ipa),
            Ok(false) => Ok(HoleOutcome::NotMapped),
            Err(damage) => Err(damage),
        })
    }

    fn drop_block(&self, vm: Vmid, ipa: Ipa, frame: Pa) -> Option<Result<HoleOutcome, Damage>> {
        let vm = self.vm(vm).filter(|vm| !vm.is_stopped())?;
        let mut stage2 = vm.stage2.lock();
        Some(match holds(&stage2, ipa, frame) {
            Ok(true) => stage2.drop_block(ipa),
            Ok(false) => Ok(HoleOutcome::NotMapped),
            Err(damage) => Err(damage),
        })
    }

    fn counter(&self) -> u64 {
        self.platform.counter()
    }

    fn rebuild(&self, table: Pa) -> Option<(Vmid, Rebuilt)> {
        let running = self.vms.iter().filter(|vm| !vm.is_stopped());
        running
            .into_iter()
            .find_map(|vm| self.rebuild_table(vm, table))
    }

    fn name(&self, vm: Vmid) -> &str {
        self.vm(vm).map_or("?", |vm| &vm.name)
    }

    /// A guest with ACPI is told, unless it is the one that met the error: then its own abort says
    /// more (`memory_error`).
    fn lost(&self, vmid: Vmid, ipa: Ipa, event: &ErrorEvent) {
        let consumes = matches!(event.consumer, Some(Consumer::Vcpu { vm, .. }) if vm == vmid);
        if let Some(vm) = self.vm(vmid).filter(|_| !consumes) {
            self.report(vm, Report::lost(ipa.page()));
        }
    }

    /// A guest with ACPI is told of those, too: where there are too many, it moves what is in the page.
    fn corrected(&self, vmid: Vmid, ipa: Ipa, threshold: bool) {
        if let Some(vm) = self.vm(vmid).filter(|vm| !vm.is_stopped()) {
            let severity = Severity::Corrected;
            let ipa = ipa.page();
            self.report(
                vm,
                Report {
                    ipa,
                    severity,
                    threshold,
                },
            );
        }
    }

    fn give_up(&self, vmid: Vmid, why: &dyn fmt::Display) -> bool {
        self.vm(vmid).is_some_and(|vm| {
            log::error!("event=error what=stage2 vm={} why={why}", vm.name);
            self.stop(vm, StopReason::Killed)
        })
    }
}

/// Whether `frame` is behind the page at `ipa`, mapped or not.
fn holds<M: TableMemory, T: Tlb>(map: &Stage2<M, T>, ipa: Ipa, frame: Pa) -> Result<bool, Damage> {
    Ok(match map.lookup(ipa)? {
        Lookup::Mapped { pa, .. } | Lookup::Poisoned { pa, .. } | Lookup::Parked { pa, .. } => {
            pa.page() == frame.page()
        }
        Lookup::Unmapped => false,
    })
}

/// Leaves by size, and holes.
struct Leaves<'a>(&'a Census);

impl fmt::Display for Leaves<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [l1, l2, l3] = [Level::L1, Level::L2, Level::L3].map(|level| self.0.leaves(level));
        write!(
            f,
            "1g={l1} 2m={l2} 4k={l3} hole={} hole_bytes={:#x} dropped={}",
            self.0.holes, self.0.hole_bytes, self.0.parked
        )
    }
}
