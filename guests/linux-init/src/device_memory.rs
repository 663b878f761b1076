//! Memory that is no RAM: what the device tree calls a `pmem-region`, Linux offers as a block device.

use crate::{modules, system};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const DEVICE: &str = "pmem0";
const TREE: &str = "/proc/device-tree";
/// Bytes that go through it.
const MIB: usize = 8;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// Bytes that were written and read.
    pub(crate) bytes: usize,
    /// How many of them came back as others.
    pub(crate) wrong: usize,
}

/// Sends random bytes through the middle of the first region by dd, past the page cache. Nothing is
/// done where there is no such region.
pub(crate) fn check() -> Result<Outcome> {
    if !is_there()? {
        return Ok(Outcome::default());
    }
    modules::load(modules::PMEM)?;
    let device = modules::wait_for(DEVICE)?;
    let size = Path::new("/sys/class/block").join(DEVICE).join("size");
    let sectors: u64 = fs::read_to_string(size)?.trim().parse()?;
    // Of 512 bytes, whatever the device's own are.
    let middle = sectors / 2048 / 2;
    let count = format!("count={MIB}");
    dd(&["if=/dev/urandom", "of=/tmp/pattern", &count])?;
    let device = device.display();
    let (to, from) = (format!("of={device}"), format!("if={device}"));
    let seek = format!("seek={middle}");
    dd(&["if=/tmp/pattern", &to, &seek, &count, "conv=fsync"])?;
    system::drop_caches()?;
    let skip = format!("skip={middle}");
    dd(&[&from, "of=/tmp/back", &skip, &count])?;
    let (pattern, back) = (fs::read("/tmp/pattern")?, fs::read("/tmp/back")?);
    for file in ["/tmp/pattern", "/tmp/back"] {
        fs::remove_file(file)?;
    }
    ensure!(
        back.len() == pattern.len(),
        "{} bytes came back",
        back.len()
    );
    let pairs = pattern.iter().zip(&back);
    Ok(Outcome {
        bytes: back.len(),
        wrong: pairs.filter(|(a, b)| a != b).count(),
    })
}

/// A guest that found its machine by ACPI has no tree.
fn is_there() -> Result<bool> {
    if !Path::new(TREE).exists() {
        return Ok(false);
    }
    for entry in fs::read_dir(TREE).context(TREE)? {
        if entry?.file_name().to_string_lossy().starts_with("pmem@") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// dd by pieces of 1 MiB.
fn dd(operands: &[&str]) -> Result<()> {
    let status = Command::new("/bin/busybox")
        .args(["dd", "bs=1M"])
        .args(operands)
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
