//! QEMU's firmware configuration device: numbered items, named files, DMA in both directions.
//!
//! Everything here is protocol (QEMU `docs/specs/fw_cfg.rst`); how the registers are reached is
//! behind [`Transport`]. The device keeps one selected item and a read position in it, so all
//! methods take `&mut self`: whoever owns the [`FwCfg`] owns that position.
//!
//! Small things (the signature, numbers, the file directory) are read through the data register.
//! Anything that lands in memory goes by DMA, as does the one thing that is written: the pointer
//! by which a `WRITE_POINTER` command tells QEMU where a table ended up.

use core::fmt;

use crate::addr::{Pa, PaRange};

/// The item that says `QEMU` if a fw_cfg device answers.
const KEY_SIGNATURE: u16 = 0x00;
/// The item with the feature bits.
const KEY_FEATURES: u16 = 0x01;
/// The size in bytes of the file given by `-kernel`, see [`FwCfg::u32_item`].
pub const KEY_KERNEL_SIZE: u16 = 0x08;
/// The size in bytes of the file given by `-initrd`.
pub const KEY_INITRD_SIZE: u16 = 0x0b;
/// The contents of the file given by `-kernel`.
pub const KEY_KERNEL_DATA: u16 = 0x11;
/// The contents of the file given by `-initrd`.
pub const KEY_INITRD_DATA: u16 = 0x12;
/// The size in bytes of the string given by `-append`, its NUL included.
pub const KEY_CMDLINE_SIZE: u16 = 0x14;
/// The string given by `-append`, NUL-terminated.
pub const KEY_CMDLINE_DATA: u16 = 0x15;
/// The directory of named files.
const KEY_FILE_DIRECTORY: u16 = 0x19;

const SIGNATURE: [u8; 4] = *b"QEMU";
/// Bit 1 of the features: the DMA interface is there.
const FEATURE_DMA: u32 = 1 << 1;

/// Room for a file's name in the directory and in linker scripts, its NUL included.
pub const FILE_NAME_SIZE: usize = 56;
/// Size of one entry of the file directory: size, key, reserved, name.
const DIRECTORY_ENTRY_SIZE: usize = 8 + FILE_NAME_SIZE;
/// QEMU's default is 32 files and its limit is what fits in the 14-bit key space; more than this
/// is a corrupted directory, not a machine.
const MAX_FILES: u32 = 4096;

/// Set by the device in the control word when a transfer failed.
const DMA_ERROR: u32 = 1 << 0;
const DMA_READ: u32 = 1 << 1;
const DMA_SKIP: u32 = 1 << 2;
const DMA_SELECT: u32 = 1 << 3;
const DMA_WRITE: u32 = 1 << 4;

/// The memory side of a DMA transfer.
#[derive(Clone, Copy, Debug)]
pub enum DmaBuffer<'a> {
    /// No memory: the position moves by so many bytes.
    Skip(u32),
    /// The device writes to or reads from this memory.
    Memory(PaRange),
    /// The device reads these bytes; the transport puts them where the device can see them.
    /// At most [`DMA_BYTES_MAX`].
    Bytes(&'a [u8]),
}

/// How much a [`DmaBuffer::Bytes`] may hold: the widest pointer of the table-loader protocol.
pub const DMA_BYTES_MAX: usize = 8;

/// The registers of one fw_cfg device.
pub trait Transport {
    /// Selects item `key`; reading goes on at its first byte.
    fn select(&mut self, key: u16);

    /// Reads the selected item's next bytes from the data register. Past the end the device
    /// gives zeros.
    fn read(&mut self, out: &mut [u8]);

    /// Hands the device a [`dma_descriptor`] with this control word and buffer, waits until it
    /// has cleared every bit of the control word but the error bit, and returns that word.
    fn dma(&mut self, control: u32, buffer: DmaBuffer<'_>) -> u32;
}

/// The 16 bytes that the DMA address register points to: control, length, address, big-endian.
#[must_use]
pub fn dma_descriptor(control: u32, length: u32, address: Pa) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (head, tail) = bytes.split_at_mut(8);
    head.copy_from_slice(&(u64::from(control) << 32 | u64::from(length)).to_be_bytes());
    tail.copy_from_slice(&address.get().to_be_bytes());
    bytes
}

/// Why fw_cfg could not give what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The signature item is not `QEMU`: there is no such device.
    NoDevice,
    /// The device has no DMA interface (QEMU before 2.5).
    NoDma,
    /// The directory claims more files than the key space holds.
    BadDirectory {
        /// The number of files it claims.
        files: u32,
    },
    /// No file has this name.
    NotFound,
    /// The bytes asked for do not lie within the item.
    OutOfRange,
    /// The device reported an error for a transfer.
    TransferFailed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => f.write_str("no-device"),
            Self::NoDma => f.write_str("no-dma"),
            Self::BadDirectory { files } => write!(f, "bad-directory files={files}"),
            Self::NotFound => f.write_str("not-found"),
            Self::OutOfRange => f.write_str("out-of-range"),
            Self::TransferFailed => f.write_str("transfer-failed"),
        }
    }
}

