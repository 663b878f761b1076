//! `read`, `write`, `exec` and their `-el0` forms: one access.

use super::refuse;
use crate::bare::aborts::Abort;
use crate::bare::report::report;
use crate::bare::target::Target;
use crate::bare::{access, el0, guest};
use cordon_probe::layout::{Access, Level, Touch};
use cordon_probe::pattern;

/// Makes the access and says how it went. A write leaves the pattern's value, so that a line's
/// first word stays right for `sweep`; an `exec` passes and gets back that value in x0.
pub(super) fn touch(touch: Touch, ipa: u64) {
    let Some(target) = Target::at(ipa, touch.size()) else {
        return refuse("bad-address");
    };
    let ipa = target.ipa();
    match access(touch, target) {
        Ok(value) => report!("event=touch kind={touch} ipa={ipa:#x} result=ok value={value:#x}"),
        Err(abort) => {
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
            } = abort;
            let result = result(&abort);
            report!(
                "event=touch kind={touch} ipa={ipa:#x} result={result} esr={esr:#x} far={far:#x} \
                 vector={vector:#x} spsr={spsr:#x}"
            );
        }
    }
}

/// What an exception is called: `sea`, or `fault` if it is anything else.
pub(super) fn result(abort: &Abort) -> &'static str {
    if abort.syndrome().is_external_abort() {
        "sea"
    } else {
        "fault"
    }
}

fn access(touch: Touch, target: Target) -> Result<u64, Abort> {
    let at = target.va(touch.alias());
    let value = pattern::value(target.ipa());
    match (touch.level, touch.access) {
        (Level::El0, kind) => el0::touch(kind, at, value),
        (Level::El1, Access::Read) => access::load(at),
        (Level::El1, Access::Write) => access::store(at, value).map(|()| value),
        (Level::El1, Access::Exec) => access::call(at, value),
    }
}
