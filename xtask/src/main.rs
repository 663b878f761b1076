//! Builds, fetches, runs and tests everything: `cargo xtask help`.

fn main() {}
