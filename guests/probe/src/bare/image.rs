//! Where the image lies: the linker script's symbols as addresses. RAM is mapped one to one, so
//! they are IPAs as well.

use core::ops::Range;

/// A section group of the image.
pub(super) type Section = Range<u64>;

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident: $start:ident..$end:ident;)*) => {
        $(
            $(#[$doc])*
            pub(super) fn $name() -> Section {
                address(&raw const $start)..address(&raw const $end)
            }
        )*
    };
}

#[expect(
    unsafe_code,
    reason = "the linker script's symbols, of which only the address is used"
)]
// SAFETY: the symbols are defined by probe.ld, and nobody reads or writes through them.
unsafe extern "C" {
    safe static __image_start: u8;
    safe static __image_end: u8;
    safe static __el0_text_start: u8;
    safe static __rodata_start: u8;
    safe static __data_start: u8;
    safe static __fixups_start: u8;
    safe static __fixups_end: u8;
}

sections! {
    /// All of it, `.bss` included.
    whole: __image_start..__image_end;
    /// What EL1 executes.
    text: __image_start..__el0_text_start;
    /// What EL0 executes.
    el0_text: __el0_text_start..__rodata_start;
    /// Constants.
    constants: __rodata_start..__data_start;
    /// Variables and vCPU 0's stack.
    data: __data_start..__image_end;
    /// The fix-up table of `access`.
    fixups: __fixups_start..__fixups_end;
}

fn address(symbol: *const u8) -> u64 {
    symbol.addr() as u64
}
