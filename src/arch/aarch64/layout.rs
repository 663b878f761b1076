//! Where the linker put things (linker.ld), as addresses. Cordon runs identity-mapped, so they
//! are physical as well.
#![expect(unsafe_code, reason = "linker symbols are extern statics")]

use cordon::addr::{Pa, PaRange};

/// Size of a CPU's stack slot (linker.ld); its lower half is never mapped.
pub const STACK_SLOT_SIZE: u64 = 64 * 1024;

/// CPUs there are stacks for (linker.ld).
pub const MAX_CPUS: usize = 64;

macro_rules! linker_symbols {
    ($($name:ident = $symbol:ident;)*) => {$(
        #[doc = concat!("Address of `", stringify!($symbol), "`.")]
        pub fn $name() -> u64 {
            unsafe extern "C" {
                static $symbol: u8;
            }
            (&raw const $symbol).addr() as u64
        }
    )*};
}

linker_symbols! {
    image_start = __image_start;
    text_end = __text_end;
    relro_end = __relro_end;
    file_end = __file_end;
    bss_end = __bss_end;
    stacks_start = __stacks_start;
    heap_start = __heap_start;
    heap_end = __heap_end;
    image_end = __image_end;
}

/// All memory that is Cordon's own: image, stacks and heap.
pub fn own_memory() -> Option<PaRange> {
    let start = image_start();
    PaRange::new(Pa::new(start), image_end().checked_sub(start)?)
}

/// Top of the stack of CPU number `cpu`.
pub fn stack_top(cpu: usize) -> u64 {
    stacks_start() + STACK_SLOT_SIZE * (cpu as u64 + 1)
}
