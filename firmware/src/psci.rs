//! PSCI 1.1 (Arm DEN 0022D) and the part of SMCCC that goes with it.
//!
//! Pure state: which CPUs exist, which are on, and where one that was asked for shall start. Waking
//! a CPU, putting it to sleep and switching the machine are the caller's: [`call`] returns what
//! is to be done as an [`Outcome`].
//!
//! **Order.** A CPU is `Off` from the start and waits in the holding pen. CPU_ON makes it `Pending`
//! and leaves it an entry point, then the caller wakes it. It takes the entry point itself, which
//! makes it `On`. CPU_OFF makes it `Off` before it goes to the pen, so that a CPU_ON that comes in
//! between is neither lost nor refused: the CPU looks before it sleeps. Each CPU's state has its own
//! lock, held for a few instructions; no other lock is taken inside.

use spin::Mutex;

use crate::layout::{MAX_CPUS, OWN, cpu_index};

const VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// Set in the function's number where its arguments are 64 bits wide.
const SMC64: u32 = 1 << 30;

const PSCI_1_1: i64 = 0x1_0001;
const SMCCC_1_1: i64 = 0x1_0001;
/// MIGRATE_INFO_TYPE: there is no Trusted OS that must migrate.
const NO_TRUSTED_OS: i64 = 2;
const SUCCESS: i64 = 0;
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INVALID_ADDRESS: i64 = -9;

/// Where a CPU enters the normal world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// The address of the first instruction, at EL2.
    pub address: u64,
    /// What x0 holds.
    pub context: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Off,
    Pending(EntryPoint),
    On,
}

/// What a call asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Return this in x0.
    Return(i64),
    /// Wake CPU number so, then return success.
    Wake(usize),
    /// Wait for an interrupt, then return success.
    Standby,
    /// The calling CPU goes to the holding pen.
    Off,
    /// The machine is powered off.
    SystemOff,
    /// The machine is reset.
    SystemReset,
}

/// The power state of all CPUs.
#[derive(Debug)]
pub struct Cpus([Mutex<State>; MAX_CPUS]);

impl Cpus {
    /// None exists yet.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { Mutex::new(State::Absent) }; MAX_CPUS])
    }

    /// The machine has this CPU, and it is off. Announcing it again changes nothing.
    pub fn announce(&self, cpu: usize) {
        self.update(cpu, |state| {
            if *state == State::Absent {
                *state = State::Off;
            }
        });
    }

    /// The CPU runs in the normal world, without having been asked by CPU_ON.
    pub fn boot(&self, cpu: usize) {
        self.update(cpu, |state| *state = State::On);
    }

    /// Where the CPU shall start, if it was asked for; it counts as on then.
    pub fn take_entry(&self, cpu: usize) -> Option<EntryPoint> {
        self.update(cpu, |state| {
            let State::Pending(entry) = *state else {
                return None;
            };
            *state = State::On;
            Some(entry)
        })?
    }

    fn update<R>(&self, cpu: usize, change: impl FnOnce(&mut State) -> R) -> Option<R> {
        self.0.get(cpu).map(|state| change(&mut state.lock()))
    }

    fn on(&self, mpidr: u64, entry: EntryPoint) -> Outcome {
        // No instruction begins at other addresses, and what is secure is not the caller's to run.
        if !entry.address.is_multiple_of(4) || OWN.contains(cordon::addr::Pa::new(entry.address)) {
            return Outcome::Return(INVALID_ADDRESS);
        }
        let Some(cpu) = affinity(mpidr) else {
            return Outcome::Return(INVALID_PARAMETERS);
        };
        let outcome = self.update(cpu, |state| match *state {
            State::Absent => Outcome::Return(INVALID_PARAMETERS),
            State::Pending(_) => Outcome::Return(ON_PENDING),
            State::On => Outcome::Return(ALREADY_ON),
            State::Off => {
                *state = State::Pending(entry);
                Outcome::Wake(cpu)
            }
        });
        outcome.unwrap_or(Outcome::Return(INVALID_PARAMETERS))
    }

    fn off(&self, cpu: usize) -> Outcome {
        self.update(cpu, |state| *state = State::Off);
        Outcome::Off
    }

    /// Levels above 0 need not be supported from PSCI 1.0 on.
    fn affinity_info(&self, mpidr: u64, level: u64) -> Outcome {
        let state = affinity(mpidr)
            .filter(|_| level == 0)
            .and_then(|cpu| self.update(cpu, |s| *s));
        Outcome::Return(match state {
            Some(State::On) => 0,
            Some(State::Off) => 1,
            Some(State::Pending(_)) => 2,
            Some(State::Absent) | None => INVALID_PARAMETERS,
        })
    }
}

