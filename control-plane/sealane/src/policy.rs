//! `sealane policy`.
use crate::{Connection, Output};
use anyhow::Context;
use clap::Subcommand;
use rand::RngCore;
use sealane_wire::v1::{self, policy_client::PolicyClient};
use std::io::Read;

#[derive(Subcommand, Debug)]
pub(crate) enum PolicyCommand {
    /// Apply documents: all or nothing. Documents that are not named stay.
    ///
    /// Example: sealane policy apply -f policy.yaml --dry-run
    Apply {
        /// YAML file; - is standard input.
        #[arg(short, long)]
        file: String,
        /// Only say what would change.
        #[arg(long)]
        dry_run: bool,
        /// Refuse unless the policy is at this revision.
        #[arg(long, default_value_t = 0)]
        expected_revision: u64,
        /// Remove a document, as Kind/name.
        #[arg(long)]
        remove: Vec<String>,
    },
    /// The policy in force, as YAML that `apply` takes back; -o json gives the same as JSON.
    Get,
}

pub(crate) async fn run(
    command: PolicyCommand,
    connection: &Connection,
    asked: Option<Output>,
    output: Output,
) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Apply {
            file,
            dry_run,
            expected_revision,
            remove,
        } => {
            let mut text = String::new();
            if file == "-" {
                std::io::stdin().read_to_string(&mut text)?;
            } else {
                text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
            }
            let mut salt = || {
                let mut s = [0; 16];
                rand::rng().fill_bytes(&mut s);
                s
            };
            let documents = sealane_policy::parse_yaml(&text, &file, &mut salt)?;
            let request = v1::PolicyApplyRequest {
                documents: documents.iter().map(|d| d.wire().clone()).collect(),
                expected_revision,
                dry_run,
                remove,
            };
            let reply = connection
                .first(|c| {
                    let request = request.clone();
                    async move { PolicyClient::new(c).apply(request).await }
                })
                .await?;
            if output == Output::Json {
                println!(
                    "{}",
                    serde_json::json!({
                        "revision": reply.revision, "dryRun": dry_run, "created": reply.created,
                        "updated": reply.updated, "removed": reply.removed, "unchanged": reply.unchanged,
                    })
                );
                return Ok(());
            }
            let verb = if dry_run { "would be " } else { "" };
            for (what, keys) in [
                ("created", &reply.created),
                ("updated", &reply.updated),
                ("removed", &reply.removed),
                ("unchanged", &reply.unchanged),
            ] {
                keys.iter().for_each(|k| println!("{k} {verb}{what}"));
            }
            println!("revision {}", reply.revision);
        }
        PolicyCommand::Get => {
            let set = connection
                .first(|c| async move { PolicyClient::new(c).get(v1::PolicyGetRequest {}).await })
                .await?;
            match asked {
                Some(Output::Json) => {
                    let documents = sealane_policy::readable(&set.documents);
                    println!(
                        "{}",
                        serde_json::json!({ "revision": set.revision, "documents": documents })
                    );
                }
                _ => print!(
                    "# revision {}\n{}",
                    set.revision,
                    sealane_policy::to_yaml(&set.documents)
                ),
            }
        }
    }
    Ok(())
}
