//! Builds the bundle: a `newc` cpio archive of the guests' files and `vms.dtb`.
//!
//! docs/protocols.md ("The bundle") says what is in it. A scenario may then damage it on purpose
//! ([`crate::scenario::Mutation`]): a property at the time the tree is written, a file when it is
//! added, the archive when it is whole.

use crate::cpio::Archive;
use crate::scenario::{
    Appearance, DeviceSpec, Mutation, Origin, Patch, Property, Scenario, ScenarioError, Vm,
};
use std::path::{Path, PathBuf};
use toml::Spanned;
use vm_fdt::{FdtWriter, FdtWriterResult};

/// The name of the tree in the archive.
const TREE: &str = "vms.dtb";

/// Builds the bundle of `scenario`. Files are looked for in `images`, then beside the scenario.
///
/// # Errors
/// A file that is in neither place, or damage that does not apply, with its place in the scenario.
pub fn build(scenario: &Scenario, images: &Path) -> Result<Vec<u8>, ScenarioError> {
    if let Some(raw) = &scenario.bundle.raw {
        return Ok(raw.clone().into_bytes());
    }
    let tree = tree(scenario)
        .map_err(|error| scenario.error(0..0, format!("vm: no device tree from this: {error}")))?;
    let mut files = vec![(TREE.to_owned(), tree)];
    for name in scenario.vm.iter().flat_map(vm_files) {
        if !files.iter().any(|(known, _)| known == name.as_ref()) {
            files.push((name.as_ref().clone(), read(scenario, images, name)?));
        }
    }
    for file in &scenario.bundle.file {
        let words = file.words.iter().flat_map(|word| word.to_le_bytes());
        files.push((file.name.clone(), file.text.bytes().chain(words).collect()));
    }
    for mutation in &scenario.bundle.mutate {
        mutate_files(scenario, mutation, &mut files)?;
    }
    let mut archive = Archive::default();
    for (name, content) in &files {
        archive.file(name, 0o644, content);
    }
    let mut archive = archive.finish();
    for mutation in &scenario.bundle.mutate {
        mutate_archive(scenario, mutation, &mut archive)?;
    }
    Ok(archive)
}

fn vm_files(vm: &Vm) -> impl Iterator<Item = &Spanned<String>> {
    std::iter::once(&vm.kernel).chain(&vm.initrd)
}

fn read(s: &Scenario, images: &Path, name: &Spanned<String>) -> Result<Vec<u8>, ScenarioError> {
    let beside: PathBuf = s.file.parent().unwrap_or(Path::new(".")).into();
    let places = [images.join(name.as_ref()), beside.join(name.as_ref())];
    let found = places.iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = format!(
            "vm.kernel: `{}` is neither in {} nor in {}",
            name.as_ref(),
            images.display(),
            beside.display()
        );
        s.error(name.span(), message)
    })?;
    std::fs::read(found).map_err(|error| {
        s.error(
            name.span(),
            format!("vm.kernel: {} cannot be read: {error}", found.display()),
        )
    })
}

/// Writes `vms.dtb`.
fn tree(scenario: &Scenario) -> FdtWriterResult<Vec<u8>> {
    let mut writer = TreeWriter {
        fdt: FdtWriter::new()?,
        scenario,
        replaced: Vec::new(),
    };
    let root = writer.fdt.begin_node("")?;
    writer.text("/", "compatible", "cordon,bundle-v1")?;
    writer.additions("/")?;
    for (index, vm) in scenario.vm.iter().enumerate() {
        writer.vm(&format!("vm@{index}"), vm)?;
    }
    writer.fdt.end_node(root)?;
    writer.fdt.finish()
}

/// Writes nodes, each property unless the scenario puts another in its place.
struct TreeWriter<'a> {
    fdt: FdtWriter,
    scenario: &'a Scenario,
    /// What stands already in another's place.
    replaced: Vec<&'a Property>,
}

