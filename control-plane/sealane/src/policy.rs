//! `sealane policy`.
use crate::{Connection, Output};
use anyhow::{Context, ensure};
use clap::Subcommand;
use rand::Rng;
use sealane_wire::v1::{self, policy_client::PolicyClient};
use std::io::{BufRead, IsTerminal, Read};

/// Octets.
const LONGEST_PASSWORD: u64 = 1024;

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
    /// The verifier of a password (argon2id in PHC form), which a policy or a Secret may have instead of it.
    ///
    /// Asks twice on a terminal, and shows nothing; otherwise the password is the first line of standard input. The
    /// password goes nowhere, and no cluster is asked.
    ///
    ///   sealane policy verifier
    ///   kubectl -n mail create secret generic submitters --from-literal=app="$(sealane policy verifier)"
    #[command(verbatim_doc_comment)]
    Verifier,
}

fn salt() -> [u8; 16] {
    rand::rng().random()
}

/// One line of standard input, or what somebody types twice.
fn ask_password() -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        return first_line(std::io::stdin().lock());
    }
    let password = rpassword::prompt_password("Password: ")?;
    let again = rpassword::prompt_password("The same again: ")?;
    ensure!(password == again, "the passwords differ: nothing is made");
    checked(password)
}

fn first_line(input: impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    // Room for a line end.
    let read = input.take(LONGEST_PASSWORD + 2).read_line(&mut line);
    read.context("standard input, the password")?;
    checked(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn checked(password: String) -> anyhow::Result<String> {
    ensure!(!password.is_empty(), "the password is empty");
    ensure!(
        u64::try_from(password.len())? <= LONGEST_PASSWORD,
        "the password is longer than {LONGEST_PASSWORD} octets"
    );
    Ok(password)
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
        PolicyCommand::Verifier => {
            let verifier = sealane_policy::hash_password(&ask_password()?, &salt())
                .map_err(anyhow::Error::msg)?;
            // Plain in a pipe too: it is for Secrets and files.
            match asked {
                Some(Output::Json) => {
                    println!("{}", serde_json::json!({ "passwordVerifier": verifier }));
                }
                _ => println!("{verifier}"),
            }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line_that_is_neither_empty_nor_endless() {
        for text in ["säkret", "säkret\n", "säkret\r\nanother\n"] {
            assert_eq!(first_line(text.as_bytes()).unwrap(), "säkret");
        }
        assert!(first_line("".as_bytes()).is_err());
        assert!(first_line("\nsecond".as_bytes()).is_err());
        assert!(first_line(&b"\xff\n"[..]).is_err());
        let longest = "x".repeat(1024);
        assert_eq!(
            first_line(format!("{longest}\r\n").as_bytes()).unwrap(),
            longest
        );
        assert!(first_line(format!("{longest}x").as_bytes()).is_err());
        assert!(first_line("x".repeat(5000).as_bytes()).is_err());
    }
}
