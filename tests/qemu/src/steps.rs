//! The engine: plays a scenario's steps against a machine and judges what comes out.
//!
//! # Which lines a wait may see
//!
//! Lines of several CPUs and of two UARTs have no order that a scenario could rely on. So a step
//! that waits looks at every line since the last command was *sent*, in any order, and each line
//! is used up by the step that it satisfied. A step that sends (`guest`, `firmware`, `qmp`) forgets
//! what came before it. Whatever must hold for the whole run is a `never` or a `count`.
//!
//! # How a run ends
//!
//! With an [`Outcome`]: figures, every one of them measured, or a [`Failure`] that says which step,
//! what was expected, and what was seen in its place. There is no third end: each wait has a
//! deadline, the run has one, a signal is looked for in between, and QEMU dies with the machine.

mod listen;

use crate::expr::{Variables, compare, size, substitute};
use crate::line::{Line, Pattern, Source};
use crate::machine::{Delivery, Machine, Port, Tools};
use crate::outcome::{Failure, Outcome, Reason, Seen};
use crate::pages;
use crate::scenario::{DEFAULT_NEVER, DiskLook, RecordSpec, Scenario, Step, TablePatch};
use std::time::{Duration, Instant};
use toml::Spanned;

/// What a run tells while it goes on.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A step begins: its number from 1, how many there are, and its text.
    Step(usize, usize, &'a str),
    /// A line came.
    Line(Port, &'a Line),
}

/// Plays `scenario` from QEMU's start to its end. `seed` takes the place of the scenario's own.
pub fn play(
    tools: &Tools,
    scenario: &Scenario,
    seed: Option<u64>,
    observer: &mut dyn FnMut(Progress<'_>),
) -> Outcome {
    let begun = Instant::now();
    let seed = seed.unwrap_or(scenario.seed);
    let mut outcome = Outcome {
        name: scenario.name().to_owned(),
        result: Err(Failure {
            reason: Reason::Setup,
            step: None,
            what: String::new(),
        }),
        seen: Vec::new(),
        counted: scenario.machine.icount,
        elapsed: Duration::ZERO,
        seed,
        logs: tools.runs.join(scenario.name()),
    };
    let scenario = &match with_bootargs(scenario, seed) {
        Ok(scenario) => scenario,
        Err(what) => {
            outcome.result = Err(Failure {
                reason: Reason::Setup,
                step: None,
                what,
            });
            return outcome;
        }
    };
    match start(tools, scenario) {
        Err(what) => {
            outcome.result = Err(Failure {
                reason: Reason::Setup,
                step: None,
                what,
            });
        }
        Ok(machine) => {
            let mut run = Run::new(scenario, machine, seed, begun, observer);
            outcome.result = run.all();
            if matches!(&outcome.result, Err(failure) if failure.reason == Reason::Timeout) {
                run.machine.log_registers();
            }
            outcome.seen = std::mem::take(&mut run.seen);
        }
    }
    outcome.elapsed = begun.elapsed();
    outcome
}

/// What is known before the machine starts: constants, and the pages that were picked.
fn constants(scenario: &Scenario, seed: u64) -> (Variables, Vec<(String, Vec<u64>)>) {
    let (mut variables, lists) = pages::pick_all(&scenario.pick, seed);
    variables.extend(
        scenario
            .set
            .iter()
            .map(|(name, value)| (name.clone(), value.to_string())),
    );
    (variables, lists)
}

/// `scenario` with values in the place of `${...}` in its VMs' command lines.
fn with_bootargs(scenario: &Scenario, seed: u64) -> Result<Scenario, String> {
    let mut scenario = scenario.clone();
    let (variables, _) = constants(&scenario, seed);
    for vm in &mut scenario.vm {
        if let Some(bootargs) = &mut vm.bootargs {
            *bootargs =
                substitute(bootargs, &variables).map_err(|what| format!("vm.bootargs: {what}"))?;
        }
    }
    Ok(scenario)
}

fn start(tools: &Tools, scenario: &Scenario) -> Result<Machine, String> {
    let bundle = if scenario.has_bundle() {
        Some(crate::bundle::build(scenario, &tools.images).map_err(|error| error.to_string())?)
    } else {
        None
    };
    Machine::start(tools, scenario, bundle.as_deref(), Delivery::Lines)
        .map_err(|error| format!("{error:#}"))
}

/// A run under way.
struct Run<'a> {
    scenario: &'a Scenario,
    machine: Machine,
    observer: &'a mut dyn FnMut(Progress<'_>),
    begun: Instant,
    deadline: Instant,
    seen: Vec<Seen>,
    /// How many of `seen` were held against `never`.
    judged: usize,
    /// Lines before this were there when the last command was sent.
    mark: usize,
    variables: Variables,
    regions: pages::Regions,
    lists: Vec<(String, Vec<u64>)>,
    never: Vec<Pattern>,
    step: Option<usize>,
}

