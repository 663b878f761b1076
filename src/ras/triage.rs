//! What to do about an error exception, by tables.
//!
//! The CPU tells with each external abort and SError how far its own state can be trusted (FEAT_RAS:
//! `SET` and `AET`; Arm ARM DDI 0487, "RAS PE Architecture"). Together with who consumed the error, that
//! decides. The tables below are the whole of the decision; each row has a test.
//!
//! A verdict is the most lenient thing that is still right. Whether something can be told to the guest
//! in the end depends on what is known of the address; who carries out a verdict may have to fall
//! back to a harsher one, never to a milder.

use super::esr::{Abort, AsyncErrorType, Origin, SError, SErrorKind, SyncErrorType};

#[cfg(test)]
mod tests;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Write it down. Nothing was lost.
    Log,
    /// Contain what firmware reports, and execute the instruction again. If the address is really lost
    /// the access meets the hole and the guest is told then.
    Restart,
    /// Contain, and give the guest's vCPU a synchronous external abort.
    ContainAndAbort,
    /// Contain, and give the guest's vCPU a virtual SError.
    ContainAndSError,
    /// Contain, and let Cordon's own copy routine return an error.
    ContainAndFailCopy,
    /// The VM is beyond help, the others are not.
    StopVm,
    /// Nothing on this machine can be trusted any more.
    StopMachine,
}

/// Who consumed the error or owns what is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Nobody: nothing was consumed.
    Nobody,
    /// The guest consumed its own memory.
    Guest,
    /// Cordon consumed memory on a guest's behalf.
    HypervisorForGuest,
    /// Cordon's own memory.
    Hypervisor,
    /// The CPU or what connects it; no memory is known to be at fault.
    Platform,
}

/// A verdict and who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What to do.
    pub verdict: Verdict,
    /// Who is to blame.
    pub blame: Blame,
}

/// Who made the access that met the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consumer {
    /// A guest, in its own memory or its own tables.
    Guest,
    /// The walk of a guest's stage-2 tables, which are Cordon's memory.
    Stage2Walk,
    /// Cordon, in a copy that has a fix-up.
    HypervisorCopy,
    /// Cordon, anywhere else.
    Hypervisor,
}

impl Consumer {
    /// Who made the access that `abort` tells of. `in_copy`: the instruction has a fix-up.
    /// `table_memory`: the failing address is known, from a record, to be one of a stage-2 table.
    ///
    /// `S1PTW` marks the stage-2 walk that was made for a stage-1 walk; an abort on the stage-2 walk of
    /// the access itself looks like one on a stage-1 walk, and only the record tells them apart.
    pub fn of(abort: &Abort, in_copy: bool, table_memory: bool) -> Self {
        match abort.origin {
            Origin::SameLevel if in_copy => Self::HypervisorCopy,
            Origin::SameLevel => Self::Hypervisor,
            Origin::LowerLevel => {
                let on_walk = abort.walk_error().is_some();
                if on_walk && (abort.stage1_walk || table_memory) {
                    Self::Stage2Walk
                } else {
                    Self::Guest
                }
            }
        }
    }
}

/// What the machine promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The CPU has FEAT_RAS: `SET` and `AET` mean something.
    pub feat_ras: bool,
    /// The interconnect keeps an uncontained error of one VM's memory away from the memory of all
    /// others. Then such an error costs the VM, else the machine.
    pub isolates_vms: bool,
}

/// What the CPU says about its state after a synchronous external abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncClass {
    /// UER.
    Recoverable,
    /// UEO.
    Restartable,
    /// UC, or the reserved encoding.
    Uncontainable,
    /// Nothing: no FEAT_RAS. The abort is precise nevertheless.
    Unclassified,
}

/// What the CPU says about its state after an SError.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AsyncClass {
    /// CE.
    Corrected,
    /// UEO.
    Restartable,
    /// UER.
    Recoverable,
    /// UEU.
    Unrecoverable,
    /// UC, reserved, implementation defined, uncategorized, or no FEAT_RAS.
    Uncontainable,
}

/// Whom an SError hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interrupted {
    /// A guest: it was running, or it left the error pending until the barrier at EL2's entry.
    Guest,
    /// Cordon.
    Hypervisor,
}

const fn decision(verdict: Verdict, blame: Blame) -> Decision {
    Decision { verdict, blame }
}

/// Synchronous external aborts. An uncontained error is not in here: [`uncontained`] decides on it.
#[rustfmt::skip]
const SYNC: [(Consumer, SyncClass, Decision); 12] = {
    use Consumer::{Guest, Hypervisor, HypervisorCopy, Stage2Walk};
    use SyncClass::{Recoverable, Restartable, Unclassified};
    use Verdict::{ContainAndAbort, ContainAndFailCopy, Restart, StopMachine, StopVm};
    [
        (Guest,          Recoverable,  decision(ContainAndAbort,    Blame::Guest)),
        (Guest,          Restartable,  decision(Restart,            Blame::Guest)),
        (Guest,          Unclassified, decision(ContainAndAbort,    Blame::Guest)),
        // The table can't be read, so the VM can't run; the guest has done nothing and could do nothing.
        (Stage2Walk,     Recoverable,  decision(StopVm,             Blame::Hypervisor)),
        (Stage2Walk,     Restartable,  decision(StopVm,             Blame::Hypervisor)),
        (Stage2Walk,     Unclassified, decision(StopVm,             Blame::Hypervisor)),
        // Restarting a copy gains nothing: its fix-up gives the caller an error at once.
        (HypervisorCopy, Recoverable,  decision(ContainAndFailCopy, Blame::HypervisorForGuest)),
        (HypervisorCopy, Restartable,  decision(ContainAndFailCopy, Blame::HypervisorForGuest)),
        (HypervisorCopy, Unclassified, decision(ContainAndFailCopy, Blame::HypervisorForGuest)),
        (Hypervisor,     Recoverable,  decision(StopMachine,        Blame::Hypervisor)),
        (Hypervisor,     Restartable,  decision(StopMachine,        Blame::Hypervisor)),
        (Hypervisor,     Unclassified, decision(StopMachine,        Blame::Hypervisor)),
    ]
};

