//! Where the programs of Kubernetes are, and our own files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Folder of the programs, as `tests/kubernetes/build` makes it.
const FOLDER: &str = "KUBEBUILDER_ASSETS";

/// Programs that the tests use.
const PROGRAMS: [&str; 5] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kubectl",
    "helm",
];

/// The folder that has all programs.
///
/// # Errors
/// When it is not named or one is missing: these tests are run by `make test-k8s`.
pub fn folder() -> Result<PathBuf> {
    let folder = std::env::var_os(FOLDER)
        .map(PathBuf::from)
        .with_context(|| format!("{FOLDER} is not set: run `make test-k8s`"))?;
    for program in PROGRAMS {
        ensure!(
            folder.join(program).is_file(),
            "{} is missing: run `make test-k8s`, which builds it",
            folder.join(program).display()
        );
    }
    Ok(folder)
}

/// The clone. Asked when it runs, not when it was compiled: two clones may share a target folder.
///
/// # Errors
/// When this was not started by Cargo.
pub fn clone() -> Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR: start this with cargo test")?;
    let root = Path::new(&here)
        .parent()
        .context("the folder above tests/")?;
    Ok(root.to_owned())
}

/// The chart.
///
/// # Errors
/// As [`clone`].
pub fn chart() -> Result<PathBuf> {
    Ok(clone()?.join("charts/sealane"))
}
