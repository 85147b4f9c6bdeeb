//! The image's root file system, as the Dockerfile makes it: its programs run in it alone, and nothing else is there.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use sealane_tests::kubernetes::assets;
use sealane_tests::kubernetes::manifests::{items, text};
use sealane_tests::tools;
use serde_json::Value;

fn files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.push(path);
        }
    }
}

#[test]
fn the_image_has_what_its_programs_need_and_nothing_else() {
    let root = assets::clone().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    tools::run(
        Command::new(root.join(".ci/image-root"))
            .arg(tools::folder().unwrap())
            .arg(&out),
    )
    .unwrap();

    let mut all = Vec::new();
    files(&out, &mut all);
    let mut names = Vec::new();
    for file in &all {
        let name = file.strip_prefix(&out).unwrap().display().to_string();
        let mode = fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o6000, 0, "{name} changes its user or group");
        let allowed = [
            "usr/local/bin/",
            "lib/",
            "lib64/",
            "usr/lib/",
            "etc/",
            "usr/share/doc/sealane/",
        ];
        assert!(
            allowed.iter().any(|place| name.starts_with(place)),
            "{name}"
        );
        names.push(name);
    }
    assert!(
        !names
            .iter()
            .any(|n| n.ends_with("/sh") || n.ends_with("/bash") || n.contains("busybox")),
        "{names:?}"
    );
    assert!(
        names.iter().any(|n| n.contains("ld-linux")),
        "no loader: {names:?}"
    );

    let programs = [
        "control-plane",
        "relay-node",
        "operator",
        "sealane",
        "sealane-probe",
    ];
    let there = names
        .iter()
        .filter(|n| n.starts_with("usr/local/bin/"))
        .count();
    assert_eq!(there, programs.len(), "{names:?}");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        for program in programs {
            let mut alone = Command::new("/usr/sbin/chroot");
            alone
                .arg("--userspec=65532:65532")
                .arg(&out)
                .arg(format!("/usr/local/bin/{program}"))
                .arg("--version");
            let said = tools::run(&mut alone).unwrap();
            assert!(
                String::from_utf8_lossy(&said.stdout).contains("0.1.0"),
                "{said:?}"
            );
        }
    } else {
        eprintln!("not root: the programs were not run in it");
    }

    let list = fs::read_to_string(out.join("usr/share/doc/sealane/sbom.cdx.json")).unwrap();
    assert!(
        !list.contains(root.to_str().unwrap()),
        "a path of this machine"
    );
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(text(&list, "/bomFormat"), "CycloneDX");
    let of = |purl: &str| {
        items(&list, "/components")
            .filter(|c| text(c, "/purl").starts_with(purl))
            .count()
    };
    assert!(of("pkg:cargo/") > 200, "{} crates", of("pkg:cargo/"));
    assert!(of("pkg:deb/debian/libc6@") == 1, "libc is not named");
    for wanted in ["tokio", "rustls", "openraft", "librocksdb-sys"] {
        let found = items(&list, "/components").find(|c| text(c, "/name") == wanted);
        let found = found.unwrap_or_else(|| panic!("{wanted} is not named"));
        assert!(
            items(found, "/hashes").next().is_some() && items(found, "/licenses").next().is_some(),
            "{found}"
        );
    }
}
