//! From the first Rust instruction to running guests, once, on the boot CPU.
//!
//! ```text
//!   machine   what is there: DTB, PCI
//!   efi       the same, where UEFI started Cordon: memory map, and ACPI or a DTB
//!   firmware  what nobody has done for us: fw_cfg's tables and bundle
//!   acpi      what the tables say
//!   sources   where firmware reports memory errors
//!   retired   pages that were bad before
//!   vms       memory, tables and images of the VMs
//! ```
//!
//! Every input is checked by the library that reads it. What is wrong is said on the console by
//! name; what can be done without, is.

mod acpi;
mod efi;
mod firmware;
mod machine;
mod retired;
mod sources;
mod vms;

use crate::arch::aarch64::mmio::SharedMemory;
use crate::arch::aarch64::{
    cpu, features, gic, guest, heap, layout, mem, mmu, page_slot, power, reset_service, smc, uart,
};
use crate::exit::{Seat, halt};
use crate::machine::{HYPERVISOR, ThisMachine, look_for_input};
use aarch64_cpu::registers::{CNTFRQ_EL0, ID_AA64MMFR0_EL1, ID_AA64MMFR2_EL1, MPIDR_EL1, Readable};
use acpi::TableMemory;
use alloc::vec::Vec;
use cordon::addr::{Pa, PaRange};
use cordon::devmem::DevMem;
use cordon::platform::bundle::Bundle;
use cordon::platform::cmdline::{self, Bbm, Options};
use cordon::platform::machine::{Conduit, Machine, Reserved, ReservedBy};
use cordon::platform::memory::FreeMemory;
use cordon::ras::capabilities::Capabilities;
use cordon::ras::pipeline::Ras;
use cordon::ras::poison::{PoisonSet, PoisonedPage};
use cordon::ras::spares::Spares;
use cordon::ras::triage;
use cordon::stage2::{Config, Strategy};
use cordon::vm::hypervisor::{Hypervisor, Vm};
use core::sync::atomic::Ordering;
use firmware::Firmware;
use vms::Materials;

/// Pages that the poison set can remember.
const POISON_CAPACITY: usize = 4096;

/// How Cordon was started (src/arch/aarch64/boot.rs).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// As an image, by a loader.
    Image,
    /// Out of reset, from flash.
    Reset,
    /// As an application of UEFI's, which it has left.
    Uefi,
}

impl Door {
    /// As `event=boot` says it.
    const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Reset => "reset",
            Self::Uefi => "uefi",
        }
    }
}

/// Sets everything up. The VMs' first vCPUs are told to start when it returns.
/// `described_at` is where the device tree is, or what UEFI's application has left in its place.
pub fn run(described_at: Pa, door: Door) {
    let found = match door {
        Door::Uefi => efi::find_machine(described_at),
        Door::Image | Door::Reset => find_machine(described_at),
    };
    let Some(machine) = found else {
        return;
    };
    let options = options(&machine);
    start_console(&machine, &options);
    look_for_psci(&machine, &options);
    cpu_records(&machine);
    let mut free = free_memory(&machine);
    let inputs = Inputs::find(&machine, &mut free, door);
    let sources = sources::find(inputs.acpi.hest.as_deref(), &mut free);
    let stage2 = stage2_config(&options);
    announce(door, &stage2, &inputs, sources.len());
    if !start_interrupts(&machine) {
        return;
    }
    let (sources, capabilities) = sources::watch(sources, inputs.acpi.event_device);
    let capabilities = capabilities | features::capabilities(&stage2);
    log::info!("event=capabilities {capabilities}");

    let mut materials = Materials {
        free,
        devmem: DevMem::new(),
        bars: Vec::new(),
        reserved: Vec::new(),
        stage2,
        tables: options.tables.unwrap_or(vms::RESERVE),
        bad: Vec::new(),
    };
    let reserved = reserve(&options, &mut materials.free);
    materials.register(&machine::find_bars(&machine), &reserved);
    let spares = options.spares.and_then(|size| materials.take_spares(size));
    let vms = inputs.build_vms(&machine, &options, &mut materials);
    let bad = core::mem::take(&mut materials.bad);

    let nodes = alloc::vec::Vec::from_iter((0..POISON_CAPACITY).map(|_| PoisonedPage::new()));
    let poison = PoisonSet::new(nodes.leak());
    let ras = Ras::new(materials.devmem, poison, sources);
    ras.mender.corrected.lock().policy = options.corrected;
    if let Some(spares) = spares {
        *ras.mender.spares.lock() = Spares::new(spares);
    }
    let hypervisor = hypervisor(ras, vms, capabilities, &options);
    let here = cpu::try_this().map_or(0, |cpu| cpu.index);
    hypervisor.import_poison(&bad, here);
    start_vms(hypervisor);
}

