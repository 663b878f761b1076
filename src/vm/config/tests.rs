use super::*;
use crate::platform::bundle::tests::archive;
use crate::platform::fdt::FdtError;
use crate::platform::image::ImageError;
use crate::platform::image::tests::image;
use crate::platform::{damage, fuzz_config};
use alloc::string::ToString;
use proptest::prelude::*;
use vm_fdt::FdtWriter;

pub(super) const LIMITS: Limits = Limits {
    cpus: 20,
    ipa_bits: 40,
    granules: Granules::ALL,
};

type Properties = Vec<(&'static str, Vec<u8>)>;

/// A node as it will be in `vms.dtb`.
#[derive(Clone)]
pub(crate) struct Node {
    name: &'static str,
    pub(super) properties: Properties,
    pub(super) children: Vec<Node>,
}

impl Node {
    pub(super) fn new(name: &'static str, properties: &[(&'static str, &[u8])]) -> Self {
        let properties = properties
            .iter()
            .map(|(name, value)| (*name, value.to_vec()))
            .collect();
        Self {
            name,
            properties,
            children: Vec::new(),
        }
    }

    pub(crate) fn set(&mut self, name: &'static str, value: &[u8]) {
        match self.properties.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.properties.push((name, value.to_vec())),
        }
    }

    fn write(&self, writer: &mut FdtWriter) {
        let node = writer.begin_node(self.name).unwrap();
        for (name, value) in &self.properties {
            writer.property(name, value).unwrap();
        }
        self.children.iter().for_each(|child| child.write(writer));
        writer.end_node(node).unwrap();
    }
}

/// A bundle's tree and files, to be changed one thing at a time.
#[derive(Clone)]
pub(crate) struct Tree {
    root: Node,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Tree {
    /// The VM of `docs/protocols.md`, with all that is optional.
    pub(crate) fn full() -> Self {
        let mut vm = Node::new(
            "vm@0",
            &[
                ("label", b"probe\0"),
                ("vcpus", &2_u32.to_be_bytes()),
                ("ram-base", &0x4000_0000_u64.to_be_bytes()),
                ("ram-size", &0x0400_0000_u64.to_be_bytes()),
                ("kernel", b"probe.img\0"),
                ("initrd", b"initrd\0"),
                ("bootargs", b"console=ttyAMA0 quiet\0"),
            ],
        );
        vm.children.push(Node::new(
            "device-memory@0",
            &[
                ("source", b"bar\0"),
                ("index", &0_u32.to_be_bytes()),
                ("offset", &0_u64.to_be_bytes()),
                ("size", &0x8000_0000_u64.to_be_bytes()),
                ("ipa", &0x10_0000_0000_u64.to_be_bytes()),
            ],
        ));
        let mut root = Node::new("", &[("compatible", b"cordon,bundle-v1\0")]);
        root.children.push(vm);
        let kernel = image(0x8_0000, 0x20_0000, 0b1010, 4096);
        Self {
            root,
            files: [("probe.img", kernel), ("initrd", [1; 5000].to_vec())].to_vec(),
        }
    }

    pub(super) fn vm(&mut self) -> &mut Node {
        &mut self.root.children[0]
    }

    pub(crate) fn device_memory(&mut self) -> &mut Node {
        &mut self.vm().children[0]
    }

    /// Sets a property of the first VM.
    pub(crate) fn set(&mut self, name: &'static str, value: &[u8]) {
        self.vm().set(name, value);
    }

    fn blob(&self) -> Vec<u8> {
        let mut writer = FdtWriter::new().unwrap();
        self.root.write(&mut writer);
        writer.finish().unwrap()
    }

    /// The archive.
    pub(crate) fn bundle(&self) -> Vec<u8> {
        self.bundle_of(&self.blob())
    }

    fn bundle_of(&self, blob: &[u8]) -> Vec<u8> {
        let files = self
            .files
            .iter()
            .map(|(name, bytes)| (*name, bytes.as_slice()));
        let files: Vec<(&str, &[u8])> = [(FILE, blob)].into_iter().chain(files).collect();
        archive(&files)
    }
}

/// Reads an archive with the limits of these tests.
pub(crate) fn read(bundle: &[u8]) -> Result<Vec<VmConfig<'_>>, ConfigError> {
    super::read(&Bundle::parse(bundle).unwrap(), LIMITS)
}

