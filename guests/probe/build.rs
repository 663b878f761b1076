//! Links the bare-metal image: position-independent, at address 0, laid out by `probe.ld`.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=probe.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
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
}
