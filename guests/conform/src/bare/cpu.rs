//! The CPUs: what each of them has, and how work is given to another.

use super::sys;
use super::test::Stop;
use super::vectors::{Code, Exception};
use super::{boot, gic, machine, psci, timer};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use spin::Mutex;

/// The most CPUs that are used.
pub(super) const MAX_CPUS: usize = 8;

/// How long another CPU may take for anything, in microseconds.
const PATIENCE: u64 = 20_000_000;

/// Something that a CPU is to do.
pub(super) type Work = fn(u64) -> u64;

/// What a CPU has.
pub(super) struct Cpu {
    /// Whether a synchronous exception is expected.
    pub(super) expecting: AtomicBool,
    /// The last one.
    pub(super) exception: Mutex<Option<Exception>>,
    /// Instructions that a test has made.
    pub(super) code: Code,
    taken: [AtomicU32; 128],
    work: Mutex<Option<(Work, u64)>>,
    result: AtomicU64,
    posted: AtomicU64,
    done: AtomicU64,
    /// Counts its starts.
    starts: AtomicU64,
    /// What it was like at its first instruction.
    entry: Mutex<Entry>,
}

/// A CPU at its first instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// x0.
    pub(super) context: u64,
    /// SCTLR_EL1.
    pub(super) sctlr: u64,
    /// DAIF.
    pub(super) daif: u64,
    /// CurrentEL and SPSel, whose bits differ.
    pub(super) level: u64,
}

impl Cpu {
    const fn new() -> Self {
        Self {
            expecting: AtomicBool::new(false),
            exception: Mutex::new(None),
            code: Code::new(),
            taken: [const { AtomicU32::new(0) }; 128],
            work: Mutex::new(None),
            result: AtomicU64::new(0),
            posted: AtomicU64::new(0),
            done: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            entry: Mutex::new(Entry {
                context: 0,
                sctlr: 0,
                daif: 0,
                level: 0,
            }),
        }
    }

    /// It took this interrupt by an exception.
    pub(super) fn took(&self, intid: u64) {
        if let Some(count) = self.taken.get(intid as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often it took this interrupt by an exception.
    pub(super) fn taken(&self, intid: u64) -> u32 {
        let count = self.taken.get(intid as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// How it was started last, and how often.
    pub(super) fn entry(&self) -> (Entry, u64) {
        (*self.entry.lock(), self.starts.load(Ordering::Acquire))
    }
}

static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];

/// The CPU that runs this.
pub(super) fn this() -> &'static Cpu {
    get(sys::tpidr() as usize)
}

/// The CPU with this number.
pub(super) fn get(number: usize) -> &'static Cpu {
    &CPUS[number % MAX_CPUS]
}

/// Microseconds of the virtual counter.
pub(super) fn now() -> u64 {
    let ticks = u128::from(sys::cntvct()) * 1_000_000;
    (ticks / u128::from(sys::cntfrq().max(1))) as u64
}

/// Waits for something to become true. False if it does not within a generous time.
pub(super) fn wait_for(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = now() + PATIENCE;
    while !condition() {
        if now() > deadline {
            return false;
        }
        sys::pause();
    }
    true
}

/// Watches for some time that something does not become true.
pub(super) fn never(mut condition: impl FnMut() -> bool) -> bool {
    const A_WHILE: u64 = 3_000;
    let end = now() + A_WHILE;
    while now() < end {
        if condition() {
            return false;
        }
        sys::pause();
    }
    true
}

/// Gives `work` to another CPU, which must have none.
pub(super) fn post(number: usize, work: Work, argument: u64) {
    let cpu = get(number);
    *cpu.work.lock() = Some((work, argument));
    cpu.posted.fetch_add(1, Ordering::Release);
    sys::wake();
}

/// Waits until it is done.
pub(super) fn finish(number: usize) -> Result<u64, Stop> {
    let cpu = get(number);
    let posted = cpu.posted.load(Ordering::Acquire);
    if wait_for(|| cpu.done.load(Ordering::Acquire) == posted) {
        Ok(cpu.result.load(Ordering::Relaxed))
    } else {
        Err(Stop::Fail("another-cpu-is-silent", number as u64, posted))
    }
}

/// Has a CPU do `work`, itself if it is the one that runs this.
pub(super) fn on(number: usize, work: Work, argument: u64) -> Result<u64, Stop> {
    if number as u64 == sys::tpidr() {
        return Ok(work(argument));
    }
    post(number, work, argument);
    finish(number)
}

/// Has a CPU start, and waits for its first sign of life.
pub(super) fn start(number: usize) -> Result<(), Stop> {
    let (_, starts) = get(number).entry();
    let status = psci::cpu_on(number, boot::secondary_entry(), number as u64);
    if status != psci::SUCCESS {
        return Err(Stop::Fail("cpu-on", status.cast_unsigned(), 0));
    }
    started(number, starts)
}

/// Waits until it has started once more than `before` times.
pub(super) fn started(number: usize, before: u64) -> Result<(), Stop> {
    if wait_for(|| get(number).entry().1 == before + 1) {
        Ok(())
    } else {
        Err(Stop::Fail("cpu-does-not-start", number as u64, before))
    }
}

/// All other CPUs.
pub(super) fn start_others() -> Result<(), Stop> {
    (1..machine().cpus()).try_for_each(start)
}

/// CPUs 1 and up arrive here from `boot`.
pub(super) extern "C" fn secondary(context: u64, sctlr: u64, daif: u64, level: u64) -> ! {
    let cpu = this();
    *cpu.entry.lock() = Entry {
        context,
        sctlr,
        daif,
        level,
    };
    timer::off();
    gic::enable_interface();
    let mut seen = cpu.posted.load(Ordering::Acquire);
    cpu.done.store(seen, Ordering::Release);
    cpu.starts.fetch_add(1, Ordering::Release);
    sys::wake();
    loop {
        let posted = cpu.posted.load(Ordering::Acquire);
        if posted == seen {
            sys::pause();
            continue;
        }
        seen = posted;
        let work = cpu.work.lock().take();
        if let Some((work, argument)) = work {
            cpu.result.store(work(argument), Ordering::Relaxed);
        }
        cpu.done.store(seen, Ordering::Release);
        sys::wake();
    }
}