fn ipa(start: u64, size: u64) -> IpaRange {
    IpaRange::new(Ipa::new(start), size).unwrap()
}

/// What a changed tree is refused with.
fn refused(change: impl FnOnce(&mut Tree)) -> ConfigError {
    let mut tree = Tree::full();
    change(&mut tree);
    read(&tree.bundle()).unwrap_err()
}

/// An error about a property of the first VM, or of its device memory.
fn vm_error(property: &str, why: Why) -> ConfigError {
    ConfigError::at(Some("probe"), "/vm@0", Some(property), why)
}

fn device_error(property: &str, why: Why) -> ConfigError {
    ConfigError::at(Some("probe"), "/vm@0/device-memory@0", Some(property), why)
}

#[test]
fn the_description_in_the_protocol_is_read() {
    let bundle = Tree::full().bundle();
    let vms = read(&bundle).unwrap();
    let [vm] = vms.as_slice() else {
        unreachable!("one VM")
    };
    assert_eq!(
        (vm.label, vm.vcpus, vm.ram),
        ("probe", 2, ipa(0x4000_0000, 64 << 20))
    );
    assert_eq!(
        (vm.kernel.name, vm.initrd.unwrap().bytes.len()),
        ("probe.img", 5000)
    );
    assert_eq!(vm.bootargs, Some("console=ttyAMA0 quiet"));
    let [memory] = vm.device_memory.as_slice() else {
        unreachable!("one piece")
    };
    assert_eq!(
        (memory.source, memory.index, memory.offset),
        (Source::Bar, 0, 0)
    );
    assert_eq!(memory.ipa, ipa(0x10_0000_0000, 2 << 30));
    assert_eq!(vm.layout.kernel, ipa(0x4008_0000, 0x20_0000));
    assert_eq!(vm.layout.dtb, ipa(0x43e0_0000, 2 << 20));
    assert_eq!(vm.layout.initrd, Some(ipa(0x43df_e000, 5000)));
}

#[test]
fn what_is_optional_may_be_absent() {
    let mut tree = Tree::full();
    tree.vm()
        .properties
        .retain(|(name, _)| !matches!(*name, "initrd" | "bootargs"));
    tree.vm().children.clear();
    let bundle = tree.bundle();
    let vm = &read(&bundle).unwrap()[0];
    assert_eq!(
        (vm.initrd, vm.bootargs, vm.layout.initrd),
        (None, None, None)
    );
    assert!(vm.device_memory.is_empty());
}

#[test]
fn what_is_needed_is_missed() {
    for name in ["label", "vcpus", "ram-base", "ram-size", "kernel"] {
        let error = refused(|tree| tree.vm().properties.retain(|(other, _)| *other != name));
        assert_eq!(
            (error.property.as_deref(), error.why),
            (Some(name), Why::Missing)
        );
    }
    for name in ["source", "index", "offset", "size", "ipa"] {
        let error = refused(|tree| {
            tree.device_memory()
                .properties
                .retain(|(other, _)| *other != name)
        });
        assert_eq!(error, device_error(name, Why::Missing));
    }
}

#[test]
fn a_value_of_the_wrong_form_is_refused() {
    let cell = 1_u32.to_be_bytes();
    for (name, value) in [
        ("vcpus", &[0; 8][..]),
        ("ram-base", &cell),
        ("ram-size", &cell),
        ("kernel", b"probe.img"),
        ("initrd", b"a\0b\0"),
        ("bootargs", b"\xff\0"),
    ] {
        assert_eq!(
            refused(|tree| tree.set(name, value)),
            vm_error(name, Why::BadValue),
            "{name}"
        );
    }
    for (name, value) in [
        ("source", &b"ram\0"[..]),
        ("index", &[0; 8]),
        ("offset", &cell),
        ("size", &cell),
        ("ipa", &cell),
        ("as", b"ram\0"),
    ] {
        let error = refused(|tree| tree.device_memory().set(name, value));
        assert_eq!(error, device_error(name, Why::BadValue));
    }
}

