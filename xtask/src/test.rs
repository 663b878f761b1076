//! `cargo xtask test`: everything that CI does, one row each.

use crate::checks::{self, Check};
use crate::compare::compare;
use crate::{run, shell, workspace};
use anyhow::{Context, Result, bail};
use cordon_qemu::machine::Tools;
use cordon_qemu::outcome::Outcome;
use cordon_qemu::scenario::{self, Scenario};
use cordon_qemu::{interrupt, report};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only checks and scenarios whose name contains this.
    filter: Option<String>,
    /// Leave out Miri and fuzzing.
    #[arg(long)]
    quick: bool,
}

/// How a row of the table ended.
pub(crate) enum End {
    Passed(String),
    Failed(String),
    Skipped(String),
}

struct Row {
    name: String,
    end: End,
    took: Duration,
}

/// Runs the checks, then the scenarios, one after the other: each of these has the machine to itself, so
/// that a time limit means the same everywhere. `false` means that something failed.
pub(crate) fn test(args: &Args) -> Result<bool> {
    let wanted = |name: &str| {
        args.filter
            .as_deref()
            .is_none_or(|filter| name.contains(filter))
    };
    let all = scenario::load_all(&workspace::scenarios())?;
    let scenarios: Vec<&Scenario> = all.iter().filter(|s| wanted(s.name())).collect();
    let groups = checks::ALL.map(|group| {
        let chosen = group.iter().filter(|(name, _)| wanted(name));
        chosen.collect::<Vec<&Check>>()
    });
    if scenarios.is_empty() && groups.iter().all(Vec::is_empty) {
        bail!(
            "no check and no scenario is called like `{}`",
            args.filter.as_deref().unwrap_or("")
        );
    }
    let mut rows = Vec::new();
    for group in &groups {
        rows.extend(check_rows(group, args.quick)?);
    }
    rows.extend(scenario_rows(&all, &scenarios)?);
    Ok(conclude(&rows))
}

/// Makes checks side by side.
fn check_rows(group: &[&Check], quick: bool) -> Result<Vec<Row>> {
    let logs = workspace::target().join("test");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let names: Vec<&str> = group.iter().map(|(name, _)| *name).collect();
    let spinner = (!names.is_empty()).then(|| shell::spinner(names.join(", ")));
    let rows: Vec<Row> = thread::scope(|scope| {
        let begin = |(name, check): &Check| {
            let skip = quick && matches!(*name, "miri" | "fuzz");
            let (log, name, check) = (logs.join(format!("{name}.log")), *name, *check);
            scope.spawn(move || check_row(name, check, skip, &log))
        };
        let running: Vec<_> = group.iter().map(|check| begin(check)).collect();
        let ended = running.into_iter().map(|check| match check.join() {
            Ok(row) => row,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    });
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
    }
    if interrupt::requested() {
        bail!("interrupted");
    }
    rows.iter().for_each(|row| println!("{}", line(row)));
    Ok(rows)
}

fn check_row(name: &str, check: fn(&Path) -> Result<End>, skip: bool, log: &Path) -> Row {
    let begun = Instant::now();
    let end = if skip {
        End::Skipped("left out by --quick".into())
    } else {
        check(log).unwrap_or_else(|error| End::Failed(format!("{error:#}")))
    };
    Row {
        name: name.to_owned(),
        end,
        took: begun.elapsed(),
    }
}

fn scenario_rows(all: &[Scenario], scenarios: &[&Scenario]) -> Result<Vec<Row>> {
    if scenarios.is_empty() {
        return Ok(Vec::new());
    }
    let tools = match run::tools(scenarios) {
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
        let (outcome, mut end) = play_twice(&tools, scenario)?;
        if !compare(&tools, all, scenario, &outcome)? {
            end = End::Failed("slower than its goal, or nothing to compare it with".into());
        }
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

/// Plays a scenario, and one that fails once more: machines that build and test several things at once
/// miss time limits. That it took two tries is part of its row.
fn play_twice(tools: &Tools, scenario: &Scenario) -> Result<(Outcome, End)> {
    let mut first = None;
    loop {
        let outcome = run::play(tools, scenario, None, false);
        run::show(scenario, &outcome);
        println!("{}", report::verdict(&outcome));
        let reason = outcome.result.as_ref().err().map(|it| it.reason.word());
        let end = match (reason, first) {
            (None, None) => End::Passed(String::new()),
            (None, Some(reason)) => {
                End::Passed(format!("at the second try, after reason={reason}"))
            }
            (Some(reason), Some(_)) => End::Failed(format!("reason={reason}, twice")),
            (Some(reason), None) => {
                if interrupt::requested() {
                    bail!("interrupted");
                }
                first = Some(reason);
                keep(&outcome.logs);
                continue;
            }
        };
        return Ok((outcome, end));
    }
}

/// Puts the logs of a first try where the second one leaves them alone.
fn keep(logs: &Path) {
    let kept = logs.with_extension("first-try");
    // There may be none, of an earlier test.
    let _ = fs::remove_dir_all(&kept);
    match fs::rename(logs, &kept) {
        Ok(()) => println!("  kept:      {}", kept.display()),
        Err(error) => eprintln!("cannot keep {}: {error}", logs.display()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
