//! All VMs, and what they share.
//!
//! Built once at boot, then only shared: every field that changes has a lock or is atomic.

use super::boot::{Boot, Contents};
use super::config::UART_INTERRUPT;
use super::vcpu::Vcpu;
use super::vgic::{Timers, VcpuSet, Vgic};
use super::vuart::{Terminal, Vuart};
use crate::addr::{Ipa, Pa, PaRange, Vmid};
use crate::ras::contain::AddressSpaces;
use crate::ras::ghes::PhysMemory;
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
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

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
    /// A byte typed for a VM's console.
    fn typed(&self, console: usize) -> Option<u8>;
    /// Writes `to`, memory of a VM that does not run, with what `contents` hold from `offset` on, and
    /// with zeros behind their end, so that a CPU without caches sees it.
    ///
    /// # Errors
    ///
    /// Where the memory cannot be reached; part of it may be written then.
    fn load(&self, to: PaRange, contents: &Contents, offset: u64) -> Result<(), Self::LoadError>;
    /// A VM's console has room for what is typed: [`Hypervisor::input`] is to be called when there
    /// is something.
    fn listen(&self, console: usize);
    /// Which of the timers of the guest on physical CPU number `cpu` ask for an interrupt at this
    /// moment, as bits by virtual INTID.
    fn timer_lines(&self, cpu: usize) -> u32;
    /// The physical counter (CNTPCT_EL0).
    fn counter(&self) -> u64;
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
    /// What its virtual counter lags behind the physical one (CNTVOFF_EL2).
    pub counter_offset: AtomicU64,
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
            counter_offset: AtomicU64::new(0),
            vcpus,
            ipa_bits: stage2.config().ipa_bits(),
            stage2: Mutex::new(stage2),
            console,
            boot,
            vseas: AtomicU64::new(0),
            injected: AtomicU64::new(0),
            uart: Mutex::new(Vuart::default()),
            stopped: AtomicU8::new(RUNNING),
        }
    }

    /// The CPUs that its vCPUs are pinned to, as [`cpu_bit`] has them.
    pub fn cpus(&self) -> u64 {
        let bits = self.vcpus.iter().map(|vcpu| cpu_bit(vcpu.pcpu));
        bits.fold(0, |all, bit| all | bit)
    }

    /// Whether its vCPUs must not run any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire) != RUNNING
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

    fn listen(&mut self) {
        self.platform.listen(self.console);
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

    /// Says that `vm` is about to run its first instruction.
    pub(super) fn announce(&self, vm: &Vm<P>, entry: Ipa) {
        log::info!(
            "event=vm-start vm={} vcpus={} ram={:#x} entry={entry}",
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
        self.running.fetch_sub(1, Ordering::AcqRel);
        true
    }

    /// Starts a VM anew as soon as its vCPUs are off (see [`super::boot`]).
    pub fn reset(&self, vm: &Vm<P>) {
        if vm.pass(RUNNING, StopReason::Reset as u8) {
            self.say_stopped(vm, StopReason::Reset);
        }
    }

    fn say_stopped(&self, vm: &Vm<P>, reason: StopReason) {
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

    /// Says what a VM's map is made of, as a whole and by the regions that it maps.
    fn print_stage2(&self, vm: &Vm<P>, when: &str) {
        let stage2 = vm.stage2.lock();
        match stage2.census() {
            Ok(census) => log::info!(
                "event=stage2 vm={} when={when} {} tables={} reserve={}",
                vm.name,
                Leaves(&census),
                census.tables,
                stage2.reserve_left()
            ),
            Err(damage) => log::error!("event=error what=stage2 vm={} why={damage}", vm.name),
        }
        for region in self.ras.devmem.regions() {
            for mapping in region.mappings().filter(|mapping| mapping.vm == vm.vmid) {
                if let Ok(census) = stage2.census_of(mapping.ipa, mapping.range.size()) {
                    let (id, kind) = (region.id(), region.kind());
                    let (ipa, leaves) = (mapping.ipa, Leaves(&census));
                    log::info!(
                        "event=leaves vm={} when={when} region={id} kind={kind} ipa={ipa} {leaves}",
                        vm.name
                    );
                }
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

    fn rebuild(&self, table: Pa) -> Option<(Vmid, Rebuilt)> {
        let running = self.vms.iter().filter(|vm| !vm.is_stopped());
        running
            .into_iter()
            .find_map(|vm| self.rebuild_table(vm, table))
    }

    fn name(&self, vm: Vmid) -> &str {
        self.vm(vm).map_or("?", |vm| &vm.name)
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
