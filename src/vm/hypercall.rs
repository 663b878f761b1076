//! What a guest may ask of Cordon itself: SMCCC calls in the range of vendor-specific hypervisor services
//! (Arm DEN0028, 2.5.4 and 6.2; function identifiers 0x8600_xxxx and 0xC600_xxxx). `docs/protocols.md`
//! has them as tables.
//!
//! Decoding is apart from doing, as with [`super::psci`]: [`Hypercall::decode`] knows the numbers and
//! what their arguments can mean at all; [`super::services`] acts. All arguments are hostile, and the
//! work of one call is bounded by what is decoded here.

use super::protect;
use crate::addr::{Ipa, PAGE_SIZE};
use crate::devmem::{Narrowing, Policy};
use crate::ras::pipeline::Injection;
use crate::ras::repair::How;
use crate::vm::config::IpaRange;

/// Answers of these calls in x0, where they are no success (0). SMCCC has the first two (DEN0028 7.1), the
/// others go on behind its last.
pub mod status {
    /// Unknown function, or one that is not implemented.
    pub const NOT_SUPPORTED: i64 = -1;
    /// An argument makes no sense: not page-aligned, empty, beyond the address space, too many pages,
    /// unknown kind.
    pub const INVALID: i64 = -3;
    /// No memory of this VM begins there.
    pub const NOT_MEMORY: i64 = -4;
    /// Another VM has this memory as well, or this one has injected as many errors as it may.
    pub const DENIED: i64 = -5;
    /// Nothing there is bad.
    pub const NOT_BAD: i64 = -6;
    /// What is bad there cannot be made good.
    pub const STILL_BAD: i64 = -7;
    /// There is no spare page, or no table to map it by itself.
    pub const NO_ROOM: i64 = -8;
}

/// The UUID of these services, 5f1f7ae7-31f5-4f2b-8b62-c0a8a52b9ad4, as UID returns it in w0 to w3: bytes in
/// order, the first in the lowest bits (DEN0028 6.2.2).
pub const UID: [u32; 4] = [0xe77a_1f5f, 0x2b4f_f531, 0xa8c0_628b, 0xd49a_2ba5];

/// The version of these services: major, minor. A call that is added adds to the minor number.
pub const REVISION: (u32, u32) = (1, 1);

/// Most pages that one injection takes.
pub const MAX_INJECTED: u64 = 64;

/// Most pages that one VM can inject errors into, ever: the set of bad pages is everybody's.
pub const MAX_INJECTED_EVER: u64 = 256;

/// Most pages that one call looks through, or acknowledges: 1 GiB.
pub const MAX_RANGE: u64 = 1 << 18;

/// Function identifiers.
pub mod function {
    /// Standard: the UUID.
    pub const UID: u32 = 0x8600_ff01;
    /// Standard: the version.
    pub const REVISION: u32 = 0x8600_ff03;
    /// What there is.
    pub const CAPABILITIES: u32 = 0xc600_0000;
    /// An error in the caller's own memory.
    pub const INJECT: u32 = 0xc600_0001;
    /// What is bad.
    pub const QUERY: u32 = 0xc600_0002;
    /// The caller knows what is bad.
    pub const ACKNOWLEDGE: u32 = 0xc600_0003;
    /// Make good what is bad.
    pub const REPAIR: u32 = 0xc600_0004;
    /// What was counted about the caller's VM.
    pub const COUNTERS: u32 = 0xc600_0005;
    /// What is done about errors from now on.
    pub const POLICY: u32 = 0xc600_0006;
    /// Part of the caller's memory becomes read-only, not executable or of a weaker type, or is as before.
    pub const PROTECT: u32 = 0xc600_0010;
}

