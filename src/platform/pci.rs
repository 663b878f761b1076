//! PCI functions whose memory Cordon gives to VMs, found and placed on bus 0.
//!
//! Where no firmware did it, somebody must size the BARs, give them addresses and switch memory
//! decoding on. Cordon does that for the functions of [`DEVICE_MEMORY`], an explicit list of
//! vendor and device numbers, and touches no other function: what is not on the list has a driver
//! elsewhere or none. A large prefetchable 64-bit BAR of such a function is device memory: reads
//! have no side effects (PCI Express Base 6.0, 7.5.1.2.1), so a VM may have it as Normal memory.
//!
//! The order matters and is kept for each function: decoding off, sizes by the all-ones method
//! (7.5.1.2.1), addresses, decoding on. A function that decodes memory already was placed by
//! firmware and keeps its addresses, as other functions were placed around it; a BAR of it that
//! firmware only sized is placed. UEFI places all functions, and leaves those without a driver of its own without
//! decoding: under it, all keep what they have ([`PcieHost::placed`]).
//!
//! Configuration space answers what it likes. Sizes are checked to be powers of two, addresses to
//! lie in the host bridge's window and apart from each other; bus 0 has 256 functions at most.

mod window;

use alloc::vec::Vec;
use core::fmt;

use window::Window;

use super::machine::PcieHost;
use crate::addr::PaRange;

/// Functions whose memory is given to VMs, by vendor and device number.
pub const DEVICE_MEMORY: &[(u16, u16)] = &[
    // Inter-VM shared memory (QEMU `docs/specs/ivshmem-spec.rst`): a plain piece of memory.
    (0x1af4, 0x1110),
];

/// Smallest BAR that counts as memory rather than registers, in bytes.
pub const MIN_DEVICE_MEMORY: u64 = 1 << 20;

/// A function's place: bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bdf {
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// The function, or `None` for a device above 31 or a function above 7.
    pub const fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self {
                bus,
                device,
                function,
            })
        } else {
            None
        }
    }

    /// The bus, counted as the host bridge numbers them.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Offset in bytes of the function's 4 KiB in the ECAM of a host bridge whose first bus is
    /// `first_bus` (PCI Express Base 6.0, 7.2.2), or `None` for a bus before it.
    pub const fn ecam_offset(self, first_bus: u8) -> Option<u64> {
        match self.bus.checked_sub(first_bus) {
            Some(bus) => {
                let (bus, device, function) =
                    (bus as u64, self.device as u64, self.function as u64);
                Some((bus << 20) | (device << 15) | (function << 12))
            }
            None => None,
        }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// Access to configuration space. A read of nothing gives all ones.
pub trait ConfigSpace {
    /// Reads the word at `offset`, a multiple of 4 below 4096.
    fn read32(&mut self, function: Bdf, offset: u16) -> u32;
    /// Writes it. The write must have reached the device when this returns.
    fn write32(&mut self, function: Bdf, offset: u16, value: u32);
}

/// A BAR that is device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceBar {
    /// Whose it is.
    pub function: Bdf,
    /// Which BAR, 0 to 5.
    pub index: u8,
    /// Where the CPU sees it.
    pub range: PaRange,
}

impl fmt::Display for DeviceBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            function,
            index,
            range,
        } = self;
        write!(
            f,
            "function={function} bar={index} pa={} size={:#x}",
            range.start(),
            range.size()
        )
    }
}

/// Why a function's memory is not used. The function is left with decoding off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PciError {
    /// Not an ordinary function (header type 0).
    BadHeader {
        /// The function.
        function: Bdf,
    },
    /// A BAR's type is reserved, or it is 64 bits wide and there is no second half.
    BadBar {
        /// The function.
        function: Bdf,
        /// The BAR, 0 to 5.
        index: u8,
    },
    /// A BAR's size is no power of two.
    BadSize {
        /// The function.
        function: Bdf,
        /// The BAR, 0 to 5.
        index: u8,
        /// What the all-ones method gave.
        mask: u64,
    },
    /// The window has no room for a BAR, or there is no window.
    NoRoom {
        /// The function.
        function: Bdf,
        /// The BAR, 0 to 5.
        index: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// The function decodes memory at an address that cannot be: outside the window, misaligned,
    /// or another function's.
    BadPlace {
        /// The function.
        function: Bdf,
        /// The BAR, 0 to 5.
        index: u8,
        /// The PCI address it has.
        address: u64,
    },
}

impl fmt::Display for PciError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadHeader { function } => write!(f, "why=bad-header function={function}"),
            Self::BadBar { function, index } => {
                write!(f, "why=bad-bar function={function} bar={index}")
            }
            Self::BadSize {
                function,
                index,
                mask,
            } => {
                write!(
                    f,
                    "why=bad-size function={function} bar={index} mask={mask:#x}"
                )
            }
            Self::NoRoom {
                function,
                index,
                size,
            } => {
                write!(
                    f,
                    "why=no-room function={function} bar={index} size={size:#x}"
                )
            }
            Self::BadPlace {
                function,
                index,
                address,
            } => {
                write!(
                    f,
                    "why=bad-place function={function} bar={index} address={address:#x}"
                )
            }
        }
    }
}

