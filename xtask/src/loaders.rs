//! Other people's firmware and loaders for QEMU's `virt`, as Debian has them: U-Boot, UEFI, and GRUB. Each is fetched once into
//! `target/guests/`, and then a file among the images.

use crate::debian::{self, Apt};
use crate::{guests, shell, workspace};
use anyhow::{Context, Result};
use cordon_qemu::scenario::{Boot, Scenario};
use std::fs;
use std::path::Path;

const SUITES: [&str; 1] = ["trixie"];

/// A file of firmware.
pub(crate) struct Loader {
    /// What a person calls it.
    name: &'static str,
    /// The ways to come up that need it.
    boots: &'static [Boot],
    /// The directory in `target/guests/`.
    directory: &'static str,
    /// What the harness calls the file.
    image: &'static str,
    package: &'static str,
    /// Where the package has the file.
    place: &'static str,
    megabytes: u32,
}

/// All that there are.
pub(crate) const ALL: [Loader; 3] = [
    Loader {
        name: "U-Boot",
        boots: &[Boot::Uboot],
        directory: "u-boot",
        image: "u-boot.bin",
        package: "u-boot-qemu",
        place: "usr/lib/u-boot/qemu_arm64/u-boot.bin",
        megabytes: 2,
    },
    Loader {
        name: "UEFI",
        boots: &[
            Boot::Uefi,
            Boot::UefiKernel,
            Boot::UefiShell,
            Boot::Grub,
            Boot::UefiEl1,
        ],
        directory: "uefi",
        image: "uefi.fd",
        package: "qemu-efi-aarch64",
        place: "usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
        megabytes: 9,
    },
    Loader {
        name: "GRUB",
        boots: &[Boot::Grub],
        directory: "grub",
        image: "grub.efi",
        package: "grub-efi-arm64-unsigned",
        place: "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi",
        megabytes: 2,
    },
];

/// Sees to it that those which `scenarios` start with are among the images.
pub(crate) fn ensure_for<'a>(scenarios: impl IntoIterator<Item = &'a Scenario>) -> Result<()> {
    let boots: Vec<Boot> = scenarios.into_iter().map(|it| it.machine.boot).collect();
    for loader in &ALL {
        if boots.iter().any(|boot| loader.boots.contains(boot)) {
            loader.ensure()?;
        }
    }
    Ok(())
}

impl Loader {
    /// Sees to it that it is among the images. Returns its name and version.
    pub(crate) fn ensure(&self) -> Result<String> {
        let directory = workspace::target().join("guests");
        let place = directory.join(self.directory);
        if !place.join(self.image).exists() {
            self.fetch(&directory.join(format!("new-{}", self.directory)), &place)?;
        }
        guests::install(
            &place.join(self.image),
            &workspace::images().join(self.image),
        )?;
        let version = fs::read_to_string(place.join("VERSION")).unwrap_or_default();
        Ok(format!("{}: {}", self.name, version.trim()))
    }

    /// Downloads into `new`, and moves what is whole to `place`.
    fn fetch(&self, new: &Path, place: &Path) -> Result<()> {
        let (name, image, package) = (self.name, self.image, self.package);
        let instead = format!("or put {image} at {}", place.display());
        debian::tools(&instead)?;
        debian::clear(new)?;
        let apt = Apt::new(new.join("apt"), "arm64", &SUITES, &instead)?;
        let spinner = shell::spinner(format!("{name}: reading Debian's package lists"));
        apt.run(&["update"])?;
        spinner.set_message(format!("{name}: downloading, about {} MB", self.megabytes));
        apt.run(&["download", package])?;
        let root = new.join("root");
        debian::unpack(&apt.archives(), &root)?;
        let whole = new.join("whole");
        fs::create_dir_all(&whole).with_context(|| format!("cannot create {}", whole.display()))?;
        fs::copy(root.join(self.place), whole.join(image))
            .with_context(|| format!("{package} has no /{}", self.place))?;
        debian::record(&whole.join("VERSION"), &guests::versions(&apt.archives())?)?;
        debian::clear(place)?;
        fs::rename(&whole, place).with_context(|| format!("cannot move {name} to its place"))?;
        debian::clear(new)?;
        spinner.finish_and_clear();
        Ok(())
    }
}
