//! `cargo xtask run`: one scenario, for a person to watch.

use crate::compare::compare;
use crate::{guests, images, loaders, qemu, shell, workspace};
use anyhow::{Context, Result, bail};
use cordon_qemu::machine::{Port, Tools};
use cordon_qemu::outcome::Outcome;
use cordon_qemu::scenario::{self, Scenario};
use cordon_qemu::steps::{self, Progress};
use cordon_qemu::{interactive, report};
use indicatif::ProgressBar;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which scenario; see --list.
    #[arg(default_value = "one-page")]
    scenario: Vec<String>,
    /// Name the scenarios.
    #[arg(long)]
    pub(crate) list: bool,
    /// Leave the guest's console to me: nothing is asserted, Ctrl-A x leaves, Ctrl-A h helps.
    #[arg(long, short, conflicts_with = "list")]
    interactive: bool,
    /// Show every line of the consoles as it comes.
    #[arg(long, short)]
    verbose: bool,
    /// Of several scenarios, play those after a failed one too.
    #[arg(long)]
    keep_going: bool,
    /// Pick other pages than the scenario's own seed does.
    #[arg(long)]
    seed: Option<u64>,
}

/// Prints names and summaries.
pub(crate) fn list() -> Result<()> {
    let scenarios = scenario::load_all(&workspace::scenarios())?;
    let width = scenarios.iter().map(|s| s.name().len()).max().unwrap_or(0);
    for scenario in scenarios {
        println!("{:<width$}  {}", scenario.name(), scenario.summary);
    }
    Ok(())
}

/// Builds what is needed and plays. `false` means that a scenario failed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let all = scenario::load_all(&workspace::scenarios())?;
    let chosen: Vec<&Scenario> = args
        .scenario
        .iter()
        .map(|name| find(&all, name))
        .collect::<Result<_>>()?;
    let tools = tools(&chosen)?;
    if args.interactive {
        let [scenario] = chosen[..] else {
            bail!("--interactive takes one scenario")
        };
        return interactive::run(&tools, scenario).map(|()| true);
    }
    let mut passed = true;
    for scenario in chosen {
        let outcome = play(&tools, scenario, args.seed, args.verbose);
        show(scenario, &outcome);
        println!("{}", report::verdict(&outcome));
        passed &= outcome.result.is_ok() && compare(&tools, &all, scenario, &outcome)?;
        if !passed && !args.keep_going {
            break;
        }
    }
    Ok(passed)
}

pub(crate) fn find<'a>(all: &'a [Scenario], name: &str) -> Result<&'a Scenario> {
    all.iter()
        .find(|scenario| scenario.name() == name)
        .with_context(|| {
            let near: Vec<&str> = all
                .iter()
                .map(Scenario::name)
                .filter(|known| known.contains(name) || name.contains(known))
                .collect();
            let near = if near.is_empty() {
                String::new()
            } else {
                format!(" ({}?)", near.join(", "))
            };
            format!("there is no scenario `{name}`{near}; `cargo xtask run --list` names them")
        })
}

/// Images, guests' software and QEMU, all that these scenarios need, made ready.
pub(crate) fn tools(scenarios: &[&Scenario]) -> Result<Tools> {
    images::build()?;
    if guests::wanted(scenarios.iter().copied()) {
        guests::ensure()?;
    }
    loaders::ensure_for(scenarios.iter().copied())?;
    let qemu = qemu::ensure()?;
    Ok(Tools {
        qemu: qemu.command,
        env: qemu.env,
        images: workspace::images(),
        runs: workspace::runs(),
    })
}

/// Plays with progress on the terminal.
pub(crate) fn play(
    tools: &Tools,
    scenario: &Scenario,
    seed: Option<u64>,
    verbose: bool,
) -> Outcome {
    let spinner = if verbose {
        ProgressBar::hidden()
    } else {
        shell::spinner(scenario.name().to_owned())
    };
    let outcome = steps::play(tools, scenario, seed, &mut |progress| match progress {
        Progress::Step(number, total, text) if verbose => println!("[{number}/{total}] {text}"),
        Progress::Step(number, total, text) => {
            let text: String = text.chars().take(60).collect();
            spinner.set_message(format!("{} {number}/{total} {text}", scenario.name()));
        }
        Progress::Line(Port::Secure, line) if verbose => println!("  secure  {}", line.text),
        Progress::Line(Port::Uart0, line) if verbose => println!("  {}", line.text),
        Progress::Line(..) => {}
    });
    spinner.finish_and_clear();
    outcome
}

/// Prints what there is besides the last line: the report, or the story of the failure.
pub(crate) fn show(scenario: &Scenario, outcome: &Outcome) {
    if outcome.result.is_ok() && scenario.report {
        print!("{}", report::containment(outcome).unwrap_or_default());
    }
    let failed = outcome
        .result
        .as_ref()
        .err()
        .and_then(|failure| failure.step);
    let step = failed.and_then(|number| scenario.step.get(number.checked_sub(1)?));
    eprint!(
        "{}",
        report::failure(outcome, step.map(steps::describe).as_deref())
    );
}
