//! The header of an arm64 `Image` (Linux `Documentation/arch/arm64/booting.rst`, "Call the kernel
//! image"): 64 bytes, little-endian whatever the kernel's own byte order is.

use core::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Where an image of a kernel before 3.17, which leaves `image_size` 0, is placed: at this offset
/// from a 2 MiB boundary, whatever the header says.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;

/// The header as it is in the file.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    _code: [U32; 2],
    text_offset: U64,
    image_size: U64,
    flags: U64,
    _reserved: [U64; 3],
    magic: [u8; 4],
    _pe_header: U32,
}

const _: () = assert!(size_of::<RawHeader>() == 64);

/// What a kernel's header says about how to load it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// Where the image goes, in bytes from a 2 MiB boundary. Entry is at its first byte.
    pub text_offset: u64,
    /// Bytes that must be free from there on: the file and what the kernel clears behind it.
    pub size: u64,
    /// The granule that the kernel was built for, where it says.
    pub page_size: Option<u64>,
    /// Whether the 2 MiB boundary may be anywhere in memory (flags bit 3), rather than as close
    /// to the base of RAM as possible.
    pub anywhere: bool,
}

/// Why a file is no kernel that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than the header.
    Truncated,
    /// No `ARM\x64` at offset 56.
    BadMagic,
    /// A gzip file: Cordon does not unpack.
    Gzip,
    /// An EFI `zboot` image, a compressed kernel inside a PE file.
    Zboot,
    /// The kernel is big-endian; a guest of Cordon starts little-endian.
    BigEndian,
    /// `image_size` is less than the file, or the image would wrap around.
    BadSize {
        /// `image_size` as the header has it.
        image_size: u64,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("why=image-truncated"),
            Self::BadMagic => f.write_str("why=image-bad-magic"),
            Self::Gzip => f.write_str("why=image-is-gzip"),
            Self::Zboot => f.write_str("why=image-is-zboot"),
            Self::BigEndian => f.write_str("why=image-big-endian"),
            Self::BadSize { image_size } => {
                write!(f, "why=image-bad-size image_size={image_size:#x}")
            }
        }
    }
}

impl core::error::Error for ImageError {}

impl ImageHeader {
    /// Reads the header of `file`.
    ///
    /// # Errors
    /// [`ImageError`] for anything but a little-endian arm64 `Image`.
    pub fn parse(file: &[u8]) -> Result<Self, ImageError> {
        if file.starts_with(&[0x1f, 0x8b]) {
            return Err(ImageError::Gzip);
        }
        if file.get(4..8) == Some(b"zimg") {
            return Err(ImageError::Zboot);
        }
        let (header, _) = RawHeader::read_from_prefix(file).map_err(|_| ImageError::Truncated)?;
        if header.magic != *b"ARM\x64" {
            return Err(ImageError::BadMagic);
        }
        let flags = header.flags.get();
        if flags & 1 != 0 {
            return Err(ImageError::BigEndian);
        }
        let len = file.len() as u64;
        let (text_offset, size) = match header.image_size.get() {
            0 => (OLD_TEXT_OFFSET, len),
            size => (header.text_offset.get(), size),
        };
        if size < len || text_offset.checked_add(size).is_none() {
            return Err(ImageError::BadSize {
                image_size: header.image_size.get(),
            });
        }
        let page_size = match (flags >> 1) & 0b11 {
            1 => Some(4 << 10),
            2 => Some(16 << 10),
            3 => Some(64 << 10),
            _ => None,
        };
        Ok(Self {
            text_offset,
            size,
            page_size,
            anywhere: flags & (1 << 3) != 0,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// A file with a valid header.
    pub(crate) fn image(text_offset: u64, image_size: u64, flags: u64, len: usize) -> Vec<u8> {
        let mut file = vec![0; len];
        file[8..16].copy_from_slice(&text_offset.to_le_bytes());
        file[16..24].copy_from_slice(&image_size.to_le_bytes());
        file[24..32].copy_from_slice(&flags.to_le_bytes());
        file[56..60].copy_from_slice(b"ARM\x64");
        file
    }

    #[test]
    fn a_kernel_says_where_it_goes_and_how_much_room_it_needs() {
        let header = ImageHeader::parse(&image(0x1000, 0x20_0000, 0b1010, 4096)).unwrap();
        assert_eq!(
            header,
            ImageHeader {
                text_offset: 0x1000,
                size: 0x20_0000,
                page_size: Some(4096),
                anywhere: true
            }
        );
        let granule = |flags| {
            ImageHeader::parse(&image(0, 64, flags, 64))
                .unwrap()
                .page_size
        };
        assert_eq!(
            (granule(0b100), granule(0b110)),
            (Some(0x4000), Some(0x1_0000))
        );
        assert_eq!(granule(0), None);
    }

    #[test]
    fn an_old_kernel_goes_to_the_old_offset_and_is_as_long_as_its_file() {
        let header = ImageHeader::parse(&image(0x1234_5678, 0, 0, 128)).unwrap();
        assert_eq!((header.text_offset, header.size), (0x8_0000, 128));
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let refused = |file: &[u8]| ImageHeader::parse(file).unwrap_err();
        assert_eq!(refused(&image(0, 64, 0, 64)[..63]), ImageError::Truncated);
        assert_eq!(refused(&[0; 64]), ImageError::BadMagic);
        assert_eq!(refused(&[0x1f, 0x8b, 8, 0]), ImageError::Gzip);
        assert_eq!(refused(b"MZ\0\0zimg"), ImageError::Zboot);
        assert_eq!(refused(&image(0, 64, 1, 64)), ImageError::BigEndian);
        assert_eq!(
            refused(&image(0, 64, 0, 65)),
            ImageError::BadSize { image_size: 64 }
        );
        assert_eq!(
            refused(&image(1, u64::MAX, 0, 64)),
            ImageError::BadSize {
                image_size: u64::MAX
            }
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(mut file in proptest::collection::vec(any::<u8>(), 60..128)) {
            file[56..60].copy_from_slice(b"ARM\x64");
            if let Ok(header) = ImageHeader::parse(&file) {
                prop_assert!(header.text_offset.checked_add(header.size).is_some());
                prop_assert!(header.size >= file.len() as u64);
            }
        }
    }
}
