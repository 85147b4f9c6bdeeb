//! What is broken, and who must notice.

use std::fmt;

/// A rule that the product breaks under this name (`sealane_mutants::Mutant`).
#[derive(Debug)]
pub(super) struct Mutant {
    pub(super) name: &'static str,
    pub(super) breaks: &'static str,
    /// All of them must notice. The fastest first.
    pub(super) caught_by: &'static [Catcher],
}

/// Who notices.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Catcher {
    /// A test, by its target and its whole name.
    Test {
        target: &'static str,
        name: &'static str,
    },
    /// Seeds of the simulation, one of which must name this rule.
    Simulation {
        first: u64,
        seeds: u64,
        says: &'static str,
    },
}

impl Catcher {
    /// What is the same run without a mutant.
    pub(super) fn control(&self) -> String {
        match self {
            Self::Test { target, name } => {
                format!("{target}: {name}")
            }
            Self::Simulation { first, seeds, .. } => {
                format!("simulation, seeds {first} to {}", first + seeds - 1)
            }
        }
    }
}

impl fmt::Display for Catcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.control())?;
        match self {
            Self::Simulation { says, .. } => write!(f, ": {says}"),
            _ => Ok(()),
        }
    }
}

const fn test(target: &'static str, name: &'static str) -> Catcher {
    Catcher::Test { target, name }
}

const fn simulation(first: u64, seeds: u64, says: &'static str) -> Catcher {
    Catcher::Simulation { first, seeds, says }
}

/// The first fifteen are those that a durable relay is usually asked about; the others are what the simulation
/// did not see at first.
pub(super) const MUTANTS: [Mutant; 20] = [
    Mutant {
        name: "M1",
        breaks: "250 is said before the entry is committed",
        caught_by: &[simulation(
            1,
            1,
            "was acknowledged before any node applied it",
        )],
    },
    Mutant {
        name: "M2",
        breaks: "the callback of an append runs before the sync",
        caught_by: &[
            test(
                "sealane_store",
                "tests::without_a_thread_callbacks_wait_for_the_sync_too",
            ),
            simulation(1, 1, "commit: group"),
        ],
    },
    Mutant {
        name: "M3",
        breaks: "a vote is answered before it is synced",
        caught_by: &[
            test(
                "sealane_store",
                "tests::p2_a_vote_is_answered_after_its_sync",
            ),
            simulation(1, 1, "vote: node"),
        ],
    },
    Mutant {
        name: "M4",
        breaks: "the result of any lease is accepted, whatever its epoch",
        caught_by: &[
            test("sealane_state", "tests::only_the_current_epoch_counts"),
            test("sealane_state", "tests::random_logs_agree_with_the_model"),
        ],
    },
    Mutant {
        name: "M5",
        breaks: "a repeated enqueue is stored again",
        caught_by: &[
            test("sealane_state", "tests::enqueue_is_idempotent"),
            test("sealane_state", "tests::random_logs_agree_with_the_model"),
        ],
    },
    Mutant {
        name: "M6",
        breaks: "a body goes with its message, though its entry is still needed",
        caught_by: &[test(
            "sealane_store",
            "tests::a_body_lives_until_it_is_released_and_its_entry_is_purged",
        )],
    },
    Mutant {
        name: "M7",
        breaks: "LF \".\" LF ends DATA",
        caught_by: &[
            test(
                "sealane_smtp",
                "server::data::tests::s1_only_crlf_dot_crlf_ends_data",
            ),
            test(
                "sealane_smtp",
                "server::tests::s1_smuggled_messages_are_refused_whole",
            ),
        ],
    },
    Mutant {
        name: "M8",
        breaks: "octets behind STARTTLS in clear are executed inside TLS",
        caught_by: &[test(
            "sealane_smtp",
            "server::tests::t1_octets_behind_starttls_close_the_connection_and_nothing_is_executed",
        )],
    },
    Mutant {
        name: "M9",
        breaks: "where STARTTLS is not offered, mail goes in clear",
        caught_by: &[test(
            "sealane_smtp",
            "client::tests::t5_without_starttls_nothing_but_ehlo_and_quit_is_said",
        )],
    },
    Mutant {
        name: "M10",
        breaks: "entries are purged, where the log begins now is not stored",
        caught_by: &[
            test(
                "sealane_store",
                "tests::p10_truncate_and_purge_leave_a_log_without_holes",
            ),
            test("sealane_store", "tests::the_log_is_a_vector"),
        ],
    },
    Mutant {
        name: "M11",
        breaks: "a snapshot is installed without a look at its digest",
        caught_by: &[test(
            "sealane_store",
            "tests::a_damaged_snapshot_is_refused_before_anything_is_changed",
        )],
    },
    Mutant {
        name: "M12",
        breaks: "a node's id is the ordinal in its name",
        caught_by: &[test("sealane_state", "tests::p7_node_ids_are_never_reused")],
    },
    Mutant {
        name: "M13",
        breaks: "a sync that failed is tried again",
        caught_by: &[simulation(5, 1, "P4: ")],
    },
    Mutant {
        name: "M14",
        breaks: "the null reverse-path gets reports",
        caught_by: &[test(
            "control_plane",
            "service::deliver::tests::the_null_reverse_path_hears_of_no_failure",
        )],
    },
    Mutant {
        name: "M15",
        breaks: "a failed TLSA lookup counts as no TLSA records",
        caught_by: &[
            test("decision_table", "every_input_agrees_with_the_reference"),
            test("decision_table", "every_input_agrees_with_the_golden_table"),
        ],
    },
    Mutant {
        name: "M16",
        breaks: "an enqueue that was withdrawn is answered as durable",
        caught_by: &[simulation(3, 1, "was acknowledged and is void")],
    },
    Mutant {
        name: "M17",
        breaks: "the leader answers an unknown outcome as \"not proposed\"",
        caught_by: &[simulation(10, 1, "I3: ")],
    },
    Mutant {
        name: "M18",
        breaks: "a lost answer is taken for \"not proposed\"",
        caught_by: &[simulation(24, 1, "I3: ")],
    },
    Mutant {
        name: "M19",
        breaks: "the state machine leases what is leased",
        caught_by: &[
            test("sealane_state", "tests::only_the_current_epoch_counts"),
            test("sealane_state", "tests::random_logs_agree_with_the_model"),
        ],
    },
    Mutant {
        name: "M20",
        breaks: "it does, and the dispatcher offers what is leased",
        caught_by: &[simulation(1, 1, "is leased twice")],
    },
];
