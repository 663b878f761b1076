//! `cargo xtask test`: everything that CI does, one row each.

use crate::{run, shell, toolchain, workspace};
use anyhow::{Context, Result, bail};
use cordon_qemu::scenario::{self, Scenario};
use cordon_qemu::{interrupt, report};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only checks and scenarios whose name contains this.
    filter: Option<String>,
    /// Leave out Miri and fuzzing.
    #[arg(long)]
    quick: bool,
}

/// How long one check on the host may take.
const CHECK_LIMIT: Duration = Duration::from_secs(25 * 60);

/// Seconds of fuzzing, over all targets together.
const FUZZ_SECONDS: u64 = 60;

/// How a row of the table ended.
enum End {
    Passed(String),
    Failed(String),
    Skipped(String),
}

struct Row {
    name: String,
    end: End,
    took: Duration,
}

/// A check on the host.
type Check = (&'static str, fn(&Path) -> Result<End>);

const CHECKS: [Check; 6] = [
    ("fmt", fmt),
    ("clippy-host", clippy_host),
    ("clippy-bare-metal", clippy_bare_metal),
    ("host-tests", host_tests),
    ("miri", miri),
    ("fuzz", fuzz),
];

/// Runs the checks, then the scenarios, one after the other: each has the machine to itself, so
/// that a time limit means the same everywhere. `false` means that something failed.
pub(crate) fn test(args: &Args) -> Result<bool> {
    let wanted = |name: &str| {
        args.filter
            .as_deref()
            .is_none_or(|filter| name.contains(filter))
    };
    let all = scenario::load_all(&workspace::scenarios())?;
    let scenarios: Vec<&Scenario> = all.iter().filter(|s| wanted(s.name())).collect();
    let checks: Vec<&Check> = CHECKS.iter().filter(|(name, _)| wanted(name)).collect();
    if scenarios.is_empty() && checks.is_empty() {
        bail!(
            "no check and no scenario is called like `{}`",
            args.filter.as_deref().unwrap_or("")
        );
    }
    let mut rows = Vec::new();
    for (name, check) in checks {
        let skip = args.quick && matches!(*name, "miri" | "fuzz");
        rows.push(check_row(name, *check, skip)?);
    }
    rows.extend(scenario_rows(&scenarios)?);
    Ok(conclude(&rows))
}

fn check_row(name: &str, check: fn(&Path) -> Result<End>, skip: bool) -> Result<Row> {
    let logs = workspace::target().join("test");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let begun = Instant::now();
    let spinner = shell::spinner(name.to_owned());
    let end = if skip {
        End::Skipped("left out by --quick".into())
    } else {
        check(&logs.join(format!("{name}.log")))
            .unwrap_or_else(|error| End::Failed(format!("{error:#}")))
    };
    spinner.finish_and_clear();
    if interrupt::requested() {
        bail!("interrupted");
    }
    let row = Row {
        name: name.to_owned(),
        end,
        took: begun.elapsed(),
    };
    println!("{}", line(&row));
    Ok(row)
}

fn scenario_rows(scenarios: &[&Scenario]) -> Result<Vec<Row>> {
    if scenarios.is_empty() {
        return Ok(Vec::new());
    }
    let tools = match run::tools() {
        Ok(tools) => tools,
        Err(error) => {
            // Without images or QEMU no scenario can be tried, which is not the same as skipped.
            eprintln!("error: {error:#}");
            let failed = |s: &&Scenario| Row {
                name: s.name().to_owned(),
                end: End::Failed("not run: no images or no QEMU".into()),
                took: Duration::ZERO,
            };
            return Ok(scenarios.iter().map(failed).collect());
        }
    };
    let mut rows = Vec::new();
    for scenario in scenarios {
        let outcome = run::play(&tools, scenario, None, false);
        run::show(scenario, &outcome);
        let verdict = report::verdict(&outcome);
        println!("{verdict}");
        let end = match outcome.result {
            Ok(_) => End::Passed(String::new()),
            Err(failure) => End::Failed(format!("reason={}", failure.reason.word())),
        };
        rows.push(Row {
            name: scenario.name().to_owned(),
            end,
            took: outcome.elapsed,
        });
        if interrupt::requested() {
            bail!("interrupted");
        }
    }
    Ok(rows)
}

fn conclude(rows: &[Row]) -> bool {
    println!("\n{:<24} {:>8}  ", "", "seconds");
    for row in rows {
        println!("{}", line(row));
    }
    let count = |wanted: fn(&End) -> bool| rows.iter().filter(|row| wanted(&row.end)).count();
    let failed = count(|end| matches!(end, End::Failed(_)));
    println!(
        "\n{} passed, {failed} failed, {} skipped",
        count(|end| matches!(end, End::Passed(_))),
        count(|end| matches!(end, End::Skipped(_)))
    );
    failed == 0
}

fn line(row: &Row) -> String {
    let (word, why) = match &row.end {
        End::Passed(what) => ("pass", what),
        End::Failed(why) => ("FAIL", why),
        End::Skipped(why) => ("SKIPPED", why),
    };
    let line = format!(
        "{:<24} {:>8.1}  {word:<8} {why}",
        row.name,
        row.took.as_secs_f64()
    );
    line.trim_end().to_owned()
}

// The checks.

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root()).args(arguments);
    command
}

