//! The firmware's services, called.

use cordon::addr::{Pa, PaRange};
use cordon::platform::efi::{self, EfiError, Exited, Firmware, MapInfo, PAGE, Status, Tables};
use core::ffi::c_void;
use core::fmt;
use core::ptr::{self, NonNull};
use uefi_raw::protocol::device_path::DevicePathProtocol;
use uefi_raw::protocol::file_system::{
    FileAttribute, FileInfo, FileMode, FileProtocolV1, SimpleFileSystemProtocol,
};
use uefi_raw::protocol::loaded_image::LoadedImageProtocol;
use uefi_raw::protocol::media::LoadFile2Protocol;
use uefi_raw::table::boot::{AllocateType, BootServices, MemoryDescriptor, MemoryType};
use uefi_raw::table::system::SystemTable;
use uefi_raw::{Boolean, Guid, Handle};

/// Most blocks of pages that are taken.
const MAX_BLOCKS: usize = 16;
/// Configuration tables that are looked at: firmware has a dozen.
const MAX_TABLES: usize = 256;
/// Longest path of a file, with its NUL.
const MAX_PATH: usize = 64;

/// The services, and what was taken by them.
pub(super) struct Services {
    image: Handle,
    table: NonNull<SystemTable>,
    boot: NonNull<BootServices>,
    loaded: NonNull<LoadedImageProtocol>,
    /// The volume's root directory, once it is open.
    root: Option<NonNull<FileProtocolV1>>,
    /// Where the initrd that a loader offers can be had.
    initrd: Option<NonNull<LoadFile2Protocol>>,
    blocks: [Option<PaRange>; MAX_BLOCKS],
}

/// A call's outcome.
fn check(status: uefi_raw::Status) -> Result<(), Status> {
    match status {
        uefi_raw::Status::SUCCESS => Ok(()),
        status => Err(Status(status.0)),
    }
}

impl Services {
    /// The services of `table` for the application `image`; `None` where there is not even what every
    /// firmware has.
    ///
    /// # Safety
    ///
    /// The two must be what UEFI called this application with; boot services have not ended.
    pub(super) unsafe fn new(image: Handle, table: *mut SystemTable) -> Option<Self> {
        let table = NonNull::new(table)?;
        // SAFETY: the caller's promise.
        let boot = NonNull::new(unsafe { table.as_ref() }.boot_services)?;
        let mut services = Self {
            image,
            table,
            boot,
            loaded: NonNull::dangling(),
            root: None,
            initrd: None,
            blocks: [None; MAX_BLOCKS],
        };
        services.loaded = services.protocol(image, &LoadedImageProtocol::GUID).ok()?;
        Some(services)
    }

    /// Boot services, which are there as long as this value is in use: [`Firmware::exit`] is its last.
    fn boot(&self) -> &BootServices {
        // SAFETY: `new`'s caller promised.
        unsafe { self.boot.as_ref() }
    }

    /// The interface of a protocol that `handle` has.
    fn protocol<T>(&self, handle: Handle, guid: &Guid) -> Result<NonNull<T>, Status> {
        let mut interface = ptr::null_mut();
        // SAFETY: a handle of the firmware's, and places for the answer.
        check(unsafe { (self.boot().handle_protocol)(handle, guid, &mut interface) })?;
        NonNull::new(interface.cast()).ok_or(Status::NOT_FOUND)
    }

    /// The image's load options.
    pub(super) fn load_options(&self) -> &[u8] {
        // SAFETY: the interface of this image, which lives as long as it does.
        let loaded = unsafe { self.loaded.as_ref() };
        if loaded.load_options.is_null() {
            return &[];
        }
        let size = usize::try_from(loaded.load_options_size).unwrap_or_default();
        // SAFETY: by the same interface, so many bytes are there.
        unsafe { core::slice::from_raw_parts(loaded.load_options.cast(), size) }
    }

    /// What describes the machine.
    pub(super) fn tables(&self) -> Tables {
        let mut found = Tables::default();
        // SAFETY: the system table; its list is as long as it says, of which no more than is sane is read.
        let table = unsafe { self.table.as_ref() };
        if table.configuration_table.is_null() {
            return found;
        }
        for index in 0..table.number_of_configuration_table_entries.min(MAX_TABLES) {
            // SAFETY: as above.
            let entry = unsafe { &*table.configuration_table.add(index) };
            let at = Pa::new(entry.vendor_table.addr() as u64);
            found.add(&entry.vendor_guid.to_bytes(), at);
        }
        found
    }

    /// Where ResetSystem is. Without a virtual address map, of which there will be none, it stays there.
    pub(super) fn reset_system(&self) -> Option<Pa> {
        // SAFETY: the system table.
        let runtime = NonNull::new(unsafe { self.table.as_ref() }.runtime_services)?;
        // SAFETY: what the system table says is the runtime services' table. Firmware may have left the field
        // empty, which no function pointer of Rust's is: so it is read as a number.
        let at = unsafe {
            (&raw const (*runtime.as_ptr()).reset_system)
                .cast::<u64>()
                .read()
        };
        (at != 0).then_some(Pa::new(at))
    }

