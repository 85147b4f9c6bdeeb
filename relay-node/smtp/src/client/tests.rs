//! What the client says to peers that behave, and to those that do not.
use super::*;
use proptest::prelude::*;

fn session() -> ClientSession {
    ClientSession::new(ClientConfig {
        hostname: "us.example".into(),
        implicit_tls: false,
    })
}

fn drain(s: &mut ClientSession) -> (String, Vec<Action>) {
    let (mut said, mut rest) = (String::new(), Vec::new());
    while let Some(a) = s.poll_action() {
        match a {
            Action::Send(b) => said.push_str(std::str::from_utf8(&b).unwrap()),
            other => rest.push(other),
        }
    }
    (said, rest)
}

fn hear(s: &mut ClientSession, text: &str) -> (String, Vec<Action>) {
    s.input(text.as_bytes());
    drain(s)
}

fn ready() -> ClientSession {
    let mut s = session();
    hear(&mut s, "220 hi\r\n");
    hear(&mut s, "250-mx\r\n250 STARTTLS\r\n");
    assert_eq!(hear(&mut s, "220 go\r\n").1, [Action::StartTls]);
    s.tls_established();
    drain(&mut s);
    assert_eq!(
        hear(
            &mut s,
            "250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 1000\r\n"
        )
        .1,
        [Action::Ready]
    );
    s
}

fn mail(recipients: &[&str]) -> Transaction {
    Transaction {
        reverse_path: "a@us.example".into(),
        recipients: recipients.iter().map(|r| (*r).to_owned()).collect(),
        size: 10,
        eight_bit: true,
    }
}

fn classes(actions: &[Action]) -> Vec<&'static str> {
    let done = actions.iter().find_map(|a| {
        if let Action::Done(o) = a {
            Some(o)
        } else {
            None
        }
    });
    done.into_iter()
        .flatten()
        .map(|o| match o {
            RecipientOutcome::Delivered(_) => "delivered",
            RecipientOutcome::Failed(f) if f.permanent => "failed",
            RecipientOutcome::Failed(_) => "deferred",
        })
        .collect()
}

#[test]
fn t5_without_starttls_nothing_but_ehlo_and_quit_is_said() {
    for ehlo in [
        "250-mx\r\n250-AUTH PLAIN\r\n250 PIPELINING\r\n",
        "250-mx\r\n250 XXXXXXXA\r\n",
    ] {
        let mut s = session();
        assert_eq!(hear(&mut s, "220 hi\r\n").0, "EHLO us.example\r\n");
        assert_eq!(hear(&mut s, ehlo).0, "QUIT\r\n");
        let (said, actions) = hear(&mut s, "221 bye\r\n");
        let [Action::Close(Some(f))] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert!(said.is_empty() && f.tls_caused && !f.permanent);
        assert_eq!(f.reply.enhanced.unwrap().to_string(), "4.7.4");
    }
}

#[test]
fn t5_refused_starttls_is_never_plaintext() {
    let mut s = session();
    hear(&mut s, "220 hi\r\n");
    hear(&mut s, "250-mx\r\n250 STARTTLS\r\n");
    assert_eq!(hear(&mut s, "502 no\r\n").0, "QUIT\r\n");
}

#[test]
fn t4_octets_behind_the_220_abort() {
    let mut s = session();
    hear(&mut s, "220 hi\r\n");
    hear(&mut s, "250-mx\r\n250 STARTTLS\r\n");
    let (said, actions) = hear(&mut s, "220 go\r\n250-FAKE\r\n");
    assert!(said.is_empty());
    assert!(
        matches!(actions.as_slice(), [Action::Close(Some(f))] if f.tls_caused),
        "{actions:?}"
    );
}

#[test]
fn t7_capabilities_in_clear_are_forgotten() {
    let mut s = session();
    hear(&mut s, "220 hi\r\n");
    hear(
        &mut s,
        "250-mx\r\n250-PIPELINING\r\n250-SIZE 5\r\n250 STARTTLS\r\n",
    );
    hear(&mut s, "220 go\r\n");
    s.tls_established();
    drain(&mut s);
    hear(&mut s, "250 mx\r\n");
    s.begin(Transaction {
        eight_bit: false,
        ..mail(&["b@x.example"])
    });
    assert_eq!(drain(&mut s).0, "MAIL FROM:<a@us.example>\r\n");
}

#[test]
fn recipients_have_their_own_outcomes() {
    let mut s = ready();
    s.begin(mail(&["a@x.example", "b@x.example", "c@x.example"]));
    let (said, _) = drain(&mut s);
    assert_eq!(
        said,
        "MAIL FROM:<a@us.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<a@x.example>\r\n\
         RCPT TO:<b@x.example>\r\nRCPT TO:<c@x.example>\r\nDATA\r\n"
    );
    let (said, _) = hear(
        &mut s,
        "250 ok\r\n250 ok\r\n550 5.1.1 no\r\n451 4.2.0 later\r\n",
    );
    assert_eq!(said, "");
    assert_eq!(hear(&mut s, "354 go\r\n").1, [Action::SendBody]);
    s.body_sent();
    let (_, actions) = hear(&mut s, "250 2.0.0 queued\r\n");
    assert_eq!(classes(&actions), ["delivered", "failed", "deferred"]);
    assert!(s.is_ready());
}

