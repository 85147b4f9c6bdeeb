//! gRPC over mTLS: serving, authorizing, dialling.
use crate::{
    identity::{CONTROL_SERVER_NAME, INSTANCE_KEY, Identity, Role, WorkloadId, peer_identity},
    world::{Listener, Socket},
};
use anyhow::Context;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    service::Routes,
    transport::{Channel, Endpoint, Server, Uri, server::Connected},
};
use tower::{Layer, Service};

/// Method path and the roles that may call it.
pub type AccessTable = &'static [(&'static str, &'static [Role])];

const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 256;
const CONNECT: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(5);
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A body travels in few frames: each is a write of its own.
const FRAME: u32 = 256 << 10;
const STREAMS: u32 = 1024;
/// Calls that a peer gave up before we came to look at them. Where a machine is short of processors, or a cut link
/// is mended, many come at once; at h2's usual limit of 20, made against strangers, the connection would end with
/// all that is on it: heartbeats of all groups, and so the leaderships. Peers here have certificates.
const GIVEN_UP: usize = STREAMS as usize;

/// A connection whose peer is known.
struct Peer {
    stream: TlsStream<Socket>,
    workload: WorkloadId,
}

impl Connected for Peer {
    type ConnectInfo = WorkloadId;
    fn connect_info(&self) -> WorkloadId {
        self.workload.clone()
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves `routes` until `stop`; callers without a certificate of this cluster or without a rule are refused.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    table: AccessTable,
    identity: Identity,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (tx, rx) = mpsc::channel::<io::Result<Peer>>(64);
    let accept = accept(listener, identity, tx, stop.clone());
    let incoming = futures(rx);
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(AuthorizeLayer { table })
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    tokio::select! {
        () = accept => Ok(()),
        r = server => r.context("gRPC server"),
    }
}

fn futures(
    rx: mpsc::Receiver<io::Result<Peer>>,
) -> impl tokio_stream::Stream<Item = io::Result<Peer>> {
    tokio_stream::wrappers::ReceiverStream::new(rx)
}

async fn accept(
    listener: Listener,
    identity: Identity,
    tx: mpsc::Sender<io::Result<Peer>>,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            a = listener.accept() => a,
            // The server drains by itself; new connections are not taken.
            () = stop.cancelled() => return std::future::pending().await,
        };
        let (tcp, from) = match accepted {
            Ok(a) => a,
            Err(e) => {
                tracing::warn!(error = %e, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, tx, cluster) = (
            TlsAcceptor::from(identity.server_config()),
            tx.clone(),
            identity.workload().cluster.clone(),
        );
        tokio::spawn(async move {
            let _slot = slot;
            let stream = match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                Ok(Ok(s)) => s,
                Ok(Err(e)) => return tracing::info!(%from, error = %e, "gRPC connection refused"),
                Err(_) => return tracing::info!(%from, "gRPC handshake too slow"),
            };
            let workload = stream.get_ref().1.peer_certificates().map(peer_identity);
            match workload {
                Some(Ok(workload)) if workload.cluster == cluster => {
                    let _ = tx.send(Ok(Peer { stream, workload })).await;
                }
                Some(Ok(workload)) => {
                    tracing::info!(%from, %workload, "gRPC peer of another cluster refused")
                }
                Some(Err(e)) => {
                    tracing::info!(%from, error = %e, "gRPC peer without workload identity refused")
                }
                None => tracing::info!(%from, "gRPC peer without certificate refused"),
            }
        });
    }
}

#[derive(Clone, Copy)]
struct AuthorizeLayer {
    table: AccessTable,
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;
    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize {
            inner,
            table: self.table,
        }
    }
}

#[derive(Clone)]
struct Authorize<S> {
    inner: S,
    table: AccessTable,
}

/// Default deny.
fn permitted(table: AccessTable, path: &str, role: Role) -> bool {
    path.starts_with("/grpc.health.v1.Health/")
        || table
            .iter()
            .any(|(p, roles)| *p == path && roles.contains(&role))
}

/// Whether the peer may make this call; and who calls, where that is one of several with the peer's certificate.
fn caller<B>(table: AccessTable, request: &http::Request<B>) -> Result<Option<WorkloadId>, Status> {
    let path = request.uri().path();
    let Some(peer) = request.extensions().get::<WorkloadId>() else {
        return Err(Status::unauthenticated("no workload identity"));
    };
    if !permitted(table, path, peer.role) {
        tracing::info!(%peer, %path, "call refused: role");
        return Err(Status::permission_denied(format!(
            "role {} may not call {path}",
            peer.role.as_str()
        )));
    }
    let mut said = request.headers().get_all(INSTANCE_KEY).iter();
    let Some(instance) = said.next() else {
        return Ok(None);
    };
    let refused = |status: Status| {
        tracing::info!(%peer, %path, reason = status.message(), "call refused: instance");
        status
    };
    if peer.role != Role::Relay {
        let why = format!("{INSTANCE_KEY}: only relays have instances");
        return Err(refused(Status::permission_denied(why)));
    }
    let malformed =
        |why: String| refused(Status::invalid_argument(format!("{INSTANCE_KEY}: {why}")));
    if said.next().is_some() {
        return Err(malformed("said more than once".into()));
    }
    let instance = instance.to_str().map_err(|e| malformed(e.to_string()))?;
    let known = peer.of_instance(instance).map_err(malformed)?;
    Ok(Some(known))
}

impl<S, B> Service<http::Request<B>> for Authorize<S>
where
    S: Service<http::Request<B>, Response = http::Response<tonic::body::Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match caller(self.table, &request) {
            Ok(instance) => {
                if let Some(instance) = instance {
                    request.extensions_mut().insert(instance);
                }
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

/// A lazily connecting channel to a control-plane node at `address` (host:port).
pub fn channel(address: &str, identity: &Identity) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("address {address:?}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME);
    let identity = identity.clone();
    let dial = tower::service_fn(move |uri: Uri| {
        let identity = identity.clone();
        async move {
            let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
            let tcp = timeout(CONNECT, Socket::connect(&authority))
                .await
                .map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{authority}: no connection within {CONNECT:?}"),
                    )
                })??;
            let name = ServerName::try_from(CONTROL_SERVER_NAME).expect("a constant DNS name");
            let connector = TlsConnector::from(identity.client_config());
            let tls = timeout(HANDSHAKE, connector.connect(name, tcp))
                .await
                .map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{authority}: TLS handshake too slow"),
                    )
                })??;
            let peer = tls.get_ref().1.peer_certificates().map(peer_identity);
            match peer {
                Some(Ok(w))
                    if w.cluster == identity.workload().cluster && w.role == Role::Control =>
                {
                    Ok(TokioIo::new(tls))
                }
                _ => Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    format!("{authority} is no control-plane node of this cluster"),
                )),
            }
        }
    });
    Ok(endpoint.connect_with_connector_lazy(dial))
}

/// Methods of an encoded file descriptor set that `table` has no rule for.
pub fn uncovered(descriptors: &[u8], table: AccessTable) -> Vec<String> {
    use prost::Message;
    let Ok(set) = prost_types::FileDescriptorSet::decode(descriptors) else {
        return vec!["the descriptor set is unreadable".into()];
    };
    let mut missing = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                if !table.iter().any(|(p, _)| *p == path) {
                    missing.push(path);
                }
            }
        }
    }
    missing
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
