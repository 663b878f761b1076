//! HVC and SMC: every owner, fast and yielding, 32 and 64 bits wide, with arguments by chance.

use super::Attacker;
use super::lab::Registers;
use crate::bare::aborts::Abort;
use cordon_probe::attack::encoding::RET;
use cordon_probe::attack::smccc::{
    self, Expected, NOT_SUPPORTED, NUMBERS, OWNERS, expected, is_answer,
};
use cordon_probe::attack::verdict::Verdict;

/// The instructions, by which a call goes to the hypervisor or to firmware.
const CONDUITS: [u32; 2] = [0xd400_0002, 0xd400_0003];

/// Immediates that mean nothing (DEN0028 2.6: zero is all that SMCCC uses).
const IMMEDIATES: [u32; 10] = [1, 2, 3, 0xff, 0x100, 0x4b48, 0x7fff, 0x8000, 0xfffe, 0xffff];

/// The first register that is not SMCCC's to change, whatever it answers: SMCCC 1.1 keeps x4 up
/// (DEN0028 2.6); and all but x0 are kept where nothing was done.
const FIRST_KEPT: usize = 4;

/// All functions, all immediates.
pub(super) fn all(attacker: &mut Attacker) {
    for conduit in CONDUITS {
        for owner in 0..OWNERS {
            for (fast, wide) in [(true, true), (true, false), (false, true), (false, false)] {
                let by_chance = attacker.random.number() as u32 & 0xffff;
                for number in NUMBERS.into_iter().chain([by_chance, by_chance | 0x1_0000]) {
                    let function = smccc::function(fast, wide, owner, number);
                    attacker.call(conduit, function);
                }
            }
        }
        IMMEDIATES
            .iter()
            .for_each(|immediate| attacker.call_with_immediate(conduit, *immediate));
        attacker.call_from_el0(conduit);
    }
}

impl Attacker {
    fn arguments(&mut self, function: u32) -> Registers {
        let mut registers: Registers = core::array::from_fn(|_| self.random.value());
        // SMCCC: the function is w0, whatever stands above it.
        registers[0] = u64::from(function) | registers[0] << 32;
        registers
    }

    fn call(&mut self, conduit: u32, function: u32) {
        let before = self.arguments(function);
        let expected = expected(function, before[1]);
        if expected == Expected::NeverMade {
            return;
        }
        self.lab.load(0, [conduit, RET]);
        let mut after = before;
        let outcome = self.lab.run(0, &mut after).map(|()| after[0]);
        let kept = |from: usize| before[from..29] == after[from..29];
        let verdict = match (outcome, expected) {
            (Ok(NOT_SUPPORTED), Expected::NotSupported) if kept(1) => Verdict::Value,
            (Ok(_), Expected::Anything) if kept(FIRST_KEPT) => Verdict::Value,
            (Ok(x0), Expected::Answer) if is_answer(x0) && kept(FIRST_KEPT) => Verdict::Value,
            _ => Verdict::Unexpected,
        };
        self.judge(verdict, (conduit, function.into()), outcome);
    }

    fn call_with_immediate(&mut self, conduit: u32, immediate: u32) {
        let word = conduit | immediate << 5;
        self.lab.load(0, [word, RET]);
        // PSCI_VERSION, which would be answered.
        let before = self.arguments(0x8400_0000);
        let mut after = before;
        let outcome = self.lab.run(0, &mut after).map(|()| after[0]);
        let verdict = match outcome {
            Err(abort) if self.is_undefined_at(0, abort) && before == after => Verdict::Undefined,
            _ => Verdict::Unexpected,
        };
        self.judge(verdict, (word, immediate.into()), outcome);
    }

    /// The instruction number `at` is undefined, and it is that which is blamed.
    pub(super) fn is_undefined_at(&self, at: usize, abort: Abort) -> bool {
        abort.syndrome().exception_class() == 0 && abort.elr == self.lab.address(at)
    }

    fn call_from_el0(&mut self, conduit: u32) {
        self.lab.load(0, [conduit, RET]);
        let outcome = self.lab.run_el0(0, 0x8400_0000, 0);
        let verdict = match outcome {
            Err(abort) if abort.syndrome().exception_class() == 0 => Verdict::Undefined,
            _ => Verdict::Unexpected,
        };
        self.judge(verdict, (conduit, 0), outcome);
    }

    /// A call by chance.
    pub(super) fn call_by_chance(&mut self) {
        let conduit = self.random.choose(&CONDUITS).unwrap_or(CONDUITS[0]);
        let any = self.random.number() as u32;
        match self.random.below(8) {
            0 => self.call_with_immediate(conduit, any % 0xffff + 1),
            1 => self.call(conduit, any),
            2 => self.call(conduit, 0xc200_0000 | any & 0xf),
            3 => self.call(conduit, 0x8400_0000 | any & 0x4000_001f),
            _ => {
                let number = self.random.choose(&NUMBERS).unwrap_or(0);
                self.call(conduit, any & 0xff00_0000 | number);
            }
        }
    }
}
