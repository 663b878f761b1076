//! One QEMU process and its consoles.
//!
//! QEMU connects to sockets that this side listens on before it is started, so that not one byte
//! of the first console output can be lost. A thread a console copies bytes to a log file and
//! hands lines, with the time of their arrival, to one channel. Whoever owns the [`Machine`] owns
//! the process: dropping it kills QEMU by its process id and removes the sockets, on a panic too.

use crate::line::Line;
use crate::qtest::Qtest;
use crate::scenario::{Boot, Scenario, TablePatch};
use crate::{acpi, board, disk, dtb, tables, volume};
use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How QEMU is called, and where the images are.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The program and the arguments that come before any other.
    pub qemu: Vec<OsString>,
    /// Environment for it.
    pub env: Vec<(OsString, OsString)>,
    /// Directory of `cordon.img`, `firmware.bin` and the guests' images.
    pub images: PathBuf,
    /// Directory under which each run keeps its logs.
    pub runs: PathBuf,
}

/// Which of QEMU's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// UART 0, the console of Cordon and of its guests.
    Uart0,
    /// The secure UART, where the firmware takes commands.
    Secure,
    /// The QEMU machine protocol.
    Qmp,
    /// Memory from outside, where a scenario asks for it.
    Qtest,
}

impl Port {
    fn name(self) -> &'static str {
        match self {
            Self::Uart0 => "uart0",
            Self::Secure => "secure",
            Self::Qmp => "qmp",
            Self::Qtest => "qtest",
        }
    }
}

/// What arrives from QEMU.
#[derive(Debug)]
pub enum Arrival {
    /// A line, at a time.
    Line(Port, Instant, Line),
    /// Bytes, where the owner asked for them instead of lines.
    Bytes(Port, Vec<u8>),
    /// The stream ended.
    Closed(Port),
}

/// What the owner of a [`Machine`] wants to be handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Lines.
    Lines,
    /// Bytes as they come, for a person's terminal.
    Bytes,
}

/// A console line that never ends is cut here, so that a mad guest cannot exhaust memory.
const MAX_LINE: usize = 16 * 1024;

/// How long QEMU may take to connect to its sockets.
const CONNECT: Duration = Duration::from_secs(20);

/// Lets a machine go that was started with `-S`.
const RELEASE: &[u8] = b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"cont\"}\n";

/// Asks what the registers of all CPUs hold.
const REGISTERS: &[u8] =
    b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"human-monitor-command\", \
    \"arguments\": {\"command-line\": \"info registers -a\"}}\n";
/// How long it may take until the answer is in the log.
const ANSWER: Duration = Duration::from_millis(150);

/// Where the image is that nobody loads but QEMU's generic loader.
const RAW: u64 = 0x4040_0000;

/// A running QEMU. See the module's text.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    ports: Vec<(Port, UnixStream)>,
    arrivals: Receiver<Arrival>,
    open: usize,
    qtest: Option<Qtest>,
    /// Kept for its `Drop`, after QEMU's.
    _sockets: SocketDirectory,
    /// Where its logs are.
    pub logs: PathBuf,
}