impl<'a> TreeWriter<'a> {
    fn vm(&mut self, path: &str, vm: &Vm) -> FdtWriterResult<()> {
        let node = self.fdt.begin_node(path)?;
        self.text(path, "label", vm.name.as_ref())?;
        self.cells(path, "vcpus", &[*vm.vcpus.as_ref()])?;
        if vm.identity {
            self.flag(path, "identity")?;
        } else {
            self.wide(path, "ram-base", vm.ram_base.as_ref().0)?;
        }
        self.wide(path, "ram-size", vm.ram.as_ref().0)?;
        self.text(path, "kernel", vm.kernel.as_ref())?;
        for (name, offset) in [
            ("kernel-offset", &vm.kernel_offset),
            ("dtb-offset", &vm.dtb_offset),
        ] {
            if let Some(offset) = offset {
                self.wide(path, name, offset.as_ref().0)?;
            }
        }
        if let Some(initrd) = &vm.initrd {
            self.text(path, "initrd", initrd.as_ref())?;
        }
        if let Some(bootargs) = &vm.bootargs {
            self.text(path, "bootargs", bootargs)?;
        }
        if let Some(firmware) = &vm.firmware {
            self.text(path, "firmware", firmware.name())?;
        }
        if let Some(granule) = &vm.granule {
            self.text(path, "granule", granule.name())?;
        }
        self.additions(path)?;
        for (index, memory) in vm.device_memory.iter().enumerate() {
            let name = format!("device-memory@{index}");
            let path = format!("{path}/{name}");
            let node = self.fdt.begin_node(&name)?;
            let source = match memory.source {
                Origin::Bar => "bar",
                Origin::Reserved => "reserved",
            };
            self.text(&path, "source", source)?;
            self.cells(&path, "index", &[*memory.index.as_ref()])?;
            self.wide(&path, "offset", memory.offset.as_ref().0)?;
            self.wide(&path, "size", memory.size.as_ref().0)?;
            self.wide(&path, "ipa", memory.ipa.as_ref().0)?;
            match memory.appearance {
                None => {}
                Some(Appearance::Pmem) => self.text(&path, "as", "pmem")?,
                Some(Appearance::Dax) => self.text(&path, "as", "dax")?,
            }
            if let Some(policy) = &memory.policy {
                self.text(&path, "policy", policy)?;
            }
            if let Some(memory_type) = &memory.memory_type {
                self.text(&path, "memory-type", memory_type.as_ref())?;
            }
            if memory.shared {
                self.flag(&path, "shared")?;
            }
            self.additions(&path)?;
            self.fdt.end_node(node)?;
        }
        for (index, device) in vm.device.iter().enumerate() {
            self.device(path, &format!("device@{index}"), device)?;
        }
        self.fdt.end_node(node)
    }

    fn device(&mut self, vm: &str, name: &str, device: &DeviceSpec) -> FdtWriterResult<()> {
        let path = format!("{vm}/{name}");
        let node = self.fdt.begin_node(name)?;
        self.text(&path, "compatible", device.compatible.as_ref())?;
        self.wide(&path, "address", device.address.as_ref().0)?;
        if let Some(dma) = &device.dma {
            self.text(&path, "dma", dma.as_ref())?;
        }
        self.additions(&path)?;
        self.fdt.end_node(node)
    }

    fn flag(&mut self, node: &str, name: &str) -> FdtWriterResult<()> {
        match self.replace(node, name) {
            Some(replaced) => replaced,
            None => self.fdt.property_null(name),
        }
    }

    fn text(&mut self, node: &str, name: &str, value: &str) -> FdtWriterResult<()> {
        match self.replace(node, name) {
            Some(replaced) => replaced,
            None => self.fdt.property_string(name, value),
        }
    }

    fn cells(&mut self, node: &str, name: &str, cells: &[u32]) -> FdtWriterResult<()> {
        match self.replace(node, name) {
            Some(replaced) => replaced,
            None => self.fdt.property_array_u32(name, cells),
        }
    }

    /// A number of two cells.
    fn wide(&mut self, node: &str, name: &str, value: u64) -> FdtWriterResult<()> {
        match self.replace(node, name) {
            Some(replaced) => replaced,
            None => self.fdt.property_u64(name, value),
        }
    }

    /// The scenario's own properties of `node` that stand in no other's place.
    fn additions(&mut self, node: &str) -> FdtWriterResult<()> {
        for property in properties(self.scenario).filter(|property| property.node == node) {
            let is_there = self
                .replaced
                .iter()
                .any(|it| it.name == property.name && it.node == node);
            if !is_there {
                self.write(property)?;
            }
        }
        Ok(())
    }

    /// Writes what the scenario puts in the place of property `name`; `None` if there is no such thing.
    fn replace(&mut self, node: &str, name: &str) -> Option<FdtWriterResult<()>> {
        let mut all = properties(self.scenario);
        let property = all.find(|property| property.node == node && property.name == name)?;
        self.replaced.push(property);
        Some(self.write(property))
    }

