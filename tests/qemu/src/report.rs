//! What a run prints: the PASS or FAIL line, the story of a failure, the table of a containment.
//!
//! Every number here is taken from a line that the run has seen. Where a line is missing its row
//! is missing too; nothing is filled in.

mod table;
mod timeline;

use crate::line::Line;
use crate::machine::Port;
use crate::outcome::{Outcome, Reason, Seen};
use std::fmt::Write;
use table::Table;

/// How many lines of the console a failure shows.
const TAIL: usize = 20;

/// The last line of a run: `PASS name key=value ...` or `FAIL name reason=... step=...`.
pub fn verdict(outcome: &Outcome) -> String {
    let seconds = outcome.elapsed.as_secs_f64();
    match &outcome.result {
        Ok(figures) => {
            let figures: Vec<String> = figures
                .iter()
                .map(|(key, value)| format!("{key}={value} "))
                .collect();
            format!(
                "PASS {} {}seconds={seconds:.1}",
                outcome.name,
                figures.concat()
            )
        }
        Err(failure) => {
            let step = failure
                .step
                .map(|step| format!(" step={step}"))
                .unwrap_or_default();
            let reason = failure.reason.word();
            format!(
                "FAIL {} reason={reason}{step} seconds={seconds:.1}",
                outcome.name
            )
        }
    }
}

/// What a person wants to know of a failure: what was expected, where, the console's end, the
/// logs, and how to see it again. Empty for a run that passed. `step` is the failed step's text.
pub fn failure(outcome: &Outcome, step: Option<&str>) -> String {
    let Err(failure) = &outcome.result else {
        return String::new();
    };
    let mut text = String::new();
    let place = match (failure.step, step) {
        (Some(number), Some(step)) => format!("step {number}: {step}"),
        _ => "outside of the steps".to_owned(),
    };
    let _ = writeln!(text, "{} failed at {place}", outcome.name);
    let _ = writeln!(text, "  {}", failure.what.trim_end().replace('\n', "\n  "));
    let console: Vec<&Seen> = outcome
        .seen
        .iter()
        .filter(|seen| seen.port != Port::Qmp)
        .collect();
    let tail = console
        .get(console.len().saturating_sub(TAIL)..)
        .unwrap_or_default();
    if tail.is_empty() {
        let _ = writeln!(text, "  the consoles are empty");
    } else {
        let _ = writeln!(text, "  the last {} lines of the consoles:", tail.len());
    }
    for seen in tail {
        let port = if seen.port == Port::Secure {
            "secure"
        } else {
            "uart0"
        };
        let _ = writeln!(
            text,
            "    {:>9.3} {port:<6} {}",
            seen.at.as_secs_f64(),
            seen.line.text
        );
    }
    let logs = outcome.logs.display();
    let _ = match failure.reason {
        Reason::Timeout => writeln!(text, "  logs:      {logs}, CPUs in qmp.log"),
        _ => writeln!(text, "  logs:      {logs}"),
    };
    let script = outcome.logs.join("qemu.sh");
    let _ = writeln!(
        text,
        "  again:     cargo xtask run {} --seed {}",
        outcome.name, outcome.seed
    );
    let _ = writeln!(text, "  by hand:   {}", script.display());
    text
}

/// The table of the first containment of a run; `None` where nothing was contained.
pub fn containment(outcome: &Outcome) -> Option<String> {
    let story = Story {
        seen: &outcome.seen,
        counted: outcome.counted,
    };
    let contained = story.ras("contained")?;
    let mut table = Table::default();
    story.blocks(&contained.line, &mut table);
    story.losses(&mut table);
    story.strike(&contained.line, &mut table);
    story.record(&mut table);
    timeline::show(&story, &mut table);
    Some(table.to_text(&outcome.name))
}

/// Finds the lines of one containment.
struct Story<'a> {
    seen: &'a [Seen],
    counted: bool,
}

