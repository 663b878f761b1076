//! Any bytes as the `vms.dtb` of a bundle. See `cordon_fuzz::platform::vms`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::platform::vms(bytes));
