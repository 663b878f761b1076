//! Plays scenarios against the fake QEMU.

use cordon_qemu::machine::Tools;
use cordon_qemu::outcome::{Outcome, Reason};
use cordon_qemu::scenario::Scenario;
use cordon_qemu::steps::play;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of one test's own, gone with it.
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cordon-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        std::fs::write(path.join("probe.img"), b"kernel").expect("an image");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Tools whose QEMU plays `script`.
    pub(crate) fn tools(&self, script: &str) -> Tools {
        let path = self.0.join("script");
        std::fs::write(&path, script).expect("a script");
        Tools {
            qemu: vec![env!("CARGO_BIN_EXE_fake-qemu").into()],
            env: vec![("FAKE_QEMU_SCRIPT".into(), path.into())],
            images: self.0.clone(),
            runs: self.0.join("runs"),
        }
    }

    /// What QEMU said in the run of the scenario called `name`.
    pub(crate) fn stderr(&self, name: &str) -> String {
        let path = self.0.join("runs").join(name).join("qemu.stderr");
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A scenario called `t`, with a machine and a VM, whose steps and figures are `steps`.
pub(crate) fn scenario(steps: &str) -> Scenario {
    let figures = if steps.contains("figures") {
        ""
    } else {
        "figures = []\n"
    };
    let text = format!(
        "name = \"t\"\nsummary = \"t\"\ntimeout = 20\nstep_timeout = 1\n{figures}{steps}\n\
         [machine]\nboot = \"el3\"\ncpus = 2\nmemory = \"1G\"\ndevice-memory = [\"2G\"]\n\
         [[vm]]\nname = \"probe\"\nvcpus = 2\nram = \"64M\"\nkernel = \"probe.img\"\n"
    )
    .replace("step_timeout", "step-timeout");
    Scenario::parse(Path::new("t.toml"), &text)
        .expect("a good scenario")
        .remove(0)
}

/// One of the scenarios that are shipped, with short patience.
pub(crate) fn shipped(name: &str) -> Scenario {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scenarios")
        .join(format!("{name}.toml"));
    let mut scenario = Scenario::load(&file).expect("a good scenario").remove(0);
    scenario.step_timeout = 1;
    for step in &mut scenario.step {
        step.timeout = None;
        step.pause = step.pause.map(|_| 10);
    }
    scenario
}

/// Plays `scenario` against `script`.
pub(crate) fn played(scenario: &Scenario, script: &str) -> Outcome {
    play(&Place::new().tools(script), scenario, None, &mut |_| {})
}

/// Plays and wants it to fail for `reason`; returns what it says.
pub(crate) fn fails(scenario: &Scenario, script: &str, reason: Reason) -> String {
    match played(scenario, script).result {
        Ok(figures) => panic!("passed with {figures:?}"),
        Err(failure) => {
            assert_eq!(failure.reason, reason, "{failure:?}");
            failure.what
        }
    }
}
