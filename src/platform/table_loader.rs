//! Puts QEMU's ACPI tables into memory by its table-loader script.
//!
//! QEMU gives firmware the tables as fw_cfg files with holes for every address, and a script,
//! `etc/table-loader`, of 128-byte commands that fill the holes once firmware has chosen where the
//! files go (QEMU `hw/acpi/bios-linker-loader.c`):
//!
//! - ALLOCATE places a file in memory,
//! - ADD_POINTER adds one file's address to an offset stored in another,
//! - ADD_CHECKSUM makes a range of a file sum to zero,
//! - WRITE_POINTER tells QEMU, through a writable file, where something was placed.
//!
//! The script and the files are input: every name, offset and size is checked against the blobs
//! that were placed, before anything is touched, and the first bad command ends the run with its
//! number and a named error. What had been placed by then is garbage that nobody points to.
//! Memory and fw_cfg are behind [`Host`], so this runs the same in firmware, in the hypervisor
//! booted without firmware, and in tests.

use alloc::vec::Vec;
use core::fmt;

use super::fw_cfg::{FILE_NAME_SIZE, name_of};
use crate::addr::{Pa, PaRange};

/// The script's file.
pub const SCRIPT_FILE: &str = "etc/table-loader";
/// The file that holds the RSDP.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";

/// Size of one command in bytes.
pub const COMMAND_SIZE: usize = 128;
/// QEMU places four files; more than this is a script that means harm.
const MAX_BLOBS: usize = 32;

const COMMAND_ALLOCATE: u32 = 1;
const COMMAND_ADD_POINTER: u32 = 2;
const COMMAND_ADD_CHECKSUM: u32 = 3;
const COMMAND_WRITE_POINTER: u32 = 4;

/// What the script asks of the machine.
pub trait Host {
    /// Why the machine could not do it.
    type Error;

    /// The size of fw_cfg file `name` in bytes, or `None` where there is none.
    ///
    /// # Errors
    /// The device failed.
    fn file_size(&mut self, name: &str) -> Result<Option<u32>, Self::Error>;

    /// Copies the whole of fw_cfg file `name` to `target`.
    ///
    /// # Errors
    /// The device failed.
    fn load_file(&mut self, name: &str, target: Pa) -> Result<(), Self::Error>;

    /// Overwrites a part of fw_cfg file `name`.
    ///
    /// # Errors
    /// The device failed or refused.
    fn store_file(&mut self, name: &str, offset: u32, bytes: &[u8]) -> Result<(), Self::Error>;

    /// `size` bytes, more than 0, of memory that the OS will leave alone, at a multiple of `align`,
    /// a power of two; or `None` where there is no room.
    fn allocate(&mut self, size: u32, align: u32, zone: Zone) -> Option<Pa>;

    /// Reads memory inside an allocation.
    fn read(&mut self, from: Pa, out: &mut [u8]);

    /// Writes memory inside an allocation.
    fn write(&mut self, to: Pa, bytes: &[u8]);
}

/// Where an allocation shall lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zone {
    /// Anywhere.
    High,
    /// The x86 BIOS segment at 0xF0000. A machine without one takes it as [`Zone::High`], as
    /// UEFI firmware does.
    FSegment,
}

/// Which command failed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error<E> {
    /// The command's number in the script, from 0.
    pub command: usize,
    /// What was wrong with it.
    pub why: Why<E>,
}

