//! One node of `vms.dtb` while it is read.
//!
//! A [`Section`] knows the names that an error needs, so that the reader above it says only what
//! it wants. It refuses what it was not asked to know, and what is there twice.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use fdt::node::FdtNode;

use super::{
    ConfigError, DISTRIBUTOR, ERROR_AREA, ERROR_DEVICE, IpaRange, Limits, REDISTRIBUTORS, UART, Why,
};
use crate::addr::{Ipa, PAGE_SIZE};
use crate::platform::bundle::{Bundle, File};
use crate::platform::dt;

/// IPAs that emulated devices answer at, where nothing may be mapped.
const EMULATED: &[(&str, (Ipa, u64))] = &[
    ("gicd", DISTRIBUTOR),
    ("gicr", REDISTRIBUTORS),
    ("pl011", UART),
    ("error-device", ERROR_DEVICE),
    ("error-area", ERROR_AREA),
];

/// A node while it is read, with the names that an error needs.
#[derive(Clone)]
pub(super) struct Section<'b, 'a> {
    /// The VM's label, once that is known.
    pub(super) vm: Option<&'a str>,
    pub(super) path: String,
    pub(super) node: FdtNode<'b, 'a>,
}

impl<'b, 'a> Section<'b, 'a> {
    pub(super) fn error(&self, property: &str, why: Why) -> ConfigError {
        ConfigError::at(self.vm, &self.path, Some(property), why)
    }

    pub(super) fn missing(&self, property: &str) -> ConfigError {
        self.error(property, Why::Missing)
    }

