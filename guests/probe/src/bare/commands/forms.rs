//! `forms A [B]`, `atomics A`, `straddle A`, `contend A N` and `contend-vms A N`: every form of load and store, on memory that may be under a hole.
//!
//! The same instruction with the same registers is executed twice: on memory around A, and around B, or on the buffer in
//! ordinary RAM, at the same place in a page. Registers and memory have to be the same afterwards.

use super::refuse;
use crate::bare::forms::{self, FORMS, Form, Frame};
use crate::bare::report::report;
use crate::bare::smp::{self, Job};
use crate::bare::target::{Target, Va};
use crate::bare::{aborts, access, cpu, guest};
use cordon_probe::PAGE_SIZE;
use cordon_probe::layout::Alias;

/// Words around the base that an instruction may access, and where they begin.
const WINDOW: usize = 64;
const BEFORE: u64 = 128;
/// What the longest offsets reach, LDRB's and LDR's.
const FAR: [u64; 4] = [4088, 4096, 16376, 16384];
/// How often a store-exclusive on ordinary memory may fail for nothing.
const TRIES: usize = 100;
/// Forms that are named when they go wrong.
const NAMED: u64 = 8;

/// Where LDTR and STTR are allowed.
const VIEW: Alias = Alias::El0Data;

/// The words of a window.
type Window = [u64; WINDOW + FAR.len()];

/// Where an instruction is tried.
#[derive(Clone, Copy)]
struct Place {
    base: Va,
    start: u64,
    /// A page that is not looked at.
    lost: Option<u64>,
}

impl Place {
    fn new(base: u64) -> Option<Self> {
        let start = base / 8 * 8 - BEFORE;
        Some(Self {
            base: Target::at(base, 1)?.va(VIEW),
            start,
            lost: None,
        })
    }

    /// The same, but for the page that holds `ipa`.
    const fn without(self, ipa: u64) -> Self {
        let lost = Some(ipa / PAGE_SIZE);
        Self { lost, ..self }
    }

    /// The words' addresses.
    fn words(self) -> impl Iterator<Item = Option<Va>> {
        let near = (0..WINDOW as u64).map(move |at| self.start + 8 * at);
        let far = FAR.into_iter().map(move |at| self.start + BEFORE + at);
        let va = move |ipa: u64| {
            let target = Target::at(ipa, 8).filter(|_| self.lost != Some(ipa / PAGE_SIZE));
            Some(target?.va(VIEW))
        };
        near.chain(far).map(va)
    }

    /// Writes the window.
    fn fill(self, seed: u64) {
        for (at, va) in (0..).zip(self.words()) {
            if let Some(va) = va {
                let _ = access::store(va, mix(seed + at));
            }
        }
    }

    /// Reads it; what is not looked at counts as 0.
    fn window(self) -> Window {
        let mut window = [0; _];
        for (word, va) in window.iter_mut().zip(self.words()) {
            *word = va.map_or(0, |va| access::load(va).unwrap_or(0));
        }
        window
    }
}

/// Something that is different for each `seed` (splitmix64).
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Registers before an instruction: small indices, the rest by `seed`. Of every other form, what CAS expects is
/// what is there.
fn registers(form: usize, base: u64) -> Frame {
    let seed = 1000 * form as u64;
    let garbage = mix(seed) << 32;
    let mut x = core::array::from_fn(|at| mix(seed + 100 + at as u64));
    (x[0], x[8], x[11]) = (0, 16, 3);
    (x[9], x[10]) = (0xffff_ffe8, garbage | 40);
    (x[12], x[13]) = (garbage | 5, garbage | 0xffff_fff9);
    if form.is_multiple_of(2) {
        let word = |at| mix(seed + BEFORE / 8 + at);
        (x[2], x[3]) = (word(0), word(1));
        (x[4], x[6], x[7]) = (word(0), word(0), word(1));
    }
    let v = core::array::from_fn(|at| {
        let half = |n| u128::from(mix(seed + 200 + n + 2 * at as u64));
        half(0) << 64 | half(1)
    });
    Frame::new(x, base, v)
}

