//! Loading the next stage: kernel, ACPI tables, initrd and device tree from fw_cfg to RAM.
//!
//! This runs once, on CPU 0, before the normal world exists. `layout` says where things go; what
//! this adds is the order, and what to say when something is missing.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use cordon::addr::{Pa, PaRange};
use cordon::platform::acpi::PhysicalBytes;
use cordon::platform::fw_cfg::{self, File, FwCfg};
use cordon::platform::table_loader::{self, Host, Zone};
use cordon_firmware::device_tree::{self, Additions};
use cordon_firmware::layout::{DEVICE_TREE_MAX, Image, ImageError, Placer, RAM_BASE, cpu_index};
use cordon_firmware::source::{self, RecordSource, ReportSource};

use crate::machine::fw_cfg::Registers;
use crate::machine::{ram, sysreg, uart};
use crate::state;

/// The longest command line and table-loader script that are believed.
const SMALL_FILE_MAX: u32 = 0x1_0000;

/// What the next stage is entered with.
pub(crate) struct Loaded {
    /// The kernel's first instruction.
    pub(crate) entry: Pa,
    /// The device tree.
    pub(crate) device_tree: Pa,
    /// How many CPUs the machine has.
    pub(crate) cpus: usize,
}

/// Why there is no next stage.
pub(crate) enum Error {
    /// fw_cfg failed.
    FwCfg(fw_cfg::Error),
    /// No `-kernel` was given.
    NoKernel,
    /// It is not one.
    Kernel(ImageError),
    /// RAM has no room for it, or for what comes with it.
    NoRoom(&'static str),
    /// The ACPI tables cannot be placed.
    Tables(table_loader::Error<fw_cfg::Error>),
    /// The device tree cannot be read or extended.
    DeviceTree(device_tree::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FwCfg(error) => write!(f, "fw-cfg error={error}"),
            Self::NoKernel => f.write_str("no-kernel"),
            Self::Kernel(error) => f.write_str(error.name()),
            Self::NoRoom(what) => write!(f, "no-room for={what}"),
            Self::Tables(error) => write!(f, "acpi-tables error={error}"),
            Self::DeviceTree(error) => write!(f, "device-tree error={error:?}"),
        }
    }
}

impl From<fw_cfg::Error> for Error {
    fn from(error: fw_cfg::Error) -> Self {
        Self::FwCfg(error)
    }
}

impl From<device_tree::Error> for Error {
    fn from(error: device_tree::Error) -> Self {
        Self::DeviceTree(error)
    }
}

/// Loads everything and tells the service where records go and how many CPUs there are.
pub(crate) fn load() -> Result<Loaded, Error> {
    let blob = device_tree_blob()?;
    let cpus = announce_cpus(blob)?;
    let mut fw_cfg = FwCfg::probe(Registers)?;
    let mut placer = Placer::new(device_tree::ram_size(blob, RAM_BASE)?);

    let kernel = load_kernel(&mut fw_cfg, &mut placer)?;
    let tables = load_tables(&mut fw_cfg, &mut placer)?;
    let initrd = load_initrd(&mut fw_cfg, &mut placer)?;
    let bootargs = command_line(&mut fw_cfg)?;
    let additions = Additions {
        initrd,
        bootargs: bootargs.as_deref(),
        rsdp: tables.as_ref().map(|tables| tables.rsdp),
        acpi: tables.as_ref().map(|tables| tables.range),
    };
    let device_tree = write_device_tree(&device_tree::extend(blob, &additions)?)?;
    ram::clean(device_tree);
    sysreg::invalidate_instructions();

    let rsdp = tables.map(|tables| tables.rsdp);
    let source = rsdp.and_then(find_source);
    let reports = rsdp.and_then(find_report_source);
    state::with_service(|service| {
        service.set_cpus(cpus);
        if let Some(source) = source {
            service.set_source(source);
        }
        if let Some(reports) = reports {
            service.set_report_source(reports);
        }
    });
    Ok(Loaded {
        entry: kernel,
        device_tree: device_tree.start(),
        cpus,
    })
}

/// The blob that QEMU left at the start of RAM, as long as its header says.
fn device_tree_blob() -> Result<&'static [u8], Error> {
    PaRange::new(Pa::new(RAM_BASE), DEVICE_TREE_MAX)
        .and_then(ram::loaded)
        .ok_or(Error::DeviceTree(device_tree::Error::Malformed))
}

fn announce_cpus(blob: &[u8]) -> Result<usize, Error> {
    let cpus = device_tree::cpu_affinities(blob)?
        .into_iter()
        .filter_map(cpu_index);
    Ok(cpus.inspect(|&cpu| state::CPUS.announce(cpu)).count())
}

fn load_kernel(fw_cfg: &mut FwCfg<Registers>, placer: &mut Placer) -> Result<Pa, Error> {
    let size = fw_cfg.u32_item(fw_cfg::KEY_KERNEL_SIZE);
    if size == 0 {
        return Err(Error::NoKernel);
    }
    let file = File::classic(fw_cfg::KEY_KERNEL_DATA, size);
    let mut header = [0; Image::HEADER_SIZE];
    fw_cfg
        .read(file, &mut header)
        .map_err(|_| Error::Kernel(ImageError::TooShort))?;
    let image = Image::parse(&header, u64::from(size)).map_err(Error::Kernel)?;
    let start = placer.take_image(image).ok_or(Error::NoRoom("kernel"))?;
    let range = fw_cfg.load(file, start)?;
    ram::clean(range);
    Ok(start)
}

