//! A run that is left to a person: the terminal is UART 0, nothing is asserted.
//!
//! Ctrl-A is the one key that is not passed on. After it, `x` leaves, `p` asks for a line for the
//! firmware on the secure UART (Escape or Ctrl-C gives it up), `a` sends a Ctrl-A, `h` says all this. What the firmware writes is
//! shown as it comes, with `[secure]` before it. Everything else is UART 0's: Cordon's own keys behind
//! Ctrl-] too, by which one VM after the other gets the terminal for itself. The terminal is in raw mode meanwhile and gets
//! its old mode back on every way out, a panic included.

use crate::interrupt;
use crate::machine::{Arrival, Delivery, Machine, Port, Tools};
use crate::scenario::{Boot, Scenario};
use anyhow::{Context, Result, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What stands before a command for the firmware.
const PROMPT: &str = "firmware> ";

const HELP: &str = "Ctrl-A x: leave   Ctrl-A p: a command for the firmware, such as `poison PA`   \
                    Ctrl-A a: Ctrl-A   Ctrl-A h: this\n\
                    Ctrl-] n, Ctrl-] 1-9: another VM   Ctrl-] m: Cordon's monitor   Ctrl-] c: back   \
                    Ctrl-] r: lines or raw   Ctrl-] ?: keys";

/// Ctrl-A, as in QEMU's and screen's own consoles.
const ESCAPE: u8 = 0x01;

/// Boots the scenario's machine and connects the terminal to its UART 0 until somebody leaves or
/// QEMU ends.
///
/// # Errors
/// When the machine does not start or the terminal does not obey.
pub fn run(tools: &Tools, scenario: &Scenario) -> Result<()> {
    let scenario = &scenario.interactive();
    let bundle = match scenario.has_bundle() {
        true => Some(crate::bundle::build(scenario, &tools.images)?),
        false => None,
    };
    let mut machine = Machine::start(tools, scenario, bundle.as_deref(), Delivery::Bytes)?;
    let has_firmware = scenario.machine.boot == Boot::El3;
    eprintln!("{HELP}\n");
    let _raw = RawTerminal::new()?;
    let keys = keyboard()?;
    let mut input = Input {
        escaped: false,
        command: None,
        has_firmware,
    };
    let mut secure = Vec::new();
    while !machine.is_silent() && !interrupt::requested() {
        show(
            machine.next(Instant::now() + Duration::from_millis(10)),
            &mut secure,
        )?;
        while let Ok(key) = keys.try_recv() {
            match input.key(key) {
                Action::None => {}
                Action::Leave => return Ok(()),
                Action::Send(port, bytes) => machine.send(port, &bytes)?,
                Action::Show(text) => show_text(&text)?,
                Action::Ask(text) => {
                    show_text(&text)?;
                    redraw(PROMPT)?;
                }
                Action::Redraw(text) => redraw(&text)?,
            }
        }
    }
    if interrupt::requested() {
        return Ok(());
    }
    farewell(&mut machine)
}

/// What the person is told when it was QEMU that left.
fn farewell(machine: &mut Machine) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(2);
    while machine.exit_status().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    match machine.exit_status() {
        Some(status) if !status.success() => {
            bail!("QEMU ended with {status}: {}", machine.stderr())
        }
        _ => show_text(&format!(
            "The machine is off. Logs: {}",
            machine.logs.display()
        )),
    }
}

/// Reads the keyboard in a thread of its own, which ends with the process.
fn keyboard() -> Result<Receiver<u8>> {
    let (sender, keys) = channel();
    std::thread::Builder::new()
        .name("keyboard".into())
        .spawn(move || {
            for key in stdin().lock().bytes().map_while(Result::ok) {
                if sender.send(key).is_err() {
                    return;
                }
            }
        })
        .context("cannot start a thread")?;
    Ok(keys)
}

