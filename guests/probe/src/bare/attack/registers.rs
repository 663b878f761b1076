//! Every encoding of MRS and MSR, SYS and SYSL: a value, or UNDEFINED, and nothing but UNDEFINED where
//! it is another exception level's or of a feature that guests do not have.

use super::Attacker;
use super::lab::{Registers, WORDS};
use crate::bare::aborts::Abort;
use cordon_probe::attack::encoding::{ISB, PLACES, Place, RET};
use cordon_probe::attack::verdict::Verdict;

/// Instructions of each place in the code page: a read, a write, and two returns.
const STRIDE: usize = 4;

/// All registers and all instructions: read, and written with what was read.
pub(super) fn all(attacker: &mut Attacker) {
    for op0 in [3, 2, 1] {
        let mut number = 0;
        while number < PLACES {
            attacker.batch(op0, number);
            number += (WORDS / STRIDE) as u32;
        }
    }
}

fn is_trapped(abort: Abort) -> bool {
    abort.syndrome().exception_class() == 0x18
}

impl Attacker {
    /// As many places as fit into the page, from number `first`.
    fn batch(&mut self, op0: u8, first: u32) {
        let places = || (first..PLACES).map(|number| Place::new(op0, number));
        let words = places().flat_map(|place| [place.read(0), RET, place.write(0), RET]);
        self.lab.load(0, words);
        for (place, at) in places().zip((0..WORDS).step_by(STRIDE)) {
            let mut registers = Registers::default();
            // An address where an instruction takes one.
            registers[0] = self.lab.scratch;
            let read = self.lab.run(at, &mut registers).map(|()| registers[0]);
            self.judge_register(place, place.read(0), read);
            if op0 == 1 {
                registers[0] = self.lab.scratch;
            } else if read.is_err() {
                registers[0] = 0;
            }
            let write = self.lab.run(at + 2, &mut registers).map(|()| registers[0]);
            self.judge_register(place, place.write(0), write);
        }
    }

    fn judge_register(&mut self, place: Place, word: u32, outcome: Result<u64, Abort>) {
        let forbidden = place.belongs_above() || place.is_of_missing_feature();
        let verdict = match outcome {
            Ok(_) if forbidden => Verdict::Unexpected,
            Ok(_) => Verdict::Value,
            Err(abort) if abort.syndrome().exception_class() == 0 => Verdict::Undefined,
            Err(abort) if place.is_identification() && is_trapped(abort) => Verdict::Undefined,
            Err(_) => Verdict::Unexpected,
        };
        self.judge(verdict, (word, 0), outcome);
    }

    /// A register by chance is read, written with a value by chance, and, where it could be read, put
    /// back at once.
    pub(super) fn register_by_chance(&mut self) {
        let op0 = [3, 3, 3, 2, 1];
        let op0 = self.random.choose(&op0).unwrap_or(3);
        let place = Place::new(op0, self.random.number() as u32);
        let keeps = place.keeps_its_value().is_some();
        let write = [place.write(0), ISB, place.write(2), ISB, RET];
        self.lab
            .load(0, [place.read(2), RET].into_iter().chain(write));
        let mut registers = Registers::default();
        registers[2] = self.lab.scratch;
        let read = self.lab.run(0, &mut registers).map(|()| registers[2]);
        self.judge_register(place, place.read(2), read);
        registers[0] = match (op0, read) {
            (1, _) => self.lab.scratch,
            (_, Ok(value)) if keeps => value,
            (_, Err(_)) if keeps => 0,
            _ => self.random.value(),
        };
        if op0 == 1 {
            registers[2] = self.lab.scratch;
        }
        let written = self.lab.run(2, &mut registers).map(|()| registers[0]);
        self.judge_register(place, place.write(0), written);
    }
}
