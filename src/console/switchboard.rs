//! The input half: who gets what is typed.

use super::Screen;
use super::editor::{Edit, Editor};
use super::keys::{Key, Keys};
use super::line::Line;
use super::mux::Mux;
use super::typed::Typed;
use alloc::vec::Vec;
use core::fmt;

/// Most bytes that are taken from the keyboard at once: others want the lock too.
const BURST: usize = 64;

/// What the caller has to do, once it has released the lock.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// Nothing more was typed.
    Nothing,
    /// Keys of the operator's were seen to; there may be more.
    Handled,
    /// Something was typed for this console.
    Typed(usize),
    /// This was typed at the monitor. No key is looked at before [`Switchboard::answered`].
    Command(Line),
}

/// What the operator types at.
#[derive(Debug)]
enum Monitor {
    /// The console in focus.
    Away,
    /// The monitor.
    Typing(Editor),
    /// The monitor, which carries out what was typed.
    Busy,
}

/// A VM's end of the switchboard.
#[derive(Debug)]
struct Seat {
    typed: Typed,
    /// Its VM may run; of one that has ended for good, nobody reads.
    powered: bool,
    /// Something was dropped, and the operator told so.
    full: bool,
}

/// The one UART, as everybody uses it.
#[derive(Debug)]
pub struct Switchboard<S> {
    mux: Mux<S>,
    seats: Vec<Seat>,
    focus: usize,
    keys: Keys,
    monitor: Monitor,
    /// Whether the VM in focus has the terminal for itself.
    raw: bool,
}

impl<S: Screen> Switchboard<S> {
    /// A switchboard with no VMs yet. The first has the focus.
    pub const fn new(sink: S) -> Self {
        Self {
            mux: Mux::new(sink),
            seats: Vec::new(),
            focus: 0,
            keys: Keys::new(),
            monitor: Monitor::Away,
            raw: false,
        }
    }

    /// Adds a VM's console and returns its number. Allocates all that the console will ever need.
    pub fn add(&mut self, name: &str) -> usize {
        self.seats.push(Seat {
            typed: Typed::new(),
            powered: true,
            full: false,
        });
        self.mux.add(name)
    }

    /// The sink, for its settings.
    pub fn sink(&mut self) -> &mut S {
        self.mux.sink()
    }

