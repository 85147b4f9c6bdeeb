//! Attempts against servers that do as they are told.
#![allow(clippy::unwrap_used, reason = "tests")]

mod bench;
mod fake_server;

use super::{
    DeliveryOptions, LeaseClock, OutcomeKind, RecipientOutcome, Renewal, metrics::ConnectionKind,
};
use bench::{Setup, lease, mebibytes, pieces};
use fake_server::{Authority, FakeServer, Script, ServerCertificate, StartTls};
use sealane_runtime::config::ConfigSpan;
use sealane_types::DomainName;
use sealane_wire::v1::{self, tls_requirement::Level};
use std::{sync::atomic::Ordering, time::Duration};
use tokio::time::Instant;

const BOB: &str = "bob@dest.example";

fn status(outcome: &RecipientOutcome) -> String {
    outcome
        .reply
        .enhanced
        .map(|e| e.to_string())
        .unwrap_or_default()
}

/// A certificate that is valid for the address the tests dial.
fn valid() -> (Authority, ServerCertificate) {
    let authority = Authority::new();
    let certificate = authority.issue(&["127.0.0.1"]);
    (authority, certificate)
}

#[tokio::test]
async fn a_message_is_delivered_over_starttls_with_its_facts() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let bench = Setup::route_to(server.address, &authority.roots).build();
    let outcomes = bench.deliver(lease(&[BOB])).await;
    assert_eq!(outcomes.len(), 1);
    let o = &outcomes[0];
    assert_eq!(
        (o.kind, o.reply.code, o.tls_caused),
        (OutcomeKind::Delivered, 250, false)
    );
    assert_eq!(
        o.remote,
        format!("127.0.0.1 [127.0.0.1]:{}", server.address.port())
    );
    let tls = o.tls.as_ref().unwrap();
    assert_eq!(
        (tls.version.as_str(), tls.verification.as_str()),
        ("TLSv1.3", "webpki")
    );
    assert!(tls.cipher.starts_with("TLS_") && !tls.group.is_empty());
    server.seen(|s| {
        assert_eq!(s.contents, [b"Subject: x\r\n\r\nhello\r\n.\r\n".to_vec()]);
        assert!(
            s.commands
                .iter()
                .any(|c| c.starts_with("MAIL FROM:<sender@origin.example>"))
        );
        assert!(
            s.commands
                .contains(&"RCPT TO:<bob@dest.example>".to_owned())
        );
        assert_eq!(s.names, [None], "no SNI for an address");
    });
}

/// TLS-11, T5: whatever a server does instead of TLS, it never hears of the message.
#[tokio::test]
async fn without_tls_nothing_but_ehlo_starttls_and_quit_is_said() {
    let roots = Authority::new().roots;
    for (starttls, expected) in [
        (StartTls::NotOffered, "4.7.4"),
        (StartTls::Refused("454 4.7.0 not now"), "4.7.4"),
        (StartTls::Refused("502 5.5.1 never"), "4.7.4"),
        (StartTls::Injected("250 2.0.0 injected\r\n"), "4.7.5"),
        (StartTls::Garbage(b"250-this is no TLS at all\r\n"), "4.7.5"),
        (StartTls::Garbage(b"\x15\x03\x01\x00\x02\x02\x28"), "4.7.5"),
    ] {
        let script = Script {
            clear: &["SIZE 1000", "AUTH PLAIN", "PIPELINING"],
            ..Script::good(starttls)
        };
        let server = FakeServer::start(script).await;
        let bench = Setup::route_to(server.address, &roots).build();
        let outcomes = bench.deliver(lease(&[BOB, "eve@dest.example"])).await;
        assert_eq!(outcomes.len(), 2);
        for o in &outcomes {
            assert_eq!(
                (o.kind, o.tls_caused),
                (OutcomeKind::Deferred, true),
                "{o:?}"
            );
            assert_eq!(status(o), expected, "{o:?}");
        }
        server.seen(|s| {
            assert_eq!(s.connections, 1, "no second try without TLS");
            for word in ["MAIL", "RCPT", "DATA", "AUTH", "SENDER@", "BOB@"] {
                assert!(
                    !s.clear_text().contains(word),
                    "{word} in clear: {}",
                    s.clear_text()
                );
            }
            assert!(s.commands.is_empty() && s.contents.is_empty());
        });
    }
}

