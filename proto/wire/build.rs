//! Compiles `proto/sealane/v1/*.proto` with protox: no `protoc` on the machine.
use std::error::Error;

const PROTOS: &[&str] = &[
    "common", "queue", "policy", "admin", "cluster", "state", "backup",
];

fn main() -> Result<(), Box<dyn Error>> {
    // Asked when it runs, not when it was compiled: two clones may share a target folder.
    let root = format!("{}/..", std::env::var("CARGO_MANIFEST_DIR")?);
    let files: Vec<String> = PROTOS
        .iter()
        .map(|p| format!("{root}/sealane/v1/{p}.proto"))
        .collect();
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, [&root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    tonic_prost_build::configure()
        .bytes(".")
        // The largest answer by far, and the rarest.
        .boxed(".sealane.v1.CommandReply.result.restore")
        .compile_fds(descriptors)?;
    Ok(())
}
