//! Damage to the device tree that QEMU has put into memory, before the first instruction runs.
//!
//! A tree given by `-dtb` would not do: QEMU refuses the worst and edits the rest, which is why the
//! tree is changed where the machine will find it.

use crate::bundle::hex_bytes;
use crate::qtest::Qtest;
use crate::scenario::{DtbBlock, DtbMutation};
use anyhow::{Context, Result, ensure};

/// Where QEMU's `virt` puts the tree when it starts firmware: at the beginning of RAM.
const PLACE: u64 = 0x4000_0000;

/// Damages the tree of a machine that has not begun to run.
pub(crate) fn mutate(memory: &mut Qtest, mutations: &[DtbMutation]) -> Result<()> {
    let head = memory.read(PLACE, 40)?;
    ensure!(
        word(&head, 0) == Some(0xd00d_feed),
        "no device tree is at {PLACE:#x}"
    );
    let size = word(&head, 4).context("a head")?;
    let mut tree = memory.read(PLACE, usize::try_from(size)?)?;
    for mutation in mutations {
        apply(&mut tree, mutation)?;
    }
    // Lines of qtest are bounded, and a tree is small enough for a few of them.
    for (index, piece) in tree.chunks(1024).enumerate() {
        memory.write(PLACE + 1024 * index as u64, piece)?;
    }
    Ok(())
}

fn apply(tree: &mut [u8], mutation: &DtbMutation) -> Result<()> {
    if let Some(patch) = &mutation.patch {
        // The head's words 2 and 3 are the offsets of the blocks (Devicetree Specification 5.2).
        let base = match patch.block {
            DtbBlock::Head => Some(0),
            DtbBlock::Structure => word(tree, 8),
            DtbBlock::Strings => word(tree, 12),
        };
        let base = usize::try_from(base.context("a head")?)?;
        let bytes = hex_bytes(patch.bytes.as_ref()).unwrap_or_default();
        let start = base.saturating_add(patch.at);
        let target = tree.get_mut(start..start.saturating_add(bytes.len()));
        target
            .with_context(|| format!("dtb.patch.at: {:#x} is beyond the tree", patch.at))?
            .copy_from_slice(&bytes);
    }
    if let Some(replace) = &mutation.replace {
        let (old, new) = (replace.old.as_bytes(), replace.new.as_bytes());
        ensure!(
            old.len() == new.len() && !old.is_empty(),
            "dtb.replace: `{}` and `{}` differ in length",
            replace.old,
            replace.new
        );
        let found: Vec<usize> = (0..tree.len())
            .filter(|at| tree.get(*at..).is_some_and(|rest| rest.starts_with(old)))
            .collect();
        ensure!(
            !found.is_empty(),
            "dtb.replace: there is no `{}`",
            replace.old
        );
        for at in found {
            if let Some(target) = tree.get_mut(at..at + new.len()) {
                target.copy_from_slice(new);
            }
        }
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use std::path::Path;

    fn mutations(text: &str) -> Vec<DtbMutation> {
        let text = format!(
            "name = \"t\"\nsummary = \"t\"\nfigures = []\nstep = []\n{text}\n\
             [machine]\nboot = \"bios\"\ncpus = 1\nmemory = \"1G\"\n"
        );
        let mut all = Scenario::parse(Path::new("t.toml"), &text).expect("a good scenario");
        all.remove(0).dtb
    }

    /// A head whose structure block begins at 40, and an `abab` there.
    fn tree() -> Vec<u8> {
        let mut tree = vec![0; 48];
        tree[11] = 40;
        tree[40..44].copy_from_slice(b"abab");
        tree
    }

    #[test]
    fn bytes_are_changed_in_the_block_that_is_named() {
        let mut changed = tree();
        for text in [
            "dtb = [{ patch = { block = \"structure\", at = 1, bytes = \"ff\" } }]",
            "dtb = [{ patch = { at = 4, bytes = \"01 02\" } }]",
        ] {
            apply(&mut changed, &mutations(text)[0]).expect("fits");
        }
        assert_eq!(changed[4..6], [1, 2]);
        assert_eq!(changed[40..44], *b"a\xffab");
    }

    #[test]
    fn every_occurrence_is_replaced_and_none_at_all_is_an_error() {
        let mut changed = tree();
        let good = mutations("dtb = [{ replace = { old = \"b\", new = \"c\" } }]");
        apply(&mut changed, &good[0]).expect("is there");
        assert_eq!(changed[40..44], *b"acac");
        assert!(apply(&mut changed, &good[0]).is_err());
        let longer = mutations("dtb = [{ replace = { old = \"a\", new = \"aa\" } }]");
        assert!(apply(&mut changed, &longer[0]).is_err());
    }
}