#[test]
fn labels_are_short_and_plain() {
    for label in ["\0", "Probe\0", "a b\0", "a_b\0", "0123456789abcdef\0", "x"] {
        let error = refused(|tree| tree.set("label", label.as_bytes()));
        assert_eq!(
            error,
            ConfigError::at(None, "/vm@0", Some("label"), Why::BadValue),
            "{label}"
        );
    }
    let mut tree = Tree::full();
    tree.set("label", b"0123456789abc-e\0");
    assert!(read(&tree.bundle()).is_ok());
}

#[test]
fn what_nobody_knows_is_refused_wherever_it_is() {
    let error = refused(|tree| tree.set("vcpu", &[0; 4]));
    assert_eq!(error, vm_error("vcpu", Why::Unknown));
    let error = refused(|tree| tree.device_memory().set("polity", b"keep\0"));
    assert_eq!(error, device_error("polity", Why::Unknown));
    let error = refused(|tree| tree.root.set("model", b"x\0"));
    assert_eq!(
        error,
        ConfigError::at(None, "/", Some("model"), Why::Unknown)
    );
    for name in ["vm", "vm@", "vm@x", "guest@0"] {
        let error = refused(|tree| tree.vm().name = name);
        assert_eq!(
            (error.node, error.why),
            (["/", name].concat(), Why::Unknown)
        );
    }
    let error = refused(|tree| tree.device_memory().name = "memory@0");
    assert_eq!(
        (error.node.as_str(), error.why),
        ("/vm@0/memory@0", Why::Unknown)
    );
    let error = refused(|tree| tree.device_memory().children.push(Node::new("x", &[])));
    assert_eq!(
        (error.vm.as_deref(), error.why),
        (Some("probe"), Why::Unknown)
    );
    assert_eq!(error.node, "/vm@0/device-memory@0/x");
}

#[test]
fn what_is_there_twice_is_refused() {
    let error = refused(|tree| tree.vm().properties.push(("vcpus", [0; 4].to_vec())));
    assert_eq!(error, vm_error("vcpus", Why::Duplicate));
    let error = refused(|tree| {
        let second = tree.vm().clone();
        tree.root.children.push(second);
    });
    assert_eq!(error, ConfigError::at(None, "/vm@0", None, Why::Duplicate));
    let error = refused(|tree| {
        let second = Node {
            name: "vm@1",
            ..tree.vm().clone()
        };
        tree.root.children.push(second);
    });
    assert_eq!(
        error,
        ConfigError::at(Some("probe"), "/vm@1", Some("label"), Why::Duplicate)
    );
    let error = refused(|tree| {
        let second = tree.device_memory().clone();
        tree.vm().children.push(second);
    });
    assert_eq!(
        error,
        ConfigError::at(Some("probe"), "/vm@0/device-memory@0", None, Why::Duplicate)
    );
}

#[test]
fn each_vcpu_takes_a_cpu_of_its_own() {
    for value in [0, 65, u32::MAX] {
        let error = refused(|tree| tree.set("vcpus", &value.to_be_bytes()));
        assert_eq!(
            error,
            vm_error(
                "vcpus",
                Why::OutOfRange {
                    value: value.into()
                }
            )
        );
    }
    let two_vms = |second: u32| {
        let mut tree = Tree::full();
        tree.set("vcpus", &12_u32.to_be_bytes());
        let mut other = Node {
            name: "vm@1",
            ..tree.vm().clone()
        };
        other.children.clear();
        other.set("label", b"other\0");
        other.set("vcpus", &second.to_be_bytes());
        tree.root.children.push(other);
        read(&tree.bundle()).map(|vms| vms.len())
    };
    assert_eq!(two_vms(8), Ok(2));
    let too_many = Why::TooManyVcpus { cpus: 20 };
    assert_eq!(
        two_vms(9),
        Err(ConfigError::at(
            Some("other"),
            "/vm@1",
            Some("vcpus"),
            too_many
        ))
    );
}

#[test]
fn the_number_of_nodes_is_bounded() {
    let names = [
        "device-memory@0",
        "device-memory@1",
        "device-memory@2",
        "device-memory@3",
        "device-memory@4",
        "device-memory@5",
        "device-memory@6",
        "device-memory@7",
        "device-memory@8",
        "device-memory@9",
        "device-memory@a",
        "device-memory@b",
        "device-memory@c",
        "device-memory@d",
        "device-memory@e",
        "device-memory@f",
        "device-memory@10",
    ];
    let error =
        refused(|tree| tree.vm().children = names.map(|name| Node::new(name, &[])).to_vec());
    assert_eq!(error.node, "/vm@0/device-memory@10");
    assert_eq!(error.why, Why::TooMany { max: 16 });
}