    /// The memory map as it is now, in memory of its own.
    pub(super) fn look_at_map(&mut self) -> Result<Exited, EfiError> {
        let Err((Status::BUFFER_TOO_SMALL, info)) = self.memory_map(None) else {
            return Err(EfiError::Memory(Status::LOAD_ERROR));
        };
        let pages = info.size.saturating_add(PAGE).div_ceil(PAGE);
        let room = self.allocate(pages).map_err(EfiError::Memory)?;
        let info = self
            .memory_map(Some(room))
            .map_err(|(status, _)| EfiError::Memory(status))?;
        let map = PaRange::new(room.start(), info.size).filter(|map| room.contains_range(*map));
        Ok(Exited {
            map: map.ok_or(EfiError::Memory(Status::LOAD_ERROR))?,
            descriptor_size: info.descriptor_size,
        })
    }

    /// Frees all memory that was taken, and closes the volume. Whoever calls this touches none of it any more.
    pub(super) fn give_back(&mut self) {
        drop(self.root.take().map(File));
        for block in core::mem::take(&mut self.blocks).into_iter().flatten() {
            let pages = usize::try_from(block.size() / PAGE).unwrap_or_default();
            // SAFETY: allocated by `allocate`, as large; the caller is done with it. An error leaves it taken.
            let _ = unsafe { (self.boot().free_pages)(block.start().get(), pages) };
        }
    }

    /// The root of the volume that this image was loaded from.
    fn root(&mut self) -> Result<NonNull<FileProtocolV1>, Status> {
        if let Some(root) = self.root {
            return Ok(root);
        }
        // SAFETY: as in `load_options`.
        let device = unsafe { self.loaded.as_ref() }.device_handle;
        let volume: NonNull<SimpleFileSystemProtocol> =
            self.protocol(device, &SimpleFileSystemProtocol::GUID)?;
        let mut root = ptr::null_mut();
        // SAFETY: an interface of the firmware's, called as it wants to be.
        check(unsafe { (volume.as_ref().open_volume)(volume.as_ptr(), &mut root) })?;
        self.root = NonNull::new(root);
        self.root.ok_or(Status::NOT_FOUND)
    }

    /// Asks for the initrd, into `to` or for its size.
    fn ask_initrd(&self, size: &mut usize, to: *mut c_void) -> Result<(), Status> {
        let initrd = self.initrd.ok_or(Status::NOT_FOUND)?;
        let path = ptr::from_ref(&INITRD_PATH.end).cast::<DevicePathProtocol>();
        // SAFETY: an interface of the firmware's, with a path that ends, and room for `size` bytes or none.
        check(unsafe {
            (initrd.as_ref().load_file)(initrd.as_ptr(), path, Boolean::FALSE, size, to)
        })
    }
}

/// Linux's vendor media path for an initrd (`LINUX_EFI_INITRD_MEDIA_GUID`; UEFI 2.10, 10.3.5.3 and 10.3.1).
#[repr(C, packed)]
struct InitrdPath {
    head: [u8; 4],
    vendor: [u8; 16],
    end: [u8; 4],
}

static INITRD_PATH: InitrdPath = InitrdPath {
    // Media device path, vendor-defined, 20 bytes.
    head: [4, 3, 20, 0],
    vendor: [
        0x27, 0xe4, 0x68, 0x55, 0xfc, 0x68, 0x3d, 0x4f, 0xac, 0x74, 0xca, 0x55, 0x52, 0x31, 0xcc,
        0x68,
    ],
    end: [0x7f, 0xff, 4, 0],
};

impl Firmware for Services {
    type File = File;

    fn initrd(&mut self) -> Result<Option<u64>, Status> {
        let mut path = ptr::from_ref(&INITRD_PATH).cast::<DevicePathProtocol>();
        let mut handle = ptr::null_mut();
        let guid = &LoadFile2Protocol::GUID;
        // SAFETY: a path that ends, and a place for the answer.
        let found =
            check(unsafe { (self.boot().locate_device_path)(guid, &mut path, &mut handle) });
        if found.is_err() {
            return Ok(None);
        }
        self.initrd = Some(self.protocol(handle, guid)?);
        let mut size = 0;
        match self.ask_initrd(&mut size, ptr::null_mut()) {
            Err(Status::BUFFER_TOO_SMALL) => Ok(Some(size as u64)),
            // A loader offers one whether or not there is any.
            Err(Status::NOT_FOUND) | Ok(()) => Ok(None),
            Err(status) => Err(status),
        }
    }

    fn load_initrd(&mut self, to: PaRange) -> Result<(), Status> {
        let mut size = usize::try_from(to.size()).map_err(|_| Status::LOAD_ERROR)?;
        self.ask_initrd(&mut size, to.start().get() as *mut c_void)
    }