impl Default for Cpus {
    fn default() -> Self {
        Self::new()
    }
}

/// The number of the CPU that a target argument names. Bits that are no affinity must be zero.
fn affinity(target: u64) -> Option<usize> {
    const AFFINITY: u64 = 0xff_00ff_ffff;
    if target & !AFFINITY != 0 {
        None
    } else {
        cpu_index(target)
    }
}

/// Executes a call from CPU `cpu`; `None` where the function belongs neither to PSCI nor to SMCCC.
pub fn call(cpus: &Cpus, cpu: usize, function: u32, arguments: [u64; 3]) -> Option<Outcome> {
    let [first, second, third] = match function & SMC64 {
        0 => arguments.map(|argument| argument & 0xffff_ffff),
        _ => arguments,
    };
    Some(match function {
        VERSION => Outcome::Return(PSCI_1_1),
        SMCCC_VERSION => Outcome::Return(SMCCC_1_1),
        SMCCC_ARCH_FEATURES => Outcome::Return(arch_features(first)),
        FEATURES => Outcome::Return(features(first)),
        MIGRATE_INFO_TYPE => Outcome::Return(NO_TRUSTED_OS),
        CPU_OFF => cpus.off(cpu),
        SYSTEM_OFF => Outcome::SystemOff,
        SYSTEM_RESET => Outcome::SystemReset,
        _ => match function & !SMC64 {
            CPU_ON => cpus.on(
                first,
                EntryPoint {
                    address: second,
                    context: third,
                },
            ),
            AFFINITY_INFO => cpus.affinity_info(first, second),
            CPU_SUSPEND => suspend(first),
            _ => return None,
        },
    })
}

/// The only power state is standby of the core: StateType 0, no level above 0, no StateID
/// (DEN 0022D section 5.4.2, original format).
const fn suspend(power_state: u64) -> Outcome {
    if power_state == 0 {
        Outcome::Standby
    } else {
        Outcome::Return(INVALID_PARAMETERS)
    }
}

const fn features(function: u64) -> i64 {
    let Ok(function) = truncate(function) else {
        return NOT_SUPPORTED;
    };
    match function {
        VERSION | CPU_OFF | SYSTEM_OFF | SYSTEM_RESET | FEATURES | MIGRATE_INFO_TYPE
        | SMCCC_VERSION => SUCCESS,
        _ => match function & !SMC64 {
            CPU_ON | AFFINITY_INFO | CPU_SUSPEND => SUCCESS,
            _ => NOT_SUPPORTED,
        },
    }
}

const fn arch_features(function: u64) -> i64 {
    match truncate(function) {
        Ok(SMCCC_VERSION | SMCCC_ARCH_FEATURES) => SUCCESS,
        _ => NOT_SUPPORTED,
    }
}

