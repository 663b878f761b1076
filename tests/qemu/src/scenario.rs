//! Scenarios: TOML files that describe a machine, its VMs, and what is to happen.
//!
//! The language is written down in tests/qemu/README.md. This module turns a file into a
//! [`Scenario`] and nothing else; [`crate::check`] then looks for what parses but cannot be meant.
//! Unknown keys are errors everywhere: a typing mistake must not silently become a default.
//! Values that a later check may refuse are [`Spanned`], so that every message names its line.

use crate::expr;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// What is wrong with a scenario, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    /// The file that is at fault.
    pub file: PathBuf,
    /// Line and column of the fault, from 1; 0 where there is none.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// What is wrong and how to mend it. Begins with the key.
    pub message: String,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ScenarioError {}

/// A size or an address, written as a number of bytes or as text such as `"2G"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(value: SizeText) -> Result<Self, String> {
        match value {
            SizeText::Number(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => expr::size(&text).map(Self),
        }
    }
}

/// How the machine comes up. Each is one way that docs/protocols.md knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// Cordon's firmware at EL3, which can poison memory.
    El3,
    /// QEMU's own loader, by the Image header.
    Kernel,
    /// Cordon itself at the reset vector.
    Bios,
    /// Debian's U-Boot at EL2, which takes the image and the bundle from QEMU and does `booti`.
    Uboot,
    /// Debian's UEFI at EL2, which starts the image as an application from a volume that also has the bundle.
    Uefi,
    /// The same, which QEMU hands image, command line and bundle, as it would hand it a kernel.
    UefiKernel,
    /// The same, with the image under another name: somebody has to type it into UEFI's shell.
    UefiShell,
    /// Debian's GRUB under UEFI, which starts the image as a Linux, with the bundle as its initrd.
    Grub,
    /// UEFI on a machine whose CPUs have no EL2.
    UefiEl1,
    /// Nobody but a debugger: the image at an address, the CPU at its first byte, nothing in x0.
    Raw,
    /// QEMU's own loader, on a machine whose CPUs have no EL2.
    El1,
    /// No Cordon: the one VM's kernel at EL1 of a machine of its own, to compare with.
    Direct,
}

impl Boot {
    /// Whether UEFI loads Cordon.
    pub fn is_uefi(self) -> bool {
        self.has_volume() || self == Self::UefiKernel
    }

    /// Whether UEFI finds Cordon, or what loads it, on a volume.
    pub fn has_volume(self) -> bool {
        matches!(
            self,
            Self::Uefi | Self::UefiShell | Self::Grub | Self::UefiEl1
        )
    }
}

/// Which machine it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Board {
    /// QEMU's own.
    #[default]
    Virt,
    /// The same with the interrupt controller that Cordon has no use for.
    VirtGicv2,
    /// AMD's Versal.
    XlnxVersalVirt,
    /// NXP's evaluation kit of the i.MX 8M Mini.
    Imx8mmEvk,
    /// Aspeed's evaluation board of the AST2700.
    Ast2700,
    /// The Raspberry Pi 4.
    Raspi4b,
    /// AMD's ZCU102, with a Zynq UltraScale+.
    Zcu102,
}

/// The `[machine]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Machine {
    /// How it comes up.
    pub boot: Boot,
    /// Which it is.
    #[serde(default)]
    pub board: Board,
    /// Physical CPUs.
    pub cpus: Spanned<u32>,
    /// Ordinary RAM.
    pub memory: Spanned<Size>,
    /// QEMU's CPU model with its properties, where the default for `boot` will not do.
    pub cpu: Option<String>,
    /// One PCIe device with a BAR of each of these sizes.
    #[serde(default)]
    pub device_memory: Vec<Spanned<Size>>,
    /// Disks behind virtio transports.
    #[serde(default)]
    pub disk: Vec<DiskSpec>,
    /// Cordon's command line.
    pub cmdline: Option<Spanned<String>>,
    /// What is started in Cordon's place, a file among the images.
    pub image: Option<String>,
    /// Where the EVK's device tree says that the bundle is, without one being there.
    pub said_bundle: Option<SaidBundle>,
    /// Bytes of the PCIe window for large BARs, where QEMU's 512 GiB will not do.
    pub pcie_window: Option<Size>,
    /// Time is counted in instructions: one a nanosecond, of all CPUs together, and none while they
    /// all sleep. The CPUs take turns.
    #[serde(default)]
    pub icount: bool,
    /// What QEMU's random numbers start from: the same, the same run. 1 where time is counted in
    /// instructions; left to chance elsewhere.
    pub entropy: Option<u64>,
}

