//! What says what the machine and its VMs are: device tree, bundle, ACPI tables, and the script
//! that puts these in place.

mod seeds;

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;

use ::acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use cordon::addr::{Pa, PaRange};
use cordon::platform::acpi::{CheckedTables, Madt, PhysicalBytes};
use cordon::platform::bundle::Bundle;
use cordon::platform::efi::Memory as EfiMemory;
use cordon::platform::fdt::{CheckedFdt, without_nops};
use cordon::platform::machine::{AcpiParts, Description, Machine};
use cordon::platform::memory::FreeMemory;
use cordon::platform::table_loader::{self, Host, Zone};
use cordon::ras::hest::Hest;
use cordon::stage2::Granules;
use cordon::vm::config::{self, Devices, Limits};
use cordon::vm::guest_dt::{self, Surroundings};

use crate::{one_word, why_and_keys};
pub(crate) use seeds::seeds;

/// Target `fdt`: the device tree that the machine's loader hands over.
pub fn fdt(blob: &[u8]) {
    let closed_up = match without_nops(blob) {
        Ok(closed_up) => closed_up,
        Err(error) => return why_and_keys(&error.to_string()),
    };
    let fdt = match CheckedFdt::new(closed_up.as_deref().unwrap_or(blob)) {
        Ok(fdt) => fdt,
        Err(error) => return why_and_keys(&error.to_string()),
    };
    assert!(fdt.size() <= blob.len());
    let machine = match Machine::from_fdt(&fdt, Pa::new(0x4000_0000)) {
        Ok(machine) => machine,
        Err(error) => return why_and_keys(&error.to_string()),
    };
    assert!(!machine.to_string().is_empty());
    let reserved = machine.reserved.iter().map(|reserved| reserved.range);
    let free = FreeMemory::new(machine.ram.iter().copied(), reserved);
    for range in free.ranges() {
        assert!(range.size() % 4096 == 0);
        let taken = |other: &_| range.overlaps(*other);
        assert!(!machine.reserved.iter().any(|r| taken(&r.range)), "{range}");
    }
}

/// Target `bundle`: the archive of the guests' files.
pub fn bundle(archive: &[u8]) {
    match Bundle::parse(archive) {
        Ok(bundle) => build_vms(&bundle),
        Err(error) => why_and_keys(&error.to_string()),
    }
}

/// Target `vms`: the tree in an archive that is sound and has a kernel, so that no checksum and no
/// digit of cpio stands between the fuzzer and the reader of the VMs.
pub fn vms(tree: &[u8]) {
    let archive = seeds::archive(&[
        (config::FILE, tree),
        ("probe.img", &seeds::kernel()),
        ("initrd", &[1; 64]),
    ]);
    let bundle = Bundle::parse(&archive).expect("the archive is sound");
    build_vms(&bundle);
}

fn build_vms(bundle: &Bundle<'_>) {
    let limits = Limits {
        cpus: 8,
        ipa_bits: 40,
        granules: Granules::ALL,
    };
    let vms = match config::read(bundle, limits) {
        Ok(vms) => vms,
        Err(error) => return why_and_keys(&error.to_string()),
    };
    let vcpus: u64 = vms.iter().map(|vm| u64::from(vm.vcpus)).sum();
    assert!((1..=8).contains(&vcpus), "{vcpus}");
    let machine = machine();
    let mut devices = Devices::new(&machine, limits);
    for mut vm in vms {
        if vm.identity {
            let ram = PaRange::new(Pa::new(0x4020_0000), vm.ram.size());
            let placed = vm.place_ram(ram.expect("its size is small"), limits);
            if let Err(error) = placed {
                return why_and_keys(&error.to_string());
            }
        }
        let grant = match devices.give(&vm) {
            Ok(grant) => grant,
            Err(error) => return why_and_keys(&error.to_string()),
        };
        assert!(grant.pages.iter().all(|page| machine.own(*page).is_none()));
        assert!(vm.ram.contains_range(vm.layout.kernel));
        assert!(!vm.layout.kernel.overlaps(vm.layout.dtb));
        let others = vm.device_memory.iter();
        assert!(!others.clone().any(|memory| memory.ipa.overlaps(vm.ram)));
        let surroundings = Surroundings {
            devices: &grant.devices,
            caches: &[],
        };
        if let Ok(tree) = guest_dt::build(&vm, surroundings) {
            CheckedFdt::new(&tree).expect("what is written can be read");
        }
    }
}

