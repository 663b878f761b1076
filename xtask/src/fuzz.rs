//! Fuzzing: a short run of every target of `fuzz/`, as fuzz/README.md has it by hand.
//!
//! The targets are libFuzzer's. Its instrumentation is an LLVM pass that the stable compiler takes
//! too, so this needs a C++ compiler, but neither a nightly toolchain nor cargo-fuzz.

use crate::checks::judge;
use crate::test::End;
use crate::{shell, workspace};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Seconds of fuzzing, over all targets together.
const SECONDS: u64 = 60;

/// LLVM's SanitizerCoverage, and the checks that a release build leaves out.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

/// The part of fuzz/Cargo.toml that tells targets from other programs.
#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    bin: Vec<Binary>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Binary {
    name: String,
    #[serde(default)]
    required_features: Vec<String>,
}

/// Seeds, builds, and runs each target for its share of the time.
pub(crate) fn fuzz(log: &Path) -> Result<End> {
    let directory = workspace::root().join("fuzz");
    let Ok(manifest) = fs::read_to_string(directory.join("Cargo.toml")) else {
        return Ok(End::Skipped("there is no fuzz/Cargo.toml".into()));
    };
    let targets = targets(&manifest)?;
    if targets.is_empty() {
        return Ok(End::Failed("fuzz/Cargo.toml has no target".into()));
    }
    if shell::output(Command::new("c++").arg("--version")).is_err() {
        return Ok(End::Skipped(
            "libFuzzer wants a C++ compiler, and there is no `c++`".into(),
        ));
    }
    let host = shell::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let host = host.trim();

    if let failed @ End::Failed(_) = prepare(&directory, &targets, host, log)? {
        return Ok(failed);
    }
    let seconds = (SECONDS / targets.len() as u64).max(5);
    for target in &targets {
        let program = directory
            .join("target")
            .join(host)
            .join("release")
            .join(target);
        let log = log.with_extension(format!("{target}.log"));
        if let failed @ End::Failed(_) = drive(&directory, target, &program, seconds, &log)? {
            return Ok(failed);
        }
    }
    Ok(End::Passed(format!(
        "{} targets, {seconds} s each",
        targets.len()
    )))
}

/// Looks at the sources, tries the targets on their seeds, writes the seed corpus, builds the
/// targets. With the compiler's flags of the fuzzers seeds and tests do not link.
fn prepare(directory: &Path, targets: &[String], host: &str, log: &Path) -> Result<End> {
    let mut format = cargo(directory, &["fmt", "--check"]);
    let mut clippy = cargo(directory, &["clippy", "--all-targets", "--color=never"]);
    clippy.args(["--", "-D", "warnings"]);
    let mut test = cargo(
        directory,
        &["test", "--no-default-features", "--color=never"],
    );
    let seeds = ["run", "--quiet", "--no-default-features", "--bin", "seeds"];
    let mut seeds = cargo(directory, &seeds);
    let mut build = cargo(directory, &["build", "--release", "--target", host]);
    build.env("RUSTFLAGS", FLAGS);
    for target in targets {
        build.args(["--bin", target]);
    }
    for command in [&mut format, &mut clippy, &mut test, &mut seeds, &mut build] {
        if let failed @ End::Failed(_) = judge(command, log)? {
            return Ok(failed);
        }
    }
    fs::create_dir_all(directory.join("artifacts")).context("cannot create fuzz/artifacts")?;
    Ok(End::Passed(String::new()))
}

/// Runs one target from its corpus.
fn drive(directory: &Path, target: &str, program: &Path, seconds: u64, log: &Path) -> Result<End> {
    let mut command = Command::new(program);
    command
        .current_dir(directory)
        .arg(directory.join("corpus").join(target));
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-artifact_prefix=artifacts/{target}-"));
    command.args(["-max_len=8192", "-timeout=5", "-rss_limit_mb=2048"]);
    if let failed @ End::Failed(_) = judge(&mut command, log)? {
        return Ok(failed);
    }
    // Without counters libFuzzer is a random generator, and a minute of it proves little.
    let said = fs::read_to_string(log).unwrap_or_default();
    if !said.contains("inline 8-bit counters") {
        return Ok(End::Failed(format!(
            "{target} was built without coverage counters"
        )));
    }
    Ok(End::Passed(String::new()))
}

fn targets(manifest: &str) -> Result<Vec<String>> {
    let manifest: Manifest = toml::from_str(manifest).context("fuzz/Cargo.toml")?;
    let is_target = |binary: &Binary| binary.required_features.iter().any(|f| f == "libfuzzer");
    Ok(manifest
        .bin
        .into_iter()
        .filter(is_target)
        .map(|binary| binary.name)
        .collect())
}

fn cargo(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(directory).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_programs_that_want_libfuzzer() {
        let manifest = "[package]\nname = \"x\"\n[[bin]]\nname = \"cper\"\npath = \"c.rs\"\n\
                        required-features = [\"libfuzzer\"]\n[[bin]]\nname = \"seeds\"\n";
        assert_eq!(targets(manifest).expect("a manifest"), ["cper"]);
        assert!(targets("[[bin]]\n").is_err());
    }
}