impl core::error::Error for PciError {}

/// What was found on the bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PciFindings {
    /// Device memory, ready to be used.
    pub bars: Vec<DeviceBar>,
    /// Functions on the list that could not be used.
    pub errors: Vec<PciError>,
}

/// Finds the functions of [`DEVICE_MEMORY`] on the host bridge's first bus and readies them.
pub fn find_device_memory(config: &mut impl ConfigSpace, host: &PcieHost) -> PciFindings {
    let functions = enumerate(config, *host.buses.start());
    let mut pci = Pci {
        config,
        window32: Window::new(host.window32),
        window64: Window::new(host.window64),
        all_placed: host.placed,
        findings: PciFindings::default(),
    };
    // Those that firmware placed come first: the others are placed around them.
    let mut functions: Vec<(Placed, Bdf)> = functions
        .into_iter()
        .map(|function| (pci.placed(function), function))
        .collect();
    crate::sort::sort(&mut functions);
    for (placed, function) in functions {
        match pci.ready(function, placed != Placed::No) {
            Ok(bars) => pci.findings.bars.extend(bars),
            Err(error) => pci.findings.errors.push(error),
        }
    }
    crate::sort::sort_by_key(&mut pci.findings.bars, |bar| (bar.function, bar.index));
    pci.findings
}

/// Registers of the type 0 header (PCI Express Base 6.0, 7.5.1.1 and 7.5.1.2).
mod register {
    pub(super) const ID: u16 = 0x00;
    pub(super) const COMMAND_STATUS: u16 = 0x04;
    pub(super) const HEADER_TYPE: u16 = 0x0c;
    pub(super) const BARS: u16 = 0x10;
    pub(super) const BAR_COUNT: u8 = 6;

    /// Command: memory space enable.
    pub(super) const MEMORY: u32 = 1 << 1;
    /// The command half. Bits of the status half are cleared by writing ones, so it is written 0.
    pub(super) const COMMAND: u32 = 0xffff;

    /// The BAR at `index`.
    pub(super) const fn bar(index: u8) -> u16 {
        BARS + 4 * index as u16
    }
}

/// The functions of the list on `bus`, in the order of their numbers.
fn enumerate(config: &mut impl ConfigSpace, bus: u8) -> Vec<Bdf> {
    let mut found = Vec::new();
    for device in 0..32 {
        for function in 0..8 {
            let Some(bdf) = Bdf::new(bus, device, function) else {
                continue;
            };
            let [v0, v1, d0, d1] = config.read32(bdf, register::ID).to_le_bytes();
            let id = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
            if DEVICE_MEMORY.contains(&id) {
                found.push(bdf);
            }
            // Functions 1 to 7 exist only where function 0 does and says so (7.5.1.1.9).
            let absent = id.0 == 0xffff;
            if function == 0
                && (absent || config.read32(bdf, register::HEADER_TYPE) & (1 << 23) == 0)
            {
                break;
            }
        }
    }
    found
}

/// A memory BAR as it was found.
#[derive(Clone, Copy)]
struct MemoryBar {
    index: u8,
    /// Bytes, a power of two.
    size: u64,
    /// The PCI address that it has.
    address: u64,
    is_64bit: bool,
    prefetchable: bool,
}

impl MemoryBar {
    /// Whether this is what the all-ones method left, and no address: no window is at the end of 64
    /// bits.
    fn is_left_over(self) -> bool {
        self.is_64bit && self.address >> 32 == u64::from(u32::MAX)
    }
}

/// How much of a function firmware placed, in the order in which functions are readied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Placed {
    /// All of it.
    Yes,
    /// It decodes memory, but a BAR was only sized: U-Boot does so with one that is too large for it.
    Partly,
    /// Nothing.
    No,
}

struct Pci<'c, C> {
    config: &'c mut C,
    window32: Window,
    window64: Window,
    all_placed: bool,
    findings: PciFindings,
}

