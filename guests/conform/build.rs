//! Links the bare-metal image: position-independent, at address 0, laid out by `conform.ld`.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=conform.ld");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&root).join("conform.ld");
    let script = script.display();
    // Pointers in constants become RELATIVE relocations, also in read-only sections (`notext`);
    // boot.rs applies them.
    for arg in ["-pie", "--no-dynamic-linker", "-znotext", "--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-T{script}");
}
