#![expect(
    unsafe_code,
    reason = "the acpi crate maps memory through an unsafe trait method"
)]

use super::*;
use crate::platform::machine::Mpidr;
use crate::platform::{damage, fuzz_config};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use alloc::rc::Rc;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::ptr::NonNull;
use proptest::prelude::*;

/// Where the test's memory begins.
const BASE: u64 = 0x4000_0000;
/// Where the tables of [`machine`] are, as offsets.
const RSDP: usize = 0;
const XSDT: usize = 0x40;
const FADT: usize = 0x80;
const MADT: usize = 0x100;
const HEST: usize = 0x300;

/// Memory in which tables lie, as the image's identity map would be.
#[derive(Clone)]
struct Memory(Rc<Vec<u8>>);

impl PhysicalBytes for Memory {
    fn bytes(&self, start: Pa, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(start.get().checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

/// Panics where the crate leaves what was checked: that is what these tests are about.
impl AcpiHandler for Memory {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        let bytes = self
            .bytes(Pa::new(at as u64), size)
            .expect("maps only what was checked");
        let start = NonNull::from(bytes).cast::<T>();
        // SAFETY: the bytes are `size` long, initialised, and live as long as the clone of `self`
        // in the mapping; the crate's types are packed, so any address is aligned.
        unsafe { PhysicalMapping::new(at, start, size, size, self.clone()) }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

fn fix_checksum(table: &mut [u8], at: usize) {
    table[at] = 0;
    table[at] = 0_u8.wrapping_sub(sum(table));
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = (HEADER_SIZE + body.len()) as u32;
    let mut table = [
        &signature[..],
        &length.to_le_bytes(),
        &[1, 0],
        b"CORDONTESTTABL",
        &[0; 12],
        body,
    ]
    .concat();
    fix_checksum(&mut table, 9);
    table
}

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut rsdp = [
        &b"RSD PTR \0CORDON\x02"[..],
        &[0; 4],
        &36_u32.to_le_bytes(),
        &xsdt.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    fix_checksum(&mut rsdp[..20], 8);
    fix_checksum(&mut rsdp, 32);
    rsdp
}

/// A GICC of `len` bytes.
fn gicc(mpidr: u64, enabled: bool, len: u8) -> Vec<u8> {
    let mut entry = [0; 255];
    entry[..2].copy_from_slice(&[0xb, len]);
    entry[12] = u8::from(enabled);
    entry[68..76].copy_from_slice(&mpidr.to_le_bytes());
    entry[..usize::from(len)].to_vec()
}

fn gicd() -> Vec<u8> {
    [
        &[0xc, 24, 0, 0, 0, 0, 0, 0][..],
        &0x0800_0000_u64.to_le_bytes(),
        &[0, 0, 0, 0, 3, 0, 0, 0],
    ]
    .concat()
}

fn gicr(length: u32) -> Vec<u8> {
    [
        &[0xe, 16, 0, 0][..],
        &0x080a_0000_u64.to_le_bytes(),
        &length.to_le_bytes(),
    ]
    .concat()
}

fn madt(entries: &[Vec<u8>]) -> Vec<u8> {
    table(b"APIC", &[&[0; 8][..], &entries.concat()].concat())
}

fn put(memory: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    memory.resize(memory.len().max(at + bytes.len()), 0);
    memory[at..at + bytes.len()].copy_from_slice(bytes);
}

fn xsdt(tables: &[usize]) -> Vec<u8> {
    let entries: Vec<u8> = tables
        .iter()
        .flat_map(|at| (BASE + *at as u64).to_le_bytes())
        .collect();
    table(b"XSDT", &entries)
}

/// RSDP, XSDT, a FADT, `madt` and a HEST without sources.
fn machine_with(madt: &[u8]) -> Vec<u8> {
    let mut memory = Vec::new();
    put(&mut memory, RSDP, &rsdp(BASE + XSDT as u64));
    put(&mut memory, XSDT, &xsdt(&[FADT, MADT, HEST]));
    put(&mut memory, FADT, &table(b"FACP", &[7; 12]));
    put(&mut memory, MADT, madt);
    put(&mut memory, HEST, &table(b"HEST", &[0; 4]));
    memory
}

fn machine() -> Vec<u8> {
    machine_with(&madt(&[
        gicd(),
        gicc(0, true, 80),
        gicc(0x1_0000_0102, true, 82),
    ]))
}

fn check(memory: &[u8]) -> Result<CheckedTables, AcpiError> {
    CheckedTables::new(&Memory(Rc::new(memory.to_vec())), Pa::new(BASE))
}

/// What the image does: check, then hand over to the crate.
fn read(memory: &[u8]) -> Result<Madt, AcpiError> {
    let memory = Memory(Rc::new(memory.to_vec()));
    let checked = CheckedTables::new(&memory, Pa::new(BASE))?;
    let rsdp = checked.rsdp().get() as usize;
    // SAFETY: the tables were checked in the very memory that the handler maps.
    let tables = unsafe { AcpiTables::from_rsdp(memory, rsdp) }.expect("checked tables are read");
    Madt::read(&tables)
}

fn range(at: usize, len: usize) -> Option<PaRange> {
    PaRange::new(Pa::new(BASE + at as u64), len as u64)
}

#[test]
fn the_tables_are_found() {
    let checked = check(&machine()).unwrap();
    assert_eq!(checked.hest(), range(HEST, 40));
    assert_eq!(checked.madt(), range(MADT, 44 + 24 + 80 + 82));
    assert_eq!(
        (checked.len(), checked.is_empty(), checked.rsdp()),
        (3, false, Pa::new(BASE))
    );
}

#[test]
#[cfg_attr(miri, ignore = "the acpi crate passes under Tree Borrows only")]
fn cpus_and_interrupt_controller_are_in_madt() {
    let entries = [
        gicd(),
        gicc(0, true, 82),
        gicc(1, false, 82),
        gicc(0x1_0000_0102, true, 80),
        gicr(0x100),
    ];
    let found = read(&machine_with(&madt(&entries))).unwrap();
    let mpidr = |raw| Mpidr::new(raw).unwrap();
    assert_eq!(found.cpus, [mpidr(0), mpidr(0x1_0000_0102)]);
    assert_eq!(found.distributor, Some(Pa::new(0x0800_0000)));
    assert_eq!(
        found.redistributors,
        [PaRange::new(Pa::new(0x080a_0000), 0x100).unwrap()]
    );
}

/// A GICC of ACPI 5.1 is six bytes shorter than the type that the crate makes a reference of.
#[test]
#[cfg_attr(miri, ignore = "the acpi crate passes under Tree Borrows only")]
fn a_short_gicc_may_end_the_table_but_not_the_memory() {
    let mut memory = Vec::new();
    put(&mut memory, RSDP, &rsdp(BASE + XSDT as u64));
    put(&mut memory, XSDT, &xsdt(&[MADT]));
    put(&mut memory, MADT, &madt(&[gicc(5, true, 76)]));
    let refused = AcpiError::NotMapped {
        table: Signature::MADT,
        at: Pa::new(BASE + MADT as u64),
    };
    assert_eq!(check(&memory), Err(refused));
    memory.resize(memory.len() + MADT_SLACK, 0);
    assert_eq!(read(&memory).unwrap().cpus, [Mpidr::new(5).unwrap()]);
}

#[test]
#[cfg_attr(miri, ignore = "the acpi crate passes under Tree Borrows only")]
fn a_machine_without_hest_or_madt_is_a_machine() {
    let mut memory = machine();
    put(&mut memory, XSDT, &xsdt(&[FADT]));
    let checked = check(&memory).unwrap();
    assert_eq!((checked.hest(), checked.madt()), (None, None));
    assert_eq!(read(&memory), Err(AcpiError::NoMadt));
}

#[test]
fn an_rsdp_that_does_not_hold_is_refused() {
    let with = |change: &dyn Fn(&mut [u8])| {
        let mut memory = machine();
        change(&mut memory[..36]);
        fix_checksum(&mut memory[..20], 8);
        fix_checksum(&mut memory[..36], 32);
        check(&memory).unwrap_err()
    };
    let table = Signature::RSDP;
    assert_eq!(
        check(&machine()[..35]),
        Err(AcpiError::NotMapped {
            table,
            at: Pa::new(BASE)
        })
    );
    assert_eq!(
        with(&|rsdp| rsdp[7] = b'_'),
        AcpiError::BadSignature { table }
    );
    assert_eq!(with(&|rsdp| rsdp[15] = 0), AcpiError::TooOld);
    assert_eq!(
        with(&|rsdp| rsdp[20] = 20),
        AcpiError::BadLength { table, length: 20 }
    );
    assert_eq!(
        with(&|rsdp| rsdp[23] = 1),
        AcpiError::BadLength {
            table,
            length: 0x0100_0024
        }
    );
    assert_eq!(with(&|rsdp| rsdp[9] = 0xff), AcpiError::BadOemId { table });
    let nowhere = Pa::new(0xff00_0000_4000_0040);
    let unknown = Signature(*b"????");
    assert_eq!(
        with(&|rsdp| rsdp[31] = 0xff),
        AcpiError::NotMapped {
            table: unknown,
            at: nowhere
        }
    );

    for at in [8, 32] {
        let mut memory = machine();
        memory[at] ^= 1;
        assert_eq!(check(&memory), Err(AcpiError::BadChecksum { table }));
    }
}

#[test]
fn a_table_that_does_not_hold_is_refused() {
    let with = |at: usize, bytes: &[u8]| {
        let mut memory = machine();
        memory.resize(0x1000, 0);
        memory[at..at + bytes.len()].copy_from_slice(bytes);
        check(&memory).unwrap_err()
    };
    let table = Signature::XSDT;
    assert_eq!(with(XSDT, b"RSDT"), AcpiError::BadSignature { table });
    assert_eq!(
        with(XSDT + 4, &[35, 0]),
        AcpiError::BadLength { table, length: 35 }
    );
    let odd = self::table(b"XSDT", &[0; 7]);
    assert_eq!(with(XSDT, &odd), AcpiError::BadLength { table, length: 43 });
    assert_eq!(with(XSDT + 4, &[0x2c, 0x08]), AcpiError::TooManyTables);

    let table = Signature::MADT;
    assert_eq!(with(MADT + 9, &[0xaa]), AcpiError::BadChecksum { table });
    assert_eq!(
        with(MADT + 4, &[0, 0xff]),
        AcpiError::NotMapped {
            table,
            at: Pa::new(BASE + MADT as u64)
        }
    );
    let length = MAX_TABLE_SIZE + 1;
    assert_eq!(
        with(MADT + 4, &length.to_le_bytes()),
        AcpiError::BadLength { table, length }
    );
    let short = self::table(b"APIC", &[0; 7]);
    assert_eq!(
        with(MADT, &short),
        AcpiError::BadLength { table, length: 43 }
    );

    let table = Signature::HEST;
    assert_eq!(with(HEST + 36, &[1]), AcpiError::BadChecksum { table });
    let mut no_text = self::table(b"HEST", &[0; 4]);
    no_text[16] = 0xff;
    fix_checksum(&mut no_text, 9);
    assert_eq!(with(HEST, &no_text), AcpiError::BadOemId { table });
    assert_eq!(
        with(FADT + 4, &[0]),
        AcpiError::BadLength {
            table: Signature(*b"FACP"),
            length: 0
        }
    );
}

#[test]
#[cfg_attr(miri, ignore = "the acpi crate passes under Tree Borrows only")]
fn madt_entries_fill_the_table_and_have_their_fields() {
    let refused = |entries: &[Vec<u8>]| read(&machine_with(&madt(entries))).unwrap_err();
    let second = 44 + 24;
    assert_eq!(
        refused(&[gicd(), [0x80, 0].to_vec()]),
        AcpiError::BadMadtEntry { at: second }
    );
    assert_eq!(
        refused(&[gicd(), [0x80].to_vec()]),
        AcpiError::BadMadtEntry { at: second }
    );
    assert_eq!(
        refused(&[gicd(), [0x80, 3].to_vec()]),
        AcpiError::BadMadtEntry { at: second }
    );
    assert_eq!(
        refused(&[gicd(), gicc(0, true, 75)]),
        AcpiError::BadMadtEntry { at: second }
    );
    assert_eq!(
        refused(&[[0xc, 23].to_vec(), [0; 21].to_vec()]),
        AcpiError::BadMadtEntry { at: 44 }
    );
    assert_eq!(
        refused(&[[0xe, 15].to_vec(), [0; 13].to_vec()]),
        AcpiError::BadMadtEntry { at: 44 }
    );
    let value = 0x8000_0000;
    assert_eq!(
        refused(&[gicc(value, true, 80)]),
        AcpiError::BadMpidr { value }
    );
    let start = Pa::new(0x080a_0000);
    assert_eq!(refused(&[gicr(0)]), AcpiError::BadRedistributors { start });
}

#[test]
fn errors_are_keys_and_values() {
    let table = Signature([b'A', b' ', 0xff, b'\n']);
    assert_eq!(
        AcpiError::BadChecksum { table }.to_string(),
        "why=bad-checksum table=A??"
    );
    assert_eq!(
        AcpiError::BadMadtEntry { at: 44 }.to_string(),
        "why=bad-madt-entry at=0x2c"
    );
}

/// Makes the sums right again, so that damage gets past them.
fn repair(memory: &mut [u8]) {
    if memory.len() >= 36 {
        fix_checksum(&mut memory[..20], 8);
        fix_checksum(&mut memory[..36], 32);
    }
    for at in [XSDT, MADT, HEST] {
        let length = memory
            .get(at + 4..at + 8)
            .map(|bytes| u32_at(bytes, 0) as usize);
        if let Some(table) = length.and_then(|length| memory.get_mut(at..at.checked_add(length)?))
            && table.len() >= HEADER_SIZE
        {
            fix_checksum(table, 9);
        }
    }
}

proptest! {
    #![proptest_config(fuzz_config())]

    #[test]
    #[cfg_attr(miri, ignore = "the acpi crate passes under Tree Borrows only")]
    fn damaged_tables_never_panic_nor_leave_their_memory(damage in damage(0x340), fix: bool) {
        let mut memory = machine();
        damage.apply(&mut memory);
        if fix {
            repair(&mut memory);
        }
        let _ = read(&memory);
    }
}

#[test]
fn a_signature_of_any_bytes_is_one_word_of_an_event_line() {
    for (bytes, shown) in [
        (*b"HEST", "HEST"),
        (*b"RSD ", "RSD"),
        ([0; 4], "????"),
        (*b"A=\n\xff", "A???"),
        (*b"    ", "?"),
    ] {
        assert_eq!(Signature(bytes).to_string(), shown);
    }
}