const fn truncate(argument: u64) -> Result<u32, ()> {
    if argument >> 32 == 0 {
        Ok(argument as u32)
    } else {
        Err(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: EntryPoint = EntryPoint {
        address: 0x4020_0000,
        context: 7,
    };
    const CPU_ON_64: u32 = CPU_ON | SMC64;
    const AFFINITY_INFO_64: u32 = AFFINITY_INFO | SMC64;

    fn two_cpus() -> Cpus {
        let cpus = Cpus::new();
        cpus.announce(0);
        cpus.announce(1);
        cpus.boot(0);
        cpus
    }

    fn on(cpus: &Cpus, target: u64) -> Outcome {
        call(cpus, 0, CPU_ON_64, [target, ENTRY.address, ENTRY.context]).unwrap()
    }

    fn info(cpus: &Cpus, target: u64) -> Outcome {
        call(cpus, 0, AFFINITY_INFO_64, [target, 0, 0]).unwrap()
    }

    #[test]
    fn a_cpu_goes_from_off_through_pending_to_on_and_back() {
        let cpus = two_cpus();
        assert_eq!(info(&cpus, 1), Outcome::Return(1));
        assert_eq!(on(&cpus, 1), Outcome::Wake(1));
        assert_eq!(info(&cpus, 1), Outcome::Return(2));
        assert_eq!(on(&cpus, 1), Outcome::Return(ON_PENDING));
        assert_eq!(cpus.take_entry(1), Some(ENTRY));
        assert_eq!(cpus.take_entry(1), None, "once");
        assert_eq!(info(&cpus, 1), Outcome::Return(0));
        assert_eq!(on(&cpus, 1), Outcome::Return(ALREADY_ON));
        assert_eq!(call(&cpus, 1, CPU_OFF, [0; 3]), Some(Outcome::Off));
        assert_eq!(on(&cpus, 1), Outcome::Wake(1), "even before it sleeps");
    }

    #[test]
    fn announcing_a_running_cpu_does_not_switch_it_off() {
        let cpus = two_cpus();
        cpus.announce(0);
        assert_eq!(info(&cpus, 0), Outcome::Return(0));
    }

    #[test]
    fn cpus_that_do_not_exist_are_invalid() {
        let cpus = two_cpus();
        for target in [2, 16, 0x100, 1 << 31, u64::MAX] {
            assert_eq!(
                on(&cpus, target),
                Outcome::Return(INVALID_PARAMETERS),
                "{target:#x}"
            );
            assert_eq!(
                info(&cpus, target),
                Outcome::Return(INVALID_PARAMETERS),
                "{target:#x}"
            );
        }
        let level_1 = call(&cpus, 0, AFFINITY_INFO_64, [0, 1, 0]);
        assert_eq!(level_1, Some(Outcome::Return(INVALID_PARAMETERS)));
    }

    #[test]
    fn an_entry_point_in_the_firmware_is_an_invalid_address() {
        let cpus = two_cpus();
        for address in [0, 0x0e00_0000, 0x4020_0002] {
            let outcome = call(&cpus, 0, CPU_ON_64, [1, address, 0]);
            assert_eq!(
                outcome,
                Some(Outcome::Return(INVALID_ADDRESS)),
                "{address:#x}"
            );
        }
        assert_eq!(info(&cpus, 1), Outcome::Return(1), "and leaves the CPU off");
    }

    #[test]
    fn smc32_arguments_are_32_bits() {
        let cpus = two_cpus();
        let junk = 0xdead_beef_0000_0000;
        let outcome = call(&cpus, 0, CPU_ON, [junk | 1, junk | 0x4020_0000, junk | 7]);
        assert_eq!(outcome, Some(Outcome::Wake(1)));
        assert_eq!(cpus.take_entry(1), Some(ENTRY));
    }

    #[test]
    fn features_lists_what_is_implemented() {
        for function in [
            VERSION,
            CPU_OFF,
            CPU_ON,
            CPU_ON_64,
            CPU_SUSPEND,
            SYSTEM_OFF,
            SMCCC_VERSION,
        ] {
            assert_eq!(features(u64::from(function)), SUCCESS, "{function:#x}");
        }
        for function in [0x8400_0005, 0x8400_0007, 0xc400_000e, 1 << 32 | 0x8400_0000] {
            assert_eq!(features(function), NOT_SUPPORTED, "{function:#x}");
        }
        assert_eq!(call(&two_cpus(), 0, 0x8400_0005, [0; 3]), None);
        assert_eq!(
            call(&two_cpus(), 0, VERSION, [0; 3]),
            Some(Outcome::Return(0x1_0001))
        );
    }

    #[test]
    fn only_standby_is_a_power_state() {
        let suspend = |state| call(&two_cpus(), 0, CPU_SUSPEND | SMC64, [state, 0, 0]).unwrap();
        assert_eq!(suspend(0), Outcome::Standby);
        assert_eq!(suspend(1 << 16), Outcome::Return(INVALID_PARAMETERS));
    }
}
