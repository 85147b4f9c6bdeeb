//! SIGTERM and SIGINT become one cancellation.
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancelled at the first SIGTERM or SIGINT. Needs a running tokio runtime.
pub fn token() -> CancellationToken {
    let token = CancellationToken::new();
    let fired = token.clone();
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut int)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            return tracing::error!(
                "signals cannot be caught: stop this process with SIGKILL only"
            );
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        fired.cancel();
    });
    token
}
