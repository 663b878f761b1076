//! The listening half of a run: takes lines in, finds the one that is waited for, and says what was
//! wrong when it does not come.

use super::{Played, Run};
use crate::expr::substitute;
use crate::interrupt;
use crate::line::{Line, Pattern};
use crate::machine::{Arrival, Port};
use crate::outcome::{Failure, Reason, Seen};
use crate::scenario::Step;
use crate::steps::Progress;
use std::time::{Duration, Instant};
use toml::Spanned;

impl Run<'_> {
    /// Waits until a line matches, and uses it up.
    pub(super) fn wait(&mut self, pattern: &Pattern, deadline: Instant) -> Played<Seen> {
        let wanted = format!("`{pattern}`");
        self.wait_for(|line| pattern.matches(line), &wanted, deadline)
            .map_err(|mut failure| {
                if matches!(failure.reason, Reason::Timeout | Reason::QemuExit) {
                    failure.what += &self.near(pattern);
                }
                failure
            })
    }

    pub(super) fn wait_for(
        &mut self,
        matches: impl Fn(&Line) -> bool,
        wanted: &str,
        deadline: Instant,
    ) -> Played<Seen> {
        loop {
            if let Some(found) = self.find(&matches) {
                let seen = &mut self.seen[found];
                seen.used = true;
                return Ok(seen.clone());
            }
            if self.machine.is_silent() {
                return Err(self.qemu_ended(wanted));
            }
            if Instant::now() >= deadline {
                return Err(self.timeout(wanted));
            }
            self.receive(deadline)?;
        }
    }

    pub(super) fn find(&self, wanted: impl Fn(&Line) -> bool) -> Option<usize> {
        let since = self.seen.iter().enumerate().skip(self.mark);
        since
            .filter(|(_, seen)| !seen.used)
            .find(|(_, seen)| wanted(&seen.line))
            .map(|(at, _)| at)
    }

    pub(super) fn capture(&mut self, step: &Step, seen: &Seen) -> Played {
        if let Some(variable) = &step.clock {
            let milliseconds = seen.at.as_millis().to_string();
            self.variables.insert(variable.clone(), milliseconds);
        }
        let line = &seen.line;
        for (variable, key) in &step.capture {
            let value = line.get(key).map(str::to_owned).ok_or_else(|| {
                self.failure(
                    Reason::Answer,
                    format!("`{}` has no key `{key}`", line.text),
                )
            })?;
            self.variables.insert(variable.clone(), value);
        }
        Ok(())
    }

    pub(super) fn send(&mut self, port: Port, text: &str) -> Played {
        self.drain()?;
        self.mark = self.seen.len();
        // A UART's user ends a line with CR, as a terminal does.
        let end = if port == Port::Qmp { "\n" } else { "\r" };
        self.machine
            .send(port, format!("{text}{end}").as_bytes())
            .map_err(|error| self.failure(Reason::QemuExit, format!("`{text}`: {error:#}")))
    }

    /// Takes in what has arrived already.
    pub(super) fn drain(&mut self) -> Played {
        let now = Instant::now();
        while let Some(arrival) = self.machine.next(now) {
            self.accept(arrival)?;
        }
        Ok(())
    }

    /// Takes in one arrival, or lets a little time pass.
    pub(super) fn receive(&mut self, deadline: Instant) -> Played {
        if interrupt::requested() {
            return Err(self.failure(Reason::Interrupted, "by a signal".into()));
        }
        let slice = Instant::now() + Duration::from_millis(50);
        match self.machine.next(deadline.min(slice)) {
            Some(arrival) => self.accept(arrival),
            None => Ok(()),
        }
    }

    pub(super) fn accept(&mut self, arrival: Arrival) -> Played {
        let Arrival::Line(port, at, line) = arrival else {
            return Ok(());
        };
        (self.observer)(Progress::Line(port, &line));
        self.regions.learn(&line, &mut self.variables);
        let at = at.saturating_duration_since(self.begun);
        self.seen.push(Seen::new(at, port, line));
        self.judge()
    }

    /// Holds new lines against what must never be seen.
    pub(super) fn judge(&mut self) -> Played {
        while let Some(seen) = self.seen.get(self.judged) {
            self.judged += 1;
            if let Some(never) = self.never.iter().find(|never| never.matches(&seen.line)) {
                let what = format!("`{}` came, and `{never}` must never", seen.line.text);
                return Err(self.failure(Reason::Never, what));
            }
        }
        Ok(())
    }

    pub(super) fn text(&self, text: &Spanned<String>) -> Played<String> {
        substitute(text.as_ref(), &self.variables).map_err(|what| self.failure(Reason::Setup, what))
    }

    pub(super) fn pattern(&self, text: &Spanned<String>) -> Played<Pattern> {
        self.text(text).map(|text| Pattern::parse(&text))
    }

    pub(super) fn failure(&self, reason: Reason, what: String) -> Failure {
        Failure {
            reason,
            step: self.step,
            what,
        }
    }

    pub(super) fn timeout(&self, wanted: &str) -> Failure {
        let mut what = format!("waited in vain for {wanted}");
        if Instant::now() >= self.deadline {
            what += &format!("\n  the whole run may take {} s", self.scenario.timeout);
        }
        self.failure(Reason::Timeout, what)
    }

    /// Lines of the same event with other values: most likely what is wrong.
    pub(super) fn near(&self, pattern: &Pattern) -> String {
        let since = self.seen.iter().skip(self.mark);
        since
            .filter(|seen| pattern.nearly_matches(&seen.line))
            .take(3)
            .map(|seen| format!("\n  but there was `{}`", seen.line.text))
            .collect()
    }

    pub(super) fn qemu_ended(&mut self, wanted: &str) -> Failure {
        let end = Instant::now() + Duration::from_secs(2);
        while self.machine.exit_status().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = self.machine.exit_status().map(|status| status.to_string());
        let status = status.unwrap_or_else(|| "but still runs".into());
        let what = format!("QEMU closed its consoles ({status}); wanted was {wanted}");
        self.failure(
            Reason::QemuExit,
            format!("{what}\n{}", self.machine.stderr()),
        )
    }
}
