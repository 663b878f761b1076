//! Kernels as distributions ship them, unpacked to the arm64 `Image` that Cordon loads.
//!
//! Debian ships a plain `Image` today. Others, and Debian's past and future, compress it, either as
//! a file of its own or inside of an EFI program that unpacks itself ("zboot", Linux
//! `drivers/firmware/efi/libstub/zboot-header.S`).

use anyhow::{Context, Result, bail, ensure};
use std::io::Read;

/// The magic number of an arm64 `Image`, at this offset (Linux `booting.rst`).
const IMAGE_MAGIC: (usize, &[u8]) = (56, b"ARM\x64");
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The `Image` inside `file`.
pub(crate) fn unpack(file: &[u8]) -> Result<Vec<u8>> {
    let image = match zboot_payload(file)? {
        Some(payload) => decompress(payload)?,
        None => decompress(file)?,
    };
    let (at, magic) = IMAGE_MAGIC;
    ensure!(
        image.get(at..).is_some_and(|rest| rest.starts_with(magic)),
        "it is no arm64 Image, nor does it hold one"
    );
    Ok(image)
}

/// The compressed kernel inside of a zboot image: offset and length are words 2 and 3 of the file.
fn zboot_payload(file: &[u8]) -> Result<Option<&[u8]>> {
    if file.get(4..8) != Some(b"zimg") {
        return Ok(None);
    }
    let word = |at: usize| -> Option<usize> {
        let bytes = file.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = (|| {
        let (start, len) = (word(8)?, word(12)?);
        file.get(start..start.checked_add(len)?)
    })();
    payload.context("its zboot header is damaged").map(Some)
}

fn decompress(file: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    if file.starts_with(GZIP_MAGIC) {
        // What follows the stream (zboot appends its length) is none of it.
        flate2::read::GzDecoder::new(file)
            .read_to_end(&mut out)
            .context("its gzip stream is damaged")?;
    } else if file.starts_with(ZSTD_MAGIC) {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(file)
            .map_err(|error| anyhow::anyhow!("its zstd stream is damaged: {error}"))?;
        decoder
            .read_to_end(&mut out)
            .context("its zstd stream is damaged")?;
    } else if file.starts_with(&[0xfd, b'7', b'z', b'X', b'Z']) {
        bail!("it is compressed by xz, which is not known here");
    } else {
        out.extend_from_slice(file);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image() -> Vec<u8> {
        let mut image = vec![7; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("compressed");
        encoder.finish().expect("compressed")
    }

    fn zboot(payload: &[u8]) -> Vec<u8> {
        let mut file = b"MZ\0\0zimg".to_vec();
        file.extend_from_slice(&64_u32.to_le_bytes());
        file.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        file.resize(64, 0);
        file.extend_from_slice(payload);
        file.extend_from_slice(b"tail");
        file
    }

    #[test]
    fn the_image_comes_out_of_whatever_it_is_wrapped_in() {
        let image = image();
        let zstd = ruzstd::encoding::compress_to_vec(
            &image[..],
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        for file in [
            image.clone(),
            gzip(&image),
            zstd.clone(),
            zboot(&gzip(&image)),
            zboot(&zstd),
            zboot(&image),
        ] {
            assert_eq!(unpack(&file).expect("an image"), image);
        }
    }

    #[test]
    fn what_holds_no_image_is_refused() {
        let mut damaged = gzip(&image());
        damaged.truncate(20);
        let mut beyond = zboot(&image());
        beyond[12..16].fill(0xff);
        for file in [vec![], vec![0; 4096], gzip(b"text"), damaged, beyond] {
            assert!(unpack(&file).is_err());
        }
    }
}
