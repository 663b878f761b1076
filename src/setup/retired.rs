//! Pages that were bad before Cordon started: lists in the bundle, and tables in memory.

use super::machine::boot_memory;
use alloc::vec::Vec;
use cordon::addr::{PAGE_SIZE, Pa, PaRange};
use cordon::platform::bundle::Bundle;
use cordon::platform::cmdline::Options;
use cordon::ras::retired::{self, LIST_FILE, RetiredError, TABLE_FILE};

/// All of them. What is wrong with a list or table is said, and the rest of it counts.
pub fn find(bundle: &Bundle<'_>, options: &Options) -> Vec<PaRange> {
    let mut bad = Vec::new();
    if let Some(file) = bundle.get(LIST_FILE) {
        take(&mut bad, LIST_FILE, retired::list(file.bytes));
    }
    if let Some(file) = bundle.get(TABLE_FILE) {
        take(&mut bad, TABLE_FILE, retired::table(file.bytes));
    }
    for at in &options.retired {
        match PaRange::new(*at, PAGE_SIZE).map(boot_memory) {
            Some(Ok(page)) => take(&mut bad, "memory", retired::table(&page)),
            Some(Err(error)) => log::error!("event=error what=retired why={error} at={at}"),
            None => say("memory", at, "why=address-wraps"),
        }
    }
    bad
}

fn say(from: &str, at: &Pa, why: &str) {
    log::error!("event=error what=retired from={from} {why} at={at}");
}

fn take(
    bad: &mut Vec<PaRange>,
    from: &str,
    entries: impl Iterator<Item = Result<PaRange, RetiredError>>,
) {
    for entry in entries {
        match entry {
            Ok(range) => bad.push(range),
            Err(error) => log::error!("event=error what=retired from={from} {error}"),
        }
    }
}
