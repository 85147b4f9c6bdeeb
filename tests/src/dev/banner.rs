//! What `run` tells the person at the terminal.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use data_encoding::BASE64;

use super::state::State;
use crate::policy::{PASSWORD, SERVED, SUBMITTER};

/// Where to connect, who to be, what to paste.
pub(super) fn welcome(state: &State, folder: &Path, detached: bool) -> String {
    let layout = &state.layout;
    let list = |addresses: Vec<SocketAddr>| {
        addresses
            .iter()
            .map(SocketAddr::to_string)
            .collect::<Vec<_>>()
            .join("  ")
    };
    let mx = list(layout.relays.iter().map(|relay| relay.mx).collect());
    let submission = list(layout.relays.iter().map(|relay| relay.submission).collect());
    let submissions = list(
        layout
            .relays
            .iter()
            .map(|relay| relay.submissions)
            .collect(),
    );
    let token = BASE64.encode(format!("\0{SUBMITTER}\0{PASSWORD}").as_bytes());
    let first = layout.relays.first();
    let one = |address: Option<SocketAddr>| {
        address.map_or_else(String::new, |address| address.to_string())
    };
    let (first_submission, first_submissions, first_mx) = (
        one(first.map(|r| r.submission)),
        one(first.map(|r| r.submissions)),
        one(first.map(|r| r.mx)),
    );
    let goes = if state.destination == state.sink {
        format!(
            "the sink {}: one file per message in {}",
            state.sink,
            state.sink_folder().join("messages").display()
        )
    } else {
        format!("{} (--destination), always over TLS", state.destination)
    };
    let end = if detached {
        "`make stop` ends it."
    } else {
        "Ctrl-C stops all of it. A line per message delivered to the sink follows."
    };
    format!(
        "
Sealane runs: {control} control-plane nodes, {relays} relay nodes, a mail sink.

  submission   STARTTLS, AUTH      {submission}
  submissions  TLS at once, AUTH   {submissions}
  MX           STARTTLS            {mx}   (mail for {SERVED})
  user {SUBMITTER}   password {PASSWORD}
  all mail goes to {goes}

Send a message, from another terminal:

  swaks --server {first_submission} --tls --auth PLAIN --auth-user {SUBMITTER} --auth-password {PASSWORD} \\
    --from {SUBMITTER}@{SERVED} --to you@remote.example --header 'Subject: hello' --body 'Hello over STARTTLS'

  swaks --server {first_mx} --tls --from someone@elsewhere.example --to you@{SERVED} --body 'Hello to the MX'

  (sleep 1; printf 'EHLO me.example\\r\\n'; sleep 1; printf 'AUTH PLAIN {token}\\r\\n'; sleep 1
   printf 'MAIL FROM:<{SUBMITTER}@{SERVED}>\\r\\nRCPT TO:<you@remote.example>\\r\\nDATA\\r\\n'; sleep 1
   printf 'Subject: hello\\r\\n\\r\\nHello over TLS\\r\\n.\\r\\n'; sleep 2; printf 'QUIT\\r\\n'; sleep 1) |
    openssl s_client -quiet -connect {first_submissions}

Look inside:

  set -a; . {env}; set +a
  $SEALANE cluster status
  $SEALANE queue list

Break it:  make kill NAME=control-plane-1   make start NAME=control-plane-1
Logs: {logs}

{end}",
        control = layout.control_planes.len(),
        relays = layout.relays.len(),
        env = folder.join(super::env_file::NAME).display(),
        logs = folder.join("log").display(),
    )
}

/// A line per process.
pub(super) fn processes(state: &State) -> String {
    let mut out = String::new();
    for name in state.names() {
        let what = state
            .processes
            .get(&name)
            .map_or_else(|| "does not run".to_owned(), |id| format!("pid {}", id.pid));
        let _infallible = writeln!(out, "  {name:<17} {what}");
    }
    out
}
