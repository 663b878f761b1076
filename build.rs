//! Links the bare-metal image with its own layout; host builds of the library need nothing.

fn main() {
    println!("cargo:rerun-if-changed=linker.ld");
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        for arg in [
            &format!("-T{root}/linker.ld"),
            "-pie",
            "--no-dynamic-linker",
            // Relocations may fall into .rodata: they are applied before it is mapped read-only.
            "-znotext",
            "-zmax-page-size=4096",
        ] {
            println!("cargo:rustc-link-arg-bins={arg}");
        }
    }
}
