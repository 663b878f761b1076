//! Error records that a scenario writes itself, to be wrong in ways that no firmware here is.
//!
//! A Generic Error Status Block with one memory section (ACPI 6.5 18.3.2.7.1, UEFI 2.10 N.2.5),
//! written from the tables of the specifications: nothing is shared with the reader under test. It gets
//! into the machine by memory, or by a command of QEMU's, which then does what firmware does: it fills
//! the block of the source that is notified by the generic event device, and signals it.

use crate::bundle::hex_bytes;
use crate::scenario::BytePatch;

/// The section type of Platform Memory, as its GUID lies in memory.
const PLATFORM_MEMORY: [u8; 16] = [
    0x14, 0x11, 0xbc, 0xa5, 0x64, 0x6f, 0xde, 0x4e, 0xb8, 0x63, 0x3e, 0x83, 0xed, 0x7c, 0x83, 0xb1,
];

/// Sizes in bytes: the block's head, the section's, the section's body.
const BLOCK_HEAD: usize = 20;
const SECTION_HEAD: usize = 72;
const BODY: usize = 80;

/// Uncorrectable error valid, one entry.
const BLOCK_STATUS: u32 = 0x11;
/// Physical address, its mask and the kind of error are valid.
const MEMORY_VALID: u64 = 1 << 1 | 1 << 2 | 1 << 14;
/// Multi-bit ECC.
const MULTI_BIT: u8 = 3;

/// A record of a recoverable error at `pa`, changed by `patches`. `None` where one of those lies
/// beyond the record.
pub(crate) fn block(pa: u64, patches: &[BytePatch]) -> Option<Vec<u8>> {
    let word = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let page_mask: u64 = !0xfff;
    let mut block = Vec::new();
    block.extend(BLOCK_STATUS.to_le_bytes());
    block.extend([0; 8]); // no raw data
    block.extend(word(SECTION_HEAD + BODY));
    block.extend([0; 4]); // recoverable
    block.extend(PLATFORM_MEMORY);
    block.extend([0; 4]); // recoverable
    block.extend([0x00, 0x03, 0, 0]); // revision 3.0, nothing optional
    block.extend(word(BODY));
    block.resize(BLOCK_HEAD + SECTION_HEAD, 0);
    block.extend(MEMORY_VALID.to_le_bytes());
    block.extend([0; 8]); // no error status
    block.extend(pa.to_le_bytes());
    block.extend(page_mask.to_le_bytes());
    block.resize(BLOCK_HEAD + SECTION_HEAD + 72, 0);
    block.push(MULTI_BIT);
    block.resize(BLOCK_HEAD + SECTION_HEAD + BODY, 0);
    for patch in patches {
        let bytes = hex_bytes(patch.bytes.as_ref())?;
        let end = patch.at.checked_add(bytes.len())?;
        block.get_mut(patch.at..end)?.copy_from_slice(&bytes);
    }
    Some(block)
}

/// The QMP command that has QEMU report `block`.
pub(crate) fn qmp_command(block: &[u8]) -> String {
    let cper = base64(block);
    format!(r#"{{"execute": "inject-ghes-v2-error", "arguments": {{"cper": "{cper}"}}}}"#)
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let sextet = word >> (18 - 6 * place) & 0x3f;
            let digit = ALPHABET
                .get(sextet as usize)
                .filter(|_| place <= chunk.len());
            text.push(digit.map_or('=', |digit| char::from(*digit)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_in_the_rfc() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in pairs {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let block = block(0x8000_1000, &[]).expect("no patch");
        assert_eq!(block.len(), 172);
        assert_eq!(block[0..4], [0x11, 0, 0, 0]);
        assert_eq!(block[12..16], 152_u32.to_le_bytes());
        assert_eq!(block[44..48], 80_u32.to_le_bytes());
        assert_eq!(block[108..116], 0x8000_1000_u64.to_le_bytes());
    }
}