/// What a device tree says of a bundle.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SaidBundle {
    /// PA.
    pub at: Spanned<Size>,
    /// Its bytes.
    pub size: Spanned<Size>,
}

/// One `[[machine.disk]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskSpec {
    /// The number of its transport.
    pub slot: Spanned<u32>,
    /// Its size. It holds zeros at first.
    pub size: Spanned<Size>,
}

/// One `[[vm]]` table, the source of a node of `vms.dtb`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vm {
    /// Its label.
    pub name: Spanned<String>,
    /// How many vCPUs, each on a CPU of its own.
    pub vcpus: Spanned<u32>,
    /// IPA of its RAM.
    #[serde(default = "default_ram_base")]
    pub ram_base: Spanned<Size>,
    /// Its RAM has the IPAs that are its PAs, wherever Cordon finds room.
    #[serde(default)]
    pub identity: bool,
    /// Size of its RAM.
    pub ram: Spanned<Size>,
    /// Its kernel: a file among the images, or beside the scenario.
    pub kernel: Spanned<String>,
    /// Where in its RAM a kernel without a header goes.
    pub kernel_offset: Option<Spanned<Size>>,
    /// Where in its RAM the device tree goes, if not to its end.
    pub dtb_offset: Option<Spanned<Size>>,
    /// Its initrd.
    pub initrd: Option<Spanned<String>>,
    /// Its command line.
    pub bootargs: Option<String>,
    /// What is added to that where the console is left to a person.
    pub interactive_bootargs: Option<String>,
    /// What describes its machine to it; a device tree, if nothing is said.
    pub firmware: Option<Firmware>,
    /// The granule of its stage-2 tables: 4K, if nothing is said.
    pub granule: Option<Granule>,
    /// The device memory it owns.
    #[serde(default)]
    pub device_memory: Vec<DeviceMemory>,
    /// The machine's devices that it owns.
    #[serde(default)]
    pub device: Vec<DeviceSpec>,
}

/// One `[[vm.device]]` table: a device of the machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceSpec {
    /// What it is, in the words of the machine's device tree.
    pub compatible: Spanned<String>,
    /// PA of its registers.
    pub address: Spanned<Size>,
    /// `"unconfined"`: the author knows that nothing keeps it from any memory.
    pub dma: Option<Spanned<String>>,
}

/// What a guest is told that device memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Appearance {
    /// A `pmem-region`, or an NVDIMM for a guest with ACPI.
    Pmem,
    /// Special-purpose memory, for a guest with ACPI.
    Dax,
}

fn default_ram_base() -> Spanned<Size> {
    Spanned::new(0..0, Size(0x4000_0000))
}

/// What describes a VM's machine to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// A device tree.
    DeviceTree,
    /// ACPI tables.
    Acpi,
}

impl Firmware {
    /// As the bundle has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceTree => "device-tree",
            Self::Acpi => "acpi",
        }
    }
}

/// The granule of a VM's stage-2 tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Granule {
    /// Pages of 4 KiB.
    #[serde(rename = "4K")]
    K4,
    /// Pages of 16 KiB.
    #[serde(rename = "16K")]
    K16,
    /// Pages of 64 KiB.
    #[serde(rename = "64K")]
    K64,
}

impl Granule {
    /// As the bundle has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::K4 => "4K",
            Self::K16 => "16K",
            Self::K64 => "64K",
        }
    }

    /// Size in bytes of a page.
    pub const fn page(self) -> u64 {
        match self {
            Self::K4 => 4 << 10,
            Self::K16 => 16 << 10,
            Self::K64 => 64 << 10,
        }
    }
}

/// Where a piece of device memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A PCIe BAR.
    Bar,
    /// A range of RAM that is kept out of the memory map.
    Reserved,
}

/// One `[[vm.device-memory]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceMemory {
    /// Where it comes from.
    pub source: Origin,
    /// Which one of those.
    #[serde(default = "zero")]
    pub index: Spanned<u32>,
    /// Offset into it.
    #[serde(default = "no_offset")]
    pub offset: Spanned<Size>,
    /// How much of it.
    pub size: Spanned<Size>,
    /// Where the guest sees it.
    pub ipa: Spanned<Size>,
    /// What it is told that this is, where it is not Cordon's own kind.
    #[serde(rename = "as")]
    pub appearance: Option<Appearance>,
    /// What is done when a page of it goes bad, where that is not the default.
    pub policy: Option<String>,
    /// How the VM sees it: `write-back`, which is the default, `non-cacheable` or `device`.
    pub memory_type: Option<Spanned<String>>,
    /// Other device memory may have memory in common with it.
    #[serde(default)]
    pub shared: bool,
}