    /// Refuses properties other than `known`, and any that is there twice.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), ConfigError> {
        let mut seen: Vec<&str> = Vec::new();
        for property in self.node.properties() {
            if !known.contains(&property.name) {
                return Err(self.error(property.name, Why::Unknown));
            }
            if seen.contains(&property.name) {
                return Err(self.error(property.name, Why::Duplicate));
            }
            seen.push(property.name);
        }
        Ok(())
    }

    /// The children, whose names are `prefix` and a unit address that is there once; at most `max`.
    pub(super) fn children(&self, prefix: &str, max: usize) -> Result<Vec<Self>, ConfigError> {
        self.children_among(prefix, &[], max)
    }

    /// The children as above, beside others whose names begin with one of `siblings`.
    pub(super) fn children_among(
        &self,
        prefix: &str,
        siblings: &[&str],
        max: usize,
    ) -> Result<Vec<Self>, ConfigError> {
        let mut children: Vec<Self> = Vec::new();
        for node in self.node.children() {
            if siblings.iter().any(|other| node.name.starts_with(other)) {
                continue;
            }
            let path = format!("{}/{}", self.path.trim_end_matches('/'), node.name);
            let error = |why| ConfigError::at(self.vm, &path, None, why);
            let unit = node.name.strip_prefix(prefix).unwrap_or_default();
            if unit.is_empty() || !unit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(error(Why::Unknown));
            }
            if children.iter().any(|other| other.path == path) {
                return Err(error(Why::Duplicate));
            }
            if children.len() == max {
                return Err(error(Why::TooMany { max }));
            }
            children.push(Self {
                vm: self.vm,
                path,
                node,
            });
        }
        Ok(children)
    }

    pub(super) fn no_children(&self) -> Result<(), ConfigError> {
        self.children("", 0).map(|_| ())
    }

    fn value(&self, name: &str) -> Result<&'a [u8], ConfigError> {
        dt::value(self.node, name).ok_or_else(|| self.missing(name))
    }

    pub(super) fn cell(&self, name: &str) -> Result<u32, ConfigError> {
        dt::cell(self.value(name)?).ok_or_else(|| self.error(name, Why::BadValue))
    }

    /// A number of two cells.
    pub(super) fn number(&self, name: &str) -> Result<u64, ConfigError> {
        let value = self.value(name)?;
        let number = dt::number(value).filter(|_| value.len() == 8);
        number.ok_or_else(|| self.error(name, Why::BadValue))
    }

    /// A number of two cells that is a multiple of a page, where the property is there.
    pub(super) fn optional_offset(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        if dt::value(self.node, name).is_none() {
            return Ok(None);
        }
        let value = self.number(name)?;
        if value.is_multiple_of(PAGE_SIZE) {
            Ok(Some(value))
        } else {
            Err(self.error(name, Why::Misaligned { value }))
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<&'a str, ConfigError> {
        dt::text(self.value(name)?).ok_or_else(|| self.error(name, Why::BadValue))
    }

    pub(super) fn optional_text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        dt::value(self.node, name)
            .map(|_| self.text(name))
            .transpose()
    }

    /// The file of the bundle that the property names. An empty one cannot be meant.
    pub(super) fn file(
        &self,
        name: &str,
        bundle: &Bundle<'a>,
    ) -> Result<Option<File<'a>>, ConfigError> {
        let Some(path) = self.optional_text(name)? else {
            return Ok(None);
        };
        let file = bundle.get(path).filter(|file| !file.bytes.is_empty());
        let no_such_file = || {
            self.error(
                name,
                Why::NoSuchFile {
                    name: printable(path),
                },
            )
        };
        file.ok_or_else(no_such_file).map(Some)
    }

    /// A range given by two properties, both multiples of `align` and below the IPA size.
    pub(super) fn range(
        &self,
        start: &str,
        size: &str,
        align: u64,
        limits: Limits,
    ) -> Result<IpaRange, ConfigError> {
        let (start_value, size_value) = (self.number(start)?, self.number(size)?);
        for (name, value) in [(start, start_value), (size, size_value)] {
            if !value.is_multiple_of(align) {
                return Err(self.error(name, Why::Misaligned { value }));
            }
        }
        if size_value == 0 {
            return Err(self.error(size, Why::OutOfRange { value: 0 }));
        }
        let last = (start_value.checked_add(size_value - 1))
            .filter(|last| last.checked_shr(limits.ipa_bits).unwrap_or(0) == 0);
        let range = last.and_then(|_| IpaRange::new(Ipa::new(start_value), size_value));
        range.ok_or_else(|| {
            self.error(
                size,
                Why::BeyondIpa {
                    bits: limits.ipa_bits,
                },
            )
        })
    }

    pub(super) fn not_emulated(&self, property: &str, range: IpaRange) -> Result<(), ConfigError> {
        emulated(range).map_or(Ok(()), |name| {
            let with = name.to_owned();
            Err(self.error(property, Why::Overlap { with }))
        })
    }

    /// Whether a property without a value is there.
    pub(super) fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        match dt::value(self.node, name) {
            None => Ok(false),
            Some([]) => Ok(true),
            Some(_) => Err(self.error(name, Why::BadValue)),
        }
    }

    /// A size in bytes that is a multiple of `align` and not nothing.
    pub(super) fn size(&self, name: &str, align: u64) -> Result<u64, ConfigError> {
        let value = self.number(name)?;
        if !value.is_multiple_of(align) {
            return Err(self.error(name, Why::Misaligned { value }));
        }
        if value == 0 {
            return Err(self.error(name, Why::OutOfRange { value }));
        }
        Ok(value)
    }
}

/// The emulated device that has registers in `range`, if one has.
pub(super) fn emulated(range: IpaRange) -> Option<&'static str> {
    let overlaps = |(start, size): (Ipa, u64)| {
        IpaRange::new(start, size).is_some_and(|device| device.overlaps(range))
    };
    let device = EMULATED.iter().find(|(_, device)| overlaps(*device));
    device.map(|(name, _)| *name)
}

/// A text of the tree as a value of an event line: without blanks, and not without end.
fn printable(text: &str) -> String {
    let printable = |letter: char| {
        if letter.is_ascii_graphic() {
            letter
        } else {
            '?'
        }
    };
    text.chars().take(64).map(printable).collect()
}