fn find_machine(dtb: Pa) -> Option<Machine> {
    match machine::read(dtb) {
        Ok(machine) => Some(machine),
        Err(error) => {
            // Where nothing says where a console is, it is here on QEMU's `virt`; on another machine
            // these bytes spoil nothing but a word of one that starts nothing anyway.
            let console = error.console().unwrap_or(uart::VIRT_PL011);
            let _ = uart::init(&console, log::LevelFilter::Info);
            log::error!("event=error what=dtb at={dtb} {error}");
            None
        }
    }
}

fn options(machine: &Machine) -> Options {
    let line = machine.bootargs.as_deref().unwrap_or_default();
    // What is wrong with it is said once there is a console.
    cmdline::parse(line).0
}

fn start_console(machine: &Machine, options: &Options) {
    if let Some(uart) = &machine.host_uart() {
        // Without a console there is nobody to tell that there is none.
        let _ = uart::init(uart, options.loglevel);
    }
    // The UART does not fail.
    let _ = uart::CONSOLE.lock().set_raw(options.raw_console);
    let line = machine.bootargs.as_deref().unwrap_or_default();
    for word in cmdline::parse(line).1 {
        log::warn!("event=error what=bootargs {word}");
    }
}

/// Without PSCI by SMC there is one CPU, and nobody who turns it off but UEFI, if that is there.
fn look_for_psci(machine: &Machine, options: &Options) {
    let why = match machine.psci {
        Some(_) if !options.uses_psci => "command-line",
        Some(Conduit::Smc) => return,
        Some(Conduit::Hvc) => "by-hvc",
        None => "not-described",
    };
    smc::forget();
    if let Some(service) = &machine.reset
        && let Err(error) = reset_service::init(service, machine.uart)
    {
        log::error!("event=error what=reset-service why={error}");
    }
    let ends_by = match power::can_end() {
        true => "efi",
        false => "nobody",
    };
    log::warn!("event=no-psci why={why} ends_by={ends_by}");
}

/// Boot CPU first, then the others as the DTB has them.
fn cpu_records(machine: &Machine) {
    let own = MPIDR_EL1.get() & cpu::MPIDR_AFFINITY;
    let others = machine.cpus.iter().map(|cpu| cpu.get());
    let mpidrs: Vec<u64> = [own]
        .into_iter()
        .chain(others.filter(|mpidr| *mpidr != own))
        .collect();
    cpu::init(&mpidrs);
    if let Some(this) = cpu::all().first() {
        cpu::install(this);
        this.online.store(true, Ordering::Release);
    }
}

fn free_memory(machine: &Machine) -> FreeMemory {
    let reserved = machine.reserved.iter().map(|reserved| reserved.range);
    FreeMemory::new(
        machine.ram.iter().copied(),
        reserved.chain(layout::own_memory()),
    )
}

/// RAM that the command line wants to be used as device memory, by its words; `None` for one that
/// cannot be had.
fn reserve(options: &Options, free: &mut FreeMemory) -> Vec<Option<PaRange>> {
    let say = |error: &_| log::error!("event=error what=reserved {error}");
    let taken = free.carve(&options.reserved).into_iter();
    taken.map(|range| range.inspect_err(say).ok()).collect()
}

