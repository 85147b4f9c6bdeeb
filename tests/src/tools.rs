//! Where the binaries are.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// The folder that `cargo build --bins` fills, found beside the running executable.
///
/// # Errors
/// When a binary of the product is missing there.
pub fn folder() -> Result<PathBuf> {
    let me = std::env::current_exe().context("path of this executable")?;
    let mut folder = me.parent().context("folder of this executable")?.to_owned();
    if folder.ends_with("deps") {
        folder.pop();
    }
    for name in [
        "control-plane",
        "relay-node",
        "sealane",
        "sealane-dev",
        "sealane-powerloss-fs",
    ] {
        if !folder.join(name).is_file() {
            bail!(
                "{} is missing: run `cargo build --bins` first (make test does)",
                folder.join(name).display()
            );
        }
    }
    Ok(folder)
}

/// Runs a command to its end and gives its output.
///
/// # Errors
/// When it cannot be started or ends with a failure; the error carries what it printed.
pub fn run(command: &mut Command) -> Result<Output> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        bail!(
            "{shown} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(output)
}

/// Whether an executable of this name is on the PATH or in the system folders.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
                .iter()
                .map(PathBuf::from),
        )
        .map(|folder| folder.join(name))
        .find(|candidate| is_file(candidate))
}

fn is_file(path: &Path) -> bool {
    path.is_file()
}
