//! The checks on the host that `cargo xtask test` makes, each a row of its table.

use crate::test::End;
use crate::{fuzz, shell, toolchain, workspace};
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A check's name, and what it does, with all that is said in the file named.
pub(crate) type Check = (&'static str, fn(&Path) -> Result<End>);

/// All of them, quick ones first. Those of a group are made side by side: each has use for one CPU, has files of its
/// own, and takes its time.
pub(crate) const ALL: [&[Check]; 6] = [
    &[("fmt", fmt)],
    &[("clippy-host", clippy_host)],
    &[("clippy-bare-metal", clippy_bare_metal)],
    &[("host-tests", host_tests)],
    &[("races", races)],
    &[("miri", miri), ("fuzz", fuzz::fuzz)],
];

/// How long one check may take.
const LIMIT: Duration = Duration::from_secs(25 * 60);

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args(arguments);
    command
}

/// Runs a command to its end and turns a bad one into a row with the last of its output.
pub(crate) fn judge(command: &mut Command, log: &Path) -> Result<End> {
    let status = shell::logged(command, log, LIMIT)?;
    if status.success() {
        return Ok(End::Passed(String::new()));
    }
    let said = fs::read_to_string(log).unwrap_or_default();
    Ok(End::Failed(format!(
        "see {}\n{}",
        log.display(),
        shell::tail(&said, 40)
    )))
}

fn fmt(log: &Path) -> Result<End> {
    judge(&mut cargo(&["fmt", "--all", "--check"]), log)
}

fn clippy_host(log: &Path) -> Result<End> {
    let mut command = cargo(&["clippy", "--workspace", "--all-targets", "--color=never"]);
    judge(command.args(["--", "-D", "warnings"]), log)
}

fn clippy_bare_metal(log: &Path) -> Result<End> {
    toolchain::ensure()?;
    let mut command = cargo(&["clippy", "--color=never", "--target", toolchain::TARGET]);
    for package in [
        "cordon",
        "cordon-firmware",
        "cordon-probe",
        "cordon-conform",
    ] {
        command.args(["--package", package]);
    }
    judge(command.args(["--", "-D", "warnings"]), log)
}

fn host_tests(log: &Path) -> Result<End> {
    let end = judge(&mut cargo(&["test", "--workspace", "--color=never"]), log)?;
    Ok(with_test_count(end, log))
}

/// Interleavings, with locks that a scheduler knows of.
fn races(log: &Path) -> Result<End> {
    let mut command = cargo(&["test", "--package", "cordon", "--lib", "--color=never"]);
    command.args(["--features", "model", "races::"]);
    let end = judge(&mut command, log)?;
    Ok(with_test_count(end, log))
}

fn miri(log: &Path) -> Result<End> {
    if let Err(error) = toolchain::ensure_miri() {
        return Ok(End::Skipped(format!("no Miri to be had: {error:#}")));
    }
    let mut command = Command::new("rustup");
    command.current_dir(workspace::root());
    command.args([
        "run",
        "nightly",
        "cargo",
        "miri",
        "test",
        "--package",
        "cordon",
        "--lib",
    ]);
    command.args(["--color=never", "--", "stage2::", "devmem::", "ras::"]);
    // proptest asks for the working directory, to keep what failed.
    if std::env::var_os("MIRIFLAGS").is_none() {
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    }
    let end = judge(&mut command, log)?;
    Ok(with_test_count(end, log))
}

/// A run of no test at all proves nothing, so it does not pass.
fn with_test_count(end: End, log: &Path) -> End {
    let End::Passed(_) = end else { return end };
    let said = fs::read_to_string(log).unwrap_or_default();
    match count_tests(&said) {
        0 => End::Failed("not one test was run".into()),
        count => End::Passed(format!("{count} tests")),
    }
}

/// Adds up `test result: ok. 12 passed; ...`.
fn count_tests(said: &str) -> u64 {
    said.lines()
        .filter_map(|line| line.strip_prefix("test result: ok. "))
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_added_up_over_all_packages() {
        let said = "running 2 tests\ntest result: ok. 2 passed; 0 failed\n\
                    test result: ok. 40 passed; 0 failed\ntest result: FAILED. 9 passed\n";
        assert_eq!(count_tests(said), 42);
        assert_eq!(count_tests(""), 0);
    }
}
