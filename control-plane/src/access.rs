//! Who may call what: one table, default deny. A method that is missing here is refused, and a test names it.
use sealane_runtime::identity::Role::{self, Admin, Control, Operator, Relay, Viewer};

/// gRPC method path and the roles that may call it.
pub const TABLE: &[(&str, &[Role])] = &[
    ("/sealane.v1.Queue/Submit", &[Relay]),
    ("/sealane.v1.Queue/Deliver", &[Relay]),
    ("/sealane.v1.Queue/FetchBody", &[Relay]),
    ("/sealane.v1.Queue/DealShares", &[Relay, Control]),
    ("/sealane.v1.Policy/Watch", &[Relay, Operator]),
    ("/sealane.v1.Policy/Get", &[Admin, Viewer, Operator]),
    ("/sealane.v1.Policy/Apply", &[Admin, Operator]),
    (
        "/sealane.v1.Admin/ClusterStatus",
        &[Admin, Viewer, Operator],
    ),
    ("/sealane.v1.Admin/ListNodes", &[Admin, Viewer, Operator]),
    ("/sealane.v1.Admin/ListQueue", &[Admin, Viewer]),
    ("/sealane.v1.Admin/ShowMessage", &[Admin, Viewer]),
    ("/sealane.v1.Admin/ChangeMessages", &[Admin]),
    ("/sealane.v1.Admin/ChangeNode", &[Admin, Operator]),
    ("/sealane.v1.Backup/Export", &[Admin]),
    ("/sealane.v1.Backup/RestoreCluster", &[Admin]),
    ("/sealane.v1.Backup/RestoreShard", &[Admin]),
    ("/sealane.v1.Cluster/Join", &[Control]),
    ("/sealane.v1.Cluster/Identify", &[Control]),
    ("/sealane.v1.Cluster/Forward", &[Control]),
    ("/sealane.v1.Raft/Append", &[Control]),
    ("/sealane.v1.Raft/Vote", &[Control]),
    ("/sealane.v1.Raft/PreVote", &[Control]),
    ("/sealane.v1.Raft/Snapshot", &[Control]),
    ("/sealane.v1.Raft/TransferLeader", &[Control]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_a_rule() {
        let missing = sealane_runtime::grpc::uncovered(sealane_wire::DESCRIPTORS, TABLE);
        assert!(missing.is_empty(), "methods without a rule: {missing:?}");
    }

    #[test]
    fn relays_reach_neither_raft_nor_admin() {
        for (path, roles) in TABLE {
            let private = [".Raft/", ".Admin/", ".Cluster/", ".Backup/"];
            if private.iter().any(|service| path.contains(service)) {
                assert!(!roles.contains(&Relay), "{path}");
            }
        }
    }

    /// It looks after nodes and policy. What people write to each other is none of its business.
    #[test]
    fn an_operator_reaches_nodes_and_policy_and_no_mail() {
        let may: Vec<&str> = TABLE
            .iter()
            .filter(|(_, roles)| roles.contains(&Operator))
            .map(|(path, _)| *path)
            .collect();
        assert_eq!(
            may,
            [
                "/sealane.v1.Policy/Watch",
                "/sealane.v1.Policy/Get",
                "/sealane.v1.Policy/Apply",
                "/sealane.v1.Admin/ClusterStatus",
                "/sealane.v1.Admin/ListNodes",
                "/sealane.v1.Admin/ChangeNode",
            ]
        );
    }
}
