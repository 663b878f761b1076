//! PSCI by whichever conduit the device tree names.

use cordon_probe::machine::Conduit;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use smccc::psci::{self, Error};
use smccc::{Hvc, Smc};

/// Whether PSCI is called by `smc`. Set once, before there are other vCPUs.
static BY_SMC: AtomicBool = AtomicBool::new(false);

/// Chooses the conduit.
pub(super) fn init(conduit: Conduit) {
    BY_SMC.store(conduit == Conduit::Smc, Relaxed);
}

fn conduit() -> Conduit {
    if BY_SMC.load(Relaxed) {
        Conduit::Smc
    } else {
        Conduit::Hvc
    }
}

/// Starts the CPU with affinity `mpidr` at `entry` with `context` in x0.
pub(super) fn cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), Error> {
    match conduit() {
        Conduit::Hvc => psci::cpu_on::<Hvc>(mpidr, entry, context),
        Conduit::Smc => psci::cpu_on::<Smc>(mpidr, entry, context),
    }
}

/// Powers the machine off. Returns only if that does not work.
pub(super) fn off() {
    off_by(conduit());
}

/// As [`off`], by a given conduit.
pub(super) fn off_by(conduit: Conduit) {
    // SYSTEM_OFF does not return (PSCI 5.1.9); if it does, the caller halts.
    let _ = match conduit {
        Conduit::Hvc => psci::system_off::<Hvc>(),
        Conduit::Smc => psci::system_off::<Smc>(),
    };
}