/// A named file: the key of its contents and their size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    key: u16,
    size: u32,
}

impl File {
    /// An item with a well-known key, such as [`KEY_KERNEL_DATA`], whose size is known.
    #[must_use]
    pub const fn classic(key: u16, size: u32) -> Self {
        Self { key, size }
    }

    /// Size of the contents in bytes.
    #[must_use]
    pub const fn size(self) -> u32 {
        self.size
    }

    /// Whether `length` bytes at `offset` lie within the file.
    fn holds(self, offset: u32, length: usize) -> bool {
        u32::try_from(length)
            .ok()
            .and_then(|length| offset.checked_add(length))
            .is_some_and(|end| end <= self.size)
    }
}

/// A fw_cfg device with DMA.
#[derive(Debug)]
pub struct FwCfg<T> {
    transport: T,
}

impl<T: Transport> FwCfg<T> {
    /// Checks that a device with a DMA interface is behind `transport`.
    ///
    /// # Errors
    /// [`Error::NoDevice`], [`Error::NoDma`].
    pub fn probe(mut transport: T) -> Result<Self, Error> {
        let mut signature = [0; 4];
        transport.select(KEY_SIGNATURE);
        transport.read(&mut signature);
        if signature != SIGNATURE {
            return Err(Error::NoDevice);
        }
        let mut fw_cfg = Self { transport };
        if fw_cfg.u32_item(KEY_FEATURES) & FEATURE_DMA == 0 {
            return Err(Error::NoDma);
        }
        Ok(fw_cfg)
    }

    /// A well-known item that is one little-endian number. An item that the machine does not
    /// have reads as 0.
    pub fn u32_item(&mut self, key: u16) -> u32 {
        let mut bytes = [0; 4];
        self.transport.select(key);
        self.transport.read(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Looks up the file called `name`.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::BadDirectory`].
    pub fn find(&mut self, name: &str) -> Result<File, Error> {
        self.transport.select(KEY_FILE_DIRECTORY);
        let mut count = [0; 4];
        self.transport.read(&mut count);
        let files = u32::from_be_bytes(count);
        if files > MAX_FILES {
            return Err(Error::BadDirectory { files });
        }
        for _ in 0..files {
            let mut entry = [0; DIRECTORY_ENTRY_SIZE];
            self.transport.read(&mut entry);
            let (size, rest) = entry.split_first_chunk::<4>().ok_or(Error::NotFound)?;
            let (key, rest) = rest.split_first_chunk::<2>().ok_or(Error::NotFound)?;
            if rest.get(2..).and_then(name_of) == Some(name) {
                let (key, size) = (u16::from_be_bytes(*key), u32::from_be_bytes(*size));
                return Ok(File { key, size });
            }
        }
        Err(Error::NotFound)
    }

    /// Copies the first bytes of `file` to `out` through the data register: for what is small.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where `out` is longer than the file.
    pub fn read(&mut self, file: File, out: &mut [u8]) -> Result<(), Error> {
        if !file.holds(0, out.len()) {
            return Err(Error::OutOfRange);
        }
        self.transport.select(file.key);
        self.transport.read(out);
        Ok(())
    }

    /// Has the device copy the whole of `file` to the memory at `target`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where the file is empty or would wrap around the end of memory;
    /// [`Error::TransferFailed`].
    pub fn load(&mut self, file: File, target: Pa) -> Result<PaRange, Error> {
        let range = PaRange::new(target, u64::from(file.size)).ok_or(Error::OutOfRange)?;
        let control = u32::from(file.key) << 16 | DMA_SELECT | DMA_READ;
        self.transfer(control, DmaBuffer::Memory(range))?;
        Ok(range)
    }

    /// Overwrites `bytes.len()` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where they do not lie within the file or are more than
    /// [`DMA_BYTES_MAX`]; [`Error::TransferFailed`], above all if the file is read-only.
    pub fn store(&mut self, file: File, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        if !file.holds(offset, bytes.len()) || bytes.len() > DMA_BYTES_MAX {
            return Err(Error::OutOfRange);
        }
        let select = u32::from(file.key) << 16 | DMA_SELECT | DMA_SKIP;
        self.transfer(select, DmaBuffer::Skip(offset))?;
        self.transfer(DMA_WRITE, DmaBuffer::Bytes(bytes))
    }

    fn transfer(&mut self, control: u32, buffer: DmaBuffer<'_>) -> Result<(), Error> {
        if self.transport.dma(control, buffer) & DMA_ERROR != 0 {
            return Err(Error::TransferFailed);
        }
        Ok(())
    }
}

/// The NUL-terminated name at the start of `field`, or `None` where it is not one: empty, not
/// terminated, or not UTF-8.
pub(crate) fn name_of(field: &[u8]) -> Option<&str> {
    let length = field.iter().position(|&byte| byte == 0)?;
    let name = core::str::from_utf8(field.get(..length)?).ok()?;
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests;
