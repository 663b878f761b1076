//! What the kernel says it has lost.

use crate::memory;
use crate::report::report;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Where the kernel counts memory failures, by outcome.
const FAILURES: &str = "/sys/devices/system/node/node0/memory_failure";

/// Reports all its counts in one line.
pub(crate) fn losses() -> Result<()> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let corrupted = number_behind(&meminfo, "HardwareCorrupted:").context("HardwareCorrupted")?;
    let count = |outcome: &str| -> Result<u64> {
        let path = format!("{FAILURES}/{outcome}");
        Ok(fs::read_to_string(&path).context(path)?.trim().parse()?)
    };
    report(&format!(
        "event=losses corrupted_kib={corrupted} total={} recovered={} ignored={} failed={} delayed={} flagged={}",
        count("total")?,
        count("recovered")?,
        count("ignored")?,
        count("failed")?,
        count("delayed")?,
        flagged()?
    ));
    Ok(())
}

/// How many pages of RAM the kernel has marked as bad.
fn flagged() -> Result<usize> {
    let resources = fs::read_to_string("/proc/iomem")?;
    let flags = File::open("/proc/kpageflags").context("kpageflags")?;
    let mut count = 0;
    for (first, last) in memory::ram(&resources) {
        let (first, last) = (first / 4096, last / 4096);
        let mut bytes = vec![0; (last - first + 1) as usize * 8];
        flags.read_exact_at(&mut bytes, first * 8)?;
        count += bad(&bytes);
    }
    Ok(count)
}

/// How many of these entries of /proc/kpageflags, 64 bits each, have `KPF_HWPOISON` (Linux
/// `include/uapi/linux/kernel-page-flags.h`).
fn bad(entries: &[u8]) -> usize {
    const HWPOISON: u32 = 19;
    let is_bad = |entry: &&[u8]| entry[(HWPOISON / 8) as usize] >> (HWPOISON % 8) & 1 != 0;
    entries.chunks_exact(8).filter(is_bad).count()
}

fn number_behind(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_19_of_each_entry_says_that_a_page_is_bad() {
        let entries = [0_u64, 1 << 19, u64::MAX, !(1 << 19)].map(u64::to_le_bytes);
        assert_eq!(bad(entries.as_flattened()), 2);
    }

    #[test]
    fn a_number_is_found_by_its_key() {
        let text = "MemFree: 1 kB\nHardwareCorrupted:     8 kB\n";
        assert_eq!(number_behind(text, "HardwareCorrupted:"), Some(8));
        assert_eq!(number_behind(text, "None:"), None);
    }
}
