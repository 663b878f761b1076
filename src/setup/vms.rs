//! From the bundle's descriptions to VMs that can be started: memory, tables, images, registry.

use crate::arch::aarch64::mmio::SharedMemory;
use crate::arch::aarch64::mmu;
use crate::arch::aarch64::tables::HeapFrames;
use crate::arch::aarch64::tlb::HardwareTlb;
use crate::arch::aarch64::{gic, id, spi, uart};
use crate::machine::ThisMachine;
use aarch64_cpu::registers::{CNTPCT_EL0, Readable};
use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::vec::Vec;
use cordon::addr::{Ipa, Pa, PaRange, Vmid};
use cordon::devmem::{DevMem, Kind, Mapping, RegionId, RegisterError};
use cordon::platform::bundle::{Bundle, File};
use cordon::platform::machine::Machine;
use cordon::platform::memory::{FreeMemory, GIB, MemoryError};
use cordon::platform::pci::DeviceBar;
use cordon::stage2::{self, Attrs, BuildError, Config, Granule, MapError, Stage2};
use cordon::vm::boot::{Boot, Contents, Image};
use cordon::vm::config::{
    self, ConfigError, Devices, Firmware, Grant, IpaRange, Limits, Source, VmConfig,
};
use cordon::vm::error_device::ErrorDevice;
use cordon::vm::guest_acpi;
use cordon::vm::guest_dt::{self, GuestDtError, Surroundings};
use cordon::vm::hypervisor::Vm;
use cordon::vm::vcpu::Vcpu;
use cordon::vm::vgic::Wiring;
use core::fmt;

/// Table frames that each VM keeps for containment: two for each of this many pages, wherever
/// they lie. (In a block of 512 GiB the first one takes a third.)
const HOLES: usize = 256;
pub const RESERVE: usize = 2 * HOLES;

/// Why a VM was not built.
#[derive(Debug)]
pub enum Error {
    /// The description.
    Config(ConfigError),
    /// RAM.
    Memory(MemoryError),
    /// The registry.
    Register(RegisterError),
    /// The tables.
    Build(BuildError),
    /// The shape of the tables.
    Shape(stage2::ConfigError),
    /// A mapping.
    Map(MapError),
    /// The guest's DTB.
    GuestDt(GuestDtError),
    /// Memory that EL2 keeps for itself.
    InUse(mmu::Error),
    /// The configuration's own arithmetic.
    OutOfRange,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Register(error) => write!(f, "why={error}"),
            Self::Build(error) => write!(f, "why={error}"),
            Self::Shape(error) => write!(f, "why={error}"),
            Self::Map(error) => write!(f, "why={error}"),
            Self::GuestDt(error) => error.fmt(f),
            Self::InUse(error) => write!(f, "why={error}"),
            Self::OutOfRange => f.write_str("why=out-of-range"),
        }
    }
}

macro_rules! from_errors {
    ($($variant:ident($error:ty)),* $(,)?) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )*};
}
from_errors!(
    Config(ConfigError),
    Memory(MemoryError),
    Register(RegisterError),
    Build(BuildError),
    Shape(stage2::ConfigError),
    Map(MapError),
    GuestDt(GuestDtError),
);

/// What VMs are made from.
pub struct Materials {
    /// RAM that nobody has yet.
    pub free: FreeMemory,
    /// The registry.
    pub devmem: DevMem<'static>,
    /// BARs, as found. One that was refused keeps its number: a description that counts to
    /// another must not get this one's neighbour.
    pub bars: Vec<Option<(RegionId, PaRange)>>,
    /// Reserved RAM, by the command line's words, likewise.
    pub reserved: Vec<Option<(RegionId, PaRange)>>,
    /// The shape of all stage-2 tables.
    pub stage2: Config,
    /// Table frames that each VM keeps for containment.
    pub tables: usize,
    /// Pages that were bad before.
    pub bad: Vec<PaRange>,
}