fn load_initrd(
    fw_cfg: &mut FwCfg<Registers>,
    placer: &mut Placer,
) -> Result<Option<PaRange>, Error> {
    let size = fw_cfg.u32_item(fw_cfg::KEY_INITRD_SIZE);
    if size == 0 {
        return Ok(None);
    }
    let room = placer
        .take_initrd(u64::from(size))
        .ok_or(Error::NoRoom("initrd"))?;
    let range = fw_cfg.load(File::classic(fw_cfg::KEY_INITRD_DATA, size), room.start())?;
    ram::clean(range);
    Ok(Some(range))
}

/// The string given by `-append`, which fw_cfg has with its NUL.
fn command_line(fw_cfg: &mut FwCfg<Registers>) -> Result<Option<String>, Error> {
    let size = fw_cfg.u32_item(fw_cfg::KEY_CMDLINE_SIZE);
    if size == 0 {
        return Ok(None);
    }
    let mut bytes = read_small(fw_cfg, File::classic(fw_cfg::KEY_CMDLINE_DATA, size))?;
    bytes.truncate(
        bytes
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(bytes.len()),
    );
    Ok(String::from_utf8(bytes).ok())
}

fn read_small(fw_cfg: &mut FwCfg<Registers>, file: File) -> Result<Vec<u8>, Error> {
    if file.size() > SMALL_FILE_MAX {
        return Err(Error::FwCfg(fw_cfg::Error::OutOfRange));
    }
    let mut bytes = vec![0; usize::try_from(file.size()).unwrap_or(0)];
    fw_cfg.read(file, &mut bytes)?;
    Ok(bytes)
}

/// The ACPI tables in RAM.
struct Tables {
    rsdp: Pa,
    /// The pages that hold nothing else.
    range: PaRange,
}

/// Runs QEMU's table-loader script, if the machine has one: `-M acpi=off` has not.
fn load_tables(
    fw_cfg: &mut FwCfg<Registers>,
    placer: &mut Placer,
) -> Result<Option<Tables>, Error> {
    let script = match fw_cfg.find(table_loader::SCRIPT_FILE) {
        Ok(file) => read_small(fw_cfg, file)?,
        Err(fw_cfg::Error::NotFound) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let start = placer.begin_page().ok_or(Error::NoRoom("acpi-tables"))?;
    let mut host = TableHost { fw_cfg, placer };
    let loaded = table_loader::run(&script, &mut host).map_err(Error::Tables)?;
    let end = host
        .placer
        .begin_page()
        .ok_or(Error::NoRoom("acpi-tables"))?;
    let range = end
        .checked_offset_from(start)
        .and_then(|size| PaRange::new(start, size));
    if let Some(range) = range {
        ram::clean(range);
    }
    Ok(loaded
        .rsdp()
        .zip(range)
        .map(|(rsdp, range)| Tables { rsdp, range }))
}

/// What the script works on.
struct TableHost<'a> {
    fw_cfg: &'a mut FwCfg<Registers>,
    placer: &'a mut Placer,
}

impl Host for TableHost<'_> {
    type Error = fw_cfg::Error;

    fn file_size(&mut self, name: &str) -> Result<Option<u32>, fw_cfg::Error> {
        match self.fw_cfg.find(name) {
            Ok(file) => Ok(Some(file.size())),
            Err(fw_cfg::Error::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn load_file(&mut self, name: &str, target: Pa) -> Result<(), fw_cfg::Error> {
        let file = self.fw_cfg.find(name)?;
        self.fw_cfg.load(file, target).map(drop)
    }

    fn store_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> Result<(), fw_cfg::Error> {
        let file = self.fw_cfg.find(name)?;
        self.fw_cfg.store(file, offset, bytes)
    }

    fn allocate(&mut self, size: u32, align: u32, _: Zone) -> Option<Pa> {
        let room = self.placer.take(u64::from(size), u64::from(align))?;
        Some(room.start())
    }

    // The script reaches allocations alone, and those lie in the window.
    fn read(&mut self, from: Pa, out: &mut [u8]) {
        let _ = ram::read(from, out);
    }

    fn write(&mut self, to: Pa, bytes: &[u8]) {
        let _ = ram::write(to, bytes);
    }
}

/// Puts the tree where QEMU's was.
fn write_device_tree(blob: &[u8]) -> Result<PaRange, Error> {
    let range = PaRange::new(Pa::new(RAM_BASE), blob.len() as u64)
        .filter(|range| range.size() <= DEVICE_TREE_MAX)
        .ok_or(Error::NoRoom("device-tree"))?;
    ram::write(range.start(), blob).ok_or(Error::NoRoom("device-tree"))?;
    Ok(range)
}

/// The window of RAM, in which the tables are.
struct LoadedTables;

impl PhysicalBytes for LoadedTables {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        ram::loaded(PaRange::new(start, len as u64)?)
    }
}

/// Where records go; without such a place the machine runs, but says so.
fn find_source(rsdp: Pa) -> Option<RecordSource> {
    source::find_sea_source(&LoadedTables, rsdp)
        .inspect_err(say_no_source)
        .ok()
}

/// Where reports go; most machines have no such place.
fn find_report_source(rsdp: Pa) -> Option<ReportSource> {
    source::find_report_source(&LoadedTables, rsdp)
        .inspect_err(say_no_source)
        .ok()
        .flatten()
}

fn say_no_source(error: &source::Error) {
    let mut line = uart::Line::new();
    let _ = writeln!(line, "! no-error-source {error}");
    uart::write(line.as_str());
}