#[test]
fn memory_is_aligned_and_not_empty() {
    let number = |value: u64| value.to_be_bytes();
    for name in ["ram-base", "ram-size"] {
        let value = 0x4010_0000;
        let error = refused(|tree| tree.set(name, &number(value)));
        assert_eq!(error, vm_error(name, Why::Misaligned { value }));
    }
    let error = refused(|tree| tree.set("ram-size", &number(0)));
    assert_eq!(error, vm_error("ram-size", Why::OutOfRange { value: 0 }));
    for name in ["offset", "size", "ipa"] {
        let value = 0x8000_0800;
        let error = refused(|tree| tree.device_memory().set(name, &number(value)));
        assert_eq!(error, device_error(name, Why::Misaligned { value }));
    }
    let error = refused(|tree| tree.device_memory().set("size", &number(0)));
    assert_eq!(error, device_error("size", Why::OutOfRange { value: 0 }));
}

#[test]
fn memory_ends_below_the_ipa_size() {
    let beyond = || Why::BeyondIpa { bits: 40 };
    for size in [(1_u64 << 40) - 0x4000_0000 + (2 << 20), !0x1f_ffff] {
        let error = refused(|tree| tree.set("ram-size", &size.to_be_bytes()));
        assert_eq!(error, vm_error("ram-size", beyond()));
    }
    let error = refused(|tree| {
        tree.device_memory()
            .set("ipa", &(1_u64 << 40).to_be_bytes())
    });
    assert_eq!(error, device_error("size", beyond()));
    let mut tree = Tree::full();
    tree.device_memory()
        .set("ipa", &((1_u64 << 40) - 0x8000_0000).to_be_bytes());
    assert!(read(&tree.bundle()).is_ok());
}

#[test]
fn nothing_of_a_vm_overlaps_anything_else_of_it() {
    let overlap = |with: &str| Why::Overlap {
        with: with.to_string(),
    };
    let error = refused(|tree| {
        tree.set("ram-base", &0x0800_0000_u64.to_be_bytes());
    });
    assert_eq!(error, vm_error("ram-base", overlap("gicd")));
    let error = refused(|tree| {
        tree.device_memory()
            .set("ipa", &0x0880_0000_u64.to_be_bytes())
    });
    assert_eq!(error, device_error("ipa", overlap("gicr")));
    let error = refused(|tree| {
        tree.device_memory()
            .set("ipa", &0x0900_0000_u64.to_be_bytes())
    });
    assert_eq!(error, device_error("ipa", overlap("pl011")));
    let error = refused(|tree| {
        tree.device_memory()
            .set("ipa", &0x43ff_f000_u64.to_be_bytes())
    });
    assert_eq!(error, device_error("ipa", overlap("ram")));
    let error = refused(|tree| {
        let mut second = Node {
            name: "device-memory@1",
            ..tree.device_memory().clone()
        };
        second.set("ipa", &(0x10_8000_0000_u64 - 0x1000).to_be_bytes());
        tree.vm().children.push(second);
    });
    assert_eq!(
        (error.node.as_str(), error.why),
        ("/vm@0/device-memory@1", overlap("/vm@0/device-memory@0"))
    );
    let mut tree = Tree::full();
    tree.device_memory()
        .set("ipa", &0x4400_0000_u64.to_be_bytes());
    assert!(read(&tree.bundle()).is_ok(), "neighbours do not overlap");
}

#[test]
fn files_are_there_and_a_kernel_is_a_kernel() {
    let missing = |name: &str| Why::NoSuchFile {
        name: name.to_string(),
    };
    let error = refused(|tree| tree.set("kernel", b"no such\0"));
    assert_eq!(error, vm_error("kernel", missing("no?such")));
    let error = refused(|tree| tree.files[1].1.clear());
    assert_eq!(error, vm_error("initrd", missing("initrd")));
    let error = refused(|tree| tree.files[0].1[56] = 0);
    assert_eq!(
        error,
        vm_error("kernel", Why::BadImage(ImageError::BadMagic))
    );
}

