//! Records as they are on disk. A change here is a change of the disk format: make a new version of
//! it, never a new golden value alone.
use super::*;
use data_encoding::HEXLOWER;
use sealane_wire::v1::dedupe_record::Fate;

fn check(record: &impl Message, expected: &str) {
    assert_eq!(HEXLOWER.encode(&record.encode_to_vec()), expected);
}

fn part() -> v1::BodyPart {
    v1::BodyPart {
        log_index: 300,
        length: 5,
    }
}

fn reply() -> v1::Reply {
    v1::Reply {
        code: 451,
        enhanced: "4.2.0".into(),
        text: "later".into(),
        remote: "mx".into(),
    }
}

#[test]
fn records_are_encoded_as_ever() {
    let tls = v1::TlsFacts {
        version: "TLSv1.3".into(),
        ..Default::default()
    };
    let record = v1::MessageRecord {
        envelope: Some(v1::Envelope {
            reverse_path: "a@b".into(),
            recipients: vec![v1::Recipient {
                mailbox: "c@d".into(),
                orcpt: "rfc822;e".into(),
            }],
            body_type: v1::BodyType::BodyType8bitmime.into(),
            envid: "v".into(),
        }),
        entry: Some(v1::EntryRecord {
            listener: "mx".into(),
            peer: "p:1".into(),
            helo: "h".into(),
            tls: Some(tls.clone()),
            submitter: "s".into(),
            rule: "r".into(),
            policy_revision: 7,
            relay: "n".into(),
            accepted_at_ms: 8,
        }),
        trace: Some(v1::TraceContext {
            traceparent: "00".into(),
            tracestate: "x".into(),
        }),
        body: vec![part()],
        size: 5,
        sha256: Bytes::from_static(&[0xab; 4]),
        enqueued_at_ms: 9,
        expires_at_ms: 10,
        open_recipients: 1,
        log_index: 300,
        hold: "h".into(),
    };
    check(&record, MESSAGE);
    let record = v1::RecipientRecord {
        state: State::Leased.into(),
        attempts: 2,
        due_ms: 3,
        epoch: 300,
        lease_until_ms: 5,
        holder: "n".into(),
        last_reply: Some(reply()),
        last_tls: Some(tls),
        lost_holders: 2,
    };
    check(&record, RECIPIENT);
    check(
        &v1::DedupeRecord {
            fate: Fate::Finished.into(),
            at_ms: 2,
            log_index: 300,
        },
        DEDUPE,
    );
    check(
        &v1::UploadRecord {
            part: Some(part()),
            at_ms: 2,
        },
        UPLOAD,
    );
    let record = v1::ClockRecord {
        now_ms: 1,
        messages: 2,
        finished: 3,
        claimed_ms: 4,
        swept_to: Bytes::from_static(b"k"),
    };
    check(&record, CLOCK);
    let record = v1::ClusterRecord {
        cluster_id: "c-1".into(),
        cluster_name: "c".into(),
        shards: 8,
        replicas: 3,
    };
    check(&record, CLUSTER);
    let record = v1::NodeRecord {
        id: 300,
        name: "n".into(),
        address: "a:1".into(),
        incarnation: Bytes::from_static(&[1; 4]),
        joined_at_ms: 5,
        ..Default::default()
    };
    check(&record, NODE);
    let record = v1::NodeRecord {
        state: v1::node_record::State::Leaving.into(),
        changed_at: 300,
        replaces: 2,
        ..record
    };
    check(&record, NODE_OF_TODAY);
    let record = v1::PlacementRecord {
        revision: 300,
        groups: vec![v1::GroupPlacement {
            group: 1,
            nodes: vec![300, 2],
        }],
    };
    check(&record, PLACEMENT);
    let record = v1::GroupReport {
        term: 1,
        leader: 2,
        membership_index: 3,
        voters: vec![300, 2],
        learners: vec![4],
        revision: 5,
        everywhere: true,
    };
    check(&record, REPORT);
    let record = v1::AuditRecord {
        at_ms: 1,
        actor: "a".into(),
        action: "b".into(),
        detail: "c".into(),
    };
    check(&record, AUDIT);
    let record = v1::RestoreRecord {
        backup: Bytes::from_static(&[2; 4]),
        state: v1::restore_record::State::Restored.into(),
        source_cluster: "c-1".into(),
        begun_at_ms: 4,
        ended_at_ms: 5,
        hold: "h".into(),
        policy: true,
        last: Bytes::from_static(&[1; 4]),
        messages: 9,
    };
    check(&record, RESTORE);
}

#[test]
fn keys_are_made_as_ever() {
    let hex = |b: &[u8]| HEXLOWER.encode(b);
    let id = MessageId::new(ShardId::new(3).unwrap(), 0x0102_0304_0506, [0xaa; 9]);
    assert_eq!(hex(id.as_bytes()), "03010203040506aaaaaaaaaaaaaaaaaa");
    let recipient = crate::records::recipient_key(id, 258);
    assert_eq!(hex(&recipient), "03010203040506aaaaaaaaaaaaaaaaaa0102");
    let upload = crate::records::upload_key(id, 0x0102_0304);
    assert_eq!(hex(&upload), "03010203040506aaaaaaaaaaaaaaaaaa01020304");
    let numbers: Vec<u8> = Table::ALL.into_iter().map(|t| t as u8).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
}

const MESSAGE: &str = "0a1b0a03614062120f0a0363406412087266633832323b65180222017612240a026d781203703a311a016822090a07544c5376312e332a0173320172380742016e48081a070a023030120178220508ac02100528053204abababab3809400a480150ac025a0168";
const RECIPIENT: &str = "08021002180320ac02280532016e3a1508c3031205342e322e301a056c6174657222026d7842090a07544c5376312e334802";
const DEDUPE: &str = "0803100218ac02";
const UPLOAD: &str = "0a0508ac0210051002";
const CLOCK: &str = "08011002180320042a016b";
const CLUSTER: &str = "0a03632d3112016318082003";
const NODE: &str = "08ac0212016e1a03613a312204010101012805";
const AUDIT: &str = "08011201611a0162220163";
const NODE_OF_TODAY: &str = "08ac0212016e1a03613a312204010101012805500358ac026002";
const PLACEMENT: &str = "08ac02120708011203ac0202";
const REPORT: &str = "0801100218032203ac02022a010430053801";
const RESTORE: &str = "0a040202020210021a03632d312004280532016838014204010101014809";
