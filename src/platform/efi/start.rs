//! What the application does before it leaves boot services.

use alloc::string::String;

use super::{EfiError, PAGE, Status};
use crate::addr::PaRange;

/// Where the bundle is looked for on the volume that Cordon was loaded from, in this order.
const BUNDLE: [&str; 2] = ["\\cordon.bundle", "\\EFI\\cordon\\cordon.bundle"];
/// What a loader has handed over as an initrd, in messages.
const INITRD: &str = "initrd";
/// Longest bundle that is read, in bytes.
const MAX_BUNDLE: u64 = 4 << 30;
/// Longest command line, in bytes, as a device tree's would hardly be longer.
const MAX_CMDLINE: u64 = 4096;

/// How often boot services are left with a key that was stale before that is given up. Each time, something
/// of the firmware's has changed the map in between; the specification expects that to end (7.4.6).
const EXIT_ATTEMPTS: usize = 8;
/// Room that is left in the memory map for what allocating the map itself adds, and events at the
/// exit, in bytes.
const MAP_ROOM: u64 = PAGE;

/// The firmware's services, as far as they are needed.
pub trait Firmware {
    /// A file that is open.
    type File: File;

    /// Bytes of the initrd that a loader offers (`EFI_LOAD_FILE2_PROTOCOL` at Linux's vendor media path).
    ///
    /// # Errors
    /// What the firmware says. Nothing offered is no error.
    fn initrd(&mut self) -> Result<Option<u64>, Status>;

    /// Loads that initrd.
    ///
    /// # Errors
    /// What the firmware says.
    fn load_initrd(&mut self, to: PaRange) -> Result<(), Status>;

    /// Opens the file of this path on the volume that Cordon was loaded from.
    ///
    /// # Errors
    /// What the firmware says. No such file is no error.
    fn open(&mut self, path: &str) -> Result<Option<Self::File>, Status>;

    /// Whole pages of memory, the loader's.
    ///
    /// # Errors
    /// What the firmware says.
    fn allocate(&mut self, pages: u64) -> Result<PaRange, Status>;

    /// Writes the memory map.
    ///
    /// # Errors
    /// What the firmware says; [`MapInfo::size`] of one that says that there is too little room is what it
    /// takes.
    fn memory_map(&mut self, to: Option<PaRange>) -> Result<MapInfo, (Status, MapInfo)>;

    /// Ends boot services.
    ///
    /// # Errors
    /// What the firmware says: [`Status::INVALID_PARAMETER`] of a key that is not the newest map's.
    fn exit(&mut self, key: usize) -> Result<(), Status>;
}

/// An open file.
pub trait File {
    /// Its bytes.
    ///
    /// # Errors
    /// What the firmware says.
    fn size(&mut self) -> Result<u64, Status>;

    /// Reads on from where the last read ended, and returns how much was read: less than `to` holds, or nothing
    /// at the end.
    ///
    /// # Errors
    /// What the firmware says.
    fn read(&mut self, to: PaRange) -> Result<u64, Status>;
}

/// What is said of a memory map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// Its bytes.
    pub size: u64,
    /// Of one descriptor.
    pub descriptor_size: usize,
    /// By which boot services are left.
    pub key: usize,
}

/// The map that boot services were left with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Its bytes.
    pub map: PaRange,
    /// Of one descriptor.
    pub descriptor_size: usize,
}

/// Finds the bundle and loads it: what a loader hands over, or else what is on the volume.
///
/// # Errors
/// As [`EfiError`] says.
pub fn load_bundle(firmware: &mut impl Firmware) -> Result<PaRange, EfiError> {
    let failed = |status| EfiError::File {
        name: INITRD,
        status,
    };
    if let Some(size) = firmware.initrd().map_err(failed)? {
        let range = room(firmware, INITRD, size, MAX_BUNDLE)?;
        firmware.load_initrd(range).map_err(failed)?;
        return Ok(range);
    }
    for name in BUNDLE {
        if let Some(range) = load(firmware, name, MAX_BUNDLE)? {
            return Ok(range);
        }
    }
    Err(EfiError::NoBundle)
}

/// Loads a text file that need not be there.
///
/// # Errors
/// As [`EfiError`] says.
pub fn load_text(
    firmware: &mut impl Firmware,
    name: &'static str,
) -> Result<Option<PaRange>, EfiError> {
    load(firmware, name, MAX_CMDLINE)
}

