//! The engine against a fake QEMU: what passes, and every way to fail.
#![expect(clippy::panic, clippy::expect_used, reason = "this is a test")]

mod support;

use cordon_qemu::machine::{Delivery, Machine};
use cordon_qemu::outcome::Reason;
use cordon_qemu::report;
use cordon_qemu::steps::play;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Place, fails, played, scenario, shipped};

const ONE_PAGE: &str = include_str!("consoles/one-page.txt");

fn figures(steps: &str, script: &str) -> Vec<(String, String)> {
    played(&scenario(steps), script).result.expect("passes")
}

#[test]
fn one_page_passes_on_a_console_that_shows_it() {
    let outcome = played(&shipped("one-page"), ONE_PAGE);
    let verdict = report::verdict(&outcome);
    assert!(
        verdict.starts_with("PASS one-page lost_pages=1 tables=2 vsea=1 wrong=0 seconds="),
        "{verdict}\n{}",
        report::failure(&outcome, None)
    );
    let table = report::containment(&outcome).expect("a table");
    assert!(table.contains("│ 1 of 524,288 "), "{table}");
    assert!(
        table.contains("│ 1G x1, 2M x511, 4K x511, hole x1 "),
        "{table}"
    );
}

/// Every line of the console that the scenario is about, taken away or changed, fails the run: no
/// step of it is for show.
#[test]
fn one_page_fails_without_any_one_line() {
    let scenario = shipped("one-page");
    let unwanted = [
        "vm-start",
        "! ready",
        "probe> fill",
        "touched",
        "kind=ram",
        "id=0",
        "region=0",
    ];
    let lines: Vec<&str> = ONE_PAGE.lines().collect();
    std::thread::scope(|scope| {
        for (index, line) in lines.iter().enumerate() {
            let is_output = line.starts_with("uart0") || line.starts_with("secure");
            if !is_output || unwanted.iter().any(|word| line.contains(word)) {
                continue;
            }
            let mut rest = lines.clone();
            rest.remove(index);
            let (scenario, script) = (&scenario, rest.join("\n"));
            scope.spawn(move || {
                let outcome = played(scenario, &script);
                assert!(outcome.result.is_err(), "passed without `{line}`");
            });
        }
    });
}

#[test]
fn one_page_fails_when_any_figure_is_off() {
    let scenario = shipped("one-page");
    let changes = [
        (
            "ipa=0x1000000000 1g=2",
            "ipa=0x1000000000 1g=1",
            Reason::Timeout,
        ),
        (
            "1g=1 2m=511 4k=511 hole=1",
            "1g=1 2m=511 4k=510 hole=2",
            Reason::QemuExit,
        ),
        ("tables=5", "tables=6", Reason::Expect),
        ("tables=2", "tables=3", Reason::Expect),
        ("block=1g", "block=2m", Reason::Timeout),
        (
            "pages=524288\n<uart0 fill",
            "pages=524287\n<uart0 fill",
            Reason::Expect,
        ),
        (
            "event=fill pages=524288",
            "event=fill pages=1",
            Reason::Expect,
        ),
        ("poisoned pages=1", "poisoned pages=0", Reason::Expect),
        ("ok poisoned pages=1", "error no-table", Reason::Answer),
        ("record=written", "record=none", Reason::Timeout),
        ("signal=sea", "signal=serror", Reason::Timeout),
        (
            "severity=recoverable",
            "severity=corrected",
            Reason::Timeout,
        ),
        (
            "vsea seq=1 vm=probe vcpu=1 ipa={1 -",
            "vsea seq=1 vm=probe vcpu=1 ipa={1 + 0x1000 -",
            Reason::Timeout,
        ),
        (
            "contained seq=1 pa={1}",
            "contained seq=1 pa={1 + 0x1000}",
            Reason::Timeout,
        ),
        ("esr=0x96000010 far", "esr=0x86000010 far", Reason::Expect),
        (
            "esr=0x96000010 far={1 -",
            "esr=0x96000010 far={1 + 8 -",
            Reason::Timeout,
        ),
        ("lines=123456", "lines=0", Reason::Expect),
        ("vseas count=1", "vseas count=2", Reason::Expect),
        ("lost=1 wrong=0", "lost=2 wrong=0", Reason::Expect),
        ("lost=1 wrong=0", "lost=0 wrong=0", Reason::Expect),
        ("lost=1 wrong=0", "lost=1 wrong=1", Reason::Never),
        ("pages=524288 lost", "pages=524287 lost", Reason::Expect),
        (
            "event=lost ipa={1 -",
            "event=lost ipa={1 + 0x1000 -",
            Reason::Timeout,
        ),
        ("lost-end pages=1", "lost-end pages=2", Reason::Expect),
        ("contained=1 vsea", "contained=2 vsea", Reason::Expect),
        ("lost_pages=1", "lost_pages=2", Reason::Expect),
        ("reason=off", "reason=killed", Reason::QemuExit),
        (
            "reason=all-vms-stopped",
            "reason=hypervisor-error",
            Reason::Never,
        ),
        ("exit 0", "exit 3", Reason::QemuExit),
        ("exit 0", "hang", Reason::Timeout),
        (
            "<uart0 stop",
            "uart0 ras: event=fatal why=x pa=0x1\n<uart0 stop",
            Reason::Never,
        ),
        (
            "<uart0 stop",
            "uart0 panicked at src/main.rs\n<uart0 stop",
            Reason::Never,
        ),
        (
            "<uart0 sweep",
            "uart0 ras: event=vsea vm=probe\n<uart0 sweep",
            Reason::Expect,
        ),
        ("<uart0 sweep", "exit 0", Reason::QemuExit),
    ];
    std::thread::scope(|scope| {
        for (good, bad, reason) in changes {
            let scenario = &scenario;
            scope.spawn(move || {
                let script = ONE_PAGE.replacen(good, bad, 1);
                assert_ne!(script, ONE_PAGE, "`{good}` is not in the console");
                let result = played(scenario, &script).result;
                let failure = result.expect_err(&format!("`{bad}` passed"));
                // A vSEA that comes late may be caught by the count before or by the answer.
                assert_eq!(failure.reason, reason, "`{bad}`: {failure:?}");
            });
        }
    });
}

