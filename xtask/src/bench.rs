//! `cargo xtask bench`: what things cost, in instructions and bytes, beside goals and peers.
//!
//! The scenarios in tests/qemu/bench are played with QEMU's `-icount`: the counter counts instructions
//! then, so every figure is exact and the same on every host. tests/qemu/goals.toml says what is
//! printed. See docs/performance.md.

use crate::{images, run, workspace};
use anyhow::{Context, Result, bail, ensure};
use cordon_qemu::line::parse_number;
use cordon_qemu::machine::Tools;
use cordon_qemu::outcome::Outcome;
use cordon_qemu::scenario::{self, Scenario};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only figures whose name contains this.
    filter: Option<String>,
    /// Write the figures to this file as well, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// tests/qemu/goals.toml.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Goals {
    figure: Vec<Figure>,
}

/// One thing that is measured.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Figure {
    name: String,
    what: String,
    unit: String,
    goal: Option<f64>,
    /// The goal is the least there may be, not the most.
    #[serde(default)]
    at_least: bool,
    /// The value is that of the first of these by that of the second.
    ratio: Option<[String; 2]>,
    #[serde(default)]
    peers: BTreeMap<String, f64>,
}

impl Figure {
    /// Whether it is the value `name`, or made of it.
    fn needs(&self, name: &str) -> bool {
        let mut parts = self.ratio.iter().flatten();
        self.name == name || parts.any(|part| part == name)
    }
}

/// A figure with its value, as a row of the table and an object of the JSON file.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    what: &'a str,
    value: f64,
    unit: &'a str,
    goal: Option<f64>,
    met: Option<bool>,
    /// Value by goal.
    ratio: Option<f64>,
    peers: &'a BTreeMap<String, f64>,
}

type Values = BTreeMap<String, f64>;

/// Measures, prints, and writes the file. `false` where a goal is not met.
pub(crate) fn bench(args: &Args) -> Result<bool> {
    let goals = goals()?;
    let filter = args.filter.as_deref().unwrap_or_default();
    let wanted = goals.figure.iter().filter(|it| it.name.contains(filter));
    let wanted: Vec<&Figure> = wanted.collect();
    ensure!(
        !wanted.is_empty(),
        "no figure in tests/qemu/goals.toml has `{filter}` in its name"
    );
    let values = measure(&wanted)?;
    let unknown = |name: &&String| !goals.figure.iter().any(|it| it.needs(name));
    if let Some(name) = values.keys().find(unknown) {
        bail!("{name} is measured, but not in tests/qemu/goals.toml");
    }
    let rows = wanted.into_iter().map(|figure| row(figure, &values));
    let rows: Vec<Row<'_>> = rows.collect::<Result<_>>()?;
    print(&rows);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(rows.iter().all(|row| row.met != Some(false)))
}

fn goals() -> Result<Goals> {
    let path = workspace::root().join("tests/qemu/goals.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("bad {}", path.display()))
}

/// Where the scenarios are.
fn directory() -> PathBuf {
    workspace::root().join("tests/qemu/bench")
}

/// What `figures` need, by name, and what is measured with it.
fn measure(figures: &[&Figure]) -> Result<Values> {
    let scenarios = scenario::load_all(&directory())?;
    let chosen = needed(&scenarios, figures);
    let tools = run::tools(&chosen)?;
    let mut values = play_all(&tools, &chosen)?;
    values.insert("image".into(), number(images::size("cordon.img")?));
    let node = size_of::<cordon::ras::poison::PoisonedPage>();
    values.insert("bookkeeping".into(), number(node as u64));
    Ok(values)
}

/// The benchmarks that `figures` need: those that name one of them, and those that leave the naming to the guest if
/// one is named by nobody.
fn needed<'a>(scenarios: &'a [Scenario], figures: &[&Figure]) -> Vec<&'a Scenario> {
    let names = |it: &Scenario| named_by(it).any(|name| figures.iter().any(|it| it.needs(name)));
    let is_named = |figure: &&Figure| {
        let mut all = scenarios.iter().flat_map(named_by);
        OF_THE_IMAGE.contains(&figure.name.as_str()) || all.any(|name| figure.needs(name))
    };
    let asks_guests = !figures.iter().all(is_named);
    let chosen = scenarios.iter();
    chosen
        .filter(|it| names(it) || asks_guests && it.figures.is_empty())
        .collect()
}