fn zero() -> Spanned<u32> {
    Spanned::new(0..0, 0)
}

fn no_offset() -> Spanned<Size> {
    Spanned::new(0..0, Size(0))
}

/// One `[[bundle.mutate]]` table: damage done to a good bundle. Exactly one key is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mutation {
    /// Keep only so many bytes of the archive.
    pub truncate: Option<usize>,
    /// Leave this file out.
    pub remove: Option<String>,
    /// Overwrite bytes.
    pub patch: Option<Patch>,
    /// Replace or add a property of `vms.dtb`.
    pub property: Option<Property>,
}

/// Bytes to overwrite in a file of the bundle, or in the archive where `file` is absent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Patch {
    /// The file, or none for the archive.
    pub file: Option<String>,
    /// Offset in bytes.
    pub at: usize,
    /// New bytes: pairs of hexadecimal digits.
    pub bytes: Spanned<String>,
}

/// A property of `vms.dtb` that takes the place of a good one, or joins them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Property {
    /// `/`, `vm@0`, or `vm@0/device-memory@0`.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Its value as cells,
    pub cells: Option<Vec<u32>>,
    /// or as a string. With neither, the property is left out.
    pub text: Option<String>,
}

/// Bytes to overwrite in something.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BytePatch {
    /// Offset in bytes.
    pub at: usize,
    /// New bytes: pairs of hexadecimal digits.
    pub bytes: Spanned<String>,
}

/// Bytes to overwrite in a table of ACPI's that firmware has put into memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TablePatch {
    /// Its signature, such as `APIC`; or `RSDP`, `XSDT`.
    pub table: Spanned<String>,
    /// Offset in bytes.
    pub at: u64,
    /// New bytes: pairs of hexadecimal digits.
    pub bytes: Spanned<String>,
}

/// A part of a device tree blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtbBlock {
    /// From its first byte.
    #[default]
    Head,
    /// From the first token.
    Structure,
    /// From the first property's name.
    Strings,
}

/// One `[[dtb]]` table: damage done to the machine's device tree. Exactly one key is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DtbMutation {
    /// Overwrite bytes.
    pub patch: Option<DtbPatch>,
    /// Put other text of the same length in the place of every occurrence.
    pub replace: Option<Replace>,
}

/// Bytes to overwrite in a device tree.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DtbPatch {
    /// What `at` counts from.
    #[serde(default)]
    pub block: DtbBlock,
    /// Offset in bytes.
    pub at: usize,
    /// New bytes: pairs of hexadecimal digits.
    pub bytes: Spanned<String>,
}

/// Text to exchange.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Replace {
    /// What is there.
    pub old: String,
    /// What takes its place.
    pub new: String,
}

/// The `[acpi]` table: tables of the scenario's own (see [`crate::acpi`]).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AcpiSpec {
    /// How a second source notifies, for errors that nobody has consumed; without it there is none.
    pub unconsumed: Option<Notify>,
    /// Damage, done in this order.
    #[serde(default)]
    pub mutate: Vec<AcpiMutation>,
}

/// A notification of HEST's (ACPI 6.5 section 18.3.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Notify {
    /// The interrupt with this number.
    Gsiv(u32),
    /// None: it is to be looked at so often, in milliseconds.
    Polled(u32),
}

/// One `[[acpi.mutate]]` table: damage done to good tables. Exactly one key is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AcpiMutation {
    /// Overwrite bytes.
    pub patch: Option<AcpiPatch>,
    /// Do not put an address here: what the file has is what is read.
    pub unlink: Option<Link>,
}

/// Bytes to overwrite in one of the files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct AcpiPatch {
    /// Which.
    pub file: AcpiFile,
    /// Offset in bytes.
    pub at: usize,
    /// New bytes: pairs of hexadecimal digits.
    pub bytes: Spanned<String>,
}

/// What can be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcpiFile {
    /// The RSDP.
    Rsdp,
    /// The HEST, from its signature on. Checksums are made later.
    Hest,
    /// The block pointer at 0, the read-ack register at 8, the block at 16.
    Errors,
    /// The table-loader script.
    Loader,
}