impl<'a> Story<'a> {
    fn first(&self, wanted: impl Fn(&Line) -> bool) -> Option<&'a Seen> {
        self.seen.iter().find(|seen| wanted(&seen.line))
    }

    fn ras(&self, event: &str) -> Option<&'a Seen> {
        self.first(|line| line.is_ras(event))
    }

    fn last(&self, wanted: impl Fn(&Line) -> bool) -> Option<&'a Seen> {
        self.seen.iter().rev().find(|seen| wanted(&seen.line))
    }

    fn when(&self, event: &str, when: &str) -> Option<&'a Line> {
        let found = self.last(|line| line.is_cordon(event) && line.get("when") == Some(when));
        found.map(|seen| &seen.line)
    }

    fn count(&self, event: &str) -> usize {
        let is_event = |seen: &&Seen| seen.line.is_ras(event);
        self.seen.iter().filter(is_event).count()
    }

    /// The leaves of the region that was struck, and the tables of the whole VM.
    fn blocks(&self, struck: &Line, table: &mut Table) {
        let leaves_of = |when: &str| {
            let is_struck = |line: &Line| {
                let ends = line.number("ipa").zip(struck.number("ipa"));
                line.is_cordon("leaves")
                    && line.get("when") == Some(when)
                    && ends.is_some_and(|(start, ipa)| start <= ipa)
            };
            // Regions come in no particular order: the nearest one below is the one.
            let lines = self.seen.iter().map(|seen| &seen.line);
            lines
                .filter(|line| is_struck(line))
                .max_by_key(|line| line.number("ipa"))
        };
        if let (Some(before), Some(after)) = (leaves_of("start"), leaves_of("stop")) {
            table.row("blocks before", leaves(before));
            table.row("blocks after", leaves(after));
        }
        let tables = |when| self.when("stage2", when)?.number("tables");
        if let (Some(from), Some(to)) = (tables("start"), tables("stop")) {
            let left = self
                .when("stage2", "stop")
                .and_then(|line| line.get("reserve"));
            let left = left.map_or(String::new(), |left| format!(", {left} left in reserve"));
            let used = i128::from(to) - i128::from(from);
            table.row("tables used", format!("{used} ({from} -> {to}{left})"));
        }
        table.rule();
    }

    fn losses(&self, table: &mut Table) {
        if let Some(sweep) = self.last(|line| line.is_guest("sweep"))
            && let (Some(lost), Some(pages)) =
                (sweep.line.number("lost"), sweep.line.number("pages"))
        {
            table.row(
                "guest pages lost",
                format!("{} of {}", grouped(lost), grouped(pages)),
            );
            if let Some(wrong) = sweep.line.number("wrong") {
                table.row("wrong lines", grouped(wrong));
            }
        }
        let touched = self.count("touched");
        let later = match touched {
            0 => String::new(),
            _ => format!(", and {touched} for touching the hole again"),
        };
        let told = self.count("vsea").saturating_sub(touched);
        table.row("vSEAs", format!("{told}{later}"));
        table.rule();
    }

    fn strike(&self, contained: &Line, table: &mut Table) {
        for (label, key) in [("PA", "pa"), ("IPA", "ipa"), ("block before", "block")] {
            if let Some(value) = contained.get(key) {
                table.row(label, value);
            }
        }
        if let Some(vsea) = self.ras("vsea") {
            let keys = ["vm", "vcpu", "el", "access", "far", "esr"];
            table.row("vSEA", pairs(&vsea.line, |key| keys.contains(&key)));
        }
    }

    fn record(&self, table: &mut Table) {
        if let Some(detected) = self.ras("detected") {
            let noise = [
                "event", "seq", "vm", "vcpu", "el", "access", "cpu", "via", "at",
            ];
            table.row(
                "CPER record",
                pairs(&detected.line, |key| !noise.contains(&key)),
            );
        }
        table.rule();
    }
}

