//! What a guest is told, when it starts, of memory that it has lost before: its device tree gets
//!
//! - a child of `/reserved-memory`, with `no-map`, for each run of bad pages in its RAM (Devicetree
//!   Specification 3.5), so that no page allocator ever hands them out, and nothing maps them;
//! - `cordon,bad-ranges` in each `/device-memory@...` node that has bad pages: pairs of address and size,
//!   two cells each, like its `reg`.
//!
//! The tree is not written anew but edited: it is copied token by token, and what is new is put in where
//! the format allows it (Devicetree Specification 5.4: properties before children).

use super::config::{DTB_SIZE, IpaRange};
use crate::addr::{Ipa, PAGE_SIZE};
use alloc::format;
use alloc::vec::Vec;
use core::fmt;

#[cfg(test)]
mod tests;

/// Why a tree could not be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditError {
    /// It is no flattened device tree, or a damaged one.
    Damaged,
    /// It does not fit into [`DTB_SIZE`] any more.
    TooBig,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Damaged => "dtb-damaged",
            Self::TooBig => "dtb-too-big",
        })
    }
}

impl core::error::Error for EditError {}

/// The pages that `ranges` touch, those that follow each other joined. The ranges need not be sorted, nor
/// different.
pub fn runs(ranges: impl Iterator<Item = IpaRange>) -> Vec<IpaRange> {
    let pages = |range: IpaRange| (range.start().page(), range.last().page());
    let mut ranges: Vec<(Ipa, Ipa)> = ranges.map(pages).collect();
    crate::sort::sort(&mut ranges);
    let mut joined: Vec<(Ipa, Ipa)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if end.checked_add(PAGE_SIZE).is_none_or(|next| first <= next) => {
                *end = last.max(*end);
            }
            _ => joined.push((first, last)),
        }
    }
    let whole = |(first, last): (Ipa, Ipa)| {
        let size = last.checked_offset_from(first)?.checked_add(PAGE_SIZE)?;
        IpaRange::new(first, size)
    };
    joined.into_iter().filter_map(whole).collect()
}

/// Where `size` bytes fit into `place` without touching any of `lost`, `step` bytes times a number from
/// its start on: the first such address.
pub fn first_fit(place: IpaRange, size: u64, step: u64, lost: &[IpaRange]) -> Option<Ipa> {
    let mut start = place.start();
    loop {
        let range = IpaRange::new(start, size).filter(|it| place.contains_range(*it))?;
        let Some(hit) = lost.iter().rfind(|lost| lost.overlaps(range)) else {
            return Some(start);
        };
        let behind = hit
            .last()
            .checked_offset_from(place.start())?
            .checked_add(1)?;
        start = place
            .start()
            .checked_add(behind.checked_next_multiple_of(step)?)?;
    }
}

/// The tree `blob` with these memory ranges as bad ones.
///
/// # Errors
/// [`EditError`].
pub fn describe(blob: &[u8], bad: &[IpaRange]) -> Result<Vec<u8>, EditError> {
    let tree = Tree::parse(blob).ok_or(EditError::Damaged)?;
    let mut editor = Editor {
        tree: &tree,
        out: Vec::new(),
        strings: tree.strings.to_vec(),
        bad,
    };
    editor.copy().ok_or(EditError::Damaged)?;
    let edited = tree
        .with(&editor.out, &editor.strings)
        .ok_or(EditError::TooBig)?;
    if edited.len() as u64 <= DTB_SIZE {
        Ok(edited)
    } else {
        Err(EditError::TooBig)
    }
}

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
/// Bytes of the header of version 17 (5.2).
const HEADER: usize = 40;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn index(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(word(bytes, at)?).ok()
}

