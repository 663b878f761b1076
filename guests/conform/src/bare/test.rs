//! What a test is, and how its result is said.

use super::{console, cpu, gic};

/// Why a test ended before its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// What is wrong, what was found, what should have been.
    Fail(&'static str, u64, u64),
    /// There is nothing to test, and why.
    Skip(&'static str),
}

/// What a test ends with.
pub(super) type Verdict = Result<(), Stop>;

/// A test and its name.
pub(super) type Test = (&'static str, fn() -> Verdict);

/// Goes on if both are the same.
pub(super) fn same(what: &'static str, got: u64, wanted: u64) -> Verdict {
    if got == wanted {
        Ok(())
    } else {
        Err(Stop::Fail(what, got, wanted))
    }
}

/// Goes on if it is so.
pub(super) fn so(what: &'static str, holds: bool) -> Verdict {
    same(what, holds.into(), 1)
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u32,
    pub(super) failed: u32,
    pub(super) skipped: u32,
}

impl Tally {
    /// Runs a test on a machine whose interrupts are idle, and says how it ended.
    pub(super) fn run(&mut self, (name, test): Test) {
        let begin = cpu::now();
        let verdict = gic::reset().and_then(|()| test());
        let us = cpu::now() - begin;
        match verdict {
            Ok(()) => {
                self.passed += 1;
                console::print(format_args!(
                    "event=conform test={name} result=pass us={us}"
                ));
            }
            Err(Stop::Skip(why)) => {
                self.skipped += 1;
                console::print(format_args!(
                    "event=conform test={name} result=skip why={why} us={us}"
                ));
            }
            Err(Stop::Fail(why, got, wanted)) => {
                self.failed += 1;
                console::print(format_args!(
                    "event=conform test={name} result=fail why={why} got={got:#x} wanted={wanted:#x} us={us}"
                ));
            }
        }
    }
}
