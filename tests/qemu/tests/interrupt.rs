//! A signal ends a run in good order. In a process of its own, since a signal is for all of it.
#![expect(clippy::panic, clippy::expect_used, reason = "this is a test")]

#[expect(dead_code, reason = "shared with the engine's tests")]
mod support;

use cordon_qemu::interrupt;
use cordon_qemu::outcome::Reason;
use std::time::{Duration, Instant};
use support::{fails, scenario};

#[test]
fn a_signal_ends_the_run_and_is_named() {
    interrupt::install().expect("handlers");
    let begun = Instant::now();
    let killer = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(300));
        signal_hook::low_level::raise(signal_hook::consts::SIGTERM).expect("raised");
    });
    let steps = "step = [{ wait = \"cordon: event=boot\", timeout = 15 }]";
    fails(&scenario(steps), "hang", Reason::Interrupted);
    killer.join().expect("raised");
    assert!(begun.elapsed() < Duration::from_secs(5));
}
