//! The local cluster of `make run`: real processes that outlive the command that started them.
//!
//! A folder (`.run`) holds everything: what [`crate::layout`] writes, `state.json` (which process is
//! which), `cluster.env` (the same for shells), and the sink's mail. Every command takes the
//! folder's lock, so `make kill` beside a foreground `make run` is safe.

mod banner;
mod env_file;
mod start;
mod state;
mod stop;
mod supervise;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::sink::{Sink, SinkConfig};

/// A local Sealane cluster: 3 control-plane nodes, 2 relay nodes, a TLS mail sink, a demo policy.
#[derive(Debug, Parser)]
#[command(name = "sealane-dev", version)]
pub struct Cli {
    /// Where the cluster keeps its files.
    #[arg(long, global = true, default_value = ".run", value_name = "DIR")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a fresh cluster. Mail of an earlier, stopped run is removed.
    Run(RunArgs),
    /// SIGKILL one process.
    Kill {
        /// control-plane-1..3, relay-node-1..2, sink
        name: String,
    },
    /// Start a process that does not run, with the data it had.
    Start {
        /// control-plane-1..3, relay-node-1..2, sink
        name: String,
    },
    /// Stop everything, or end one process in order (SIGTERM).
    Stop {
        /// control-plane-1..3, relay-node-1..2, sink; without it everything
        name: Option<String>,
    },
    /// Say what runs.
    Status,
    /// The mail sink alone.
    Sink(SinkArgs),
}

/// What `run` may be told. Second and later processes of a kind take the next ports.
#[derive(Debug, Args)]
struct RunArgs {
    /// Route all mail here instead of to the sink. The server there must offer STARTTLS.
    #[arg(long, value_name = "HOST:PORT")]
    destination: Option<String>,
    /// Return once mail is accepted; `stop` ends the cluster.
    #[arg(long)]
    detach: bool,
    /// Where the listeners are opened.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: std::net::IpAddr,
    /// MX listener (STARTTLS) of relay-node-1.
    #[arg(long, default_value_t = 2525, value_name = "PORT")]
    mx_port: u16,
    /// Submission listener (STARTTLS, AUTH) of relay-node-1.
    #[arg(long, default_value_t = 2587, value_name = "PORT")]
    submission_port: u16,
    /// Submissions listener (TLS from the start, AUTH) of relay-node-1.
    #[arg(long, default_value_t = 2465, value_name = "PORT")]
    submissions_port: u16,
    /// gRPC of control-plane-1.
    #[arg(long, default_value_t = 7001, value_name = "PORT")]
    control_port: u16,
    /// Metrics and probes of control-plane-1; the relay nodes' follow.
    #[arg(long, default_value_t = 7101, value_name = "PORT")]
    metrics_port: u16,
    /// The mail sink.
    #[arg(long, default_value_t = 2625, value_name = "PORT")]
    sink_port: u16,
    /// Added to every port above: a second cluster beside the first.
    #[arg(long, default_value_t = 0, value_name = "N")]
    port_offset: u16,
    /// OTLP collector (gRPC) for traces, for example http://127.0.0.1:4317
    #[arg(long, value_name = "URL")]
    otlp: Option<String>,
    /// Log filter of all processes.
    #[arg(long, default_value = "info,openraft=error", value_name = "FILTER")]
    log: String,
}

#[derive(Debug, Args)]
struct SinkArgs {
    #[arg(long, default_value = "127.0.0.1:2625")]
    listen: SocketAddr,
    /// Messages go to FOLDER/messages, one file each.
    #[arg(long)]
    folder: PathBuf,
}

/// Does what the command line says.
///
/// # Errors
/// With a text for the person at the terminal.
pub fn main(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => start::run(&cli.dir, &args),
        Command::Kill { name } => stop::kill(&cli.dir, &name),
        Command::Start { name } => start::start_one(&cli.dir, &name),
        Command::Stop { name: None } => stop::stop(&cli.dir),
        Command::Stop { name: Some(name) } => stop::stop_one(&cli.dir, &name),
        Command::Status => stop::status(&cli.dir),
        Command::Sink(args) => sink(args),
    }
}

fn sink(args: SinkArgs) -> Result<ExitCode> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut config = SinkConfig::at(args.listen, args.folder);
        config.verbose = true;
        let sink = Sink::start(config).await?;
        println!("sink listens on {}", sink.address());
        sink.forever().await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}
