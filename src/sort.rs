//! Sorting the short lists of a machine: a few regions, functions, pages.
//!
//! The library's sorts are made for long slices, and each type that is sorted by one brings some
//! kilobytes of its own into the image. This one is a heap sort (Williams, CACM 7 (1964), algorithm
//! 232): in place, O(n log n) whatever the order, and small. It is not stable.

#[cfg(test)]
mod tests;

/// Sorts `items` by what `key` says of them.
pub fn sort_by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    let less = |items: &[T], a: usize, b: usize| match (items.get(a), items.get(b)) {
        (Some(a), Some(b)) => key(a) < key(b),
        _ => false,
    };
    for top in (0..items.len() / 2).rev() {
        sink(items, top, &less);
    }
    for end in (1..items.len()).rev() {
        items.swap(0, end);
        if let Some(rest) = items.get_mut(..end) {
            sink(rest, 0, &less);
        }
    }
}

/// Sorts `items` by their own order.
pub fn sort<T: Ord + Copy>(items: &mut [T]) {
    sort_by_key(items, |item| *item);
}

/// Lets the item at `at` sink to where neither of those below it is greater.
fn sink<T>(items: &mut [T], mut at: usize, less: &impl Fn(&[T], usize, usize) -> bool) {
    loop {
        let left = 2 * at + 1;
        if left >= items.len() {
            return;
        }
        let right_is_greater = left + 1 < items.len() && less(items, left, left + 1);
        let greater = left + usize::from(right_is_greater);
        if !less(items, at, greater) {
            return;
        }
        items.swap(at, greater);
        at = greater;
    }
}