/// Figures that no benchmark is played for.
const OF_THE_IMAGE: [&str; 2] = ["image", "bookkeeping"];

/// The figures that a benchmark names.
fn named_by(scenario: &Scenario) -> impl Iterator<Item = &str> {
    let figures = scenario.figures.iter();
    figures.filter_map(|figure| Some(figure.as_ref().split_once('=')?.0))
}

/// A figure that is the quotient of two that scenarios name as theirs.
pub(crate) struct Quotient {
    pub(crate) what: String,
    pub(crate) above: f64,
    pub(crate) below: f64,
    pub(crate) goal: f64,
}

impl Quotient {
    pub(crate) fn value(&self) -> f64 {
        self.above / self.below
    }

    pub(crate) fn is_met(&self) -> bool {
        self.value() <= self.goal
    }
}

/// Measures the quotient that is called `name`, and no more than it takes.
pub(crate) fn quotient(name: &str) -> Result<Quotient> {
    let goals = goals()?;
    let figure = goals.figure.iter().find(|figure| figure.name == name);
    let figure = figure.with_context(|| format!("tests/qemu/goals.toml has no `{name}`"))?;
    let (Some([above, below]), Some(goal)) = (&figure.ratio, figure.goal) else {
        bail!("`{name}` in tests/qemu/goals.toml has no ratio, or no goal");
    };
    let scenarios = scenario::load_all(&directory())?;
    let chosen = needed(&scenarios, &[figure]);
    let values = play_all(&run::tools(&chosen)?, &chosen)?;
    let value = |name: &String| {
        let value = values.get(name).copied();
        value.with_context(|| format!("{name} was not measured"))
    };
    Ok(Quotient {
        what: figure.what.clone(),
        above: value(above)?,
        below: value(below)?,
        goal,
    })
}

/// Plays benchmarks, each in all its rounds.
fn play_all(tools: &Tools, scenarios: &[&Scenario]) -> Result<Values> {
    let mut medians = Values::new();
    for scenario in scenarios {
        let mut rounds: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for round in 1..=scenario.rounds {
            let mut scenario = (*scenario).clone();
            scenario.machine.entropy = Some(round);
            for (name, value) in play_once(tools, &scenario)? {
                rounds.entry(name).or_default().push(value);
            }
        }
        for (name, values) in rounds {
            ensure!(!medians.contains_key(&name), "{name} is measured twice");
            medians.insert(name, median(values));
        }
    }
    Ok(medians)
}

fn play_once(tools: &Tools, scenario: &Scenario) -> Result<Values> {
    let outcome = run::play(tools, scenario, None, false);
    if outcome.result.is_err() {
        run::show(scenario, &outcome);
        bail!("the benchmark {} could not be run", scenario.name());
    }
    let mut values = Values::new();
    collect(&outcome, &mut values)?;
    Ok(values)
}

/// The middle one, of an even number the larger of both: a figure is one that was measured.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Adds the figures of a run, and what lines `event=bench` say.
fn collect(outcome: &Outcome, values: &mut Values) -> Result<()> {
    let figures = outcome.result.iter().flatten().cloned();
    let lines = outcome.seen.iter().map(|seen| &seen.line);
    let said = lines.filter_map(|line| {
        (line.is_guest("bench"))
            .then(|| Some((line.get("name")?.to_owned(), line.get("value")?.to_owned())))?
    });
    for (name, text) in figures.chain(said) {
        let value = parse_number(&text).with_context(|| format!("{name}={text} is no number"))?;
        ensure!(
            values.insert(name.clone(), number(value)).is_none(),
            "{name} is measured twice"
        );
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "no figure comes near 2^53")]
fn number(value: u64) -> f64 {
    value as f64
}

