//! Mounts a file system that forgets what was not synced; see the library.
#![forbid(unsafe_code)]

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use sealane_powerloss::fuse::{Mounted, Shared};
use sealane_powerloss::{Volume, control};
use tokio::signal::unix::{SignalKind, signal};

/// A file system for tests of durability. SIGTERM unmounts it, and everything in it is gone.
#[derive(Debug, Parser)]
struct Args {
    /// Folder to mount it on.
    #[arg(long)]
    mount: PathBuf,
    /// Folder for what is durable.
    #[arg(long)]
    backing: PathBuf,
    /// Socket that takes commands.
    #[arg(long)]
    control: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    for folder in [&args.mount, &args.backing] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let volume = Shared::new(Volume::new(args.backing));
    let mounted = Mounted::new(&volume, &args.mount)
        .with_context(|| format!("mounting {}", args.mount.display()))?;
    // Opened last: who can connect can use the file system.
    let listener = UnixListener::bind(&args.control)
        .with_context(|| format!("control: {}", args.control.display()))?;
    std::thread::spawn(move || control::serve(&listener, &volume));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        anyhow::Ok(())
    })?;
    drop(mounted);
    Ok(())
}
