//! `table A` and `table-use`: a stage-1 table in memory that may be lost.
//!
//! A window of 2 MiB (`layout::Alias::TableTest`) is translated by one level-3 table. `table A`
//! writes 512 page descriptors into the page at A, each for the same page of ordinary RAM that
//! holds a known value, makes that page the window's table, and reads through the window.
//! `table-use` reads again. Before each read the window's translation is invalidated (TLBI VAAE1IS,
//! which includes cached table entries), so the read walks the table: if A was lost meanwhile, this
//! is an abort with fault status 0x17, "external abort on translation table walk, level 3", with
//! FAR in the window. After an abort the window gets back a table in ordinary RAM with the same
//! contents, so that the guest goes on, and the next `table-use` succeeds.
//!
//! The page at A has lost its pattern by this: its lines are wrong for `sweep` until a `fill`. A is
//! counted as lost when its walk aborts.

use super::{refuse, touch};
use crate::bare::aborts::Abort;
use crate::bare::mmu::TestWindow;
use crate::bare::report::report;
use crate::bare::target::{Target, Va};
use crate::bare::{access, guest, ram};
use cordon_probe::layout::Alias;
use cordon_probe::paging::{Attributes, ENTRIES, page_descriptor};
use cordon_probe::{PAGE_SIZE, pattern};

/// The window and what it shows.
#[derive(Clone, Copy)]
pub(super) struct TableTest {
    window: TestWindow,
    /// The page of ordinary RAM that every entry maps.
    shown: u64,
    /// What that page holds.
    value: u64,
    /// The page that serves as the table now or did last.
    table: Target,
}

/// `table A`.
pub(super) fn make(test: &mut Option<TableTest>, ipa: u64) {
    let Some(table) = Target::at(ipa, PAGE_SIZE) else {
        return refuse("bad-address");
    };
    let Some(made) = test
        .map(|test| TableTest { table, ..test })
        .or_else(|| TableTest::new(table))
    else {
        return refuse("out-of-memory");
    };
    *test = Some(made);
    made.window.use_good_table();
    if let Err(abort) = made.write_table() {
        return made.lost(&abort);
    }
    made.window.use_table(table.ipa());
    made.look();
}

/// `table-use`.
pub(super) fn use_again(test: &mut Option<TableTest>) {
    match test {
        Some(test) => test.look(),
        None => refuse("no-table"),
    }
}

impl TableTest {
    fn new(table: Target) -> Option<Self> {
        let words = ram::take_words(PAGE_SIZE / 8)?;
        let shown = words.as_ptr().addr() as u64;
        let value = pattern::value(shown);
        words
            .first()?
            .store(value, core::sync::atomic::Ordering::Relaxed);
        Some(Self {
            window: TestWindow::new(shown)?,
            shown,
            value,
            table,
        })
    }

    fn write_table(&self) -> Result<(), Abort> {
        self.table.set_code(false);
        let start = self.table.va(Alias::El1Data);
        let descriptor = page_descriptor(self.shown, Attributes::EL1_DATA);
        (0..ENTRIES as u64).try_for_each(|index| access::store(start.offset(index * 8), descriptor))
    }

    /// Reads through the window, with a walk.
    fn look(&self) {
        TestWindow::invalidate();
        let ipa = self.table.ipa();
        match access::load(Va::test_window()) {
            Ok(value) if value == self.value => {
                report!("event=table ipa={ipa:#x} result=ok value={value:#x}");
            }
            Ok(value) => report!("event=table ipa={ipa:#x} result=wrong value={value:#x}"),
            Err(abort) => {
                self.window.use_good_table();
                self.lost(&abort);
            }
        }
    }

    fn lost(&self, abort: &Abort) {
        if let Some(page) = self.table.page()
            && abort.syndrome().is_external_abort()
        {
            guest::get().ledger.lose(page);
        }
        let ipa = self.table.ipa();
        let result = touch::result(abort);
        let walk = if abort.syndrome().is_external_abort_on_walk() {
            "yes"
        } else {
            "no"
        };
        let Abort { esr, far, .. } = *abort;
        report!("event=table ipa={ipa:#x} result={result} esr={esr:#x} far={far:#x} walk={walk}");
    }
}
