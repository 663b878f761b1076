//! What the kernel takes for RAM.

use crate::report::report;
use anyhow::{Context, Result};
use std::fs;

/// `memory ADDRESS`: whether the kernel takes this guest-physical address for RAM.
pub(crate) fn memory(address: &str) -> Result<()> {
    let digits = address.trim_start_matches("0x");
    let radix = if digits == address { 10 } else { 16 };
    let address = u64::from_str_radix(digits, radix).context("bad-number")?;
    let resources = fs::read_to_string("/proc/iomem")?;
    report(&format!(
        "event=memory address={address:#x} ram={}",
        is_ram(&resources, address)
    ));
    Ok(())
}

/// Whether it lies in one of /proc/iomem's `System RAM`.
fn is_ram(resources: &str, address: u64) -> bool {
    ram(resources).any(|(first, last)| (first..=last).contains(&address))
}

/// The first and the last byte of each `System RAM` of /proc/iomem.
pub(crate) fn ram(resources: &str) -> impl Iterator<Item = (u64, u64)> {
    let ranges = resources.lines().filter_map(range);
    ranges
        .filter(|(_, _, name)| *name == "System RAM")
        .map(|(first, last, _)| (first, last))
}

/// `  40000000-7fffffff : System RAM`
fn range(line: &str) -> Option<(u64, u64, &str)> {
    let (addresses, name) = line.split_once(" : ")?;
    let (first, last) = addresses.trim().split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(first)?, number(last)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_what_is_called_so_from_the_first_byte_to_the_last() {
        let text = "09000000-09000fff : ARMH0011:00\n40000000-40000fff : System RAM\n  40000800-40000fff : reserved\n";
        assert!(is_ram(text, 0x4000_0000) && is_ram(text, 0x4000_0fff));
        assert!(!is_ram(text, 0x4000_1000) && !is_ram(text, 0x0900_0000));
    }
}
