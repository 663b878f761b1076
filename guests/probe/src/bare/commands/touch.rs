//! `read`, `read-unaligned`, `write`, `exec` and their `-el0` forms: one access. `spin`: one that is made again and
//! again. `hold`: one over which all vector registers are held.

use super::refuse;
use crate::bare::aborts::{self, Abort};
use crate::bare::held::{self, Held};
use crate::bare::report::report;
use crate::bare::target::{CodeVa, Target};
use crate::bare::{access, cpu, el0, guest};
use cordon_probe::layout::{Access, Alias, Level, Touch};
use cordon_probe::pattern;

/// Makes the access and says how it went. A write leaves the pattern's value, so that a line's
/// first word stays right for `sweep`; an `exec` passes and gets back that value in x0.
pub(super) fn touch(touch: Touch, ipa: u64) {
    let Some(target) = Target::at(ipa, touch.size()) else {
        return refuse("bad-address");
    };
    let value = pattern::value(target.ipa());
    match touch.access {
        Access::Read | Access::Unaligned | Access::Write => {
            report(touch, target, access_data(touch, target, value))
        }
        Access::Exec => match target.code(touch.alias()) {
            Some(at) => report(touch, target, execute(touch, at, value)),
            None => refuse("no-code"),
        },
    }
}

/// Loads from `ipa`, and then does nothing that a hypervisor would hear of for a second.
pub(super) fn quiet(ipa: u64) {
    /// In microseconds.
    const SILENCE: u64 = 1_000_000;
    let Some(target) = Target::at(ipa, 8) else {
        return refuse("bad-address");
    };
    let outcome = access::load(target.va(Alias::El1Data));
    let end = cpu::microseconds() + SILENCE;
    while cpu::microseconds() < end {
        core::hint::spin_loop();
    }
    let result = outcome.as_ref().map_or_else(result, |_| "ok");
    report!("event=quiet ipa={ipa:#x} result={result}");
}

fn access_data(touch: Touch, target: Target, value: u64) -> Result<u64, Abort> {
    let at = match touch.access {
        Access::Unaligned => target.va(touch.alias()).offset(4),
        _ => target.va(touch.alias()),
    };
    let is_write = touch.access == Access::Write;
    if is_write {
        target.set_code(false);
    }
    match (touch.level, is_write) {
        (Level::El0, false) => el0::load(at),
        (Level::El0, true) => el0::store(at, value).map(|()| value),
        (Level::El1, false) => access::load(at),
        (Level::El1, true) => access::store(at, value).map(|()| value),
    }
}

fn execute(touch: Touch, at: CodeVa, argument: u64) -> Result<u64, Abort> {
    match touch.level {
        Level::El0 => el0::call(at, argument),
        Level::El1 => access::call(at, argument),
    }
}

fn report(touch: Touch, target: Target, outcome: Result<u64, Abort>) {
    let ipa = target.ipa();
    let abort = match outcome {
        Ok(value) => {
            return report!("event=touch kind={touch} ipa={ipa:#x} result=ok value={value:#x}");
        }
        Err(abort) => abort,
    };
    if let Some(page) = target.page()
        && abort.syndrome().is_external_abort()
    {
        guest::get().ledger.lose(page);
    }
    let Abort {
        esr,
        far,
        vector,
        spsr,
        ..
    } = abort;
    let result = result(&abort);
    report!(
        "event=touch kind={touch} ipa={ipa:#x} result={result} esr={esr:#x} far={far:#x} \
         vector={vector:#x} spsr={spsr:#x}"
    );
}

/// Reads the same word again and again, whatever comes of it.
pub(super) fn spin(ipa: u64, rounds: u64) {
    let Some(target) = Target::at(ipa, 8) else {
        return refuse("bad-address");
    };
    let at = target.va(Alias::El1Data);
    let aborts = (0..rounds).filter(|_| access::load(at).is_err()).count();
    report!(
        "event=spin ipa={:#x} rounds={rounds} aborts={aborts}",
        target.ipa()
    );
}

/// Loads from `ipa` with something in all vector registers, which has to be there afterwards.
pub(super) fn hold(ipa: u64) {
    let Some(target) = Target::at(ipa, 8) else {
        return refuse("bad-address");
    };
    let Held {
        bytes,
        changed,
        aborted,
    } = held::over_a_load(target.va(Alias::El1Data));
    if let Some(page) = target.page()
        && aborted
    {
        guest::get().ledger.lose(page);
    }
    let result = if aborted {
        result(&aborts::last(cpu::id()))
    } else {
        "ok"
    };
    report!("event=hold ipa={ipa:#x} bytes={bytes} changed={changed} result={result}");
}

/// What an exception is called: `sea`, or `fault` if it is anything else.
pub(super) fn result(abort: &Abort) -> &'static str {
    if abort.syndrome().is_external_abort() {
        "sea"
    } else {
        "fault"
    }
}
