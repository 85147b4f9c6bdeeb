//! Accepts connections, a permit before each.
use super::{connection::Connection, context::IngressContext};
use sealane_smtp::server::Listener;
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// After an error of accept (out of descriptors, most likely).
const PAUSE: Duration = Duration::from_millis(100);

/// Until `stop`; connections end by themselves then, or at once with `cut`.
pub(super) async fn serve(
    context: Arc<IngressContext>,
    kind: Listener,
    socket: TcpListener,
    connections: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
) {
    let config = context.session_config(kind);
    tracing::info!(listener = kind.as_str(), address = %socket.local_addr().map_or_else(|e| e.to_string(), |a| a.to_string()), "listening");
    loop {
        let permit = tokio::select! {
            p = context.connections.clone().acquire_owned() => p,
            () = stop.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            a = socket.accept() => a,
            () = stop.cancelled() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(a) => a,
            Err(e) => {
                tracing::warn!(listener = kind.as_str(), error = %e, "accept failed");
                sleep(PAUSE).await;
                continue;
            }
        };
        let _ = tcp.set_nodelay(true);
        let connection = Connection::new(context.clone(), kind, config.clone(), peer, stop.clone());
        let (context, cut) = (context.clone(), cut.clone());
        connections.spawn(async move {
            context.metrics.opened(kind.as_str());
            cut.run_until_cancelled(Box::pin(connection.run(tcp))).await;
            context.metrics.closed(kind.as_str());
            drop(permit);
        });
    }
}