fn stage2_config(options: &Options) -> Config {
    let (mmfr0, mmfr2) = (ID_AA64MMFR0_EL1.get(), ID_AA64MMFR2_EL1.get());
    let config = match Config::from_id_registers(mmfr0, mmfr2) {
        Ok(config) => config,
        Err(error) => {
            log::error!("event=error what=stage2 why={error}");
            halt()
        }
    };
    let config = config.with_contiguous(options.contiguous);
    let config = if options.lpa2 {
        config
    } else {
        config.without_lpa2()
    };
    match options.bbm {
        // Never more than the CPUs have.
        Bbm::Level(level) if level < features::get().bbm => {
            config.with_strategy(Strategy::for_bbm_level(level.into()))
        }
        _ => config,
    }
}

/// Where ACPI tables may be.
fn table_memory(machine: &Machine) -> Vec<PaRange> {
    let is_table_memory = |reserved: &&Reserved| matches!(reserved.by, ReservedBy::Node(_));
    let known = machine.reserved.iter().filter(is_table_memory);
    known.map(|reserved| reserved.range).collect()
}

/// What was handed to Cordon, and what firmware tells of itself.
struct Inputs {
    bundle: Option<PaRange>,
    acpi: acpi::Found,
    has_acpi: bool,
}

impl Inputs {
    /// `door`: what nobody has fetched yet is fetched.
    #[inline(never)]
    fn find(machine: &Machine, free: &mut FreeMemory, door: Door) -> Self {
        let mut tables = table_memory(machine);
        let (mut rsdp, mut bundle) = (machine.rsdp, machine.initrd);
        if door == Door::Reset
            && let Some(registers) = machine.fw_cfg
            && let Some(mut firmware) = Firmware::open(registers, free)
        {
            if let Some(loaded) = firmware.load_tables() {
                rsdp = Some(loaded.rsdp);
                tables = loaded.memory;
            }
            bundle = firmware.load_bundle();
        }
        let acpi = rsdp.map(|rsdp| {
            let memory = TableMemory::open(tables);
            acpi::read(rsdp, &memory, machine)
        });
        Self {
            bundle,
            has_acpi: rsdp.is_some(),
            acpi: acpi.unwrap_or_default(),
        }
    }

    /// Kept apart from its caller: boot has one small stack, and inlining adds all frames up.
    #[inline(never)]
    fn build_vms(
        &self,
        machine: &Machine,
        options: &Options,
        materials: &mut Materials,
    ) -> Vec<Vm<ThisMachine>> {
        let Some(range) = self.bundle else {
            log::error!("event=error what=bundle why=none");
            return Vec::new();
        };
        if !machine.ram.iter().any(|ram| ram.contains_range(range)) {
            log::error!("event=error what=bundle why=not-in-ram at={range}");
            return Vec::new();
        }
        let window = match machine::boot_memory(range) {
            Ok(window) => window,
            Err(error) => {
                log::error!("event=error what=bundle why={error} at={range}");
                return Vec::new();
            }
        };
        match Bundle::parse(&window) {
            Ok(bundle) => {
                materials.bad = retired::find(&bundle, options);
                materials.build_all(machine, &bundle, cpu::all().len())
            }
            Err(error) => {
                log::error!("event=error what=bundle {error}");
                Vec::new()
            }
        }
    }
}

/// What kind of machine this is, in one line.
fn announce(door: Door, stage2: &Config, inputs: &Inputs, sources: usize) {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let door = door.name();
    let psci = smc::psci_version();
    let poison_switch = smc::poison_switch::is_there();
    log::info!(
        "event=boot version={} cpus={} door={door} el3={} psci={} acpi={} ghes={sources} pa_bits={} bbm={} ras={} self={:#x} counter_hz={}",
        env!("CARGO_PKG_VERSION"),
        cpu::all().len(),
        yes_no(poison_switch),
        psci.map_or("none".into(), |version| alloc::format!("{version}")),
        yes_no(inputs.has_acpi),
        stage2.pa_bits(),
        stage2.strategy().bbm_level(),
        yes_no(features::get().ras),
        layout::relro_end(),
        CNTFRQ_EL0.get(),
    );
    if !poison_switch {
        log::info!("event=no-poison-switch why=no-firmware-at-el3-that-can-poison-memory");
    }
    let (used, total) = heap::usage();
    log::debug!("event=heap used={used} total={total}");
}

