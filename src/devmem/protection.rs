//! What parts of a VM's memory are less than the VM was given: read-only, not executable, of a weaker
//! memory type.
//!
//! The guest may ask for that, and so may the operator; each takes back only what it has asked for. The
//! tables show the result, but they are not where it is kept: a table that goes bad is built anew from here,
//! and a page that is moved is mapped again as it is here. There is room for [`MAX_RANGES`] ranges of
//! each, allocated at boot. Ranges that touch and say the same become one.

use crate::addr::Ipa;
use crate::stage2::{Access, Attrs, MemoryType};
use alloc::vec::Vec;
use core::fmt;

/// Most ranges of one VM that one of the two can have.
pub const MAX_RANGES: usize = 32;

/// What is taken from a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    /// It cannot be written.
    pub read_only: bool,
    /// It cannot be executed.
    pub no_execute: bool,
    /// It has this memory type, if that is weaker than what it had.
    pub memory: Option<MemoryType>,
}

impl Narrowing {
    /// Nothing.
    pub const NONE: Self = Self {
        read_only: false,
        no_execute: false,
        memory: None,
    };

    /// From a hypercall's bits: 0 read-only, 1 not executable, 9:8 memory type (0 as given, 1 Normal
    /// Non-cacheable, 2 Device-nGnRE). `None` for any other bit.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        let memory = match raw >> 8 {
            0 => None,
            1 => Some(MemoryType::NormalNc),
            2 => Some(MemoryType::DeviceNGnRE),
            _ => return None,
        };
        if raw & 0xfc != 0 {
            return None;
        }
        Some(Self {
            read_only: raw & 1 != 0,
            no_execute: raw & 2 != 0,
            memory,
        })
    }

    /// From an operator's word: `none`, or one or more of `read-only`, `no-execute`, `non-cacheable` and
    /// `device`, parted by commas.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut all = Self::NONE;
        for word in text.split(',').filter(|_| text != "none") {
            match word {
                "read-only" => all.read_only = true,
                "no-execute" => all.no_execute = true,
                "non-cacheable" => all.memory = Some(MemoryType::NormalNc),
                "device" => all.memory = Some(MemoryType::DeviceNGnRE),
                _ => return None,
            }
        }
        Some(all)
    }

    /// What is left of `attrs`.
    #[must_use]
    pub fn of(self, attrs: Attrs) -> Attrs {
        let memory = self.memory.unwrap_or(attrs.memory);
        Attrs {
            memory: if rank(memory) > rank(attrs.memory) {
                memory
            } else {
                attrs.memory
            },
            access: if self.read_only {
                Access::ReadOnly
            } else {
                attrs.access
            },
            execute: attrs.execute && !self.no_execute,
        }
    }
}

/// The weaker, the higher.
const fn rank(memory: MemoryType) -> u8 {
    match memory {
        MemoryType::NormalWb => 0,
        MemoryType::NormalNc => 1,
        MemoryType::DeviceNGnRE => 2,
    }
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The guest, for its own memory. A reset takes it back.
    Guest,
    /// The operator. Only the operator takes it back.
    Operator,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Guest => "guest",
            Self::Operator => "operator",
        })
    }
}

/// There are too many ranges. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// From the first to the last address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: Ipa,
    last: Ipa,
    narrowing: Narrowing,
}

impl Span {
    fn new(first: Ipa, last: Ipa, narrowing: Narrowing) -> Option<Self> {
        (first <= last).then_some(Self {
            first,
            last,
            narrowing,
        })
    }
}

/// Ranges in order, none of which overlap.
#[derive(Debug)]
struct Ranges {
    spans: Vec<Span>,
    /// The list before the last change, or after.
    other: Vec<Span>,
}

impl Ranges {
    fn new() -> Self {
        // A range in the middle of another makes three of one.
        let room = || Vec::with_capacity(MAX_RANGES + 2);
        Self {
            spans: room(),
            other: room(),
        }
    }

