//! Where things are: the addresses of QEMU's virt machine, and where the firmware puts what it
//! hands to the next stage.
//!
//! Only the parts of the machine that are fixed by QEMU's `hw/arm/virt.c` for all its versions are
//! constants here; what may differ (CPUs, size of RAM) is read from the device tree.
//!
//! ```text
//!   0x4000_0000  device tree, at most 1 MiB          (rewritten in place)
//!   0x401f_f000  page through which fw_cfg's DMA goes, free afterwards
//!   0x4020_0000  kernel, at its text_offset
//!                ACPI tables and error status blocks, page aligned   (kept)
//!                initrd, 2 MiB aligned
//! ```

use cordon::addr::{PAGE_SIZE, Pa, PaRange};

/// The `size` bytes from `start`, checked at build time.
const fn range(start: u64, size: u64) -> PaRange {
    match PaRange::new(Pa::new(start), size) {
        Some(range) => range,
        None => unreachable!(),
    }
}

/// Start of the secure flash: the reset vector, and the whole of this firmware's read-only part.
pub const FLASH_BASE: u64 = 0;
/// Size of the secure flash.
pub const FLASH_SIZE: u64 = 0x0400_0000;
/// Start of the GIC and of the devices the firmware drives.
pub const DEVICES_BASE: u64 = 0x0800_0000;
/// Size of the window of devices.
pub const DEVICES_SIZE: u64 = 0x0200_0000;
/// GIC distributor.
pub const GICD_BASE: u64 = 0x0800_0000;
/// GIC redistributors, one per CPU.
pub const GICR_BASE: u64 = 0x080a_0000;
/// The normal world's UART: told only why the machine does not come up.
pub const UART0_BASE: u64 = 0x0900_0000;
/// Real-time clock (PL031).
pub const RTC_BASE: u64 = 0x0901_0000;
/// fw_cfg.
pub const FW_CFG_BASE: u64 = 0x0902_0000;
/// The secure UART.
pub const SECURE_UART_BASE: u64 = 0x0904_0000;
/// The secure UART's interrupt: SPI 8.
pub const SECURE_UART_INTID: u32 = 32 + 8;
/// The secure PL061 whose pins switch the machine.
pub const SECURE_GPIO_BASE: u64 = 0x090b_0000;
/// Its pin that powers the machine off.
pub const GPIO_POWER_OFF: u32 = 0;
/// Its pin that resets the machine.
pub const GPIO_RESET: u32 = 1;
/// Start of secure RAM: everything the firmware writes.
pub const SECURE_RAM_BASE: u64 = 0x0e00_0000;
/// Size of secure RAM.
pub const SECURE_RAM_SIZE: u64 = 0x0100_0000;

/// What can't be poisoned: flash, secure RAM and the devices that the firmware itself needs, and
/// what little lies between them. Device memory and RAM begin above.
pub const OWN: PaRange = range(0, 0x1000_0000);

/// Start of the normal world's RAM, where QEMU leaves the device tree.
pub const RAM_BASE: u64 = 0x4000_0000;
/// The part of RAM that the firmware maps, and in which it places all it loads. RAM beyond it
/// belongs to the next stage alone.
pub const RAM_WINDOW: PaRange = range(RAM_BASE, 0x4000_0000);
/// Room for the device tree.
pub const DEVICE_TREE_MAX: u64 = 0x10_0000;
/// The page through which fw_cfg's DMA descriptors go.
pub const DMA_PAGE: u64 = 0x401f_f000;
/// What is loaded goes from here up.
pub const LOAD_BASE: u64 = 0x4020_0000;

/// Images begin at multiples of 2 MiB (Linux `booting.rst`).
const IMAGE_ALIGN: u64 = 0x20_0000;

/// How many CPUs the redistributor region at [`GICR_BASE`] has room for.
pub const MAX_CPUS: usize = 123;
/// CPUs to a cluster: what a GICv3 SGI's target list can name, and what QEMU's MPIDRs follow.
const CPUS_PER_CLUSTER: u64 = 16;

/// The number of the CPU with this `MPIDR_EL1`, from 0, as QEMU counts CPUs and redistributors;
/// `None` where the machine cannot have such a CPU.
#[must_use]
pub fn cpu_index(mpidr: u64) -> Option<usize> {
    const AFFINITY: u64 = 0xff_00ff_ffff;
    let affinity = mpidr & AFFINITY;
    let (cluster, core) = (affinity >> 8, affinity & 0xff);
    if core >= CPUS_PER_CLUSTER {
        return None;
    }
    let index = cluster.checked_mul(CPUS_PER_CLUSTER)?.checked_add(core)?;
    usize::try_from(index)
        .ok()
        .filter(|&index| index < MAX_CPUS)
}

/// The affinity fields of `MPIDR_EL1` of CPU `index`: the reverse of [`cpu_index`].
#[must_use]
pub const fn cpu_affinity(index: usize) -> u64 {
    let index = index as u64;
    ((index / CPUS_PER_CLUSTER) << 8) | (index % CPUS_PER_CLUSTER)
}

/// Why a file is no kernel that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than the 64-byte header.
    TooShort,
    /// The magic number is missing.
    NoMagic,
    /// The kernel is big-endian.
    BigEndian,
    /// Its `text_offset` is where no instruction can be.
    Misaligned,
}

impl ImageError {
    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "kernel-too-short",
            Self::NoMagic => "kernel-not-arm64-image",
            Self::BigEndian => "kernel-big-endian",
            Self::Misaligned => "kernel-misaligned",
        }
    }
}

/// The header of an arm64 `Image` (Linux `Documentation/arch/arm64/booting.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    text_offset: u64,
    /// Memory the image needs from `text_offset` on, its .bss included.
    image_size: u64,
}