/// Without interrupts no CPU could get another out of its guest: then there is nothing to start.
fn start_interrupts(machine: &Machine) -> bool {
    if machine.gic.is_none() {
        // A GICv2 has another virtual interface, in memory, for which there is no back end.
        let found = machine.other_gic.unwrap_or("none");
        log::error!("event=error what=gic why=no-gicv3 found={found}");
        return false;
    }
    if let Err(error) = gic::init(machine) {
        log::error!("event=error what=gic why={error}");
        return false;
    }
    if let Some(this) = cpu::try_this() {
        gic::init_cpu(this);
    }
    true
}

/// The hypervisor, with what the command line wants of it.
#[inline(never)] // What it needs of the stack is not to be there while VMs are built.
fn hypervisor(
    ras: Ras<'static, SharedMemory>,
    vms: Vec<Vm<ThisMachine>>,
    capabilities: Capabilities,
    options: &Options,
) -> &'static Hypervisor<ThisMachine> {
    let promises = triage::Machine {
        feat_ras: features::get().ras,
        isolates_vms: options.isolates_vms,
    };
    let mut hypervisor = Hypervisor::new(ThisMachine, ras, promises, vms);
    hypervisor.capabilities = capabilities;
    hypervisor.loops = options.loops;
    // A guest that comes back to a hole after a second has done something else meanwhile.
    hypervisor.loops.window = CNTFRQ_EL0.get();
    let hypervisor = HYPERVISOR.call_once(|| hypervisor);
    if gic::has_own_timer() {
        hypervisor.ras.journal.defer();
    }
    for text in &options.filter {
        if let Err(error) = hypervisor.add_filter(text) {
            log::error!("event=error what=filter why={error} is={text}");
        }
    }
    hypervisor
}

/// Pins the vCPUs, gets the other CPUs up and lets the first vCPU of every VM go.
fn start_vms(hypervisor: &'static Hypervisor<ThisMachine>) {
    for vm in hypervisor.vms() {
        for vcpu in &vm.vcpus {
            if let Some(cpu) = cpu::all().get(vcpu.pcpu) {
                cpu.seat.call_once(|| Seat {
                    hypervisor,
                    vm,
                    vcpu,
                });
            }
        }
    }
    start_cpus();
    for vm in hypervisor.vms() {
        hypervisor.start(vm);
    }
    uart::listen();
    look_for_input();
}

fn start_cpus() {
    for cpu in cpu::all().iter().skip(1) {
        let (index, mpidr) = (cpu.index, cpu.mpidr);
        match cpu::start(cpu) {
            Ok(()) if cpu.wait_online() => {
                log::info!("event=cpu-up cpu={index} mpidr={mpidr:#x}");
            }
            Ok(()) => log::error!("event=error what=cpu why=did-not-come-up cpu={index}"),
            Err(error) => log::error!("event=error what=cpu why={error:?} cpu={index}"),
        }
    }
}

/// Confines this CPU's guest side to the VM that is pinned to it, if one is.
pub fn confine() {
    let Some(seat) = cpu::try_this().and_then(|cpu| cpu.seat.get()) else {
        return;
    };
    let stage2 = seat.vm.stage2.lock();
    let to = guest::Confinement {
        vtcr: stage2.vtcr_el2(),
        vttbr: stage2.vttbr_el2(),
        fwb: stage2.config().fwb(),
        mpidr: seat.vcpu.mpidr(),
    };
    guest::confine(&to, features::get());
}

/// EL2's own memory management, before anything else.
pub fn early() -> Result<(), mmu::Error> {
    mem::allow_unaligned();
    heap::init();
    mmu::init()?;
    page_slot::init();
    Ok(())
}
