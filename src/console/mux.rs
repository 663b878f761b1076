//! The output half: lines of many on one terminal.
//!
//! What stands on the terminal's last line, unfinished, is *open*: a VM's prompt, or the monitor's.
//! Whoever else prints closes it first. The monitor's is known byte by byte, so it is wiped and
//! shown again below; a VM's is ended by a newline, because what a VM has made of the line nobody
//! knows.

use super::Screen;
use super::sequence::Sequence;
use alloc::string::String;
use core::fmt;

/// Longest guest line kept together, in bytes; a longer one is broken, so that a guest that never
/// ends its line cannot hold memory.
pub const MAX_LINE: usize = 240;

/// What stands before the line that is typed at the monitor.
const PROMPT: &str = "cordon> ";

/// Back to the first column, and erase to the end of the line (ECMA-48 8.3.41).
const WIPE: &str = "\r\x1b[K";

/// The unfinished line of one VM.
#[derive(Debug, Default)]
struct Pending {
    text: String,
    /// How much of `text` is on the screen already, as a prompt.
    shown: usize,
    /// How much of it was shown as a prompt since Cordon last printed. A prompt of another VM
    /// hides it, but must not bring it back: two VMs that wait would flood the console.
    waited: usize,
    sequence: Sequence,
}

impl Pending {
    fn clear(&mut self) {
        self.text.clear();
        (self.shown, self.waited) = (0, 0);
    }

    /// Keeps up with what a VM writes to the terminal itself, as far as it is text: enough to show
    /// a prompt again that was interrupted. Escape sequences are left out (a question to the
    /// terminal must not be asked twice).
    fn follow(&mut self, byte: u8) {
        if self.sequence.push(byte) {
            return;
        }
        match byte {
            b'\r' | b'\n' => self.clear(),
            0x08 => {
                self.text.pop();
            }
            b' '..=b'~' if self.text.len() < MAX_LINE => self.text.push(char::from(byte)),
            _ => {}
        }
        self.shown = self.text.len();
        self.waited = self.text.len();
    }
}

/// What is open on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Vm(usize),
    Monitor,
}

/// Writes the lines of many onto one sink.
#[derive(Debug)]
pub struct Mux<S> {
    sink: S,
    names: alloc::vec::Vec<String>,
    pending: alloc::vec::Vec<Pending>,
    open: Option<Open>,
    /// The VM whose bytes go out as they are.
    raw: Option<usize>,
}

impl<S: Screen> Mux<S> {
    /// A multiplexer with no VMs yet.
    pub const fn new(sink: S) -> Self {
        Self {
            sink,
            names: alloc::vec::Vec::new(),
            pending: alloc::vec::Vec::new(),
            open: None,
            raw: None,
        }
    }

    /// Adds a VM's console and returns its number. Allocates all that the console will ever need.
    pub fn add(&mut self, name: &str) -> usize {
        self.names.push(name.into());
        self.pending.push(Pending {
            text: String::with_capacity(MAX_LINE),
            ..Pending::default()
        });
        self.names.len() - 1
    }

