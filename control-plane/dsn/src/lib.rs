//! Builds non-delivery reports: `multipart/report` of RFC 3462 with `message/delivery-status` of
//! RFC 3464 and the header of the original.
//!
//! Pure: time and ids are arguments; the same arguments give the same octets. Everything that came
//! from a peer is reduced to printable ASCII, every line ends with CRLF and stays below 998 octets.
#![forbid(unsafe_code)]

use bytes::Bytes;
use jiff::Timestamp;
use sealane_types::{MessageId, sanitize};
use sealane_wire::v1;
use std::fmt::Write;

/// Octets of the original header that are quoted at most.
const HEADER_LIMIT: usize = 64 << 10;
/// Longest line that is written.
const LINE_LIMIT: usize = 900;

/// A recipient that failed for good.
#[derive(Debug, Clone, Copy)]
pub struct Failure<'a> {
    /// As in the envelope.
    pub recipient: &'a v1::Recipient,
    /// The last word about it.
    pub reply: Option<&'a v1::Reply>,
    /// Its time ran out.
    pub expired: bool,
}

/// What a report is about.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Id of the report itself.
    pub id: MessageId,
    /// Id of the message that failed.
    pub original_id: MessageId,
    /// Envelope and entry of the message that failed; its reverse-path receives the report.
    pub record: &'a v1::MessageRecord,
    /// At least one.
    pub failures: &'a [Failure<'a>],
    /// The first octets of the message, header included.
    pub original_header: &'a [u8],
    /// Reporting-MTA.
    pub reporting_mta: &'a str,
    /// Milliseconds since the epoch.
    pub now_ms: u64,
}

/// A report, ready to be enqueued.
#[derive(Debug, Clone)]
pub struct Built {
    /// Null reverse-path, one recipient.
    pub envelope: v1::Envelope,
    /// The message.
    pub body: Bytes,
}