/// SErrors. An uncontained error is not in here: [`uncontained`] decides on it.
#[rustfmt::skip]
const ASYNC: [(Interrupted, AsyncClass, Decision); 8] = {
    use AsyncClass::{Corrected, Recoverable, Restartable, Unrecoverable};
    use Interrupted::{Guest, Hypervisor};
    use Verdict::{ContainAndSError, Log, Restart, StopMachine};
    [
        (Guest,      Corrected,     decision(Log,              Blame::Nobody)),
        (Guest,      Restartable,   decision(Restart,          Blame::Guest)),
        (Guest,      Recoverable,   decision(ContainAndSError, Blame::Guest)),
        // The guest can't continue, which is for its kernel to find out: it may lose just a process.
        (Guest,      Unrecoverable, decision(ContainAndSError, Blame::Guest)),
        (Hypervisor, Corrected,     decision(Log,              Blame::Nobody)),
        (Hypervisor, Restartable,   decision(Restart,          Blame::Hypervisor)),
        (Hypervisor, Recoverable,   decision(StopMachine,      Blame::Hypervisor)),
        (Hypervisor, Unrecoverable, decision(StopMachine,      Blame::Hypervisor)),
    ]
};

/// An error that may have gone anywhere, or about which nothing is known.
const fn uncontained(guest: bool, machine: Machine) -> Decision {
    if guest && machine.isolates_vms {
        decision(Verdict::StopVm, Blame::Guest)
    } else if guest {
        decision(Verdict::StopMachine, Blame::Platform)
    } else {
        decision(Verdict::StopMachine, Blame::Hypervisor)
    }
}

/// Decides on an abort of `consumer`. `None` if the abort is not external: no error, and none of this
/// module's business.
pub fn sync(abort: &Abort, consumer: Consumer, machine: Machine) -> Option<Decision> {
    let class = match abort.error_type? {
        // Without FEAT_RAS the field is RES0.
        _ if !machine.feat_ras => SyncClass::Unclassified,
        SyncErrorType::Recoverable => SyncClass::Recoverable,
        SyncErrorType::Restartable => SyncClass::Restartable,
        SyncErrorType::Uncontainable | SyncErrorType::Reserved => SyncClass::Uncontainable,
    };
    let row = SYNC.iter().find(|(c, s, _)| (*c, *s) == (consumer, class));
    // A guest's own access, or the walk for it, may stay within the VM.
    let guest = matches!(consumer, Consumer::Guest | Consumer::Stage2Walk);
    Some(row.map_or_else(|| uncontained(guest, machine), |(_, _, decision)| *decision))
}

/// Whether the CPU with this `MIDR_EL1` calls an SError unrecoverable (UEU) that it cannot contain (UC):
/// Neoverse N1, erratum 1349291, all revisions.
pub const fn overstates_serrors(midr: u64) -> bool {
    /// Implementer, architecture and part number: without variant and revision.
    const PART: u64 = 0xff0f_fff0;
    const NEOVERSE_N1: u64 = 0x410f_d0c0;
    midr & PART == NEOVERSE_N1
}

/// The same SError, from a CPU that [`overstates_serrors`].
#[must_use]
pub fn not_overstated(serror: SError) -> SError {
    match serror.kind {
        SErrorKind::Classified(AsyncErrorType::Unrecoverable) => SError {
            kind: SErrorKind::Classified(AsyncErrorType::Uncontainable),
            ..serror
        },
        _ => serror,
    }
}

/// Decides on an SError that hit `interrupted`.
pub fn serror(serror: &SError, interrupted: Interrupted, machine: Machine) -> Decision {
    let class = match serror.kind {
        _ if !machine.feat_ras => AsyncClass::Uncontainable,
        SErrorKind::ImplementationDefined | SErrorKind::Uncategorized => AsyncClass::Uncontainable,
        SErrorKind::Classified(kind) => match kind {
            AsyncErrorType::Corrected => AsyncClass::Corrected,
            AsyncErrorType::Restartable => AsyncClass::Restartable,
            AsyncErrorType::Recoverable => AsyncClass::Recoverable,
            AsyncErrorType::Unrecoverable => AsyncClass::Unrecoverable,
            AsyncErrorType::Uncontainable | AsyncErrorType::Reserved(_) => {
                AsyncClass::Uncontainable
            }
        },
    };
    let row = ASYNC
        .iter()
        .find(|(i, a, _)| (*i, *a) == (interrupted, class));
    let guest = interrupted == Interrupted::Guest;
    row.map_or_else(|| uncontained(guest, machine), |(_, _, decision)| *decision)
}
