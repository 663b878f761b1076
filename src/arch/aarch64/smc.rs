//! What Cordon asks of the firmware below it: PSCI, by SMC.

use smccc::{Hvc, Smc, psci};

/// Starts a CPU at `entry` with `context` in x0.
///
/// # Errors
///
/// PSCI's own.
pub fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), psci::Error> {
    psci::cpu_on::<Smc>(mpidr, entry, context)
}

/// PSCI's version as `major.minor`, or `None` where nobody answers.
pub fn psci_version() -> Option<psci::Version> {
    psci::version::<Smc>().ok()
}

/// Turns the machine off. Comes back only if firmware will not, and then there is nothing to do.
pub fn system_off() -> ! {
    // An error leaves nothing better to do than what follows.
    let _ = psci::system_off::<Smc>();
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// The same from EL1, where a hypervisor has PSCI's place.
pub fn system_off_by_hvc() -> ! {
    // As above.
    let _ = psci::system_off::<Hvc>();
    loop {
        aarch64_cpu::asm::wfi();
    }
}

/// Cordon's firmware, by its SiP calls (docs/protocols.md): who answers can poison memory.
pub mod poison_switch {
    use smccc::{Call, Smc};

    const IDENTIFY: u32 = 0xc200_0000;
    /// "CORD".
    const SIGNATURE: u64 = 0x434f_5244;

    /// Whether this machine's memory can be poisoned by its firmware.
    pub fn is_there() -> bool {
        let [signature, version, ..] = Smc::call64(IDENTIFY, [0; 17]);
        signature == SIGNATURE && version == 1
    }
}
