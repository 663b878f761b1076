//! RAM that nobody uses yet: from the image's end to the device tree or the end of that range of
//! RAM. It is taken page by page and never given back.
#![expect(unsafe_code, reason = "makes words out of free pages")]

use super::image;
use cordon_probe::PAGE_SIZE;
use cordon_probe::bump::Bump;
use cordon_probe::machine::Machine;
use cordon_probe::pages::Region;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::AtomicU64;
use spin::Mutex;

static FREE: Mutex<Bump> = Mutex::new(Bump::new(0..0));

/// Finds the free RAM; all of RAM is mapped by now. The guest's device tree reserves nothing but
/// what is bad and what it occupies itself, and there is no initrd.
pub(super) fn init(machine: &Machine, tree: Region) {
    let image = image::whole();
    let region = machine
        .memory()
        .find(|region| region.page_of(image.start).is_some());
    let end = region.map_or(image.end, |region| region.ipa + region.size());
    let end = if tree.ipa >= image.end {
        end.min(tree.ipa)
    } else {
        end
    };
    *FREE.lock() = Bump::new(machine.largest_good(image.end..end));
}

/// Takes `pages` pages at a multiple of `align`. What is in them is unknown.
pub(super) fn take(pages: u64, align: u64) -> Option<u64> {
    FREE.lock().take(pages, align)
}

/// Takes memory for `count` words, all zero.
pub(super) fn take_words(count: u64) -> Option<&'static [AtomicU64]> {
    let start = take((count * 8).div_ceil(PAGE_SIZE), PAGE_SIZE)?;
    let words = with_exposed_provenance_mut::<AtomicU64>(start as usize);
    let count = usize::try_from(count).ok()?;
    // SAFETY: the pages are mapped, aligned, and nobody else's for ever; zero is a valid AtomicU64.
    unsafe {
        words.write_bytes(0, count);
        Some(core::slice::from_raw_parts(words, count))
    }
}