impl<C: ConfigSpace> Pci<'_, C> {
    fn placed(&mut self, function: Bdf) -> Placed {
        if self.all_placed {
            return Placed::Yes;
        }
        if self.config.read32(function, register::COMMAND_STATUS) & register::MEMORY == 0 {
            return Placed::No;
        }
        // Whether a word is a BAR or the upper half of one does not matter here: this only decides who
        // is first.
        let mut halves = (0..register::BAR_COUNT).map(register::bar);
        match halves.any(|offset| self.config.read32(function, offset) == u32::MAX) {
            true => Placed::Partly,
            false => Placed::Yes,
        }
    }

    fn set_decoding(&mut self, function: Bdf, on: bool) {
        let command = self.config.read32(function, register::COMMAND_STATUS) & register::COMMAND;
        let memory = if on { register::MEMORY } else { 0 };
        let command = (command & !register::MEMORY) | memory;
        self.config
            .write32(function, register::COMMAND_STATUS, command);
    }

    /// Readies one function and returns those of its BARs that are device memory. `keep` says
    /// that firmware gave it its addresses.
    fn ready(&mut self, function: Bdf, keep: bool) -> Result<Vec<DeviceBar>, PciError> {
        self.set_decoding(function, false);
        let header_type = (self.config.read32(function, register::HEADER_TYPE) >> 16) & 0x7f;
        if header_type != 0 {
            return Err(PciError::BadHeader { function });
        }
        let mut device_memory = Vec::new();
        for bar in self.size_bars(function)? {
            let range = self.place(function, bar, keep)?;
            if bar.is_64bit && bar.prefetchable && bar.size >= MIN_DEVICE_MEMORY {
                device_memory.push(DeviceBar {
                    function,
                    index: bar.index,
                    range,
                });
            }
        }
        self.set_decoding(function, true);
        Ok(device_memory)
    }

    /// All memory BARs. Those of I/O space are left alone: I/O decoding stays as it is.
    fn size_bars(&mut self, function: Bdf) -> Result<Vec<MemoryBar>, PciError> {
        let mut bars = Vec::new();
        let mut index = 0;
        while index < register::BAR_COUNT {
            let low = self.config.read32(function, register::bar(index));
            // Bit 0: I/O space. Bits 2 and 1: 32 or 64 bits wide, the other two are reserved.
            let (is_io, kind) = (low & 1 != 0, (low >> 1) & 0b11);
            let bad = PciError::BadBar { function, index };
            let is_64bit = match kind {
                _ if is_io => false,
                0b00 => false,
                0b10 if index + 1 < register::BAR_COUNT => true,
                _ => return Err(bad),
            };
            if !is_io && let Some(bar) = self.size_bar(function, index, low, is_64bit)? {
                bars.push(bar);
            }
            index += if is_64bit { 2 } else { 1 };
        }
        Ok(bars)
    }

    /// The BAR at `index`, or `None` where nothing is implemented there. Its value is put back.
    fn size_bar(
        &mut self,
        function: Bdf,
        index: u8,
        low: u32,
        is_64bit: bool,
    ) -> Result<Option<MemoryBar>, PciError> {
        let low_mask = self.probe(function, index) & !0xf;
        let (high, high_mask) = if is_64bit {
            let high = self.config.read32(function, register::bar(index + 1));
            (high, self.probe(function, index + 1))
        } else {
            // What a 32-bit BAR decodes above bit 31 is fixed: zero.
            (0, u32::MAX)
        };
        let mask = (u64::from(high_mask) << 32) | u64::from(low_mask);
        let implemented = if is_64bit { mask != 0 } else { low_mask != 0 };
        if !implemented {
            return Ok(None);
        }
        // The writable bits of an address run from the size upwards without a gap.
        let size = (!mask).wrapping_add(1);
        if !size.is_power_of_two() {
            return Err(PciError::BadSize {
                function,
                index,
                mask,
            });
        }
        let address = (u64::from(high) << 32) | u64::from(low & !0xf);
        Ok(Some(MemoryBar {
            index,
            size,
            address,
            is_64bit,
            prefetchable: low & (1 << 3) != 0,
        }))
    }

    /// Which bits of the BAR register stick, by writing all of them; the old value is put back.
    fn probe(&mut self, function: Bdf, index: u8) -> u32 {
        let offset = register::bar(index);
        let old = self.config.read32(function, offset);
        self.config.write32(function, offset, u32::MAX);
        let mask = self.config.read32(function, offset);
        self.config.write32(function, offset, old);
        mask
    }

    /// Gives the BAR its address, or checks the one it has.
    fn place(&mut self, function: Bdf, bar: MemoryBar, keep: bool) -> Result<PaRange, PciError> {
        let MemoryBar {
            index,
            size,
            address,
            is_64bit,
            ..
        } = bar;
        let window = if is_64bit {
            &mut self.window64
        } else {
            &mut self.window32
        };
        if keep && !bar.is_left_over() {
            return window.keep(address, size).ok_or(PciError::BadPlace {
                function,
                index,
                address,
            });
        }
        let no_room = PciError::NoRoom {
            function,
            index,
            size,
        };
        let (address, range) = window.place(size).ok_or(no_room)?;
        let (low, high) = (address & u64::from(u32::MAX), address >> 32);
        let half = |half| u32::try_from(half).map_err(|_| no_room);
        if !is_64bit && high != 0 {
            return Err(no_room);
        }
        self.config
            .write32(function, register::bar(index), half(low)?);
        if is_64bit {
            self.config
                .write32(function, register::bar(index + 1), half(high)?);
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests;
