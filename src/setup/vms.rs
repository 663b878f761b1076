//! From the bundle's descriptions to VMs that can be started: memory, tables, images, registry.

use crate::arch::aarch64::mmu::{self, Window};
use crate::arch::aarch64::tables::HeapFrames;
use crate::arch::aarch64::tlb::{self, HardwareTlb};
use crate::arch::aarch64::{gic, uart};
use crate::machine::ThisMachine;
use alloc::collections::VecDeque;
use alloc::string::ToString;
use alloc::vec::Vec;
use cordon::addr::{Ipa, PaRange, Vmid};
use cordon::devmem::{DevMem, Kind, Mapping, RegionId, RegisterError};
use cordon::platform::bundle::Bundle;
use cordon::platform::memory::{FreeMemory, MemoryError};
use cordon::platform::pci::DeviceBar;
use cordon::stage2::{Access, Attrs, BuildError, Config, MapError, MemoryType, Stage2};
use cordon::vm::config::{self, ConfigError, IpaRange, Limits, Source, VmConfig};
use cordon::vm::guest_dt::{self, GuestDtError};
use cordon::vm::hypervisor::Vm;
use cordon::vm::vcpu::Vcpu;
use core::fmt;

/// Table frames that each VM keeps for containment: two for each of this many pages, wherever
/// they lie.
const HOLES: usize = 256;
const RESERVE: usize = 2 * HOLES;

/// Everything is Normal write-back and the guest's to write and execute.
const GUEST_MEMORY: Attrs = Attrs {
    memory: MemoryType::NormalWb,
    access: Access::ReadWrite,
    execute: true,
};

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
    /// A mapping.
    Map(MapError),
    /// The guest's DTB.
    GuestDt(GuestDtError),
    /// EL2's view of the guest's memory.
    Window(mmu::Error),
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
            Self::Map(error) => write!(f, "why={error}"),
            Self::GuestDt(error) => error.fmt(f),
            Self::Window(error) => write!(f, "why={error}"),
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
    Map(MapError),
    GuestDt(GuestDtError),
    Window(mmu::Error),
);

/// What VMs are made from.
pub struct Materials {
    /// RAM that nobody has yet.
    pub free: FreeMemory,
    /// The registry.
    pub devmem: DevMem<'static>,
    /// BARs, as registered.
    pub bars: Vec<(RegionId, PaRange)>,
    /// Reserved RAM, as registered.
    pub reserved: Vec<(RegionId, PaRange)>,
    /// The shape of all stage-2 tables.
    pub stage2: Config,
}

/// A VM and where it starts.
pub struct Built {
    /// The VM.
    pub vm: Vm<ThisMachine>,
    /// The first vCPU's first instruction.
    pub entry: Ipa,
    /// Its x0: the DTB.
    pub dtb: Ipa,
    /// Bytes of RAM.
    pub ram: u64,
}

impl Materials {
    /// Registers the machine's device memory.
    pub fn register(&mut self, bars: &[DeviceBar], reserved: &[PaRange]) {
        for bar in bars {
            match self.add_region(Kind::Bar, bar.range, &bar.function.to_string()) {
                Ok(id) => self.bars.push((id, bar.range)),
                Err(error) => log::error!("event=error what=region why={error} {bar}"),
            }
        }
        for range in reserved {
            match self.add_region(Kind::Reserved, *range, "reserved") {
                Ok(id) => self.reserved.push((id, *range)),
                Err(error) => log::error!("event=error what=region why={error} at={range}"),
            }
        }
    }

    fn add_region(
        &mut self,
        kind: Kind,
        range: PaRange,
        owner: &str,
    ) -> Result<RegionId, RegisterError> {
        let id = self.devmem.register(kind, range, owner, None)?;
        let (start, size) = (range.start(), range.size());
        log::info!("event=region id={id} kind={kind} pa={start} size={size:#x} owner={owner}");
        Ok(id)
    }

    /// Builds all VMs of `bundle` on the CPUs `cpus`. A VM that cannot be built is left out; so
    /// are all of them if the description as a whole is wrong.
    pub fn build_all(&mut self, bundle: &Bundle<'_>, cpus: usize) -> Vec<Built> {
        let limits = Limits {
            cpus,
            ipa_bits: self.stage2.ipa_bits(),
        };
        let configs = match config::read(bundle, limits) {
            Ok(configs) => configs,
            Err(error) => {
                log::error!("event=error what=bundle {error}");
                return Vec::new();
            }
        };
        let mut pcpus: VecDeque<usize> = (0..cpus).collect();
        let mut built = Vec::new();
        for config in &configs {
            // VMIDs and places in the list go together: 1 is the first.
            let Some(vmid) = u8::try_from(built.len() + 1).ok().and_then(Vmid::new) else {
                break;
            };
            match self.build(config, vmid, &mut pcpus) {
                Ok(vm) => built.push(vm),
                Err(error) => log::error!("event=error what=vm vm={} {error}", config.label),
            }
        }
        built
    }

