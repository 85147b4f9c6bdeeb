//! The judge is judged first.

use super::*;

fn offer(content: &[u8]) -> Offer {
    Offer::of("t1", "a@b.example", &["c@d.example".to_owned()], content)
}

fn sink_with(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_owned()).unwrap();
    for (from, octets) in files {
        let envelope = crate::sink::Envelope {
            reverse_path: (*from).to_owned(),
            mail_parameters: Vec::new(),
            recipients: vec!["c@d.example".to_owned()],
            helo: String::new(),
            peer: String::new(),
            tls_version: "TLSv1_3".to_owned(),
            tls_cipher: String::new(),
            received_at_ms: 1,
            octets: octets.len() as u64,
            bare_line_ends: false,
        };
        store.keep(&envelope, octets).unwrap();
    }
    (folder, store)
}

const CONTENT: &[u8] = b"X-Ledger: t1\r\n\r\nhello\r\n";
const ARRIVED: &[u8] = b"Received: from x\r\n\tby y\r\nX-Ledger: t1\r\n\r\nhello\r\n";

#[test]
fn content_behind_received_headers_is_right_and_anything_else_is_not() {
    behind_trace(ARRIVED, &offer(CONTENT)).unwrap();
    behind_trace(
        b"Received: x\r\nX-Ledger: t1\r\n\r\nhellO\r\n",
        &offer(CONTENT),
    )
    .unwrap_err();
    behind_trace(
        b"Received: x\r\nBcc: y\r\nX-Ledger: t1\r\n\r\nhello\r\n",
        &offer(CONTENT),
    )
    .unwrap_err();
    behind_trace(CONTENT, &offer(CONTENT)).unwrap_err();
}

#[test]
fn a_250_without_a_file_is_a_loss() {
    let (_folder, store) = sink_with(&[]);
    let ledger = Ledger::default();
    ledger.offer(offer(CONTENT));
    ledger.outcome("t1", Outcome::Accepted);
    assert!(ledger.judge(&store).unwrap().holds().is_err());
}

#[test]
fn two_files_for_one_250_are_one_duplicate() {
    let (_folder, store) = sink_with(&[("a@b.example", ARRIVED), ("a@b.example", ARRIVED)]);
    let ledger = Ledger::default();
    ledger.offer(offer(CONTENT));
    ledger.outcome("t1", Outcome::Accepted);
    let verdict = ledger.judge(&store).unwrap();
    verdict.holds().unwrap();
    assert_eq!((verdict.delivered, verdict.duplicates), (1, 1));
}

#[test]
fn what_was_not_offered_or_was_refused_is_a_phantom() {
    let (_folder, store) = sink_with(&[("a@b.example", ARRIVED)]);
    let ledger = Ledger::default();
    assert_eq!(ledger.judge(&store).unwrap().phantoms.len(), 1);
    let ledger = Ledger::default();
    ledger.offer(offer(CONTENT));
    ledger.outcome("t1", Outcome::Permanent("550 no".to_owned()));
    assert_eq!(ledger.judge(&store).unwrap().phantoms.len(), 1);
}

#[test]
fn a_451_for_what_arrives_is_a_lie_and_silence_is_not() {
    for (outcome, truthful) in [
        (Outcome::Temporary("451 no".to_owned()), false),
        (Outcome::Broken("reset".to_owned()), false),
        (Outcome::Unknown("closed".to_owned()), true),
    ] {
        let (_folder, store) = sink_with(&[("a@b.example", ARRIVED)]);
        let ledger = Ledger::default();
        ledger.offer(offer(CONTENT));
        ledger.outcome("t1", outcome);
        let verdict = ledger.judge(&store).unwrap();
        assert_eq!(verdict.refused_arrivals.is_empty(), truthful, "{verdict}");
        assert_eq!(verdict.unanswered_arrivals, usize::from(truthful));
    }
}

#[test]
fn a_changed_envelope_or_body_is_damage() {
    let (_folder, store) = sink_with(&[("other@b.example", ARRIVED)]);
    let ledger = Ledger::default();
    ledger.offer(offer(CONTENT));
    ledger.outcome("t1", Outcome::Accepted);
    assert_eq!(ledger.judge(&store).unwrap().damaged.len(), 1);
}

const REPORT: &[u8] = b"Received: x\r\nMessage-ID: <r1@x>\r\n\r\nX-Sealane-Message-Id: m1\r\n\r\n\
    Final-Recipient: rfc822; c@d.example\r\n\r\nX-Ledger: t1\r\n";

fn report(from: &str, to: &str) -> Vec<u8> {
    String::from_utf8_lossy(REPORT)
        .replace(from, to)
        .into_bytes()
}

fn accepted(failing: bool) -> Ledger {
    let ledger = Ledger::default();
    let to = "c@d.example".to_owned();
    let failing = if failing { vec![to] } else { Vec::new() };
    ledger.offer(offer(CONTENT).failing(&failing));
    ledger.outcome("t1", Outcome::Accepted);
    ledger
}

#[test]
fn who_is_refused_for_good_needs_exactly_one_report() {
    let judged = |failing: bool, files: &[(&str, &[u8])]| {
        let (_folder, store) = sink_with(files);
        accepted(failing).judge(&store).unwrap()
    };
    assert_eq!(judged(true, &[]).lost, ["t1"]);
    let one = judged(true, &[("", REPORT)]);
    one.holds().unwrap();
    assert_eq!((one.reported, one.delivered, one.duplicates), (1, 0, 0));
    // Delivered twice it is a duplicate, made twice it is wrong.
    let again = judged(true, &[("", REPORT), ("", REPORT)]);
    again.holds().unwrap();
    assert_eq!(again.duplicates, 1);
    let second = report("r1@x", "r2@x");
    let twice = judged(true, &[("", REPORT), ("", &second)]);
    assert_eq!(twice.false_reports.len(), 1, "{twice}");
    let other = String::from_utf8_lossy(&second).replace("m1", "m2");
    let too_many = judged(true, &[("", REPORT), ("", other.as_bytes())]);
    assert_eq!(too_many.false_reports.len(), 1, "{too_many}");
    // Who did not fail is not reported, and who is refused does not arrive.
    assert_eq!(
        judged(false, &[("a@b.example", ARRIVED), ("", REPORT)])
            .false_reports
            .len(),
        1
    );
    assert_eq!(
        judged(true, &[("a@b.example", ARRIVED), ("", REPORT)]).phantoms,
        ["t1"]
    );
}

#[test]
fn what_was_looked_at_by_a_thrifty_ledger_is_deleted_and_counted_once() {
    let (_folder, store) = sink_with(&[("a@b.example", ARRIVED), ("other@b.example", ARRIVED)]);
    let ledger = Ledger::thrifty();
    ledger.offer(offer(CONTENT));
    ledger.outcome("t1", Outcome::Accepted);
    for _ in 0..2 {
        let verdict = ledger.judge(&store).unwrap();
        assert_eq!(
            (verdict.delivered, verdict.duplicates, verdict.damaged.len()),
            (1, 1, 1)
        );
        assert_eq!(store.count().unwrap(), 1, "only what is wrong stays");
    }
}