#[tokio::test]
async fn capabilities_seen_in_clear_count_for_nothing() {
    let (authority, certificate) = valid();
    let clear: &[&str] = &["SIZE 10", "8BITMIME", "PIPELINING"];
    let server = FakeServer::start(Script {
        clear,
        secure: &[],
        ..Script::good(StartTls::Good(certificate))
    })
    .await;
    let bench = Setup::route_to(server.address, &authority.roots).build();
    assert_eq!(
        bench.deliver(lease(&[BOB])).await[0].kind,
        OutcomeKind::Delivered
    );
    server.seen(|s| {
        assert!(
            s.commands
                .contains(&"MAIL FROM:<sender@origin.example>".to_owned()),
            "{:?}",
            s.commands
        )
    });
}

#[tokio::test]
async fn implicit_tls_has_no_octet_in_clear() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Implicit(certificate))).await;
    let mut setup = Setup::route_to(server.address, &authority.roots);
    setup.route.as_mut().unwrap().implicit_tls = true;
    assert_eq!(
        setup.build().deliver(lease(&[BOB])).await[0].kind,
        OutcomeKind::Delivered
    );
    server.seen(|s| assert!(s.clear.is_empty()));
}

#[tokio::test]
async fn recipients_are_settled_one_by_one() {
    let (authority, certificate) = valid();
    let rcpt = |line: &str| match line {
        l if l.contains("later@") => "450 4.2.1 try later",
        l if l.contains("gone@") => "550 5.1.1 no such user",
        _ => "250 2.1.5 ok",
    };
    let server = FakeServer::start(Script {
        rcpt,
        ..Script::good(StartTls::Good(certificate))
    })
    .await;
    let bench = Setup::route_to(server.address, &authority.roots).build();
    let mut outcomes = bench
        .deliver(lease(&[BOB, "later@dest.example", "gone@dest.example"]))
        .await;
    outcomes.sort_by_key(|o| o.number);
    let got: Vec<_> = outcomes
        .iter()
        .map(|o| (o.number, o.kind, o.reply.code, o.tls_caused))
        .collect();
    assert_eq!(
        got,
        [
            (0, OutcomeKind::Delivered, 250, false),
            (1, OutcomeKind::Deferred, 450, false),
            (2, OutcomeKind::Failed, 550, false)
        ]
    );
    server.seen(|s| assert_eq!(s.contents.len(), 1));
}

#[tokio::test]
async fn replies_to_mail_data_and_dot_hold_for_every_recipient() {
    let (authority, certificate) = valid();
    let good = Script::good(StartTls::Good(certificate));
    for (script, kind, code) in [
        (
            Script {
                mail: "451 4.3.0 later",
                ..good.clone()
            },
            OutcomeKind::Deferred,
            451,
        ),
        (
            Script {
                mail: "550 5.7.1 never",
                ..good.clone()
            },
            OutcomeKind::Failed,
            550,
        ),
        (
            Script {
                data: "451 4.3.0 later",
                ..good.clone()
            },
            OutcomeKind::Deferred,
            451,
        ),
        (
            Script {
                data: "554 5.7.1 never",
                ..good.clone()
            },
            OutcomeKind::Failed,
            554,
        ),
        (
            Script {
                dot: "452 4.3.1 full",
                ..good.clone()
            },
            OutcomeKind::Deferred,
            452,
        ),
        (
            Script {
                dot: "554 5.6.0 bad content",
                ..good.clone()
            },
            OutcomeKind::Failed,
            554,
        ),
    ] {
        let server = FakeServer::start(script).await;
        let outcomes = Setup::route_to(server.address, &authority.roots)
            .build()
            .deliver(lease(&[BOB, "al@dest.example"]))
            .await;
        let got: Vec<_> = outcomes.iter().map(|o| (o.kind, o.reply.code)).collect();
        assert_eq!(got, [(kind, code), (kind, code)]);
    }
}

