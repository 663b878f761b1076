//! The instructions that access memory: every size, and every kind that a hypervisor is told nothing
//! about (ISV = 0). The address is in x1; x0, x4 to x7 and v0 to v3 are what is loaded, x2, x3 and x8 to
//! x15 what is stored.
#![expect(unsafe_code, reason = "a table that the assembler makes")]

use cordon_probe::attack::verdict::Kind;
use core::arch::global_asm;

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Its number.
    pub(super) index: usize,
    /// Its encoding.
    pub(super) word: u32,
    pub(super) kind: Kind,
    /// Bytes that it accesses, and a multiple of which it may want its address to be.
    pub(super) size: u64,
    /// A CPU may not have it, EL0 may not use it, or it wants memory of a certain kind.
    pub(super) peculiar: bool,
}

macro_rules! forms {
    ($($kind:ident $size:literal $peculiar:ident $text:literal,)*) => {
        global_asm!(
            ".pushsection .rodata.attack_forms, \"a\"",
            ".arch_extension fp",
            ".arch_extension simd",
            ".arch_extension lse",
            ".arch_extension rcpc",
            ".arch_extension memtag",
            ".arch_extension ls64",
            ".balign 4",
            "attack_forms:",
            $($text,)*
            ".popsection",
        );
        const SHAPES: &[(Kind, u64, bool)] = &[$((Kind::$kind, $size, peculiar!($peculiar)),)*];
    };
}

macro_rules! peculiar {
    (plain) => {
        false
    };
    (odd) => {
        true
    };
}

forms! {
    Load 1 plain "ldrb w0, [x1]",
    Load 2 plain "ldrh w0, [x1]",
    Load 4 plain "ldr w0, [x1]",
    Load 8 plain "ldr x0, [x1]",
    Load 1 plain "ldrsb x0, [x1]",
    Load 1 plain "ldrsb w0, [x1]",
    Load 2 plain "ldrsh x0, [x1]",
    Load 4 plain "ldrsw x0, [x1]",
    Load 4 plain "ldr wzr, [x1]",
    Load 8 plain "ldur x0, [x1]",
    Load 4 plain "ldtr w0, [x1]",
    Load 8 plain "ldp x0, x2, [x1]",
    Load 4 plain "ldp w0, w2, [x1]",
    Load 8 plain "ldnp x0, x2, [x1]",
    Load 4 plain "ldpsw x0, x2, [x1]",
    Load 4 plain "ldr w0, [x1], #4",
    Load 8 plain "ldr x0, [x1, #8]!",
    Load 1 plain "ldr b0, [x1]",
    Load 2 plain "ldr h0, [x1]",
    Load 4 plain "ldr s0, [x1]",
    Load 8 plain "ldr d0, [x1]",
    Load 16 plain "ldr q0, [x1]",
    Load 16 plain "ldp q0, q2, [x1]",
    Load 8 plain "ld1 {{v0.16b}}, [x1]",
    Load 8 plain "ld4 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [x1]",
    Load 4 odd "ldar w0, [x1]",
    Load 8 odd "ldapr x0, [x1]",
    Load 1 odd "ldxrb w0, [x1]",
    Load 4 odd "ldaxr w0, [x1]",
    Load 8 odd "ldxr x0, [x1]",
    Load 16 odd "ldxp x0, x2, [x1]",
    Load 64 odd "ld64b x8, [x1]",
    Atomic 8 odd "ldadd x2, x0, [x1]",
    Atomic 4 odd "swp w2, w0, [x1]",
    Atomic 8 odd "cas x2, x0, [x1]",
    Atomic 16 odd "casp x2, x3, x4, x5, [x1]",
    Store 1 plain "strb w2, [x1]",
    Store 2 plain "strh w2, [x1]",
    Store 4 plain "str w2, [x1]",
    Store 8 plain "str x2, [x1]",
    Store 4 plain "str wzr, [x1]",
    Store 8 plain "stur x2, [x1]",
    Store 4 plain "sttr w2, [x1]",
    Store 8 plain "stp x2, x3, [x1]",
    Store 4 plain "stp w2, w3, [x1]",
    Store 4 plain "str w2, [x1], #4",
    Store 8 plain "str x2, [x1, #8]!",
    Store 4 plain "str s2, [x1]",
    Store 16 plain "str q2, [x1]",
    Store 16 plain "stp q2, q3, [x1]",
    Store 8 plain "st1 {{v0.16b}}, [x1]",
    Store 4 odd "stlr w2, [x1]",
    Store 64 odd "st64b x8, [x1]",
    Store 1 odd "dc zva, x1",
    Perhaps 8 odd "stxr w0, x2, [x1]",
    Perhaps 8 odd "prfm pldl1keep, [x1]",
    Perhaps 8 odd "prfm pstl1strm, [x1]",
    Perhaps 8 odd "dc civac, x1",
    Perhaps 8 odd "dc cvac, x1",
    Perhaps 8 odd "dc ivac, x1",
    Perhaps 8 odd "ic ivau, x1",
    Perhaps 8 odd "at s1e1r, x1",
    Perhaps 8 odd "at s1e1w, x1",
    Perhaps 8 odd "at s1e0r, x1",
    Perhaps 16 odd "ldg x0, [x1]",
    Perhaps 16 odd "stg x1, [x1]",
}

/// How many forms there are.
pub(super) const COUNT: usize = SHAPES.len();

// SAFETY: the table that is assembled above, one word for each shape.
unsafe extern "C" {
    static attack_forms: [u32; COUNT];
}

impl Form {
    /// Form number `index`.
    pub(super) fn get(index: usize) -> Option<Self> {
        let (kind, size, peculiar) = *SHAPES.get(index)?;
        // SAFETY: it is constant and never written.
        let word = *unsafe { &attack_forms }.get(index)?;
        Some(Self {
            index,
            word,
            kind,
            size,
            peculiar,
        })
    }

    /// All forms.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..COUNT).filter_map(Self::get)
    }
}
