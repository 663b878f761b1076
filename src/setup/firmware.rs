//! What UEFI or Cordon's own firmware would have done, where there is none: started by QEMU's
//! `-bios`, Cordon runs the ACPI table-loader script itself and fetches its bundle from fw_cfg.

use crate::arch::aarch64::fw_cfg::Registers;
use crate::arch::aarch64::mmu::Window;
use alloc::vec::Vec;
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::platform::fw_cfg::{self, FwCfg};
use cordon::platform::memory::FreeMemory;
use cordon::platform::table_loader::{self, Host, Zone};

/// The fw_cfg file with the bundle (docs/protocols.md).
const BUNDLE: &str = "opt/cordon/bundle";

/// Longest table-loader script that is read, in bytes: 512 commands, of which QEMU uses some 30.
const MAX_SCRIPT: u32 = 64 << 10;

/// fw_cfg, and RAM for what comes out of it.
pub struct Firmware<'a> {
    device: FwCfg<Registers>,
    free: &'a mut FreeMemory,
    /// What was placed.
    placed: Vec<PaRange>,
    /// The files in it, while they are being linked together.
    open: Vec<Window>,
}

/// What the table-loader script made.
pub struct Tables {
    /// Where the RSDP is.
    pub rsdp: Pa,
    /// All memory that belongs to the tables and the error status blocks.
    pub memory: Vec<PaRange>,
}

impl<'a> Firmware<'a> {
    /// The device at `registers`, if one answers there.
    pub fn open(registers: PaRange, free: &'a mut FreeMemory) -> Option<Self> {
        let transport = Registers::map(registers)
            .inspect_err(|error| log::error!("event=error what=fw_cfg why={error}"))
            .ok()?;
        let device = FwCfg::probe(transport)
            .inspect_err(|error| log::error!("event=error what=fw_cfg why={error}"))
            .ok()?;
        Some(Self {
            device,
            free,
            placed: Vec::new(),
            open: Vec::new(),
        })
    }

    /// Runs the script, if QEMU has one.
    pub fn load_tables(&mut self) -> Option<Tables> {
        let script = self.device.find("etc/table-loader").ok()?;
        if script.size() > MAX_SCRIPT {
            log::error!(
                "event=error what=table-loader why=too-long size={}",
                script.size()
            );
            return None;
        }
        let mut bytes = alloc::vec![0; script.size() as usize];
        self.device.read(script, &mut bytes).ok()?;
        let loaded = table_loader::run(&bytes, self)
            .inspect_err(|error| log::error!("event=error what=table-loader {error}"));
        self.open.clear();
        let rsdp = loaded.ok()?.rsdp()?;
        let memory = core::mem::take(&mut self.placed);
        Some(Tables { rsdp, memory })
    }

    /// Fetches the bundle, if there is one.
    pub fn load_bundle(&mut self) -> Option<PaRange> {
        let file = self.device.find(BUNDLE).ok()?;
        let start = self.place(file.size(), 4096)?;
        self.device
            .load(file, start)
            .inspect_err(|error| log::error!("event=error what=bundle why={error}"))
            .ok()
    }

    fn place(&mut self, size: u32, align: u32) -> Option<Pa> {
        let align = u64::from(align).max(PAGE_SIZE);
        let pages = u64::from(size).next_multiple_of(PAGE_SIZE);
        let range = self.free.allocate(pages, align, 0);
        let range = range
            .inspect_err(|error| log::error!("event=error what=fw_cfg {error}"))
            .ok()?;
        self.placed.push(range);
        Some(range.start())
    }
}

impl Host for Firmware<'_> {
    type Error = fw_cfg::Error;

    fn file_size(&mut self, name: &str) -> Result<Option<u32>, fw_cfg::Error> {
        match self.device.find(name) {
            Ok(file) => Ok(Some(file.size())),
            Err(fw_cfg::Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn load_file(&mut self, name: &str, target: Pa) -> Result<(), fw_cfg::Error> {
        let file = self.device.find(name)?;
        let range = self.device.load(file, target)?;
        // Opened only now: the device has written, and nobody else will.
        let window = Window::open_at_boot(range).map_err(|_| fw_cfg::Error::OutOfRange)?;
        self.open.push(window);
        Ok(())
    }

    fn store_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> Result<(), fw_cfg::Error> {
        let file = self.device.find(name)?;
        self.device.store(file, offset, bytes)
    }

    fn allocate(&mut self, size: u32, align: u32, _zone: Zone) -> Option<Pa> {
        self.place(size, align)
    }

    fn read(&mut self, from: Pa, out: &mut [u8]) {
        let window = self
            .open
            .iter()
            .find_map(|window| window.at(from, out.len()));
        if let Some(bytes) = window {
            out.copy_from_slice(bytes);
        }
    }

    fn write(&mut self, to: Pa, bytes: &[u8]) {
        let mut windows = self.open.iter_mut();
        if let Some(place) = windows.find_map(|window| window.at_mut(to, bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }
}
