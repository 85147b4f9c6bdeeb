//! `/metrics`, `/livez`, `/readyz`.
use axum::{Router, extract::State, http::StatusCode, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::sync::{Arc, Mutex};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

#[derive(Clone)]
struct Probes {
    registry: Arc<Mutex<Registry>>,
    ready: watch::Receiver<bool>,
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Mutex<Registry>>,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .with_state(Probes { registry, ready });
    if let Err(e) = axum::serve(listener, app)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
    {
        tracing::error!(error = %e, "HTTP server ended");
    }
}

async fn metrics(State(p): State<Probes>) -> (StatusCode, String) {
    let mut out = String::new();
    let encoded = encode(&mut out, &p.registry.lock().expect("no panic while held"));
    match encoded {
        Ok(()) => (StatusCode::OK, out),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

async fn readyz(State(p): State<Probes>) -> (StatusCode, &'static str) {
    if *p.ready.borrow() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
