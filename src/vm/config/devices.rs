//! Devices of the machine that a description gives to its VMs.
//!
//! A device is named by what it is and by the address of its registers, as the machine's DTB has them.
//! The VM finds it at the same IPA. Memory is mapped by pages, so a page of registers, with everything
//! that is in it, belongs to one VM. Nothing stands between such a device and memory, so the VM's RAM must
//! have the IPAs that are its PAs, and the description must say that it knows: `dma = "unconfined"`.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

use super::section::Section;
use super::{ConfigError, IpaRange, Limits, VmConfig, Why};
use crate::addr::{Ipa, Pa, PaRange};
use crate::platform::machine::{HostDevice, Machine};
use crate::vm::device::{Device, DeviceKind};
use crate::vm::vgic::Wire;

/// Most devices of one VM.
pub const MAX_DEVICES: usize = 16;

/// INTIDs that devices' interrupts have for a guest: SPIs 16 to 95, in the order of the devices.
pub const DEVICE_INTERRUPTS: core::ops::Range<u16> = 48..128;

/// A device as a description names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// One of the words of its `compatible`.
    pub compatible: String,
    /// Where its registers begin.
    pub address: Pa,
    /// The VM's label and the node's path.
    origin: (String, String),
}

impl DeviceConfig {
    fn error(&self, property: &str, why: Why) -> ConfigError {
        let (vm, node) = &self.origin;
        ConfigError::at(Some(vm), node, Some(property), why)
    }
}

pub(super) fn read(
    vm: &Section<'_, '_>,
    siblings: &[&str],
    identity: bool,
) -> Result<Vec<DeviceConfig>, ConfigError> {
    let mut all = Vec::new();
    for section in vm.children_among("device@", siblings, MAX_DEVICES)? {
        section.only(&["compatible", "address", "dma"])?;
        section.no_children()?;
        let compatible = section.text("compatible")?.to_owned();
        let address = Pa::new(section.number("address")?);
        if section.optional_text("dma")? != Some("unconfined") {
            return Err(section.error("dma", Why::DmaNotAllowed));
        }
        if !identity {
            return Err(vm.error("identity", Why::NeedsIdentity));
        }
        let vm = section.vm.unwrap_or_default().to_owned();
        all.push(DeviceConfig {
            compatible,
            address,
            origin: (vm, section.path),
        });
    }
    Ok(all)
}

/// A device that a VM is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// What the machine says of it.
    pub host: HostDevice,
    /// Its interrupts, in the order that `host` has them.
    pub wires: Vec<Wire>,
}

impl Given {
    /// What it is.
    pub fn kind(&self) -> Option<DeviceKind> {
        kind(&self.host)
    }
}

/// All that a VM is given with its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The devices.
    pub devices: Vec<Given>,
    /// Pages of registers, to be mapped where they are. None is there twice.
    pub pages: Vec<PaRange>,
    /// Every device in these pages.
    pub all: Vec<Device>,
}

/// What the machine has to give, and who has been given what.
#[derive(Debug)]
pub struct Devices<'m> {
    machine: &'m Machine,
    limits: Limits,
    taken: Vec<(PaRange, String)>,
    /// Physical INTIDs.
    interrupts: Vec<u16>,
}

impl<'m> Devices<'m> {
    /// Those of `machine`. Nobody has any.
    pub const fn new(machine: &'m Machine, limits: Limits) -> Self {
        Self {
            machine,
            limits,
            taken: Vec::new(),
            interrupts: Vec::new(),
        }
    }

    /// What the machine sets limits to.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Gives `vm`, whose RAM has its place, what its description asks for.
    ///
    /// # Errors
    /// What is wrong with the first device that it cannot have. Nobody else gets what it was given
    /// until then.
    pub fn give(&mut self, vm: &VmConfig<'_>) -> Result<Grant, ConfigError> {
        let mut grant = Grant::default();
        let mut intids = DEVICE_INTERRUPTS;
        for asked in &vm.devices {
            let host = self.find(asked)?;
            for registers in &host.registers {
                let pages = pages(*registers, vm.granule.page_size());
                self.claim(vm, asked, pages)?;
                if !grant.pages.contains(&pages) {
                    grant.pages.push(pages);
                }
            }
            let wires = self.wire(asked, host, &mut intids)?;
            grant.devices.push(Given {
                host: host.clone(),
                wires,
            });
        }
        grant.all = self.in_pages(&grant.pages);
        Ok(grant)
    }

