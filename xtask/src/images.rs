//! The images: built for bare metal, then copied flat, as a machine loads them.

use crate::{shell, toolchain, workspace};
use anyhow::{Context, Result, bail};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Whose programs the images are.
const PACKAGES: [&str; 4] = [
    "cordon",
    "cordon-firmware",
    "cordon-probe",
    "cordon-conform",
];

/// Programs and what their images are called.
const IMAGES: [(&str, &str); 5] = [
    ("cordon", "cordon.img"),
    ("cordon-firmware", "firmware.bin"),
    ("firmware-selftest", "selftest.img"),
    ("cordon-probe", "probe.img"),
    ("cordon-conform", "conform.img"),
];

/// How long a build may take, from nothing and on a slow machine.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);

/// An image that was built.
pub(crate) struct Image {
    program: &'static str,
    path: PathBuf,
    bytes: u64,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.bytes.div_ceil(1024);
        write!(
            f,
            "{:<18} {kib:>6} KiB  {}",
            self.program,
            self.path.display()
        )
    }
}

/// Builds all images, release, for the bare-metal target.
pub(crate) fn build() -> Result<Vec<Image>> {
    toolchain::ensure()?;
    let directory = workspace::images();
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    compile(
        toolchain::TARGET,
        &PACKAGES,
        &IMAGES.map(|(program, _)| program),
    )?;
    let objcopy = toolchain::objcopy()?;
    IMAGES
        .iter()
        .map(|(program, name)| flatten(&objcopy, program, &directory.join(name)))
        .collect()
}

/// Size in bytes of the image called `name`, which was built.
pub(crate) fn size(name: &str) -> Result<u64> {
    let path = workspace::images().join(name);
    let data = fs::metadata(&path).with_context(|| format!("no {}", path.display()))?;
    Ok(data.len())
}

/// Builds these programs of these packages, release, for `target`.
pub(crate) fn compile(target: &str, packages: &[&str], programs: &[&str]) -> Result<()> {
    let log = workspace::images().join(format!("build-{target}.log"));
    let mut cargo = Command::new("cargo");
    cargo.current_dir(workspace::root());
    cargo.args(["build", "--release", "--color=never", "--target", target]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    for program in programs {
        cargo.args(["--bin", program]);
    }
    let spinner = shell::spinner("building the images");
    let status = shell::logged(&mut cargo, &log, BUILD_LIMIT);
    spinner.finish_and_clear();
    if !status?.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        bail!("the images do not build:\n{}", shell::tail(&said, 60));
    }
    Ok(())
}

fn flatten(objcopy: &Path, program: &'static str, path: &Path) -> Result<Image> {
    let elf = workspace::target()
        .join(toolchain::TARGET)
        .join("release")
        .join(program);
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let is_fresh = match (modified(&elf), modified(path)) {
        // The image is given its program's time: an older program may be the one that is wanted.
        (Ok(elf), Ok(image)) => elf == image,
        _ => false,
    };
    if !is_fresh {
        shell::output(
            Command::new(objcopy)
                .args(["-O", "binary"])
                .arg(&elf)
                .arg(path),
        )?;
        let time = modified(&elf).with_context(|| format!("no {}", elf.display()))?;
        let image = fs::File::options().write(true).open(path);
        image
            .and_then(|image| image.set_modified(time))
            .with_context(|| format!("cannot date {}", path.display()))?;
    }
    let data = fs::metadata(path).with_context(|| format!("no {}", path.display()))?;
    Ok(Image {
        program,
        path: path.to_owned(),
        bytes: data.len(),
    })
}
