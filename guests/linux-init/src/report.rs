//! Reports: one `guest:` line each, in the form that every guest of Cordon uses.

use std::io::{Write, stdout};

/// Writes one report, in one piece, so that the kernel's own lines cannot split it.
pub(crate) fn report(what: &str) {
    let line = format!("guest: {what}\n");
    let mut out = stdout().lock();
    // There is nobody else to tell that the console is gone.
    let _ = out.write_all(line.as_bytes());
    let _ = out.flush();
}

/// Reports that `what` failed. A value has no blanks in it, so the text gets dashes.
pub(crate) fn report_error(what: &str, error: &anyhow::Error) {
    let word = |text: &str| text.split_whitespace().collect::<Vec<_>>().join("-");
    report(&format!(
        "event=error what={} why={}",
        word(what),
        word(&format!("{error:#}"))
    ));
}
