//! The guest's virtual addresses.
//!
//! One 48-bit address space (`TTBR0_EL1`). Bits 47 to 45 choose an *alias*, bits 44 to 0 are the
//! IPA. The same device memory is mapped once in each alias that needs other rights: a page that
//! EL0 may write is never executable at EL1 (Arm ARM D8.4.1.2.3), so "EL1 executes" and "EL0
//! writes" cannot be had from one mapping. Alias 0 is the identity, which also holds RAM, the
//! image and the UART; in it an abort's `far` is the IPA itself.

use core::fmt;

/// Bits of an IPA that the guest can map.
pub const IPA_BITS: u32 = 45;

/// One view of the IPA space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Alias {
    /// EL1 reads and writes; identity.
    El1Data = 0,
    /// EL1 reads and executes.
    El1Code = 1,
    /// EL0 (and EL1) reads and writes.
    El0Data = 2,
    /// EL0 reads and executes.
    El0Code = 3,
    /// Not a view: the window that the `table` command maps through a table of its choice.
    TableTest = 4,
    /// Not a view: 1 GiB that an attack maps to wherever it likes, and 1 GiB each that it maps
    /// through a level-2 and a level-3 table of its choice.
    Attack = 5,
    /// Not a view: what an attack maps through a level-1 table of its choice.
    AttackRoot = 6,
}

impl Alias {
    /// The aliases in which device memory is mapped.
    pub const VIEWS: [Self; 4] = [Self::El1Data, Self::El1Code, Self::El0Data, Self::El0Code];

    /// The virtual address of `ipa` in this alias; `None` if the IPA has too many bits.
    pub const fn va(self, ipa: u64) -> Option<u64> {
        if ipa >> IPA_BITS != 0 {
            None
        } else {
            Some((self as u64) << IPA_BITS | ipa)
        }
    }
}

/// The IPA that a virtual address of a view stands for; `None` elsewhere.
pub const fn ipa(va: u64) -> Option<u64> {
    if va >> IPA_BITS < Alias::TableTest as u64 {
        Some(va & ((1 << IPA_BITS) - 1))
    } else {
        None
    }
}

/// How a single touch accesses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A 64-bit load.
    Read,
    /// A 64-bit load from half-way between two such words.
    Unaligned,
    /// A 64-bit store.
    Write,
    /// An instruction fetch.
    Exec,
}

/// From which exception level a single touch is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// EL0.
    El0,
    /// EL1.
    El1,
}

/// One of the kinds of single touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Load, store or fetch.
    pub access: Access,
    /// Who does it.
    pub level: Level,
}

impl Touch {
    /// The view that gives the needed right.
    pub const fn alias(self) -> Alias {
        match (self.access, self.level) {
            (Access::Exec, Level::El0) => Alias::El0Code,
            (Access::Exec, Level::El1) => Alias::El1Code,
            (_, Level::El0) => Alias::El0Data,
            (_, Level::El1) => Alias::El1Data,
        }
    }

    /// The access's size in bytes, to which its address is rounded down.
    pub const fn size(self) -> u64 {
        match self.access {
            Access::Exec => 4,
            Access::Read | Access::Unaligned | Access::Write => 8,
        }
    }

    /// The touch that a command word names.
    pub fn from_word(word: &str) -> Option<Self> {
        let (word, level) = match word.strip_suffix("-el0") {
            Some(word) => (word, Level::El0),
            None => (word, Level::El1),
        };
        let access = match word {
            "read" => Access::Read,
            "read-unaligned" => Access::Unaligned,
            "write" => Access::Write,
            "exec" => Access::Exec,
            _ => return None,
        };
        Some(Self { access, level })
    }
}

impl fmt::Display for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.access {
            Access::Read => "read",
            Access::Unaligned => "read-unaligned",
            Access::Write => "write",
            Access::Exec => "exec",
        })?;
        match self.level {
            Level::El0 => f.write_str("-el0"),
            Level::El1 => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_view_gives_the_ipa_back() {
        for alias in Alias::VIEWS {
            assert_eq!(ipa(alias.va(0x10_0000_1000).unwrap()), Some(0x10_0000_1000));
        }
        assert_eq!(Alias::El1Data.va(0x10_0000_1000), Some(0x10_0000_1000));
        assert_eq!(Alias::El0Code.va(1 << IPA_BITS), None);
        assert_eq!(ipa(Alias::TableTest.va(0).unwrap()), None);
        assert_eq!(ipa(u64::MAX), None);
    }

    #[test]
    fn touches_are_named_as_they_are_typed() {
        for word in [
            "read",
            "read-unaligned",
            "write",
            "exec",
            "read-el0",
            "write-el0",
            "exec-el0",
        ] {
            assert_eq!(Touch::from_word(word).unwrap().to_string(), word);
        }
        assert_eq!(Touch::from_word("read-el1"), None);
    }
}