/// A place where the script puts an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// The pointer to the error status block.
    Block,
    /// The source's Error Status Address.
    Status,
    /// The source's Read Ack Register.
    Ack,
}

/// A constant of `[set]`: a number, or a text that a pattern or a figure may want.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Constant {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// An error record that the scenario makes (see [`crate::record`]).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RecordSpec {
    /// Where it is written, into memory: the PA of an error status block. Without it, QEMU is handed the
    /// record and signals it as its own.
    pub at: Option<Spanned<String>>,
    /// The address that it reports.
    pub pa: Spanned<String>,
    /// What is wrong with it.
    #[serde(default)]
    pub patch: Vec<BytePatch>,
}

/// The `[bundle]` table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BundleSpec {
    /// Damage, done in this order.
    #[serde(default)]
    pub mutate: Vec<Mutation>,
    /// Further files.
    #[serde(default)]
    pub file: Vec<BundleFile>,
    /// Boot without any bundle.
    #[serde(default)]
    pub absent: bool,
    /// Boot with this text in its place.
    pub raw: Option<String>,
}

/// One `[[bundle.file]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct BundleFile {
    /// Its name.
    pub name: String,
    /// What it holds: text,
    #[serde(default)]
    pub text: String,
    /// and behind it these numbers, eight bytes each, little-endian.
    #[serde(default)]
    pub words: Vec<u64>,
}

/// One `[[pick]]` table: a choice of pages, made from the seed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pick {
    /// The variable that holds the byte offset of the page.
    pub name: Spanned<String>,
    /// Offsets are below this.
    pub span: Spanned<Size>,
    /// How many different pages. With it, `name` is a list for `each`.
    pub count: Option<Spanned<u64>>,
}

/// What a disk is looked at for: the pattern that a seed stands for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskLook {
    /// Which of `[[machine.disk]]`, from 0.
    pub index: Spanned<usize>,
    /// The pattern's seed.
    pub seed: u64,
}

/// One `[[step]]` table. Exactly one of `wait`, `guest`, `monitor`, `keys`, `firmware`, `qmp`, `record`,
/// `count`, `disk`, `pause` and `exit` is given, or `expect` alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Step {
    /// What the step is for, for the reader of a log.
    pub note: Option<String>,
    /// Wait for a line that this pattern matches.
    pub wait: Option<Spanned<String>>,
    /// Type this on UART 0 and wait for the guest's answer.
    pub guest: Option<Spanned<String>>,
    /// Type this at Cordon's monitor and wait for its result; then the console is the VM's again.
    pub monitor: Option<Spanned<String>>,
    /// Type just these bytes on UART 0.
    pub keys: Option<Spanned<String>>,
    /// Type this on the secure UART and wait for the firmware's answer.
    pub firmware: Option<Spanned<String>>,
    /// The pattern of the answer, where the usual one will not do; `"none"` waits for nothing.
    pub answer: Option<Spanned<String>>,
    /// Send this JSON to QMP and wait for its return.
    pub qmp: Option<Spanned<String>>,
    /// Report this record, from outside of the machine.
    pub record: Option<RecordSpec>,
    /// Damage a table of ACPI's, in memory, while the machine runs.
    pub acpi: Option<TablePatch>,
    /// Count the lines of the whole run that this pattern matches,
    pub count: Option<Spanned<String>>,
    /// or the bytes at the beginning of a disk that hold a pattern,
    pub disk: Option<DiskLook>,
    /// and put the number here.
    pub into: Option<Spanned<String>>,
    /// Let so many milliseconds pass.
    pub pause: Option<u64>,
    /// Wait until QEMU has ended by itself with status 0.
    pub exit: Option<Spanned<bool>>,
    /// The variable that holds when the line came, in milliseconds since QEMU's start.
    pub clock: Option<String>,
    /// Variables to take from keys of the line that was waited for.
    #[serde(default)]
    pub capture: BTreeMap<String, String>,
    /// Comparisons that must hold now.
    #[serde(default)]
    pub expect: Vec<Spanned<String>>,
    /// Do the step once for each page of this list.
    pub each: Option<Spanned<String>>,
    /// Seconds this step may take.
    pub timeout: Option<u64>,
}

/// The `[compare]` table: a figure that is also measured elsewhere.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Comparison {
    /// The scenario that measures it too.
    pub with: String,
    /// The key of the figure, the same in both.
    pub figure: String,
    /// The benchmark's figure that says the same in instructions, and decides.
    pub counted: String,
}

