//! `cargo xtask image`: a disk that UEFI starts Cordon from, with the VMs of a scenario.

use crate::{guests, images, run, workspace};
use anyhow::{Context, Result};
use cordon_qemu::{bundle, scenario, volume};
use std::fs;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Whose VMs, and whose words for Cordon.
    #[arg(default_value = "boot-uefi")]
    scenario: String,
    /// Where the image goes; otherwise target/images/SCENARIO.disk
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// Builds what the scenario needs, and the image.
pub(crate) fn image(args: &Args) -> Result<()> {
    let all = scenario::load_all(&workspace::scenarios())?;
    let scenario = run::find(&all, &args.scenario)?;
    images::build()?;
    if guests::wanted([scenario]) {
        guests::ensure()?;
    }
    let images = workspace::images();
    let bundle = match scenario.has_bundle() {
        true => Some(bundle::build(scenario, &images)?),
        false => None,
    };
    let program = images.join("cordon.img");
    let program =
        fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let cmdline = scenario.machine.cmdline.as_ref();
    let cmdline = cmdline.map(|line| line.as_ref().as_str());
    let disk = volume::image(&program, bundle.as_deref(), cmdline)?;
    let path =
        (args.output.clone()).unwrap_or_else(|| images.join(format!("{}.disk", args.scenario)));
    fs::write(&path, &disk).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{:>6} KiB  {}", disk.len() / 1024, path.display());
    Ok(())
}