impl Image {
    /// Size of the header.
    pub const HEADER_SIZE: usize = 64;

    /// Parses the header of a file of `file_size` bytes.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn parse(header: &[u8], file_size: u64) -> Result<Self, ImageError> {
        const MAGIC: u64 = 0x644d_5241;
        const FLAG_BIG_ENDIAN: u64 = 1;
        let word = |offset: usize| {
            let field = header.get(offset..)?.first_chunk()?;
            Some(u64::from_le_bytes(*field))
        };
        let (Some(text_offset), Some(image_size), Some(flags), Some(magic)) =
            (word(8), word(16), word(24), word(56))
        else {
            return Err(ImageError::TooShort);
        };
        if magic & 0xffff_ffff != MAGIC {
            return Err(ImageError::NoMagic);
        }
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(ImageError::BigEndian);
        }
        // Before Linux 3.17 image_size was 0 and text_offset not reliable.
        let text_offset = if image_size == 0 {
            0x8_0000
        } else {
            text_offset
        };
        if !text_offset.is_multiple_of(4) {
            return Err(ImageError::Misaligned);
        }
        Ok(Self {
            text_offset,
            image_size: image_size.max(file_size),
        })
    }
}

/// Hands out RAM upwards from [`LOAD_BASE`], so that nothing overlaps by construction.
#[derive(Debug)]
pub struct Placer {
    next: u64,
    end: u64,
}

impl Placer {
    /// For a machine whose RAM at [`RAM_BASE`] is `ram` long.
    #[must_use]
    pub fn new(ram_size: u64) -> Self {
        Self {
            next: LOAD_BASE,
            end: RAM_BASE.saturating_add(ram_size.min(RAM_WINDOW.size())),
        }
    }

    /// The next `size` bytes at a multiple of `align`, a power of two; `None` where RAM ends.
    pub fn take(&mut self, size: u64, align: u64) -> Option<PaRange> {
        let start = self.next.checked_next_multiple_of(align)?;
        let end = start.checked_add(size).filter(|&end| end <= self.end)?;
        let range = PaRange::new(Pa::new(start), size)?;
        self.next = end;
        Some(range)
    }

    /// Room for a kernel: where its first byte goes.
    pub fn take_image(&mut self, image: Image) -> Option<Pa> {
        let base = self.next.checked_next_multiple_of(IMAGE_ALIGN)?;
        let start = base.checked_add(image.text_offset)?;
        let end = start
            .checked_add(image.image_size)
            .filter(|&end| end <= self.end)?;
        self.next = end;
        Some(Pa::new(start))
    }

    /// Room for an initrd of `size` bytes.
    pub fn take_initrd(&mut self, size: u64) -> Option<PaRange> {
        self.take(size, IMAGE_ALIGN)
    }

    /// Begins a new page, and returns its address: nothing handed out before shares a page with
    /// what comes after.
    pub fn begin_page(&mut self) -> Option<Pa> {
        self.next = self.next.checked_next_multiple_of(PAGE_SIZE)?;
        Some(Pa::new(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text_offset: u64, image_size: u64, flags: u64) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[8..16].copy_from_slice(&text_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&image_size.to_le_bytes());
        bytes[24..32].copy_from_slice(&flags.to_le_bytes());
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes
    }

    #[test]
    fn what_is_no_arm64_image_is_refused_by_name() {
        assert_eq!(Image::parse(&[0; 63], 63), Err(ImageError::TooShort));
        assert_eq!(Image::parse(&[0; 64], 64), Err(ImageError::NoMagic));
        assert_eq!(
            Image::parse(&header(0, 1, 1), 64),
            Err(ImageError::BigEndian)
        );
        assert_eq!(
            Image::parse(&header(0x8_0002, 1, 0), 64),
            Err(ImageError::Misaligned)
        );
    }

    #[test]
    fn a_kernel_lies_at_its_text_offset_with_room_for_its_bss() {
        let image = Image::parse(&header(0x8_0000, 0x30_0000, 0), 0x1000).unwrap();
        let mut placer = Placer::new(0x2000_0000);
        assert_eq!(
            placer.take_image(image),
            Some(Pa::new(LOAD_BASE + 0x8_0000))
        );
        let next = placer.take_initrd(1).unwrap();
        assert_eq!(next.start(), Pa::new(0x4060_0000));
    }

    #[test]
    fn an_image_without_a_size_takes_that_of_its_file() {
        let image = Image::parse(&header(0, 0, 0), 0x1234).unwrap();
        assert_eq!(
            image,
            Image {
                text_offset: 0x8_0000,
                image_size: 0x1234
            }
        );
    }

    #[test]
    fn nothing_is_placed_beyond_ram_or_the_window() {
        assert_eq!(Placer::new(0x20_0000).take(1, 1), None);
        let mut placer = Placer::new(0x40_0000);
        assert!(placer.take(0x20_0000, 1).is_some());
        assert_eq!(placer.take(1, 1), None);
        assert_eq!(Placer::new(u64::MAX).take(0x4000_0000, 1), None);
        let huge = Image::parse(&header(u64::MAX - 3, 1, 0), 64).unwrap();
        assert_eq!(Placer::new(u64::MAX).take_image(huge), None);
    }

    #[test]
    fn an_affinity_names_one_cpu_and_back() {
        for index in 0..MAX_CPUS {
            assert_eq!(cpu_index(1 << 31 | cpu_affinity(index)), Some(index));
        }
        assert_eq!(cpu_index(16), None, "Aff0 goes to 15");
        assert_eq!(cpu_index(cpu_affinity(MAX_CPUS)), None);
        assert_eq!(cpu_index(1 << 16), None);
        assert_eq!(cpu_index(1 << 32), None);
    }
}