/// Ctrl-] and a key: to Cordon's monitor, and from there to the VM in focus (docs/protocols.md,
/// "The operator's keys").
const MONITOR: &str = "\x1dm";
const CONSOLE: &[u8] = b"\x1dc";

type Played<T = ()> = Result<T, Failure>;

impl<'a> Run<'a> {
    fn new(
        scenario: &'a Scenario,
        machine: Machine,
        seed: u64,
        begun: Instant,
        observer: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let allowed = |text: &str| scenario.allow.iter().any(|allow| allow.as_ref() == text);
        let defaults = DEFAULT_NEVER.into_iter().filter(|text| !allowed(text));
        let own = scenario.never.iter().map(|text| text.as_ref().as_str());
        let never = defaults.chain(own).map(Pattern::parse).collect();
        let (variables, lists) = constants(scenario, seed);
        Self {
            scenario,
            machine,
            observer,
            begun,
            deadline: begun + Duration::from_secs(scenario.timeout),
            seen: Vec::new(),
            judged: 0,
            mark: 0,
            variables,
            regions: pages::Regions::default(),
            lists,
            never,
            step: None,
        }
    }

    /// All steps, and then the figures.
    fn all(&mut self) -> Played<Vec<(String, String)>> {
        let total = self.scenario.step.len();
        for (index, step) in self.scenario.step.iter().enumerate() {
            self.step = Some(index + 1);
            (self.observer)(Progress::Step(index + 1, total, &describe(step)));
            self.step(step)?;
        }
        self.step = None;
        self.figures()
    }

    fn step(&mut self, step: &Step) -> Played {
        let Some(name) = &step.each else {
            return self.once(step);
        };
        let name = name.as_ref();
        let list = self.lists.iter().find(|(known, _)| known == name);
        let pages = list.map(|(_, pages)| pages.clone()).unwrap_or_default();
        for page in pages {
            self.variables.insert(name.clone(), format!("{page:#x}"));
            self.once(step)?;
        }
        self.variables.remove(name);
        Ok(())
    }

    fn once(&mut self, step: &Step) -> Played {
        let seconds = step.timeout.unwrap_or(self.scenario.step_timeout);
        let deadline = (Instant::now() + Duration::from_secs(seconds)).min(self.deadline);
        if let Some(text) = &step.wait {
            let pattern = self.pattern(text)?;
            let found = self.wait(&pattern, deadline)?;
            self.capture(step, &found)?;
        } else if let Some(command) = &step.guest {
            self.guest(step, command, deadline)?;
        } else if let Some(command) = &step.monitor {
            self.monitor(step, command, deadline)?;
        } else if let Some(keys) = &step.keys {
            self.keys(keys)?;
        } else if let Some(command) = &step.firmware {
            self.firmware(step, command, deadline)?;
        } else if let Some(command) = &step.qmp {
            let command = self.text(command)?;
            self.qmp(&command, deadline)?;
        } else if let Some(record) = &step.record {
            self.record(record, deadline)?;
        } else if let Some(patch) = &step.acpi {
            self.damage(patch)?;
        } else if let (Some(text), Some(into)) = (&step.count, &step.into) {
            self.count(text, into.as_ref())?;
        } else if let (Some(look), Some(into)) = (&step.disk, &step.into) {
            self.look(look, into.as_ref())?;
        } else if let Some(milliseconds) = step.pause {
            self.pause(Duration::from_millis(milliseconds))?;
        } else if step.exit.is_some() {
            self.exit(deadline)?;
        }
        step.expect
            .iter()
            .try_for_each(|expect| self.expect(expect))
    }

    fn guest(&mut self, step: &Step, command: &Spanned<String>, deadline: Instant) -> Played {
        let command = self.text(command)?;
        if step
            .answer
            .as_ref()
            .is_some_and(|answer| answer.as_ref() == "none")
        {
            return self.send(Port::Uart0, &command);
        }
        let events = answer_events(&command);
        let is_answer = |line: &Line| events.iter().any(|event| line.is_guest(event));
        self.ask(step, (Port::Uart0, "", &command), is_answer, deadline)
    }

    /// Leaves the monitor again, also where its answer was not what was wanted: the next step may
    /// type for a guest.
    fn monitor(&mut self, step: &Step, command: &Spanned<String>, deadline: Instant) -> Played {
        let command = self.text(command)?;
        let is_answer = |line: &Line| line.is_cordon("monitor");
        let asked = self.ask(step, (Port::Uart0, MONITOR, &command), is_answer, deadline);
        self.machine
            .send(Port::Uart0, CONSOLE)
            .map_err(|error| self.failure(Reason::QemuExit, format!("`{command}`: {error:#}")))?;
        asked
    }

