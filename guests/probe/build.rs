//! Links the bare-metal image: position-independent, at address 0, laid out by `probe.ld`. Makes the
//! instructions that the `forms` command executes out of Cordon's list of them.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs, io};

/// The list: a word and a text a line.
const FORMS: &str = "../../src/vm/access/forms.txt";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=probe.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return Ok(());
    }
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&root).join("probe.ld");
    let script = script.display();
    // The code is position-independent by itself (AArch64's small code model is PC-relative). What
    // is not, pointers in constants, becomes RELATIVE relocations, also in read-only sections
    // (`notext`), and boot.rs applies them before anything is mapped read-only.
    for arg in ["-pie", "--no-dynamic-linker", "-znotext", "--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-T{script}");
    make_forms(Path::new(&root))
}

/// Makes `forms.s`, each instruction with a `ret` behind it, and `forms.rs`, the table of them.
fn make_forms(root: &Path) -> io::Result<()> {
    let path = root.join(FORMS);
    println!("cargo:rerun-if-changed={}", path.display());
    let list = fs::read_to_string(&path)?;
    let forms: Vec<(&str, &str)> = list
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(' '))
        .collect();
    let mut code = String::from(
        ".pushsection .text.forms, \"ax\"\n.arch armv8.5-a+simd+lse+rcpc\n.global form_stubs\nform_stubs:\n",
    );
    let mut table = format!("[Form; {}] = [\n", forms.len());
    for (at, (word, text)) in forms.iter().enumerate() {
        let load = load_exclusive(text);
        let (lone, before) = (is_load_exclusive(text), load.as_deref().unwrap_or("nop"));
        let _ = writeln!(code, "before_{at}: {before}\nform_{at}: {text}\nret\nnop");
        let _ = writeln!(code, ".pushsection .fixups, \"a\"\n.balign 4");
        let _ = writeln!(code, ".long form_{at} - .\n.long form_landing - .");
        let _ = writeln!(
            code,
            ".long before_{at} - .\n.long form_landing - .\n.popsection"
        );
        let (plain, stack) = (is_plain(text), text.contains("[sp"));
        let alone = plain && text.ends_with("[x1]");
        let exclusive = load.is_some();
        let atomic = atomic_bytes(text);
        let _ = writeln!(
            table,
            "Form {{ word: 0x{word}, plain: {plain}, stack: {stack}, alone: {alone}, lone: {lone}, exclusive: {exclusive}, atomic: {atomic} }},"
        );
    }
    code += ".popsection\n";
    table += "]";
    let table = format!("pub(super) static FORMS: {table};\n");
    let out = env::var("OUT_DIR").unwrap_or_default();
    for (name, text) in [("forms.s", code), ("forms.rs", table)] {
        fs::write(Path::new(&out).join(name), text)?;
    }
    Ok(())
}

/// Whether it need not be aligned: no atomic, exclusive or ordered access, and none by SP.
fn is_plain(text: &str) -> bool {
    let mnemonic = text.split(' ').next().unwrap_or_default();
    let kinds = ["r", "ur", "tr", "p", "np", "1", "2", "3", "4"];
    let is_one = kinds.iter().any(|kind| {
        let rest = mnemonic.strip_prefix("ld").or(mnemonic.strip_prefix("st"));
        let rest = rest.and_then(|rest| rest.strip_prefix(kind));
        rest.is_some_and(|rest| ["", "b", "h", "sb", "sh", "sw", "r"].contains(&rest))
    });
    is_one && !text.contains("[sp")
}

/// Bytes of memory, if it is an atomic read-modify-write; else 0.
fn atomic_bytes(text: &str) -> u64 {
    let (mnemonic, rest) = text.split_once(' ').unwrap_or((text, ""));
    let modify = ["add", "clr", "eor", "set", "smax", "smin", "umax", "umin"];
    let rest_of = mnemonic.strip_prefix("ld").or(mnemonic.strip_prefix("st"));
    let modifies = rest_of.is_some_and(|rest| modify.iter().any(|how| rest.starts_with(how)));
    if !modifies && !mnemonic.starts_with("swp") && !mnemonic.starts_with("cas") {
        return 0;
    }
    let one = match (mnemonic.as_bytes().last(), rest.as_bytes().first()) {
        (Some(b'b'), _) => 1,
        (Some(b'h'), _) => 2,
        (_, Some(b'w')) => 4,
        _ => 8,
    };
    if mnemonic.starts_with("casp") {
        2 * one
    } else {
        one
    }
}

/// A load-exclusive is executed with its store alone.
fn is_load_exclusive(text: &str) -> bool {
    text.starts_with("ldx") || text.starts_with("ldax")
}

/// The load-exclusive that a store-exclusive needs before it.
fn load_exclusive(text: &str) -> Option<String> {
    let (mnemonic, rest) = text.split_once(' ')?;
    let (_, data) = rest.split_once(", ")?;
    let kind = |store| mnemonic.strip_prefix(store);
    let plain = kind("stx").map(|kind| format!("ldx{kind} {data}"));
    plain.or_else(|| kind("stlx").map(|kind| format!("ldax{kind} {data}")))
}