/// The parts of a flattened tree.
struct Tree<'a> {
    header: &'a [u8],
    reservations: &'a [u8],
    structure: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Tree<'a> {
    fn parse(blob: &'a [u8]) -> Option<Self> {
        let block = |offset, size| {
            let start = index(blob, offset)?;
            blob.get(start..start.checked_add(index(blob, size)?)?)
        };
        let reservations = blob.get(index(blob, 16)?..)?;
        // The last entry is all zero.
        let entries = reservations.chunks_exact(16);
        let last = entries.clone().position(|entry| entry == [0; 16])?;
        (word(blob, 0)? == MAGIC).then_some(Self {
            header: blob.get(..HEADER)?,
            reservations: reservations.get(..(last + 1) * 16)?,
            structure: block(8, 36)?,
            strings: block(12, 32)?,
        })
    }

    /// The tree with another structure and other strings.
    fn with(&self, structure: &[u8], strings: &[u8]) -> Option<Vec<u8>> {
        let structure_at = HEADER + self.reservations.len();
        let strings_at = structure_at.checked_add(structure.len())?;
        let size = strings_at.checked_add(strings.len())?;
        let mut out = Vec::with_capacity(size);
        out.extend_from_slice(self.header);
        for part in [self.reservations, structure, strings] {
            out.extend_from_slice(part);
        }
        let fields = [
            (4, size),
            (8, structure_at),
            (12, strings_at),
            (16, HEADER),
            (32, strings.len()),
            (36, structure.len()),
        ];
        for (at, value) in fields {
            let value = u32::try_from(value).ok()?.to_be_bytes();
            out.get_mut(at..at + 4)?.copy_from_slice(&value);
        }
        Some(out)
    }
}

/// What a child of the root is to this editor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Child {
    Memory,
    DeviceMemory,
    Reserved,
    Other,
}

impl Child {
    fn of(name: &[u8]) -> Self {
        let unit = name.iter().position(|byte| *byte == b'@');
        match name.get(..unit.unwrap_or(name.len())) {
            Some(b"memory") => Self::Memory,
            Some(b"device-memory") => Self::DeviceMemory,
            Some(b"reserved-memory") => Self::Reserved,
            _ => Self::Other,
        }
    }
}

/// Copies a structure block and puts in what is new.
struct Editor<'a> {
    tree: &'a Tree<'a>,
    out: Vec<u8>,
    strings: Vec<u8>,
    bad: &'a [IpaRange],
}

impl<'a> Editor<'a> {
    /// `None` where the block is damaged.
    fn copy(&mut self) -> Option<()> {
        let mut at = 0_usize;
        let mut depth = 0_usize;
        let (mut child, mut memory) = (Child::Other, None);
        let mut open = None;
        let (mut ram, mut reserved) = (None, false);
        loop {
            let (token, next) = self.token(at)?;
            match token {
                Token::Begin(name) => {
                    if depth == 2 {
                        self.close_properties(open.take());
                    }
                    depth += 1;
                    if depth == 2 {
                        (child, memory) = (Child::of(name), None);
                        reserved |= child == Child::Reserved;
                    }
                }
                Token::End => {
                    match depth {
                        2 => {
                            self.close_properties(open.take());
                            if child == Child::Memory {
                                ram = ram.or(memory);
                            }
                            if child == Child::Reserved {
                                self.reserve(ram);
                            }
                        }
                        1 if !reserved => self.reserved_memory(ram),
                        _ => {}
                    }
                    depth = depth.checked_sub(1)?;
                }
                Token::Property { name, value } => {
                    if depth == 2 && name == b"reg" {
                        memory = range(value);
                        open = memory.filter(|_| child == Child::DeviceMemory);
                    }
                }
                Token::Nop => {}
                Token::Finish => {
                    self.out.extend_from_slice(&END.to_be_bytes());
                    return (depth == 0).then_some(());
                }
            }
            self.out
                .extend_from_slice(self.tree.structure.get(at..next)?);
            at = next;
        }
    }

    /// The token at `at`, and where the next one is.
    fn token(&self, at: usize) -> Option<(Token<'a>, usize)> {
        let bytes = self.tree.structure;
        let body = at.checked_add(4)?;
        let token = match word(bytes, at)? {
            BEGIN_NODE => {
                let name = bytes.get(body..)?;
                let name = name.get(..name.iter().position(|byte| *byte == 0)?)?;
                return Some((Token::Begin(name), aligned(body + name.len() + 1)?));
            }
            PROP => {
                let (length, name) = (index(bytes, body)?, index(bytes, body + 4)?);
                let value = bytes.get(body + 8..(body + 8).checked_add(length)?)?;
                let name = self.tree.strings.get(name..)?;
                let name = name.get(..name.iter().position(|byte| *byte == 0)?)?;
                let property = Token::Property { name, value };
                return Some((property, aligned(body + 8 + length)?));
            }
            END_NODE => Token::End,
            NOP => Token::Nop,
            END => Token::Finish,
            _ => return None,
        };
        Some((token, body))
    }