    fn keys(&mut self, keys: &Spanned<String>) -> Played {
        let keys = self.text(keys)?;
        self.drain()?;
        self.mark = self.seen.len();
        self.machine
            .send(Port::Uart0, keys.as_bytes())
            .map_err(|error| self.failure(Reason::QemuExit, format!("{keys:?}: {error:#}")))
    }

    fn damage(&mut self, patch: &TablePatch) -> Played {
        let memory = self.scenario.machine.memory.as_ref().0;
        let patched = self.machine.damage_table(memory, patch);
        patched.map_err(|error| self.failure(Reason::Setup, format!("{error:#}")))
    }

    fn firmware(&mut self, step: &Step, command: &Spanned<String>, deadline: Instant) -> Played {
        let command = self.text(command)?;
        if step
            .answer
            .as_ref()
            .is_some_and(|answer| answer.as_ref() == "none")
        {
            return self.type_ahead(&command);
        }
        let is_answer = |line: &Line| matches!(line.source, Source::Answer { .. });
        self.ask(step, (Port::Secure, "", &command), is_answer, deadline)
    }

    /// Types a command for the firmware without waiting for its answer. That is not lost: steps that wait for
    /// it may come later, for this one forgets no line.
    fn type_ahead(&mut self, command: &str) -> Played {
        self.drain()?;
        self.machine
            .send(Port::Secure, format!("{command}\r").as_bytes())
            .map_err(|error| self.failure(Reason::QemuExit, format!("`{command}`: {error:#}")))
    }

    /// Types a command and waits for its answer. The first answer is the answer, so that a refusal
    /// fails at once and not by a timeout.
    fn ask(
        &mut self,
        step: &Step,
        (port, before, command): (Port, &str, &str),
        is_answer: impl Fn(&Line) -> bool,
        deadline: Instant,
    ) -> Played {
        let wanted = match (&step.answer, port) {
            (Some(answer), _) => self.pattern(answer)?,
            (None, Port::Secure) => Pattern::parse("ok "),
            (None, _) if before == MONITOR => Pattern::parse("cordon: event=monitor result=ok"),
            (None, _) => Pattern::parse("guest: "),
        };
        self.send(port, &format!("{before}{command}"))?;
        let seen = self.wait_for(is_answer, &format!("the answer to `{command}`"), deadline)?;
        let line = &seen.line;
        if !wanted.matches(line) {
            let what = format!(
                "`{command}` was answered by `{}`, not by `{wanted}`",
                line.text
            );
            return Err(self.failure(Reason::Answer, what));
        }
        self.capture(step, &seen)
    }

    /// Greets QMP before each command; a second greeting does nothing.
    fn qmp(&mut self, command: &str, deadline: Instant) -> Played {
        const GREETING: &str = r#"{"execute": "qmp_capabilities"}"#;
        for command in [GREETING, command] {
            self.send(Port::Qmp, command)?;
            let is_answer =
                |line: &Line| line.text.starts_with("{\"return\"") || is_qmp_error(line);
            let seen =
                self.wait_for(is_answer, &format!("QMP's answer to `{command}`"), deadline)?;
            let line = &seen.line;
            if is_qmp_error(line) && command != GREETING {
                let what = format!("QMP answered `{command}` with `{}`", line.text);
                return Err(self.failure(Reason::Answer, what));
            }
        }
        Ok(())
    }

    /// Reports an error, as a firmware would that is not as good as ours.
    fn record(&mut self, record: &RecordSpec, deadline: Instant) -> Played {
        let failed = |run: &Self, what: String| run.failure(Reason::Setup, what);
        let number = |run: &Self, text: &Spanned<String>| {
            let text = run.text(text)?;
            size(&text).map_err(|what| failed(run, what))
        };
        let pa = number(self, &record.pa)?;
        let block = crate::record::block(pa, &record.patch)
            .ok_or_else(|| failed(self, "step.record.patch: beyond the record".into()))?;
        let Some(at) = &record.at else {
            return self.qmp(&crate::record::qmp_command(&block), deadline);
        };
        let at = number(self, at)?;
        self.machine
            .write_memory(at, &block)
            .map_err(|error| failed(self, format!("{error:#}")))
    }

    fn count(&mut self, text: &Spanned<String>, into: &str) -> Played {
        let pattern = self.pattern(text)?;
        self.drain()?;
        let count = self
            .seen
            .iter()
            .filter(|seen| pattern.matches(&seen.line))
            .count();
        self.variables.insert(into.to_owned(), count.to_string());
        Ok(())
    }

