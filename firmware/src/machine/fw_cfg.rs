//! fw_cfg's registers (QEMU `docs/specs/fw_cfg.rst`, the memory-mapped variant).
#![expect(
    unsafe_code,
    reason = "device registers are read and written by address"
)]

use core::ptr;

use cordon::addr::Pa;
use cordon::platform::fw_cfg::{DmaBuffer, Transport, dma_descriptor};
use cordon_firmware::layout::{DMA_PAGE, FW_CFG_BASE};

use super::{ram, sysreg};

const DATA: usize = FW_CFG_BASE as usize;
const SELECTOR: usize = FW_CFG_BASE as usize + 8;
const DMA_ADDRESS: usize = FW_CFG_BASE as usize + 16;
/// Set by the device when it is done and it went wrong.
const DMA_ERROR: u32 = 1;

/// The device. Only one may exist, since it has one position; the boot makes it and drops it.
pub(crate) struct Registers;

impl Transport for Registers {
    fn select(&mut self, key: u16) {
        // SAFETY: the selector of the fw_cfg device, mapped as device memory. It is big-endian.
        unsafe {
            ptr::with_exposed_provenance_mut::<u16>(SELECTOR).write_volatile(key.to_be());
        }
    }

    fn read(&mut self, out: &mut [u8]) {
        for byte in out {
            // SAFETY: the data register; each read gives the next byte.
            *byte = unsafe { ptr::with_exposed_provenance::<u8>(DATA).read_volatile() };
        }
    }

    fn dma(&mut self, control: u32, buffer: DmaBuffer<'_>) -> u32 {
        let descriptor = Pa::new(DMA_PAGE);
        let bytes_at = Pa::new(DMA_PAGE + 16);
        let (length, address) = match buffer {
            DmaBuffer::Skip(bytes) => (bytes, Pa::new(0)),
            DmaBuffer::Memory(range) => match u32::try_from(range.size()) {
                Ok(length) => (length, range.start()),
                Err(_) => return DMA_ERROR,
            },
            DmaBuffer::Bytes(bytes) => {
                let written = ram::write(bytes_at, bytes);
                match (written, u32::try_from(bytes.len())) {
                    (Some(()), Ok(length)) => (length, bytes_at),
                    _ => return DMA_ERROR,
                }
            }
        };
        if ram::write(descriptor, &dma_descriptor(control, length, address)).is_none() {
            return DMA_ERROR;
        }
        sysreg::dsb();
        // SAFETY: writing the descriptor's address, big-endian, starts the transfer. It reaches
        // memory that was placed for it, or nothing at all for `Skip`.
        unsafe {
            ptr::with_exposed_provenance_mut::<u64>(DMA_ADDRESS)
                .write_volatile(descriptor.get().to_be());
        }
        loop {
            sysreg::dsb();
            let mut word = [0; 4];
            if ram::read(descriptor, &mut word).is_none() {
                return DMA_ERROR;
            }
            let status = u32::from_be_bytes(word);
            if status & !DMA_ERROR == 0 {
                return status;
            }
        }
    }
}
