//! The Linux guest: Debian's kernel as it is, and a small initramfs.
//!
//! The kernel and busybox are fetched once into `target/guests/`, by the metapackage's name; the
//! init is one of this workspace's own programs. Both come out as files among the images: `linux`
//! and `linux-initrd`.

use crate::debian::{self, Apt};
use crate::{images, kernel, shell, toolchain, workspace};
use anyhow::{Context, Result};
use cordon_qemu::cpio::Archive;
use cordon_qemu::scenario::Scenario;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What scenarios call the kernel and its initramfs.
const KERNEL: &str = "linux";
const INITRD: &str = "linux-initrd";

const SUITES: [&str; 1] = ["trixie"];
/// The metapackage of the newest kernel for virtual machines, and what its dependency begins with.
const METAPACKAGE: (&str, &str) = ("linux-image-cloud-arm64", "linux-image-");
const BUSYBOX: &str = "busybox-static";
/// Drivers that Debian's kernel has as modules and that the init loads, with their directories among
/// the kernel's.
const MODULES: [(&str, &str); 11] = [
    ("virtio", "virtio_mmio"),
    ("block", "virtio_blk"),
    ("nvdimm", "libnvdimm"),
    ("nvdimm", "nd_btt"),
    ("nvdimm", "nd_pmem"),
    ("nvdimm", "of_pmem"),
    ("acpi/nfit", "nfit"),
    ("acpi/apei", "einj"),
    ("dax", "device_dax"),
    ("dax", "dax_pmem"),
    ("dax/hmem", "dax_hmem"),
];
/// The file that says which of them were looked for when Linux was fetched.
const LOOKED_FOR: &str = "MODULES";

const INSTEAD: &str = "or put an arm64 Image at target/guests/debian/linux and a static busybox \
                       beside it";

/// Whether any of these has a Linux guest.
pub(crate) fn wanted<'a>(scenarios: impl IntoIterator<Item = &'a Scenario>) -> bool {
    let mut vms = scenarios.into_iter().flat_map(|scenario| &scenario.vm);
    vms.any(|vm| vm.kernel.as_ref() == KERNEL)
}

/// Sees to it that both files are among the images. Returns the kernel's version.
pub(crate) fn ensure() -> Result<String> {
    toolchain::ensure_target(toolchain::LINUX_TARGET)?;
    let directory = workspace::target().join("guests");
    let debian = directory.join("debian");
    if !is_complete(&debian) {
        fetch(&directory, &debian)?;
    }
    let images = workspace::images();
    install(&debian.join(KERNEL), &images.join(KERNEL))?;
    let archive = initramfs(&debian.join("busybox"), &debian.join("modules"))?;
    write_new(&images.join(INITRD), &archive)?;
    let version = fs::read_to_string(debian.join("VERSION")).unwrap_or_default();
    Ok(version.trim().to_owned())
}

/// Whether all is there. What a person has put there, and that has no `VERSION`, is theirs: its
/// kernel may have no modules.
fn is_complete(debian: &Path) -> bool {
    let has = |name: &str| debian.join(name).exists();
    let looked_for = fs::read_to_string(debian.join(LOOKED_FOR));
    let has_modules = looked_for.is_ok_and(|names| names.trim() == module_names());
    has(KERNEL) && has("busybox") && (has_modules || !has("VERSION"))
}

fn module_names() -> String {
    MODULES.map(|(_, name)| name).join("\n")
}

