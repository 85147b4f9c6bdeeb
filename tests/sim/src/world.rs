//! The simulated operating system: turmoil's network and time.
use crate::clocks;
use sealane_runtime::world::{Accept, Octets, Wait, World};
use std::{io, net::SocketAddr, time::Duration};
use turmoil::net::{TcpListener, TcpStream};

/// Every process of the simulation lives in it: turmoil knows which one asks.
#[derive(Debug)]
pub(crate) struct Turmoil;

/// 2026-01-01. Simulated time begins then.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_767_225_600);

impl World for Turmoil {
    fn now(&self) -> Duration {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        clocks::skewed(EPOCH + elapsed)
    }

    fn connect(&self, authority: String) -> Wait<'static, Box<dyn Octets>> {
        Box::pin(async move {
            let stream = TcpStream::connect(authority).await?;
            Ok(Box::new(stream) as Box<dyn Octets>)
        })
    }

    fn listen(&self, at: SocketAddr) -> Wait<'static, Box<dyn Accept>> {
        Box::pin(async move {
            let listener = TcpListener::bind(at).await?;
            Ok(Box::new(Door(listener)) as Box<dyn Accept>)
        })
    }
}

struct Door(TcpListener);

impl Accept for Door {
    fn accept(&self) -> Wait<'_, (Box<dyn Octets>, SocketAddr)> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            Ok::<_, io::Error>((Box::new(stream) as Box<dyn Octets>, from))
        })
    }
}

/// From here on this process is simulated: network, time of day, and whose clock it is.
pub(crate) fn enter() -> anyhow::Result<()> {
    use tracing_subscriber::layer::SubscriberExt;
    anyhow::ensure!(
        sealane_runtime::world::enter(Box::new(Turmoil)),
        "one simulation per process"
    );
    let words = std::env::var("SEALANE_SIM_LOG").unwrap_or_else(|_| "off".into());
    let said = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .without_time()
        .with_ansi(false);
    let subscriber = tracing_subscriber::registry()
        .with(clocks::CurrentHost)
        .with(tracing_subscriber::Layer::with_filter(
            said,
            tracing_subscriber::EnvFilter::new(words),
        ));
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(())
}
