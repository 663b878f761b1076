//! What becomes of a run: figures, or a failure that says why.

use crate::line::Line;
use crate::machine::Port;
use std::path::PathBuf;
use std::time::Duration;

/// Why a run failed: the value of `reason=` on its last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The machine could not be started, or the scenario's text does not evaluate.
    Setup,
    /// A line did not come in time.
    Timeout,
    /// A line came that must not.
    Never,
    /// A comparison does not hold.
    Expect,
    /// The guest or the firmware answered something else.
    Answer,
    /// QEMU ended while more was wanted of it, or with another status than 0.
    QemuExit,
    /// A figure for the PASS line was not measured.
    Figure,
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

impl Reason {
    /// The word on the FAIL line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Timeout => "timeout",
            Self::Never => "never",
            Self::Expect => "expect",
            Self::Answer => "answer",
            Self::QemuExit => "qemu-exit",
            Self::Figure => "figure",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Why and where a run failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The kind.
    pub reason: Reason,
    /// Which step, from 1; `None` outside of steps.
    pub step: Option<usize>,
    /// What was expected and what was there instead, for a person.
    pub what: String,
}

/// A line that was seen, and when, since QEMU's start.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Time since QEMU's start.
    pub at: Duration,
    /// Where it came from.
    pub port: Port,
    /// The line.
    pub line: Line,
    pub(crate) used: bool,
}

impl Seen {
    /// A line that no step has used up yet.
    pub fn new(at: Duration, port: Port, line: Line) -> Self {
        Self {
            at,
            port,
            line,
            used: false,
        }
    }
}

/// What became of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The scenario's name.
    pub name: String,
    /// The figures, or why there are none.
    pub result: Result<Vec<(String, String)>, Failure>,
    /// Everything that was seen.
    pub seen: Vec<Seen>,
    /// QEMU counted time in instructions.
    pub counted: bool,
    /// How long it took in all.
    pub elapsed: Duration,
    /// What pages were picked with.
    pub seed: u64,
    /// Where the logs are.
    pub logs: PathBuf,
}