/// RFC 5322 section 3.3 date in UTC.
fn date(ms: u64) -> String {
    let at = i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

/// One CRLF line, cut at the limit.
fn line(out: &mut String, text: &str) {
    out.push_str(&sanitize(text.as_bytes(), LINE_LIMIT));
    out.push_str("\r\n");
}

/// Builds the report.
pub fn build(r: &Report<'_>) -> Built {
    let reverse_path = r
        .record
        .envelope
        .as_ref()
        .map_or("", |e| e.reverse_path.as_str());
    let boundary = format!("=_{}", r.id);
    let mut out = String::new();
    line(
        &mut out,
        &format!(
            "From: Mail Delivery System <MAILER-DAEMON@{}>",
            r.reporting_mta
        ),
    );
    line(&mut out, &format!("To: <{reverse_path}>"));
    line(&mut out, "Subject: Undelivered Mail Returned to Sender");
    line(&mut out, &format!("Date: {}", date(r.now_ms)));
    line(
        &mut out,
        &format!("Message-ID: <{}@{}>", r.id, r.reporting_mta),
    );
    line(&mut out, "Auto-Submitted: auto-replied");
    line(&mut out, "MIME-Version: 1.0");
    line(
        &mut out,
        "Content-Type: multipart/report; report-type=delivery-status;",
    );
    line(
        &mut out,
        &format!("\tboundary=\"{boundary}\"").replace('\t', " "),
    );
    line(&mut out, "");
    human_part(&mut out, r, &boundary);
    status_part(&mut out, r, &boundary);
    let mut body = out.into_bytes();
    header_part(&mut body, r, &boundary);
    // A next hop without 8BITMIME refuses what claims to need it, and a report has no report.
    let body_type = if body.is_ascii() {
        v1::BodyType::BodyType7bit
    } else {
        v1::BodyType::BodyType8bitmime
    };
    Built {
        envelope: v1::Envelope {
            reverse_path: String::new(),
            recipients: vec![v1::Recipient {
                mailbox: reverse_path.to_owned(),
                orcpt: String::new(),
            }],
            body_type: body_type.into(),
            envid: String::new(),
        },
        body: body.into(),
    }
}

fn human_part(out: &mut String, r: &Report<'_>, boundary: &str) {
    line(out, &format!("--{boundary}"));
    line(out, "Content-Type: text/plain; charset=us-ascii");
    line(out, "");
    line(
        out,
        &format!("This is the mail system at {}.", r.reporting_mta),
    );
    line(out, "");
    line(
        out,
        &format!("Your message {} could not be delivered to:", r.original_id),
    );
    line(out, "");
    for f in r.failures {
        line(out, &format!("<{}>", f.recipient.mailbox));
        let why = if f.expired { "gave up: " } else { "" };
        match f.reply {
            Some(reply) if !reply.remote.is_empty() => {
                line(
                    out,
                    &format!("    {} said: {why}{}", reply.remote, words(reply)),
                );
            }
            Some(reply) => line(out, &format!("    {why}{}", words(reply))),
            None => line(out, &format!("    {why}no answer is known")),
        }
    }
    line(out, "");
    line(
        out,
        "The technical details and the header of your message are attached.",
    );
    line(out, "");
}

fn words(reply: &v1::Reply) -> String {
    let mut s = String::new();
    if reply.code != 0 {
        let _ = write!(s, "{} ", reply.code);
    }
    if !reply.enhanced.is_empty() {
        let _ = write!(s, "{} ", reply.enhanced);
    }
    s + &reply.text
}

fn status_part(out: &mut String, r: &Report<'_>, boundary: &str) {
    line(out, &format!("--{boundary}"));
    line(out, "Content-Type: message/delivery-status");
    line(out, "");
    line(out, &format!("Reporting-MTA: dns; {}", r.reporting_mta));
    if let Some(e) = r.record.envelope.as_ref().filter(|e| !e.envid.is_empty()) {
        line(out, &format!("Original-Envelope-Id: {}", e.envid));
    }
    line(out, &format!("X-Sealane-Message-Id: {}", r.original_id));
    line(
        out,
        &format!("Arrival-Date: {}", date(r.record.enqueued_at_ms)),
    );
    for f in r.failures {
        line(out, "");
        if !f.recipient.orcpt.is_empty() {
            line(out, &format!("Original-Recipient: {}", f.recipient.orcpt));
        }
        line(
            out,
            &format!("Final-Recipient: rfc822; {}", f.recipient.mailbox),
        );
        line(out, "Action: failed");
        let status = f
            .reply
            .map(|r| r.enhanced.as_str())
            .filter(|e| e.starts_with("5."));
        line(
            out,
            &format!(
                "Status: {}",
                status.unwrap_or(if f.expired { "5.4.7" } else { "5.0.0" })
            ),
        );
        if let Some(reply) = f.reply {
            if let Some(host) = reply.remote.split(' ').next().filter(|h| !h.is_empty()) {
                line(out, &format!("Remote-MTA: dns; {host}"));
            }
            let kind = if reply.code == 0 { "X-Sealane" } else { "smtp" };
            line(out, &format!("Diagnostic-Code: {kind}; {}", words(reply)));
        }
        line(out, &format!("Last-Attempt-Date: {}", date(r.now_ms)));
    }
    line(out, "");
}

/// The header fields of the original, up to the blank line, octets above ASCII kept.
fn header_part(body: &mut Vec<u8>, r: &Report<'_>, boundary: &str) {
    let end = find(r.original_header, b"\r\n\r\n").map_or(r.original_header.len(), |n| n + 2);
    let header = &r.original_header[..end.min(HEADER_LIMIT)];
    body.extend_from_slice(
        format!("--{boundary}\r\nContent-Type: text/rfc822-headers; charset=utf-8\r\n").as_bytes(),
    );
    body.extend_from_slice(b"Content-Transfer-Encoding: 8bit\r\n\r\n");
    // Whole lines only; an overlong one is left out.
    for l in header.split_inclusive(|b| *b == b'\n') {
        if l.ends_with(b"\r\n") && l.len() <= 998 && !l.starts_with(b"--=_") {
            body.extend_from_slice(l);
        }
    }
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use sealane_types::ShardId;

    #[test]
    fn report_is_as_in_the_golden_file() {
        let shard = ShardId::new(1).unwrap();
        let recipient = v1::Recipient {
            mailbox: "bob@far.example".into(),
            orcpt: "rfc822;bob@alias.example".into(),
        };
        let reply = v1::Reply {
            code: 550,
            enhanced: "5.1.1".into(),
            text: "no such user\r\nInjected: yes".into(),
            remote: "mx.far.example [192.0.2.7]:25".into(),
        };
        let record = v1::MessageRecord {
            envelope: Some(v1::Envelope {
                reverse_path: "alice@near.example".into(),
                envid: "e1".into(),
                ..Default::default()
            }),
            enqueued_at_ms: 1_700_000_000_000,
            ..Default::default()
        };
        let built = build(&Report {
            id: MessageId::new(shard, 2, [2; 9]),
            original_id: MessageId::new(shard, 1, [1; 9]),
            record: &record,
            failures: &[
                Failure {
                    recipient: &recipient,
                    reply: Some(&reply),
                    expired: false,
                },
                Failure {
                    recipient: &recipient,
                    reply: None,
                    expired: true,
                },
            ],
            original_header: "Received: x\r\nSubject: gr\u{fc}\u{df}e\r\n\r\nsecret body"
                .as_bytes(),
            reporting_mta: "relay.near.example",
            now_ms: 1_700_000_060_000,
        });
        assert!(built.envelope.reverse_path.is_empty());
        assert_eq!(built.envelope.recipients[0].mailbox, "alice@near.example");
        let text = String::from_utf8(built.body.to_vec()).unwrap();
        assert!(!text.contains("secret body") && !text.contains("\nInjected"));
        assert!(
            text.split_inclusive('\n')
                .all(|l| l.ends_with("\r\n") && l.len() <= 998)
        );
        insta::assert_snapshot!(text.replace("\r\n", "\n"));
    }
}
