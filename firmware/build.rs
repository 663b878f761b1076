//! Links each image by its own script. The flags all images share are in `.cargo/config.toml`.

fn main() {
    println!("cargo:rerun-if-changed=firmware.ld");
    println!("cargo:rerun-if-changed=tests/selftest/image.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for (bin, script) in [
            ("cordon-firmware", "firmware.ld"),
            ("firmware-selftest", "tests/selftest/image.ld"),
        ] {
            println!("cargo:rustc-link-arg-bin={bin}=-T{directory}/{script}");
        }
    }
}