/// Sizes of leaves, by their key in `cordon: event=stage2`.
const LEAVES: [(&str, &str); 8] = [
    ("1g", "1G"),
    ("512m", "512M"),
    ("32m", "32M"),
    ("2m", "2M"),
    ("64k", "64K"),
    ("16k", "16K"),
    ("4k", "4K"),
    ("hole", "hole"),
];

fn leaves(line: &Line) -> String {
    let parts: Vec<String> = LEAVES
        .iter()
        .filter_map(|(key, name)| line.number(key).map(|count| (name, count)))
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} x{count}"))
        .collect();
    parts.join(", ")
}

fn pairs(line: &Line, wanted: impl Fn(&str) -> bool) -> String {
    let pairs: Vec<String> = line
        .keys()
        .iter()
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(" ")
}

/// A number with its thousands set apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table::WIDTH;
    use super::*;
    use crate::outcome::Failure;
    use std::time::Duration;

    fn outcome(lines: &[&str], result: Result<Vec<(String, String)>, Failure>) -> Outcome {
        let seen = lines.iter().zip(1_u64..).map(|(text, at)| {
            let secure = text.starts_with("! ") || text.starts_with("ok");
            let port = if secure { Port::Secure } else { Port::Uart0 };
            let line = if secure {
                Line::firmware(text)
            } else {
                Line::console(text)
            };
            Seen::new(Duration::from_millis(at), port, line)
        });
        Outcome {
            name: "one-page".into(),
            result,
            seen: seen.collect(),
            counted: true,
            elapsed: Duration::from_millis(4200),
            seed: 1,
            logs: "target/runs/one-page".into(),
        }
    }

    const RUN: [&str; 12] = [
        "cordon: event=stage2 vm=probe when=start 1g=2 2m=32 4k=0 hole=0 tables=3 reserve=64",
        "cordon: event=leaves vm=probe when=start region=1 kind=bar ipa=0x1000000000 1g=2 2m=0 4k=0 hole=0",
        "cordon: event=leaves vm=probe when=start region=0 kind=ram ipa=0x40000000 1g=0 2m=32 4k=0 hole=0",
        "ok poisoned pages=1 at=5000",
        "! consumed pa=0x8012345000 cpu=1 el=1 access=read record=written signal=sea far=0x1 at=905000",
        "ras: event=detected seq=1 via=sea cpu=1 pa=0x8012345000 severity=recoverable section=mem at=905400",
        "ras: event=contained seq=1 pa=0x8012345000 vm=probe ipa=0x1012345000 block=1g tables=2 at=906600",
        "ras: event=vsea seq=1 vm=probe vcpu=1 ipa=0x1012345000 far=0x1012345040 esr=0x96000010 at=907000",
        "probe| guest: event=sweep pages=524288 lost=1 wrong=0",
        "cordon: event=stage2 vm=probe when=stop 1g=1 2m=543 4k=511 hole=1 tables=5 reserve=62",
        "cordon: event=leaves vm=probe when=stop region=1 kind=bar ipa=0x1000000000 1g=1 2m=511 4k=511 hole=1",
        "cordon: event=leaves vm=probe when=stop region=0 kind=ram ipa=0x40000000 1g=0 2m=32 4k=0 hole=0",
    ];

    #[test]
    fn the_table_of_a_containment_reads_as_the_issue_has_it() {
        let text = containment(&outcome(&RUN, Ok(Vec::new()))).expect("a containment");
        for row in [
            "│ blocks before    │ 1G x2 ",
            "│ blocks after     │ 1G x1, 2M x511, 4K x511, hole x1 ",
            "│ tables used      │ 2 (3 -> 5, 62 left in reserve) ",
            "│ guest pages lost │ 1 of 524,288 ",
            "│ vSEAs            │ 1 ",
            "│ PA               │ 0x8012345000 ",
            "│ IPA              │ 0x1012345000 ",
            "│ CPER record      │ pa=0x8012345000 severity=recoverable section=mem ",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
    }

    /// A program's stamp is of its VM's own counter, which has begun again when the VM was reset.
    #[test]
    fn the_timeline_has_one_scale_for_the_machine_and_its_guests() {
        let mut run = RUN.to_vec();
        run.insert(0, "cordon: event=boot version=0 counter_hz=1000000000");
        run.insert(1, "cordon: event=vm-start vm=other vcpus=1 at=3");
        run.insert(2, "cordon: event=vm-start vm=probe vcpus=2 at=20");
        run.insert(3, "cordon: event=vm-start vm=probe vcpus=2 at=4000");
        run.insert(
            10,
            "probe| guest: event=touch name=a result=sigbus code=4 addr=0x7000 lsb=12 at=904000",
        );
        let mut seen = outcome(&run, Ok(Vec::new()));
        let text = containment(&seen).expect("a containment");
        for row in [
            "│ instructions     │ since the strike",
            "│ 0                │            strike         ok poisoned pages=1 at=5000 ",
            "│ +900,000         │  +900,000  consumption    ! consumed pa=0x8012345000 cpu=1 el=1 ",
            "│ +901,600         │    +1,200  split          ras: event=contained block=1g tables=2 at=906600",
            "│ +903,000         │    +1,000  signal         probe| guest: event=touch result=sigbus code=4",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
        // Where QEMU does not count, the counter is a clock.
        seen.counted = false;
        let text = containment(&seen).expect("a containment");
        assert!(text.contains("│ microseconds     │ since"), "{text}");
        assert!(
            text.contains("│ +901             │        +1  split "),
            "{text}"
        );
        // A counter of which nobody has said how fast it is gives no figures.
        seen.seen.remove(0);
        let text = containment(&seen).expect("a containment");
        assert!(!text.contains("since the strike"), "{text}");
    }

    #[test]
    fn no_line_of_the_table_is_wider_than_a_hundred() {
        let long = format!(
            "ras: event=detected seq=1 pa=0x1 section={}",
            "m".repeat(300)
        );
        let mut run = RUN;
        run[5] = &long;
        let text = containment(&outcome(&run, Ok(Vec::new()))).expect("a containment");
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(
            widths
                .iter()
                .all(|width| *width == widths[0] && *width <= WIDTH),
            "{text}"
        );
    }

    #[test]
    fn a_figure_that_was_not_seen_has_no_row() {
        let lines: Vec<&str> = RUN
            .into_iter()
            .filter(|line| !line.contains("sweep"))
            .collect();
        let text = containment(&outcome(&lines, Ok(Vec::new()))).expect("a containment");
        assert!(!text.contains("pages lost"), "{text}");
        assert!(containment(&outcome(&RUN[..3], Ok(Vec::new()))).is_none());
    }

    #[test]
    fn the_last_line_says_pass_with_figures_or_fail_with_a_reason() {
        let figures = vec![("lost_pages".to_owned(), "1".to_owned())];
        let pass = verdict(&outcome(&[], Ok(figures)));
        assert_eq!(pass, "PASS one-page lost_pages=1 seconds=4.2");
        let failed = Failure {
            reason: Reason::Timeout,
            step: Some(7),
            what: "x".into(),
        };
        let fail = verdict(&outcome(&[], Err(failed)));
        assert_eq!(fail, "FAIL one-page reason=timeout step=7 seconds=4.2");
    }

    #[test]
    fn a_failure_shows_step_expectation_console_logs_and_how_to_repeat_it() {
        let failed = Failure {
            reason: Reason::Timeout,
            step: Some(7),
            what: "no line".into(),
        };
        let text = failure(&outcome(&RUN, Err(failed)), Some("wait something"));
        for part in [
            "step 7: wait something",
            "no line",
            "secure ! consumed pa=0x8012345000",
            "uart0  probe| guest: event=sweep",
            "target/runs/one-page",
            "cargo xtask run one-page --seed 1",
            "qemu.sh",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (524_288, "524,288"),
        ];
        for (number, text) in cases {
            assert_eq!(grouped(number), text);
        }
    }
}
