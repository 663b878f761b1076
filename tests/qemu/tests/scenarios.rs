//! The shipped scenarios, and what is said of bad ones.
#![expect(clippy::expect_used, reason = "this is a test")]

use cordon_qemu::scenario::{Scenario, ScenarioError, load_all};
use std::path::Path;

fn shipped() -> Vec<Scenario> {
    load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).expect("good scenarios")
}

#[test]
fn every_shipped_scenario_loads_and_the_issues_names_are_there() {
    let scenarios = shipped();
    let names: Vec<&str> = scenarios.iter().map(Scenario::name).collect();
    for name in [
        "one-page",
        "write",
        "fetch",
        "guest-table",
        "el0",
        "race",
        "race-bbm0",
        "same-2m",
        "many",
        "ram",
        "hypervisor",
        "latent",
        "smp4",
        "serror",
        "boot-kernel",
        "boot-bios",
        "bad-record",
        "bad-bundle-truncated",
        "bad-dtb-truncated",
        "bad-hest-truncated",
        "bad-cper",
        "bad-command",
        "bad-kernel",
        "firmware-selftest",
    ] {
        assert!(names.contains(&name), "{name} is missing from {names:?}");
    }
}

#[test]
fn every_shipped_scenario_measures_something_and_is_summed_up_in_one_line() {
    for scenario in shipped() {
        assert!(!scenario.figures.is_empty(), "{}", scenario.name());
        assert!(
            scenario.summary.chars().count() <= 80,
            "{}",
            scenario.summary
        );
        assert!(
            scenario.step.iter().any(|step| step.exit.is_some()),
            "{}",
            scenario.name()
        );
    }
}

/// A scenario with a VM of this granule, which has its device memory so many bytes behind 64 GiB.
fn with_granule(granule: &str, place: u64) -> Result<Vec<Scenario>, ScenarioError> {
    let ipa = (64 << 30) + place;
    let text = format!(
        "name = \"t\"\nsummary = \"t\"\nfigures = []\n[machine]\nboot = \"el3\"\ncpus = 1\n\
         memory = \"1G\"\ndevice-memory = [\"1G\"]\n[[vm]]\nname = \"a\"\nvcpus = 1\nram = \"64M\"\n\
         kernel = \"probe.img\"\ngranule = \"{granule}\"\n[[vm.device-memory]]\nsource = \"bar\"\n\
         size = \"1M\"\noffset = {place}\nipa = {ipa}\n[[step]]\nexit = true\n"
    );
    Scenario::parse(Path::new("t.toml"), &text)
}

#[test]
fn a_granule_is_one_of_three_and_device_memory_is_aligned_to_it() {
    for granule in ["4K", "16K", "64K"] {
        with_granule(granule, 0).expect("a good scenario");
    }
    let error = with_granule("8K", 0).expect_err("no such granule");
    assert_eq!(error.line, 14, "{error}");
    with_granule("16K", 16 << 10).expect("aligned to 16K");
    let error = with_granule("64K", 16 << 10).expect_err("aligned to 16K alone");
    assert_eq!(error.line, 18, "{error}");
    let wanted = "is not a multiple of 64 KiB";
    assert!(error.message.contains(wanted), "{error}");
}

#[test]
fn a_variant_differs_in_its_command_line_and_constants() {
    let scenarios = shipped();
    let find = |name| {
        scenarios
            .iter()
            .find(|s| s.name() == name)
            .expect("is there")
    };
    let (plain, variant) = (find("race"), find("race-bbm0"));
    assert!(plain.machine.cmdline.is_none());
    assert_eq!(
        variant
            .machine
            .cmdline
            .as_ref()
            .map(|c| c.as_ref().as_str()),
        Some("bbm=0")
    );
    assert_ne!(plain.set, variant.set);
}

/// A good scenario to be spoiled. Line numbers below count in it.
const GOOD: &str = r#"name = "t"
summary = "t"
figures = ["n=${n}"]

[machine]
boot = "el3"
cpus = 2
memory = "1G"
device-memory = ["2G"]

[[vm]]
name = "probe"
vcpus = 2
ram = "64M"
kernel = "probe.img"

[[vm.device-memory]]
source = "bar"
offset = "0"
size = "2G"
ipa = "64G"

[[pick]]
name = "page"
span = "2G"

[[step]]
firmware = "poison ${bar.pa + page}"
capture = { n = "pages" }
expect = ["n == 1"]
"#;

fn spoiled(good: &str, bad: &str) -> ScenarioError {
    let text = GOOD.replacen(good, bad, 1);
    assert_ne!(text, GOOD, "`{good}` is not in the text");
    Scenario::parse(Path::new("dir/t.toml"), &text).expect_err(bad)
}

#[test]
fn the_good_one_is_good() {
    Scenario::parse(Path::new("dir/t.toml"), GOOD).expect("good");
}