#[test]
fn a_line_that_does_not_come_fails_by_timeout_and_shows_what_came_instead() {
    let steps = "step = [{ wait = \"ras: event=contained tables=2\" }]";
    let script = "uart0 ras: event=contained tables=513\nhang";
    let what = fails(&scenario(steps), script, Reason::Timeout);
    assert!(what.contains("`ras: event=contained tables=2`"), "{what}");
    assert!(
        what.contains("but there was `ras: event=contained tables=513`"),
        "{what}"
    );
}

#[test]
fn after_a_timeout_the_log_has_what_the_cpus_are_at() {
    let place = Place::new();
    let answers = |script| {
        let scenario = scenario("step = [{ wait = \"cordon: event=boot\" }]");
        let _ = play(&place.tools(script), &scenario, None, &mut |_| {});
        let log = place.path().join("runs/t/qmp.log");
        let log = std::fs::read_to_string(log).expect("a log");
        log.matches("return").count()
    };
    assert_eq!(answers("hang"), 4, "two greetings, two looks");
    assert_eq!(answers("exit 1"), 0, "nobody is there");
}

#[test]
fn the_whole_run_is_bounded_too() {
    let steps = "step = [{ wait = \"cordon: event=boot\", timeout = 600 }]";
    let mut scenario = scenario(steps);
    scenario.timeout = 1;
    let begun = Instant::now();
    let what = fails(&scenario, "hang", Reason::Timeout);
    assert!(what.contains("whole run"), "{what}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_line_satisfies_one_wait_only() {
    let steps = "step = [{ wait = \"ras: event=vsea\" }, { wait = \"ras: event=vsea\" }]";
    let once = "uart0 ras: event=vsea seq=1\n";
    fails(&scenario(steps), &format!("{once}hang"), Reason::Timeout);
    figures(steps, &format!("{once}{once}hang"));
}

#[test]
fn lines_after_one_command_may_come_in_any_order() {
    let steps = "step = [{ firmware = \"poison 0\" }, { wait = \"ras: event=a\" }, { wait = \"ras: event=b\" }]";
    let script = "<secure poison\nuart0 ras: event=b\nuart0 ras: event=a\nsecure ok\nhang";
    figures(steps, script);
}

#[test]
fn what_came_before_a_command_does_not_answer_it() {
    let steps = "step = [{ wait = \"cordon: event=boot\" }, { guest = \"sweep\" }]";
    let early =
        "uart0 probe| guest: event=sweep lost=0\nuart0 cordon: event=boot\n<uart0 sweep\nhang";
    fails(&scenario(steps), early, Reason::Timeout);
}

#[test]
fn what_never_may_come_fails_the_run_whenever_it_comes() {
    let steps = "never = [\"guest: event=oops\"]\nstep = [{ pause = 300 }]";
    let what = fails(
        &scenario(steps),
        "uart0 probe| guest: event=oops\nhang",
        Reason::Never,
    );
    assert!(what.contains("event=oops"), "{what}");
    for line in ["guest: event=error what=x", "guest: event=panic what=x"] {
        let script = format!("uart0 probe| {line}\nhang");
        fails(
            &scenario("step = [{ pause = 300 }]"),
            &script,
            Reason::Never,
        );
    }
    for line in [
        "ras: event=no-record",
        "ras: event=overflow",
        "cordon: event=error what=x",
    ] {
        let script = format!("uart0 {line}\nhang");
        fails(
            &scenario("step = [{ pause = 300 }]"),
            &script,
            Reason::Never,
        );
    }
}

#[test]
fn a_scenario_may_be_about_what_others_must_never_see() {
    let steps = "allow = [\"ras: event=fatal\"]\nstep = [{ wait = \"ras: event=fatal\" }]";
    figures(steps, "uart0 ras: event=fatal pa=0x1\nhang");
}

#[test]
fn a_wrong_answer_fails_at_once() {
    let begun = Instant::now();
    let refused = "step = [{ firmware = \"poison 0\", timeout = 60 }]";
    let what = fails(
        &scenario(refused),
        "<secure poison\nsecure error not-memory\nhang",
        Reason::Answer,
    );
    assert!(what.contains("error not-memory"), "{what}");
    let other = "step = [{ guest = \"read 0\", answer = \"guest: result=sea\", timeout = 60 }]";
    let script = "<uart0 read\nuart0 probe| guest: event=touch result=ok\nhang";
    fails(&scenario(other), script, Reason::Answer);
    let missing = "step = [{ guest = \"fill\", capture = { n = \"pages\" }, timeout = 60 }]";
    fails(
        &scenario(missing),
        "<uart0 fill\nuart0 probe| guest: event=fill\nhang",
        Reason::Answer,
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// Ctrl-] m before the command and Ctrl-] c after it; what the command printed can be waited for then.
#[test]
fn a_command_for_the_monitor_leaves_the_console_to_the_guest_again() {
    let steps = "step = [{ monitor = \"vms\" }, { wait = \"cordon: event=vm on=2\" }, \
                 { keys = \"\\u001d2\" }, { guest = \"ram\" }]";
    let script = "<uart0 \u{1d}mvms\nuart0 cordon> vms\nuart0 cordon: event=vm vm=probe on=2\n\
                  uart0 cordon: event=monitor command=vms result=ok\n\
                  <uart0 \u{1d}c\u{1d}2ram\nuart0 probe| guest: event=ram\nhang";
    figures(steps, script);
}

#[test]
fn a_refusal_of_the_monitor_fails_at_once_unless_it_is_wanted() {
    let script = "<uart0 \u{1d}mfrob\n\
                  uart0 cordon: event=monitor command=frob result=error why=unknown-command\nhang";
    let refused = "step = [{ monitor = \"frob\", timeout = 60 }]";
    fails(&scenario(refused), script, Reason::Answer);
    let answer = "cordon: event=monitor result=error why=unknown-command";
    figures(
        &format!("step = [{{ monitor = \"frob\", answer = \"{answer}\" }}]"),
        script,
    );
}

#[test]
fn an_error_may_be_the_answer_that_is_wanted() {
    let steps = "step = [{ firmware = \"frob\", answer = \"error unknown-command\" }]";
    figures(steps, "<secure frob\nsecure error unknown-command\nhang");
}

#[test]
fn a_step_is_done_for_each_picked_page() {
    let steps = "pick = [{ name = \"bad\", span = \"64K\", count = 16 }]\n\
        step = [{ each = \"bad\", firmware = \"poison ${bad}\", capture = { pages = \"pages\" } },\n\
        { count = \"ok poisoned\", into = \"n\", expect = [\"n == 16\"] }]\n\
        figures = [\"n=${n}\"]";
    let script = (0..16)
        .map(|_| "<secure poison\nsecure ok poisoned pages=1\n")
        .collect::<String>();
    assert_eq!(
        figures(steps, &format!("{script}hang")),
        [("n".to_owned(), "16".to_owned())]
    );
}

#[test]
fn qmp_is_greeted_and_its_errors_fail() {
    figures("step = [{ qmp = '{\"execute\": \"stop\"}' }]", "hang");
    let steps = "step = [{ qmp = '{\"execute\": \"no-such\"}' }]";
    fails(&scenario(steps), "hang", Reason::Answer);
}

#[test]
fn a_figure_that_was_not_measured_fails_the_run() {
    let steps = "step = [{ pause = 10 }]\nfigures = [\"pa=${bar.pa}\"]";
    let what = fails(&scenario(steps), "hang", Reason::Figure);
    assert!(what.contains("bar.pa"), "{what}");
}

#[test]
fn a_qemu_that_does_not_start_says_why() {
    let what = fails(&scenario("step = [{ pause = 10 }]"), "die", Reason::Setup);
    assert!(what.contains("could not find anything"), "{what}");
    let place = Place::new();
    let mut tools = place.tools("hang");
    tools.qemu = vec!["/nonexistent/qemu".into()];
    let outcome = play(
        &tools,
        &scenario("step = [{ pause = 10 }]"),
        None,
        &mut |_| {},
    );
    let failure = outcome.result.expect_err("no such program");
    assert!(failure.what.contains("/nonexistent/qemu"), "{failure:?}");
}

#[test]
fn an_image_that_is_missing_fails_before_qemu_is_started() {
    let place = Place::new();
    let tools = place.tools("hang");
    std::fs::remove_file(place.path().join("probe.img")).expect("removed");
    let outcome = play(
        &tools,
        &scenario("step = [{ pause = 10 }]"),
        None,
        &mut |_| {},
    );
    let failure = outcome.result.expect_err("no image");
    assert_eq!(failure.reason, Reason::Setup);
    assert!(failure.what.contains("probe.img"), "{failure:?}");
}

#[test]
fn a_qemu_that_ends_too_soon_is_told_from_one_that_is_slow() {
    let steps = "step = [{ wait = \"cordon: event=boot\" }]";
    let what = fails(
        &scenario(steps),
        "stderr bad option\nexit 1",
        Reason::QemuExit,
    );
    assert!(
        what.contains("bad option") && what.contains("exit status: 1"),
        "{what}"
    );
}

fn is_alive(id: u32) -> bool {
    Path::new(&format!("/proc/{id}")).exists()
}

#[test]
fn qemu_is_gone_after_a_failed_run() {
    let place = Place::new();
    let tools = place.tools("pid\nhang");
    let steps = "step = [{ wait = \"cordon: event=boot\" }]";
    let outcome = play(&tools, &scenario(steps), None, &mut |_| {});
    assert!(outcome.result.is_err());
    let said = place.stderr("t");
    let id = said
        .trim()
        .strip_prefix("pid ")
        .and_then(|id| id.parse().ok());
    assert!(!is_alive(id.expect("a process id")));
}

#[test]
fn qemu_is_gone_after_a_panic() {
    let place = Place::new();
    let tools = place.tools("hang");
    let scenario = scenario("step = [{ pause = 10 }]");
    let id = std::sync::Mutex::new(0);
    let caught = std::panic::catch_unwind(|| {
        let machine = Machine::start(&tools, &scenario, None, Delivery::Lines).expect("starts");
        if let Ok(mut id) = id.lock() {
            *id = machine.id();
            assert!(is_alive(*id));
        }
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(caught.is_err());
    let id = *id.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    assert!(id != 0 && !is_alive(id));
}

#[test]
fn a_run_leaves_its_logs_and_a_script_to_repeat_it() {
    let place = Place::new();
    let tools = place.tools("uart0 cordon: event=boot\nsecure ! ready cpus=2\nhang");
    let steps = "step = [{ wait = \"cordon: event=boot\" }, { wait = \"! ready\" }]";
    let outcome = play(&tools, &scenario(steps), None, &mut |_| {});
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    let read = |name: &str| std::fs::read_to_string(outcome.logs.join(name)).expect("a log");
    assert_eq!(read("uart0.log"), "cordon: event=boot\n");
    assert_eq!(read("secure.log"), "! ready cpus=2\n");
    let script = read("qemu.sh");
    for part in [
        "x-rme=on",
        "secure=on",
        "ivshmem-plain",
        "bundle.cpio",
        "-nic none",
    ] {
        assert!(script.contains(part), "{script}");
    }
    assert!(outcome.logs.join("qemu.stderr").exists() && outcome.logs.join("qmp.log").exists());
}