/// One `[[variant]]` table: the same scenario again on a somewhat different machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Variant {
    /// Its own name.
    pub name: String,
    /// Its own summary.
    pub summary: String,
    /// Its command line.
    pub cmdline: Option<String>,
    /// Its damage to the device tree.
    pub dtb: Option<Vec<DtbMutation>>,
    /// Its ACPI tables.
    pub acpi: Option<AcpiSpec>,
    /// Its way to come up.
    pub boot: Option<Boot>,
    /// Its CPU model.
    pub cpu: Option<String>,
    /// The granule of all of its VMs.
    pub granule: Option<Granule>,
    /// Constants that take the place of the scenario's.
    #[serde(default)]
    pub set: BTreeMap<String, Constant>,
}

/// A scenario as its file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// The file's name without `.toml`.
    pub name: Spanned<String>,
    /// One line for `--list`.
    pub summary: String,
    /// Seconds the whole run may take.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
    /// Seconds a step may take that does not say.
    #[serde(default = "default_step_timeout")]
    pub step_timeout: u64,
    /// What page picks are made from.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// How often a benchmark plays it, each time with other random numbers in the machine. The median counts.
    #[serde(default = "default_rounds")]
    pub rounds: u64,
    /// Whether a run prints the report of its first containment.
    #[serde(default)]
    pub report: bool,
    /// The machine.
    pub machine: Machine,
    /// Its VMs.
    #[serde(default)]
    pub vm: Vec<Vm>,
    /// What is wrong with the bundle, where that is the point.
    #[serde(default)]
    pub bundle: BundleSpec,
    /// What is wrong with the machine's device tree, where that is the point.
    #[serde(default)]
    pub dtb: Vec<DtbMutation>,
    /// ACPI tables in place of QEMU's.
    pub acpi: Option<AcpiSpec>,
    /// Constants by name.
    #[serde(default)]
    pub set: BTreeMap<String, Constant>,
    /// Choices of pages.
    #[serde(default)]
    pub pick: Vec<Pick>,
    /// What happens.
    pub step: Vec<Step>,
    /// Further patterns that no line of the run may match.
    #[serde(default)]
    pub never: Vec<Spanned<String>>,
    /// Which of [`DEFAULT_NEVER`] this scenario is about.
    #[serde(default)]
    pub allow: Vec<Spanned<String>>,
    /// `key=${value}`, what the PASS line says.
    pub figures: Vec<Spanned<String>>,
    /// What it is compared with.
    pub compare: Option<Comparison>,
    /// The same on somewhat different machines, or with other damage.
    #[serde(default)]
    pub variant: Vec<Variant>,

    /// Where it came from.
    #[serde(skip)]
    pub file: PathBuf,
    /// Byte offset of each line of the file, for messages.
    #[serde(skip)]
    line_starts: Vec<usize>,
}

fn default_timeout() -> u64 {
    240
}

fn default_step_timeout() -> u64 {
    30
}

fn default_seed() -> u64 {
    1
}

fn default_rounds() -> u64 {
    1
}

/// What no run may show unless its scenario says that it is about just that.
pub const DEFAULT_NEVER: [&str; 13] = [
    "panicked at",
    "ras: event=fatal",
    "cordon: event=halt reason=hypervisor-error",
    "cordon: event=error",
    "ras: event=no-record",
    "ras: event=unclaimed",
    "ras: event=overflow",
    "guest: wrong!=0",
    "guest: event=error",
    "guest: event=wrong",
    "guest: event=panic",
    "! stopped",
    "! undefined",
];

impl Scenario {
    /// Reads and checks a file. Returns the scenario and its variants.
    ///
    /// # Errors
    /// The first fault, with its place.
    pub fn load(file: &Path) -> Result<Vec<Self>, ScenarioError> {
        let text = std::fs::read_to_string(file).map_err(|e| ScenarioError {
            file: file.to_owned(),
            line: 0,
            column: 0,
            message: format!("cannot be read: {e}"),
        })?;
        Self::parse(file, &text)
    }