#[test]
fn what_cannot_be_meant_is_refused_with_file_line_and_key() {
    let vm2 = "[[vm]]\nname = \"probe\"\nvcpus = 0\nram = \"64M\"\nkernel = \"k\"\n[[step]]";
    for (good, bad, line, words) in [
        ("name = \"t\"", "name = \"u\"", 1, "name: `u`"),
        ("cpus = 2", "cpus = 0", 7, "machine.cpus"),
        ("[\"2G\"]", "[\"3G\"]", 9, "machine.device-memory"),
        ("[\"2G\"]", "[\"1G\"]", 20, "beyond BAR 0"),
        ("[\"2G\"]", "[]", 0, "there is no BAR 0"),
        ("name = \"probe\"", "name = \"Probe\"", 12, "vm.name"),
        (
            "name = \"probe\"",
            "name = \"a-name-too-long-for-it\"",
            12,
            "vm.name",
        ),
        ("[[step]]", vm2, 28, "two VMs are called `probe`"),
        ("vcpus = 2", "vcpus = 3", 13, "vm.vcpus: 3 vCPUs in all"),
        ("vcpus = 2", "vcpus = 65", 13, "vm.vcpus: 65"),
        ("ram = \"64M\"", "ram = \"65M\"", 14, "vm.ram"),
        ("ram = \"64M\"", "ram = \"0\"", 14, "vm.ram"),
        (
            "ram = \"64M\"",
            "ram = \"2G\"",
            14,
            "do not fit machine.memory",
        ),
        (
            "ram = \"64M\"",
            "ram = \"64M\"\nram-base = \"1M\"",
            15,
            "vm.ram-base",
        ),
        (
            "ram = \"64M\"",
            "ram = \"64M\"\nram-base = \"64G\"",
            22,
            "overlaps vm.ram",
        ),
        (
            "ram = \"64M\"",
            "ram = \"64M\"\nram-base = \"144M\"",
            14,
            "overlaps the PL011",
        ),
        (
            "offset = \"0\"",
            "offset = \"2048\"",
            19,
            "vm.device-memory.offset",
        ),
        ("offset = \"0\"", "offset = \"4K\"", 20, "beyond BAR 0"),
        ("size = \"2G\"", "size = \"0\"", 20, "vm.device-memory.size"),
        (
            "ipa = \"64G\"",
            "ipa = \"0x1000000800\"",
            21,
            "vm.device-memory.ipa",
        ),
        (
            "ipa = \"64G\"",
            "ipa = \"0x1000001000\"",
            21,
            "differ within a block",
        ),
        ("ipa = \"64G\"", "ipa = \"1G\"", 21, "overlaps vm.ram"),
        (
            "span = \"2G\"",
            "span = \"2G\"\ncount = 999999999",
            25,
            "cannot be picked",
        ),
        ("bar.pa + page", "bar.pa + pgae", 28, "`pgae`"),
        ("bar.pa + page", "bar.pa + n", 28, "`n`"),
        ("n == 1", "n", 30, "compares nothing"),
        ("n == 1", "m == 1", 30, "`m`"),
        ("n=${n}", "n=1", 3, "figures"),
        ("n=${n}", "n=${page}", 3, "not made of what a step captured"),
        ("n=${n}", "n = ${n}", 3, "figures"),
        (
            "figures =",
            "allow = [\"ras: event=x\"]\nfigures =",
            3,
            "allow",
        ),
        ("firmware =", "pause = 1\nfirmware =", 29, "step: one of"),
        (
            "capture =",
            "each = \"page\"\ncapture =",
            29,
            "no pick with a count",
        ),
        ("boot = \"el3\"", "boot = \"el3\"\nbot = 1", 7, "bot"),
        (
            "[machine]",
            "[[dtb]]\npatch = { at = 0, bytes = \"1\" }\n[machine]",
            6,
            "dtb.patch.bytes",
        ),
        ("[machine]", "[[dtb]]\n[machine]", 0, "dtb: give one of"),
        (
            "[machine]",
            "[acpi]\nmutate = [{}]\n[machine]",
            0,
            "acpi.mutate: give one of",
        ),
        (
            "firmware = \"poison ${bar.pa + page}\"\ncapture = { n = \"pages\" }",
            "record = { at = \"0\", pa = \"${pgae}\" }",
            28,
            "`pgae`",
        ),
        (
            "boot = \"el3\"",
            "boot = \"bios\"\ncmdline = \"x\"",
            7,
            "machine.cmdline",
        ),
        ("boot = \"el3\"", "boot = \"el9\"", 6, "el9"),
        (
            "boot = \"el3\"",
            "boot = \"el3\"\nboard = \"imx8mm-evk\"",
            0,
            "machine.board",
        ),
        (
            "boot = \"el3\"",
            "boot = \"kernel\"\nboard = \"imx8mm-evk\"",
            0,
            "machine.board",
        ),
        ("memory = \"1G\"", "memory = \"1Q\"", 8, "1Q"),
        ("captur", "kaptur", 29, "kapture"),
    ] {
        let error = spoiled(good, bad);
        let text = error.to_string();
        assert!(text.starts_with("dir/t.toml"), "{text}");
        assert!(text.contains(words), "`{bad}`: {text}");
        assert!(
            line == 0 || error.line == line,
            "`{bad}`: line {line} wanted: {text}"
        );
    }
}
