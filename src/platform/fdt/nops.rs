//! `FDT_NOP`, taken out of a blob before it is read.
//!
//! Whoever edits a tree in place, as U-Boot and QEMU do on most boards, overwrites what is to go with
//! this token. It means nothing and may stand between any two others (Devicetree Specification 5.4.1),
//! but the `fdt` crate asserts when it meets one between properties. So the structure block is closed
//! up in a copy, which then is checked like any other blob.

use alloc::vec::Vec;

use super::{CheckedFdt, END, FdtError, NOP, PROP, Structure, block, offset};

/// A copy of `blob` without its `FDT_NOP`s, of the same `totalsize`; `None` where it has none.
///
/// # Errors
/// As [`CheckedFdt::new`], as far as tokens have to be told from what is between them.
pub fn without_nops(blob: &[u8]) -> Result<Option<Vec<u8>>, FdtError> {
    let size = CheckedFdt::total_size(blob)?;
    let blob = blob.get(..size).ok_or(FdtError::Truncated)?;
    let start = offset(blob, 8)?;
    let structure = block(blob, start, offset(blob, 36)?)?;
    let strings = block(blob, offset(blob, 12)?, offset(blob, 32)?)?;
    let mut tokens = Structure {
        bytes: structure,
        strings,
        start,
        pos: 0,
    };
    let mut kept: Vec<u8> = Vec::with_capacity(structure.len());
    let mut is_first = true;
    loop {
        let at = tokens.pos;
        let token = tokens.next()?;
        match token {
            super::BEGIN_NODE => {
                tokens.node_name(is_first)?;
                is_first = false;
            }
            PROP => tokens.property(start + at)?,
            NOP | super::END_NODE | END => {}
            _ => return Err(FdtError::BadToken { at: start + at }),
        }
        if token != NOP {
            kept.extend_from_slice(structure.get(at..tokens.pos).unwrap_or_default());
        }
        if token == END {
            break;
        }
    }
    if kept.len() == tokens.pos {
        return Ok(None);
    }
    Ok(close_up(blob, start, &kept))
}

/// `blob` with `kept` in its structure block, which begins at `start`.
fn close_up(blob: &[u8], start: usize, kept: &[u8]) -> Option<Vec<u8>> {
    let mut copy = blob.to_vec();
    copy.get_mut(start..)?
        .get_mut(..kept.len())?
        .copy_from_slice(kept);
    let size = u32::try_from(kept.len()).ok()?;
    copy.get_mut(36..40)?.copy_from_slice(&size.to_be_bytes());
    Some(copy)
}
