//! The console: a polled PL011, whole lines out, edited lines in.
//!
//! All vCPUs print, each line under the lock, so lines never mix. vCPU 0 alone reads. When a line
//! has to be printed while the user is typing, it goes on a line of its own and what had been typed
//! is shown again below, so that a report always begins at the start of a line.
#![expect(
    unsafe_code,
    reason = "the UART's registers, and the lock that a fatal error breaks"
)]

use super::{cpu, mmu};
use arm_pl011_uart::{DataBits, LineConfig, Parity, StopBits, Uart, UniqueMmioPointer};
use cordon_probe::editor::{Edit, Editor, Line};
use core::fmt::{self, Write};
use core::ptr::{NonNull, with_exposed_provenance_mut};
use spin::Mutex;

const PROMPT: &str = "probe> ";

/// How often a fatal error tries to get the lock before it takes it by force.
const FATAL_TRIES: u32 = 10_000_000;

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    uart: None,
    editor: Editor::new(),
    prompting: false,
});

struct Console {
    uart: Option<Uart<'static>>,
    editor: Editor,
    /// Whether the prompt is on the screen and the cursor behind it.
    prompting: bool,
}

/// Finds the UART at `ipa`. Until now nothing could be printed.
pub(super) fn init(ipa: u64) {
    if mmu::map_device(ipa).is_none() {
        return;
    }
    with(|console| console.uart = uart(ipa));
}

/// The UART, set to 115200 8N1 (which matters on no virtual UART; a clock of 24 MHz is assumed).
fn uart(ipa: u64) -> Option<Uart<'static>> {
    let registers = NonNull::new(with_exposed_provenance_mut(ipa as usize))?;
    // SAFETY: the device tree says that there is a PL011 at `ipa`, which is mapped as Device memory
    // (or the MMU is off); it is driven from here alone.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let config = LineConfig {
        data_bits: DataBits::Bits8,
        parity: Parity::None,
        stop_bits: StopBits::One,
    };
    uart.enable(config, 115_200, 24_000_000).ok()?;
    Some(uart)
}

/// Sets the UART at `ipa` up again, whatever became of its registers, and ends what may have been
/// printed of a line.
pub(super) fn restart(ipa: u64) {
    with(|console| {
        console.uart = uart(ipa);
        console.put("\r\n");
    });
}

fn with<R>(action: impl FnOnce(&mut Console) -> R) -> R {
    cpu::without_serror(|| action(&mut CONSOLE.lock()))
}

/// Prints `guest: ` and a line.
pub(super) fn print(line: fmt::Arguments<'_>) {
    with(|console| console.print(line));
}

/// As [`print`], whoever holds the lock: for the last line before the end.
pub(super) fn print_by_force(line: fmt::Arguments<'_>) {
    for _ in 0..FATAL_TRIES {
        if let Some(mut console) = CONSOLE.try_lock() {
            return console.print(line);
        }
    }
    // SAFETY: the holder is this vCPU, interrupted for good, or one that will find the machine off;
    // what both do to the UART is print.
    unsafe { CONSOLE.force_unlock() };
    if let Some(mut console) = CONSOLE.try_lock() {
        console.print(line);
    }
}

/// As [`print`], without a lock, on a UART that `init` does not know: for a CPU whose MMU is off.
pub(super) fn print_unlocked(ipa: u64, line: fmt::Arguments<'_>) {
    Console {
        uart: uart(ipa),
        editor: Editor::new(),
        prompting: false,
    }
    .print(line);
}

/// Shows the prompt: a line is awaited.
pub(super) fn prompt() {
    with(Console::show_prompt);
}

/// Takes in what has been typed; a complete line, if there is one.
pub(super) fn poll() -> Option<Line> {
    with(Console::poll)
}

impl Console {
    fn print(&mut self, line: fmt::Arguments<'_>) {
        if self.prompting {
            self.put("\r\n");
        }
        // Writing to the UART cannot fail.
        let _ = write!(self, "guest: {line}\r\n");
        if self.prompting {
            self.show_prompt();
        }
    }

    fn show_prompt(&mut self) {
        self.prompting = true;
        self.put(PROMPT);
        let line = *self.editor.line();
        self.put(line.as_str());
    }

    fn poll(&mut self) -> Option<Line> {
        while let Some(byte) = self.get() {
            match self.editor.push(byte) {
                Edit::Echo(byte) => self.put_byte(byte),
                Edit::Erase => self.put("\x08 \x08"),
                Edit::Nothing => {}
                Edit::Done => {
                    self.put("\r\n");
                    self.prompting = false;
                    return Some(self.editor.take());
                }
            }
        }
        None
    }

    fn get(&mut self) -> Option<u8> {
        // A garbled byte is as good as none.
        self.uart.as_mut()?.read_word().ok().flatten()
    }

    fn put(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.put_byte(byte));
    }

    fn put_byte(&mut self, byte: u8) {
        if let Some(uart) = &mut self.uart {
            while uart.is_tx_fifo_full() {
                core::hint::spin_loop();
            }
            uart.write_word(byte);
        }
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text);
        Ok(())
    }
}