impl Materials {
    /// Registers the machine's device memory.
    pub fn register(&mut self, bars: &[DeviceBar], reserved: &[Option<PaRange>]) {
        for bar in bars {
            let region = self.offer(Kind::Bar, bar.range, &bar.function.to_string());
            self.bars.push(region);
        }
        for range in reserved {
            let region = range.and_then(|range| self.offer(Kind::Reserved, range, "reserved"));
            self.reserved.push(region);
        }
    }

    /// Takes RAM for spare pages; `None` where there is not as much.
    pub fn take_spares(&mut self, size: u64) -> Option<PaRange> {
        let range = self.free.allocate_for(Ipa::new(0), size, &[GIB]);
        let range = range.inspect_err(|error| log::error!("event=error what=spares {error}"));
        let (_, range) = self.offer(Kind::Spare, range.ok()?, "spares")?;
        Some(range)
    }

    fn offer(&mut self, kind: Kind, range: PaRange, owner: &str) -> Option<(RegionId, PaRange)> {
        let id = self.add_region(kind, range, owner);
        id.inspect_err(|error| log::error!("event=error what=region {error} at={range}"))
            .ok()
            .map(|id| (id, range))
    }

    fn add_region(&mut self, kind: Kind, range: PaRange, owner: &str) -> Result<RegionId, Error> {
        if let Some(own) = mmu::conflict(range) {
            return Err(Error::InUse(mmu::Error::InUse(own)));
        }
        let id = self.devmem.register(kind, range, owner, None)?;
        let (start, size) = (range.start(), range.size());
        log::info!("event=region id={id} kind={kind} pa={start} size={size:#x} owner={owner}");
        Ok(id)
    }

    /// Builds all VMs of `bundle` on the CPUs `cpus`. A VM that cannot be built is left out; so
    /// are all of them if the description as a whole is wrong.
    pub fn build_all(
        &mut self,
        machine: &Machine,
        bundle: &Bundle<'_>,
        cpus: usize,
    ) -> Vec<Vm<ThisMachine>> {
        let limits = Limits {
            cpus,
            ipa_bits: self.stage2.ipa_bits(),
            granules: self.stage2.granules(),
        };
        let configs = match config::read(bundle, limits) {
            Ok(configs) => configs,
            Err(error) => {
                log::error!("event=error what=bundle {error}");
                return Vec::new();
            }
        };
        let mut pcpus: VecDeque<usize> = (0..cpus).collect();
        let mut devices = Devices::new(machine, limits);
        let mut built = Vec::new();
        for mut config in configs {
            // VMIDs and places in the list go together: 1 is the first.
            let Some(vmid) = u8::try_from(built.len() + 1).ok().and_then(Vmid::new) else {
                break;
            };
            match self.build(&mut config, vmid, &mut pcpus, &mut devices) {
                Ok(vm) => built.push(vm),
                // What the description asks for is not there: the bundle is wrong, not the machine.
                Err(Error::Config(error)) => log::error!("event=error what=bundle {error}"),
                Err(error) => log::error!("event=error what=vm vm={} {error}", config.label),
            }
        }
        built
    }