    fn open(&mut self, path: &str) -> Result<Option<File>, Status> {
        let root = match self.root() {
            Ok(root) => root,
            // Loaded from what is no volume.
            Err(Status::UNSUPPORTED | Status::NOT_FOUND | Status::INVALID_PARAMETER) => {
                return Ok(None);
            }
            Err(status) => return Err(status),
        };
        let mut name = [0; MAX_PATH];
        for (place, letter) in name.iter_mut().take(MAX_PATH - 1).zip(path.encode_utf16()) {
            *place = letter;
        }
        let mut file = ptr::null_mut();
        let (mode, attributes) = (FileMode::READ, FileAttribute::empty());
        // SAFETY: an open directory of the firmware's, a path that ends, and a place for the answer.
        let opened = check(unsafe {
            (root.as_ref().open)(root.as_ptr(), &mut file, name.as_ptr(), mode, attributes)
        });
        match opened {
            Ok(()) => Ok(NonNull::new(file).map(File)),
            Err(Status::NOT_FOUND) => Ok(None),
            Err(status) => Err(status),
        }
    }

    fn allocate(&mut self, pages: u64) -> Result<PaRange, Status> {
        let free = self.blocks.iter().position(Option::is_none);
        let free = free.ok_or(Status::OUT_OF_RESOURCES)?;
        let count = usize::try_from(pages).map_err(|_| Status::OUT_OF_RESOURCES)?;
        let (how, kind) = (AllocateType::ANY_PAGES, MemoryType::LOADER_DATA);
        let mut start = 0;
        // SAFETY: a place for the answer.
        check(unsafe { (self.boot().allocate_pages)(how, kind, count, &mut start) })?;
        let size = pages.checked_mul(PAGE).ok_or(Status::OUT_OF_RESOURCES)?;
        let range = PaRange::new(Pa::new(start), size).ok_or(Status::OUT_OF_RESOURCES)?;
        if let Some(block) = self.blocks.get_mut(free) {
            *block = Some(range);
        }
        // Rust has no reference to address 0, and so no use for a block that begins there.
        if start == 0 {
            return Err(Status::OUT_OF_RESOURCES);
        }
        Ok(range)
    }

    fn memory_map(&mut self, to: Option<PaRange>) -> Result<MapInfo, (Status, MapInfo)> {
        let (mut size, start) = to.map_or((0, 0), |to| (to.size() as usize, to.start().get()));
        let (mut key, mut descriptor_size, mut version) = (0, 0, 0);
        let map = start as *mut MemoryDescriptor;
        // SAFETY: room of that size, or none, and places for the answers.
        let done = check(unsafe {
            (self.boot().get_memory_map)(
                &mut size,
                map,
                &mut key,
                &mut descriptor_size,
                &mut version,
            )
        });
        let info = MapInfo {
            size: size as u64,
            descriptor_size,
            key,
        };
        done.map(|()| info).map_err(|status| (status, info))
    }

    fn exit(&mut self, key: usize) -> Result<(), Status> {
        // SAFETY: this application, which uses nothing of boot services behind this.
        check(unsafe { (self.boot().exit_boot_services)(self.image, key) })
    }
}

/// An open file, closed when it is dropped.
pub(super) struct File(NonNull<FileProtocolV1>);

impl efi::File for File {
    fn size(&mut self) -> Result<u64, Status> {
        // The name stands behind the fields that count.
        let mut room = [0_u64; 64];
        let mut size = size_of_val(&room);
        let (guid, place) = (&FileInfo::ID, room.as_mut_ptr().cast());
        // SAFETY: an open file of the firmware's; room of `size` bytes.
        check(unsafe { (self.0.as_ref().get_info)(self.0.as_ptr(), guid, &mut size, place) })?;
        // `EFI_FILE_INFO.FileSize` is the second word.
        Ok(room[1])
    }

    fn read(&mut self, to: PaRange) -> Result<u64, Status> {
        let mut size = usize::try_from(to.size()).map_err(|_| Status::LOAD_ERROR)?;
        let place = to.start().get() as *mut c_void;
        // SAFETY: an open file of the firmware's; memory of this application's, of that size.
        check(unsafe { (self.0.as_ref().read)(self.0.as_ptr(), &mut size, place) })?;
        Ok(size as u64)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: an open file of the firmware's, closed once. It does not fail (13.5).
        let _ = unsafe { (self.0.as_ref().close)(self.0.as_ptr()) };
    }
}

/// The firmware's console.
impl fmt::Write for Services {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // SAFETY: the system table, and what it says is the console.
        let console = unsafe { self.table.as_ref() }.stdout;
        let Some(console) = NonNull::new(console) else {
            return Ok(());
        };
        for letter in text.encode_utf16() {
            let unit = [letter, 0];
            // SAFETY: the console's interface, and a text that ends.
            let _ = unsafe { (console.as_ref().output_string)(console.as_ptr(), unit.as_ptr()) };
        }
        Ok(())
    }
}