/// What one instruction left: registers relative to its base, and memory.
#[derive(PartialEq, Eq)]
struct Left {
    frame: Frame,
    window: Window,
    /// Where it aborted, from the base on.
    far: Option<u64>,
}

fn attempt(at: usize, place: Place) -> Left {
    let mut frame = registers(at, place.base.get());
    place.fill(1000 * at as u64);
    let aborted = forms::execute(at, place.base, &mut frame);
    let far = aborted.then(|| aborts::last(cpu::id()).far.wrapping_sub(place.base.get()));
    frame.x[1] = frame.x[1].wrapping_sub(place.base.get());
    frame.sp = frame.sp.wrapping_sub(place.base.get());
    Left {
        frame,
        window: place.window(),
        far,
    }
}

/// The same on ordinary memory. A store-exclusive there may fail at an interrupt.
fn reference(at: usize, form: &Form, place: Place) -> Left {
    let mut left = attempt(at, place);
    for _ in 0..TRIES {
        if !form.exclusive || left.frame.x[6] == 0 {
            break;
        }
        left = attempt(at, place);
    }
    left
}

/// The place in the buffer that lies in its page as `ipa` does.
fn likewise(ipa: u64) -> Option<Place> {
    let middle = guest::get().buffer.ipa + 64 * PAGE_SIZE;
    Place::new(middle + ipa % PAGE_SIZE)
}

fn places(ipa: u64, like: Option<u64>) -> Option<(Place, Place)> {
    let other = like.map_or_else(|| likewise(ipa), Place::new)?;
    Some((Place::new(ipa)?, other))
}

/// `forms A [B]`: all forms at A, or, where A is no multiple of 16, those that need not be aligned. What they leave is
/// compared with what they leave at B, or in the buffer.
pub(super) fn forms(ipa: u64, like: Option<u64>) {
    let aligned = ipa.is_multiple_of(16);
    compare("forms", (ipa, like), |form| {
        !form.lone && (form.plain || aligned)
    });
}

/// `atomics A`: the atomics at A that lie within 16 aligned bytes there, so that they need not be aligned (FEAT_LSE2).
pub(super) fn atomics(ipa: u64) {
    compare("atomics", (ipa, None), |form| {
        form.atomic > 0 && !form.stack && ipa % 16 + form.atomic <= 16
    });
}

/// Executes the forms that are wanted at an address, and at another or in the buffer.
fn compare(event: &str, (ipa, like): (u64, Option<u64>), is_wanted: impl Fn(&Form) -> bool) {
    let Some((place, other)) = places(ipa, like) else {
        return refuse("bad-address");
    };
    forms::enable_vectors();
    let (mut count, mut wrong, mut aborts, mut encodings) = (0, 0_u64, 0_u64, 0_u64);
    for (at, form) in FORMS.iter().enumerate() {
        encodings += u64::from(forms::assembled(at) != form.word);
        if !is_wanted(form) {
            continue;
        }
        count += 1;
        let there = attempt(at, place);
        aborts += u64::from(there.far.is_some());
        if there != reference(at, form, other) {
            wrong += 1;
            name(form, wrong);
        }
    }
    report!(
        "event={event} ipa={ipa:#x} count={count} wrong={wrong} aborts={aborts} encodings={encodings}"
    );
}

fn name(form: &Form, wrong: u64) {
    if wrong <= NAMED {
        report!("event=form-wrong word={:#010x}", form.word);
    }
}