    fn write(&mut self, property: &Property) -> FdtWriterResult<()> {
        match (&property.cells, &property.text) {
            (Some(cells), _) => self.fdt.property_array_u32(&property.name, cells),
            (None, Some(text)) => self.fdt.property_string(&property.name, text),
            (None, None) => Ok(()),
        }
    }
}

fn properties(scenario: &Scenario) -> impl Iterator<Item = &Property> {
    scenario
        .bundle
        .mutate
        .iter()
        .filter_map(|mutation| mutation.property.as_ref())
}

fn mutate_files(
    s: &Scenario,
    mutation: &Mutation,
    files: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), ScenarioError> {
    let missing = |name: &str| {
        s.error(
            0..0,
            format!("bundle.mutate: there is no file `{name}` in the bundle"),
        )
    };
    if let Some(name) = &mutation.remove {
        let at = files
            .iter()
            .position(|(known, _)| known == name)
            .ok_or_else(|| missing(name))?;
        files.remove(at);
    }
    if let Some(patch) = &mutation.patch
        && let Some(name) = &patch.file
    {
        let file = files.iter_mut().find(|(known, _)| known == name);
        apply(s, patch, &mut file.ok_or_else(|| missing(name))?.1)?;
    }
    Ok(())
}

fn mutate_archive(
    s: &Scenario,
    mutation: &Mutation,
    archive: &mut Vec<u8>,
) -> Result<(), ScenarioError> {
    if let Some(length) = mutation.truncate {
        if length >= archive.len() {
            let message = format!(
                "bundle.mutate.truncate: the archive has but {} bytes",
                archive.len()
            );
            return Err(s.error(0..0, message));
        }
        archive.truncate(length);
    }
    match &mutation.patch {
        Some(patch) if patch.file.is_none() => apply(s, patch, archive),
        _ => Ok(()),
    }
}

fn apply(s: &Scenario, patch: &Patch, content: &mut [u8]) -> Result<(), ScenarioError> {
    let bytes = hex_bytes(patch.bytes.as_ref()).unwrap_or_default();
    let range = patch.at..patch.at.saturating_add(bytes.len());
    let length = content.len();
    let target = content.get_mut(range).ok_or_else(|| {
        let message = format!("bundle.mutate.patch.at: beyond the end, at {length} bytes");
        s.error(patch.bytes.span(), message)
    })?;
    target.copy_from_slice(&bytes);
    Ok(())
}

