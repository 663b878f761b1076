//! Errors that the guest asks its firmware for, by the kernel's own means (Linux
//! `Documentation/firmware-guide/acpi/apei/einj.rst`).

use crate::dax::put;
use crate::modules;
use crate::report::report;
use anyhow::{Result, bail};
use std::fs;

/// How long the kernel has for what it says of an error.
const SETTLED: std::time::Duration = std::time::Duration::from_millis(300);

/// `einj TYPE ADDRESS [latent]`: an error of this type (8 corrected, 0x10 uncorrected) in the page at this
/// guest-physical address. A latent one waits until somebody consumes it.
pub(crate) fn inject(words: &str) -> Result<()> {
    let words: Vec<&str> = words.split_whitespace().collect();
    let (kind, address, latent) = match words[..] {
        [kind, address] => (kind, address, false),
        [kind, address, "latent"] => (kind, address, true),
        _ => bail!("bad-argument"),
    };
    modules::load(modules::EINJ)?;
    let einj = "/sys/kernel/debug/apei/einj";
    let available = fs::read_to_string(format!("{einj}/available_error_type"))?;
    for (file, value) in [
        ("error_type", kind),
        ("flags", "2"),
        ("param1", address),
        ("param2", "0xfffffffffffff000"),
        ("notrigger", if latent { "1" } else { "0" }),
    ] {
        put(&format!("{einj}/{file}"), value)?;
    }
    let done = fs::write(format!("{einj}/error_inject"), "1");
    let result = done.map_or_else(|error| format!("{:?}", error.kind()), |()| "ok".to_owned());
    // The kernel says on the same console what it was told, from another CPU; a line of each is whole if they do not
    // come at once.
    std::thread::sleep(SETTLED);
    report(&format!(
        "event=einj types={} result={result}",
        available.lines().count()
    ));
    Ok(())
}
