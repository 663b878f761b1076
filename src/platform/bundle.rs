//! The bundle: a `newc` cpio archive with the guests' files (`docs/protocols.md`).
//!
//! Nothing is copied: a file is a slice of the archive. Only regular files count; directories are
//! passed over, and anything else is refused rather than given a meaning it does not have here.
//! Names are relative paths without `..`, and each is there once. What follows the trailer is
//! padding of whoever handed the archive over, and not looked at.
//!
//! The format is cpio(5), "New ASCII Format": a header of 110 bytes in ASCII hex, the name with
//! its NUL, the data, each padded to four bytes.

use alloc::vec::Vec;
use core::fmt;

/// Most files in a bundle.
pub const MAX_FILES: usize = 256;

/// Longest name, in bytes.
pub const MAX_NAME: usize = 255;

const MAGIC: &[u8] = b"070701";
const HEADER_SIZE: usize = 110;
const TRAILER: &str = "TRAILER!!!";

/// `S_IFMT` and two of its values (`inode(7)`).
const MODE_MASK: u32 = 0o170_000;
const MODE_REGULAR: u32 = 0o100_000;
const MODE_DIRECTORY: u32 = 0o040_000;

/// Why an archive is refused. `at` is the offset in bytes of the entry in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// An entry leaves the archive.
    Truncated {
        /// Offset of the entry.
        at: usize,
    },
    /// No `070701` where an entry must begin. At 0: this is no `newc` archive.
    BadMagic {
        /// Offset of the entry.
        at: usize,
    },
    /// A number in the header is not eight hexadecimal digits.
    BadNumber {
        /// Offset of the entry.
        at: usize,
    },
    /// A name is empty, longer than [`MAX_NAME`], not NUL-terminated printable ASCII, absolute, or
    /// has a component that is empty or `..`.
    BadName {
        /// Offset of the entry.
        at: usize,
    },
    /// Neither a regular file nor a directory.
    BadKind {
        /// Offset of the entry.
        at: usize,
    },
    /// A name is there twice.
    DuplicateName {
        /// Offset of the second entry.
        at: usize,
    },
    /// The archive ends without its trailer.
    NoTrailer,
    /// More than [`MAX_FILES`] files.
    TooManyFiles,
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (why, at) = match *self {
            Self::Truncated { at } => ("truncated", at),
            Self::BadMagic { at } => ("bad-magic", at),
            Self::BadNumber { at } => ("bad-number", at),
            Self::BadName { at } => ("bad-name", at),
            Self::BadKind { at } => ("bad-kind", at),
            Self::DuplicateName { at } => ("duplicate-name", at),
            Self::NoTrailer => return f.write_str("why=no-trailer"),
            Self::TooManyFiles => return f.write_str("why=too-many-files"),
        };
        write!(f, "why={why} at={at:#x}")
    }
}

impl core::error::Error for BundleError {}

/// A file of the bundle.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct File<'a> {
    /// Its path, without a leading `./`.
    pub name: &'a str,
    /// Its contents.
    pub bytes: &'a [u8],
}

impl fmt::Debug for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File")
            .field("name", &self.name)
            .field("len", &self.bytes.len())
            .finish()
    }
}

/// The files of an archive.
#[derive(Clone, Debug, Default)]
pub struct Bundle<'a> {
    files: Vec<File<'a>>,
}

impl<'a> Bundle<'a> {
    /// Reads the archive that `bytes` begin with.
    ///
    /// # Errors
    /// The first thing found wrong, as [`BundleError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let mut reader = Reader { bytes, pos: 0 };
        let mut files: Vec<File<'a>> = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let at = entry.at;
            let Some(file) = entry.into_file()? else {
                continue;
            };
            if files.iter().any(|other| other.name == file.name) {
                return Err(BundleError::DuplicateName { at });
            }
            if files.len() == MAX_FILES {
                return Err(BundleError::TooManyFiles);
            }
            files.push(file);
        }
        Ok(Self { files })
    }

    /// The file called `name`.
    pub fn get(&self, name: &str) -> Option<File<'a>> {
        self.files.iter().copied().find(|file| file.name == name)
    }

    /// All files, in the archive's order.
    pub fn files(&self) -> &[File<'a>] {
        &self.files
    }
}

/// One entry: header decoded, name and data cut out.
struct Entry<'a> {
    at: usize,
    mode: u32,
    name: &'a str,
    data: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The file that the entry is, or `None` for a directory.
    fn into_file(self) -> Result<Option<File<'a>>, BundleError> {
        let at = self.at;
        let name = self.name.strip_prefix("./").unwrap_or(self.name);
        match self.mode & MODE_MASK {
            MODE_DIRECTORY => return Ok(None),
            MODE_REGULAR => {}
            _ => return Err(BundleError::BadKind { at }),
        }
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(BundleError::BadName { at });
        }
        Ok(Some(File {
            name,
            bytes: self.data,
        }))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    /// The next entry, or `None` for the trailer.
    fn next_entry(&mut self) -> Result<Option<Entry<'a>>, BundleError> {
        let at = self.pos;
        if at >= self.bytes.len() {
            return Err(BundleError::NoTrailer);
        }
        let truncated = BundleError::Truncated { at };
        let header = self.take(HEADER_SIZE).ok_or(truncated)?;
        if !header.starts_with(MAGIC) {
            return Err(BundleError::BadMagic { at });
        }
        // The fields after the magic: ino, mode, uid, gid, nlink, mtime, filesize, devmajor,
        // devminor, rdevmajor, rdevminor, namesize, check.
        let field = |index| hex_field(header, index).ok_or(BundleError::BadNumber { at });
        let (mode, data_len, name_len) = (field(1)?, field(6)?, field(11)?);
        if !(2..=MAX_NAME + 1).contains(&to_usize(name_len)) {
            return Err(BundleError::BadName { at });
        }
        let name = self.take(to_usize(name_len)).ok_or(truncated)?;
        let name = text(name).ok_or(BundleError::BadName { at })?;
        self.align();
        if name == TRAILER {
            return Ok(None);
        }
        let data = self.take(to_usize(data_len)).ok_or(truncated)?;
        self.align();
        Ok(Some(Entry {
            at,
            mode,
            name,
            data,
        }))
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.pos.checked_add(len)?;
        let bytes = self.bytes.get(self.pos..end)?;
        self.pos = end;
        Some(bytes)
    }

    /// Passes the padding; the last of an archive may be missing.
    fn align(&mut self) {
        self.pos = self.pos.next_multiple_of(4).min(self.bytes.len());
    }
}

/// A name without its NUL, where it is printable ASCII.
fn text(name: &[u8]) -> Option<&str> {
    let (&last, name) = name.split_last()?;
    let printable = name.iter().all(u8::is_ascii_graphic);
    (last == 0 && printable)
        .then(|| core::str::from_utf8(name).ok())
        .flatten()
}

/// Saturates where `usize` is smaller, which then is more than any archive has.
fn to_usize(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Field `index` of the numbers in a header.
fn hex_field(header: &[u8], index: usize) -> Option<u32> {
    let start = MAGIC.len() + index * 8;
    let digits = header.get(start..start + 8)?;
    digits.iter().try_fold(0_u32, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some((value << 4) | digit)
    })
}

#[cfg(test)]
pub(crate) mod tests;
