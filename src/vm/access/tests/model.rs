//! What an instruction does, by the assembler's text of it. Nothing here knows of encodings.

use super::{Flat, State};
use crate::vm::access::env::GuestRegisters;
use std::string::{String, ToString};
use std::vec::Vec;

/// A register by name: its kind, its bytes and its number; 31 is zero.
#[derive(Clone, Copy, Debug)]
struct Name {
    vector: bool,
    size: u64,
    number: u8,
}

fn name(text: &str) -> Name {
    let (kind, number) = text.split_at(1);
    let size = match kind {
        "b" => 1,
        "h" => 2,
        "w" | "s" => 4,
        "x" | "d" => 8,
        "q" => 16,
        _ => unreachable!("{text}"),
    };
    Name {
        vector: !matches!(kind, "w" | "x"),
        size,
        number: match number {
            "zr" => 31,
            number => number.parse().unwrap(),
        },
    }
}

fn number(text: &str) -> i64 {
    text.trim_start_matches('#').parse().unwrap()
}

/// The parts of an instruction's operands.
#[derive(Debug)]
struct Operands {
    /// What stands before the list of vectors or the address.
    registers: Vec<String>,
    /// `v0.16b` ..., and the lane.
    vectors: Vec<(u8, u64, u64)>,
    lane: Option<u64>,
    /// What is between the brackets.
    address: Vec<String>,
    pre: bool,
    post: Option<String>,
}

fn split(text: &str) -> Vec<String> {
    let parts = text.split(',').map(str::trim).filter(|it| !it.is_empty());
    parts.map(ToString::to_string).collect()
}

/// The arrangement `16b`, or an element `b`: bytes of a vector and of an element.
fn arrangement(text: &str) -> (u64, u64) {
    let kind = &text[text.len() - 1..];
    let element = name(&std::format!("{kind}0")).size;
    let count = &text[..text.len() - 1];
    let lanes = if count.is_empty() {
        1
    } else {
        count.parse().unwrap()
    };
    (lanes * element, element)
}

impl Operands {
    fn parse(text: &str) -> Self {
        let (list, rest) = match text.strip_prefix('{') {
            Some(rest) => rest.split_once('}').unwrap(),
            None => ("", text),
        };
        let vectors = split(list).into_iter().map(|vector| {
            let (register, kind) = vector.split_once('.').unwrap();
            let (size, element) = arrangement(kind);
            (register[1..].parse().unwrap(), size, element)
        });
        let vectors: Vec<_> = vectors.collect();
        let (lane, rest) = match rest.strip_prefix('[') {
            Some(rest) if !vectors.is_empty() => {
                let (lane, rest) = rest.split_once(']').unwrap();
                (Some(lane.parse().unwrap()), rest)
            }
            _ => (None, rest),
        };
        let Some((before, rest)) = rest.split_once('[') else {
            return Self {
                registers: split(rest),
                vectors,
                lane,
                address: Vec::new(),
                pre: false,
                post: None,
            };
        };
        let (address, behind) = rest.split_once(']').unwrap();
        Self {
            registers: split(before),
            vectors,
            lane,
            address: split(address),
            pre: behind.starts_with('!'),
            post: behind.strip_prefix(", ").map(ToString::to_string),
        }
    }
}

/// The model: registers and memory.
pub(super) struct Model {
    pub(super) state: State,
    pub(super) memory: Flat,
}

