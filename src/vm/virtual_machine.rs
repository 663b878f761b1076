//! One VM: what it is made of, and whether it runs.
//!
//! Built once at boot, then only shared: every field that changes has a lock or is atomic.

use super::boot::Boot;
use super::config::UART_INTERRUPT;
use super::device::Device;
use super::error_device::{Effect, ErrorDevice};
use super::guest_acpi::ERROR_INTERRUPT;
use super::platform::Platform;
use super::vcpu::Vcpu;
use super::vgic::{Timers, VcpuSet, Vgic, Wiring};
use super::vuart::{Terminal, Vuart};
use crate::addr::{Ipa, Vmid};
use crate::devmem::Protections;
use crate::ras::poison::cpu_bit;
use crate::stage2::{Damage, Followed, Stage2};
use crate::sync::Mutex;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::DerefMut;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

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
    /// What parts of its memory are less than it was given. A leaf.
    pub protections: Mutex<Protections>,
    /// Where it prints.
    pub console: usize,
    /// What it is started with.
    pub boot: Boot,
    /// Accesses to good pages under holes that were carried out for its vCPUs.
    pub carried_out: AtomicU64,
    /// Such that were not.
    pub not_carried_out: AtomicU64,
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
    /// The CPUs of its vCPUs, as bits.
    cpus: u64,
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
            cpus: vcpus.iter().fold(0, |cpus, vcpu| cpus | cpu_bit(vcpu.pcpu)),
            errors: None,
            counter_offset: AtomicU64::new(0),
            vcpus,
            ipa_bits: stage2.config().ipa_bits(),
            stage2: Mutex::new(stage2),
            protections: Mutex::new(Protections::new()),
            console,
            boot,
            carried_out: AtomicU64::new(0),
            not_carried_out: AtomicU64::new(0),
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

    /// Where `ipa` leads, true as long as the answer is kept: it holds the map's lock.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn follow(
        &self,
        ipa: Ipa,
    ) -> Result<Followed<impl DerefMut<Target = Space<P>> + '_>, Damage> {
        Followed::new(self.stage2.lock(), ipa)
    }

    /// The CPUs that its vCPUs are pinned to, as [`cpu_bit`] has them.
    pub const fn cpus(&self) -> u64 {
        self.cpus
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

    /// Ends it for good; false if it had been before.
    pub(super) fn end(&self, reason: StopReason) -> bool {
        let end = |seen| {
            let ended = [StopReason::Off as u8, StopReason::Killed as u8].contains(&seen);
            (!ended).then_some(reason as u8)
        };
        self.stopped
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, end)
            .is_ok()
    }

    /// Has it wait for being loaded anew; false if it does not run.
    pub(super) fn begin_reset(&self) -> bool {
        self.pass(RUNNING, StopReason::Reset as u8)
    }

    /// The same for one that is off; false if it is not.
    pub(super) fn begin_revival(&self) -> bool {
        self.pass(StopReason::Off as u8, StopReason::Reset as u8)
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