    /// Kept apart from its caller: boot has one small stack, and inlining adds all frames up.
    #[inline(never)]
    fn build(
        &mut self,
        config: &mut VmConfig<'_>,
        vmid: Vmid,
        pcpus: &mut VecDeque<usize>,
        devices: &mut Devices<'_>,
    ) -> Result<Vm<ThisMachine>, Error> {
        let ram = self.allocate_ram(config, devices.limits())?;
        let grant = devices.give(config)?;
        let pieces = self.device_memory(config, vmid)?;
        let ram = whole(vmid, config.ram, ram);
        let memory = pieces.iter().map(|(_, mapping)| mapping).chain([&ram]);
        let memory = memory.map(|it| (it.ipa, it.range.start(), it.range.size()));
        let registers = grant.pages.iter();
        let registers = registers.map(|it| (Ipa::new(it.start().get()), it.start(), it.size()));
        let shape = self.stage2.with_granule(config.granule)?;
        let frames = HeapFrames::of(config.granule);
        let mut space = Stage2::new(
            shape.for_memory(memory.chain(registers)),
            vmid,
            frames,
            HardwareTlb,
            &mut { frames },
            reserve(self.tables, config.granule),
        )?;
        let id = self.add_region(Kind::Ram, ram.range, config.label)?;
        self.map(&mut space, config.label, id, ram)?;
        for (id, mapping) in pieces {
            self.map(&mut space, config.label, id, mapping)?;
        }
        for piece in &config.device_memory {
            self.devmem
                .set_policy(vmid, piece.ipa.start(), piece.policy);
        }
        self.map_registers(&mut space, config, &grant)?;
        let boot = boot(config, &grant)?;
        let errors = match config.firmware {
            Firmware::DeviceTree => None,
            Firmware::Acpi => Some(self.error_device(&mut space, config, vmid)?),
        };
        let vcpus = (0..config.vcpus as usize)
            .map(|index| Some(Vcpu::new(index, pcpus.pop_front()?)))
            .collect::<Option<Vec<Vcpu>>>()
            .ok_or(Error::OutOfRange)?;
        let wiring = Wiring {
            wires: (grant.devices.iter().flat_map(|given| &given.wires))
                .copied()
                .collect(),
            cpus: vcpus.iter().map(|vcpu| vcpu.pcpu).collect(),
            distributor: &spi::THE_DISTRIBUTOR,
        };
        let console = uart::CONSOLE.lock().add(config.label);
        let vm = Vm::new(
            config.label.into(),
            vmid,
            vcpus,
            space,
            console,
            gic::timers(),
            boot,
        );
        Ok(vm.with_devices(grant.all, wiring).with_errors(errors))
    }

    /// What the VM is to be given of the machine's device memory, each piece with its region.
    fn device_memory(
        &self,
        config: &VmConfig<'_>,
        vmid: Vmid,
    ) -> Result<Vec<(RegionId, Mapping)>, Error> {
        let pieces = config.device_memory.iter().map(|piece| {
            let list = match piece.source {
                Source::Bar => &self.bars,
                Source::Reserved => &self.reserved,
            };
            let source = list.get(piece.index as usize).copied().flatten();
            let range = piece.place(source.map(|(_, range)| range))?;
            let (id, _) = source.ok_or(Error::OutOfRange)?;
            let mapping = Mapping {
                attrs: Attrs::of(piece.memory),
                ..whole(vmid, piece.ipa, range)
            };
            Ok((id, mapping))
        });
        pieces.collect()
    }

    /// The error device of a guest with ACPI, with memory of its own that EL2 sees for good.
    #[inline(never)]
    fn error_device(
        &mut self,
        space: &mut Stage2<HeapFrames, HardwareTlb>,
        config: &VmConfig<'_>,
        vmid: Vmid,
    ) -> Result<ErrorDevice<SharedMemory>, Error> {
        let (ipa, size) = config::ERROR_AREA;
        let area = self.free.allocate_for(ipa, size, &[])?;
        let id = self.add_region(Kind::Ram, area, config.label)?;
        let range = IpaRange::new(ipa, size).ok_or(Error::OutOfRange)?;
        self.map(space, config.label, id, whole(vmid, range, area))?;
        let mut memory = SharedMemory::default();
        memory.share(area).map_err(Error::InUse)?;
        Ok(ErrorDevice::new(memory, area.start(), ipa))
    }

    /// RAM, as congruent with its IPA as can be had; with `identity` wherever it is, and the VM is
    /// told.
    fn allocate_ram(
        &mut self,
        config: &mut VmConfig<'_>,
        limits: Limits,
    ) -> Result<PaRange, Error> {
        let (ipa, size) = (config.ram.start(), config.ram.size());
        let blocks = config.granule.blocks();
        let ram = self.free.allocate_good_for(ipa, size, blocks, &self.bad)?;
        if config.identity {
            config.place_ram(ram, limits)?;
        }
        Ok(ram)
    }

