//! Any bytes as a bundle: refused, or its VMs are read and each gets its device tree.
#![no_main]

use cordon::platform::bundle::Bundle;
use cordon::vm::config::{self, Limits};
use cordon::vm::guest_dt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|archive: &[u8]| {
    let Ok(bundle) = Bundle::parse(archive) else { return };
    match config::read(&bundle, Limits { cpus: 8, ipa_bits: 40 }) {
        Ok(vms) => vms.iter().for_each(|vm| {
            let _ = guest_dt::build(vm);
        }),
        Err(error) => assert!(error.to_string().starts_with("why=")),
    }
});