impl Model {
    fn read(&mut self, at: u64, size: u64) -> u128 {
        let bytes = self.memory.at(at, size);
        bytes
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u128::from(*byte))
    }

    fn write(&mut self, at: u64, size: u64, value: u128) {
        let bytes = self.memory.at(at, size);
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = (value >> (8 * at)) as u8;
        }
    }

    fn get(&self, name: Name) -> u128 {
        let value = match name.vector {
            true => self.state.v[usize::from(name.number)],
            false => self.state.register(name.number).into(),
        };
        cut(value, name.size)
    }

    fn set(&mut self, name: Name, value: u128) {
        let value = cut(value, name.size);
        match name.vector {
            true => self.state.v[usize::from(name.number)] = value,
            false => self.state.set_register(name.number, value as u64),
        }
    }

    /// Where the access is; the base has its new value.
    fn address(&mut self, operands: &Operands) -> u64 {
        let base_name = &operands.address[0];
        let is_sp = base_name == "sp";
        let base = match is_sp {
            true => self.state.sp,
            false => self.get(name(base_name)) as u64,
        };
        let offset = match operands.address.get(1) {
            None => 0,
            Some(text) if text.starts_with('#') => number(text).cast_unsigned(),
            Some(index) => self.index(index, operands.address.get(2)),
        };
        let at = base.wrapping_add(offset);
        let back = match &operands.post {
            Some(text) if text.starts_with('#') => Some(base.wrapping_add_signed(number(text))),
            Some(register) => Some(base.wrapping_add(self.get(name(register)) as u64)),
            None => operands.pre.then_some(at),
        };
        match back {
            Some(back) if is_sp => self.state.sp = back,
            Some(back) => self.set(name(base_name), back.into()),
            None => {}
        }
        at
    }

    fn index(&self, register: &str, extend: Option<&String>) -> u64 {
        let value = self.get(name(register)) as u64;
        let Some(extend) = extend else {
            return value;
        };
        let (how, shift) = extend.split_once(' ').unwrap_or((extend, "#0"));
        let value = match how {
            "sxtw" => i64::from((value as u32).cast_signed()).cast_unsigned(),
            _ => value,
        };
        value << number(shift)
    }

    /// Does what `text` says.
    pub(super) fn step(&mut self, text: &str) {
        let (mnemonic, rest) = text.split_once(' ').unwrap();
        let operands = Operands::parse(rest);
        if mnemonic.starts_with("prf") {
            return;
        }
        if text == "dc zva, x1" {
            let at = self.state.x[1] & !63;
            return (0..64).for_each(|byte| self.write(at + byte, 1, 0));
        }
        if !operands.vectors.is_empty() {
            return self.structures(mnemonic, &operands);
        }
        let names: Vec<Name> = operands.registers.iter().map(|it| name(it)).collect();
        let before = self.state.clone();
        let at = self.address(&operands);
        let after = core::mem::replace(&mut self.state, before);
        self.plain(mnemonic, &names, at);
        // Written back in any case; no form loads its base.
        self.state.sp = after.sp;
        self.state.x[1] = after.x[1];
    }

    /// Bytes in memory, by the letters at a mnemonic's end, or the register.
    fn width(mnemonic: &str, register: Name) -> u64 {
        match mnemonic.as_bytes().last() {
            Some(b'b') => 1,
            Some(b'h') => 2,
            Some(b'w') => 4,
            _ => register.size,
        }
    }

    fn plain(&mut self, mnemonic: &str, names: &[Name], at: u64) {
        if let Some(modify) = Modify::parse(mnemonic) {
            return self.modify(&modify, names, at);
        }
        if mnemonic.starts_with("cas") {
            return self.compare(mnemonic, names, at);
        }
        let size = Self::width(mnemonic, names[0]);
        // ldp is no byte, but ldpsw is a signed word.
        let signed = ["sb", "sh", "sw"].iter().any(|end| mnemonic.ends_with(end));
        if mnemonic.starts_with("ld") {
            for (n, register) in (0..).zip(names) {
                let value = self.read(at + n * size, size);
                let value = if signed { extend(value, size) } else { value };
                self.set(*register, value);
            }
        } else {
            for (n, register) in (0..).zip(names) {
                let whole = Name {
                    size: 16,
                    ..*register
                };
                let value = self.get(whole);
                self.write(at + n * size, size, value);
            }
        }
    }

    fn compare(&mut self, mnemonic: &str, names: &[Name], at: u64) {
        let size = Self::width(mnemonic, names[0]);
        let (expected, new) = names.split_at(names.len() / 2);
        let old: Vec<u128> = (0..)
            .zip(expected)
            .map(|(n, _)| self.read(at + n * size, size))
            .collect();
        let same = old
            .iter()
            .zip(expected)
            .all(|(old, it)| *old == cut(self.get(*it), size));
        if same {
            for (n, register) in (0..).zip(new) {
                self.write(at + n * size, size, self.get(*register));
            }
        }
        for (old, register) in old.iter().zip(expected) {
            self.set(*register, *old);
        }
    }

    fn modify(&mut self, modify: &Modify, names: &[Name], at: u64) {
        let (size, operand) = if modify.pair {
            let [low, high] = [names[0], names[1]].map(|name| self.get(name));
            (16, high << 64 | low)
        } else {
            let size = modify.size.unwrap_or(names[0].size);
            (size, cut(self.get(names[0]), size))
        };
        let old = self.read(at, size);
        let signed = |value| extend(value, size).cast_signed();
        let new = match modify.how.as_str() {
            "add" => old.wrapping_add(operand),
            "clr" => old & !operand,
            "eor" => old ^ operand,
            "set" => old | operand,
            "smax" if signed(old) < signed(operand) => operand,
            "smin" if signed(old) > signed(operand) => operand,
            "smax" | "smin" => old,
            "umax" => old.max(operand),
            "umin" => old.min(operand),
            "swp" => operand,
            how => unreachable!("{how}"),
        };
        self.write(at, size, new);
        if modify.pair {
            self.set(names[0], cut(old, 8));
            self.set(names[1], old >> 64);
        } else if let Some(target) = names.get(1) {
            self.set(*target, old);
        }
    }

    fn structures(&mut self, mnemonic: &str, operands: &Operands) {
        let at = self.address(operands);
        let load = mnemonic.starts_with("ld");
        let count = operands.vectors.len() as u64;
        let alternate = mnemonic.as_bytes()[2] != b'1';
        let mut next = at;
        if mnemonic.ends_with('r') {
            for (register, size, element) in &operands.vectors {
                let one = self.read(next, *element);
                let lanes = (0..size / element).map(|lane| one << (8 * lane * element));
                self.state.v[usize::from(*register)] = lanes.fold(0, |all, lane| all | lane);
                next += element;
            }
            return;
        }
        if let Some(lane) = operands.lane {
            for (register, _, element) in &operands.vectors {
                self.lane(load, *register, *element, lane, next);
                next += element;
            }
            return;
        }
        let (_, size, element) = operands.vectors[0];
        if load {
            let clear = operands.vectors.iter().map(|it| usize::from(it.0));
            clear.for_each(|register| self.state.v[register] = 0);
        }
        for n in 0..count * size / element {
            let (vector, lane) = match alternate {
                true => (n % count, n / count),
                false => (n / (size / element), n % (size / element)),
            };
            let register = operands.vectors[usize::try_from(vector).unwrap()].0;
            self.lane(load, register, element, lane, at + n * element);
        }
    }

    fn lane(&mut self, load: bool, register: u8, element: u64, lane: u64, at: u64) {
        let (shift, register) = (8 * element * lane, usize::from(register));
        if load {
            let one = self.read(at, element);
            let mask = cut(u128::MAX, element) << shift;
            self.state.v[register] = self.state.v[register] & !mask | one << shift;
        } else {
            let value = self.state.v[register] >> shift;
            self.write(at, element, value);
        }
    }
}

/// An atomic read-modify-write by its mnemonic.
struct Modify {
    how: String,
    size: Option<u64>,
    /// Operand and target are two registers each.
    pair: bool,
}

impl Modify {
    fn parse(mnemonic: &str) -> Option<Self> {
        let rest = match mnemonic.strip_prefix("swp") {
            Some(_) => mnemonic,
            None => mnemonic
                .strip_prefix("ld")
                .or(mnemonic.strip_prefix("st"))?,
        };
        const HOWS: [&str; 9] = [
            "add", "clr", "eor", "set", "smax", "smin", "umax", "umin", "swp",
        ];
        let how = HOWS.iter().find(|how| rest.starts_with(**how))?;
        let size = match rest.as_bytes().last() {
            Some(b'b') => Some(1),
            Some(b'h') => Some(2),
            _ => None,
        };
        Some(Self {
            how: (*how).to_string(),
            size,
            pair: rest
                .strip_prefix(*how)
                .is_some_and(|it| it.starts_with('p')),
        })
    }
}

fn cut(value: u128, size: u64) -> u128 {
    match size {
        16 => value,
        size => value & ((1 << (8 * size)) - 1),
    }
}

fn extend(value: u128, size: u64) -> u128 {
    let unused = 128 - 8 * size;
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}