    fn at(&self, ipa: Ipa) -> Narrowing {
        let next = self.spans.partition_point(|span| span.last < ipa);
        let span = self.spans.get(next).filter(|span| span.first <= ipa);
        span.map_or(Narrowing::NONE, |span| span.narrowing)
    }

    /// The first address behind `ipa` that may have something else taken from it than `ipa` has.
    fn edge_behind(&self, ipa: Ipa) -> Option<Ipa> {
        let next = self.spans.partition_point(|span| span.last < ipa);
        let span = self.spans.get(next)?;
        if span.first > ipa {
            Some(span.first)
        } else {
            span.last.checked_add(1)
        }
    }

    /// Whether there was room. [`Self::undo`] takes it back.
    fn set(&mut self, first: Ipa, last: Ipa, narrowing: Narrowing) -> Result<(), TooMany> {
        self.other.clear();
        let before = |span: &Span| {
            let end = Ipa::new(first.get().checked_sub(1)?);
            Span::new(span.first, span.last.min(end), span.narrowing)
        };
        let behind = |span: &Span| {
            let start = last.checked_add(1)?;
            Span::new(span.first.max(start), span.last, span.narrowing)
        };
        let own = Span::new(first, last, narrowing).filter(|_| narrowing != Narrowing::NONE);
        let all = self.spans.iter().filter_map(before).chain(own);
        for span in all.chain(self.spans.iter().filter_map(behind)) {
            match self.other.last_mut() {
                Some(end)
                    if end.narrowing == span.narrowing
                        && end.last.checked_add(1) == Some(span.first) =>
                {
                    end.last = span.last;
                }
                _ => self.other.push(span),
            }
        }
        if self.other.len() > MAX_RANGES {
            return Err(TooMany);
        }
        core::mem::swap(&mut self.spans, &mut self.other);
        Ok(())
    }

    fn undo(&mut self) {
        core::mem::swap(&mut self.spans, &mut self.other);
    }
}

/// What is taken from a VM's memory. The lock around it is a leaf.
#[derive(Debug)]
pub struct Protections {
    guest: Ranges,
    operator: Ranges,
}

impl Protections {
    /// Nothing. Allocates all that it will ever need.
    pub fn new() -> Self {
        Self {
            guest: Ranges::new(),
            operator: Ranges::new(),
        }
    }

    /// What is left at `ipa` of the attributes that it was given.
    pub fn narrowed(&self, ipa: Ipa, given: Attrs) -> Attrs {
        self.guest.at(ipa).of(self.operator.at(ipa).of(given))
    }

    /// The first address behind `ipa` for which [`Self::narrowed`] may answer otherwise.
    pub fn edge_behind(&self, ipa: Ipa) -> Option<Ipa> {
        let edges = [&self.guest, &self.operator].map(|ranges| ranges.edge_behind(ipa));
        edges.into_iter().flatten().min()
    }

    /// From now on, this is what `by` takes from `first` to `last`, whatever it took there before.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn set(
        &mut self,
        by: By,
        (first, last): (Ipa, Ipa),
        narrowing: Narrowing,
    ) -> Result<(), TooMany> {
        self.of(by).set(first, last, narrowing)
    }

    /// Takes the last [`Self::set`] by `by` back, which had succeeded.
    pub fn undo(&mut self, by: By) {
        self.of(by).undo();
    }

    /// The first range that `by` takes something from, if there is one: its first and last address.
    pub fn first(&self, by: By) -> Option<(Ipa, Ipa)> {
        let ranges = match by {
            By::Guest => &self.guest,
            By::Operator => &self.operator,
        };
        ranges.spans.first().map(|span| (span.first, span.last))
    }

    fn of(&mut self, by: By) -> &mut Ranges {
        match by {
            By::Guest => &mut self.guest,
            By::Operator => &mut self.operator,
        }
    }
}

impl Default for Protections {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn pages(first: u64, count: u64) -> (Ipa, Ipa) {
        (Ipa::new(first * PAGE), Ipa::new((first + count) * PAGE - 1))
    }

    fn raw(raw: u64) -> Narrowing {
        Narrowing::from_raw(raw).unwrap()
    }