impl Machine {
    /// Starts QEMU for `scenario`, with `bundle` where it has one.
    ///
    /// # Errors
    /// When a directory, a socket or the process cannot be made, or QEMU ends before it has
    /// connected; the message then holds what it said.
    pub fn start(
        tools: &Tools,
        scenario: &Scenario,
        bundle: Option<&[u8]>,
        delivery: Delivery,
    ) -> Result<Self> {
        let logs = fresh_logs(&tools.runs, scenario.name())?;
        let volume = volume::attach(tools, scenario, bundle, &logs)?;
        let bundle = bundle.map(|bytes| store_bundle(&logs, bytes)).transpose()?;
        let sockets = SocketDirectory::new()?;
        let ports = ports(scenario);
        let listeners: Vec<_> = ports
            .iter()
            .map(|port| sockets.listen(*port))
            .collect::<Result<_>>()?;
        let mut arguments = arguments(tools, scenario, bundle.as_deref());
        for file in acpi::store(scenario, &logs)? {
            arguments.extend(["-fw_cfg".into(), file.into()]);
        }
        arguments.extend(volume);
        arguments.extend(disk::attach(scenario, &logs)?);
        arguments.extend(board::attach(scenario, &logs)?);
        write_script(&logs, tools, &arguments, &ports)?;

        let child = spawn(tools, &arguments, &chardevs(&ports, &sockets.path), &logs)?;
        let (sender, arrivals) = channel();
        let open = ports.iter().filter(|port| **port != Port::Qtest).count();
        let mut machine = Self {
            child,
            ports: Vec::new(),
            arrivals,
            open,
            qtest: None,
            _sockets: sockets,
            logs,
        };
        for (port, listener) in ports.into_iter().zip(listeners) {
            let stream = machine.accept(port, &listener)?;
            if port == Port::Qtest {
                machine.qtest = Some(Qtest::new(stream)?);
                continue;
            }
            let pump = machine.pump(port, &stream, sender.clone())?;
            pump.prefixed(scenario).start(delivery)?;
            machine.ports.push((port, stream));
        }
        if let (false, Some(qtest)) = (scenario.dtb.is_empty(), &mut machine.qtest) {
            dtb::mutate(qtest, &scenario.dtb).context("cannot damage the device tree")?;
            machine.send(Port::Qmp, RELEASE)?;
        }
        Ok(machine)
    }

    /// Writes physical memory, from outside, while the machine runs.
    ///
    /// # Errors
    /// When the scenario did not say that it would, or QEMU is gone.
    pub fn write_memory(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let qtest = self.qtest.as_mut();
        qtest.context("this machine has no qtest")?.write(at, bytes)
    }

    /// Damages a table of ACPI's that firmware has put into the `memory` bytes of RAM.
    ///
    /// # Errors
    /// As [`Self::write_memory`], and where there is no such table.
    pub fn damage_table(&mut self, memory: u64, patch: &TablePatch) -> Result<()> {
        let qtest = self.qtest.as_mut();
        tables::damage(qtest.context("this machine has no qtest")?, memory, patch)
    }

