//! Where a VM on QEMU's `virt` must find nothing: what the machine has at these physical addresses is
//! Cordon's, the firmware's or another VM's.

/// Physical addresses of things of the machine, by page.
pub const MACHINE: [(u64, &str); 30] = [
    (0x0000_0000, "firmware's flash"),
    (0x0400_0000, "flash"),
    (0x0801_0000, "gicc"),
    (0x0802_0000, "gicv2m"),
    (0x0803_0000, "gich"),
    (0x0804_0000, "gicv"),
    (0x0808_0000, "its"),
    (0x0809_0000, "its translation"),
    (0x0901_0000, "rtc"),
    (0x0902_0000, "fw_cfg"),
    (0x0903_0000, "gpio"),
    (0x0904_0000, "secure uart"),
    (0x0905_0000, "smmu"),
    (0x0907_0000, "pcdimm acpi"),
    (0x0908_0000, "ged"),
    (0x0909_0000, "nvdimm acpi"),
    (0x090a_0000, "pvtime"),
    (0x090b_0000, "secure gpio"),
    (0x0a00_0000, "virtio-mmio"),
    (0x0a00_3e00, "virtio-mmio, the last"),
    (0x0c00_0000, "platform bus"),
    (0x0e00_0000, "secure ram"),
    (0x0e0f_f000, "secure ram's end"),
    (0x1000_0000, "pcie memory"),
    (0x3eff_0000, "pcie io"),
    (0x3f00_0000, "pcie ecam"),
    (0x4000_0000, "ram"),
    (0x4020_0000, "cordon"),
    (0x40_1000_0000, "pcie ecam, high"),
    (0x80_0000_0000, "pcie memory, high"),
];

/// Powers of two that an IPA space may end at, below the 48 bits of a descriptor.
pub const ENDS: [u32; 8] = [32, 36, 39, 40, 42, 43, 44, 47];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_different() {
        for (index, (at, _)) in MACHINE.iter().enumerate() {
            assert!(MACHINE[..index].iter().all(|(other, _)| other != at));
        }
    }
}