    #[test]
    fn what_is_taken_adds_up_and_nothing_is_ever_given() {
        let device = raw(0x200);
        assert_eq!(device.of(Attrs::RAM).memory, MemoryType::DeviceNGnRE);
        let weaker = Attrs {
            memory: MemoryType::DeviceNGnRE,
            ..Attrs::RAM
        };
        assert_eq!(raw(0x100).of(weaker).memory, MemoryType::DeviceNGnRE);
        assert_eq!(raw(1).of(Attrs::RAM).access, Access::ReadOnly);
        assert!(!raw(2).of(Attrs::RAM).execute && raw(1).of(Attrs::RAM).execute);
        assert_eq!(Narrowing::NONE.of(Attrs::RAM), Attrs::RAM);
    }

    #[test]
    fn bits_and_words_that_mean_nothing_are_refused() {
        for bits in [4, 0x80, 0x300, 0x1_0000, u64::MAX] {
            assert_eq!(Narrowing::from_raw(bits), None, "{bits:#x}");
        }
        assert_eq!(Narrowing::from_text("none"), Some(Narrowing::NONE));
        assert_eq!(
            Narrowing::from_text("read-only,device"),
            Narrowing::from_raw(0x201)
        );
        for text in ["", "read", "none,read-only", "read-only,"] {
            assert_eq!(Narrowing::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_guest_cannot_give_back_what_the_operator_has_taken() {
        let mut all = Protections::new();
        all.set(By::Operator, pages(1, 2), raw(1)).unwrap();
        all.set(By::Guest, pages(1, 1), Narrowing::NONE).unwrap();
        let at = |page: u64| all.narrowed(Ipa::new(page * PAGE), Attrs::RAM).access;
        assert_eq!(
            [0, 1, 2, 3].map(at),
            [
                Access::ReadWrite,
                Access::ReadOnly,
                Access::ReadOnly,
                Access::ReadWrite
            ]
        );
    }

    #[test]
    fn too_many_ranges_are_refused_and_change_nothing() {
        let mut all = Protections::new();
        for at in 0..MAX_RANGES as u64 {
            all.set(By::Guest, pages(4 * at, 3), raw(1)).unwrap();
        }
        let hole = all.set(By::Guest, pages(1, 1), raw(2));
        assert_eq!(hole, Err(TooMany));
        let at = all.narrowed(Ipa::new(PAGE), Attrs::RAM);
        assert_eq!(at.access, Access::ReadOnly);
        all.set(By::Operator, pages(1, 1), raw(2)).unwrap();
        // What closes a gap makes room.
        all.set(By::Guest, pages(3, 1), raw(1)).unwrap();
        all.set(By::Guest, pages(200, 1), raw(1)).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 1 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        #[cfg_attr(miri, ignore = "slow, and there is nothing unsafe in it")]
        fn ranges_are_what_a_page_by_page_list_would_be(
            steps in prop::collection::vec((0u64..24, 1u64..8, 0u64..4, any::<bool>(), any::<bool>()), 0..40)
        ) {
            let mut all = Protections::new();
            let mut model = [[0_u64; 32]; 2];
            for (first, count, bits, guest, undo) in steps {
                let by = if guest { By::Guest } else { By::Operator };
                all.set(by, pages(first, count), raw(bits)).unwrap();
                if undo {
                    all.undo(by);
                } else {
                    model[usize::from(guest)][first as usize..(first + count) as usize].fill(bits);
                }
                for page in 0..32_u64 {
                    let bits = |page: u64| [0, 1].map(|who: usize| model[who][page as usize]);
                    let [one, other] = bits(page).map(raw);
                    let ipa = Ipa::new(page * PAGE + 5);
                    prop_assert_eq!(all.narrowed(ipa, Attrs::RAM), other.of(one.of(Attrs::RAM)));
                    let change = (page + 1..32).find(|next| bits(*next) != bits(page));
                    let edge = all.edge_behind(ipa).map(|edge| edge.get() / PAGE);
                    prop_assert_eq!(edge, change);
                }
            }
        }
    }
}