    fn accept(&mut self, port: Port, listener: &UnixListener) -> Result<UnixStream> {
        let deadline = Instant::now() + CONNECT;
        listener.set_nonblocking(true)?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("QEMU's socket"),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU did not start ({status}): {}", self.stderr());
            }
            if Instant::now() > deadline {
                bail!(
                    "QEMU did not connect its {} within {CONNECT:?}",
                    port.name()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn pump(&self, port: Port, stream: &UnixStream, sender: Sender<Arrival>) -> Result<Pump> {
        let path = self.logs.join(format!("{}.log", port.name()));
        let log =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let stream = stream.try_clone().context("QEMU's socket")?;
        Ok(Pump {
            port,
            stream,
            log,
            sender,
            prefix: String::new(),
        })
    }

    /// The next thing that arrives before `deadline`; `None` where nothing does.
    pub fn next(&mut self, deadline: Instant) -> Option<Arrival> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.arrivals.recv_timeout(left) {
            Ok(arrival) => {
                if matches!(arrival, Arrival::Closed(_)) {
                    self.open = self.open.saturating_sub(1);
                }
                Some(arrival)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(left.min(Duration::from_millis(20)));
                None
            }
        }
    }

    /// Whether every stream has ended and everything that came was handed over.
    pub fn is_silent(&self) -> bool {
        self.open == 0
    }

    /// Sends bytes to a stream.
    ///
    /// # Errors
    /// When QEMU is gone or has no such stream.
    pub fn send(&mut self, port: Port, bytes: &[u8]) -> Result<()> {
        let stream = self.ports.iter_mut().find(|(known, _)| *known == port);
        let (_, stream) = stream.with_context(|| format!("this machine has no {}", port.name()))?;
        stream
            .write_all(bytes)
            .with_context(|| format!("QEMU's {} is closed", port.name()))
    }

    /// Has QEMU say twice what all CPUs are at, for who wants to know why nothing comes any more: qmp.log has the
    /// answers. A QEMU that is gone says nothing.
    pub fn log_registers(&mut self) {
        for _ in 0..2 {
            if self.send(Port::Qmp, REGISTERS).is_ok() {
                std::thread::sleep(ANSWER);
            }
        }
    }

    /// QEMU's exit status, once it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// QEMU's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last of what QEMU itself said.
    pub fn stderr(&self) -> String {
        let text = std::fs::read_to_string(self.logs.join("qemu.stderr")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only where the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies one stream to its log and to the channel, until it ends.
struct Pump {
    port: Port,
    stream: UnixStream,
    log: File,
    sender: Sender<Arrival>,
    /// Put before each line.
    prefix: String,
}

impl Pump {
    /// Where there is no Cordon to put a VM's name before its lines, this does it.
    fn prefixed(mut self, scenario: &Scenario) -> Self {
        if let (Boot::Direct, Port::Uart0, [vm]) =
            (scenario.machine.boot, self.port, scenario.vm.as_slice())
        {
            self.prefix = format!("{}| ", vm.name.as_ref());
        }
        self
    }

    fn start(self, delivery: Delivery) -> Result<()> {
        std::thread::Builder::new()
            .name(format!("{} of QEMU", self.port.name()))
            .spawn(move || self.run(delivery))
            .context("cannot start a thread")?;
        Ok(())
    }

    fn run(mut self, delivery: Delivery) {
        let mut buffer = [0; 4096];
        let mut line = Vec::new();
        while let Ok(length @ 1..) = self.stream.read(&mut buffer) {
            let now = Instant::now();
            let bytes = buffer.get(..length).unwrap_or_default();
            // A full disk must not stop a run that needs no log to be judged.
            let _ = self.log.write_all(bytes);
            let delivered = match delivery {
                Delivery::Bytes => self.deliver(Arrival::Bytes(self.port, bytes.to_vec())),
                Delivery::Lines => self.lines(bytes, &mut line, now),
            };
            if !delivered {
                return;
            }
        }
        if !line.is_empty() {
            self.line(&line, Instant::now());
        }
        self.deliver(Arrival::Closed(self.port));
    }

    fn lines(&self, bytes: &[u8], line: &mut Vec<u8>, now: Instant) -> bool {
        for byte in bytes {
            if *byte == b'\n' || line.len() >= MAX_LINE {
                if !self.line(line, now) {
                    return false;
                }
                line.clear();
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
        true
    }

    fn line(&self, bytes: &[u8], now: Instant) -> bool {
        let text = String::from_utf8_lossy(bytes);
        let line = match self.port {
            Port::Uart0 => Line::console(&format!("{}{text}", self.prefix)),
            Port::Secure | Port::Qmp | Port::Qtest => Line::firmware(&text),
        };
        self.deliver(Arrival::Line(self.port, now, line))
    }

    /// Returns whether there is still somebody who listens.
    fn deliver(&self, arrival: Arrival) -> bool {
        self.sender.send(arrival).is_ok()
    }
}

/// A short-named directory for sockets, whose paths may have 107 bytes at most.
#[derive(Debug)]
struct SocketDirectory {
    path: PathBuf,
}

impl SocketDirectory {
    fn new() -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cordon-{}-{count}", std::process::id()));
        // Left over from a process of the same id that was killed outright.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path })
    }

    fn listen(&self, port: Port) -> Result<UnixListener> {
        let path = self.path.join(port.name());
        UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        // What is left here is found and cleared by the next process of the same id.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn fresh_logs(runs: &Path, name: &str) -> Result<PathBuf> {
    let logs = runs.join(name);
    if logs.exists() {
        std::fs::remove_dir_all(&logs)
            .with_context(|| format!("cannot clear {}", logs.display()))?;
    }
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    Ok(logs)
}

fn store_bundle(logs: &Path, bundle: &[u8]) -> Result<PathBuf> {
    let path = logs.join("bundle.cpio");
    std::fs::write(&path, bundle).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Only a machine with EL3 has the secure UART. Elsewhere QEMU would take a second `-serial` for
/// a second UART of the normal world and put it into the device tree.
fn ports(scenario: &Scenario) -> Vec<Port> {
    let mut ports = match scenario.machine.boot {
        Boot::El3 => vec![Port::Uart0, Port::Secure, Port::Qmp],
        _ => vec![Port::Uart0, Port::Qmp],
    };
    if scenario.needs_memory() {
        ports.push(Port::Qtest);
    }
    ports
}

fn chardevs(ports: &[Port], sockets: &Path) -> Vec<OsString> {
    let mut arguments = Vec::new();
    for port in ports {
        let path = sockets.join(port.name());
        arguments.push("-chardev".into());
        arguments.push(format!("socket,id={},path={}", port.name(), path.display()).into());
        let (option, value) = match port {
            Port::Qmp => ("-mon", "chardev=qmp,mode=control".into()),
            Port::Qtest => ("-qtest", "chardev:qtest".into()),
            port => ("-serial", format!("chardev:{}", port.name())),
        };
        arguments.push(option.into());
        arguments.push(value.into());
    }
    arguments
}

/// The machine's arguments, without those of its consoles.
fn arguments(tools: &Tools, scenario: &Scenario, bundle: Option<&Path>) -> Vec<OsString> {
    let machine = &scenario.machine;
    // An address-only pointer authentication costs TCG half its time; nothing here depends on it.
    let (virt, cpu) = match machine.boot {
        Boot::El3 => (
            "virt,secure=on,virtualization=on,gic-version=3,ras=on",
            "max,x-rme=on,pauth-impdef=on",
        ),
        Boot::Kernel | Boot::Uboot | Boot::Raw => (
            "virt,virtualization=on,gic-version=3",
            "max,pauth-impdef=on",
        ),
        Boot::Bios | Boot::Uefi | Boot::UefiKernel | Boot::UefiShell | Boot::Grub => (
            "virt,virtualization=on,gic-version=3,ras=on",
            "max,pauth-impdef=on",
        ),
        Boot::El1 | Boot::UefiEl1 | Boot::Direct => ("virt,gic-version=3", "max,pauth-impdef=on"),
    };
    let cpu = machine.cpu.as_deref().unwrap_or(cpu);
    let board = match scenario.acpi {
        // The names of the files are free then, and QEMU offers no tables of its own.
        Some(_) => format!("{},acpi=off", virt.replace(",ras=on", "")),
        None => machine.board.model().unwrap_or(virt).to_owned(),
    };
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: &OsStr| {
        arguments.push(option.into());
        arguments.push(value.into());
    };
    let board = match machine.pcie_window {
        Some(size) => format!("{board},highmem-mmio-size={}", size.0),
        None => board,
    };
    add("-M", board.as_ref());
    if !machine.board.has_own_cpus() {
        add("-cpu", cpu.as_ref());
    }
    if machine.icount {
        add("-accel", "tcg,thread=single".as_ref());
        add("-icount", "shift=0,sleep=off".as_ref());
    } else {
        add("-accel", "tcg,thread=multi".as_ref());
    }
    if let Some(entropy) = machine.entropy.or(machine.icount.then_some(1)) {
        add("-seed", entropy.to_string().as_ref());
    }
    let cpus = machine.cpus.as_ref() + machine.board.more_cpus();
    add("-smp", cpus.to_string().as_ref());
    add(
        "-m",
        format!("{}M", machine.memory.as_ref().0 >> 20).as_ref(),
    );
    for (index, size) in machine.device_memory.iter().enumerate() {
        let object = format!(
            "memory-backend-ram,id=dm{index},size={},reserve=off",
            size.as_ref().0
        );
        add("-object", object.as_ref());
        add(
            "-device",
            format!("ivshmem-plain,memdev=dm{index}").as_ref(),
        );
    }
    let image = machine.image.as_deref().unwrap_or("cordon.img");
    let cordon = tools.images.join(image);
    match machine.boot {
        Boot::El3 => {
            add("-bios", tools.images.join("firmware.bin").as_ref());
            add("-kernel", cordon.as_ref());
        }
        Boot::Uboot => {
            add("-bios", tools.images.join("u-boot.bin").as_ref());
            add("-kernel", cordon.as_ref());
        }
        Boot::UefiKernel => {
            add("-bios", tools.images.join("uefi.fd").as_ref());
            add("-kernel", cordon.as_ref());
        }
        Boot::Uefi | Boot::UefiShell | Boot::Grub | Boot::UefiEl1 => {
            add("-bios", tools.images.join("uefi.fd").as_ref());
        }
        Boot::Raw => {
            let mut device = OsString::from(format!("loader,addr={RAW:#x},force-raw=on,file="));
            device.push(cordon.display().to_string().replace(',', ",,"));
            add("-device", &device);
            let start = format!("loader,addr={RAW:#x},cpu-num=0");
            add("-device", start.as_ref());
        }
        Boot::Kernel | Boot::El1 => add("-kernel", cordon.as_ref()),
        Boot::Bios => add("-bios", cordon.as_ref()),
        Boot::Direct => {
            for vm in &scenario.vm {
                add("-kernel", tools.images.join(vm.kernel.as_ref()).as_ref());
                if let Some(initrd) = &vm.initrd {
                    add("-initrd", tools.images.join(initrd.as_ref()).as_ref());
                }
                add(
                    "-append",
                    vm.bootargs.as_deref().unwrap_or_default().as_ref(),
                );
            }
        }
    }
    if let Some(bundle) = bundle {
        match machine.boot {
            Boot::El3
            | Boot::Kernel
            | Boot::Uboot
            | Boot::UefiKernel
            | Boot::El1
            | Boot::Direct => add("-initrd", bundle.as_ref()),
            // On the volume; or nobody says where it is.
            Boot::Uefi | Boot::UefiShell | Boot::Grub | Boot::UefiEl1 | Boot::Raw => {}
            Boot::Bios => {
                let mut file = OsString::from("name=opt/cordon/bundle,file=");
                file.push(bundle);
                add("-fw_cfg", &file);
            }
        }
    }
    if let Some(cmdline) = &machine.cmdline
        && !machine.boot.has_volume()
    {
        add("-append", cmdline.as_ref().as_ref());
    }
    for (option, value) in [("-nic", "none"), ("-display", "none"), ("-monitor", "none")] {
        add(option, value.as_ref());
    }
    arguments.push("-no-reboot".into());
    for _ in 0..machine.board.uarts_before() {
        arguments.extend(["-serial", "null"].map(OsString::from));
    }
    if scenario.needs_memory() {
        arguments.extend(["-qtest-log", "none"].map(OsString::from));
    }
    if !scenario.dtb.is_empty() {
        arguments.push("-S".into());
    }
    arguments
}

fn spawn(
    tools: &Tools,
    arguments: &[OsString],
    consoles: &[OsString],
    logs: &Path,
) -> Result<Child> {
    let (program, first) = tools.qemu.split_first().context("no QEMU was named")?;
    let path = logs.join("qemu.stderr");
    let stderr =
        File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Command::new(program)
        .args(first)
        .args(arguments)
        .args(consoles)
        .envs(tools.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(stderr.try_clone()?)
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

/// Leaves a script that starts the same machine by hand, with UART 0 on the terminal.
fn write_script(logs: &Path, tools: &Tools, arguments: &[OsString], ports: &[Port]) -> Result<()> {
    let mut script = String::from(
        "#!/bin/sh\n# The machine of this run, by hand: UART 0 on this terminal (leave with Ctrl-A X).\n",
    );
    for (name, value) in &tools.env {
        script += &format!("export {}={}\n", name.display(), quote(value));
    }
    script += "exec";
    for word in tools.qemu.iter().chain(arguments) {
        script += " ";
        script += &quote(word);
    }
    script += " -serial mon:stdio";
    if ports.contains(&Port::Secure) {
        // socat - UNIX:secure.sock is then the firmware's console.
        script += " -serial unix:secure.sock,server=on,wait=off";
    }
    script += "\n";
    let path = logs.join("qemu.sh");
    std::fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))
}

fn quote(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
