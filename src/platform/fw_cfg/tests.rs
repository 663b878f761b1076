//! The protocol against a model of the device that counts what it is asked.

use std::vec;
use std::vec::Vec;

use super::*;

/// A device whose items are byte strings; DMA memory is one array from `MEMORY` on.
struct Device {
    items: Vec<(u16, Vec<u8>)>,
    memory: Vec<u8>,
    selected: u16,
    position: usize,
    fail: bool,
}

const MEMORY: u64 = 0x4000_0000;

impl Device {
    fn new(features: u32, files: &[(&str, &[u8])]) -> Self {
        let mut items = vec![
            (KEY_SIGNATURE, SIGNATURE.to_vec()),
            (KEY_FEATURES, features.to_le_bytes().to_vec()),
        ];
        let mut directory = u32::try_from(files.len()).unwrap().to_be_bytes().to_vec();
        for (index, (name, contents)) in files.iter().enumerate() {
            let key = 0x20 + u16::try_from(index).unwrap();
            directory.extend(u32::try_from(contents.len()).unwrap().to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; FILE_NAME_SIZE];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(field);
            items.push((key, contents.to_vec()));
        }
        items.push((KEY_FILE_DIRECTORY, directory));
        Self {
            items,
            memory: vec![0; 0x1000],
            selected: 0,
            position: 0,
            fail: false,
        }
    }

    fn item(&mut self) -> Option<&mut Vec<u8>> {
        let selected = self.selected;
        self.items
            .iter_mut()
            .find(|(key, _)| *key == selected)
            .map(|(_, item)| item)
    }
}

impl Transport for &mut Device {
    fn select(&mut self, key: u16) {
        self.selected = key;
        self.position = 0;
    }

    fn read(&mut self, out: &mut [u8]) {
        for byte in out {
            let position = self.position;
            *byte = self
                .item()
                .and_then(|item| item.get(position).copied())
                .unwrap_or(0);
            self.position += 1;
        }
    }

    fn dma(&mut self, control: u32, buffer: DmaBuffer<'_>) -> u32 {
        if self.fail {
            return DMA_ERROR;
        }
        if control & DMA_SELECT != 0 {
            self.select(u16::try_from(control >> 16).unwrap());
        }
        match buffer {
            DmaBuffer::Skip(bytes) => self.position += bytes as usize,
            DmaBuffer::Memory(range) => {
                assert_eq!(control & 0xffff & !DMA_SELECT, DMA_READ);
                let mut bytes = vec![0; usize::try_from(range.size()).unwrap()];
                self.read(&mut bytes);
                let start = usize::try_from(range.start().get() - MEMORY).unwrap();
                self.memory[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            DmaBuffer::Bytes(bytes) => {
                assert_eq!(control & 0xffff, DMA_WRITE);
                let at = self.position;
                self.item().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
        0
    }
}

#[test]
fn a_bus_without_the_device_is_told_from_one_without_dma() {
    let mut absent = Device::new(3, &[]);
    absent.items[0].1 = vec![0xff; 4];
    assert_eq!(FwCfg::probe(&mut absent).err(), Some(Error::NoDevice));
    assert_eq!(
        FwCfg::probe(&mut Device::new(1, &[])).err(),
        Some(Error::NoDma)
    );
    assert!(FwCfg::probe(&mut Device::new(3, &[])).is_ok());
}

#[test]
fn files_are_found_by_their_whole_name() {
    let mut device = Device::new(3, &[("etc/acpi/rsdp", b"RSD PTR "), ("etc/acpi", b"x")]);
    let mut fw_cfg = FwCfg::probe(&mut device).unwrap();
    assert_eq!(fw_cfg.find("etc/acpi").unwrap().size(), 1);
    assert_eq!(fw_cfg.find("etc/acpi/rsd"), Err(Error::NotFound));
    let rsdp = fw_cfg.find("etc/acpi/rsdp").unwrap();
    let mut bytes = [0; 8];
    fw_cfg.read(rsdp, &mut bytes).unwrap();
    assert_eq!(&bytes, b"RSD PTR ");
    assert_eq!(fw_cfg.read(rsdp, &mut [0; 9]), Err(Error::OutOfRange));
}

#[test]
fn a_directory_of_a_billion_files_is_refused_at_once() {
    let mut device = Device::new(3, &[]);
    device.items[2].1 = vec![0x40, 0, 0, 0];
    let mut fw_cfg = FwCfg::probe(&mut device).unwrap();
    assert_eq!(
        fw_cfg.find("x"),
        Err(Error::BadDirectory { files: 0x4000_0000 })
    );
}

#[test]
fn a_name_that_fills_its_field_without_a_nul_is_no_name() {
    assert_eq!(name_of(&[b'a'; FILE_NAME_SIZE]), None);
    assert_eq!(name_of(&[0; FILE_NAME_SIZE]), None);
    assert_eq!(name_of(&[0xff, 0]), None);
    assert_eq!(name_of(b"ab\0c"), Some("ab"));
}

#[test]
fn a_file_lands_in_memory_by_dma() {
    let mut device = Device::new(3, &[("f", b"contents")]);
    let mut fw_cfg = FwCfg::probe(&mut device).unwrap();
    let file = fw_cfg.find("f").unwrap();
    let range = fw_cfg.load(file, Pa::new(MEMORY + 0x10)).unwrap();
    assert_eq!((range.start().get(), range.size()), (MEMORY + 0x10, 8));
    assert_eq!(&device.memory[0x10..0x18], b"contents");
}

#[test]
fn a_file_may_neither_be_empty_nor_wrap_around_memory() {
    let mut device = Device::new(3, &[]);
    let mut fw_cfg = FwCfg::probe(&mut device).unwrap();
    let load = |fw_cfg: &mut FwCfg<_>, size, at| fw_cfg.load(File::classic(1, size), Pa::new(at));
    assert_eq!(load(&mut fw_cfg, 0, MEMORY), Err(Error::OutOfRange));
    assert_eq!(load(&mut fw_cfg, 16, u64::MAX - 8), Err(Error::OutOfRange));
}

#[test]
fn only_bytes_within_the_file_are_stored() {
    let mut device = Device::new(3, &[("f", &[0; 8])]);
    let mut fw_cfg = FwCfg::probe(&mut device).unwrap();
    let file = fw_cfg.find("f").unwrap();
    fw_cfg.store(file, 4, &[1, 2, 3, 4]).unwrap();
    assert_eq!(fw_cfg.store(file, 5, &[0; 4]), Err(Error::OutOfRange));
    assert_eq!(
        fw_cfg.store(file, u32::MAX, &[0; 4]),
        Err(Error::OutOfRange)
    );
    assert_eq!(device.items[2].1, [0, 0, 0, 0, 1, 2, 3, 4]);
}

#[test]
fn a_failed_transfer_is_an_error() {
    let mut device = Device::new(3, &[("f", &[0; 8])]);
    device.fail = true;
    let mut fw_cfg = FwCfg::probe(&mut device).unwrap();
    let file = fw_cfg.find("f").unwrap();
    assert_eq!(
        fw_cfg.load(file, Pa::new(MEMORY)),
        Err(Error::TransferFailed)
    );
    assert_eq!(fw_cfg.store(file, 0, &[0; 8]), Err(Error::TransferFailed));
}

#[test]
fn a_descriptor_is_big_endian() {
    assert_eq!(
        dma_descriptor(0x0019_0002, 0x10, Pa::new(0x4000_1000)),
        [0, 0x19, 0, 2, 0, 0, 0, 0x10, 0, 0, 0, 0, 0x40, 0, 0x10, 0]
    );
}