/// QEMU's `virt`, for the devices that it has.
fn machine() -> Machine {
    const VIRT: &[u8] = include_bytes!("../../src/platform/testdata/qemu-virt.dtb");
    let fdt = CheckedFdt::new(VIRT).expect("QEMU's own tree is sound");
    Machine::from_fdt(&fdt, Pa::new(0x4000_0000)).expect("and complete")
}

/// Where the memory of target `acpi` begins. Not at 0, so that 0 is nowhere.
const TABLES: u64 = 0x4000_0000;

/// Target `acpi`: memory that holds tables, the RSDP first; as it is, and with its checksums right.
pub fn acpi(memory: &[u8]) {
    read_tables(memory);
    let mut sealed = memory.to_vec();
    seal_tables(&mut sealed);
    read_tables(&sealed);
}

fn read_tables(memory: &[u8]) {
    let memory = Memory(Rc::new(memory.to_vec()));
    let tables = match CheckedTables::new(&memory, Pa::new(TABLES)) {
        Ok(tables) => tables,
        Err(error) => return why_and_keys(&error.to_string()),
    };
    if let Some(hest) = tables.hest() {
        let length = usize::try_from(hest.size()).expect("it lies in memory");
        let bytes = memory.bytes(hest.start(), length).expect("it was checked");
        // Only the header that all tables have was checked: a HEST may be shorter than its own.
        let sources = Hest::parse(bytes).map(|hest| hest.sources());
        for error in sources.iter().cloned().flatten().filter_map(Result::err) {
            one_word(&error.to_string());
        }
        if let Err(error) = sources {
            one_word(&error.to_string());
        }
    }
    let rsdp = usize::try_from(tables.rsdp().get()).expect("it lies in memory");
    // SAFETY: `tables` says that RSDP, XSDT, all headers and MADT are what the crate relies on, and
    // the handler's memory is the memory that was looked at.
    let read = unsafe { AcpiTables::from_rsdp(memory.clone(), rsdp) };
    let read = read.expect("what was checked is accepted");
    let madt = Madt::read(&read);
    if let Err(error) = &madt {
        why_and_keys(&error.to_string());
    }
    describe(&tables, &memory, madt.ok());
}

/// What a machine with ACPI alone would be made of.
fn describe(tables: &CheckedTables, memory: &Memory, madt: Option<Madt>) {
    let described = Description::read(AcpiParts {
        tables,
        memory,
        madt,
    });
    let ram = EfiMemory {
        ram: PaRange::new(Pa::new(TABLES), 1 << 30).into_iter().collect(),
        ..EfiMemory::default()
    };
    match described {
        Ok(described) => {
            if let Err(error) = Machine::from_efi(&ram, None, Some(&described)) {
                why_and_keys(&error.to_string());
            }
        }
        Err(error) => why_and_keys(&error.to_string()),
    }
}

/// Makes the checksums of RSDP, XSDT and the tables that it lists right, as far as they are there.
fn seal_tables(memory: &mut [u8]) {
    let at = |pa: u64| usize::try_from(pa.checked_sub(TABLES)?).ok();
    let number = |memory: &[u8], at: usize| {
        let bytes = memory.get(at..)?.first_chunk::<8>()?;
        Some(u64::from_le_bytes(*bytes))
    };
    seal(memory, 0, 20, 8);
    seal(memory, 0, 36, 32);
    let Some(xsdt) = number(memory, 24).and_then(at) else {
        return;
    };
    for index in 0..8 {
        let entry = xsdt.saturating_add(36 + 8 * index);
        if let Some(table) = number(memory, entry).and_then(at) {
            seal_table(memory, table);
        }
    }
    seal_table(memory, xsdt);
}

fn seal_table(memory: &mut [u8], start: usize) {
    let header = memory
        .get(start..)
        .and_then(|table| table.first_chunk::<8>());
    if let Some([.., a, b, c, d]) = header {
        let length = u32::from_le_bytes([*a, *b, *c, *d]);
        seal(memory, start, usize::try_from(length).unwrap_or(0), 9);
    }
}