    /// Prints one line of Cordon's own.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn line(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        self.mux.line(text)?;
        self.show_monitor()
    }

    /// Takes one byte that VM number `vm` printed.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn guest_byte(&mut self, vm: usize, byte: u8) -> fmt::Result {
        self.mux.guest_byte(vm, byte)?;
        self.show_monitor()
    }

    /// VM number `vm` looks for input.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn guest_waits(&mut self, vm: usize) -> fmt::Result {
        self.mux.guest_waits(vm)
    }

    /// A byte typed for VM number `vm`.
    pub fn typed(&mut self, vm: usize) -> Option<u8> {
        let seat = self.seats.get_mut(vm)?;
        let byte = seat.typed.pop();
        seat.full &= byte.is_some();
        byte
    }

    /// Which VM has the focus, also while the monitor is used.
    pub const fn focus(&self) -> usize {
        self.focus
    }

    /// Whether the VM in focus gets the terminal for itself.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn set_raw(&mut self, raw: bool) -> fmt::Result {
        self.raw = raw;
        self.settle_raw()
    }

    /// Looks at what was typed, up to the first thing that the caller has to do.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn look(&mut self) -> Result<Event, fmt::Error> {
        let mut event = Event::Nothing;
        for _ in 0..BURST {
            if matches!(self.monitor, Monitor::Busy) {
                break;
            }
            let Some(byte) = self.mux.sink().key() else {
                break;
            };
            match self.keys.push(byte) {
                Key::Nothing => {}
                Key::Plain(byte) => match &mut self.monitor {
                    Monitor::Away => {
                        self.type_at(self.focus, byte)?;
                        event = Event::Typed(self.focus);
                        continue;
                    }
                    _ => {
                        if let Some(line) = self.edit(byte)? {
                            return Ok(Event::Command(line));
                        }
                    }
                },
                key => {
                    self.turn(key)?;
                    // What was typed before it was for somebody else, maybe.
                    if matches!(event, Event::Typed(_)) {
                        return Ok(event);
                    }
                }
            }
            if matches!(event, Event::Nothing) {
                event = Event::Handled;
            }
        }
        Ok(event)
    }

    /// The monitor's command is carried out: it has its next prompt, unless it has been left.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn answered(&mut self) -> fmt::Result {
        if matches!(self.monitor, Monitor::Busy) {
            self.monitor = Monitor::Typing(Editor::new());
        }
        self.show_monitor()
    }

    /// Gives the focus to VM number `vm`, and leaves the monitor. False if it has ended, or is none.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn give_focus(&mut self, vm: usize) -> Result<bool, fmt::Error> {
        if !self.seats.get(vm).is_some_and(|seat| seat.powered) {
            return Ok(false);
        }
        self.focus = vm;
        self.leave_monitor()?;
        Ok(true)
    }

    /// A VM has ended for good, or begins again. One that has ended loses the focus to the next one
    /// that has not.
    ///
    /// # Errors
    ///
    /// Whatever the sink says.
    pub fn set_powered(&mut self, vm: usize, powered: bool) -> fmt::Result {
        let Some(seat) = self.seats.get_mut(vm) else {
            return Ok(());
        };
        seat.powered = powered;
        seat.typed.clear();
        let lost = self.seats.get(self.focus).is_none_or(|seat| !seat.powered);
        let Some(next) = self.next().filter(|_| lost) else {
            return Ok(());
        };
        self.focus = next;
        match self.monitor {
            Monitor::Away => self.say_focus(),
            _ => Ok(()),
        }
    }

    /// The next VM after the one in focus that has not ended, which may be that one itself.
    fn next(&self) -> Option<usize> {
        let count = self.seats.len();
        let mut behind = (1..=count).map(|step| (self.focus + step) % count);
        behind.find(|vm| self.seats.get(*vm).is_some_and(|seat| seat.powered))
    }

    fn type_at(&mut self, vm: usize, byte: u8) -> fmt::Result {
        let Some(seat) = self.seats.get_mut(vm) else {
            return Ok(());
        };
        if seat.typed.push(byte) || core::mem::replace(&mut seat.full, true) {
            return Ok(());
        }
        let text = format_args!("cordon: event=error what=console why=vm-does-not-read");
        self.mux.line_about(vm, text)
    }

    /// A byte for the monitor; its line, if that is complete.
    fn edit(&mut self, byte: u8) -> Result<Option<Line>, fmt::Error> {
        let Monitor::Typing(editor) = &mut self.monitor else {
            return Ok(None);
        };
        match editor.push(byte) {
            Edit::Nothing => {}
            Edit::Echo(byte) => self
                .mux
                .echo(core::str::from_utf8(&[byte]).unwrap_or_default())?,
            Edit::Erase(count) => {
                for _ in 0..count {
                    self.mux.echo("\x08 \x08")?;
                }
            }
            Edit::Cancel => {
                self.mux.end_monitor()?;
                self.mux.show_monitor("")?;
            }
            Edit::Leave => self.leave_monitor()?,
            Edit::Done => {
                let line = editor.take();
                self.mux.end_monitor()?;
                if !line.as_str().trim().is_empty() || line.is_cut() {
                    self.monitor = Monitor::Busy;
                    return Ok(Some(line));
                }
                self.mux.show_monitor("")?;
            }
        }
        Ok(None)
    }

    /// One of the operator's keys.
    fn turn(&mut self, key: Key) -> fmt::Result {
        match key {
            Key::Nothing | Key::Plain(_) => Ok(()),
            Key::Focus(vm) => {
                if self.give_focus(vm)? {
                    return Ok(());
                }
                self.line(format_args!(
                    "cordon: event=error what=console why=no-such-vm number={}",
                    vm + 1
                ))
            }
            Key::Next => match self.next() {
                Some(vm) => self.give_focus(vm).map(|_| ()),
                None => Ok(()),
            },
            Key::Monitor => {
                if matches!(self.monitor, Monitor::Away) {
                    self.monitor = Monitor::Typing(Editor::new());
                    self.settle_raw()?;
                }
                self.show_monitor()
            }
            Key::Console => match self.monitor {
                Monitor::Away => Ok(()),
                _ => self.leave_monitor(),
            },
            Key::Raw => {
                self.raw = !self.raw;
                let raw = if self.raw { "yes" } else { "no" };
                self.line(format_args!("cordon: event=raw on={raw}"))?;
                self.settle_raw()
            }
            Key::Help => self.line(format_args!(
                "cordon: event=keys escape=ctrl-] focus=1-9 next=n monitor=m console=c raw=r send=ctrl-] help=?"
            )),
        }
    }

    fn leave_monitor(&mut self) -> fmt::Result {
        self.mux.end_monitor()?;
        self.monitor = Monitor::Away;
        self.say_focus()
    }

    fn say_focus(&mut self) -> fmt::Result {
        // Nobody has the terminal while this is said, so that it stands before what it is about.
        self.mux.set_raw(None)?;
        self.mux
            .line_about(self.focus, format_args!("cordon: event=focus"))?;
        self.settle_raw()?;
        self.mux.look_at(self.focus)
    }

    fn settle_raw(&mut self) -> fmt::Result {
        let away = matches!(self.monitor, Monitor::Away);
        let owner = (self.raw && away).then_some(self.focus);
        self.mux.set_raw(owner)
    }

    fn show_monitor(&mut self) -> fmt::Result {
        match &self.monitor {
            Monitor::Typing(editor) => self.mux.show_monitor(editor.text()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::keys::ESCAPE;
    use crate::console::tests::Paper;
    use alloc::string::String;

    fn board() -> Switchboard<Paper> {
        let mut board = Switchboard::new(Paper::default());
        for name in ["a", "b", "c"] {
            board.add(name);
        }
        board
    }

    /// Types, does what is to be done but commands, which are returned.
    fn key_in(board: &mut Switchboard<Paper>, text: &str) -> Vec<String> {
        board.sink().keys.extend(text.bytes());
        let mut commands = Vec::new();
        loop {
            match board.look().unwrap() {
                Event::Nothing => return commands,
                Event::Command(line) => {
                    commands.push(line.as_str().into());
                    board.answered().unwrap();
                }
                Event::Handled | Event::Typed(_) => {}
            }
        }
    }

    fn read(board: &mut Switchboard<Paper>, vm: usize) -> String {
        core::iter::from_fn(|| board.typed(vm))
            .map(char::from)
            .collect()
    }

    #[test]
    fn what_is_typed_is_for_the_vm_in_focus_alone() {
        let mut board = board();
        key_in(&mut board, "one\x1d2two\x1dnthree\x1dn\x1d\x1d");
        assert_eq!(read(&mut board, 0), "one\x1d");
        assert_eq!(read(&mut board, 1), "two");
        assert_eq!(read(&mut board, 2), "three");
        let said = "cordon: event=focus vm=b\ncordon: event=focus vm=c\ncordon: event=focus vm=a\n";
        assert_eq!(board.sink().text, said);
    }

    #[test]
    fn a_focus_that_changes_in_a_burst_tells_of_both_vms() {
        let mut board = board();
        board.sink().keys.extend(*b"x\x1d2y");
        assert!(matches!(board.look(), Ok(Event::Typed(0))));
        assert!(matches!(board.look(), Ok(Event::Typed(1))));
        assert!(matches!(board.look(), Ok(Event::Nothing)));
    }

    #[test]
    fn nobody_gets_what_is_typed_at_the_monitor() {
        let mut board = board();
        let commands = key_in(&mut board, "\x1dmvms\r\x04x");
        assert_eq!(commands, ["vms"]);
        assert_eq!(read(&mut board, 0), "x");
        assert_eq!(
            board.sink().text,
            "cordon> vms\ncordon> \ncordon: event=focus vm=a\n"
        );
    }

    #[test]
    fn lines_of_others_do_not_tear_the_monitors_line() {
        let mut board = board();
        key_in(&mut board, "\x1dmvm");
        board.line(format_args!("ras: x")).unwrap();
        key_in(&mut board, "s\r");
        let shown = "cordon> vm\r\x1b[Kras: x\ncordon> vms\ncordon> ";
        assert_eq!(board.sink().text, shown);
    }

    #[test]
    fn while_a_command_is_carried_out_no_prompt_comes_and_no_key_is_taken() {
        let mut board = board();
        board.sink().keys.extend(*b"\x1dmvms\rx");
        while !matches!(board.look(), Ok(Event::Command(_))) {}
        board.line(format_args!("cordon: answer")).unwrap();
        assert!(matches!(board.look(), Ok(Event::Nothing)));
        assert_eq!(board.sink().keys.len(), 1);
        assert_eq!(board.sink().text, "cordon> vms\ncordon: answer\n");
        board.answered().unwrap();
        key_in(&mut board, "");
        assert!(board.sink().text.ends_with("\ncordon> x"));
    }

    #[test]
    fn a_vm_that_does_not_read_cannot_keep_the_operator_from_the_keys() {
        let mut board = board();
        let flood = "x".repeat(crate::console::typed::CAPACITY + 100);
        key_in(&mut board, &flood);
        key_in(&mut board, "\x1d2y");
        assert_eq!(read(&mut board, 1), "y");
        assert_eq!(read(&mut board, 0).len(), crate::console::typed::CAPACITY);
        let complaint = "cordon: event=error what=console why=vm-does-not-read vm=a\n";
        assert_eq!(board.sink().text.matches(complaint).count(), 1);
        // It has read: the next time is another time.
        key_in(&mut board, "\x1d1");
        key_in(&mut board, &flood);
        assert_eq!(board.sink().text.matches(complaint).count(), 2);
    }

    #[test]
    fn a_vm_that_ends_loses_the_focus_to_the_next_that_has_not() {
        let mut board = board();
        board.set_powered(1, false).unwrap();
        assert_eq!(board.focus(), 0);
        board.set_powered(0, false).unwrap();
        assert_eq!(board.focus(), 2);
        assert_eq!(board.sink().text, "cordon: event=focus vm=c\n");
        key_in(&mut board, "\x1d1\x1dnz");
        assert_eq!(read(&mut board, 2), "z");
        assert!(board.sink().text.contains("why=no-such-vm number=1"));
        board.set_powered(0, true).unwrap();
        key_in(&mut board, "\x1d1w");
        assert_eq!(read(&mut board, 0), "w");
    }

    #[test]
    fn when_all_have_ended_keys_still_do_no_harm() {
        let mut board = board();
        for vm in 0..3 {
            board.set_powered(vm, false).unwrap();
        }
        key_in(&mut board, "x\x1dny\x1dmhelp\r\x1dc");
        let mut empty = Switchboard::new(Paper::default());
        key_in(&mut empty, "x\x1dn\x1d1\x1dr\x1dmvms\r\x1dc");
    }

    #[test]
    fn the_terminal_goes_with_the_focus_and_comes_back_from_the_monitor() {
        let mut board = Switchboard::new(Paper::default());
        // As the command line does it, before there is a VM.
        board.set_raw(true).unwrap();
        board.add("a");
        board.add("b");
        let print = |board: &mut Switchboard<Paper>, vm, text: &str| {
            text.bytes()
                .for_each(|byte| board.guest_byte(vm, byte).unwrap());
        };
        print(&mut board, 0, "a\x1b[m\r\n");
        key_in(&mut board, "\x1dm");
        print(&mut board, 0, "a\x1b[m\r\n");
        key_in(&mut board, "\x1d2");
        print(&mut board, 0, "a\r\n");
        print(&mut board, 1, "b\x1b[m\r\n");
        let wiped = "\r\x1b[K";
        assert_eq!(
            board.sink().text,
            alloc::format!(
                "a\x1b[m\r\ncordon> {wiped}a| a\ncordon> \n\
                 cordon: event=focus vm=b\na| a\nb\x1b[m\r\n"
            )
        );
        assert_eq!(ESCAPE, 0x1d);
    }
}
