//! What Cordon asks of the firmware below it: PSCI, by SMC.

use core::sync::atomic::{AtomicBool, Ordering};
use smccc::{Hvc, Smc, psci};

/// Nobody is there to be called: an SMC would be undefined, or worse.
static IS_ABSENT: AtomicBool = AtomicBool::new(false);

/// Nothing of this is called from now on.
pub fn forget() {
    IS_ABSENT.store(true, Ordering::Relaxed);
}

fn is_absent() -> bool {
    IS_ABSENT.load(Ordering::Relaxed)
}

/// Starts a CPU at `entry` with `context` in x0.
///
/// # Errors
///
/// PSCI's own.
pub fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), psci::Error> {
    if is_absent() {
        return Err(psci::Error::NotSupported);
    }
    psci::cpu_on::<Smc>(mpidr, entry, context)
}

/// PSCI's version as `major.minor`, or `None` where nobody answers.
pub fn psci_version() -> Option<psci::Version> {
    if is_absent() {
        return None;
    }
    psci::version::<Smc>().ok()
}

/// Whether there is somebody to be asked.
pub fn is_there() -> bool {
    !is_absent()
}

/// Turns the machine off. Comes back if firmware will not.
pub fn system_off() {
    if !is_absent() {
        // What is there to be done then is the caller's affair.
        let _ = psci::system_off::<Smc>();
    }
}

/// Starts the machine anew. Comes back if firmware will not.
pub fn system_reset() {
    if !is_absent() {
        // As above.
        let _ = psci::system_reset::<Smc>();
    }
}

/// [`system_off`] from EL1, where a hypervisor has PSCI's place.
pub fn system_off_by_hvc() {
    // As above.
    let _ = psci::system_off::<Hvc>();
}

/// Cordon's firmware, by its SiP calls (docs/protocols.md): who answers can poison memory.
pub mod poison_switch {
    use smccc::{Call, Smc};

    const IDENTIFY: u32 = 0xc200_0000;
    const HEAL: u32 = 0xc200_0002;
    /// "CORD".
    const SIGNATURE: u64 = 0x434f_5244;

    /// Whether this machine's memory can be poisoned by its firmware.
    pub fn is_there() -> bool {
        if super::is_absent() {
            return false;
        }
        let [signature, version, ..] = Smc::call64(IDENTIFY, [0; 17]);
        signature == SIGNATURE && version == 1
    }

    /// Asks for the page at `pa` to be good again, with its contents. False if that was refused. Only where
    /// [`is_there`].
    pub fn heal(pa: u64) -> bool {
        let mut arguments = [0; 17];
        (arguments[0], arguments[1]) = (pa, 1);
        let [changed, ..] = Smc::call64(HEAL, arguments);
        changed.cast_signed() >= 0
    }
}