/// Makes `length` bytes from `start` sum to zero by the byte at offset `checksum`.
fn seal(memory: &mut [u8], start: usize, length: usize, checksum: usize) {
    let end = start.saturating_add(length);
    if let Some(table) = memory.get_mut(start..end)
        && checksum < table.len()
    {
        table[checksum] = 0;
        table[checksum] = table
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    }
}

/// Memory in which tables lie, as the image's identity map would be.
#[derive(Clone)]
struct Memory(Rc<Vec<u8>>);

impl PhysicalBytes for Memory {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(start.get().checked_sub(TABLES)?).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

/// Panics where the crate leaves what was checked.
impl AcpiHandler for Memory {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        let bytes = self.bytes(Pa::new(at as u64), size);
        let start = NonNull::from(bytes.expect("maps only what was checked")).cast::<T>();
        // SAFETY: the bytes are `size` long, initialised, and live as long as the clone of `self`
        // in the mapping; the crate's types are packed, so any address is aligned.
        unsafe { PhysicalMapping::new(at, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// Target `table_loader`: the script, on a machine with a few small files.
pub fn table_loader(script: &[u8]) {
    let mut machine = Loader::new();
    match table_loader::run(script, &mut machine) {
        Ok(loaded) => {
            let commands = script.len().div_ceil(table_loader::COMMAND_SIZE);
            assert!(loaded.blobs().len() <= commands);
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(" command="), "{text}");
            assert!(
                text.chars().all(|c| c.is_ascii_graphic() || c == ' '),
                "{text:?}"
            );
        }
    }
}

/// fw_cfg and memory. Panics where the script gets outside of what it was given.
struct Loader {
    files: BTreeMap<&'static str, Vec<u8>>,
    memory: Vec<u8>,
    /// What was handed out, as offsets and lengths.
    given: Vec<(usize, usize)>,
    used: usize,
}

/// Where the memory of target `table_loader` begins: below 4 GiB, so that a pointer of four bytes
/// can hold its addresses and one of two cannot.
const ROOM: u64 = 0x4400_0000;

impl Loader {
    fn new() -> Self {
        let files = [
            (table_loader::RSDP_FILE, 36),
            ("etc/acpi/tables", 512),
            ("etc/hardware_errors", 64),
            ("etc/acpi_table_hest_addr", 8),
            ("empty", 0),
        ];
        Self {
            files: files.map(|(name, size)| (name, vec![0; size])).into(),
            memory: vec![0; 0x4000],
            given: Vec::new(),
            used: 0,
        }
    }

    fn place(&mut self, at: Pa, length: usize) -> &mut [u8] {
        let start = at.get().checked_sub(ROOM).expect("in memory");
        let start = usize::try_from(start).expect("in memory");
        let inside =
            |(from, size): &(usize, usize)| *from <= start && start + length <= from + size;
        assert!(self.given.iter().any(inside), "{at} {length}: not given");
        &mut self.memory[start..start + length]
    }
}

impl Host for Loader {
    type Error = &'static str;

    fn file_size(&mut self, name: &str) -> Result<Option<u32>, Self::Error> {
        let size = |file: &Vec<u8>| u32::try_from(file.len()).expect("small");
        Ok(self.files.get(name).map(size))
    }

    fn load_file(&mut self, name: &str, target: Pa) -> Result<(), Self::Error> {
        let file = self.files.get(name).cloned().ok_or("no-file")?;
        self.place(target, file.len()).copy_from_slice(&file);
        Ok(())
    }

    fn store_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> Result<(), Self::Error> {
        let file = self.files.get_mut(name).ok_or("no-file")?;
        let end = (offset as usize).checked_add(bytes.len()).ok_or("beyond")?;
        let place = file.get_mut(offset as usize..end).ok_or("beyond")?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    fn allocate(&mut self, size: u32, align: u32, _: Zone) -> Option<Pa> {
        assert!(size > 0 && align.is_power_of_two());
        let start = self.used.checked_next_multiple_of(align as usize)?;
        let end = start.checked_add(size as usize)?;
        if end > self.memory.len() {
            return None;
        }
        self.used = end;
        self.given.push((start, size as usize));
        Pa::new(ROOM).checked_add(start as u64)
    }

    fn read(&mut self, from: Pa, out: &mut [u8]) {
        out.copy_from_slice(self.place(from, out.len()));
    }

    fn write(&mut self, to: Pa, bytes: &[u8]) {
        self.place(to, bytes.len()).copy_from_slice(bytes);
    }
}
