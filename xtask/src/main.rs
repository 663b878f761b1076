//! Builds, fetches, runs and tests everything: `cargo xtask help`.

mod bench;
mod checks;
mod compare;
mod debian;
mod fuzz;
mod guests;
mod image;
mod images;
mod kernel;
mod loaders;
mod qemu;
mod run;
mod shell;
mod test;
mod toolchain;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, fetches, runs and tests Cordon.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = ENVIRONMENT)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const ENVIRONMENT: &str = "Environment:
  CORDON_QEMU           a qemu-system-aarch64 of your own, 10.0 or later, in place of Debian's
  CORDON_DEBIAN_MIRROR  where to get Debian's QEMU, in place of what apt is configured with";

#[derive(Subcommand)]
enum Command {
    /// Get what is needed: the bare-metal target and llvm-tools by rustup, QEMU from Debian.
    ///
    /// Every other command does this by itself. Nothing outside of target/ and of the Rust
    /// toolchain is changed, and no root is needed.
    Setup,
    /// Build the images: Cordon, its firmware, and the bare-metal guests.
    Build,
    /// Make an image for a USB stick or a VM that UEFI starts Cordon from.
    Image(image::Args),
    /// Build, boot a machine, and play a scenario on it.
    Run(run::Args),
    /// Count what things cost, in instructions and bytes, beside goals and other hypervisors.
    Bench(bench::Args),
    /// Everything that CI does: formatting, lints, host tests, Miri, fuzzing, all scenarios.
    Test(test::Args),
}

fn main() -> ExitCode {
    match dispatch(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Does what was asked. `false` means that something was tried and found wanting.
fn dispatch(cli: &Cli) -> Result<bool> {
    cordon_qemu::interrupt::install()?;
    if let Command::Run(args) = &cli.command
        && args.list
    {
        return run::list().map(|()| true);
    }
    let _lock = workspace::lock()?;
    match &cli.command {
        Command::Setup => {
            toolchain::ensure()?;
            println!("Rust: the bare-metal target and llvm-tools are there");
            println!("QEMU: {}", qemu::ensure()?.version);
            images::build()?;
            println!("Linux: {}", guests::ensure()?);
            for loader in &loaders::ALL {
                println!("{}", loader.ensure()?);
            }
            Ok(true)
        }
        Command::Build => {
            for image in images::build()? {
                println!("{image}");
            }
            Ok(true)
        }
        Command::Image(args) => image::image(args).map(|()| true),
        Command::Run(args) => run::run(args),
        Command::Bench(args) => bench::bench(args),
        Command::Test(args) => test::test(args),
    }
}