#[test]
fn everything_fits_into_ram_or_is_named() {
    let no_room = |ram: u64| Why::NoRoom { ram };
    let ram = 2 << 20;
    let error = refused(|tree| tree.set("ram-size", &u64::to_be_bytes(ram)));
    assert_eq!(error, vm_error("kernel", no_room(ram)));
    let error = refused(|tree| tree.files[0].1 = image(0, (64 << 20) - DTB_SIZE + 1, 0, 64));
    assert_eq!(error, vm_error("kernel", no_room(64 << 20)));
    let error = refused(|tree| tree.files[0].1 = image(u64::MAX - 64, 64, 0, 64));
    assert_eq!(error, vm_error("kernel", no_room(64 << 20)));
    let error = refused(|tree| tree.files[0].1 = image(0, (64 << 20) - DTB_SIZE - 4096, 0, 64));
    assert_eq!(error, vm_error("initrd", no_room(64 << 20)));
}

#[test]
fn a_granule_is_what_the_cpus_have_and_device_memory_is_aligned_to_it() {
    for granule in Granule::ALL {
        let mut tree = Tree::full();
        tree.set(
            "granule",
            [granule.name().as_bytes(), b"\0"].concat().as_slice(),
        );
        let bundle = tree.bundle();
        assert_eq!(read(&bundle).unwrap()[0].granule, granule);
        // One page of the next smaller granule, or less than a page.
        let value = granule.page_size() / 4;
        for name in ["offset", "size", "ipa"] {
            let mut tree = tree.clone();
            tree.device_memory().set(name, &value.to_be_bytes());
            let error = read(&tree.bundle()).map(|_| ()).unwrap_err();
            assert_eq!(error, device_error(name, Why::Misaligned { value }));
        }
        // A CPU that has neither this granule nor any other.
        let granules = Granules::from_id_register(1 << 40 | 1 << 36 | 1 << 32);
        let limits = Limits { granules, ..LIMITS };
        let bundle = Bundle::parse(&bundle).unwrap();
        let granule = granule.name();
        let why = Why::NoGranule { granule };
        let error = super::read(&bundle, limits).map(|_| ()).unwrap_err();
        assert_eq!(error, vm_error("granule", why));
    }
    let bundle = Tree::full().bundle();
    assert_eq!(read(&bundle).unwrap()[0].granule, Granule::K4);
    let error = refused(|tree| tree.set("granule", b"8K\0"));
    assert_eq!(error, vm_error("granule", Why::BadValue));
}

/// As QEMU loads such code: nothing is asked of its bytes.
#[test]
fn code_without_a_header_goes_where_the_description_says() {
    let mut tree = Tree::full();
    tree.files[0].1 = [0; 5000].to_vec();
    tree.set("kernel-offset", &0x8_0000_u64.to_be_bytes());
    let bundle = tree.bundle();
    let layout = read(&bundle).unwrap()[0].layout;
    assert_eq!(layout.kernel, ipa(0x4008_0000, 5000));
    assert_eq!(layout.dtb, ipa(0x43e0_0000, DTB_SIZE));

    tree.set("dtb-offset", &0_u64.to_be_bytes());
    let error = read(&tree.bundle()).map(|_| ()).unwrap_err();
    let no_room = Why::NoRoom { ram: 64 << 20 };
    assert_eq!(error, vm_error("kernel", no_room.clone()));
    tree.set("kernel-offset", &DTB_SIZE.to_be_bytes());
    let bundle = tree.bundle();
    let layout = read(&bundle).unwrap()[0].layout;
    assert_eq!(layout.kernel, ipa(0x4020_0000, 5000));
    assert_eq!(layout.dtb, ipa(0x4000_0000, DTB_SIZE));
    assert_eq!(layout.initrd, Some(ipa(0x43ff_e000, 5000)));

    for (name, value, why) in [
        ("kernel-offset", 0x800, Why::Misaligned { value: 0x800 }),
        ("dtb-offset", 0x1800, Why::Misaligned { value: 0x1800 }),
        ("dtb-offset", (62 << 20) + 4096, no_room.clone()),
        ("dtb-offset", !0xfff, no_room.clone()),
    ] {
        let error = refused(|tree| tree.set(name, &u64::to_be_bytes(value)));
        assert_eq!(error, vm_error(name, why));
    }
    for value in [64 << 20, !0xfff] {
        let error = refused(|tree| tree.set("kernel-offset", &u64::to_be_bytes(value)));
        assert_eq!(error, vm_error("kernel", no_room.clone()));
    }
}

