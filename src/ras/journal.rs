//! What happened to memory errors, noted in little time and said later.
//!
//! A line of text costs more than the containment that it tells of, and a UART more than both. So
//! what a guest has to wait for is noted here as it is, some bytes in a ring that was allocated at
//! boot, and becomes a line when there is time: before anything else is printed, so that the order of
//! all lines is that of what they tell; when a CPU has nothing to run; and otherwise shortly after.
//! Whoever prints holds the console, and [drains](Journal::drain) this first. What is rare prints its
//! line at once, through `log`.
//!
//! Nothing is ever lost for want of room: [`Journal::note`] refuses where the ring is full, and the
//! line is said at once, behind those that wait.
//!
//! The ring's lock is the innermost of all, and nothing is called while it is held.

use super::contain::AddressSpaces;
use super::cper::{Section, Severity};
use super::esr::Access;
use super::event::{Attempt, Consumer, ErrorEvent};
use super::pipeline::Injection;
use crate::addr::{Ipa, Pa, Vmid};
use crate::stage2::Hole;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use spin::Mutex;

#[cfg(test)]
mod tests;

/// Notes that fit in. An error that is consumed makes four.
pub const CAPACITY: usize = 64;

/// Longest section of a record that is noted, in bytes: a memory section takes 144 to 168.
const MAX_SECTION: usize = 192;

/// Something that happened. The keys are those of docs/protocols.md, "`ras:` events".
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the keys are described in docs/protocols.md")]
pub enum Note {
    /// An error was learned of, from a section of a record, which is noted with it.
    Detected(ErrorEvent),
    /// An error was asked for: by a VM, or by the operator.
    Injected {
        event: ErrorEvent,
        kind: Injection,
        by: Option<Vmid>,
    },
    /// An exception came, and no record.
    NoRecord(ErrorEvent),
    /// A mapping of a page was taken away. `block` is the size in bytes of what mapped it, `hole` of what does
    /// not map anything any more.
    Contained {
        seq: u64,
        pa: Pa,
        vm: Vmid,
        ipa: Ipa,
        block: u64,
        hole: u64,
        tables: usize,
        reserve: usize,
    },
    /// The page was contained before.
    Known { seq: u64, pa: Pa },
    /// A guest's access was found to be one to this page.
    Resolved {
        seq: u64,
        pa: Pa,
        ipa: Ipa,
        vm: Vmid,
        by: &'static str,
    },
    /// A guest was told, by an abort. With `touched`, it had accessed a hole, so often by now: that is a line of its
    /// own, before this one.
    Aborted {
        seq: u64,
        vm: Vmid,
        vcpu: usize,
        ipa: Option<Ipa>,
        far: u64,
        esr: u64,
        el: u8,
        access: Attempt,
        touched: Option<u64>,
    },
    /// A guest was told, by an SError.
    SError {
        seq: u64,
        vm: Vmid,
        vcpu: usize,
        vsesr: u64,
    },
    /// A guest has a record of a page in its error source `source`. `seq` is that of the error that it is about
    /// to be told of, if it is.
    Reported {
        seq: Option<u64>,
        vm: Vmid,
        source: u8,
        severity: Option<Severity>,
        ipa: Ipa,
    },
    /// An access to a good page under a hole was carried out.
    CarriedOut {
        vm: Vmid,
        vcpu: usize,
        ipa: Ipa,
        el: u8,
        access: Access,
        count: u64,
    },
    /// One was not.
    NotCarriedOut {
        vm: Vmid,
        vcpu: usize,
        ipa: Ipa,
        why: &'static str,
        count: u64,
    },
    /// A guest accessed a hole.
    Touched {
        seq: u64,
        vm: Vmid,
        vcpu: usize,
        ipa: Ipa,
        count: u64,
    },
}

impl Note {
    /// How much it matters.
    pub const fn level(&self) -> log::Level {
        match self {
            Self::NoRecord(_) | Self::NotCarriedOut { .. } => log::Level::Warn,
            _ => log::Level::Info,
        }
    }

    /// The note of which the line comes before this one's: what a guest waits for most often is noted at once.
    pub fn before(&self) -> Option<Self> {
        match *self {
            Self::Aborted {
                seq,
                vm,
                vcpu,
                ipa: Some(ipa),
                touched: Some(count),
                ..
            } => Some(Self::Touched {
                seq,
                vm,
                vcpu,
                ipa,
                count,
            }),
            _ => None,
        }
    }

