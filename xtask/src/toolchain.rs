//! The parts of the Rust toolchain that bare metal needs, added by rustup where they lack.
//!
//! rust-toolchain.toml names them too, but rustup acts on it only where it may install by itself.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The target of every image.
pub(crate) const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The target of programs for Linux guests, which are static.
pub(crate) const LINUX_TARGET: &str = "aarch64-unknown-linux-musl";

/// Sees to it that the libraries of `target` are there.
pub(crate) fn ensure_target(target: &str) -> Result<()> {
    let libraries = sysroot()?.join("lib/rustlib").join(target).join("lib");
    if !libraries.is_dir() {
        add("target", target)?;
    }
    Ok(())
}

/// Sees to it that the images' target and llvm-tools are there.
pub(crate) fn ensure() -> Result<()> {
    ensure_target(TARGET)?;
    if !objcopy()?.is_file() {
        add("component", "llvm-tools")?;
    }
    Ok(())
}

/// llvm-objcopy of the toolchain.
pub(crate) fn objcopy() -> Result<PathBuf> {
    let version = shell::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("`rustc -vV` names no host")?;
    Ok(sysroot()?
        .join("lib/rustlib")
        .join(host)
        .join("bin/llvm-objcopy"))
}

fn sysroot() -> Result<PathBuf> {
    let path = shell::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(path.trim().into())
}

fn add(kind: &str, name: &str) -> Result<()> {
    let spinner = shell::spinner(format!("rustup {kind} add {name}"));
    let added = shell::output(Command::new("rustup").args([kind, "add", name]));
    spinner.finish_and_clear();
    added.with_context(|| {
        format!("the Rust toolchain lacks the {kind} {name}; add it to the toolchain in use")
    })?;
    Ok(())
}

/// Sees to it that a nightly toolchain with Miri is there. The error says what was tried.
pub(crate) fn ensure_miri() -> Result<()> {
    let toolchains = shell::output(Command::new("rustup").args(["toolchain", "list"]))?;
    if !toolchains.lines().any(|line| line.starts_with("nightly")) {
        bail!("there is no nightly toolchain; `rustup toolchain install nightly` gets one");
    }
    let nightly = ["--toolchain", "nightly"];
    let installed = shell::output(
        Command::new("rustup")
            .args(["component", "list", "--installed"])
            .args(nightly),
    )?;
    for component in ["miri", "rust-src"] {
        if !installed.lines().any(|line| line.starts_with(component)) {
            let mut add = Command::new("rustup");
            shell::output(add.args(["component", "add", component]).args(nightly))?;
        }
    }
    Ok(())
}