#[tokio::test]
async fn a_connection_lost_behind_the_dot_is_temporary() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script {
        dot: "",
        ..Script::good(StartTls::Good(certificate))
    })
    .await;
    let outcomes = Setup::route_to(server.address, &authority.roots)
        .build()
        .deliver(lease(&[BOB]))
        .await;
    assert_eq!(
        (outcomes[0].kind, outcomes[0].tls_caused),
        (OutcomeKind::Deferred, false)
    );
    assert_eq!(status(&outcomes[0]), "4.4.2");
    server.seen(|s| assert_eq!(s.connections, 1, "not sent twice within one attempt"));
}

#[tokio::test]
async fn connections_are_reused_up_to_the_limit() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let bench = Setup {
        messages_per_connection: 2,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build();
    for _ in 0..5 {
        assert_eq!(
            bench.deliver(lease(&[BOB])).await[0].kind,
            OutcomeKind::Delivered
        );
    }
    assert_eq!(server.seen(|s| (s.connections, s.contents.len())), (3, 5));
    assert_eq!(bench.metrics.connections(ConnectionKind::Opened), 3);
    assert_eq!(bench.metrics.connections(ConnectionKind::Reused), 2);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_no_attempt() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script {
        close_after: 1,
        ..Script::good(StartTls::Good(certificate))
    })
    .await;
    let bench = Setup::route_to(server.address, &authority.roots).build();
    for _ in 0..3 {
        assert_eq!(
            bench.deliver(lease(&[BOB])).await[0].kind,
            OutcomeKind::Delivered
        );
    }
    assert_eq!(server.seen(|s| s.contents.len()), 3);
}

#[tokio::test]
async fn a_421_ends_the_connection() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script {
        dot: "421 4.3.2 going down",
        ..Script::good(StartTls::Good(certificate))
    })
    .await;
    let bench = Setup::route_to(server.address, &authority.roots).build();
    for _ in 0..2 {
        assert_eq!(
            bench.deliver(lease(&[BOB])).await[0].kind,
            OutcomeKind::Deferred
        );
    }
    assert_eq!(server.seen(|s| s.connections), 2);
}

#[tokio::test]
async fn a_relay_that_stops_gives_back_what_it_did_not_begin() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let bench = Setup::route_to(server.address, &authority.roots).build();
    bench.courier.stop();
    assert!(bench.deliver(lease(&[BOB])).await.is_empty());
    assert_eq!(
        *bench.control.given_back.lock().unwrap(),
        [lease(&[BOB]).key]
    );
    assert_eq!(server.seen(|s| s.connections), 0);
}

#[tokio::test]
async fn a_lease_that_finds_no_place_in_time_goes_back() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let bench = Setup {
        places: 0,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build();
    let mut short = lease(&[BOB]);
    short.length = Duration::from_millis(200);
    assert!(bench.deliver(short).await.is_empty());
    assert_eq!(bench.control.given_back.lock().unwrap().len(), 1);
    assert_eq!(server.seen(|s| s.connections), 0);
}

/// Two domains of one host, one place each: the connection serves both, and takes its place where its
/// message belongs.
#[tokio::test]
async fn a_connection_changes_its_place_with_the_destination_it_serves() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let bench = Setup {
        places: 1,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build();
    let mut other = lease(&["eve@other.example"]);
    other.destination = DomainName::parse("other.example").unwrap();
    for lease in [lease(&[BOB]), other, lease(&[BOB])] {
        let outcomes = bench.deliver(lease).await;
        assert_eq!(outcomes[0].kind, OutcomeKind::Delivered);
    }
    assert_eq!(server.seen(|s| s.connections), 1);
    assert_eq!(bench.metrics.connections(ConnectionKind::Reused), 2);
}

