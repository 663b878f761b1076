//! From the strike to the signal: what happened when, by the machine's own counter.
//!
//! Firmware and Cordon say in each line how the counter (CNTPCT_EL0) stood when the thing happened that the line
//! tells of (`at=`), whenever that was printed. A Linux guest's program says how its own counter stood, which
//! began at `at=` of its VM's start. So all of them are on one scale, of instructions where QEMU counts
//! them, of microseconds otherwise. A line without a stamp of its own is shown without a figure.

use super::table::Table;
use super::{Story, grouped};
use crate::line::{Line, Source};
use crate::outcome::Seen;

/// What a row shows of its line.
struct Kind {
    name: &'static str,
    keys: &'static [&'static str],
    is_it: fn(&Line) -> bool,
}

/// In the order in which they happen.
const KINDS: [Kind; 9] = [
    Kind {
        name: "consumption",
        keys: &["pa", "cpu", "el", "access"],
        is_it: |line| line.text.starts_with("! consumed"),
    },
    Kind {
        name: "EL2 is told",
        keys: &["told"],
        is_it: |line| line.text.starts_with("ok poisoned=") && line.number("told") > Some(0),
    },
    Kind {
        name: "record read",
        keys: &["via", "severity"],
        is_it: |line| line.is_ras("detected"),
    },
    Kind {
        name: "split",
        keys: &["block", "tables"],
        is_it: |line| line.is_ras("contained"),
    },
    Kind {
        name: "whose it is",
        keys: &["ipa", "vm", "by"],
        is_it: |line| line.is_ras("resolved"),
    },
    Kind {
        name: "guest's record",
        keys: &["vm", "source", "ipa"],
        is_it: |line| line.is_ras("reported"),
    },
    Kind {
        name: "guest's abort",
        keys: &["vm", "vcpu", "el", "esr"],
        is_it: |line| line.is_ras("vsea"),
    },
    Kind {
        name: "signal",
        keys: &["result", "code", "addr"],
        is_it: is_signal,
    },
    Kind {
        name: "guest knows",
        keys: &["vcpu", "far", "esr"],
        is_it: |line| line.is_guest("sea"),
    },
];

fn is_signal(line: &Line) -> bool {
    matches!(line.source, Source::Guest(_)) && line.get("result") == Some("sigbus")
}

/// The keys that say when.
const STAMPS: [&str; 2] = ["told", "at"];

/// Adds the timeline of the first error, if the strike has a stamp.
pub(super) fn show(story: &Story<'_>, table: &mut Table) {
    let Some(scale) = Scale::of(story) else {
        return;
    };
    let strike = story.first(|line| line.text.starts_with("ok poisoned pages="));
    let Some((strike, began)) = strike.and_then(|seen| Some((seen, seen.line.number("at")?)))
    else {
        return;
    };
    table.row(scale.unit, "since the strike, and since the row above");
    table.row("0", entry("strike", &strike.line, &["pages"], ""));
    let mut last = began;
    for kind in KINDS {
        let Some(seen) = story.first(kind.is_it) else {
            continue;
        };
        match stamp(story, seen) {
            Some(at) if at >= began => {
                let step = format!("{}{}", sign(at, last), scale.text(at.abs_diff(last)));
                let text = entry(kind.name, &seen.line, kind.keys, &step);
                table.row(&format!("+{}", scale.text(at - began)), text);
                last = at;
            }
            _ => table.row("", entry(kind.name, &seen.line, kind.keys, "")),
        }
    }
    again(story, table);
    kernel(story, table);
}

/// How often the page was touched again before the signal: a kernel that has not dealt with its record yet lets
/// the process go on, which makes the same access.
fn again(story: &Story<'_>, table: &mut Table) {
    let signal = story.seen.iter().position(|seen| is_signal(&seen.line));
    let before = signal.and_then(|signal| story.seen.get(..signal));
    let touched = before.unwrap_or_default().iter();
    let count = touched.filter(|seen| seen.line.is_ras("touched")).count();
    if count > 0 {
        table.row("before the signal", format!("ras: event=touched x{count}"));
    }
}

/// What the guest's kernel said of it. Its own clock is another.
fn kernel(story: &Story<'_>, table: &mut Table) {
    if let Some(seen) = story.first(|line| line.text.contains("] Memory failure: ")) {
        table.row("its kernel says", &seen.line.text);
    }
}

fn sign(at: u64, last: u64) -> char {
    if at < last { '-' } else { '+' }
}

fn entry(name: &str, line: &Line, keys: &[&str], step: &str) -> String {
    let head = line.text.split(['=']).next().unwrap_or_default();
    let head = head.rsplit_once(' ').map_or("", |(head, _)| head);
    let event = line.event().map(|event| format!(" event={event}"));
    let rest = line.keys().iter();
    let rest = rest.filter(|(key, _)| keys.contains(&key.as_str()) || key == "at");
    let rest: String = rest.map(|(key, value)| format!(" {key}={value}")).collect();
    format!(
        "{step:>9}  {name:<14} {head}{}{rest}",
        event.unwrap_or_default()
    )
}

/// When the thing happened that a line tells of, on the machine's counter.
fn stamp(story: &Story<'_>, seen: &Seen) -> Option<u64> {
    let at = STAMPS.iter().find_map(|key| seen.line.number(key))?;
    let Source::Guest(vm) = &seen.line.source else {
        return Some(at);
    };
    let started = |line: &Line| line.is_cordon("vm-start") && line.get("vm") == Some(vm);
    // A VM that has been reset counts anew: the last start before the line is the one.
    let earlier = story.seen.iter().filter(|other| other.at <= seen.at);
    let start = earlier.rev().find(|other| started(&other.line))?;
    start.line.number("at")?.checked_add(at)
}

/// What ticks of the counter are.
struct Scale {
    unit: &'static str,
    ticks: u64,
}

impl Scale {
    /// With `-icount shift=0` the counter counts nanoseconds, which are instructions then, if it has a GHz.
    fn of(story: &Story<'_>) -> Option<Self> {
        let boot = story.first(|line| line.is_cordon("boot"));
        let hz = boot.and_then(|seen| seen.line.number("counter_hz"));
        match (story.counted, hz) {
            (true, Some(1_000_000_000)) => Some(Self {
                unit: "instructions",
                ticks: 1,
            }),
            (_, Some(hz)) if hz >= 1_000_000 => Some(Self {
                unit: "microseconds",
                ticks: hz / 1_000_000,
            }),
            _ => None,
        }
    }

    fn text(&self, ticks: u64) -> String {
        grouped(ticks / self.ticks)
    }
}
