//! What the kernel tells of the machine.

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use std::fs;

/// Mounts what programs expect, and puts busybox's programs into /bin.
pub(crate) fn mount_all() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("debugfs", "/sys/kernel/debug"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(target).context(target)?;
        mount(kind, target, kind, MountFlags::empty(), None).context(target)?;
    }
    std::process::Command::new("/bin/busybox")
        .args(["--install", "-s", "/bin"])
        .status()
        .context("/bin/busybox")?;
    Ok(())
}

/// Milliseconds since the kernel began to keep time.
pub(crate) fn uptime_ms() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().unwrap_or_default();
    let digits: String = seconds.chars().filter(char::is_ascii_digit).collect();
    // Two digits after the point.
    digits.parse::<u64>().unwrap_or(0) * 10
}

/// The kernel's own name for its version.
pub(crate) fn kernel_release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// Numbers of the CPUs that are online.
pub(crate) fn online_cpus() -> Result<Vec<usize>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online")?;
    parse_list(text.trim()).with_context(|| format!("not a list of CPUs: {text}"))
}

/// Numbers of the CPUs that the machine has.
pub(crate) fn present_cpus() -> Result<Vec<usize>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/present")?;
    parse_list(text.trim()).with_context(|| format!("not a list of CPUs: {text}"))
}

/// Reads `0-3,5`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        all.extend(first..=last);
    }
    Some(all)
}

/// Interrupts of the architected timer so far, by CPU.
pub(crate) fn timer_ticks() -> Result<Vec<u64>> {
    let text = fs::read_to_string("/proc/interrupts")?;
    parse_ticks(&text).context("no arch_timer in /proc/interrupts")
}

/// Interrupts of a device so far, by all CPUs together; 0 where it has had none, or is not there.
pub(crate) fn interrupts(device: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    Ok(parse_interrupts(&text, device).map_or(0, |counts| counts.iter().sum()))
}

/// Has the kernel forget what it has read of block devices.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")
}

fn parse_ticks(text: &str) -> Option<Vec<u64>> {
    parse_interrupts(text, "arch_timer")
}

fn parse_interrupts(text: &str, device: &str) -> Option<Vec<u64>> {
    let is_it = |line: &&str| line.split_whitespace().last() == Some(device);
    let line = text.lines().find(is_it)?;
    let (_, counts) = line.split_once(':')?;
    Some(
        counts
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_numbers_and_ranges() {
        assert_eq!(parse_list("0"), Some(vec![0]));
        assert_eq!(parse_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("x"), None);
    }

    #[test]
    fn ticks_are_counted_by_cpu() {
        let text = "           CPU0       CPU1\n  9:    1  2  GICv3  25 Level vgic\n\
                    11:        812        733     GICv3  27 Level     arch_timer\n";
        assert_eq!(parse_ticks(text), Some(vec![812, 733]));
        assert_eq!(parse_ticks("nothing"), None);
        let text = "14:    2   5  GICv3  48 Edge      virtio0\n15: 1 1 GICv3 49 Edge virtio01\n";
        assert_eq!(parse_interrupts(text, "virtio0"), Some(vec![2, 5]));
        assert_eq!(parse_interrupts(text, "virtio1"), None);
    }
}