/// Why a command failed. Offsets and sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why<E> {
    /// The script ends in the middle of this command.
    Truncated,
    /// A command that does not exist.
    UnknownCommand(u32),
    /// A file name that is empty, not terminated or not text.
    BadName,
    /// ALLOCATE: the alignment is not a power of two.
    BadAlignment(u32),
    /// ALLOCATE: a zone that does not exist.
    UnknownZone(u8),
    /// ALLOCATE: fw_cfg has no file of this name.
    NoSuchFile,
    /// ALLOCATE: the file is empty.
    EmptyFile,
    /// ALLOCATE: the file was placed before.
    AllocatedTwice,
    /// ALLOCATE: more files than any machine has.
    TooManyFiles,
    /// ALLOCATE: there is no room.
    NoMemory,
    /// The command names a file that was not placed.
    NotAllocated,
    /// A pointer that is not 1, 2, 4 or 8 bytes wide.
    BadPointerSize(u8),
    /// The range does not lie within the file.
    OutOfBounds {
        /// Where it begins.
        offset: u32,
        /// How long it is.
        length: u32,
        /// The file's size.
        size: u64,
    },
    /// The address does not fit in the pointer's width.
    PointerTooNarrow(u8),
    /// fw_cfg failed.
    Host(E),
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} command={}", self.why, self.command)
    }
}

impl<E: fmt::Display> fmt::Display for Why<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("truncated"),
            Self::UnknownCommand(number) => write!(f, "unknown-command number={number}"),
            Self::BadName => f.write_str("bad-name"),
            Self::BadAlignment(align) => write!(f, "bad-alignment align={align}"),
            Self::UnknownZone(zone) => write!(f, "unknown-zone zone={zone}"),
            Self::NoSuchFile => f.write_str("no-such-file"),
            Self::EmptyFile => f.write_str("empty-file"),
            Self::AllocatedTwice => f.write_str("allocated-twice"),
            Self::TooManyFiles => f.write_str("too-many-files"),
            Self::NoMemory => f.write_str("no-memory"),
            Self::NotAllocated => f.write_str("not-allocated"),
            Self::BadPointerSize(size) => write!(f, "bad-pointer-size size={size}"),
            Self::OutOfBounds {
                offset,
                length,
                size,
            } => {
                write!(
                    f,
                    "out-of-bounds offset={offset} length={length} size={size}"
                )
            }
            Self::PointerTooNarrow(size) => write!(f, "pointer-too-narrow size={size}"),
            Self::Host(error) => error.fmt(f),
        }
    }
}

/// A file's name as a command holds it, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileName([u8; FILE_NAME_SIZE]);

impl FileName {
    fn parse<E>(field: [u8; FILE_NAME_SIZE]) -> Result<Self, Why<E>> {
        name_of(&field).ok_or(Why::BadName)?;
        Ok(Self(field))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        name_of(&self.0).unwrap_or("")
    }
}

/// A file that was placed in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    name: FileName,
    range: PaRange,
}

impl Blob {
    /// The file's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Where it lies.
    #[must_use]
    pub const fn range(&self) -> PaRange {
        self.range
    }

    /// The address of the `length` bytes at `offset`, if they lie within the blob.
    fn slice<E>(&self, offset: u32, length: u32) -> Result<Pa, Why<E>> {
        let size = self.range.size();
        let end = u64::from(offset) + u64::from(length);
        self.range
            .start()
            .checked_add(u64::from(offset))
            .filter(|_| end <= size)
            .ok_or(Why::OutOfBounds {
                offset,
                length,
                size,
            })
    }
}

/// What the script placed.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    blobs: Vec<Blob>,
}

impl Loaded {
    /// All blobs, in the order of their ALLOCATE commands.
    #[must_use]
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// The blob made from file `name`.
    #[must_use]
    pub fn blob(&self, name: &str) -> Option<&Blob> {
        self.blobs.iter().find(|blob| blob.name() == name)
    }

    /// The address of the RSDP, or `None` where the script placed none.
    #[must_use]
    pub fn rsdp(&self) -> Option<Pa> {
        self.blob(RSDP_FILE).map(|blob| blob.range.start())
    }

    fn allocated<E>(&self, name: &FileName) -> Result<Blob, Why<E>> {
        self.blob(name.as_str()).copied().ok_or(Why::NotAllocated)
    }
}

