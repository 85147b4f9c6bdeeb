//! `run` and `start`.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::process::{Child, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::state::{RunFolder, SINK, State};
use super::{RunArgs, banner, runtime, stop, supervise};
use crate::cluster::{http_ok, settled};
use crate::layout::{ControlPlane, Layout, Relay, Settings};
use crate::{policy, tools};

const CONTROL_PLANES: u16 = 3;
const RELAYS: u16 = 2;
/// How long the start may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// First retries come soon: people wait for them. The last delay repeats.
const DELAYS: &str = "[5s, 10s, 30s, 1m, 5m, 15m, 30m, 1h]";

/// Starts a fresh cluster and, unless detached, watches it until Ctrl-C.
pub(super) fn run(dir: &Path, args: &RunArgs) -> Result<ExitCode> {
    let folder = RunFolder::open(dir, true)?;
    if let Some(state) = folder.load()?
        && !state.processes.is_empty()
    {
        eprintln!(
            "A cluster runs already in {}:\n{}",
            folder.path.display(),
            banner::processes(&state)
        );
        eprintln!(
            "Stop it with `make stop`, or start another one beside it:\n  make run ARGS=\"--dir .run2 --port-offset 1000\""
        );
        return Ok(ExitCode::FAILURE);
    }
    let mut state = plan(&folder, args)?;
    free_ports(&state)?;
    folder.clear()?;
    // From here on the folder is a run's: a failure leaves it recognisable.
    folder.save(&state)?;
    state.layout.write()?;
    let interrupt = supervise::Interrupt::install()?;
    let mut children = Vec::new();
    let came_up = bring_up(&folder, &mut state, &mut children, &interrupt);
    if let Err(error) = came_up {
        stop::all(&folder, &mut state, &mut children)?;
        return Err(error);
    }
    println!("{}", banner::welcome(&state, &folder.path, args.detach));
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    state.supervisor = crate::process::ProcessId::of(std::process::id());
    folder.save(&state)?;
    let path = folder.path.clone();
    drop(folder);
    supervise::watch(&path, children, &interrupt)
}

/// Addresses and files of the cluster to be.
fn plan(folder: &RunFolder, args: &RunArgs) -> Result<State> {
    let address = |base: u16, index: u16| -> Result<SocketAddr> {
        let port = u32::from(base) + u32::from(args.port_offset) + u32::from(index);
        let port = u16::try_from(port)
            .ok()
            .with_context(|| format!("there is no port {port}"))?;
        Ok(SocketAddr::new(args.host, port))
    };
    let control_planes: Vec<ControlPlane> = (0..CONTROL_PLANES)
        .map(|index| {
            Ok(ControlPlane {
                namespace: None,
                name: format!("control-plane-{}", index + 1),
                listen: address(args.control_port, index)?,
                advertise: None,
                metrics: address(args.metrics_port, index)?,
            })
        })
        .collect::<Result<_>>()?;
    let relays = (0..RELAYS)
        .map(|index| {
            Ok(Relay {
                namespace: None,
                name: format!("relay-node-{}", index + 1),
                mx: address(args.mx_port, index)?,
                submission: address(args.submission_port, index)?,
                submissions: address(args.submissions_port, index)?,
                metrics: address(args.metrics_port, CONTROL_PLANES + index)?,
            })
        })
        .collect::<Result<_>>()?;
    let sink = address(args.sink_port, 0)?;
    let destination = match &args.destination {
        None => sink,
        Some(text) => text
            .to_socket_addrs()
            .with_context(|| format!("--destination {text}: not HOST:PORT"))?
            .next()
            .with_context(|| format!("--destination {text}: has no address"))?,
    };
    Ok(State {
        layout: Layout {
            root: folder.path.clone(),
            binaries: tools::folder()?,
            cluster: "demo".to_owned(),
            founders: control_planes.len(),
            control_planes,
            relays,
            settings: Settings {
                lease: "15s".to_owned(),
                otlp: args.otlp.clone(),
                log_filter: args.log.clone(),
                ..Settings::default()
            },
        },
        sink,
        destination,
        processes: std::collections::BTreeMap::new(),
        supervisor: None,
    })
}

