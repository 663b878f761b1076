//! Archives of the kind `newc` (cpio(5), "New ASCII Format"), written: bundles and initramfs.

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// An archive that grows.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a file with these permissions.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entries += 1;
        self.entry(self.entries, REGULAR | permissions, name, content);
    }

    /// Adds a directory that everybody may enter.
    pub fn directory(&mut self, name: &str) {
        self.entries += 1;
        self.entry(self.entries, DIRECTORY | 0o755, name, &[]);
    }

    /// The archive with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(0, REGULAR | 0o644, "TRAILER!!!", &[]);
        self.bytes
    }

    /// One entry: a header of 110 ASCII bytes, the name with its zero, and the content, the latter
    /// two each padded to four bytes.
    fn entry(&mut self, inode: u32, mode: u32, name: &str, content: &[u8]) {
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, nlink, mtime, size, device (2), rdevice (2), name size, checksum
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