/// The only place belongs to a connection that may carry nothing more: it is closed first.
#[tokio::test]
async fn a_connection_that_is_done_with_makes_room() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let bench = Setup {
        places: 1,
        messages_per_connection: 1,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build();
    for _ in 0..3 {
        let outcomes = bench.deliver(lease(&[BOB])).await;
        assert_eq!(outcomes[0].kind, OutcomeKind::Delivered);
    }
    server.seen(|s| {
        assert_eq!(s.connections, 3);
        let quits = s.commands.iter().filter(|c| *c == "QUIT").count();
        assert_eq!(quits, 2, "each before the next connection");
    });
}

#[tokio::test]
async fn idle_connections_say_quit_when_their_time_is_over() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let mut setup = Setup::route_to(server.address, &authority.roots);
    setup.options.idle = ConfigSpan(Duration::from_millis(1));
    let bench = setup.build();
    bench.deliver(lease(&[BOB])).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    for connection in bench.courier.idle_over() {
        connection.quit(&DeliveryOptions::default()).await;
    }
    server.seen(|s| assert_eq!(s.commands.last().map(String::as_str), Some("QUIT")));
    assert!(bench.courier.idle_all().is_empty());
}

#[tokio::test]
async fn encrypt_takes_any_certificate_and_records_its_worth() {
    let certificate = Authority::new().issue(&["other.example"]);
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let outcomes = Setup::route_to(server.address, &Authority::new().roots)
        .build()
        .deliver(lease(&[BOB]))
        .await;
    assert_eq!(outcomes[0].kind, OutcomeKind::Delivered);
    assert_eq!(
        outcomes[0].tls.as_ref().unwrap().verification,
        "failed:unknown issuer"
    );
}

#[tokio::test]
async fn pins_and_names_are_enforced_before_mail() {
    let authority = Authority::new();
    let certificate = authority.issue(&["mx.dest.example"]);
    let pin = certificate.pin;
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let fingerprint = |pin: [u8; 32]| v1::TlsRequirement {
        level: Level::Fingerprint.into(),
        pins: vec![pin.to_vec().into()],
        ..v1::TlsRequirement::default()
    };
    let secure = |name: &str, roots_pem: &str| v1::TlsRequirement {
        level: Level::Secure.into(),
        names: vec![name.into()],
        roots_pem: roots_pem.into(),
        ..v1::TlsRequirement::default()
    };
    let stranger = Authority::new();
    for (tls, verification, delivered) in [
        (fingerprint(pin), "pinned", true),
        (
            fingerprint([1; 32]),
            "failed:public key is not pinned",
            false,
        ),
        (
            secure("mx.dest.example", &authority.pem),
            "secure:mx.dest.example",
            true,
        ),
        (
            secure("mx.other.example", &authority.pem),
            "failed:name mismatch",
            false,
        ),
        (
            secure("mx.dest.example", &stranger.pem),
            "failed:unknown issuer",
            false,
        ),
        (
            secure("mx.dest.example", ""),
            "failed:unknown issuer",
            false,
        ),
        (secure("mx.dest.example", "no certificates"), "", false),
    ] {
        let before = server.seen(|s| s.contents.len());
        let outcomes = Setup {
            tls,
            ..Setup::route_to(server.address, &stranger.roots)
        }
        .build()
        .deliver(lease(&[BOB]))
        .await;
        let o = &outcomes[0];
        assert_eq!(o.kind == OutcomeKind::Delivered, delivered, "{o:?}");
        assert_eq!(
            o.tls.as_ref().map_or("", |t| t.verification.as_str()),
            verification
        );
        if !delivered {
            assert_eq!((status(o).as_str(), o.tls_caused), ("4.7.5", true));
            assert_eq!(server.seen(|s| s.contents.len()), before);
        }
    }
    server.seen(|s| {
        let mails = s.commands.iter().filter(|c| c.starts_with("MAIL")).count();
        assert_eq!(mails, 2, "only where the check passed");
    });
}