    fn find(&self, asked: &DeviceConfig) -> Result<&'m HostDevice, ConfigError> {
        let machine = self.machine;
        let page = PaRange::new(asked.address, 1);
        if let Some(by) = page.and_then(|page| machine.own(page)) {
            return Err(asked.error("address", Why::DeviceInUse { by }));
        }
        let found = machine.device_at(asked.address);
        let host = found.ok_or_else(|| asked.error("address", Why::NoSuchDevice))?;
        if !host.compatible.contains(&asked.compatible) {
            return Err(asked.error("compatible", Why::NoSuchDevice));
        }
        if kind(host).is_none() {
            return Err(asked.error("compatible", Why::UnsupportedDevice));
        }
        if host.interrupts.is_empty() {
            return Err(asked.error("address", Why::NoInterrupt));
        }
        Ok(host)
    }

    /// Takes a range of pages for `vm`.
    fn claim(
        &mut self,
        vm: &VmConfig<'_>,
        asked: &DeviceConfig,
        pages: PaRange,
    ) -> Result<(), ConfigError> {
        let error = |why| Err(asked.error("address", why));
        if let Some(by) = self.machine.own(pages) {
            return error(Why::DeviceInUse { by });
        }
        let neighbours = self.machine.devices.iter().filter(|it| touches(it, pages));
        for neighbour in neighbours {
            if kind(neighbour).is_none() {
                let with = neighbour.path.clone();
                return error(Why::PageShared { with });
            }
        }
        let theirs = |(taken, owner): &&(PaRange, String)| {
            taken.overlaps(pages) && owner.as_str() != vm.label
        };
        if let Some((_, owner)) = self.taken.iter().find(theirs) {
            let vm = owner.clone();
            return error(Why::PageTaken { vm });
        }
        self.is_free_in(vm, asked, pages)?;
        self.taken.push((pages, vm.label.to_owned()));
        Ok(())
    }

    /// That the VM has nothing else at these addresses.
    fn is_free_in(
        &self,
        vm: &VmConfig<'_>,
        asked: &DeviceConfig,
        pages: PaRange,
    ) -> Result<(), ConfigError> {
        let bits = self.limits.ipa_bits;
        let ipas = IpaRange::new(Ipa::new(pages.start().get()), pages.size())
            .filter(|ipas| ipas.last().get().checked_shr(bits).unwrap_or(0) == 0);
        let ipas = ipas.ok_or_else(|| asked.error("address", Why::BeyondIpa { bits }))?;
        let with = super::section::emulated(ipas)
            .or_else(|| ipas.overlaps(vm.ram).then_some("ram"))
            .or_else(|| {
                let memory = vm.device_memory.iter();
                let mut ipas_of = memory.map(|memory| memory.ipa);
                let taken = ipas_of.any(|other| other.overlaps(ipas));
                taken.then_some("device-memory")
            });
        with.map_or(Ok(()), |with| {
            let with = with.to_owned();
            Err(asked.error("address", Why::Overlap { with }))
        })
    }

    fn wire(
        &mut self,
        asked: &DeviceConfig,
        host: &HostDevice,
        intids: &mut core::ops::Range<u16>,
    ) -> Result<Vec<Wire>, ConfigError> {
        let mut wires = Vec::new();
        for interrupt in &host.interrupts {
            let physical = interrupt.intid;
            let console = self.machine.uart_interrupt == Some(u32::from(physical));
            if console || self.interrupts.contains(&physical) {
                return Err(asked.error("address", Why::InterruptTaken { intid: physical }));
            }
            let too_many = || {
                let max = DEVICE_INTERRUPTS.len();
                asked.error("address", Why::TooMany { max })
            };
            let virtual_ = intids.next().ok_or_else(too_many)?;
            self.interrupts.push(physical);
            wires.push(Wire { virtual_, physical });
        }
        Ok(wires)
    }

    fn in_pages(&self, pages: &[PaRange]) -> Vec<Device> {
        let here = |host: &&HostDevice| pages.iter().any(|pages| touches(host, *pages));
        let devices = self.machine.devices.iter().filter(here);
        devices
            .filter_map(|host| {
                Some(Device {
                    kind: kind(host)?,
                    registers: *host.registers.first()?,
                })
            })
            .collect()
    }
}

fn kind(host: &HostDevice) -> Option<DeviceKind> {
    let mut names = host.compatible.iter();
    names.find_map(|name| DeviceKind::from_compatible(name))
}

fn touches(host: &HostDevice, pages: PaRange) -> bool {
    host.registers.iter().any(|range| range.overlaps(pages))
}

/// The pages of `page` bytes that hold `registers`.
fn pages(registers: PaRange, page: u64) -> PaRange {
    let start = registers.start().align_down(page);
    let last = registers.last().get() | (page - 1);
    // What ends at the end of the address space is refused by its size.
    let size = (last - start.get()).checked_add(1);
    size.and_then(|size| PaRange::new(start, size))
        .unwrap_or(registers)
}

#[cfg(test)]
mod tests;