#[test]
fn a_refused_sender_fails_all_and_the_session_goes_on() {
    let mut s = ready();
    s.begin(mail(&["a@x.example"]));
    drain(&mut s);
    let (said, actions) = hear(&mut s, "550 5.7.1 no\r\n503 5.5.1 order\r\n");
    assert_eq!((said.as_str(), classes(&actions)), ("", vec![]));
    let (said, actions) = hear(&mut s, "503 5.5.1 order\r\n");
    assert_eq!(
        (said.as_str(), classes(&actions)),
        ("RSET\r\n", vec!["failed"])
    );
    hear(&mut s, "250 ok\r\n");
    assert!(s.is_ready());
}

#[test]
fn where_nobody_was_accepted_a_354_is_answered_by_a_dot_alone() {
    for (replies, class) in [
        ("550 5.7.1 no\r\n503 5.5.1 order\r\n", "failed"),
        ("250 ok\r\n451 4.2.0 later\r\n", "deferred"),
    ] {
        for last in ["554 5.5.1 nobody\r\n", "250 2.0.0 well\r\n"] {
            let mut s = ready();
            s.begin(mail(&["a@x.example"]));
            drain(&mut s);
            hear(&mut s, replies);
            assert_eq!(s.awaits(), Awaited::Data);
            assert_eq!(hear(&mut s, "354 go\r\n"), (".\r\n".into(), vec![]));
            let (said, actions) = hear(&mut s, last);
            assert_eq!(
                (said.as_str(), classes(&actions)),
                ("RSET\r\n", vec![class])
            );
            hear(&mut s, "250 ok\r\n");
            assert!(s.is_ready());
        }
    }
}

#[test]
fn without_pipelining_each_command_waits_for_its_reply() {
    let mut s = session();
    hear(&mut s, "220 hi\r\n");
    hear(&mut s, "250-mx\r\n250 STARTTLS\r\n");
    hear(&mut s, "220 go\r\n");
    s.tls_established();
    drain(&mut s);
    hear(&mut s, "250-mx\r\n250 8BITMIME\r\n");
    s.begin(mail(&["a@x.example", "b@x.example"]));
    assert_eq!(
        drain(&mut s).0,
        "MAIL FROM:<a@us.example> BODY=8BITMIME\r\n"
    );
    assert_eq!(hear(&mut s, "250 ok\r\n").0, "RCPT TO:<a@x.example>\r\n");
    assert_eq!(hear(&mut s, "550 no\r\n").0, "RCPT TO:<b@x.example>\r\n");
    assert_eq!(hear(&mut s, "250 ok\r\n").0, "DATA\r\n");
    assert_eq!(hear(&mut s, "354 go\r\n").1, [Action::SendBody]);
}

#[test]
fn a_connection_lost_after_the_dot_is_an_unknown_outcome() {
    let mut s = ready();
    s.begin(mail(&["a@x.example"]));
    hear(&mut s, "250 ok\r\n250 ok\r\n");
    hear(&mut s, "354 go\r\n");
    s.body_sent();
    s.lost("connection closed");
    let (_, actions) = drain(&mut s);
    assert_eq!(classes(&actions), ["deferred"]);
    assert!(format!("{actions:?}").contains("outcome unknown"));
}

#[test]
fn d14_malicious_replies_are_temporary_failures() {
    for garbage in [
        "999 x\r\n",
        "25\r\n",
        "250-a\r\n251 b\r\n",
        "abc def\r\n",
        &"250-x\r\n".repeat(200),
        &"2".repeat(9000),
    ] {
        let mut s = ready();
        s.begin(mail(&["a@x.example"]));
        drain(&mut s);
        let (_, actions) = hear(&mut s, garbage);
        assert_eq!(classes(&actions), ["deferred"], "{garbage:.20}");
        assert!(s.is_closed());
    }
}

proptest! {
    #[test]
    fn arbitrary_peers_never_hear_mail_in_clear(pieces in prop::collection::vec(prop::sample::select(vec![
        "220 x\r\n", "250 ok\r\n", "250-a\r\n250 STARTTLS\r\n", "354 go\r\n", "421 bye\r\n", "502 no\r\n", "\r\n", "x",
    ]), 0..30)) {
        let mut s = session();
        let mut tls = false;
        for p in pieces {
            s.input(p.as_bytes());
            while let Some(a) = s.poll_action() {
                match a {
                    Action::Send(b) if !tls => {
                        let line = String::from_utf8(b.to_vec()).unwrap();
                        prop_assert!(["EHLO us.example\r\n", "STARTTLS\r\n", "QUIT\r\n"].contains(&line.as_str()), "{line}");
                    }
                    Action::StartTls => { tls = true; s.tls_established(); }
                    Action::Ready => s.begin(mail(&["a@x.example"])),
                    Action::SendBody => s.body_sent(),
                    _ => {}
                }
            }
        }
    }
}