fn row<'a>(figure: &'a Figure, values: &Values) -> Result<Row<'a>> {
    let value = |name: &String| {
        let value = values.get(name).copied();
        value.with_context(|| format!("{name} was not measured"))
    };
    let value = match &figure.ratio {
        Some([above, below]) => value(above)? / value(below)?,
        None => value(&figure.name)?,
    };
    let met = |goal: f64| {
        if figure.at_least {
            value >= goal
        } else {
            value <= goal
        }
    };
    Ok(Row {
        name: &figure.name,
        what: &figure.what,
        value,
        unit: &figure.unit,
        goal: figure.goal,
        met: figure.goal.map(met),
        ratio: figure.goal.map(|goal| value / goal),
        peers: &figure.peers,
    })
}

fn print(rows: &[Row<'_>]) {
    let plain = |value: f64| match value.fract() == 0.0 {
        true => format!("{value}"),
        false => format!("{value:.4}"),
    };
    println!(
        "{:<42} {:>11} {:<12} {:>9} {:>6}  {:<4} peers",
        "", "value", "unit", "goal", "ratio", "met"
    );
    for row in rows {
        let met = match row.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        let peers = row.peers.iter();
        let peers: Vec<String> = peers.map(|(who, value)| format!("{who}={value}")).collect();
        let line = format!(
            "{:<42} {:>11} {:<12} {:>9} {:>6}  {met:<4} {}",
            row.what,
            plain(row.value),
            row.unit,
            row.goal.map(plain).unwrap_or_default(),
            row.ratio
                .map(|ratio| format!("{ratio:.2}"))
                .unwrap_or_default(),
            peers.join(" ")
        );
        println!("{}", line.trim_end());
    }
    let count = |wanted: bool| rows.iter().filter(|row| row.met == Some(wanted)).count();
    println!("\n{} goals met, {} not", count(true), count(false));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(text: &str) -> Figure {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_goal_is_met_from_its_right_side() {
        let values = Values::from([("a".into(), 3.0), ("b".into(), 4.0)]);
        let met = |text: &str| {
            let figure = figure(text);
            let row = row(&figure, &values).unwrap();
            (row.value, row.met)
        };
        let head = "what = 'x'\nunit = 'y'\n";
        assert_eq!(
            met(&format!("{head}name = 'a'\ngoal = 3")),
            (3.0, Some(true))
        );
        assert_eq!(
            met(&format!("{head}name = 'b'\ngoal = 3")),
            (4.0, Some(false))
        );
        assert_eq!(met(&format!("{head}name = 'b'")), (4.0, None));
        let ratio = format!("{head}name = 'c'\nratio = ['a', 'b']\ngoal = 0.8\nat-least = true");
        assert_eq!(met(&ratio), (0.75, Some(false)));
    }

    #[test]
    fn no_benchmark_is_played_that_no_figure_needs() {
        let scenarios = scenario::load_all(&directory()).unwrap();
        let goals = goals().unwrap();
        let played = |filter: &str| {
            let figures = goals.figure.iter().filter(|it| it.name.contains(filter));
            let chosen = needed(&scenarios, &figures.collect::<Vec<_>>());
            chosen.iter().map(|it| it.name()).collect::<Vec<_>>()
        };
        assert_eq!(played("linux-init"), ["linux", "linux-direct"]);
        assert_eq!(played("map-1g"), ["mapping"]);
        assert_eq!(played("hypercall"), ["exits"]);
        assert_eq!(played("image"), [""; 0]);
        assert_eq!(played("").len(), scenarios.len());
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        assert_eq!(median(vec![5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(vec![5.0, 1.0, 3.0, 4.0]), 4.0);
        assert_eq!(median(vec![2.0]), 2.0);
    }

    #[test]
    fn what_was_not_measured_is_an_error_and_no_zero() {
        let figure = figure("name = 'a'\nwhat = 'x'\nunit = 'y'");
        assert!(row(&figure, &Values::new()).is_err());
    }

    #[test]
    fn the_goals_can_be_read_and_have_one_entry_each() {
        let goals = goals().unwrap();
        let mut names: Vec<&str> = goals.figure.iter().map(|figure| &*figure.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        scenario::load_all(&directory()).unwrap();
    }
}