fn fetch(directory: &Path, debian: &Path) -> Result<()> {
    debian::tools(INSTEAD)?;
    let new = directory.join("new");
    debian::clear(&new)?;
    let apt = Apt::new(new.join("apt"), "arm64", &SUITES, INSTEAD)?;
    let spinner = shell::spinner("Linux: reading Debian's package lists");
    apt.run(&["update"])?;
    let (metapackage, prefix) = METAPACKAGE;
    let package = apt.dependency(metapackage, prefix)?;
    spinner.set_message(format!("Linux: downloading {package}, about 30 MB"));
    apt.run(&["download", &package, BUSYBOX])?;
    spinner.set_message("Linux: unpacking");
    let root = new.join("root");
    debian::unpack(&apt.archives(), &root)?;
    let release = package.strip_prefix(prefix).unwrap_or(&package);
    let file = root.join("boot").join(format!("vmlinuz-{release}"));
    let packed = fs::read(&file).with_context(|| format!("{package} has no {}", file.display()))?;
    let image = kernel::unpack(&packed).with_context(|| file.display().to_string())?;
    let whole = new.join("whole");
    fs::create_dir_all(&whole).with_context(|| format!("cannot create {}", whole.display()))?;
    fs::write(whole.join(KERNEL), image).context("cannot write the kernel")?;
    fs::copy(root.join("usr/bin/busybox"), whole.join("busybox"))
        .with_context(|| format!("{BUSYBOX} has no /usr/bin/busybox"))?;
    copy_modules(
        &root.join("usr/lib/modules").join(release),
        &whole.join("modules"),
    )?;
    debian::record(&whole.join(LOOKED_FOR), &module_names())?;
    debian::record(&whole.join("VERSION"), &versions(&apt.archives())?)?;
    debian::clear(debian)?;
    fs::rename(&whole, debian).context("cannot move Linux to its place")?;
    debian::clear(&new)?;
    spinner.finish_and_clear();
    Ok(())
}

/// Copies the modules, under whatever compression they have.
fn copy_modules(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for (directory, name) in MODULES {
        let directory = from.join("kernel/drivers").join(directory);
        let is_it = |file: &str| {
            file.strip_prefix(name)
                .is_some_and(|end| end.starts_with(".ko"))
        };
        let found = files(&directory)?.into_iter().find(|file| is_it(file));
        // What is no module is built in.
        if let Some(file) = found {
            fs::copy(directory.join(&file), to.join(&file))
                .with_context(|| format!("cannot copy {file}"))?;
        }
    }
    Ok(())
}

/// The names in a directory, sorted.
fn files(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("no {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The names of the packages that were downloaded, which hold their versions.
pub(crate) fn versions(archives: &Path) -> Result<String> {
    let mut names: Vec<String> = fs::read_dir(archives)?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter_map(|name| name.strip_suffix(".deb").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names.join(" "))
}

/// The initramfs: busybox, the kernel's modules, and this workspace's own init.
fn initramfs(busybox: &Path, modules: &Path) -> Result<Vec<u8>> {
    let init = build_init()?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("no {}", path.display()));
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "lib", "lib/modules", "proc", "sys", "tmp"] {
        archive.directory(directory);
    }
    archive.file("init", 0o755, &read(&init)?);
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    if modules.is_dir() {
        for name in files(modules)? {
            let content = read(&modules.join(&name))?;
            archive.file(&format!("lib/modules/{name}"), 0o644, &content);
        }
    }
    Ok(archive.finish())
}

/// Builds the init and strips it: an initramfs is memory that the guest pays for.
fn build_init() -> Result<PathBuf> {
    const PACKAGE: &str = "cordon-linux-init";
    images::compile(toolchain::LINUX_TARGET, &[PACKAGE], &[])?;
    let release = workspace::target()
        .join(toolchain::LINUX_TARGET)
        .join("release");
    let stripped = release.join("linux-init.stripped");
    shell::output(
        Command::new(toolchain::objcopy()?)
            .arg("--strip-all")
            .arg(release.join("linux-init"))
            .arg(&stripped),
    )?;
    Ok(stripped)
}

/// Copies a file that changes seldom.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    let (a, b) = (fs::metadata(from)?, fs::metadata(to));
    let same = b.is_ok_and(|b| b.len() == a.len() && b.modified().ok() >= a.modified().ok());
    if !same {
        fs::copy(from, to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