    /// A VM has lost a page by the error with number `seq`.
    pub const fn contained(seq: u64, vm: Vmid, ipa: Ipa, hole: &Hole) -> Self {
        Self::Contained {
            seq,
            pa: hole.behind(ipa),
            vm,
            ipa,
            block: hole.block,
            hole: hole.size,
            tables: hole.tables,
            reserve: hole.reserve_left,
        }
    }
}

/// A note, and the section that belongs to it.
#[derive(Clone)]
struct Slot {
    note: Note,
    /// When it was made (CNTPCT_EL0).
    at: u64,
    section: [u8; MAX_SECTION],
    length: usize,
}

struct Ring {
    slots: Vec<Slot>,
    first: usize,
    length: usize,
}

impl Ring {
    #[inline(always)]
    fn push(&mut self, make: impl FnOnce() -> Note, at: u64, section: &[u8]) -> bool {
        if self.length >= self.slots.len() {
            return false;
        }
        let mut place = self.first + self.length;
        if place >= self.slots.len() {
            place -= self.slots.len();
        }
        let Some(slot) = self.slots.get_mut(place) else {
            return false;
        };
        let Some(room) = slot.section.get_mut(..section.len()) else {
            return false;
        };
        room.copy_from_slice(section);
        slot.length = section.len();
        slot.note = make();
        slot.at = at;
        self.length += 1;
        true
    }

    fn pop(&mut self) -> Option<Slot> {
        self.length = self.length.checked_sub(1)?;
        let slot = self.slots.get(self.first).cloned();
        self.first = (self.first + 1) % self.slots.len().max(1);
        slot
    }
}

/// Notes that are still to be said, in the order in which they were made.
pub struct Journal {
    ring: Mutex<Ring>,
    waiting: AtomicUsize,
    deferring: AtomicBool,
}

impl Journal {
    /// An empty one, which refuses everything until it is told to [defer](Self::defer).
    pub fn new() -> Self {
        let empty = Slot {
            note: Note::Known {
                seq: 0,
                pa: Pa::new(0),
            },
            at: 0,
            section: [0; MAX_SECTION],
            length: 0,
        };
        Self {
            ring: Mutex::new(Ring {
                slots: alloc::vec![empty; CAPACITY],
                first: 0,
                length: 0,
            }),
            waiting: AtomicUsize::new(0),
            deferring: AtomicBool::new(false),
        }
    }

    /// From now on somebody sees to it that notes are said, however quiet it is.
    pub fn defer(&self) {
        self.deferring.store(true, Ordering::Relaxed);
    }

    /// Notes something that happens now, when the counter stands `at`, with the bytes of the section of a record
    /// where there is one. `make` makes the note where it is to lie: always inlined, it is written field by field and
    /// copied from nowhere. False if it has to be said at once: there is no room, or nobody who would say it
    /// later.
    #[inline(always)]
    pub fn note(&self, make: impl FnOnce() -> Note, at: u64, section: &[u8]) -> bool {
        if !self.deferring.load(Ordering::Relaxed) {
            return false;
        }
        let mut ring = self.ring.lock();
        let noted = ring.push(make, at, section);
        self.waiting.store(ring.length, Ordering::Release);
        noted
    }