    fn build(
        &mut self,
        config: &VmConfig<'_>,
        vmid: Vmid,
        pcpus: &mut VecDeque<usize>,
    ) -> Result<Built, Error> {
        let mut frames = HeapFrames;
        let mut space = Stage2::new(
            self.stage2,
            vmid,
            HeapFrames,
            HardwareTlb,
            &mut frames,
            RESERVE,
        )?;
        let ram = self
            .free
            .allocate_for(config.ram.start(), config.ram.size())?;
        let id = self.add_region(Kind::Ram, ram, config.label)?;
        self.map(&mut space, config, vmid, id, config.ram, ram)?;
        for piece in &config.device_memory {
            let list = match piece.source {
                Source::Bar => &self.bars,
                Source::Reserved => &self.reserved,
            };
            let source = list.get(piece.index as usize).copied();
            let range = piece.place(source.map(|(_, range)| range))?;
            let (id, _) = source.ok_or(Error::OutOfRange)?;
            self.map(&mut space, config, vmid, id, piece.ipa, range)?;
        }
        load(config, ram)?;
        let vcpus = (0..config.vcpus as usize)
            .map(|index| Some(Vcpu::new(index, pcpus.pop_front()?)))
            .collect::<Option<Vec<Vcpu>>>()
            .ok_or(Error::OutOfRange)?;
        let console = uart::CONSOLE.lock().add(config.label);
        Ok(Built {
            vm: Vm::new(
                config.label.into(),
                vmid,
                vcpus,
                space,
                console,
                gic::timers(),
            ),
            entry: config.layout.kernel.start(),
            dtb: config.layout.dtb.start(),
            ram: config.ram.size(),
        })
    }

    fn map(
        &mut self,
        space: &mut Stage2<HeapFrames, HardwareTlb>,
        config: &VmConfig<'_>,
        vmid: Vmid,
        region: RegionId,
        ipa: IpaRange,
        range: PaRange,
    ) -> Result<(), Error> {
        let mapping = Mapping {
            vm: vmid,
            ipa: ipa.start(),
            range,
            attrs: GUEST_MEMORY,
        };
        self.devmem.add_mapping(region, mapping)?;
        let (ipa, pa, size) = (ipa.start(), range.start(), range.size());
        space.map(ipa, pa, size, GUEST_MEMORY, &mut HeapFrames)?;
        log::info!(
            "event=vm-mapped vm={} ipa={ipa} pa={pa} size={size:#x} region={region}",
            config.label
        );
        Ok(())
    }
}

/// Puts kernel, initrd and DTB into the guest's RAM, which is at `ram`.
fn load(config: &VmConfig<'_>, ram: PaRange) -> Result<(), Error> {
    let dtb = guest_dt::build(config)?;
    let layout = &config.layout;
    copy(config, ram, layout.kernel, config.kernel.bytes)?;
    if let (Some(place), Some(initrd)) = (layout.initrd, &config.initrd) {
        copy(config, ram, place, initrd.bytes)?;
    }
    copy(config, ram, layout.dtb, &dtb)
}

/// Copies `bytes` to where the guest has `place`, zeroes the rest of it, and cleans the caches: the
/// guest starts with its own off.
fn copy(config: &VmConfig<'_>, ram: PaRange, place: IpaRange, bytes: &[u8]) -> Result<(), Error> {
    let offset = place.start().checked_offset_from(config.ram.start());
    let start = offset.and_then(|offset| ram.start().checked_add(offset));
    let range = start.and_then(|start| PaRange::new(start, place.size()));
    let range = range.ok_or(Error::OutOfRange)?;
    let mut window = Window::open_at_boot(range)?;
    let (head, tail) = window
        .split_at_mut_checked(bytes.len())
        .ok_or(Error::OutOfRange)?;
    head.copy_from_slice(bytes);
    tail.fill(0);
    tlb::clean_to_poc(range.start().get(), range.size());
    Ok(())
}