/// `booting.rst`: an initrd lies within 32 GiB of its kernel.
#[test]
fn an_initrd_stays_near_its_kernel() {
    let mut tree = Tree::full();
    tree.set("ram-size", &(48 * GIB).to_be_bytes());
    tree.vm().children.clear();
    let bundle = tree.bundle();
    let layout = read(&bundle).unwrap()[0].layout;
    assert_eq!(
        layout.initrd.unwrap().last().get() >> 12,
        ((33 * GIB) >> 12) - 1
    );
    assert_eq!(layout.dtb.last().get(), 49 * GIB - 1);
}

#[test]
fn a_bundle_without_a_description_is_refused() {
    let whole = |why| ConfigError::at(None, "/", None, why);
    let error = read(&archive(&[("a", b"")])).map(|_| ());
    assert_eq!(
        error,
        Err(whole(Why::NoSuchFile {
            name: FILE.to_string()
        }))
    );
    let error = read(&archive(&[(FILE, b"?")])).map(|_| ());
    assert_eq!(error, Err(whole(Why::BadTree(FdtError::Truncated))));
    assert_eq!(
        refused(|tree| tree.root.children.clear()),
        whole(Why::NoVms)
    );
    let error = refused(|tree| tree.root.set("compatible", b"cordon,bundle-v2\0"));
    assert_eq!(
        error,
        ConfigError::at(None, "/", Some("compatible"), Why::BadValue)
    );
}

#[test]
fn device_memory_is_a_congruent_piece_of_its_source() {
    let mut tree = Tree::full();
    tree.device_memory().set("offset", &GIB.to_be_bytes());
    let bundle = tree.bundle();
    let memory = &read(&bundle).unwrap()[0].device_memory[0];
    let source = |start, size| PaRange::new(Pa::new(start), size);
    let placed = memory.place(source(0x80_0000_0000, 4 * GIB)).unwrap();
    assert_eq!(Some(placed), source(0x80_4000_0000, 2 * GIB));

    assert_eq!(
        memory.place(None),
        Err(device_error("index", Why::NoSuchSource))
    );
    let beyond = |size| Err(device_error("size", Why::BeyondSource { size }));
    assert_eq!(
        memory.place(source(0x80_0000_0000, 3 * GIB - 1)),
        beyond(3 * GIB - 1)
    );
    assert_eq!(memory.place(source(u64::MAX - 4095, 4096)), beyond(4096));
    let pa = Pa::new(0x80_4020_0000);
    let refused = memory.place(source(0x80_0020_0000, 4 * GIB));
    assert_eq!(refused, Err(device_error("ipa", Why::NotCongruent { pa })));
}

#[test]
fn an_error_names_vm_node_and_property() {
    let error = refused(|tree| {
        tree.device_memory()
            .set("ipa", &0x0900_0000_u64.to_be_bytes())
    });
    let line = "why=overlap with=pl011 vm=probe node=/vm@0/device-memory@0 property=ipa";
    assert_eq!(error.to_string(), line);
    let error = ConfigError::at(None, "/", None, Why::BadTree(FdtError::TooDeep { at: 8 }));
    assert_eq!(error.to_string(), "why=too-deep at=0x8 node=/");
}

proptest! {
    #![proptest_config(fuzz_config())]

    #[test]
    fn a_damaged_description_never_panics_and_what_is_read_holds(damage in damage(700)) {
        let tree = Tree::full();
        let mut blob = tree.blob();
        damage.apply(&mut blob);
        let bundle = tree.bundle_of(&blob);
        match read(&bundle) {
            Ok(vms) => for vm in vms {
                prop_assert!(vm.ram.contains_range(vm.layout.kernel));
                prop_assert!(vm.ram.contains_range(vm.layout.dtb));
                prop_assert!(!vm.layout.kernel.overlaps(vm.layout.dtb));
                prop_assert!(vm.ram.last().get() < 1 << LIMITS.ipa_bits);
                prop_assert!(crate::vm::guest_dt::build(&vm, Default::default()).is_ok());
            },
            Err(error) => {
                let line = error.to_string();
                prop_assert!(line.starts_with("why="));
                prop_assert!(line.split(' ').all(|word| word.contains('=')), "{}", line);
            }
        }
    }
}

