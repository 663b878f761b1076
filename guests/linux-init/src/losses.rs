//! What the kernel says it has lost.

use crate::report::report;
use anyhow::{Context, Result};
use std::fs;

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
        "event=losses corrupted_kib={corrupted} total={} recovered={} ignored={} failed={} delayed={}",
        count("total")?,
        count("recovered")?,
        count("ignored")?,
        count("failed")?,
        count("delayed")?
    ));
    Ok(())
}

fn number_behind(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_key() {
        let text = "MemFree: 1 kB\nHardwareCorrupted:     8 kB\n";
        assert_eq!(number_behind(text, "HardwareCorrupted:"), Some(8));
        assert_eq!(number_behind(text, "None:"), None);
    }
}