/// `straddle A`: accesses that begin right before the page of A, which is lost, and in its last byte. They must
/// abort at the first byte of the page that they touch, and leave everything as it was; those of one byte before
/// it must be as anywhere.
pub(super) fn straddle(ipa: u64) {
    let bad = ipa / PAGE_SIZE * PAGE_SIZE;
    let (before, end) = (bad - 1, bad + PAGE_SIZE - 1);
    let (Some((below, other)), Some((above, _))) = (places(before, None), places(end, None)) else {
        return refuse("bad-address");
    };
    let (below, above) = (below.without(bad), above.without(bad));
    // Of the other, what lies behind the border is not looked at either.
    let other = other.without(other.start + BEFORE + 8);
    forms::enable_vectors();
    let (mut count, mut wrong, mut aborts) = (0_u64, 0_u64, 0_u64);
    for (at, form) in FORMS.iter().enumerate().filter(|(_, form)| form.alone) {
        for (place, far) in [(below, 1), (above, 0)] {
            count += 1;
            let left = attempt(at, place);
            aborts += u64::from(left.far.is_some());
            let right = match left.far {
                Some(at_far) => at_far == far && is_untouched(at, place, &left),
                None => far != 0 && left == reference(at, form, other),
            };
            if !right {
                wrong += 1;
                name(form, wrong);
            }
        }
    }
    report!("event=straddle ipa={ipa:#x} count={count} wrong={wrong} aborts={aborts}");
}

/// Whether registers and memory are as they were before.
fn is_untouched(at: usize, place: Place, left: &Left) -> bool {
    let before = registers(at, 0);
    let seed = 1000 * at as u64;
    let mut words = (0..).zip(left.window).zip(place.words());
    let kept = words.all(|((n, word), va)| va.is_none() || word == mix(seed + n));
    let same = before.x[2..] == left.frame.x[2..] && before.v == left.frame.v;
    kept && same && left.frame.x[1] == 0
}

/// What all vCPUs do.
#[derive(Clone, Copy, Debug)]
pub(in crate::bare) struct Plan {
    at: Va,
    rounds: u64,
}

/// The words that [`forms::add_up`] adds to, and the upper one of a pair.
fn sums(at: Va) -> [Va; 5] {
    [0, 8, 16, 32, 40].map(|offset| at.offset(offset))
}

/// Says what the words have come to.
fn report_sums(event: &str, vcpus: usize, plan: Plan) {
    let Plan { at, rounds } = plan;
    let [add, exclusive, cas, casp, above] =
        sums(at).map(|word| access::load(word).unwrap_or(u64::MAX));
    report!(
        "event={event} vcpus={vcpus} rounds={rounds} add={add} exclusive={exclusive} cas={cas} casp={casp} above={above}"
    );
}

/// `contend A N`: all vCPUs add 1 to the same words at A, a multiple of 64, N times, by LDADD, by exclusives, by CAS
/// and by CASP.
pub(super) fn contend(ipa: u64, rounds: u64) {
    let Some(target) = Target::at(ipa, 64) else {
        return refuse("bad-address");
    };
    let at = target.va(Alias::El1Data);
    if sums(at)
        .into_iter()
        .any(|word| access::store(word, 0).is_err())
    {
        return refuse("aborted");
    }
    let plan = Plan { at, rounds };
    smp::run_everywhere(Job::Contend(plan));
    report_sums("contend", guest::get().vcpus(), plan);
}

/// `contend-vms A N`: the same of this vCPU and of one in another VM that has the memory, too. It is zero before. They
/// wait for each other at A + 64, before they begin and when they are done.
pub(super) fn contend_vms(ipa: u64, rounds: u64) {
    let Some(target) = Target::at(ipa, 128) else {
        return refuse("bad-address");
    };
    let at = target.va(Alias::El1Data);
    let (plan, meeting) = (Plan { at, rounds }, at.offset(64));
    meet(meeting, 2);
    contend_part(plan);
    meet(meeting, 4);
    report_sums("contend-vms", 1, plan);
}

/// Waits until so many have come, this one among them.
fn meet(at: Va, all: u64) {
    let came = forms::add_up(at, 1);
    while came && access::load(at).is_ok_and(|here| here < all) {
        core::hint::spin_loop();
    }
}

/// This vCPU's part.
pub(in crate::bare) fn contend_part(plan: Plan) {
    if !forms::add_up(plan.at, plan.rounds) {
        report!("event=error what=contend-aborted");
    }
}
