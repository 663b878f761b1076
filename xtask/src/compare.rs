//! The `[compare]` table of a scenario: the same without Cordon, by two clocks.
//!
//! The wall's says what a person waits for, on a machine that does other things as well, under an emulator that
//! walks the tables of two stages in software. So it is told and decides nothing. Instructions decide: they
//! are those of a benchmark, on the same emulated machines, and the same for everybody.

use crate::bench::{self, Quotient};
use crate::run;
use anyhow::Result;
use cordon_qemu::line::parse_number;
use cordon_qemu::machine::Tools;
use cordon_qemu::outcome::Outcome;
use cordon_qemu::report;
use cordon_qemu::scenario::{Comparison, Scenario};

/// Plays what `scenario`, which ended with `outcome`, is compared with, if anything, and prints figures and
/// quotients. `false` where the goal is missed, or what it is compared with fails.
pub(crate) fn compare(
    tools: &Tools,
    all: &[Scenario],
    scenario: &Scenario,
    outcome: &Outcome,
) -> Result<bool> {
    let (Some(comparison), Ok(figures)) = (&scenario.compare, &outcome.result) else {
        return Ok(true);
    };
    let other = run::find(all, &comparison.with)?;
    let reference = run::play(tools, other, None, false);
    let Ok(theirs) = &reference.result else {
        run::show(other, &reference);
        println!("{}", report::verdict(&reference));
        return Ok(false);
    };
    if let Some(line) = on_the_wall(comparison, figures, theirs) {
        println!("{line}");
    }
    let counted = bench::quotient(&comparison.counted)?;
    println!("{}", in_instructions(&counted));
    Ok(counted.is_met())
}

fn on_the_wall(
    comparison: &Comparison,
    own: &[(String, String)],
    theirs: &[(String, String)],
) -> Option<String> {
    let number = |figures: &[(String, String)]| {
        let (_, value) = figures.iter().find(|(key, _)| *key == comparison.figure)?;
        parse_number(value)
    };
    let (own, theirs) = (number(own)?, number(theirs)?);
    #[expect(clippy::cast_precision_loss, reason = "for three digits")]
    let quotient = own as f64 / theirs as f64;
    let (figure, with) = (&comparison.figure, &comparison.with);
    Some(format!(
        "on the wall: {figure}={own}, {figure}={theirs} by {with}: {quotient:.2}, \
         with what QEMU takes to emulate a second stage (docs/performance.md)"
    ))
}

fn in_instructions(counted: &Quotient) -> String {
    let millions = |instructions: f64| instructions / 1e6;
    let (above, below) = (millions(counted.above), millions(counted.below));
    let (what, quotient, goal) = (&counted.what, counted.value(), counted.goal);
    let verdict = if counted.is_met() { "met" } else { "MISSED" };
    format!(
        "{what}, in instructions: {above:.1} M by {below:.1} M: {quotient:.3} (goal: {goal}, {verdict})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_goal_is_said() {
        let quotient = |above| Quotient {
            what: "way to init".into(),
            above,
            below: 200e6,
            goal: 1.15,
        };
        let met = quotient(210e6);
        assert!(met.is_met());
        assert_eq!(
            in_instructions(&met),
            "way to init, in instructions: 210.0 M by 200.0 M: 1.050 (goal: 1.15, met)"
        );
        let missed = quotient(240e6);
        assert!(!missed.is_met());
        assert!(in_instructions(&missed).contains("1.200 (goal: 1.15, MISSED)"));
    }

    #[test]
    fn the_wall_is_quoted_where_both_have_the_figure() {
        let comparison = Comparison {
            with: "direct".into(),
            figure: "init_ms".into(),
            counted: "x".into(),
        };
        let figures = |value: &str| vec![("init_ms".to_owned(), value.to_owned())];
        let line = on_the_wall(&comparison, &figures("300"), &figures("200")).unwrap();
        assert!(line.starts_with("on the wall: init_ms=300, init_ms=200 by direct: 1.50,"));
        assert_eq!(on_the_wall(&comparison, &figures("300"), &[]), None);
    }
}