/// The calls that are implemented, as CAPABILITIES returns them: bit n for 0xC600_000n.
pub const CALLS: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 16;

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypercall {
    /// Put these into x0 to x3.
    Answer([u64; 4]),
    /// What there is.
    Capabilities,
    /// An error in these pages.
    Inject(Pages, Injection),
    /// How many of these pages are bad, and which is the first?
    Query(Pages),
    /// The guest knows that what is bad of these pages is bad.
    Acknowledge(Pages),
    /// What is bad of these pages is to be made good.
    Repair(Pages, How),
    /// Counters of this group.
    Counters(u64),
    /// What is done when a page goes bad of the memory at this address.
    Policy(Ipa, Policy),
    /// This is taken from these pages.
    Protect(Pages, Narrowing),
}

/// Whole pages of a guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    range: IpaRange,
}

impl Pages {
    /// So many pages from `ipa`; `None` where that is no page, none at all, more than `most`, or wraps
    /// around.
    pub(super) fn new(ipa: u64, pages: u64, most: u64) -> Option<Self> {
        let ipa = Ipa::new(ipa);
        let few = pages <= most && ipa.is_aligned(PAGE_SIZE);
        let range = IpaRange::new(ipa, pages.checked_mul(PAGE_SIZE)?)?;
        few.then_some(Self { range })
    }

    /// Where they are.
    pub const fn range(self) -> IpaRange {
        self.range
    }

    /// How many.
    pub const fn count(self) -> u64 {
        self.range.size() / PAGE_SIZE
    }

    /// The first address of each.
    pub fn iter(self) -> impl Iterator<Item = Ipa> {
        let start = self.range.start().get();
        (0..self.count()).map(move |page| Ipa::new(start + page * PAGE_SIZE))
    }
}

/// An answer of x0 alone.
const fn only(status: i64) -> Hypercall {
    Hypercall::Answer([status.cast_unsigned(), 0, 0, 0])
}

impl Hypercall {
    /// Whether the identifier is in the range of these services: fast calls (bit 31) of owner 6
    /// (bits 29 to 24), in both widths (bit 30).
    pub const fn is_one(function: u32) -> bool {
        function & 0xbf00_0000 == 0x8600_0000
    }

    /// Whether the identifier, which [is one](Self::is_one) of these services', is that of a call that
    /// is not there: its answer is [`status::NOT_SUPPORTED`] whatever the arguments.
    pub const fn is_unknown(function: u32) -> bool {
        let number = function.wrapping_sub(function::CAPABILITIES);
        let announced = number < u64::BITS && CALLS >> number & 1 == 1;
        !announced && function != function::UID && function != function::REVISION
    }

