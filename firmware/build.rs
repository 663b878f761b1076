//! Links the image by its own script. The flags all images share are in `.cargo/config.toml`.

fn main() {
    println!("cargo:rerun-if-changed=firmware.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bin=cordon-firmware=-T{directory}/firmware.ld");
    }
}