    /// The sink, for input and for a crash.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Prints one line of Cordon's own. An open prompt of the VM that has the terminal for itself
    /// stands below it again; the monitor's, [`Mux::show_monitor`] brings back.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn line(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        self.begin_line()?;
        writeln!(self.sink, "{text}")?;
        self.show_raw_again()
    }

    /// Prints one line of Cordon's own about VM number `vm`, whose name ends it.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn line_about(&mut self, vm: usize, text: fmt::Arguments<'_>) -> fmt::Result {
        self.begin_line()?;
        let name = self.names.get(vm).map_or("?", |name| name);
        writeln!(self.sink, "{text} vm={name}")?;
        self.show_raw_again()
    }

    fn begin_line(&mut self) -> fmt::Result {
        if let Some(Open::Vm(vm)) = self.open
            && let Some(pending) = self.pending.get_mut(vm)
        {
            pending.waited = 0;
        }
        self.close()
    }

    /// From now on what VM `vm` prints goes out as it is, without its name; `None`: nobody's does.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn set_raw(&mut self, vm: Option<usize>) -> fmt::Result {
        if self.raw == vm {
            return Ok(());
        }
        self.close()?;
        self.raw = vm;
        self.show_raw_again()
    }

    /// Shows what VM `vm` has written of its line, although nobody interrupted it: a person looks
    /// at it now.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn look_at(&mut self, vm: usize) -> fmt::Result {
        match self.pending.get_mut(vm) {
            Some(pending) if !pending.text.is_empty() => {
                pending.waited = pending.text.len();
                self.show(vm)
            }
            _ => Ok(()),
        }
    }

    /// Takes one byte that VM number `vm` printed. Escape sequences are left out, and anything else but
    /// printable ASCII, tab, CR, LF and backspace is shown as `.`: a guest has no business with the operator's terminal, unless it
    /// was given it ([`Mux::set_raw`]).
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn guest_byte(&mut self, vm: usize, byte: u8) -> fmt::Result {
        if self.raw == Some(vm) {
            return self.raw_byte(vm, byte);
        }
        let pending = self.pending.get_mut(vm);
        if pending.is_some_and(|pending| pending.sequence.push(byte)) {
            return Ok(());
        }
        match byte {
            b'\n' => return self.end_line(vm),
            b'\r' => return Ok(()),
            0x08 | 0x7f => return self.erase(vm),
            _ => {}
        }
        let Some(pending) = self.pending.get_mut(vm) else {
            return Ok(());
        };
        let printable = byte == b'\t' || byte == b' ' || byte.is_ascii_graphic();
        pending
            .text
            .push(if printable { char::from(byte) } else { '.' });
        if pending.text.len() >= MAX_LINE {
            return self.end_line(vm);
        }
        Ok(())
    }

    /// VM number `vm` looks for input: what it printed so far is a prompt. It is not shown while
    /// somebody types at the monitor, or below the VM that has the terminal for itself.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn guest_waits(&mut self, vm: usize) -> fmt::Result {
        if self.open == Some(Open::Monitor) || self.raw.is_some() {
            return Ok(());
        }
        match self.pending.get_mut(vm) {
            Some(pending) if pending.text.len() > pending.waited => {
                pending.waited = pending.text.len();
                self.show(vm)
            }
            _ => Ok(()),
        }
    }

    /// Shows the monitor's prompt with what was typed, unless it stands there.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn show_monitor(&mut self, typed: &str) -> fmt::Result {
        if self.open == Some(Open::Monitor) {
            return Ok(());
        }
        self.close()?;
        self.open = Some(Open::Monitor);
        write!(self.sink, "{PROMPT}{typed}")
    }

    /// Adds to the line that is typed at the monitor.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn echo(&mut self, text: &str) -> fmt::Result {
        self.sink.write_str(text)
    }

    /// Ends the line that is typed at the monitor.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn end_monitor(&mut self) -> fmt::Result {
        match self.open {
            Some(Open::Monitor) => {
                self.open = None;
                writeln!(self.sink)
            }
            _ => Ok(()),
        }
    }

    fn raw_byte(&mut self, vm: usize, byte: u8) -> fmt::Result {
        if self.open != Some(Open::Vm(vm)) {
            self.show(vm)?;
        }
        if let Some(pending) = self.pending.get_mut(vm) {
            pending.follow(byte);
        }
        self.sink.raw(byte);
        Ok(())
    }

    fn show_raw_again(&mut self) -> fmt::Result {
        match self.raw {
            Some(vm) if self.open != Some(Open::Monitor) => self.look_at(vm),
            _ => Ok(()),
        }
    }

    fn end_line(&mut self, vm: usize) -> fmt::Result {
        self.show(vm)?;
        writeln!(self.sink)?;
        self.open = None;
        if let Some(pending) = self.pending.get_mut(vm) {
            pending.clear();
        }
        self.show_raw_again()
    }

    fn erase(&mut self, vm: usize) -> fmt::Result {
        let Some(pending) = self.pending.get_mut(vm) else {
            return Ok(());
        };
        if pending.text.pop().is_none() {
            return Ok(());
        }
        pending.waited = pending.waited.min(pending.text.len());
        if pending.text.len() >= pending.shown {
            return Ok(());
        }
        pending.shown = pending.text.len();
        if self.open == Some(Open::Vm(vm)) {
            self.sink.write_str("\x08 \x08")?;
        }
        Ok(())
    }

    /// Brings the screen up to what VM number `vm` has written of its line.
    fn show(&mut self, vm: usize) -> fmt::Result {
        let open = self.open == Some(Open::Vm(vm));
        if !open {
            self.close()?;
        }
        let (Some(name), Some(pending)) = (self.names.get(vm), self.pending.get_mut(vm)) else {
            return Ok(());
        };
        if !open {
            if self.raw != Some(vm) {
                write!(self.sink, "{name}| ")?;
            }
            pending.shown = 0;
        }
        // Only ASCII goes in, so every index is a character boundary.
        let rest = pending.text.get(pending.shown..).unwrap_or_default();
        self.sink.write_str(rest)?;
        pending.shown = pending.text.len();
        self.open = Some(Open::Vm(vm));
        Ok(())
    }

    /// Ends what stands open on the screen, because another line follows. A VM's prompt is shown
    /// again in full when its VM goes on with it.
    fn close(&mut self) -> fmt::Result {
        let vm = match self.open.take() {
            None => return Ok(()),
            Some(Open::Monitor) => return self.sink.write_str(WIPE),
            Some(Open::Vm(vm)) => vm,
        };
        let raw = self.raw == Some(vm);
        let Some(pending) = self.pending.get_mut(vm) else {
            return Ok(());
        };
        pending.shown = 0;
        match raw && pending.text.is_empty() {
            // The cursor is at the beginning of a line, as far as anybody knows.
            true => Ok(()),
            false => writeln!(self.sink),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::Paper;

    fn mux() -> Mux<Paper> {
        let mut mux = Mux::new(Paper::default());
        mux.add("a");
        mux.add("b");
        mux
    }

    fn print(mux: &mut Mux<Paper>, vm: usize, text: &str) {
        for byte in text.bytes() {
            mux.guest_byte(vm, byte).unwrap();
        }
    }

    #[test]
    fn lines_of_two_vms_are_not_torn_apart() {
        let mut mux = mux();
        print(&mut mux, 0, "he");
        print(&mut mux, 1, "wor");
        print(&mut mux, 0, "llo\r\n");
        print(&mut mux, 1, "ld\n");
        assert_eq!(mux.sink().text, "a| hello\nb| world\n");
    }

    #[test]
    fn a_prompt_appears_when_its_vm_waits_and_again_after_an_interruption() {
        let mut mux = mux();
        print(&mut mux, 0, "> ");
        assert_eq!(mux.sink().text, "");
        mux.guest_waits(0).unwrap();
        mux.guest_waits(0).unwrap();
        assert_eq!(mux.sink().text, "a| > ");
        mux.line(format_args!("cordon: hi")).unwrap();
        print(&mut mux, 0, "x");
        mux.guest_waits(0).unwrap();
        assert_eq!(mux.sink().text, "a| > \ncordon: hi\na| > x");
    }

    #[test]
    fn two_vms_that_wait_at_their_prompts_do_not_flood_the_console() {
        let mut mux = mux();
        print(&mut mux, 0, "a> ");
        print(&mut mux, 1, "b> ");
        for _ in 0..100 {
            mux.guest_waits(0).unwrap();
            mux.guest_waits(1).unwrap();
        }
        assert_eq!(mux.sink().text, "a| a> \nb| b> ");
    }

    #[test]
    fn an_endless_line_is_broken() {
        let mut mux = mux();
        print(&mut mux, 0, &"x".repeat(MAX_LINE + 1));
        assert_eq!(mux.sink().text.lines().count(), 1);
        assert_eq!(mux.pending[0].text.len(), 1);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut mux = mux();
        print(&mut mux, 0, "\x1b[2Ja\x07\x1bcb\u{9b}\n");
        assert_eq!(mux.sink().text, "a| a.cb..\n");
    }

    #[test]
    fn backspace_takes_back_what_was_shown() {
        let mut mux = mux();
        print(&mut mux, 0, "ab");
        mux.guest_waits(0).unwrap();
        print(&mut mux, 0, "\x08 \x08");
        mux.guest_waits(0).unwrap();
        print(&mut mux, 0, "c\n");
        assert_eq!(mux.sink().text, "a| ab\x08 \x08c\n");
    }

    #[test]
    fn the_vm_that_has_the_terminal_writes_to_it_itself() {
        let mut mux = mux();
        mux.set_raw(Some(0)).unwrap();
        print(&mut mux, 0, "\x1b[2J/ # \x1b[6n");
        assert_eq!(mux.sink().text, "\x1b[2J/ # \x1b[6n");
    }

    #[test]
    fn what_others_print_goes_around_it_and_asks_the_terminal_nothing_again() {
        let mut mux = mux();
        mux.set_raw(Some(0)).unwrap();
        print(&mut mux, 0, "/ # \x1b[6nls");
        print(&mut mux, 1, "hi\n");
        mux.line(format_args!("ras: x")).unwrap();
        print(&mut mux, 0, "\x08\x08p\r\n");
        print(&mut mux, 1, "> ");
        mux.guest_waits(1).unwrap();
        mux.line(format_args!("ras: y")).unwrap();
        let expected = "/ # \x1b[6nls\nb| hi\n/ # ls\nras: x\n/ # ls\x08\x08p\r\nras: y\n";
        assert_eq!(mux.sink().text, expected);
    }

    #[test]
    fn a_prompt_changes_its_shape_with_the_terminals_owner() {
        let mut mux = mux();
        print(&mut mux, 0, "/ # ");
        mux.guest_waits(0).unwrap();
        mux.set_raw(Some(0)).unwrap();
        print(&mut mux, 0, "l");
        mux.set_raw(None).unwrap();
        print(&mut mux, 0, "s\n");
        assert_eq!(mux.sink().text, "a| / # \n/ # l\na| / # ls\n");
    }

    #[test]
    fn the_monitors_line_is_wiped_and_prompts_of_vms_leave_it_alone() {
        let mut mux = mux();
        mux.show_monitor("").unwrap();
        mux.echo("v").unwrap();
        print(&mut mux, 0, "> ");
        mux.guest_waits(0).unwrap();
        print(&mut mux, 1, "hi\n");
        mux.show_monitor("v").unwrap();
        mux.show_monitor("v").unwrap();
        mux.end_monitor().unwrap();
        mux.look_at(0).unwrap();
        assert_eq!(mux.sink().text, "cordon> v\r\x1b[Kb| hi\ncordon> v\na| > ");
    }
}