    /// Maps the registers of the VM's devices where the machine has them, and says that what they do
    /// by DMA is confined by nobody.
    fn map_registers(
        &mut self,
        space: &mut Stage2<HeapFrames, HardwareTlb>,
        config: &VmConfig<'_>,
        grant: &Grant,
    ) -> Result<(), Error> {
        let vm = config.label;
        for pages in &grant.pages {
            if let Some(own) = mmu::conflict(*pages) {
                return Err(Error::InUse(mmu::Error::InUse(own)));
            }
            let (pa, size) = (pages.start(), pages.size());
            let ipa = Ipa::new(pa.get());
            let mut frames = HeapFrames::of(config.granule);
            space.map(ipa, pa, size, Attrs::DEVICE, &mut frames)?;
            log::info!("event=vm-mapped vm={vm} ipa={ipa} pa={pa} size={size:#x} region=device");
        }
        for given in &grant.devices {
            let (device, pa) = (&given.host.path, given.host.registers.first());
            let pa = pa.map_or(Pa::new(0), |range| range.start());
            for wire in &given.wires {
                log::info!(
                    "event=device vm={vm} pa={pa} intid={} physical={} dma=unconfined path={device}",
                    wire.virtual_,
                    wire.physical
                );
            }
        }
        Ok(())
    }

    fn map(
        &mut self,
        space: &mut Stage2<HeapFrames, HardwareTlb>,
        vm: &str,
        region: RegionId,
        mapping: Mapping,
    ) -> Result<(), Error> {
        let Mapping {
            ipa, range, attrs, ..
        } = mapping;
        self.devmem.add_mapping(region, mapping)?;
        let (pa, size, memory) = (range.start(), range.size(), attrs.memory);
        let mut frames = HeapFrames::of(space.config().granule());
        let start = CNTPCT_EL0.get();
        space.map(ipa, pa, size, attrs, &mut frames)?;
        let ticks = CNTPCT_EL0.get().wrapping_sub(start);
        log::info!(
            "event=vm-mapped vm={vm} ipa={ipa} pa={pa} size={size:#x} region={region} memory={memory} ticks={ticks}"
        );
        Ok(())
    }
}

/// All of `range`, at the beginning of `ipa`, as ordinary memory.
fn whole(vm: Vmid, ipa: IpaRange, range: PaRange) -> Mapping {
    Mapping {
        vm,
        ipa: ipa.start(),
        range,
        attrs: Attrs::RAM,
    }
}

/// What the VM is started with. Kernel and initrd stay in the bundle, whose memory is kept: a reset
/// wants them again.
#[inline(never)]
fn boot(config: &VmConfig<'_>, grant: &Grant) -> Result<Boot, Error> {
    let layout = &config.layout;
    let mut images = alloc::vec![file(layout.kernel, config.kernel)?];
    if config.firmware == Firmware::DeviceTree {
        let caches = id::caches();
        let surroundings = Surroundings {
            devices: &grant.devices,
            caches: &caches,
        };
        images.push(Image {
            place: layout.dtb,
            contents: Contents::Bytes(guest_dt::build(config, surroundings)?),
        });
    }
    if let (Some(place), Some(initrd)) = (layout.initrd, config.initrd) {
        images.push(file(place, initrd)?);
    }
    Ok(Boot {
        images,
        entry: layout.kernel.start(),
        dtb: layout.dtb.start(),
        ram: config.ram.size(),
        acpi: (config.firmware == Firmware::Acpi)
            .then(|| guest_acpi::Machine::new(config, &grant.devices)),
    })
}

/// Table frames of `granule` that take as many bytes as `frames` of 4 KiB, but enough for one page at
/// least. Of the larger granules a hole needs one table alone.
fn reserve(frames: usize, granule: Granule) -> usize {
    match frames >> (granule.page_shift() - Granule::K4.page_shift()) {
        0 => frames.min(1),
        frames => frames,
    }
}

/// A file of the bundle, by where it lies: EL2's map is the identity.
fn file(place: IpaRange, file: File<'_>) -> Result<Image, Error> {
    let start = Pa::new(file.bytes.as_ptr().addr() as u64);
    let range = PaRange::new(start, file.bytes.len() as u64).ok_or(Error::OutOfRange)?;
    Ok(Image {
        place,
        contents: Contents::Memory(range),
    })
}
