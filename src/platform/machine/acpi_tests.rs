//! Machines that ACPI describes, alone or beside a device tree, and tables that make no sense.

use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

use super::*;
use crate::platform::acpi::{CheckedTables, Madt, PhysicalBytes};
use crate::platform::efi::Memory;
use crate::platform::fdt::CheckedFdt;
use crate::platform::uart::ns16550::Layout;
use crate::platform::{damage, fuzz_config};

const VIRT: &[u8] = include_bytes!("../testdata/qemu-virt.dtb");
const DSDT: &[u8] = include_bytes!("../testdata/qemu-virt-dsdt.bin");
const BASE: u64 = 0x4000_0000;

struct Ram(Vec<u8>);

impl PhysicalBytes for Ram {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(start.get().checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

impl Ram {
    /// Puts `bytes`, with the byte at `sum` such that `of` bytes sum to zero, at the end; returns where.
    fn put(&mut self, mut bytes: Vec<u8>, sum: usize, of: usize) -> u64 {
        bytes[sum] = 0;
        let total = bytes[..of]
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[sum] = total.wrapping_neg();
        let at = BASE + self.0.len() as u64;
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(64), 0);
        at
    }

    fn table(&mut self, mut table: Vec<u8>) -> u64 {
        let length = table.len();
        table[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        self.put(table, 9, length)
    }
}

/// A table of `length` bytes with these fields.
fn table(signature: &[u8], length: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut table = vec![0; length];
    table[..4].copy_from_slice(signature);
    for (at, bytes) in fields {
        table[*at..*at + bytes.len()].copy_from_slice(bytes);
    }
    table
}

/// The fields of QEMU's tables that a machine with ACPI alone is made of.
fn tables() -> Vec<Vec<u8>> {
    let gsiv = |number: u32| number.to_le_bytes();
    let gtdt: [(usize, [u8; 4]); 4] = [
        (48, gsiv(29)),
        (56, gsiv(30)),
        (64, gsiv(27)),
        (72, gsiv(26)),
    ];
    let gtdt: Vec<(usize, &[u8])> = gtdt.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
    vec![
        table(b"FACP", 276, &[(129, &[1, 0])]),
        table(b"GTDT", 104, &gtdt),
        table(
            b"SPCR",
            80,
            &[
                (36, &[3]),
                (40, &[0, 32, 0, 3]),
                (44, &0x0900_0000_u64.to_le_bytes()),
                (52, &[8]),
                (54, &gsiv(33)),
            ],
        ),
        table(
            b"MCFG",
            60,
            &[(44, &0x40_1000_0000_u64.to_le_bytes()), (54, &[0, 255])],
        ),
    ]
}

/// RSDP at the beginning, XSDT, the DSDT and these.
fn ram(mut tables: Vec<Vec<u8>>) -> Ram {
    let mut ram = Ram(vec![0; 64]);
    let dsdt = ram.table(DSDT.to_vec());
    if let Some(fadt) = tables.first_mut().filter(|table| table.len() >= 148) {
        fadt[140..148].copy_from_slice(&dsdt.to_le_bytes());
    }
    let places: Vec<u8> = (tables.into_iter())
        .flat_map(|table| ram.table(table).to_le_bytes())
        .collect();
    let xsdt = table(b"XSDT", 36 + places.len(), &[(36, &places)]);
    let xsdt = ram.table(xsdt);
    let mut rsdp = b"RSD PTR \0CORDON\x02".to_vec();
    rsdp.resize(36, 0);
    rsdp[20] = 36;
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    let mut fixed = Ram(Vec::new());
    fixed.put(rsdp, 8, 20);
    let mut rsdp = fixed.0[..36].to_vec();
    let total = rsdp.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    rsdp[32] = total.wrapping_neg();
    ram.0[..36].copy_from_slice(&rsdp);
    ram
}

fn madt() -> Madt {
    let mpidr = |raw| Mpidr::new(raw).unwrap();
    Madt {
        cpus: vec![mpidr(0), mpidr(1)],
        distributor: Some(Pa::new(0x0800_0000)),
        version: 3,
        redistributors: vec![PaRange::new(Pa::new(0x080a_0000), 0xf6_0000).unwrap()],
        own_redistributors: vec![],
        maintenance: Some(25),
    }
}

fn describe(ram: &Ram, madt: Madt) -> Description {
    let tables = CheckedTables::new(ram, Pa::new(BASE)).expect("good tables");
    Description::read(AcpiParts {
        tables: &tables,
        memory: ram,
        madt: Some(madt),
    })
    .expect("good tables")
}

fn memory() -> Memory {
    Memory {
        ram: vec![PaRange::new(Pa::new(BASE), 1 << 30).unwrap()],
        ..Memory::default()
    }
}

#[test]
fn qemus_machine_is_the_same_by_its_tables_and_by_its_tree() {
    let fdt = CheckedFdt::new(VIRT).unwrap();
    let by_tree = Machine::from_fdt(&fdt, Pa::new(BASE)).unwrap();
    let acpi = describe(&ram(tables()), madt());
    let by_tables = Machine::from_efi(&memory(), None, Some(&acpi)).unwrap();
    assert_eq!(by_tables.psci, by_tree.psci);
    assert_eq!(by_tables.host_uart().unwrap().kind, UartKind::Pl011);
    assert_eq!(
        by_tables.uart.unwrap().start(),
        by_tree.uart.unwrap().start()
    );
    assert_eq!(by_tables.uart_interrupt, by_tree.uart_interrupt);
    let (acpi_gic, tree_gic) = (by_tables.gic.unwrap(), by_tree.gic.clone().unwrap());
    assert_eq!(acpi_gic.distributor, tree_gic.distributor);
    assert_eq!(acpi_gic.redistributors, tree_gic.redistributors);
    assert_eq!(acpi_gic.maintenance, Some(25));
    let (acpi_timer, tree_timer) = (by_tables.timer.unwrap(), by_tree.timer.unwrap());
    assert_eq!(acpi_timer.virtual_, tree_timer.virtual_);
    assert_eq!(acpi_timer.hyp_physical, tree_timer.hyp_physical);
    assert_eq!(acpi_timer.hyp_virtual, None);
    let (acpi_pcie, tree_pcie) = (by_tables.pcie.unwrap(), by_tree.pcie.clone().unwrap());
    assert_eq!(acpi_pcie.ecam, tree_pcie.ecam);
    assert_eq!(acpi_pcie.buses, 0..=255);
    assert_eq!(acpi_pcie.window32, tree_pcie.window32);
    assert_eq!(acpi_pcie.window64, tree_pcie.window64);
    assert!(acpi_pcie.placed);
}

#[test]
fn what_tree_and_tables_say_differently_is_named_and_what_one_lacks_is_not() {
    let fdt = CheckedFdt::new(VIRT).unwrap();
    let machine = Machine::from_fdt(&fdt, Pa::new(BASE)).unwrap();
    let said = |acpi: &Description| {
        let said = acpi.differences(&machine).into_iter();
        said.map(|difference| difference.to_string())
            .collect::<Vec<_>>()
    };
    let same = Madt {
        cpus: machine.cpus.iter().rev().copied().collect(),
        ..madt()
    };
    let good = describe(&ram(tables()), same.clone());
    assert_eq!(said(&good), Vec::<alloc::string::String>::new());
    assert_eq!(
        said(&Description::default()),
        Vec::<alloc::string::String>::new()
    );
    let mut other = good.clone();
    other.cpus.pop();
    other.gic.as_mut().unwrap().distributor = PaRange::new(Pa::new(0x0900_0000), 1).unwrap();
    other.timer.as_mut().unwrap().virtual_ = Some(20);
    other.uart.as_mut().unwrap().kind = UartKind::Imx;
    other.psci = Some(Conduit::Hvc);
    other.pcie.as_mut().unwrap().ecam = PaRange::new(Pa::new(1 << 30), 1 << 20).unwrap();
    let all = ["cpus", "gic", "timer", "uart", "psci", "pcie"];
    let all = all.map(|what| alloc::format!("why=differs in={what}"));
    assert_eq!(said(&other), all);
}

#[test]
fn under_uefi_a_tree_decides_but_ram_is_the_maps() {
    let fdt = CheckedFdt::new(VIRT).unwrap();
    let acpi = Description {
        psci: Some(Conduit::Hvc),
        ..describe(&ram(tables()), madt())
    };
    let mut memory = memory();
    let range = PaRange::new(Pa::new(BASE), 0x1000).unwrap();
    let by = ReservedBy::Node("runtime-data".into());
    memory.reserved.push(Reserved { range, by });
    let machine = Machine::from_efi(&memory, Some((&fdt, Pa::new(BASE))), Some(&acpi)).unwrap();
    assert_eq!(machine.psci, Some(Conduit::Smc));
    assert_eq!(machine.ram, memory.ram);
    assert!(machine.reserved.contains(&memory.reserved[0]));
    assert!(machine.reserved.iter().any(|it| it.by == ReservedBy::Dtb));
    assert!(machine.pcie.unwrap().placed);
}

#[test]
fn without_a_description_ram_or_cpus_there_is_no_machine() {
    let none = Machine::from_efi(&memory(), None, None);
    assert_eq!(none, Err(MachineError::Undescribed));
    let good = describe(&ram(tables()), madt());
    let no_ram = Machine::from_efi(&Memory::default(), None, Some(&good));
    assert_eq!(no_ram, Err(MachineError::NoRam));
    let no_cpus = Machine::from_efi(&memory(), None, Some(&Description::default()));
    assert_eq!(no_cpus, Err(MachineError::NoCpus));
    let mut twice = good;
    twice.cpus[1] = twice.cpus[0];
    let twice = Machine::from_efi(&memory(), None, Some(&twice));
    assert!(matches!(twice, Err(MachineError::DuplicateCpu { .. })));
}

#[test]
fn what_a_table_does_not_say_is_not_there() {
    let described = |at: usize, change: (usize, &[u8])| {
        let mut tables = tables();
        tables[at][change.0..change.0 + change.1.len()].copy_from_slice(change.1);
        describe(&ram(tables), madt())
    };
    assert_eq!(described(0, (129, &[0])).psci, None);
    assert_eq!(described(0, (129, &[3])).psci, Some(Conduit::Hvc));
    assert_eq!(described(1, (64, &[0])).timer.unwrap().virtual_, None);
    assert_eq!(
        described(1, (96, &[28])).timer.unwrap().hyp_virtual,
        Some(28)
    );
    assert_eq!(
        described(2, (36, &[0x0e])).uart.unwrap().kind,
        UartKind::Pl011
    );
    assert_eq!(
        described(2, (36, &[0x0c])).uart.unwrap().kind,
        UartKind::Imx
    );
    let ns16550 = |kind: u8, width: u8, access: u8| {
        let mut tables = tables();
        tables[2][36] = kind;
        (tables[2][41], tables[2][43]) = (width, access);
        describe(&ram(tables), madt()).uart.map(|uart| uart.kind)
    };
    let of = |shift, words| Some(UartKind::Ns16550(Layout { shift, words }));
    for kind in [0x00, 0x01, 0x12] {
        assert_eq!(ns16550(kind, 8, 1), of(0, false));
        assert_eq!(ns16550(kind, 8, 0), of(0, false), "nothing said");
        assert_eq!(ns16550(kind, 32, 1), of(2, false), "bytes, words apart");
        assert_eq!(ns16550(kind, 32, 3), of(2, true));
        assert_eq!(ns16550(kind, 16, 2), None, "16 bits wide");
        assert_eq!(ns16550(kind, 8, 3), None, "words that overlap");
    }
    assert_eq!(ns16550(0x10, 0, 0), of(2, true), "a Raspberry Pi's");
    assert_eq!(described(2, (36, &[0x13])).uart, None, "no driver");
    assert_eq!(described(2, (40, &[1])).uart, None, "I/O space");
    assert_eq!(described(2, (44, &[0; 8])).uart, None, "switched off");
    assert_eq!(
        described(2, (52, &[0])).uart_interrupt,
        None,
        "not the GIC's"
    );
    assert_eq!(described(3, (54, &[2, 1])).pcie, None, "last before first");
    let some = described(3, (54, &[2, 3])).pcie.unwrap();
    assert_eq!(
        some.ecam,
        PaRange::new(Pa::new(0x40_1020_0000), 2 << 20).unwrap()
    );
}

#[test]
fn a_gic_may_have_its_redistributors_by_cpu_and_is_none_of_another_version() {
    let with = |madt| describe(&ram(tables()), madt).gic;
    let own = Madt {
        redistributors: vec![],
        own_redistributors: vec![Pa::new(0x080a_0000), Pa::new(0x080c_0000)],
        ..madt()
    };
    let found = with(own.clone()).unwrap().redistributors;
    let starts: Vec<u64> = found.iter().map(|range| range.start().get()).collect();
    assert_eq!(starts, [0x080a_0000, 0x080c_0000]);
    assert!(found.iter().all(|range| range.size() == 0x2_0000));
    assert_eq!(
        with(Madt {
            version: 2,
            ..madt()
        }),
        None
    );
    let nowhere = Madt {
        own_redistributors: vec![],
        ..own
    };
    assert_eq!(with(nowhere), None);
}

#[test]
fn a_table_with_a_bad_checksum_is_refused_by_name() {
    for (index, name) in ["FACP", "GTDT", "SPCR", "MCFG"].into_iter().enumerate() {
        let mut ram = ram(tables());
        let signature = tables()[index][..4].to_vec();
        let at = ram
            .0
            .windows(4)
            .position(|bytes| bytes == signature)
            .unwrap();
        ram.0[at + 40] ^= 1;
        let tables = CheckedTables::new(&ram, Pa::new(BASE)).unwrap();
        let parts = AcpiParts {
            tables: &tables,
            memory: &ram,
            madt: None,
        };
        let error = Description::read(parts).unwrap_err();
        assert_eq!(
            error.to_string(),
            alloc::format!("why=bad-checksum table={name}")
        );
    }
}

proptest! {
    #![proptest_config(fuzz_config())]

    /// Whatever the tables say, there is a description or a named error; what is described is what may be used.
    #[test]
    fn damaged_tables_are_described_or_refused(
        which in 0..4_usize,
        damage in damage(240),
    ) {
        let mut tables = tables();
        let length = tables[which].len();
        let (head, rest) = tables[which].split_at(36);
        let mut rest = rest.to_vec();
        damage.apply(&mut rest);
        tables[which] = [head, &rest].concat();
        tables[which].resize(length.min(36 + rest.len()), 0);
        let ram = ram(tables);
        let checked = CheckedTables::new(&ram, Pa::new(BASE)).unwrap();
        let parts = AcpiParts { tables: &checked, memory: &ram, madt: Some(madt()) };
        if let Ok(found) = Description::read(parts) {
            let timer = found.timer.unwrap_or_default();
            for intid in [timer.physical, timer.virtual_, timer.hyp_physical].into_iter().flatten() {
                prop_assert!((16..32).contains(&intid));
            }
            prop_assert!(found.uart_interrupt.is_none_or(|intid| (32..1020).contains(&intid)));
        }
    }
}
