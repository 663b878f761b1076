//! Addresses at which an access may be tried: anything but the guest's own memory.
//!
//! [`Va`]s are made here alone, which is what makes the functions of `access` and `el0` safe to
//! call: what they read and write is memory that Rust knows nothing of.

use super::{guest, mmu};
use cordon_probe::PAGE_SIZE;
use cordon_probe::layout::Alias;
use cordon_probe::pages::Region;

/// A mapped virtual address of memory that may be lost. It is followed by the rest of its page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Va(u64);

impl Va {
    pub(super) const fn get(self) -> u64 {
        self.0
    }

    /// `offset` bytes further within the page.
    pub(super) const fn offset(self, offset: u64) -> Self {
        Self(self.0 / PAGE_SIZE * PAGE_SIZE + (self.0 + offset) % PAGE_SIZE)
    }

    /// The window that the `table` command maps.
    pub(super) const fn test_window() -> Self {
        Self(mmu::TestWindow::VA)
    }
}

/// A [`Va`] that may be executed at EL1: in a page full of `ret`, or where no memory is described
/// and nothing should answer a fetch.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodeVa(Va);

impl CodeVa {
    pub(super) const fn get(self) -> u64 {
        self.0.get()
    }
}

/// An IPA that may be touched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    ipa: u64,
}

impl Target {
    /// The start of page number `page`.
    pub(super) fn of_page(page: u64) -> Option<Self> {
        guest::get().pages.ipa(page).map(|ipa| Self { ipa })
    }

    /// `ipa` rounded down to a multiple of `align`, which is at most a page. Where there is
    /// neither device memory nor the buffer, the page is mapped now. `None` for the guest's own
    /// memory and for addresses that the guest cannot map.
    pub(super) fn at(ipa: u64, align: u64) -> Option<Self> {
        let guest = guest::get();
        let ipa = ipa / align * align;
        if guest.is_own(ipa) {
            return None;
        }
        if guest.pages.number(ipa).is_none() {
            mmu::map_views(Region {
                ipa: ipa / PAGE_SIZE * PAGE_SIZE,
                pages: 1,
            })?;
        }
        Some(Self { ipa })
    }

    pub(super) const fn ipa(self) -> u64 {
        self.ipa
    }

    /// The page's number, if it is of those that the guest keeps track of.
    pub(super) fn page(self) -> Option<u64> {
        guest::get().pages.number(self.ipa)
    }

    /// The address in one of the views.
    pub(super) fn va(self, alias: Alias) -> Va {
        // Both constructors saw to it that the IPA has few enough bits.
        Va(alias.va(self.ipa).unwrap_or(mmu::TestWindow::VA))
    }

    /// The address in a view to be executed; `None` where that would run the pattern as code.
    pub(super) fn code(self, alias: Alias) -> Option<CodeVa> {
        let is_code = self
            .page()
            .is_none_or(|page| guest::get().code.contains(page));
        is_code.then(|| CodeVa(self.va(alias)))
    }

    /// From now on the page holds something else than `ret`s, or nothing but.
    pub(super) fn set_code(self, is_code: bool) {
        if let Some(page) = self.page() {
            if is_code {
                guest::get().code.set(page);
            } else {
                guest::get().code.clear(page);
            }
        }
    }
}