/// Runs a command to its end and turns a bad one into a row with the last of its output.
fn judge(command: &mut Command, log: &Path) -> Result<End> {
    let status = shell::logged(command, log, CHECK_LIMIT)?;
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
    for package in ["cordon", "cordon-firmware", "cordon-probe"] {
        command.args(["--package", package]);
    }
    judge(command.args(["--", "-D", "warnings"]), log)
}

fn host_tests(log: &Path) -> Result<End> {
    let end = judge(&mut cargo(&["test", "--workspace", "--color=never"]), log)?;
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

fn fuzz(log: &Path) -> Result<End> {
    let directory = workspace::root().join("fuzz");
    let targets = fuzz_targets(&directory.join("fuzz_targets"))?;
    if targets.is_empty() {
        return Ok(End::Skipped(
            "there is no fuzz target in fuzz/fuzz_targets".into(),
        ));
    }
    let seconds = (FUZZ_SECONDS / targets.len() as u64).max(5);
    for target in &targets {
        let mut command = fuzz_command(&directory, target, seconds);
        if let failed @ End::Failed(_) = judge(&mut command, log)? {
            return Ok(failed);
        }
    }
    Ok(End::Passed(format!(
        "{} targets, {seconds} s each",
        targets.len()
    )))
}

fn fuzz_targets(directory: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut targets = Vec::new();
    for entry in entries {
        let path: PathBuf = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem()
        {
            targets.push(stem.to_string_lossy().into_owned());
        }
    }
    targets.sort();
    Ok(targets)
}

/// libFuzzer's instrumentation is a set of LLVM options that the stable compiler takes too. They
/// must not reach build scripts, hence the explicit target.
fn fuzz_command(directory: &Path, target: &str, seconds: u64) -> Command {
    const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
        -Ccodegen-units=1 --cfg=fuzzing -Cdebug-assertions";
    let corpus = directory.join("corpus").join(target);
    let mut command = Command::new("cargo");
    command.current_dir(directory).env("RUSTFLAGS", COVERAGE);
    command.args([
        "run",
        "--release",
        "--color=never",
        "--target",
        env!("XTASK_HOST"),
    ]);
    command.args(["--bin", target, "--"]).arg(corpus);
    command.arg(format!("-max_total_time={seconds}"));
    command.arg("-rss_limit_mb=2048");
    command
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

    #[test]
    fn one_failed_row_fails_the_whole() {
        let row = |end| Row {
            name: "x".into(),
            end,
            took: Duration::ZERO,
        };
        let passed = || row(End::Passed(String::new()));
        let skipped = || row(End::Skipped("why".into()));
        assert!(conclude(&[passed(), skipped()]));
        assert!(!conclude(&[
            passed(),
            row(End::Failed("why".into())),
            skipped()
        ]));
    }
}