#[tokio::test]
async fn a_level_out_of_reach_makes_no_connection() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    for level in [Level::Verified, Level::DaneOnly, Level::Peer] {
        let tls = v1::TlsRequirement {
            level: level.into(),
            ..v1::TlsRequirement::default()
        };
        let outcomes = Setup {
            tls,
            ..Setup::route_to(server.address, &authority.roots)
        }
        .build()
        .deliver(lease(&[BOB]))
        .await;
        assert_eq!(
            (status(&outcomes[0]).as_str(), outcomes[0].tls_caused),
            ("4.7.5", true)
        );
    }
    assert_eq!(server.seen(|s| s.connections), 0);
}

#[tokio::test]
async fn eight_bit_content_is_not_sent_to_a_seven_bit_server() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script {
        secure: &["SIZE"],
        ..Script::good(StartTls::Good(certificate))
    })
    .await;
    let mut message = lease(&[BOB]);
    message.eight_bit = true;
    let outcomes = Setup::route_to(server.address, &authority.roots)
        .build()
        .deliver(message)
        .await;
    assert_eq!(
        (outcomes[0].kind, status(&outcomes[0]).as_str()),
        (OutcomeKind::Failed, "5.6.3")
    );
    server.seen(|s| assert!(s.contents.is_empty()));
}

#[tokio::test]
async fn content_arrives_octet_for_octet_however_it_is_cut() {
    let (authority, certificate) = valid();
    let content: &'static [u8] = b".\r\n..\r\n\r\n.a\r\nb.\r\n...\r\nend\r\n.\r\n";
    let stuffed = b"..\r\n...\r\n\r\n..a\r\nb.\r\n....\r\nend\r\n..\r\n.\r\n";
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let mut message = lease(&[BOB]);
    message.size = content.len() as u64;
    for cut in 1..content.len() {
        let setup = Setup {
            body: pieces(content.chunks(cut).collect()),
            ..Setup::route_to(server.address, &authority.roots)
        };
        assert_eq!(
            setup.build().deliver(message.clone()).await[0].kind,
            OutcomeKind::Delivered
        );
        assert_eq!(
            server.seen(|s| s.contents.last().unwrap().clone()),
            stuffed,
            "cut {cut}"
        );
    }
}

/// 50 MiB pass with at most 16 MiB between the queue and the receiver, socket buffers included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_content_streams_in_bounded_memory() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script {
        discard: true,
        ..Script::good(StartTls::Good(certificate))
    })
    .await;
    let (body, made) = mebibytes(50);
    let widest = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (seen_made, seen_widest) = (made.clone(), widest.clone());
    server.seen.lock().unwrap().watch = Some(Box::new(move |received| {
        seen_widest.fetch_max(
            (seen_made.load(Ordering::SeqCst) << 20).saturating_sub(received),
            Ordering::SeqCst,
        );
    }));
    let bench = Setup {
        body,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build();
    let mut message = lease(&[BOB]);
    message.size = 50 << 20;
    let outcomes = bench.deliver(message).await;
    assert_eq!(outcomes[0].kind, OutcomeKind::Delivered);
    assert_eq!(made.load(Ordering::SeqCst), 50);
    let received = server.seen(|s| s.content_octets);
    assert_eq!(received, (50 << 20) + 3);
    assert!(
        widest.load(Ordering::SeqCst) <= 16 << 20,
        "{} octets under way",
        widest.load(Ordering::SeqCst)
    );
}

#[tokio::test]
async fn content_of_another_length_or_with_bare_line_ends_is_not_ended() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    for (content, kind) in [
        (&b"twenty octets only\r\n"[..], OutcomeKind::Deferred),
        (b"0123456789\n.\n23456789\r\n", OutcomeKind::Failed),
    ] {
        let setup = Setup {
            body: pieces(vec![content]),
            ..Setup::route_to(server.address, &authority.roots)
        };
        assert_eq!(setup.build().deliver(lease(&[BOB])).await[0].kind, kind);
    }
    server.seen(|s| assert!(s.contents.iter().all(|c| !c.ends_with(b"\r\n.\r\n"))));
}