    /// Whether something is still to be said.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire) != 0
    }

    /// Hands to `say` all notes that wait, as lines without a target. One caller at a time, who holds
    /// the console, or the order would be lost. Some that are added meanwhile may be among them, but
    /// not so many that somebody who adds them without end could keep the caller here.
    pub fn drain<V: AddressSpaces>(&self, spaces: &V, mut say: impl FnMut(fmt::Arguments<'_>)) {
        for _ in 0..CAPACITY {
            if !self.is_waiting() {
                return;
            }
            let slot = {
                let mut ring = self.ring.lock();
                let slot = ring.pop();
                self.waiting.store(ring.length, Ordering::Release);
                slot
            };
            let Some(Slot {
                note,
                at,
                section,
                length,
            }) = slot
            else {
                return;
            };
            for note in note.before().iter().chain([&note]) {
                let line = Line {
                    note,
                    at,
                    section: section.get(..length).unwrap_or_default(),
                    spaces,
                };
                say(format_args!("{line}"));
            }
        }
    }

    /// The same where a CPU may have been stopped while it held the ring's lock: for the last words of
    /// a machine. What cannot be reached is left out.
    pub fn drain_by_force<V: AddressSpaces>(
        &self,
        spaces: &V,
        say: impl FnMut(fmt::Arguments<'_>),
    ) {
        /// How often the lock is asked for.
        const TRIES: u32 = 100_000;
        if (0..TRIES).any(|_| self.ring.try_lock().is_some()) {
            self.drain(spaces, say);
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

/// A note as a line of `docs/protocols.md`, without its target.
pub struct Line<'a, V> {
    /// What it tells.
    pub note: &'a Note,
    /// When it happened (CNTPCT_EL0).
    pub at: u64,
    /// The bytes of the section that a [`Note::Detected`] is about.
    pub section: &'a [u8],
    /// Who knows the VMs' names.
    pub spaces: &'a V,
}

impl<V: AddressSpaces> fmt::Display for Line<'_, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_event(f)?;
        write!(f, " at={}", self.at)
    }
}

impl<V: AddressSpaces> Line<'_, V> {
    fn write_event(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |vm: Vmid| self.spaces.name(vm);
        match *self.note {
            Note::Detected(event) => {
                write!(f, "event=detected {event}{}", self.vm_of(&event))?;
                // It was looked at before it was noted.
                Section::parse(self.section)
                    .map_or(Ok(()), |section| write!(f, " {}", section.line()))
            }
            Note::Injected { event, kind, by } => {
                let (severity, by) = (event.severity, by.map_or("operator", name));
                write!(f, "event=detected {event} section=none severity={severity}")?;
                if let Some(range) = event.range {
                    let (pa, pages) = (range.start().page(), range.pfns().count());
                    write!(f, " pa={pa} pages={pages}")?;
                }
                write!(f, " kind={kind} by={by}")
            }
            Note::NoRecord(event) => write!(f, "event=no-record {event}{}", self.vm_of(&event)),
            Note::Contained {
                seq,
                pa,
                vm,
                ipa,
                block,
                hole,
                tables,
                reserve,
            } => {
                let (vm, block, hole) = (name(vm), BlockSize(block), BlockSize(hole));
                write!(
                    f,
                    "event=contained seq={seq} pa={pa} vm={vm} ipa={ipa} block={block} hole={hole} tables={tables} reserve={reserve}"
                )
            }
            Note::Known { seq, pa } => write!(f, "event=known seq={seq} pa={pa}"),
            Note::Resolved {
                seq,
                pa,
                ipa,
                vm,
                by,
            } => write!(
                f,
                "event=resolved seq={seq} pa={pa} ipa={ipa} vm={} by={by}",
                name(vm)
            ),
            Note::Reported {
                seq,
                vm,
                source,
                severity,
                ipa,
            } => {
                f.write_str("event=reported")?;
                seq.map_or(Ok(()), |seq| write!(f, " seq={seq}"))?;
                write!(f, " vm={} source={source}", name(vm))?;
                severity.map_or(Ok(()), |severity| write!(f, " severity={severity}"))?;
                write!(f, " ipa={ipa}")
            }
            Note::Touched {
                seq,
                vm,
                vcpu,
                ipa,
                count,
            } => write!(
                f,
                "event=touched seq={seq} vm={} vcpu={vcpu} ipa={ipa} count={count}",
                name(vm)
            ),
            Note::CarriedOut {
                vm,
                vcpu,
                ipa,
                el,
                access,
                count,
            } => write!(
                f,
                "event=carried-out vm={} vcpu={vcpu} ipa={ipa} el={el} access={access} count={count}",
                name(vm)
            ),
            Note::NotCarriedOut {
                vm,
                vcpu,
                ipa,
                why,
                count,
            } => write!(
                f,
                "event=not-carried-out vm={} vcpu={vcpu} ipa={ipa} why={why} count={count}",
                name(vm)
            ),
            Note::SError {
                seq,
                vm,
                vcpu,
                vsesr,
            } => write!(
                f,
                "event=vserror seq={seq} vm={} vcpu={vcpu} vsesr={vsesr:#x}",
                name(vm)
            ),
            Note::Aborted {
                seq,
                vm,
                vcpu,
                ipa,
                far,
                esr,
                el,
                access,
                touched: _,
            } => {
                write!(f, "event=vsea seq={seq} vm={} vcpu={vcpu}", name(vm))?;
                ipa.map_or(Ok(()), |ipa| write!(f, " ipa={}", ipa.page()))?;
                write!(f, " far={far:#x} esr={esr:#x} el={el} access={access}")
            }
        }
    }

    /// ` vm=NAME` where a guest consumed the error.
    fn vm_of(&self, event: &ErrorEvent) -> impl fmt::Display {
        let name = match event.consumer {
            Some(Consumer::Vcpu { vm, .. }) => Some(self.spaces.name(vm)),
            _ => None,
        };
        fmt::from_fn(move |f| name.map_or(Ok(()), |name| write!(f, " vm={name}")))
    }
}

/// A block's size as the events write it: `1g`, `2m`, `4k`.
struct BlockSize(u64);

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, 'g'), (20, 'm'), (10, 'k')] {
            if self.0 >> shift != 0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}
