//! Any bytes as a bundle. See `cordon_fuzz::platform::bundle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cordon_fuzz::platform::bundle(bytes));