    /// Looks at a disk from outside.
    fn look(&mut self, look: &DiskLook, into: &str) -> Played {
        let (index, logs) = (*look.index.as_ref(), &self.machine.logs);
        let bytes = crate::disk::bytes_of_pattern(logs, index, look.seed);
        let bytes = bytes.map_err(|error| self.failure(Reason::Setup, format!("{error:#}")))?;
        self.variables.insert(into.to_owned(), bytes.to_string());
        Ok(())
    }

    fn pause(&mut self, time: Duration) -> Played {
        let end = (Instant::now() + time).min(self.deadline);
        while Instant::now() < end {
            if self.machine.is_silent() {
                return Err(self.qemu_ended("that it runs on for a while"));
            }
            self.receive(end)?;
        }
        Ok(())
    }

    fn exit(&mut self, deadline: Instant) -> Played {
        let status = loop {
            if self.machine.is_silent()
                && let Some(status) = self.machine.exit_status()
            {
                break status;
            }
            if Instant::now() >= deadline {
                return Err(self.timeout("QEMU to end by itself"));
            }
            self.receive(deadline)?;
        };
        if status.success() {
            return Ok(());
        }
        let what = format!("QEMU ended with {status}: {}", self.machine.stderr());
        Err(self.failure(Reason::QemuExit, what))
    }

    fn expect(&mut self, text: &Spanned<String>) -> Played {
        let compared = compare(text.as_ref(), &self.variables);
        let (holds, left, right) = compared.map_err(|what| self.failure(Reason::Expect, what))?;
        if holds {
            return Ok(());
        }
        let what = format!(
            "`{}` does not hold: {left} ({left:#x}) against {right} ({right:#x})",
            text.as_ref()
        );
        Err(self.failure(Reason::Expect, what))
    }

    fn figures(&mut self) -> Played<Vec<(String, String)>> {
        self.drain()?;
        let mut figures = Vec::new();
        for figure in &self.scenario.figures {
            let text = substitute(figure.as_ref(), &self.variables)
                .map_err(|what| self.failure(Reason::Figure, what))?;
            let (key, value) = text.split_once('=').unwrap_or((&text, ""));
            figures.push((key.to_owned(), value.to_owned()));
        }
        Ok(figures)
    }
}

fn is_qmp_error(line: &Line) -> bool {
    line.text.starts_with("{\"error\"")
}

/// What `event=` the answer to a command of the probe guest has (docs/protocols.md). A command that
/// it does not know is answered by an error, which is an answer too.
fn answer_events(command: &str) -> [&str; 2] {
    let word = match command.split_whitespace().next().unwrap_or_default() {
        "read" | "read-unaligned" | "write" | "exec" | "read-el0" | "write-el0" | "exec-el0" => {
            "touch"
        }
        "lost" => "lost-end",
        "bad" => "bad-end",
        "bench" => "bench-end",
        "table-use" => "table",
        word => word,
    };
    [word, "error"]
}

/// A step in one line, as its author wrote it.
pub fn describe(step: &Step) -> String {
    let text = |verb: &str, text: &Option<Spanned<String>>| {
        text.as_ref()
            .map(|text| format!("{verb} {}", text.as_ref()))
    };
    let verb = text("wait", &step.wait)
        .or_else(|| text("guest", &step.guest))
        .or_else(|| text("monitor", &step.monitor))
        .or_else(|| {
            let keys = step.keys.as_ref();
            keys.map(|keys| format!("keys {:?}", keys.as_ref()))
        })
        .or_else(|| text("firmware", &step.firmware))
        .or_else(|| text("qmp", &step.qmp))
        .or_else(|| {
            let patch = step.acpi.as_ref();
            patch.map(|patch| format!("acpi {}", patch.table.as_ref()))
        })
        .or_else(|| {
            step.record
                .as_ref()
                .map(|r| format!("record {}", r.pa.as_ref()))
        })
        .or_else(|| text("count", &step.count))
        .or_else(|| {
            let disk = step.disk.as_ref();
            disk.map(|look| format!("disk {} of {}", look.index.as_ref(), look.seed))
        })
        .or_else(|| step.pause.map(|time| format!("pause {time} ms")))
        .or_else(|| step.exit.as_ref().map(|_| "exit".into()));
    let expects = step
        .expect
        .iter()
        .map(|expect| format!("expect {}", expect.as_ref()));
    let text: Vec<String> = verb.into_iter().chain(expects).collect();
    match &step.note {
        Some(note) => format!("{note} ({})", text.join("; ")),
        None => text.join("; "),
    }
}
