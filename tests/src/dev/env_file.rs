//! `.run/cluster.env`: the cluster as shell variables, kept true by every command.

use std::fmt::Write;
use std::net::SocketAddr;

use super::state::State;
use crate::layout::Relay;
use crate::policy;

pub(super) const NAME: &str = "cluster.env";

/// The file's text. A process that does not run has an empty `PID_`.
pub(super) fn text(state: &State) -> String {
    let layout = &state.layout;
    let mut out = String::from(
        "# The running cluster, for shells: `. .run/cluster.env`. Kept true by make run, kill, start, stop.\n",
    );
    let mut put = |name: &str, value: &str| {
        let _infallible = writeln!(out, "{name}={}", quoted(value));
    };
    put("MX_ADDR", &relays(&layout.relays, |relay| relay.mx));
    put(
        "SUBMISSION_ADDR",
        &relays(&layout.relays, |relay| relay.submission),
    );
    put(
        "SUBMISSIONS_ADDR",
        &relays(&layout.relays, |relay| relay.submissions),
    );
    put("CONTROL_ADDRS", &layout.control_addresses());
    put(
        "ADMIN_CERT",
        &layout.certificate("admin").display().to_string(),
    );
    put("ADMIN_KEY", &layout.key("admin").display().to_string());
    put("CA_CERT", &layout.ca().display().to_string());
    put("SINK_ADDR", &state.sink.to_string());
    put(
        "SINK_DIR",
        &state.sink_folder().join("messages").display().to_string(),
    );
    put("DESTINATION", &state.destination.to_string());
    put("SUBMITTER", policy::SUBMITTER);
    put("PASSWORD", policy::PASSWORD);
    put("SEALANE", &layout.sealane().display().to_string());
    for name in state.names() {
        let variable = variable(&name);
        let pid = state
            .processes
            .get(&name)
            .map_or_else(String::new, |id| id.pid.to_string());
        put(&format!("PID_{variable}"), &pid);
        put(
            &format!("DATA_{variable}"),
            &state.data(&name).display().to_string(),
        );
        put(
            &format!("LOG_{variable}"),
            &layout.log(&name).display().to_string(),
        );
        if let Some(address) = layout.metrics(&name) {
            put(&format!("METRICS_{variable}"), &address.to_string());
        }
    }
    // What the CLI reads itself: `set -a; . .run/cluster.env; set +a; $SEALANE cluster status`.
    put("SEALANE_CONTROL", &layout.control_addresses());
    put(
        "SEALANE_CERT",
        &layout.certificate("admin").display().to_string(),
    );
    put("SEALANE_KEY", &layout.key("admin").display().to_string());
    put("SEALANE_CA", &layout.ca().display().to_string());
    out
}

/// `control-plane-1` as it stands in variable names.
fn variable(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

fn relays(relays: &[Relay], address: impl Fn(&Relay) -> SocketAddr) -> String {
    relays
        .iter()
        .map(|relay| address(relay).to_string())
        .collect::<Vec<_>>()
        .join(",")
}

/// As a word of the shell.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,@+".contains(c);
    if value.chars().all(plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::{quoted, variable};

    #[test]
    fn dashes_become_underscores_and_letters_capitals() {
        assert_eq!(variable("control-plane-1"), "CONTROL_PLANE_1");
    }

    #[test]
    fn values_are_single_words_of_the_shell() {
        assert_eq!(quoted("/a/b.c:1,2"), "/a/b.c:1,2");
        assert_eq!(quoted("/my files/it's"), "'/my files/it'\\''s'");
        assert_eq!(quoted(""), "");
    }
}
