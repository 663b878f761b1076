//! Properties of a checked device tree as typed values.
//!
//! [`super::fdt`] has proved the blob's structure; what a property *says* is still an allegation.
//! Every function here returns `None` for a value of the wrong length or form and leaves it to the
//! caller, who knows which machine or VM is described, to name the error.

use alloc::vec::Vec;

use fdt::node::FdtNode;

use crate::addr::{Pa, PaRange};

/// Most entries of one `reg` that are read.
pub const MAX_REGS: usize = 256;

/// The raw value of the property `name`.
pub fn value<'a>(node: FdtNode<'_, 'a>, name: &str) -> Option<&'a [u8]> {
    node.property(name).map(|property| property.value)
}

/// The node of `parent`'s children that is called `name`, with or without a unit address.
pub fn child<'b, 'a>(parent: FdtNode<'b, 'a>, name: &str) -> Option<FdtNode<'b, 'a>> {
    parent
        .children()
        .find(|child| base_name(child.name) == name)
}

/// A node's name without its unit address.
pub fn base_name(name: &str) -> &str {
    name.split_once('@').map_or(name, |(base, _)| base)
}

/// One NUL-terminated string that fills the value.
pub fn text(value: &[u8]) -> Option<&str> {
    let (&last, text) = value.split_last()?;
    if last != 0 || text.contains(&0) {
        return None;
    }
    core::str::from_utf8(text).ok()
}

/// The strings of a string list. What follows the last NUL is no string.
pub fn texts(value: &[u8]) -> impl Iterator<Item = &str> {
    value.split_inclusive(|&byte| byte == 0).map_while(text)
}

/// Whether `compatible` lists `wanted`.
pub fn is_compatible(node: FdtNode<'_, '_>, wanted: &str) -> bool {
    value(node, "compatible").is_some_and(|list| lists(list, wanted))
}

/// Whether the string list has `wanted` in it. For whoever asks for several: finding a property means going
/// through all that are before it.
pub fn lists(list: &[u8], wanted: &str) -> bool {
    let wanted = wanted.as_bytes();
    list.split_inclusive(|&byte| byte == 0)
        .any(|one| one.strip_suffix(&[0]) == Some(wanted))
}

/// Whether the normal world may use the device: `status` is absent or `okay`. A device of the
/// secure world is `disabled` here and `okay` in `secure-status`.
pub fn is_usable(node: FdtNode<'_, '_>) -> bool {
    value(node, "status").is_none_or(|status| matches!(text(status), Some("okay" | "ok")))
}

/// One cell.
pub fn cell(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A number of one or two cells.
pub fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => cell(value).map(u64::from),
        8 => Some(u64::from_be_bytes(value.try_into().ok()?)),
        _ => None,
    }
}

/// The value as whole cells.
pub fn cells(value: &[u8]) -> Option<impl Iterator<Item = u32> + '_> {
    let (cells, rest) = value.as_chunks::<4>();
    rest.is_empty()
        .then(|| cells.iter().map(|cell| u32::from_be_bytes(*cell)))
}

/// How the children of a node write addresses, and how these become addresses of the CPU.
#[derive(Clone, Copy)]
pub struct Bus<'p, 'a> {
    /// `#address-cells`.
    pub address_cells: usize,
    /// `#size-cells`.
    pub size_cells: usize,
    /// `ranges`; an absent one means that the CPU cannot reach the children.
    ranges: Option<&'a [u8]>,
    /// The bus that this one is on; `None` for the root, whose addresses are the CPU's.
    parent: Option<&'p Bus<'p, 'a>>,
}

impl<'p, 'a> Bus<'p, 'a> {
    /// The bus that the children of `node` are on, where `node` itself is on `parent`.
    pub fn of(node: FdtNode<'_, 'a>, parent: Option<&'p Bus<'p, 'a>>) -> Self {
        // Devicetree Specification 2.3.5: the defaults are 2 and 1.
        let count = |name, default| {
            value(node, name)
                .and_then(cell)
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(default)
        };
        Self {
            address_cells: count("#address-cells", 2),
            size_cells: count("#size-cells", 1),
            ranges: value(node, "ranges"),
            parent,
        }
    }

    /// The entries of a child's `reg` as ranges of the CPU's addresses. `None` where the value is
    /// no whole number of entries, has more than [`MAX_REGS`], or where one of them is empty,
    /// wraps around or cannot be reached by the CPU.
    pub fn reg(&self, reg: &[u8]) -> Option<Vec<PaRange>> {
        let entry = self.entry_len()?;
        let entries = reg.chunks_exact(entry);
        if reg.is_empty() || !entries.remainder().is_empty() || entries.len() > MAX_REGS {
            return None;
        }
        entries
            .map(|bytes| self.translate(self.range(bytes)?))
            .collect()
    }

    /// The address and size that begin `bytes`.
    fn range(&self, bytes: &[u8]) -> Option<PaRange> {
        let (address, size) = bytes.split_at_checked(self.address_cells.checked_mul(4)?)?;
        PaRange::new(Pa::new(number(address)?), number(size)?)
    }

    /// Length in bytes of an address with a size, where each is one or two cells.
    fn entry_len(&self) -> Option<usize> {
        let fits = |cells| matches!(cells, 1 | 2);
        (fits(self.address_cells) && fits(self.size_cells))
            .then_some((self.address_cells + self.size_cells) * 4)
    }

    /// `range` of this bus as the CPU sees it: through the `ranges` of every bus on the way.
    pub fn translate(&self, range: PaRange) -> Option<PaRange> {
        let Some(parent) = self.parent else {
            return Some(range);
        };
        let ranges = self.ranges?;
        if ranges.is_empty() {
            return parent.translate(range);
        }
        let child_len = self.address_cells.checked_mul(4)?;
        let parent_len = parent.address_cells.checked_mul(4)?;
        let entry = child_len
            .checked_add(parent_len)?
            .checked_add(self.size_cells.checked_mul(4)?)
            .filter(|&len| len > 0)?;
        ranges.chunks_exact(entry).find_map(|bytes| {
            let (child, rest) = bytes.split_at_checked(child_len)?;
            let (above, size) = rest.split_at_checked(parent_len)?;
            let from = PaRange::new(Pa::new(number(child)?), number(size)?)?;
            if !from.contains_range(range) {
                return None;
            }
            let offset = range.start().checked_offset_from(from.start())?;
            let start = Pa::new(number(above)?).checked_add(offset)?;
            parent.translate(PaRange::new(start, range.size())?)
        })
    }
}