/// Writes what comes from the machine. `secure` keeps a line of the firmware until it is whole.
fn show(arrival: Option<Arrival>, secure: &mut Vec<u8>) -> Result<()> {
    match arrival {
        Some(Arrival::Bytes(Port::Uart0, bytes)) => {
            // A raw terminal needs the CR that a program's LF leaves out.
            let mut text = Vec::with_capacity(bytes.len());
            for byte in bytes {
                if byte == b'\n' {
                    text.push(b'\r');
                }
                text.push(byte);
            }
            stdout().write_all(&text)?;
            stdout().flush().context("the terminal")
        }
        Some(Arrival::Bytes(Port::Secure, bytes)) => {
            for byte in bytes {
                if byte == b'\n' {
                    let line = String::from_utf8_lossy(&std::mem::take(secure)).into_owned();
                    show_text(&format!("[secure] {}", line.trim_end()))?;
                } else {
                    secure.push(byte);
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn show_text(text: &str) -> Result<()> {
    write!(stdout(), "\r\n{}\r\n", text.replace('\n', "\r\n"))?;
    stdout().flush().context("the terminal")
}

/// Puts `text` in the place of the terminal's last line.
fn redraw(text: &str) -> Result<()> {
    write!(stdout(), "\r\x1b[K{text}")?;
    stdout().flush().context("the terminal")
}

/// What a key leads to.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    None,
    Leave,
    Send(Port, Vec<u8>),
    Show(String),
    Ask(String),
    Redraw(String),
}

/// The state of the escape key and of a firmware command that is being typed.
struct Input {
    escaped: bool,
    command: Option<String>,
    has_firmware: bool,
}

impl Input {
    fn key(&mut self, key: u8) -> Action {
        if std::mem::take(&mut self.escaped) {
            return self.escape(key);
        }
        if key == ESCAPE {
            self.escaped = true;
            return Action::None;
        }
        match self.command.take() {
            Some(command) => self.edit(command, key),
            None => Action::Send(Port::Uart0, vec![key]),
        }
    }

    fn escape(&mut self, key: u8) -> Action {
        match key.to_ascii_lowercase() {
            b'x' => Action::Leave,
            b'a' | ESCAPE => Action::Send(Port::Uart0, vec![ESCAPE]),
            b'p' if self.has_firmware => {
                self.command = Some(String::new());
                Action::Ask(
                    "One line for the firmware; `help` lists commands, Escape gives up.".into(),
                )
            }
            b'p' => Action::Show("This machine has no firmware at EL3.".into()),
            _ => Action::Show(HELP.into()),
        }
    }

    fn edit(&mut self, mut command: String, key: u8) -> Action {
        match key {
            b'\r' | b'\n' => {
                return Action::Send(Port::Secure, format!("{command}\r").into_bytes());
            }
            // Escape, Ctrl-C
            0x1b | 0x03 => return Action::Redraw(String::new()),
            0x08 | 0x7f => {
                command.pop();
            }
            b' '..=b'~' => command.push(char::from(key)),
            _ => {}
        }
        let shown = format!("{PROMPT}{command}");
        self.command = Some(command);
        Action::Redraw(shown)
    }
}

/// Raw mode for as long as it lives. Does nothing where standard input is no terminal.
struct RawTerminal {
    before: Option<Termios>,
}

impl RawTerminal {
    fn new() -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self { before: None });
        }
        let before = tcgetattr(stdin()).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).context("cannot set the terminal's mode")?;
        Ok(Self {
            before: Some(before),
        })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // There is nobody left to tell if a terminal that obeyed before does not now.
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8], has_firmware: bool) -> Vec<Action> {
        let mut input = Input {
            escaped: false,
            command: None,
            has_firmware,
        };
        keys.iter()
            .map(|key| input.key(*key))
            .filter(|action| *action != Action::None)
            .collect()
    }

    #[test]
    fn keys_go_to_the_guest() {
        assert_eq!(
            typed(b"h", true),
            [Action::Send(Port::Uart0, b"h".to_vec())]
        );
        assert_eq!(
            typed(b"\x03", true),
            [Action::Send(Port::Uart0, b"\x03".to_vec())]
        );
    }

    #[test]
    fn control_a_x_leaves_and_control_a_twice_is_one() {
        assert_eq!(typed(b"\x01x", true), [Action::Leave]);
        assert_eq!(
            typed(b"\x01\x01", true),
            [Action::Send(Port::Uart0, vec![ESCAPE])]
        );
        assert_eq!(typed(b"\x01h", true), [Action::Show(HELP.into())]);
    }

    #[test]
    fn a_line_for_the_firmware_can_be_given_up() {
        let actions = typed(b"\x01ppoison\x1bx", true);
        let sent: Vec<_> = actions
            .iter()
            .filter(|action| matches!(action, Action::Send(..)))
            .collect();
        assert_eq!(sent, [&Action::Send(Port::Uart0, b"x".to_vec())]);
    }

    #[test]
    fn control_a_p_types_a_line_for_the_firmware() {
        let last = typed(b"\x01phex\x7flp\r", true).pop();
        assert_eq!(last, Some(Action::Send(Port::Secure, b"help\r".to_vec())));
        assert!(matches!(&typed(b"\x01p", false)[..], [Action::Show(text)] if text.contains("no")));
    }
}
