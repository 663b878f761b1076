//! Error reports that wait for their turn: a source has one block, and its reader may be slow.
//!
//! Bounded, since EL3 allocates nothing after boot. What finds no room is lost, which is counted, and
//! said in the next record that is written.

use crate::record::Report;

/// The oldest first.
#[derive(Debug)]
pub struct Queue<const N: usize> {
    entries: [Option<Report>; N],
    first: usize,
    length: usize,
    lost: u64,
    /// Something was lost since this was last asked for.
    overflowed: bool,
}

impl<const N: usize> Queue<N> {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: [None; N],
            first: 0,
            length: 0,
            lost: 0,
            overflowed: false,
        }
    }

    /// How many wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many found no room, ever.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether some found no room since the last call.
    pub const fn take_overflowed(&mut self) -> bool {
        core::mem::replace(&mut self.overflowed, false)
    }

    /// Puts `report` behind the others. False where there is no room: then it is lost.
    pub fn push(&mut self, report: Report) -> bool {
        let place = (self.first + self.length) % N;
        match self.entries.get_mut(place) {
            Some(entry) if self.length < N => {
                *entry = Some(report);
                self.length += 1;
                true
            }
            _ => {
                self.lost += 1;
                self.overflowed = true;
                false
            }
        }
    }

    /// All of them, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Report> + '_ {
        let places = (0..self.length).map(|place| (self.first + place) % N);
        places.filter_map(|place| self.entries.get(place).copied().flatten())
    }

    /// Takes the `count` oldest out.
    pub fn remove(&mut self, count: usize) {
        let count = count.min(self.length);
        self.first = (self.first + count) % N;
        self.length -= count;
    }
}

impl<const N: usize> Default for Queue<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use cordon::addr::Pa;

    use super::*;
    use crate::record::ErrorKind;

    fn report(number: u64) -> Report {
        Report {
            page: Pa::new(number << 12),
            kind: ErrorKind::Latent,
            sequence: number,
        }
    }

    fn numbers(queue: &Queue<3>) -> Vec<u64> {
        queue.iter().map(|report| report.sequence).collect()
    }

    #[test]
    fn the_oldest_goes_first_round_and_round() {
        let mut queue = Queue::new();
        for number in 0..20 {
            assert!(queue.push(report(number)));
            assert!(queue.push(report(100 + number)));
            assert_eq!(numbers(&queue), [number, 100 + number]);
            queue.remove(1);
            assert_eq!(numbers(&queue), [100 + number]);
            queue.remove(5);
            assert!(queue.is_empty());
        }
        assert_eq!(queue.lost(), 0);
        assert!(!queue.take_overflowed());
    }

    #[test]
    fn what_finds_no_room_is_counted_and_costs_none_that_waits() {
        let mut queue = Queue::new();
        for number in 0..5 {
            assert_eq!(queue.push(report(number)), number < 3);
        }
        assert_eq!(numbers(&queue), [0, 1, 2]);
        assert_eq!((queue.len(), queue.lost()), (3, 2));
        assert!(queue.take_overflowed());
        assert!(!queue.take_overflowed());
        queue.remove(1);
        assert!(queue.push(report(9)));
        assert_eq!(numbers(&queue), [1, 2, 9]);
    }
}
