//! Where the memory under test is: regions that the machine announces, and pages to strike.

use crate::expr::Variables;
use crate::line::Line;
use crate::scenario::Pick;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: u64 = 4096;

/// Learns `bar.pa`, `bar.ipa`, `bar.size` and the like from the events that announce them.
///
/// `cordon: event=region` says what kind a region has, `cordon: event=vm-mapped` where a VM sees
/// it. The n-th mapping of a kind gives `bar0`, `bar1`, ... in order; the first is also plain
/// `bar`. `ram` and `reserved` are named alike.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    kinds: BTreeMap<String, String>,
    mapped: BTreeMap<String, u32>,
}

impl Regions {
    pub(crate) fn learn(&mut self, line: &Line, variables: &mut Variables) {
        if line.is_cordon("region")
            && let (Some(id), Some(kind)) = (line.get("id"), line.get("kind"))
        {
            self.kinds.insert(id.to_owned(), kind.to_owned());
        }
        if line.is_cordon("vm-mapped")
            && let Some(kind) = line.get("region").and_then(|id| self.kinds.get(id))
        {
            let index = self.mapped.entry(kind.clone()).or_default();
            for key in ["pa", "ipa", "size"] {
                let Some(value) = line.get(key) else { continue };
                variables.insert(format!("{kind}{index}.{key}"), value.to_owned());
                if *index == 0 {
                    variables.insert(format!("{kind}.{key}"), value.to_owned());
                }
            }
            *index += 1;
        }
    }
}

/// The pages of every `[[pick]]`: variables for single ones, lists in no order for those with a count.
pub(crate) fn pick_all(picks: &[Pick], seed: u64) -> (Variables, Vec<(String, Vec<u64>)>) {
    let mut random = SplitMix64(seed);
    let mut variables = Variables::new();
    let mut lists = Vec::new();
    for pick in picks {
        let name = pick.name.as_ref().clone();
        let count = pick.count.as_ref().map_or(1, |count| *count.as_ref());
        let pages = different(&mut random, pick.span.as_ref().0 / PAGE, count);
        match (&pick.count, pages.first()) {
            (None, Some(page)) => {
                variables.insert(name, format!("{page:#x}"));
            }
            _ => lists.push((name, shuffled(pages, seed))),
        }
    }
    (variables, lists)
}

/// Offsets of `count` different pages out of `pages`. The scenario's check has seen that there are
/// so many; a smaller set would end here too.
fn different(random: &mut SplitMix64, pages: u64, count: u64) -> BTreeSet<u64> {
    let mut picked = BTreeSet::new();
    while pages > 0 && (picked.len() as u64) < count.min(pages) {
        picked.insert(random.next() % pages * PAGE);
    }
    picked
}

/// In an order by chance (Fisher and Yates). Of a sequence of its own, so that it moves no other pick.
fn shuffled(pages: BTreeSet<u64>, seed: u64) -> Vec<u64> {
    let mut random = SplitMix64(!seed);
    let mut pages: Vec<u64> = pages.into_iter().collect();
    for last in (1..pages.len()).rev() {
        let other = random.next() % (last as u64 + 1);
        pages.swap(last, usize::try_from(other).unwrap_or(0));
    }
    pages
}

/// Steele, Lea and Flood's generator: every seed gives a full-period sequence, the same on every
/// machine, which is all that is asked of it.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Size;
    use toml::Spanned;

    fn pick(name: &str, span: u64, count: Option<u64>) -> Pick {
        Pick {
            name: Spanned::new(0..0, name.into()),
            span: Spanned::new(0..0, Size(span)),
            count: count.map(|count| Spanned::new(0..0, count)),
        }
    }

    #[test]
    fn a_seed_gives_the_same_pages_again_and_another_seed_others() {
        let picks = [pick("page", 2 << 30, None), pick("many", 4 << 30, Some(64))];
        assert_eq!(pick_all(&picks, 7), pick_all(&picks, 7));
        assert_ne!(pick_all(&picks, 7), pick_all(&picks, 8));
    }

    #[test]
    fn pages_are_aligned_different_and_within_the_span() {
        for seed in 0..50 {
            let (_, lists) = pick_all(&[pick("many", 16 * PAGE, Some(16))], seed);
            let all: Vec<u64> = (0..16).map(|page| page * PAGE).collect();
            let mut picked = lists[0].1.clone();
            picked.sort_unstable();
            assert_eq!(picked, all);
        }
    }

    #[test]
    fn regions_get_their_names_from_kind_and_order() {
        let mut regions = Regions::default();
        let mut variables = Variables::new();
        for line in [
            "cordon: event=region id=0 kind=ram pa=0x50000000 size=67108864",
            "cordon: event=region id=1 kind=bar pa=0x8000000000 size=2147483648",
            "cordon: event=vm-mapped vm=probe ipa=0x40000000 pa=0x50000000 size=67108864 region=0",
            "cordon: event=vm-mapped vm=probe ipa=0x1000000000 pa=0x8000000000 size=4096 region=1",
            "cordon: event=vm-mapped vm=probe ipa=0x1040000000 pa=0x8040000000 size=4096 region=1",
            "cordon: event=vm-mapped vm=probe ipa=0x0 pa=0x0 size=4096 region=9",
        ] {
            regions.learn(&Line::console(line), &mut variables);
        }
        let value = |name: &str| variables.get(name).map(String::as_str);
        assert_eq!(value("ram.ipa"), Some("0x40000000"));
        assert_eq!(value("bar.pa"), Some("0x8000000000"));
        assert_eq!(value("bar0.ipa"), Some("0x1000000000"));
        assert_eq!(value("bar1.ipa"), Some("0x1040000000"));
        assert_eq!(variables.len(), 3 * 5);
    }
}
