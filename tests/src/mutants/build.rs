//! One build that holds all mutants, beside the one that holds none.
//!
//! Cargo's intermediate files are shared (`build-dir`): only the crates that can be broken are compiled
//! again, RocksDB is not. The binaries go to a folder of their own, so that what `make run` and `make test`
//! start never is a mutant.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tokio::process::Command;

use crate::tools;

/// In every binary that can break a rule (`sealane_mutants::MARKER`).
const MARKER: &[u8] = b"sealane-mutant-build";
/// Those that link a crate which can be broken.
const BREAKABLE: [&str; 3] = ["control-plane", "relay-node", "sealane-sim"];

const ALL: &[&str] = &["build", "--bins", "--tests"];
const LIBRARIES: &[&str] = &["test", "--no-run", "--lib", "--test", "decision_table"];

/// A test executable.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) executable: PathBuf,
    /// The folder of its package: where Cargo would run it.
    pub(super) folder: PathBuf,
}

/// What was built.
#[derive(Debug)]
pub(super) struct Built {
    /// The mutants' binaries.
    pub(super) folder: PathBuf,
    /// By target.
    pub(super) tests: BTreeMap<String, Test>,
    /// Mutants' binaries with the marker: all of them.
    pub(super) marked: usize,
    /// Binaries without the feature, and without the marker: all of them.
    pub(super) clean: usize,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Whether a file has the marker in it.
fn is_marked(file: &Path) -> Result<bool> {
    let octets = fs::read(file).with_context(|| file.display().to_string())?;
    Ok(memchr::memmem::find(&octets, MARKER).is_some())
}

impl Built {
    /// Builds; unless it is quick, which has tests of libraries only, looks for the marker on both sides.
    pub(super) async fn make(quick: bool) -> Result<Self> {
        ensure!(
            Path::new("Cargo.lock").is_file(),
            "to be run in the root of the clone (make mutants does)"
        );
        let normal = tools::folder()?;
        let shared = normal.parent().context("the target folder")?.to_owned();
        let target = shared.join("mutants");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        let output = Command::new(cargo)
            .args(if quick { LIBRARIES } else { ALL })
            .args([
                "--workspace",
                "--locked",
                "--features",
                "sealane-mutants/mutants",
            ])
            .arg("--message-format=json-render-diagnostics")
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_BUILD_BUILD_DIR", &shared)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .await
            .context("cargo")?;
        if !output.status.success() {
            bail!("cargo build with the feature ended with {}", output.status);
        }
        let mut built = Self {
            folder: target.join("debug"),
            tests: tests(&output.stdout)?,
            marked: 0,
            clean: 0,
        };
        if !quick {
            built.look_for_markers(&normal)?;
        }
        Ok(built)
    }

    fn look_for_markers(&mut self, normal: &Path) -> Result<()> {
        for name in BREAKABLE {
            let (mutant, product) = (self.folder.join(name), normal.join(name));
            ensure!(
                is_marked(&mutant)?,
                "{} holds no mutants: the build is not what it should be",
                mutant.display()
            );
            self.marked += 1;
            ensure!(!is_marked(&product)?, "{} holds mutants", product.display());
            self.clean += 1;
        }
        Ok(())
    }

    /// The test executable of a target.
    pub(super) fn test(&self, target: &str) -> Result<&Test> {
        self.tests
            .get(target)
            .with_context(|| format!("no test target is named {target}"))
    }
}

/// The test executables that Cargo names.
fn tests(said: &[u8]) -> Result<BTreeMap<String, Test>> {
    let mut found = BTreeMap::new();
    for line in said.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let message: Message = serde_json::from_slice(line).context("what Cargo says")?;
        if message.reason != "compiler-artifact" || !message.profile.is_some_and(|p| p.test) {
            continue;
        }
        if let (Some(target), Some(executable), Some(manifest)) =
            (message.target, message.executable, message.manifest_path)
        {
            let folder = manifest.parent().context("manifest_path")?.to_owned();
            found.insert(target.name, Test { executable, folder });
        }
    }
    Ok(found)
}