    /// The properties of a node with this memory end here.
    fn close_properties(&mut self, memory: Option<IpaRange>) {
        let Some(memory) = memory else { return };
        let bad = self.bad.iter().filter_map(|bad| overlap(*bad, memory));
        let cells = bad.flat_map(|bad| [bad.start().get(), bad.size()]);
        let value: Vec<u8> = cells.flat_map(u64::to_be_bytes).collect();
        if !value.is_empty() {
            self.property("cordon,bad-ranges", &value);
        }
    }

    fn reserved_memory(&mut self, ram: Option<IpaRange>) {
        if !self.bad.iter().any(|bad| inside(*bad, ram).is_some()) {
            return;
        }
        self.begin("reserved-memory");
        self.property("#address-cells", &2_u32.to_be_bytes());
        self.property("#size-cells", &2_u32.to_be_bytes());
        self.property("ranges", &[]);
        self.reserve(ram);
        self.end();
    }

    /// A node for each run of bad pages in RAM.
    fn reserve(&mut self, ram: Option<IpaRange>) {
        let bad = self.bad;
        for bad in bad.iter().filter_map(|bad| inside(*bad, ram)) {
            let (start, size) = (bad.start().get(), bad.size());
            self.begin(&format!("bad@{start:x}"));
            let reg = [start, size].map(u64::to_be_bytes);
            self.property("reg", reg.as_flattened());
            self.property("no-map", &[]);
            self.end();
        }
    }

    fn begin(&mut self, name: &str) {
        self.out.extend_from_slice(&BEGIN_NODE.to_be_bytes());
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.pad();
    }

    fn end(&mut self) {
        self.out.extend_from_slice(&END_NODE.to_be_bytes());
    }

    fn property(&mut self, name: &str, value: &[u8]) {
        // Lengths and offsets are far below 4 GiB: `describe` refuses the whole long before.
        let words =
            [value.len(), self.string(name)].map(|word| u32::try_from(word).unwrap_or(u32::MAX));
        self.out.extend_from_slice(&PROP.to_be_bytes());
        for word in words {
            self.out.extend_from_slice(&word.to_be_bytes());
        }
        self.out.extend_from_slice(value);
        self.pad();
    }

    /// Where a property's name is; it is added if it is not there.
    fn string(&mut self, name: &str) -> usize {
        let mut at = 0;
        for known in self.strings.split(|byte| *byte == 0) {
            if known == name.as_bytes() && at + known.len() < self.strings.len() {
                return at;
            }
            at += known.len() + 1;
        }
        if self.strings.last().is_some_and(|byte| *byte != 0) {
            self.strings.push(0);
        }
        let at = self.strings.len();
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        at
    }

    fn pad(&mut self) {
        let length = self.out.len().next_multiple_of(4);
        self.out.resize(length, 0);
    }
}

enum Token<'a> {
    Begin(&'a [u8]),
    End,
    Property { name: &'a [u8], value: &'a [u8] },
    Nop,
    Finish,
}

fn aligned(at: usize) -> Option<usize> {
    at.checked_next_multiple_of(4)
}

/// The first pair of address and size of a `reg`, two cells each.
fn range(value: &[u8]) -> Option<IpaRange> {
    let (words, _) = value.as_chunks::<8>();
    let &[start, size, ..] = words else {
        return None;
    };
    IpaRange::new(
        Ipa::new(u64::from_be_bytes(start)),
        u64::from_be_bytes(size),
    )
}

fn inside(bad: IpaRange, ram: Option<IpaRange>) -> Option<IpaRange> {
    overlap(bad, ram?)
}

/// What two ranges share.
fn overlap(a: IpaRange, b: IpaRange) -> Option<IpaRange> {
    let start = a.start().max(b.start());
    let last = a.last().min(b.last());
    let size = last.checked_offset_from(start)?.checked_add(1)?;
    IpaRange::new(start, size)
}
