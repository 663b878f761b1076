//! What a load or store does, as a value.

/// XZR, or SP as a base.
pub(super) const R31: u8 = 31;

/// Where an access begins, and what becomes of its base register. Register 31 is SP as a base, and XZR as
/// an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// At this very address: the syndrome has it.
    Absolute(u64),
    /// So many bytes from the instruction.
    Literal(i64),
    /// A base register and an immediate.
    Base {
        /// The base.
        rn: u8,
        /// Bytes.
        offset: i64,
        /// What is written back.
        writeback: Writeback,
    },
    /// The base register alone, to which a register is added afterwards.
    PostRegister {
        /// The base.
        rn: u8,
        /// What is added.
        rm: u8,
    },
    /// A base and an index register.
    Extended {
        /// The base.
        rn: u8,
        /// The index.
        rm: u8,
        /// How the index is widened.
        extend: Extend,
        /// By how many bits it is shifted then.
        shift: u32,
    },
}

/// Whether the base register changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writeback {
    /// It does not.
    None,
    /// The access is at base plus offset, which is written back.
    Before,
    /// The access is at the base; base plus offset is written back.
    After,
}

/// How an index register is widened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    /// Its lower half, unsigned.
    Uxtw,
    /// Its lower half, signed.
    Sxtw,
    /// All of it.
    Lsl,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From memory to registers.
    Load,
    /// From registers to memory.
    Store,
}

/// What an access is ordered against, besides what every access is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Nothing later comes before it.
    pub acquire: bool,
    /// Nothing earlier comes after it.
    pub release: bool,
}

impl Order {
    /// None.
    pub const NONE: Self = Self {
        acquire: false,
        release: false,
    };
    /// Both.
    pub const BOTH: Self = Self {
        acquire: true,
        release: true,
    };
}

/// Which registers are transferred, and how they lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// One general register, or two.
    General {
        /// The first; 31 is XZR.
        rt: u8,
        /// The second.
        rt2: Option<u8>,
        /// Bytes of each in memory: 1, 2, 4 or 8.
        size: u8,
        /// A load that sign-extends.
        signed: bool,
        /// It is used as X, rather than W.
        wide: bool,
    },
    /// One SIMD&FP register, or two.
    Vector {
        /// The first.
        rt: u8,
        /// The second.
        rt2: Option<u8>,
        /// Bytes of each in memory: 1, 2, 4, 8 or 16.
        size: u8,
    },
    /// One to four whole vectors (LD1 to LD4, ST1 to ST4, multiple structures).
    Structures {
        /// The first vector.
        rt: u8,
        /// How many vectors, 1 to 4.
        count: u8,
        /// Their elements alternate in memory; else one vector is behind the other.
        interleaved: bool,
        /// Bytes of an element.
        element: u8,
        /// Bytes of a vector: 8 or 16.
        size: u8,
    },
    /// One element of each of one to four vectors (single structure).
    Lane {
        /// The first vector.
        rt: u8,
        /// How many vectors.
        count: u8,
        /// Bytes of the element.
        element: u8,
        /// Which element.
        index: u8,
    },
    /// One element for all lanes of a vector, for each of one to four (LD1R to LD4R).
    Replicate {
        /// The first vector.
        rt: u8,
        /// How many vectors.
        count: u8,
        /// Bytes of the element.
        element: u8,
        /// Bytes of a vector: 8 or 16.
        size: u8,
    },
}

/// What an atomic instruction makes of memory and its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the instructions")]
pub enum Modify {
    Add,
    Clear,
    ExclusiveOr,
    Set,
    SignedMax,
    SignedMin,
    UnsignedMax,
    UnsignedMin,
    Swap,
}

/// The data of a load-exclusive or of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusive {
    /// Bytes in memory, of a pair together.
    pub size: u8,
    /// The register.
    pub rt: u8,
    /// The second of a pair.
    pub rt2: Option<u8>,
    /// Where.
    pub rn: u8,
    /// How it is ordered.
    pub order: Order,
}

/// An instruction that accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A hint.
    Nothing,
    /// A load or a store.
    Transfer {
        /// Which way.
        direction: Direction,
        /// Where.
        at: Addressing,
        /// What.
        registers: Registers,
        /// How it is ordered.
        order: Order,
        /// With the rights of EL0 (LDTR, STTR).
        unprivileged: bool,
    },
    /// LDADD and its kin, SWP; LDCLRP, LDSETP and SWPP, which have pairs of registers.
    Modify {
        /// What is made of both.
        how: Modify,
        /// Bytes, of a pair together.
        size: u8,
        /// The operand.
        rs: u8,
        /// Takes what was in memory.
        rt: u8,
        /// The upper half of a pair, as the operand and as what takes it.
        upper: Option<u8>,
        /// Where.
        rn: u8,
        /// How it is ordered.
        order: Order,
    },
    /// CAS, and CASP, which has pairs of registers.
    CompareSwap {
        /// Bytes in memory, of a pair together.
        size: u8,
        /// `rs` and `rt` are the first of two registers.
        pair: bool,
        /// What is expected; takes what was in memory.
        rs: u8,
        /// What is written.
        rt: u8,
        /// Where.
        rn: u8,
        /// How it is ordered.
        order: Order,
    },
    /// LDXR, LDXP and their kin.
    LoadExclusive(Exclusive),
    /// STXR, STXP and their kin.
    StoreExclusive {
        /// What is stored.
        what: Exclusive,
        /// The register that takes the status.
        status: u8,
    },
    /// DC ZVA.
    ZeroBlock {
        /// Any address in the block.
        rt: u8,
    },
}
