//! One connection to another server, after TLS.
use super::{DeliveryOptions, driver::Driver, places::Place};
use sealane_types::TlsFacts;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection that met its TLS requirement and may carry mail.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) driver: Driver<TlsStream<TcpStream>>,
    pub(super) remote: String,
    pub(super) tls: TlsFacts,
    pub(super) transactions: u32,
    /// Behind the stream: it comes back when the stream is closed.
    pub(super) place: Place,
}

impl Connection {
    /// "mx.example [192.0.2.1]:25".
    pub(crate) fn remote(&self) -> &str {
        &self.remote
    }
    /// It takes a place at this destination.
    pub(crate) fn is_at(&self, destination: &str) -> bool {
        self.place.is_at(destination)
    }
    /// It takes this place instead of the one it had.
    pub(crate) fn move_to(&mut self, place: Place) {
        self.place = place;
    }
    /// Its TLS session.
    pub(crate) fn tls(&self) -> &TlsFacts {
        &self.tls
    }
    /// Begun so far.
    pub(crate) fn transactions(&self) -> u32 {
        self.transactions
    }
    /// Another transaction may begin.
    pub(crate) fn reusable(&self) -> bool {
        self.driver.session.is_ready()
    }
    /// Says QUIT, waits for the answer, closes. What goes wrong does not matter any more.
    pub(crate) async fn quit(mut self, options: &DeliveryOptions) {
        self.driver
            .quit(options.idle.0.min(options.command_timeout.0))
            .await;
    }
}
