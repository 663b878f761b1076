//! Stands in for QEMU in the engine's tests: takes QEMU's arguments, connects to the sockets that
//! they name, and plays a script that the environment names. Each line of the script is one of
//!
//! ```text
//! uart0 TEXT      write a line to UART 0          secure TEXT    ... to the secure UART
//! <uart0 TEXT     wait for a line that begins so  <secure TEXT
//! sleep MS        let time pass                   hang           do nothing for ever
//! stderr TEXT     say something as QEMU           exit N         end with that status
//! pid             say one's process id            die            end before connecting
//! ```
//!
//! `{1}`, `{2}` ... are the words of the last line that was waited for and had so many, and
//! `{1 + 0x1000}` is one with something added. QMP is answered by an empty return whatever is asked.

use cordon_qemu::expr::{Variables, substitute};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    match play() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("fake-qemu: {error}");
            ExitCode::from(99)
        }
    }
}

fn play() -> Result<ExitCode, Box<dyn Error>> {
    let script = std::fs::read_to_string(std::env::var("FAKE_QEMU_SCRIPT")?)?;
    if script.starts_with("die") {
        return Err("could not find anything".into());
    }
    let mut uart0 = connect("uart0")?.ok_or("no chardev uart0")?;
    let mut secure = connect("secure")?;
    serve_qmp(connect("qmp")?.ok_or("no chardev qmp")?);

    let mut words = Variables::new();
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let text = substitute(&rest.replace('{', "${w"), &words)?;
        match verb {
            "uart0" => writeln!(uart0, "{text}")?,
            "secure" => writeln!(secure.as_mut().ok_or("no secure UART")?, "{text}")?,
            "<uart0" => words.extend(read(&mut uart0, &text)?),
            "<secure" => words.extend(read(secure.as_mut().ok_or("no secure UART")?, &text)?),
            "sleep" => std::thread::sleep(Duration::from_millis(text.parse()?)),
            "stderr" => eprintln!("{text}"),
            "pid" => eprintln!("pid {}", std::process::id()),
            "hang" => std::thread::sleep(Duration::from_secs(600)),
            "exit" => return Ok(ExitCode::from(text.parse::<u8>()?)),
            _ => return Err(format!("no such verb: {verb}").into()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(name: &str) -> Result<Option<UnixStream>, Box<dyn Error>> {
    let wanted = format!("socket,id={name},path=");
    let argument = std::env::args().find_map(|a| a.strip_prefix(&wanted).map(str::to_owned));
    Ok(argument.map(UnixStream::connect).transpose()?)
}

fn serve_qmp(mut stream: UnixStream) {
    std::thread::spawn(move || -> std::io::Result<()> {
        writeln!(stream, "{{\"QMP\": {{}}}}")?;
        for line in BufReader::new(stream.try_clone()?).lines() {
            let known = !line?.contains("no-such");
            writeln!(
                stream,
                "{{\"{}\": {{}}}}",
                if known { "return" } else { "error" }
            )?;
        }
        Ok(())
    });
}

/// Reads lines, each ended by CR, until one begins with `wanted`.
fn read(stream: &mut UnixStream, wanted: &str) -> Result<Variables, Box<dyn Error>> {
    loop {
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            if byte == *b"\r" {
                break;
            }
            line.extend(byte);
        }
        let line = String::from_utf8(line)?;
        if line.starts_with(wanted) {
            let words = line.split_whitespace().enumerate();
            return Ok(words
                .map(|(n, word)| (format!("w{n}"), word.to_owned()))
                .collect());
        }
    }
}