    /// Decodes a call by its w0 and x1 to x3; `None` where it is none of the vendor-specific hypervisor
    /// services.
    pub fn decode(function: u32, [a, b, c]: [u64; 3]) -> Option<Self> {
        if !Self::is_one(function) {
            return None;
        }
        let invalid = only(status::INVALID);
        let on = |most, call: fn(Pages) -> Self| Pages::new(a, b, most).map_or(invalid, call);
        let wide = |[x0, x1, x2, x3]: [u32; 4]| [x0, x1, x2, x3].map(u64::from);
        Some(match function {
            function::UID => Self::Answer(wide(UID)),
            function::REVISION => Self::Answer(wide([REVISION.0, REVISION.1, 0, 0])),
            function::CAPABILITIES => Self::Capabilities,
            function::INJECT => match (Pages::new(a, b, MAX_INJECTED), Injection::from_raw(c)) {
                (Some(pages), Some(kind)) => Self::Inject(pages, kind),
                _ => invalid,
            },
            function::QUERY => on(MAX_RANGE, Self::Query),
            function::ACKNOWLEDGE => on(MAX_RANGE, Self::Acknowledge),
            function::REPAIR => match (Pages::new(a, b, MAX_RANGE), How::from_raw(c)) {
                (Some(pages), Some(how)) => Self::Repair(pages, how),
                _ => invalid,
            },
            function::COUNTERS => Self::Counters(a),
            function::POLICY => {
                Policy::from_raw(b).map_or(invalid, |policy| Self::Policy(Ipa::new(a), policy))
            }
            function::PROTECT => {
                match (Pages::new(a, b, protect::MAX_PAGES), Narrowing::from_raw(c)) {
                    (Some(pages), Some(narrowing)) => Self::Protect(pages, narrowing),
                    _ => invalid,
                }
            }
            _ => only(status::NOT_SUPPORTED),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(function: u32, args: [u64; 3]) -> Hypercall {
        Hypercall::decode(function, args).unwrap()
    }

    #[test]
    fn the_uid_is_the_uuid_byte_by_byte() {
        let words = match decode(0x8600_ff01, [0; 3]) {
            Hypercall::Answer(words) => words,
            _ => [u64::MAX; 4],
        };
        let bytes: std::vec::Vec<u8> = words
            .iter()
            .flat_map(|word| u32::try_from(*word).unwrap().to_le_bytes())
            .collect();
        let text: std::string::String = bytes.iter().map(|b| std::format!("{b:02x}")).collect();
        assert_eq!(text, "5f1f7ae731f54f2b8b62c0a8a52b9ad4");
        assert_eq!(decode(0x8600_ff03, [0; 3]), Hypercall::Answer([1, 1, 0, 0]));
    }

    #[test]
    fn only_fast_calls_of_the_hypervisors_range_are_these() {
        for function in [
            0x8400_0000,
            0xc400_0001,
            0x8700_ff01,
            0x0600_ff01,
            0x4600_0000,
        ] {
            assert_eq!(Hypercall::decode(function, [0; 3]), None, "{function:#x}");
        }
    }

    #[test]
    fn a_range_is_whole_pages_that_exist_and_are_not_too_many() {
        let inject = |ipa, pages, kind| decode(0xc600_0001, [ipa, pages, kind]);
        let invalid = only(status::INVALID);
        assert!(matches!(
            inject(0x1000, MAX_INJECTED, 2),
            Hypercall::Inject(pages, Injection::Required) if pages.count() == MAX_INJECTED
        ));
        for (ipa, pages, kind) in [
            (0x1001, 1, 0),
            (0x1000, 0, 0),
            (0x1000, MAX_INJECTED + 1, 0),
            (!0xfff, 2, 0),
            (0, 1 << 52, 0),
            (0x1000, 1, 3),
        ] {
            assert_eq!(inject(ipa, pages, kind), invalid, "{ipa:#x} {pages} {kind}");
        }
        assert_eq!(decode(0xc600_0002, [0, MAX_RANGE + 1, 0]), invalid);
        assert_eq!(decode(0xc600_0003, [8, 1, 0]), invalid);
    }

    #[test]
    fn what_is_announced_is_what_is_there() {
        for number in 0..32 {
            let call = decode(0xc600_0000 + number, [0, 1, 0]);
            let is_there = call != only(status::NOT_SUPPORTED);
            assert_eq!(CALLS >> number & 1 == 1, is_there, "{number}");
        }
    }

    #[test]
    fn a_call_that_is_not_there_is_known_by_its_number_alone() {
        let starts = [0x8600_0000, 0xc600_0000, 0x8600_ff00, 0xc600_ff00];
        for function in starts.into_iter().flat_map(|start| start..start + 0x50) {
            let not_there = decode(function, [0, 1, 0]) == only(status::NOT_SUPPORTED);
            assert_eq!(Hypercall::is_unknown(function), not_there, "{function:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_arguments_make_more_work_than_is_bounded(function in any::<u32>(), args in any::<[u64; 3]>()) {
            match Hypercall::decode(0x8600_0000 | function & 0x4000_000f, args) {
                Some(Hypercall::Inject(pages, _)) => prop_assert!(pages.count() <= MAX_INJECTED),
                Some(
                    Hypercall::Query(pages)
                    | Hypercall::Acknowledge(pages)
                    | Hypercall::Repair(pages, _),
                ) => {
                    prop_assert!(pages.count() <= MAX_RANGE);
                }
                Some(_) => {}
                None => prop_assert!(false),
            }
        }
    }
}
