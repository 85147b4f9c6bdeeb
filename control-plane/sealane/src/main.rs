//! `sealane`: the admin command line. Speaks gRPC to the control plane; keeps nothing.
#![forbid(unsafe_code)]

mod backup;
mod connect;
mod leaders;
mod node;
mod pki;
mod policy;
mod restore;
mod show;
mod survey;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sealane_wire::v1::{change_messages_request::Action, change_node_request::Action as Change};
use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

/// Administers a Sealane cluster.
///
/// Tell it once where the cluster is and who you are:
///
///   export SEALANE_CONTROL=127.0.0.1:7001,127.0.0.1:7002
///   export SEALANE_CERT=pki/me.crt SEALANE_KEY=pki/me.key SEALANE_CA=pki/ca.crt
///
/// Then: sealane cluster status · sealane queue list · sealane policy apply -f policy.yaml
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment)]
struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// Form of the output; default: table on a terminal, json in a pipe.
    #[arg(short, long, global = true, value_enum)]
    output: Option<Output>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Debug, Clone)]
struct Connection {
    /// Control-plane gRPC addresses, comma-separated; tried in turn.
    #[arg(long, global = true, env = "SEALANE_CONTROL", value_delimiter = ',')]
    control: Vec<String>,
    /// Your certificate (role admin or viewer).
    #[arg(long, global = true, env = "SEALANE_CERT")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, global = true, env = "SEALANE_KEY")]
    key: Option<PathBuf>,
    /// The cluster's CA.
    #[arg(long, global = true, env = "SEALANE_CA")]
    ca: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Table,
    Json,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a CA and identities for clusters outside of Kubernetes.
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// The cluster as a whole.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Control-plane and relay nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Waiting mail.
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Domains served, submitters, destinations.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// A copy of everything: waiting mail with its bodies, policy.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Put a backup into a fresh cluster.
    ///
    /// The whole file is verified first; a damaged one is refused before anything is sent. The cluster
    /// must be fresh: no policy was ever applied and no message ever accepted, and it needs at least as
    /// many shards as the backup has. An interrupted restore goes on where it stopped when it is run again.
    ///
    /// Mail that was delivered after the backup was made is delivered again. To look before anything
    /// leaves, hold it, then release what is to go:
    ///
    ///   sealane restore nightly.backup --hold "restored, not checked yet" --yes
    ///   sealane queue list
    ///   sealane queue release 0c3d...
    #[command(verbatim_doc_comment)]
    Restore(restore::RestoreArgs),
}

#[derive(Subcommand, Debug)]
enum ClusterCommand {
    /// Raft groups, their leaders, voters and waiting mail.
    Status,
}

#[derive(Subcommand, Debug)]
enum NodeCommand {
    /// Every node, its state, the queue shards with a replica on it and led by it (as they are / as they are to be).
    List,
    /// Place replicas on a spare: they move there one at a time, and leaders with them.
    Add {
        /// As in `node list`.
        node: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Move a node's replicas to the others, then remove it for good. It works on until it is removed.
    Remove {
        /// As in `node list`; where a name was used twice, the id.
        node: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give the places of a node whose volume is lost to another node. The old id is never valid again.
    Replace {
        /// The lost one, as in `node list`; where a name was used twice, the id.
        node: String,
        /// The spare that takes its places. Without it: the oldest spare, or the next node that joins.
        #[arg(long)]
        with: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Args, Debug, Clone, Copy)]
struct Wait {
    /// Return once the change is decided; the replicas move meanwhile. Without it: wait until they have.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Subcommand, Debug)]
enum QueueCommand {
    /// Waiting messages, oldest first.
    List {
        /// Only those with a recipient in this domain.
        #[arg(long, default_value = "")]
        destination: String,
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// One message: envelope, recipients, last replies, entry record.
    Show {
        /// 26 characters, as in the Received header and in `queue list`.
        id: String,
    },
    /// Hold messages: they are not attempted until they are released. They still expire.
    Hold {
        /// As in `queue list`.
        #[arg(required = true)]
        ids: Vec<String>,
        /// Why: shown with the message, and audited.
        #[arg(long)]
        reason: String,
    },
    /// Let held messages go on: they are due at once.
    Release {
        /// As in `queue list`.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Return messages to their senders now, with a non-delivery report, as if their time had run out.
    Return {
        /// As in `queue list`.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(r) => r,
        Err(e) => {
            eprintln!("sealane: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("sealane: {e:#}");
            let input = e.downcast_ref::<sealane_policy::PolicyError>().is_some();
            ExitCode::from(if input {
                sealane_runtime::exit_code::CONFIG
            } else {
                1
            })
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let default = if std::io::stdout().is_terminal() {
        Output::Table
    } else {
        Output::Json
    };
    let output = cli.output.unwrap_or(default);
    match cli.command {
        Command::Pki(c) => pki::run(c),
        Command::Cluster(ClusterCommand::Status) => {
            show::cluster_status(&cli.connection, output).await
        }
        Command::Node(NodeCommand::List) => node::list(&cli.connection, output).await,
        Command::Node(NodeCommand::Add { node, wait }) => {
            node::change(
                &cli.connection,
                output,
                Change::Add,
                node,
                String::new(),
                wait,
            )
            .await
        }
        Command::Node(NodeCommand::Remove { node, wait }) => {
            node::change(
                &cli.connection,
                output,
                Change::Remove,
                node,
                String::new(),
                wait,
            )
            .await
        }
        Command::Node(NodeCommand::Replace { node, with, wait }) => {
            let with = with.unwrap_or_default();
            node::change(&cli.connection, output, Change::Replace, node, with, wait).await
        }
        Command::Queue(QueueCommand::List { destination, limit }) => {
            show::queue_list(&cli.connection, output, destination, limit).await
        }
        Command::Queue(QueueCommand::Show { id }) => {
            show::queue_show(&cli.connection, output, id).await
        }
        Command::Queue(QueueCommand::Hold { ids, reason }) => {
            show::queue_change(&cli.connection, output, Action::Hold, ids, reason).await
        }
        Command::Queue(QueueCommand::Release { ids }) => {
            show::queue_change(&cli.connection, output, Action::Release, ids, String::new()).await
        }
        Command::Queue(QueueCommand::Return { ids }) => {
            show::queue_change(&cli.connection, output, Action::Return, ids, String::new()).await
        }
        Command::Policy(c) => policy::run(c, &cli.connection, cli.output, output).await,
        Command::Backup(c) => Box::pin(backup::run(c, &cli.connection, output)).await,
        Command::Restore(args) => Box::pin(restore::run(args, &cli.connection, output)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{Command, CommandFactory};

    fn teaches(command: &Command, path: &str) {
        assert!(command.get_about().is_some(), "{path} says nothing");
        for a in command.get_arguments() {
            assert!(
                a.get_help().is_some(),
                "{path}: {} says nothing",
                a.get_id()
            );
        }
        for c in command.get_subcommands() {
            teaches(c, &format!("{path} {}", c.get_name()));
        }
    }

    #[test]
    fn every_command_and_flag_says_what_it_does() {
        Cli::command().debug_assert();
        teaches(&Cli::command(), "sealane");
    }
}
