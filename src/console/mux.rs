//! The multiplexer, apart from any UART.

use alloc::string::String;
use core::fmt::{self, Write};

/// Longest guest line kept together, in bytes; a longer one is broken, so that a guest that never
/// ends its line cannot hold memory.
pub const MAX_LINE: usize = 240;

/// The unfinished line of one VM.
#[derive(Debug, Default)]
struct Pending {
    text: String,
    /// How much of `text` is on the screen already, as a prompt.
    shown: usize,
    /// How much of it was shown as a prompt since Cordon last printed. A prompt of another VM
    /// hides it, but must not bring it back: two VMs that wait would flood the console.
    waited: usize,
}

/// Writes the lines of many onto one sink.
#[derive(Debug)]
pub struct Mux<S> {
    sink: S,
    names: alloc::vec::Vec<String>,
    pending: alloc::vec::Vec<Pending>,
    /// Whose prompt is the last thing on the screen.
    open: Option<usize>,
}

impl<S: Write> Mux<S> {
    /// A multiplexer with no VMs yet.
    pub const fn new(sink: S) -> Self {
        Self {
            sink,
            names: alloc::vec::Vec::new(),
            pending: alloc::vec::Vec::new(),
            open: None,
        }
    }

    /// Adds a VM's console and returns its number. Allocates all that the console will ever need.
    pub fn add(&mut self, name: &str) -> usize {
        self.names.push(name.into());
        self.pending.push(Pending {
            text: String::with_capacity(MAX_LINE),
            shown: 0,
            waited: 0,
        });
        self.names.len() - 1
    }

    /// The sink, for input and for a crash.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Prints one line of Cordon's own.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn line(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        if let Some(pending) = self.open.and_then(|vm| self.pending.get_mut(vm)) {
            pending.waited = 0;
        }
        self.close()?;
        writeln!(self.sink, "{text}")
    }

    /// Takes one byte that VM number `vm` printed. Anything but printable ASCII, tab, CR, LF and
    /// backspace is shown as `.`: a guest has no business with the operator's terminal.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn guest_byte(&mut self, vm: usize, byte: u8) -> fmt::Result {
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

    /// VM number `vm` looks for input: what it printed so far is a prompt.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn guest_waits(&mut self, vm: usize) -> fmt::Result {
        match self.pending.get_mut(vm) {
            Some(pending) if pending.text.len() > pending.waited => {
                pending.waited = pending.text.len();
                self.show(vm)
            }
            _ => Ok(()),
        }
    }

    fn end_line(&mut self, vm: usize) -> fmt::Result {
        self.show(vm)?;
        writeln!(self.sink)?;
        self.open = None;
        if let Some(pending) = self.pending.get_mut(vm) {
            pending.text.clear();
            pending.shown = 0;
            pending.waited = 0;
        }
        Ok(())
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
        if self.open == Some(vm) {
            self.sink.write_str("\x08 \x08")?;
        }
        Ok(())
    }

    /// Brings the screen up to what VM number `vm` has written of its line.
    fn show(&mut self, vm: usize) -> fmt::Result {
        if self.open != Some(vm) {
            self.close()?;
        }
        let (Some(name), Some(pending)) = (self.names.get(vm), self.pending.get_mut(vm)) else {
            return Ok(());
        };
        if self.open != Some(vm) {
            write!(self.sink, "{name}| ")?;
            pending.shown = 0;
        }
        // Only ASCII goes in, so every index is a character boundary.
        let rest = pending.text.get(pending.shown..).unwrap_or_default();
        self.sink.write_str(rest)?;
        pending.shown = pending.text.len();
        self.open = Some(vm);
        Ok(())
    }

    /// Ends a prompt that stands on the screen, because another line follows. It is shown again
    /// in full when its VM goes on with it.
    fn close(&mut self) -> fmt::Result {
        let Some(vm) = self.open.take() else {
            return Ok(());
        };
        if let Some(pending) = self.pending.get_mut(vm) {
            pending.shown = 0;
        }
        writeln!(self.sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mux() -> Mux<String> {
        let mut mux = Mux::new(String::new());
        mux.add("a");
        mux.add("b");
        mux
    }

    fn print(mux: &mut Mux<String>, vm: usize, text: &str) {
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
        assert_eq!(mux.sink(), "a| hello\nb| world\n");
    }

    #[test]
    fn a_prompt_appears_when_its_vm_waits_and_again_after_an_interruption() {
        let mut mux = mux();
        print(&mut mux, 0, "> ");
        assert_eq!(mux.sink(), "");
        mux.guest_waits(0).unwrap();
        mux.guest_waits(0).unwrap();
        assert_eq!(mux.sink(), "a| > ");
        mux.line(format_args!("cordon: hi")).unwrap();
        print(&mut mux, 0, "x");
        mux.guest_waits(0).unwrap();
        assert_eq!(mux.sink(), "a| > \ncordon: hi\na| > x");
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
        assert_eq!(mux.sink(), "a| a> \nb| b> ");
    }

    #[test]
    fn an_endless_line_is_broken() {
        let mut mux = mux();
        print(&mut mux, 0, &"x".repeat(MAX_LINE + 1));
        assert_eq!(mux.sink().lines().count(), 1);
        assert_eq!(mux.pending[0].text.len(), 1);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut mux = mux();
        print(&mut mux, 0, "\x1b[2J\n");
        assert_eq!(mux.sink(), "a| .[2J\n");
    }

    #[test]
    fn backspace_takes_back_what_was_shown() {
        let mut mux = mux();
        print(&mut mux, 0, "ab");
        mux.guest_waits(0).unwrap();
        print(&mut mux, 0, "\x08 \x08");
        mux.guest_waits(0).unwrap();
        print(&mut mux, 0, "c\n");
        assert_eq!(mux.sink(), "a| ab\x08 \x08c\n");
    }
}
