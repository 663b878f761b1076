//! A virtual CPU: pinned to one physical CPU, on or off.

use super::access::Carried;
use super::id_registers::IdRegisters;
use crate::ras::loops::Streak;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};
use spin::Once;

/// Affinity fields of the MPIDR of vCPU number `index`: Aff0 counts to 15, as a GICv3 wants it
/// for its SGI target lists, then Aff1 (Arm IHI 0069, 12.11 ICC_SGI1R_EL1).
pub const fn mpidr(index: usize) -> u64 {
    (index as u64 & 0xf) | (index as u64 >> 4) << 8
}

/// Whether a vCPU runs (DEN0022F 5.7, AFFINITY_INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Power {
    /// It runs.
    On = 0,
    /// It does not.
    Off = 1,
    /// It was told to, and will shortly.
    OnPending = 2,
}

/// What [`Vcpu::power`] holds while somebody turns the vCPU on: of two callers only the one who put
/// this there writes the entry, and [`Vcpu::take_start`] does not see it before it is complete.
const CLAIMED: u8 = 3;

impl Power {
    fn from_raw(raw: u8) -> Self {
        match raw {
            0 => Self::On,
            2 | CLAIMED => Self::OnPending,
            _ => Self::Off,
        }
    }
}

/// A virtual CPU.
///
/// Its power state is the one thing that other CPUs change: `Off` to `OnPending` by whoever turns
/// it on, who has written the entry before; everything else by its own CPU.
#[derive(Debug)]
pub struct Vcpu {
    /// Its number in its VM, from 0.
    pub index: usize,
    /// The physical CPU it is pinned to.
    pub pcpu: usize,
    /// What it met last. Its own CPU alone writes it, as the two that follow.
    pub streak: Streak,
    /// Times that it consumed poison.
    pub consumed: AtomicU64,
    /// Pages that it consumed at least once.
    pub distinct: AtomicU64,
    /// What it has to remember of accesses that were carried out for it.
    pub carried: Carried,
    /// What it reads in its ID registers, once it has read one.
    pub id_registers: Once<IdRegisters>,
    power: AtomicU8,
    entry: AtomicU64,
    context: AtomicU64,
}

impl Vcpu {
    /// A vCPU that is off.
    pub const fn new(index: usize, pcpu: usize) -> Self {
        Self {
            index,
            pcpu,
            streak: Streak::new(),
            consumed: AtomicU64::new(0),
            distinct: AtomicU64::new(0),
            carried: Carried::new(),
            id_registers: Once::new(),
            power: AtomicU8::new(Power::Off as u8),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
        }
    }

    /// Affinity fields of its MPIDR.
    pub const fn mpidr(&self) -> u64 {
        mpidr(self.index)
    }

    /// Whether it runs.
    pub fn power(&self) -> Power {
        Power::from_raw(self.power.load(Ordering::Acquire))
    }

    /// Asks for it to start at `entry` with `context` in x0. Its CPU has to be told.
    ///
    /// # Errors
    ///
    /// Its power state, if that is not `Off`.
    pub fn turn_on(&self, entry: u64, context: u64) -> Result<(), Power> {
        self.power
            .compare_exchange(
                Power::Off as u8,
                CLAIMED,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .map_err(Power::from_raw)?;
        self.entry.store(entry, Ordering::Relaxed);
        self.context.store(context, Ordering::Relaxed);
        self.power.store(Power::OnPending as u8, Ordering::Release);
        Ok(())
    }

    /// On its own CPU: it consumes poison, of a page that it had not consumed before if it is the `first` time.
    pub fn count(&self, first: bool) {
        let add_one = |counter: &AtomicU64| {
            let before = counter.load(Ordering::Relaxed);
            counter.store(before + 1, Ordering::Relaxed);
        };
        add_one(&self.consumed);
        if first {
            add_one(&self.distinct);
        }
    }

    /// On its own CPU: if it was asked to start, it now is on, and this is where it starts.
    pub fn take_start(&self) -> Option<(u64, u64)> {
        if self.power.load(Ordering::Acquire) != Power::OnPending as u8 {
            return None;
        }
        let start = (
            self.entry.load(Ordering::Relaxed),
            self.context.load(Ordering::Relaxed),
        );
        self.power.store(Power::On as u8, Ordering::Release);
        Some(start)
    }

    /// On its own CPU: if it was asked to start, it does not.
    pub fn cancel_start(&self) {
        let _ = self.power.compare_exchange(
            Power::OnPending as u8,
            Power::Off as u8,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    /// On its own CPU: it stops. All CPUs agree on the order in which vCPUs stop, so that of the last
    /// two at least one sees that both have.
    pub fn turn_off(&self) {
        self.power.store(Power::Off as u8, Ordering::Release);
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_once_where_the_first_caller_said() {
        let vcpu = Vcpu::new(1, 1);
        assert_eq!(vcpu.take_start(), None);
        assert_eq!(vcpu.turn_on(0x1000, 7), Ok(()));
        assert_eq!(vcpu.turn_on(0x2000, 8), Err(Power::OnPending));
        assert_eq!(vcpu.take_start(), Some((0x1000, 7)));
        assert_eq!(vcpu.take_start(), None);
        assert_eq!(vcpu.turn_on(0x2000, 8), Err(Power::On));
        vcpu.turn_off();
        assert_eq!(vcpu.turn_on(0x2000, 8), Ok(()));
    }

    #[test]
    fn while_its_entry_is_being_written_it_is_pending_and_does_not_start() {
        let vcpu = Vcpu::new(0, 0);
        vcpu.power.store(CLAIMED, Ordering::Relaxed);
        assert_eq!(vcpu.power(), Power::OnPending);
        assert_eq!(vcpu.turn_on(0x1000, 7), Err(Power::OnPending));
        assert_eq!(vcpu.take_start(), None);
    }

    #[test]
    fn affinities_differ_and_leave_room_for_sgi_lists() {
        assert_eq!(mpidr(0), 0);
        assert_eq!(mpidr(15), 0xf);
        assert_eq!(mpidr(16), 0x100);
        assert_eq!(mpidr(63), 0x30f);
    }

    #[test]
    fn of_two_callers_one_wins() {
        let vcpu = Vcpu::new(0, 0);
        let winners: usize = std::thread::scope(|scope| {
            let callers: std::vec::Vec<_> = (1..=4)
                .map(|n| {
                    scope.spawn({
                        let vcpu = &vcpu;
                        move || vcpu.turn_on(n, n).is_ok()
                    })
                })
                .collect();
            callers
                .into_iter()
                .filter_map(|c| c.join().ok())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
        let (entry, context) = vcpu.take_start().unwrap();
        assert_eq!(entry, context);
    }
}