#[tokio::test]
async fn content_that_breaks_off_is_never_ended_with_a_dot() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let body = std::sync::Arc::new(|| {
        use futures_util::StreamExt;
        let items = vec![
            Ok(bytes::Bytes::from_static(b"half a message\r\n")),
            Err(super::BodyError("gone".into())),
        ];
        futures_util::stream::iter(items).boxed()
    });
    let outcomes = Setup {
        body,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build()
    .deliver(lease(&[BOB]))
    .await;
    assert_eq!(
        (outcomes[0].kind, status(&outcomes[0]).as_str()),
        (OutcomeKind::Deferred, "4.3.0")
    );
    server.seen(|s| assert!(s.contents.iter().all(|c| !c.ends_with(b"\r\n.\r\n"))));
}

#[tokio::test]
async fn a_lost_lease_stops_before_the_dot_and_reports_nothing() {
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let clock = LeaseClock::new(Instant::now(), Duration::from_secs(60));
    let taken = clock.clone();
    let body = std::sync::Arc::new(move || {
        use futures_util::StreamExt;
        let taken = taken.clone();
        let piece = bytes::Bytes::from_static(b"Subject: x\r\n\r\nhello\r\n");
        futures_util::stream::once(async move {
            taken.lost();
            Ok(piece)
        })
        .boxed()
    });
    let bench = Setup {
        body,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build();
    assert!(bench.deliver_within(lease(&[BOB]), clock).await.is_empty());
    server.seen(|s| assert!(s.contents.iter().all(|c| !c.ends_with(b"\r\n.\r\n"))));
}

/// What expires under an attempt is not renewed: its report waits for the lease, so it goes back at once.
#[tokio::test]
async fn a_lease_that_is_not_renewed_is_given_back_before_the_dot_and_kept_after_it() {
    use futures_util::StreamExt;
    let (authority, certificate) = valid();
    for dot_sent in [false, true] {
        let renewals = tokio::sync::watch::Sender::new(0u64);
        let script = Script {
            dot_after: Some(renewals.subscribe()),
            ..Script::good(StartTls::Good(certificate.clone()))
        };
        let server = FakeServer::start(script).await;
        let mut setup = Setup {
            renewal: Renewal::Lost,
            ..Setup::route_to(server.address, &authority.roots)
        };
        if !dot_sent {
            setup.body = std::sync::Arc::new(|| futures_util::stream::pending().boxed());
        }
        setup.options.lease_margin = ConfigSpan(Duration::from_millis(1));
        let mut bench = setup.build();
        bench.courier.control.renewals = renewals;
        let mut message = lease(&[BOB]);
        message.length = Duration::from_secs(1);
        let (key, clock) = (
            message.key,
            LeaseClock::new(Instant::now(), message.length * 60),
        );
        let outcomes = bench.deliver_within(message, clock).await;
        let given_back = bench.control.given_back.lock().unwrap().clone();
        if dot_sent {
            assert_eq!(outcomes.len(), 1);
            assert_eq!(outcomes[0].kind, OutcomeKind::Delivered);
            assert!(given_back.is_empty());
        } else {
            assert!(outcomes.is_empty(), "{outcomes:?}");
            assert_eq!(given_back, [key]);
        }
    }
}

/// A lease of 300 ms; the content comes when the lease was renewed three times, or is over.
#[tokio::test]
async fn a_lease_is_renewed_every_third_and_without_renewal_the_attempt_ends() {
    use futures_util::StreamExt;
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    for (renewal, delivered) in [
        (Renewal::Renewed(Duration::from_secs(60)), true),
        (Renewal::Lost, false),
        (Renewal::Unknown, false),
    ] {
        let mut message = lease(&[BOB]);
        message.size = 6;
        message.length = Duration::from_millis(300);
        let clock = LeaseClock::new(Instant::now() + Duration::from_secs(1), message.length);
        let renewals = tokio::sync::watch::Sender::new(0u64);
        let (watched, count) = (clock.clone(), renewals.subscribe());
        let body = std::sync::Arc::new(move || {
            let (watched, mut count) = (watched.clone(), count.clone());
            futures_util::stream::once(async move {
                if delivered {
                    count.wait_for(|n| *n >= 3).await.unwrap();
                } else {
                    while !watched.remaining().is_zero() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
                Ok(bytes::Bytes::from_static(b"late\r\n"))
            })
            .boxed()
        });
        let mut setup = Setup {
            body,
            renewal,
            ..Setup::route_to(server.address, &authority.roots)
        };
        setup.options.lease_margin = ConfigSpan(Duration::from_millis(1));
        let mut bench = setup.build();
        bench.courier.control.renewals = renewals;
        let outcomes = bench.deliver_within(message, clock).await;
        assert_eq!(outcomes.len(), usize::from(delivered), "{renewal:?}");
    }
    assert_eq!(
        server.seen(|s| s
            .contents
            .iter()
            .filter(|c| c.ends_with(b"\r\n.\r\n"))
            .count()),
        1
    );
}

#[tokio::test]
async fn a_dead_host_makes_way_for_the_next() {
    use crate::resolve::{ResolverOptions, testing::exchange_server};
    let (authority, certificate) = valid();
    let server = FakeServer::start(Script::good(StartTls::Good(certificate))).await;
    let dns = exchange_server("dest.example", vec![(10, "127.0.0.2"), (20, "127.0.0.1")]).await;
    let resolver = ResolverOptions {
        nameservers: vec![dns],
        allow_private: true,
        exchange_port: server.address.port(),
        ..ResolverOptions::default()
    };
    let bench = Setup {
        route: None,
        resolver,
        ..Setup::route_to(server.address, &authority.roots)
    }
    .build();
    let outcomes = bench.deliver(lease(&[BOB])).await;
    assert_eq!(outcomes[0].kind, OutcomeKind::Delivered);
    assert_eq!(
        outcomes[0].remote,
        format!("m20.dest.example [127.0.0.1]:{}", server.address.port())
    );
    server.seen(|s| assert_eq!(s.names, [Some("m20.dest.example".to_owned())]));
}

#[tokio::test]
async fn nobody_listening_is_temporary_and_not_tls_caused() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let outcomes = Setup::route_to(closed, &Authority::new().roots)
        .build()
        .deliver(lease(&[BOB]))
        .await;
    assert_eq!(
        (
            status(&outcomes[0]).as_str(),
            outcomes[0].kind,
            outcomes[0].tls_caused
        ),
        ("4.4.1", OutcomeKind::Deferred, false)
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_after_the_deadline() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::route_to(silent.local_addr().unwrap(), &Authority::new().roots);
    setup.options.greeting_timeout = ConfigSpan(Duration::from_millis(50));
    let outcomes = setup.build().deliver(lease(&[BOB])).await;
    assert_eq!(
        (status(&outcomes[0]).as_str(), outcomes[0].kind),
        ("4.4.2", OutcomeKind::Deferred)
    );
}

#[tokio::test]
async fn endless_and_malformed_replies_are_temporary() {
    let (authority, certificate) = valid();
    let good = Script::good(StartTls::Good(certificate));
    for script in [
        Script {
            dot: "999 what",
            ..good.clone()
        },
        Script {
            dot: "hello there",
            ..good.clone()
        },
        Script {
            data: "250 2.0.0 not 354",
            ..good.clone()
        },
        Script {
            mail: "220 \u{7}\u{1b}[2J",
            ..good.clone()
        },
    ] {
        let server = FakeServer::start(script).await;
        let outcomes = Setup::route_to(server.address, &authority.roots)
            .build()
            .deliver(lease(&[BOB]))
            .await;
        assert!(outcomes[0].kind != OutcomeKind::Failed, "{:?}", outcomes[0]);
        assert!(
            outcomes[0]
                .reply
                .text
                .bytes()
                .all(|b| (0x20..0x7f).contains(&b) || b == b'\n')
        );
    }
}
