//! The bytes of a table, read from the front: lengths, names and constants (ACPI 6.5 section 20.2).

use super::AmlError;
use crate::addr::Pa;

/// A constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data<'a> {
    /// A number.
    Number(u64),
    /// A string, without its NUL.
    Text(&'a [u8]),
    /// A buffer's bytes, as far as they are given.
    Bytes(&'a [u8]),
    /// A package.
    Package,
}

/// What is left to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], AmlError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(AmlError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, AmlError> {
        self.take(1)?.first().copied().ok_or(AmlError::Truncated)
    }

    /// A little-endian number of `size` bytes, 8 at most.
    fn number(&mut self, size: usize) -> Result<u64, AmlError> {
        let bytes = self.take(size)?.iter().rev();
        Ok(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// What a length (`PkgLength`, 20.2.4) encloses. The length counts itself.
    pub(super) fn package(&mut self) -> Result<Self, AmlError> {
        let start = self.0.len();
        let lead = self.byte()?;
        let more = usize::from(lead >> 6);
        let length = if more == 0 {
            u64::from(lead & 0x3f)
        } else {
            self.number(more)? << 4 | u64::from(lead & 0xf)
        };
        let length = usize::try_from(length).map_err(|_| AmlError::Truncated)?;
        let own = start - self.0.len();
        let inner = length.checked_sub(own).ok_or(AmlError::Truncated)?;
        Ok(Self(self.take(inner)?))
    }

    /// A name (20.2.2): returns its last part, which is empty for the root's or no name at all.
    pub(super) fn name(&mut self) -> Result<&'a [u8], AmlError> {
        const SEGMENT: usize = 4;
        let mut lead = self.peek()?;
        while matches!(lead, b'\\' | b'^') {
            self.byte()?;
            lead = self.peek()?;
        }
        let segments = match lead {
            0x00 => {
                self.byte()?;
                return Ok(&[]);
            }
            0x2e => {
                self.byte()?;
                2
            }
            0x2f => {
                self.byte()?;
                usize::from(self.byte()?)
            }
            b'A'..=b'Z' | b'_' => 1,
            other => return Err(AmlError::UnknownTerm(other)),
        };
        let path = self.take(segments * SEGMENT)?;
        Ok(path.last_chunk::<SEGMENT>().map_or(&[], |last| last))
    }

    /// A constant (`DataRefObject`, 20.2.3).
    pub(super) fn data(&mut self) -> Result<Data<'a>, AmlError> {
        Ok(match self.byte()? {
            0x00 => Data::Number(0),
            0x01 => Data::Number(1),
            0xff => Data::Number(u64::MAX),
            0x0a => Data::Number(self.number(1)?),
            0x0b => Data::Number(self.number(2)?),
            0x0c => Data::Number(self.number(4)?),
            0x0e => Data::Number(self.number(8)?),
            0x0d => Data::Text(self.text()?),
            0x11 => {
                let mut buffer = self.package()?;
                match buffer.data()? {
                    Data::Number(_) => Data::Bytes(buffer.0),
                    _ => return Err(AmlError::UnknownTerm(0x11)),
                }
            }
            0x12 | 0x13 => {
                self.package()?;
                Data::Package
            }
            other => return Err(AmlError::UnknownTerm(other)),
        })
    }

    /// An operation region (20.2.5.2) behind its opcode: where it begins, if it is in system memory,
    /// at least 4 bytes long and aligned as a register of that size.
    pub(super) fn region(&mut self) -> Result<Option<Pa>, AmlError> {
        const SYSTEM_MEMORY: u8 = 0;
        self.name()?;
        let space = self.byte()?;
        let (Data::Number(start), Data::Number(length)) = (self.data()?, self.data()?) else {
            return Err(AmlError::UnknownTerm(0x80));
        };
        let usable = space == SYSTEM_MEMORY && length >= 4 && start != 0;
        Ok(Some(Pa::new(start)).filter(|start| usable && start.is_aligned(4)))
    }

    fn text(&mut self) -> Result<&'a [u8], AmlError> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let text = self.take(end.ok_or(AmlError::Truncated)?)?;
        self.byte()?;
        Ok(text)
    }

    fn peek(&self) -> Result<u8, AmlError> {
        self.0.first().copied().ok_or(AmlError::Truncated)
    }
}