/// Memory for `size` bytes of `name`, at most `most`.
fn room(
    firmware: &mut impl Firmware,
    name: &'static str,
    size: u64,
    most: u64,
) -> Result<PaRange, EfiError> {
    if size > most {
        return Err(EfiError::TooLong { name, size });
    }
    let pages = size.div_ceil(PAGE).max(1);
    let pages = firmware.allocate(pages).map_err(EfiError::Memory)?;
    // An empty file is a byte of whatever is there, which is no bundle.
    let range = PaRange::new(pages.start(), size.max(1));
    range.ok_or(EfiError::TooLong { name, size })
}

/// Loads the file `name`, if there is one.
fn load(
    firmware: &mut impl Firmware,
    name: &'static str,
    most: u64,
) -> Result<Option<PaRange>, EfiError> {
    let failed = |status| EfiError::File { name, status };
    let Some(mut file) = firmware.open(name).map_err(failed)? else {
        return Ok(None);
    };
    let size = file.size().map_err(failed)?;
    let range = room(firmware, name, size, most)?;
    let mut done = 0;
    while done < size {
        let rest = (range.start().checked_add(done))
            .and_then(|start| PaRange::new(start, size - done))
            .ok_or(EfiError::TooLong { name, size })?;
        let read = file.read(rest).map_err(failed)?;
        // Shorter than it said; or the firmware says that it has read more than there was room for.
        if read == 0 || read > rest.size() {
            return Err(failed(Status::LOAD_ERROR));
        }
        done += read;
    }
    Ok(Some(range))
}

/// Leaves boot services. Between the map and the exit nothing else may be called, and after a first attempt
/// nothing but these two (7.4.6): so the room is taken before.
///
/// # Errors
/// [`EfiError::Memory`] while boot services are there as before; [`EfiError::Exit`] when they may not be.
pub fn exit(firmware: &mut impl Firmware) -> Result<Exited, EfiError> {
    let needed = match firmware.memory_map(None) {
        Err((Status::BUFFER_TOO_SMALL, info)) => info.size,
        Err((status, _)) => return Err(EfiError::Memory(status)),
        Ok(_) => return Err(EfiError::Memory(Status::LOAD_ERROR)),
    };
    let pages = needed.saturating_add(MAP_ROOM).div_ceil(PAGE);
    let room = firmware.allocate(pages).map_err(EfiError::Memory)?;
    let mut last = Status::LOAD_ERROR;
    for _ in 0..EXIT_ATTEMPTS {
        let info = match firmware.memory_map(Some(room)) {
            Ok(info) => info,
            Err((status, _)) => return Err(EfiError::Exit(status)),
        };
        let map = PaRange::new(room.start(), info.size).filter(|map| room.contains_range(*map));
        let map = map.ok_or(EfiError::Exit(Status::LOAD_ERROR))?;
        match firmware.exit(info.key) {
            Ok(()) => {
                return Ok(Exited {
                    map,
                    descriptor_size: info.descriptor_size,
                });
            }
            Err(status @ Status::INVALID_PARAMETER) => last = status,
            Err(status) => return Err(EfiError::Exit(status)),
        }
    }
    Err(EfiError::Exit(last))
}

/// The words that Cordon is started with: those of the file on the volume, then those of the image's load
/// options, UCS-2, without the program's own name that a shell or GRUB puts before them. Load options that are no text
/// are left out: boot managers put there what they like.
pub fn command_line(load_options: &[u8], file: &[u8]) -> String {
    let mut line = String::new();
    let mut add = |words: &mut dyn Iterator<Item = &str>| {
        for word in words {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    };
    add(&mut core::str::from_utf8(file)
        .unwrap_or_default()
        .split_ascii_whitespace());
    let options = text(load_options).unwrap_or_default();
    let is_program = |word: &&str| {
        // GRUB's words begin with what it has loaded, for Linux to look up.
        word.to_ascii_lowercase().ends_with(".efi") || word.starts_with("BOOT_IMAGE=")
    };
    let mut words = options.split_ascii_whitespace().peekable();
    words.next_if(is_program);
    add(&mut words);
    line
}

/// ASCII text of units of two bytes, up to a NUL.
fn text(units: &[u8]) -> Option<String> {
    let (units, rest) = units.as_chunks::<2>();
    let units = units.iter().map(|unit| u16::from_le_bytes(*unit));
    let letter = |unit: u16| {
        let byte = u8::try_from(unit).ok()?;
        (byte.is_ascii_graphic() || byte == b' ').then_some(char::from(byte))
    };
    let text = units.take_while(|unit| *unit != 0).map(letter).collect();
    rest.is_empty().then_some(text)?
}
