//! How pages are shared among the vCPUs, and in which order a patrol visits its share.

use core::ops::Range;

/// The part of `total` pages that worker `who` of `workers` does. The parts of all workers are
/// contiguous, follow each other, cover everything once and differ by at most one page.
pub fn share(total: u64, workers: usize, who: usize) -> Range<u64> {
    let workers = (workers as u64).max(1);
    let who = (who as u64).min(workers);
    let boundary = |i: u64| {
        // 128 bits: the product of two counts may not fit into 64.
        let wide = u128::from(total) * u128::from(i) / u128::from(workers);
        u64::try_from(wide).unwrap_or(total)
    };
    boundary(who)..boundary((who + 1).min(workers))
}

/// An endless walk over a range that jumps, and still visits each element once a turn.
#[derive(Clone, Debug)]
pub struct Strided {
    range: Range<u64>,
    stride: u64,
    position: u64,
}

impl Strided {
    /// A walk over `range`. Different `salt`s start at different places with different strides.
    pub fn new(range: Range<u64>, salt: u64) -> Self {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Self {
                range,
                stride: 0,
                position: 0,
            };
        }
        // About 0.618 of the length scatters successive pages over different 2 MiB and 1 GiB
        // blocks; a stride without a common divisor with the length misses nothing.
        let mut stride = (len / 8 * 5 + salt) % len;
        while gcd(stride, len) != 1 {
            stride = (stride + 1) % len.max(2);
        }
        Self {
            range,
            stride,
            position: salt.wrapping_mul(0x9e37_79b9) % len,
        }
    }
}

impl Iterator for Strided {
    type Item = u64;

    /// The next element; `None` only where the range is empty.
    fn next(&mut self) -> Option<u64> {
        let len = self
            .range
            .end
            .checked_sub(self.range.start)
            .filter(|len| *len > 0)?;
        let here = self.range.start + self.position;
        self.position = (self.position + self.stride) % len;
        Some(here)
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(crate::test_config())]

        #[test]
        fn shares_cover_everything_once_and_evenly(
            total in 0..1_u64 << 40, workers in 1..65_usize,
        ) {
            let mut next = 0;
            for who in 0..workers {
                let part = share(total, workers, who);
                prop_assert_eq!(part.start, next);
                let len = part.end - part.start;
                prop_assert!(len.abs_diff(total / workers as u64) <= 1);
                next = part.end;
            }
            prop_assert_eq!(next, total);
        }

        #[test]
        fn a_turn_visits_each_page_once(
            start in 0..1000_u64, len in 1..700_u64, salt in 0..64_u64,
        ) {
            let range = start..start + len;
            let mut seen: Vec<u64> =
                Strided::new(range.clone(), salt).take(usize::try_from(len).unwrap()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, range.collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_empty_share_has_no_walk() {
        assert_eq!(Strided::new(7..7, 3).next(), None);
    }

    #[test]
    fn a_walk_jumps() {
        let mut walk = Strided::new(0..524_288, 1);
        let first = walk.next().unwrap();
        assert!(walk.next().unwrap().abs_diff(first) > 512);
    }
}