/// Two VMs, each with a piece of 1 GiB of the same BAR, at these offsets in GiB.
fn two_pieces(offsets: [u64; 2], shared: [bool; 2]) -> Tree {
    let mut tree = Tree::full();
    tree.device_memory()
        .set("size", &(1_u64 << 30).to_be_bytes());
    let mut other = tree.vm().clone();
    (other.name, other.children[0].name) = ("vm@1", "device-memory@0");
    other.set("label", b"other\0");
    tree.root.children.push(other);
    for at in [0, 1] {
        let memory = &mut tree.root.children[at].children[0];
        memory.set("offset", &(offsets[at] << 30).to_be_bytes());
        if shared[at] {
            memory.set("shared", b"");
        }
    }
    tree
}

#[test]
fn memory_is_shared_where_both_say_so_and_not_by_mistake() {
    let why = |offsets, shared| {
        let bundle = two_pieces(offsets, shared).bundle();
        read_all(&bundle).map_err(|error| (error.vm.unwrap_or_default(), error.why))
    };
    let not_shared = |vm: &str, with: &str| {
        let with = with.to_owned();
        Err((vm.to_owned(), Why::NotShared { with }))
    };
    assert_eq!(why([1, 1], [true, true]), Ok(vec_of([true, true])));
    assert_eq!(why([0, 1], [false, true]), Ok(vec_of([false, true])));
    assert_eq!(
        why([1, 1], [true, false]),
        not_shared("other", "probe:/vm@0/device-memory@0")
    );
    assert_eq!(
        why([1, 1], [false, true]),
        not_shared("probe", "other:/vm@1/device-memory@0")
    );
    assert_eq!(
        why([1, 1], [false, false]),
        not_shared("probe", "other:/vm@1/device-memory@0")
    );
}

fn vec_of(shared: [bool; 2]) -> Vec<bool> {
    shared.to_vec()
}

/// Which pieces of device memory are shared.
fn read_all(archive: &[u8]) -> Result<Vec<bool>, ConfigError> {
    let bundle = Bundle::parse(archive).unwrap();
    let vms = super::read(&bundle, LIMITS)?;
    let memory = vms.iter().flat_map(|vm| &vm.device_memory);
    Ok(memory.map(|piece| piece.shared).collect())
}

#[test]
fn device_memory_has_a_type_and_what_is_used_as_memory_the_usual_one() {
    let memory_type = |properties: &[(&'static str, &[u8])]| {
        let mut tree = Tree::full();
        for (name, value) in properties {
            tree.device_memory().set(name, value);
        }
        let bundle = tree.bundle();
        let vms = read(&bundle).map_err(|error| error.why)?;
        let types = vms.iter().flat_map(|vm| &vm.device_memory);
        Ok(types.map(|piece| piece.memory).collect::<Vec<_>>())
    };
    let types: [(&[u8], MemoryType); 3] = [
        (b"write-back\0", MemoryType::NormalWb),
        (b"non-cacheable\0", MemoryType::NormalNc),
        (b"device\0", MemoryType::DeviceNGnRE),
    ];
    for (name, memory) in types {
        assert_eq!(memory_type(&[("memory-type", name)]), Ok([memory].into()));
        let as_memory = memory_type(&[("as", b"pmem\0"), ("memory-type", name)]);
        match memory {
            MemoryType::NormalWb => assert_eq!(as_memory, Ok([memory].into())),
            _ => assert_eq!(as_memory, Err(Why::BadValue)),
        }
    }
    assert_eq!(memory_type(&[]), Ok([MemoryType::NormalWb].into()));
    let unknown = refused(|tree| tree.device_memory().set("memory-type", b"normal\0"));
    assert_eq!(unknown, device_error("memory-type", Why::BadValue));
}