    /// As [`Scenario::load`], from a text.
    ///
    /// # Errors
    /// The first fault, with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Vec<Self>, ScenarioError> {
        let line_starts: Vec<usize> = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        let mut scenario: Self = toml::from_str(text).map_err(|error| {
            let (line, column) = place(&line_starts, error.span().unwrap_or_default());
            ScenarioError {
                file: file.to_owned(),
                line,
                column,
                message: error.message().into(),
            }
        })?;
        scenario.file = file.to_owned();
        scenario.line_starts = line_starts;
        crate::check::check(&scenario)?;
        let variants: Vec<_> = scenario
            .variant
            .iter()
            .map(|v| scenario.variant(v))
            .collect();
        Ok(std::iter::once(scenario).chain(variants).collect())
    }

    fn variant(&self, variant: &Variant) -> Self {
        let mut scenario = self.clone();
        scenario.name = Spanned::new(self.name.span(), variant.name.clone());
        scenario.summary.clone_from(&variant.summary);
        if let Some(cmdline) = &variant.cmdline {
            scenario.machine.cmdline = Some(Spanned::new(0..0, cmdline.clone()));
        }
        if let Some(dtb) = &variant.dtb {
            scenario.dtb.clone_from(dtb);
        }
        if let Some(acpi) = &variant.acpi {
            scenario.acpi = Some(acpi.clone());
        }
        if let Some(boot) = variant.boot {
            scenario.machine.boot = boot;
        }
        if variant.cpu.is_some() {
            scenario.machine.cpu.clone_from(&variant.cpu);
        }
        for vm in &mut scenario.vm {
            vm.granule = variant.granule.or(vm.granule);
        }
        scenario.compare = None;
        scenario.set.extend(variant.set.clone());
        scenario
    }

    /// The same with its VMs, and Cordon, told that a person sits at their consoles.
    pub fn interactive(&self) -> Self {
        let mut scenario = self.clone();
        // With the others there is nobody who would hand it over.
        if !matches!(
            self.machine.boot,
            Boot::Bios | Boot::El1 | Boot::UefiEl1 | Boot::Direct
        ) {
            let cmdline = self.machine.cmdline.as_ref();
            let cmdline = cmdline.map_or("", |line| line.as_ref());
            let cmdline = format!("{cmdline} console=raw").trim_start().to_owned();
            scenario.machine.cmdline = Some(Spanned::new(0..0, cmdline));
        }
        for vm in &mut scenario.vm {
            if let Some(more) = &vm.interactive_bootargs {
                let bootargs = vm.bootargs.take().unwrap_or_default();
                vm.bootargs = Some(format!("{bootargs} {more}").trim_start().to_owned());
            }
        }
        scenario
    }

    /// An error at `span` of this file.
    pub(crate) fn error(&self, span: Range<usize>, message: impl Into<String>) -> ScenarioError {
        let (line, column) = place(&self.line_starts, span);
        ScenarioError {
            file: self.file.clone(),
            line,
            column,
            message: message.into(),
        }
    }

    /// Whether memory is accessed from outside of the machine.
    pub(crate) fn needs_memory(&self) -> bool {
        let written = |step: &Step| {
            step.acpi.is_some() || step.record.as_ref().is_some_and(|it| it.at.is_some())
        };
        !self.dtb.is_empty() || self.step.iter().any(written)
    }

    /// Whether the machine is handed a bundle.
    pub fn has_bundle(&self) -> bool {
        !self.bundle.absent && self.machine.boot != Boot::Direct
    }

    /// The name, as in `cargo xtask run NAME`.
    pub fn name(&self) -> &str {
        self.name.as_ref()
    }
}

fn place(line_starts: &[usize], span: Range<usize>) -> (usize, usize) {
    let line = line_starts.partition_point(|start| *start <= span.start);
    let start = line
        .checked_sub(1)
        .and_then(|index| line_starts.get(index))
        .unwrap_or(&0);
    (line, span.start - start + 1)
}

/// Loads every scenario of a directory, sorted by name.
///
/// # Errors
/// The first fault of any file; two scenarios of one name.
pub fn load_all(directory: &Path) -> Result<Vec<Scenario>, ScenarioError> {
    let unreadable = |e: std::io::Error| ScenarioError {
        file: directory.to_owned(),
        line: 0,
        column: 0,
        message: format!("cannot be read: {e}"),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            files.push(path);
        }
    }
    files.sort();
    let mut scenarios: Vec<Scenario> = Vec::new();
    for file in files {
        for scenario in Scenario::load(&file)? {
            if let Some(first) = scenarios.iter().find(|s| s.name() == scenario.name()) {
                let message = format!(
                    "name: `{}` is also in {}",
                    scenario.name(),
                    first.file.display()
                );
                return Err(scenario.error(scenario.name.span(), message));
            }
            scenarios.push(scenario);
        }
    }
    scenarios.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(scenarios)
}