/// Refuses to start on ports that somebody listens on.
fn free_ports(state: &State) -> Result<()> {
    let layout = &state.layout;
    let control = layout
        .control_planes
        .iter()
        .flat_map(|node| [node.listen, node.metrics]);
    let relays = layout
        .relays
        .iter()
        .flat_map(|node| [node.mx, node.submission, node.submissions, node.metrics]);
    let mut seen = Vec::new();
    for address in control.chain(relays).chain([state.sink]) {
        ensure!(
            !seen.contains(&address),
            "{address} is planned twice: choose other ports"
        );
        seen.push(address);
        if let Err(error) = TcpListener::bind(address) {
            bail!(
                "cannot listen on {address}: {error}\nChoose other ports, for example: make run ARGS=\"--port-offset 1000\""
            );
        }
    }
    Ok(())
}

fn bring_up(
    folder: &RunFolder,
    state: &mut State,
    children: &mut Vec<(String, Child)>,
    interrupt: &supervise::Interrupt,
) -> Result<()> {
    for name in state.names() {
        let child = state.spawn(&name)?;
        children.push((name, child));
        folder.save(state)?;
    }
    let runtime = runtime()?;
    let deadline = Instant::now() + PATIENCE;
    wait(
        state,
        children,
        interrupt,
        deadline,
        "the control plane elects its leaders",
        || settled(&state.layout),
    )?;
    state
        .layout
        .apply_policy(&policy::demo(state.destination, DELAYS))?;
    for relay in &state.layout.relays {
        let what = format!("{} is ready", relay.name);
        wait(state, children, interrupt, deadline, &what, || {
            runtime.block_on(http_ok(relay.metrics, "/readyz"))
        })?;
    }
    Ok(())
}

/// Polls until `probe` holds; fails at once when a process ended or Ctrl-C came.
fn wait(
    state: &State,
    children: &mut [(String, Child)],
    interrupt: &supervise::Interrupt,
    deadline: Instant,
    what: &str,
    probe: impl Fn() -> Result<()>,
) -> Result<()> {
    loop {
        for (name, child) in children.iter_mut() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "{name} ended with {status}; its log {}:\n{}",
                    state.layout.log(name).display(),
                    state.tail(name)
                );
            }
        }
        ensure!(!interrupt.came(), "interrupted");
        match probe() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!(
                    "waited until {what}; logs: {}",
                    state.layout.root.join("log").display()
                )));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Starts one process that does not run.
pub(super) fn start_one(dir: &Path, name: &str) -> Result<ExitCode> {
    let folder = RunFolder::open(dir, false)?;
    let mut state = folder.state()?;
    state.spec(name)?;
    if let Some(id) = state.processes.get(name) {
        bail!("{name} runs already (pid {})", id.pid);
    }
    let mut child = state.spawn(name)?;
    folder.save(&state)?;
    let runtime = runtime()?;
    // Without a quorum a node cannot become ready, and that is no failure of this command.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(status) = child.try_wait()? {
            state.forget_dead();
            folder.save(&state)?;
            bail!(
                "{name} ended with {status}; its log {}:\n{}",
                state.layout.log(name).display(),
                state.tail(name)
            );
        }
        let ready = match state.layout.metrics(name) {
            Some(address) => runtime.block_on(http_ok(address, "/readyz")),
            None if name == SINK => {
                TcpListener::bind(state.sink).map_or(Ok(()), |_| bail!("not yet"))
            }
            None => Ok(()),
        };
        if ready.is_ok() {
            println!("{name} runs (pid {}) and is ready", child.id());
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() > deadline {
            println!(
                "{name} runs (pid {}), not ready yet: {}",
                child.id(),
                state.layout.log(name).display()
            );
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
