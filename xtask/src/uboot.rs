//! Debian's U-Boot for QEMU's `virt`, as it is: fetched once into `target/guests/u-boot/`, and then a
//! file among the images.

use crate::debian::{self, Apt};
use crate::{guests, shell, workspace};
use anyhow::{Context, Result};
use cordon_qemu::scenario::{Boot, Scenario};
use std::fs;
use std::path::Path;

/// What the harness calls it.
const IMAGE: &str = "u-boot.bin";
const SUITES: [&str; 1] = ["trixie"];
const PACKAGE: &str = "u-boot-qemu";
/// Where the package has the one for 64-bit Arm.
const PLACE: &str = "usr/lib/u-boot/qemu_arm64/u-boot.bin";

const INSTEAD: &str = "or put a u-boot.bin for qemu_arm64 at target/guests/u-boot/";

/// Whether any of these is started by it.
pub(crate) fn wanted<'a>(scenarios: impl IntoIterator<Item = &'a Scenario>) -> bool {
    let mut scenarios = scenarios.into_iter();
    scenarios.any(|scenario| scenario.machine.boot == Boot::Uboot)
}

/// Sees to it that it is among the images. Returns its version.
pub(crate) fn ensure() -> Result<String> {
    let directory = workspace::target().join("guests");
    let place = directory.join("u-boot");
    if !place.join(IMAGE).exists() {
        fetch(&directory.join("new-u-boot"), &place)?;
    }
    guests::install(&place.join(IMAGE), &workspace::images().join(IMAGE))?;
    let version = fs::read_to_string(place.join("VERSION")).unwrap_or_default();
    Ok(version.trim().to_owned())
}

/// Downloads into `new`, and moves what is whole to `place`.
fn fetch(new: &Path, place: &Path) -> Result<()> {
    debian::tools(INSTEAD)?;
    debian::clear(new)?;
    let apt = Apt::new(new.join("apt"), "arm64", &SUITES, INSTEAD)?;
    let spinner = shell::spinner("U-Boot: reading Debian's package lists");
    apt.run(&["update"])?;
    spinner.set_message("U-Boot: downloading, about 2 MB");
    apt.run(&["download", PACKAGE])?;
    let root = new.join("root");
    debian::unpack(&apt.archives(), &root)?;
    let whole = new.join("whole");
    fs::create_dir_all(&whole).with_context(|| format!("cannot create {}", whole.display()))?;
    fs::copy(root.join(PLACE), whole.join(IMAGE))
        .with_context(|| format!("{PACKAGE} has no /{PLACE}"))?;
    debian::record(&whole.join("VERSION"), &guests::versions(&apt.archives())?)?;
    debian::clear(place)?;
    fs::rename(&whole, place).context("cannot move U-Boot to its place")?;
    debian::clear(new)?;
    spinner.finish_and_clear();
    Ok(())
}
