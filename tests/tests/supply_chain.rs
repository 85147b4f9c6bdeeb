//! Licences, bans and sources of every dependency, by the rules of `deny.toml`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use semver::{Version, VersionReq};
use serde::Deserialize;

#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    exceptions: Vec<Exception>,
}

/// A licence that is allowed for one crate only.
#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    spec: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
    allow_git: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

impl Ban {
    fn covers(&self, name: &str, version: &str) -> bool {
        let (banned, wanted) = self.spec.split_once('@').unwrap_or((&self.spec, "*"));
        if banned != name {
            return false;
        }
        // `*` leaves out pre-releases; a ban of the whole crate does not.
        let wanted = VersionReq::parse(wanted).unwrap();
        wanted == VersionReq::STAR || wanted.matches(&Version::parse(version).unwrap())
    }
}

/// Asked when it runs, not when it was compiled: two clones may share a target folder.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&here).parent().unwrap().to_owned()
}

fn rules() -> Rules {
    basic_toml::from_str(&std::fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap()
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Metadata = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        metadata.packages.len() > 100,
        "only {} packages",
        metadata.packages.len()
    );
    metadata.packages
}

/// Name and version of what is really compiled; metadata also lists optional dependencies nobody asks for.
fn compiled() -> BTreeSet<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--locked",
            "--target",
            "all",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let found: BTreeSet<_> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((
                words.next()?.to_owned(),
                words.next()?.strip_prefix('v')?.to_owned(),
            ))
        })
        .collect();
    assert!(found.len() > 100, "only {} packages", found.len());
    found
}

/// Whether an SPDX expression can be satisfied with the allowed licences.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let ok = any_of(&words, &mut at, allowed);
    ok && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut ok = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        ok |= all_of(words, at, allowed);
    }
    ok
}

fn all_of(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut ok = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        ok &= one(words, at, allowed);
    }
    ok
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(&word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if word == "(" {
        let ok = any_of(words, at, allowed);
        *at += 1;
        return ok;
    }
    let mut licence = word.to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{word} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
        // An exception only permits more.
        return allowed.contains(&licence) || allowed.contains(word);
    }
    allowed.contains(&licence)
}

#[test]
fn every_licence_is_allowed() {
    let Licenses { allow, exceptions } = rules().licenses;
    let allowed = |package: &Package| {
        let of = exceptions.iter().filter(|e| e.name == package.name);
        let more = of.flat_map(|e| e.allow.iter().cloned());
        allow.iter().cloned().chain(more).collect()
    };
    let bad: Vec<String> = packages()
        .iter()
        .filter(|package| {
            !package
                .license
                .as_deref()
                .is_some_and(|text| satisfied(text, &allowed(package)))
        })
        .map(|package| {
            format!(
                "{} {}: {:?}",
                package.name, package.version, package.license
            )
        })
        .collect();
    assert!(
        bad.is_empty(),
        "licences that deny.toml does not allow:\n{}",
        bad.join("\n")
    );
}

#[test]
fn no_banned_version_is_used() {
    let bans = rules().bans.deny;
    let bad: Vec<String> = compiled()
        .iter()
        .filter_map(|(name, version)| {
            let ban = bans.iter().find(|ban| ban.covers(name, version))?;
            Some(format!("{name} {version}: {}", ban.reason))
        })
        .collect();
    assert!(bad.is_empty(), "banned by deny.toml:\n{}", bad.join("\n"));
}

#[test]
fn every_source_is_allowed() {
    let sources = rules().sources;
    let bad: Vec<String> = packages()
        .iter()
        .filter(|package| match &package.source {
            None => false, // a member of this workspace
            Some(source) => {
                let registry = source
                    .strip_prefix("registry+")
                    .or_else(|| source.strip_prefix("sparse+"));
                !registry
                    .is_some_and(|one| sources.allow_registry.iter().any(|allowed| allowed == one))
                    && !sources
                        .allow_git
                        .iter()
                        .any(|allowed| source.starts_with(&format!("git+{allowed}")))
            }
        })
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.source))
        .collect();
    assert!(
        bad.is_empty(),
        "sources that deny.toml does not allow:\n{}",
        bad.join("\n")
    );
}

#[test]
fn the_rules_can_fail() {
    let allowed: BTreeSet<String> = ["MIT", "Apache-2.0"].map(str::to_owned).into();
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "MIT/Apache-2.0",
        "(GPL-3.0 OR MIT) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(satisfied(good, &allowed), "{good}");
    }
    for bad in [
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT AND GPL-3.0) OR AGPL-3.0",
        "",
    ] {
        assert!(!satisfied(bad, &allowed), "{bad}");
    }
    let ban = |spec: &str, version: &str| {
        let ban = Ban {
            spec: spec.to_owned(),
            reason: String::new(),
        };
        ban.covers("openraft", version)
    };
    let alphas = "openraft@>=0.10.0-alpha.0, <0.10.0-alpha.37";
    assert!(ban("openraft@<0.9.25", "0.9.24") && !ban("openraft@<0.9.25", "0.9.25"));
    assert!(
        ban(alphas, "0.10.0-alpha.36") && !ban(alphas, "0.10.0-alpha.37") && !ban(alphas, "0.10.0")
    );
    assert!(
        ban("openraft", "0.10.0-alpha.37"),
        "a ban without a version covers pre-releases"
    );
}
