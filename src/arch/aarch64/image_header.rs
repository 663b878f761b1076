//! The first bytes of the image, which are two headers at once.
//!
//! For Linux's boot protocol an arm64 Image header (`booting.rst`, section 4); for UEFI an MS-DOS header whose
//! only fields are `MZ` and where the PE header is (PE Format, "MS-DOS Stub"). They go together because `MZ` can
//! be the lower half of an instruction that does nothing of consequence, and the Image header keeps its last
//! word for just that offset. Linux and Xen do the same.
//!
//! GRUB hands over an initrd by a protocol only to what says that it is Linux's EFI stub of version 1 or later, in the
//! image's version.
//!
//! The PE file has two sections: code, and all the rest, writable. The file is loaded as it is, every
//! byte at its offset; the image relocates itself, so it has no base relocations, and is not marked as if they had
//! been stripped. Heap and stacks are not in it: before it uses them, it moves to where there is room for
//! them ([`super::efi`]).
#![expect(unsafe_code, reason = "a header is no function")]

use core::arch::naked_asm;

/// Flags of the Image header: little-endian, 4K pages, may be loaded anywhere (`booting.rst`).
const IMAGE_FLAGS: u64 = 0b1010;

/// `IMAGE_FILE_MACHINE_ARM64`.
const MACHINE_ARM64: u64 = 0xaa64;
/// `IMAGE_FILE_EXECUTABLE_IMAGE`, `LINE_NUMS_STRIPPED`, `DEBUG_STRIPPED`.
const CHARACTERISTICS: u64 = 0x0206;
/// `IMAGE_NT_OPTIONAL_HDR64_MAGIC`: PE32+.
const PE32_PLUS: u64 = 0x20b;
/// `IMAGE_SUBSYSTEM_EFI_APPLICATION`.
const EFI_APPLICATION: u64 = 10;
/// `IMAGE_DLLCHARACTERISTICS_NX_COMPAT`: what is writable need not be executable.
const NX_COMPAT: u64 = 0x100;
/// `IMAGE_SCN_CNT_CODE`, `MEM_EXECUTE`, `MEM_READ`.
const CODE: u64 = 0x6000_0020;
/// `IMAGE_SCN_CNT_INITIALIZED_DATA`, `MEM_READ`, `MEM_WRITE`.
const DATA: u64 = 0xc000_0040;

#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.image_header")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        // `ccmp x18, #0, #0xd, pl`, which begins with "MZ" and changes flags alone.
        ".inst  0xfa405a4d",
        "b      {entry}",
        ".quad  0",               // text_offset
        ".quad  __image_size",
        ".quad  {flags}",
        ".quad  0, 0, 0",
        ".ascii \"ARM\\x64\"",
        ".word  9f - _start",
        // COFF header.
    "9:  .ascii \"PE\\0\\0\"",
        ".hword {machine}",
        ".hword 2",               // sections
        ".word  0, 0, 0",         // no date, no symbols
        ".hword 8f - 7f",         // size of the optional header
        ".hword {characteristics}",
        // Optional header.
    "7:  .hword {pe32_plus}",
        ".hword 0",               // no linker's version
        ".word  __pe_text_size",
        ".word  __pe_data_file_size",
        ".word  0",
        ".word  {efi_entry} - _start",
        ".word  __pe_text_offset",
        ".quad  0",               // image base: none is preferred
        ".word  0x1000",          // alignment in memory
        ".word  0x200",           // alignment in the file
        ".hword 0, 0, 1, 0, 0, 0", // versions: 1.0 of the image
        ".word  0",
        ".word  __pe_image_size",
        ".word  __pe_text_offset", // size of the headers
        ".word  0",               // no checksum
        ".hword {application}",
        ".hword {nx_compat}",
        ".quad  0, 0, 0, 0",      // no stack, no heap
        ".word  0",
        ".word  6",               // data directories, none of which is used
        ".quad  0, 0, 0, 0, 0, 0",
        // Section headers.
    "8:  .ascii \".text\\0\\0\\0\"",
        ".word  __pe_text_size, __pe_text_offset, __pe_text_size, __pe_text_offset",
        ".word  0, 0, 0, {code}",
        ".ascii \".data\\0\\0\\0\"",
        ".word  __pe_data_size, __pe_data_offset, __pe_data_file_size, __pe_data_offset",
        ".word  0, 0, 0, {data}",
        entry = sym super::boot::primary_entry,
        flags = const IMAGE_FLAGS,
        machine = const MACHINE_ARM64,
        characteristics = const CHARACTERISTICS,
        pe32_plus = const PE32_PLUS,
        efi_entry = sym super::efi::entry,
        application = const EFI_APPLICATION,
        nx_compat = const NX_COMPAT,
        code = const CODE,
        data = const DATA,
    )
}