/// Runs `script` to its end.
///
/// # Errors
/// The first command that is not sound, and why.
pub fn run<H: Host>(script: &[u8], host: &mut H) -> Result<Loaded, Error<H::Error>> {
    let mut loaded = Loaded::default();
    for (command, bytes) in script.chunks(COMMAND_SIZE).enumerate() {
        Command::parse(bytes)
            .and_then(|parsed| execute(parsed, &mut loaded, host))
            .map_err(|why| Error { command, why })?;
    }
    Ok(loaded)
}

/// One command with checked names and widths; ranges are checked against the blobs at execution.
#[derive(Clone, Copy, Debug)]
enum Command {
    Allocate {
        file: FileName,
        align: u32,
        zone: Zone,
    },
    AddPointer {
        in_file: FileName,
        to_file: FileName,
        offset: u32,
        width: PointerWidth,
    },
    AddChecksum {
        file: FileName,
        offset: u32,
        start: u32,
        length: u32,
    },
    WritePointer {
        in_file: FileName,
        to: (FileName, u32),
        offset: u32,
        width: PointerWidth,
    },
}

/// The width of a pointer: 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug)]
struct PointerWidth(u8);

impl PointerWidth {
    fn parse<E>(raw: u8) -> Result<Self, Why<E>> {
        if raw <= 8 && raw.is_power_of_two() {
            Ok(Self(raw))
        } else {
            Err(Why::BadPointerSize(raw))
        }
    }

    /// The low bytes of `value`, or an error where higher ones are not zero.
    fn encode<E>(self, value: u64, out: &mut [u8; 8]) -> Result<&[u8], Why<E>> {
        *out = value.to_le_bytes();
        let (low, high) = out.split_at(usize::from(self.0));
        if high.iter().any(|&byte| byte != 0) {
            return Err(Why::PointerTooNarrow(self.0));
        }
        Ok(low)
    }
}

/// Reads a command's fields in order. They are packed, little-endian.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize, E>(&mut self) -> Result<[u8; N], Why<E>> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Why::Truncated)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32<E>(&mut self) -> Result<u32, Why<E>> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u8<E>(&mut self) -> Result<u8, Why<E>> {
        self.bytes().map(|[byte]| byte)
    }

    fn name<E>(&mut self) -> Result<FileName, Why<E>> {
        FileName::parse(self.bytes()?)
    }
}

impl Command {
    fn parse<E>(bytes: &[u8]) -> Result<Self, Why<E>> {
        if bytes.len() != COMMAND_SIZE {
            return Err(Why::Truncated);
        }
        let mut fields = Fields(bytes);
        match fields.u32()? {
            COMMAND_ALLOCATE => Ok(Self::Allocate {
                file: fields.name()?,
                align: parse_alignment(fields.u32()?)?,
                zone: parse_zone(fields.u8()?)?,
            }),
            COMMAND_ADD_POINTER => Ok(Self::AddPointer {
                in_file: fields.name()?,
                to_file: fields.name()?,
                offset: fields.u32()?,
                width: PointerWidth::parse(fields.u8()?)?,
            }),
            COMMAND_ADD_CHECKSUM => Ok(Self::AddChecksum {
                file: fields.name()?,
                offset: fields.u32()?,
                start: fields.u32()?,
                length: fields.u32()?,
            }),
            COMMAND_WRITE_POINTER => {
                let (in_file, to_file) = (fields.name()?, fields.name()?);
                let (offset, to_offset) = (fields.u32()?, fields.u32()?);
                let width = PointerWidth::parse(fields.u8()?)?;
                Ok(Self::WritePointer {
                    in_file,
                    to: (to_file, to_offset),
                    offset,
                    width,
                })
            }
            unknown => Err(Why::UnknownCommand(unknown)),
        }
    }
}

fn parse_alignment<E>(raw: u32) -> Result<u32, Why<E>> {
    if raw.is_power_of_two() {
        Ok(raw)
    } else {
        Err(Why::BadAlignment(raw))
    }
}

fn parse_zone<E>(raw: u8) -> Result<Zone, Why<E>> {
    match raw {
        1 => Ok(Zone::High),
        2 => Ok(Zone::FSegment),
        other => Err(Why::UnknownZone(other)),
    }
}

