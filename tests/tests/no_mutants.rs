//! What breaks rules on purpose (`make mutants`) is in no build that anybody runs or installs.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

const CRATE: &str = "sealane-mutants";
const MARKER: &str = "sealane-mutant-build";
const PRODUCT: [&str; 3] = ["control-plane", "relay-node", "sealane"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    source: Option<String>,
    features: BTreeMap<String, Vec<String>>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    features: Vec<String>,
}

#[derive(Deserialize)]
struct Root {
    profile: BTreeMap<String, serde_json::Value>,
}

/// Asked when it runs, not when it was compiled: two clones may share a target folder.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&here).parent().unwrap().to_owned()
}

fn cargo(arguments: &[&str], target: &Path) -> Output {
    Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target)
        .env_remove("CARGO_BUILD_BUILD_DIR")
        .output()
        .unwrap()
}

/// The feature is asked for on the command line, or not at all.
#[test]
fn no_manifest_turns_the_mutants_on() {
    let output = cargo(
        &["metadata", "--format-version", "1", "--no-deps"],
        &std::env::temp_dir(),
    );
    assert!(output.status.success(), "{output:?}");
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    let ours: Vec<_> = metadata
        .packages
        .iter()
        .filter(|p| p.source.is_none())
        .collect();
    let of_the_crate = ours.iter().find(|p| p.name == CRATE).unwrap();
    let feature = BTreeMap::from([("mutants".to_owned(), Vec::new())]);
    assert_eq!(of_the_crate.features, feature, "and no default");
    let mut users = 0;
    for package in &ours {
        for dependency in package.dependencies.iter().filter(|d| d.name == CRATE) {
            assert!(dependency.features.is_empty(), "{}", package.name);
            users += 1;
        }
        let named = package.features.values().flatten();
        let named: Vec<_> = named.filter(|f| f.contains(CRATE)).collect();
        assert!(named.is_empty(), "{}: {named:?}", package.name);
    }
    assert!(users >= 5, "only {users} crates can be broken");
}

/// A build without debug assertions refuses the feature, so no profile that people install from may
/// have them.
#[test]
fn no_profile_has_debug_assertions_but_dev() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: Root = basic_toml::from_str(&text).unwrap();
    assert!(manifest.profile.contains_key("release"));
    for (name, profile) in &manifest.profile {
        assert!(!profile.to_string().contains("debug-assertions"), "{name}");
    }
    let settings = fs::read_to_string(root().join(".cargo/config.toml")).unwrap();
    for word in ["debug-assertions", "mutants", "profile"] {
        assert!(!settings.contains(word), "{word} in .cargo/config.toml");
    }
}

#[test]
fn a_release_build_with_mutants_is_refused() {
    let target = tempfile::tempdir().unwrap();
    let check = |more: &[&str]| cargo(&[&["check", "-p", CRATE], more].concat(), target.path());
    for sound in [&["--release"][..], &["--features", "mutants"][..]] {
        let output = check(sound);
        assert!(output.status.success(), "{sound:?}: {output:?}");
    }
    let output = check(&["--release", "--features", "mutants"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("never for a release"), "{said}");
}

/// Mutants' binaries do hold the marker: `make mutants` looks for it before it begins.
#[test]
fn what_was_built_for_use_holds_no_mutant() {
    let source = fs::read_to_string(root().join("proto/mutants/src/lib.rs")).unwrap();
    assert!(
        source.contains(&format!("\"{MARKER}\"")),
        "it is another one"
    );
    let debug = sealane_tests::tools::folder().unwrap();
    let release = debug.parent().unwrap().join("release");
    let mut seen = 0;
    for file in [&debug, &release]
        .map(|f| PRODUCT.map(|name| f.join(name)))
        .concat()
    {
        let Ok(octets) = fs::read(&file) else {
            continue;
        };
        let found = memchr::memmem::find(&octets, MARKER.as_bytes());
        assert_eq!(found, None, "{}", file.display());
        seen += 1;
    }
    assert!(seen >= PRODUCT.len(), "only {seen} binaries");
}
