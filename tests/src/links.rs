//! The network between processes, in user space: who speaks to a control-plane node speaks through here.
//!
//! Each node advertises a listener of this process, which passes octets on to where the node listens. The
//! address of a namespace says which process opened a connection, or the kernel does (`/proc/net/tcp` and the
//! sockets of its pid), so each
//! direction between two processes can be cut or delayed by itself. A cut holds octets back, as a
//! network that drops packets does: what was sent arrives after the cut is healed, if anybody still waits.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How often a held connection looks whether it may go on.
const LOOK: Duration = Duration::from_millis(20);

/// What happens to octets from one process to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Nothing passes.
    Cut,
    /// Everything is late.
    Late(Duration),
}

#[derive(Debug, Default)]
struct Shared {
    /// By names, from and to; what is not here passes.
    weather: Mutex<BTreeMap<(String, String), Weather>>,
    pids: Mutex<BTreeMap<u32, String>>,
    /// Addresses that only one process has.
    homes: Mutex<BTreeMap<IpAddr, String>>,
    /// Pieces of a connection that were held or late.
    touched: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All listeners of a cluster. Dropping it closes them and every connection.
#[derive(Debug)]
pub struct Links {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Links {
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    /// Opens the way to a node: `at` is what it advertises, `to` where it listens.
    ///
    /// # Errors
    /// When the address is taken.
    pub async fn open(&mut self, name: &str, at: SocketAddr, to: SocketAddr) -> Result<()> {
        let listener = TcpListener::bind(at).await?;
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, peer)) = accepted else { continue };
                        connections.spawn(pass(Arc::clone(&shared), name.clone(), stream, peer, to));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(())
    }

    /// Whoever comes from this address is the process of this name.
    pub fn lives_at(&self, name: &str, address: IpAddr) {
        lock(&self.shared.homes).insert(address, name.to_owned());
    }

    /// The process of this name has this pid now.
    pub fn runs(&self, name: &str, pid: u32) {
        let mut pids = lock(&self.shared.pids);
        pids.retain(|_, known| known != name);
        pids.insert(pid, name.to_owned());
    }

    /// Sets the weather from one process to another.
    pub fn set(&self, from: &str, to: &str, weather: Weather) {
        lock(&self.shared.weather).insert((from.to_owned(), to.to_owned()), weather);
    }

    /// Everything passes again.
    pub fn heal(&self) {
        lock(&self.shared.weather).clear();
    }

    /// How many pieces were held or late since the start.
    #[must_use]
    pub fn touched(&self) -> u64 {
        self.shared.touched.load(Ordering::SeqCst)
    }
}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

async fn pass(
    shared: Arc<Shared>,
    to_name: String,
    stream: TcpStream,
    peer: SocketAddr,
    to: SocketAddr,
) {
    let from_name = opened_by(&shared, peer).unwrap_or_default();
    let Ok(onward) = TcpStream::connect(to).await else {
        return;
    };
    let _faster = (stream.set_nodelay(true), onward.set_nodelay(true));
    let (read, write) = stream.into_split();
    let (onward_read, onward_write) = onward.into_split();
    let there = (from_name.clone(), to_name.clone());
    let back = (to_name, from_name);
    tokio::select! {
        _ = copy(&shared, read, onward_write, &there) => {}
        _ = copy(&shared, onward_read, write, &back) => {}
    }
}

async fn copy(
    shared: &Shared,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    link: &(String, String),
) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        let mut touched = false;
        loop {
            let weather = lock(&shared.weather).get(link).copied();
            if weather.is_some() && !touched {
                touched = true;
                shared.touched.fetch_add(1, Ordering::SeqCst);
            }
            match weather {
                None => break,
                Some(Weather::Late(time)) => {
                    tokio::time::sleep(time).await;
                    break;
                }
                Some(Weather::Cut) => tokio::time::sleep(LOOK).await,
            }
        }
        to.write_all(buffer.get(..length).unwrap_or_default())
            .await?;
    }
}

/// The name of the process that has the other end of a loopback connection.
fn opened_by(shared: &Shared, peer: SocketAddr) -> Option<String> {
    if let Some(name) = lock(&shared.homes).get(&peer.ip()) {
        return Some(name.clone());
    }
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{:04X}", peer.port());
    let line = table
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some(&local))?;
    let socket = format!("socket:[{}]", line.split_whitespace().nth(9)?);
    let pids = lock(&shared.pids).clone();
    pids.into_iter().find_map(|(pid, name)| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let mut targets = open
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        targets
            .any(|target| target.as_os_str() == socket.as_str())
            .then_some(name)
    })
}