fn execute<H: Host>(
    command: Command,
    loaded: &mut Loaded,
    host: &mut H,
) -> Result<(), Why<H::Error>> {
    match command {
        Command::Allocate { file, align, zone } => allocate(file, align, zone, loaded, host),
        Command::AddPointer {
            in_file,
            to_file,
            offset,
            width,
        } => {
            let (in_blob, to_blob) = (loaded.allocated(&in_file)?, loaded.allocated(&to_file)?);
            add_pointer(in_blob, to_blob, offset, width, host)
        }
        Command::AddChecksum {
            file,
            offset,
            start,
            length,
        } => add_checksum(loaded.allocated(&file)?, offset, start, length, host),
        Command::WritePointer {
            in_file,
            to: (to_file, to_offset),
            offset,
            width,
        } => {
            let target = loaded.allocated(&to_file)?.slice(to_offset, 1)?;
            let mut bytes = [0; 8];
            let bytes = width.encode(target.get(), &mut bytes)?;
            host.store_file(in_file.as_str(), offset, bytes)
                .map_err(Why::Host)
        }
    }
}

fn allocate<H: Host>(
    file: FileName,
    align: u32,
    zone: Zone,
    loaded: &mut Loaded,
    host: &mut H,
) -> Result<(), Why<H::Error>> {
    if loaded.blob(file.as_str()).is_some() {
        return Err(Why::AllocatedTwice);
    }
    if loaded.blobs.len() >= MAX_BLOBS {
        return Err(Why::TooManyFiles);
    }
    let size = host
        .file_size(file.as_str())
        .map_err(Why::Host)?
        .ok_or(Why::NoSuchFile)?;
    if size == 0 {
        return Err(Why::EmptyFile);
    }
    let range = host
        .allocate(size, align, zone)
        .and_then(|start| PaRange::new(start, u64::from(size)))
        .ok_or(Why::NoMemory)?;
    host.load_file(file.as_str(), range.start())
        .map_err(Why::Host)?;
    loaded.blobs.push(Blob { name: file, range });
    Ok(())
}

/// The pointer holds an offset into `to`; it becomes that byte's address.
fn add_pointer<H: Host>(
    in_blob: Blob,
    to: Blob,
    offset: u32,
    width: PointerWidth,
    host: &mut H,
) -> Result<(), Why<H::Error>> {
    let at = in_blob.slice(offset, u32::from(width.0))?;
    let mut bytes = [0; 8];
    if let Some(low) = bytes.get_mut(..usize::from(width.0)) {
        host.read(at, low);
    }
    let raw = u64::from_le_bytes(bytes);
    let inside = u32::try_from(raw).unwrap_or(u32::MAX);
    let target = to.slice(inside, 1)?;
    host.write(at, width.encode(target.get(), &mut bytes)?);
    Ok(())
}

/// Subtracts the sum of the range from the byte at `offset`, modulo 256.
fn add_checksum<H: Host>(
    blob: Blob,
    offset: u32,
    start: u32,
    length: u32,
    host: &mut H,
) -> Result<(), Why<H::Error>> {
    let at = blob.slice(offset, 1)?;
    let mut position = blob.slice(start, length)?;
    let mut left = usize::try_from(length).unwrap_or(usize::MAX);
    let mut sum = 0u8;
    let mut buffer = [0; 64];
    while left > 0 {
        let step = left.min(buffer.len());
        let Some(chunk) = buffer.get_mut(..step) else {
            break;
        };
        host.read(position, chunk);
        sum = chunk.iter().fold(sum, |sum, &byte| sum.wrapping_add(byte));
        // `slice` has shown that the whole range is addressable.
        position = Pa::new(position.get().wrapping_add(step as u64));
        left -= step;
    }
    let mut byte = [0];
    host.read(at, &mut byte);
    host.write(at, &byte.map(|old| old.wrapping_sub(sum)));
    Ok(())
}

#[cfg(test)]
mod tests;