/// Reads pairs of hexadecimal digits with blanks between them.
pub(crate) fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    text.split_whitespace()
        .map(|pair| {
            (pair.len() == 2)
                .then(|| u8::from_str_radix(pair, 16).ok())
                .flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    static IMAGES: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

    /// A directory with a kernel. Renamed into place, so that two test processes do not meet.
    fn images() -> PathBuf {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bundle-test");
        std::fs::create_dir_all(&images).expect("a directory for the images");
        let new = images.join(format!("new-{}", std::process::id()));
        std::fs::write(&new, b"kernel!").expect("an image");
        std::fs::rename(&new, images.join("probe.img")).expect("renamed");
        images
    }

    /// A scenario with one VM and whatever else `tail` says, and a directory with its kernel.
    fn scenario(tail: &str) -> (Scenario, PathBuf) {
        let text = format!(
            "name = \"t\"\nsummary = \"t\"\nfigures = []\nstep = []\n{tail}\n\
             [machine]\nboot = \"el3\"\ncpus = 2\nmemory = \"1G\"\ndevice-memory = [\"2G\"]\n\
             [[vm]]\nname = \"probe\"\nvcpus = 2\nram = \"64M\"\nkernel = \"probe.img\"\n\
             [[vm.device-memory]]\nsource = \"bar\"\nsize = \"2G\"\nipa = \"64G\"\n"
        );
        let mut all = Scenario::parse(Path::new("t.toml"), &text).expect("a good scenario");
        let images = IMAGES.get_or_init(images).clone();
        (all.remove(0), images)
    }

    /// Takes the archive apart again, by a reader that was written from the format's description.
    fn entries(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let total = archive.len();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&archive[6 + 8 * n..14 + 8 * n]).expect("digits");
                usize::from_str_radix(digits, 16).expect("a number")
            };
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8(archive[110..109 + name_size].to_vec()).expect("a name");
            let start = (total - archive.len() + 110 + name_size).next_multiple_of(4)
                - (total - archive.len());
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, archive[start..start + size].to_vec()));
            archive = &archive[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn the_archive_holds_the_tree_and_the_kernel() {
        let (scenario, images) = scenario("");
        let files = entries(&build(&scenario, &images).expect("a bundle"));
        assert_eq!(files[0].0, "vms.dtb");
        assert_eq!(files[0].1[..4], [0xd0, 0x0d, 0xfe, 0xed]);
        assert_eq!(files[1], ("probe.img".to_owned(), b"kernel!".to_vec()));
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn a_scenario_may_add_files_of_text_and_numbers() {
        let file = "[[bundle.file]]\nname = \"f\"\ntext = \"ab\"\nwords = [0x102]\n";
        let (scenario, images) = scenario(file);
        let files = entries(&build(&scenario, &images).expect("a bundle"));
        let bytes = b"ab\x02\x01\0\0\0\0\0\0".to_vec();
        assert_eq!(files[2], ("f".to_owned(), bytes));
    }

    #[test]
    fn the_tree_says_what_the_scenario_says() {
        let (scenario, _) = scenario("");
        let blob = tree(&scenario).expect("a tree");
        let has = |bytes: &[u8]| blob.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(b"vm@0\0") && has(b"device-memory@0\0") && has(b"cordon,bundle-v1\0"));
        assert!(has(b"probe\0") && has(b"probe.img\0") && has(b"bar\0"));
        for wide in [0x4000_0000_u64, 64 << 20, 2 << 30, 64 << 30] {
            assert!(has(&wide.to_be_bytes()), "{wide:#x}");
        }
    }

    #[test]
    fn cpio_itself_can_list_the_archive() {
        let (scenario, images) = scenario("");
        let archive = build(&scenario, &images).expect("a bundle");
        let mut cpio = Command::new("cpio");
        cpio.arg("-t")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let Ok(mut child) = cpio.spawn() else { return };
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(&archive)
            .expect("written");
        let output = child.wait_with_output().expect("cpio ends");
        assert!(output.status.success());
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "vms.dtb\nprobe.img\n"
        );
    }

    #[test]
    fn a_file_that_is_missing_is_named_with_its_line() {
        let (scenario, _) = scenario("");
        let error = build(&scenario, Path::new("/nonexistent")).expect_err("no image there");
        assert!(error.message.contains("`probe.img`"), "{error}");
        assert_eq!(error.line, 15, "{error}");
    }

    #[test]
    fn damage_is_done_where_it_is_asked_for() {
        let mutated = |tail: &str| {
            let (scenario, images) = scenario(tail);
            build(&scenario, &images)
        };
        let good = mutated("").expect("a bundle");
        let cut = mutated("bundle.mutate = [{ truncate = 200 }]").expect("a bundle");
        assert_eq!(cut, good[..200]);
        let bare = mutated("bundle.mutate = [{ remove = \"vms.dtb\" }]").expect("a bundle");
        assert_eq!(entries(&bare)[0].0, "probe.img");
        let tail =
            "bundle.mutate = [{ patch = { file = \"vms.dtb\", at = 4, bytes = \"ff FF\" } }]";
        let patched = mutated(tail).expect("a bundle");
        assert_eq!(entries(&patched)[0].1[4..6], [0xff, 0xff]);
        let tail = "bundle.mutate = [{ patch = { at = 0, bytes = \"58\" } }]";
        assert_eq!(mutated(tail).expect("a bundle")[0], b'X');
        assert!(mutated("bundle.mutate = [{ truncate = 99999999 }]").is_err());
        assert!(mutated("bundle.mutate = [{ remove = \"none\" }]").is_err());
    }

    #[test]
    fn a_property_is_replaced_added_or_left_out() {
        let blob = |tail: &str| tree(&scenario(tail).0).expect("a tree");
        let has = |blob: &[u8], bytes: &[u8]| blob.windows(bytes.len()).any(|w| w == bytes);
        let node = "node = \"vm@0/device-memory@0\"";
        let replaced = blob(&format!(
            "bundle.mutate = [{{ property = {{ {node}, name = \"ipa\", cells = [4660, 22136] }} }}]"
        ));
        assert!(has(&replaced, &0x1234_0000_5678_u64.to_be_bytes()));
        assert_eq!(
            replaced.len(),
            blob("").len(),
            "in the place of the old one"
        );
        let added = blob(&format!(
            "bundle.mutate = [{{ property = {{ {node}, name = \"speling\", text = \"x\" }} }}]"
        ));
        assert!(has(&added, b"speling\0"));
        let without =
            blob("bundle.mutate = [{ property = { node = \"vm@0\", name = \"kernel\" } }]");
        assert!(!has(&without, b"probe.img\0"));
    }
}
