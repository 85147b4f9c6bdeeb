//! Conversations, by rule.
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use sealane_types::{MessageId, ShardId, TlsFacts};
use std::sync::Arc;

fn config(listener: Listener) -> Arc<ServerConfig> {
    Arc::new(ServerConfig {
        hostname: "mx.example".into(),
        listener,
        max_size: 1000,
        max_recipients: 100,
        max_line: 4096,
        max_errors: 20,
        max_auth_failures: 3,
    })
}

/// Answers every question with yes; records what was said and what was stored.
struct Peer {
    session: ServerSession,
    said: String,
    stored: Vec<Vec<u8>>,
    body: Vec<u8>,
    asked: Vec<String>,
    closed: bool,
    start_tls: bool,
}

impl Peer {
    fn new(listener: Listener) -> Self {
        let mut session = ServerSession::new(config(listener));
        session.handle(Event::Connected(
            (listener == Listener::Submissions).then(TlsFacts::default),
        ));
        let mut peer = Self {
            session,
            said: String::new(),
            stored: Vec::new(),
            body: Vec::new(),
            asked: Vec::new(),
            closed: false,
            start_tls: false,
        };
        peer.run();
        peer
    }

    fn secure(listener: Listener) -> Self {
        let mut p = Self::new(listener);
        if listener != Listener::Submissions {
            p.say("EHLO a.example\r\nSTARTTLS\r\n");
            assert!(p.start_tls);
            p.session.handle(Event::TlsEstablished(TlsFacts::default()));
        }
        p.say("EHLO a.example\r\n");
        p
    }

    fn authenticated() -> Self {
        let mut p = Self::secure(Listener::Submission);
        assert_eq!(
            p.say("AUTH PLAIN AGRlbW8Ac2VjcmV0\r\n"),
            "235 2.7.0 Authentication successful\r\n"
        );
        p
    }

    fn run(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Send(b) => self.said.push_str(std::str::from_utf8(&b).unwrap()),
                Action::StartTls => self.start_tls = true,
                Action::Authenticate { name, password } => {
                    let good = name == "demo" && password.0 == b"secret";
                    let outcome = if good {
                        AuthOutcome::Accepted(name)
                    } else {
                        AuthOutcome::Rejected
                    };
                    self.session.handle(Event::Auth(outcome));
                }
                Action::CheckMail { reverse_path, .. } => {
                    self.asked.push(format!("MAIL {reverse_path}"));
                    self.session.handle(Event::Verdict(Verdict::Accept));
                }
                Action::CheckRcpt(m) => {
                    self.asked.push(format!("RCPT {m}"));
                    self.session.handle(Event::Verdict(Verdict::Accept));
                }
                Action::BeginData => self.session.handle(Event::Verdict(Verdict::Accept)),
                Action::BodyData(b) => self.body.extend_from_slice(&b),
                Action::BodyEnd => {
                    self.stored.push(std::mem::take(&mut self.body));
                    let id = MessageId::new(ShardId::new(1).unwrap(), 0, [0; 9]);
                    self.session.handle(Event::Body(BodyOutcome::Durable(
                        crate::Durable::acknowledged(id),
                    )));
                }
                Action::BodyAborted => self.body.clear(),
                Action::Reset => {}
                Action::Close => self.closed = true,
            }
        }
    }

    /// What the session answers to these octets.
    fn say(&mut self, text: impl AsRef<[u8]>) -> String {
        self.said.clear();
        self.session.input(text.as_ref());
        self.run();
        self.said.clone()
    }
}

#[test]
fn tls1_everything_but_ehlo_noop_starttls_quit_is_530_before_tls() {
    for listener in [Listener::Mx, Listener::Submission] {
        let mut p = Peer::new(listener);
        p.say("EHLO x\r\n");
        for verb in [
            "HELO x",
            "MAIL FROM:<a@b.example>",
            "RCPT TO:<a@b.example>",
            "DATA",
            "RSET",
            "VRFY a",
            "EXPN a",
            "HELP",
            "ETRN a",
            "AUTH PLAIN AGRlbW8Ac2VjcmV0",
            "BDAT 1 LAST",
        ] {
            let said = p.say(format!("{verb}\r\n"));
            assert_eq!(
                said, "530 5.7.0 Must issue a STARTTLS command first\r\n",
                "{verb}"
            );
        }
        assert!(p.asked.is_empty());
        assert_eq!(p.say("NOOP\r\n"), "250 2.0.0 Ok\r\n");
        assert_eq!(
            p.say("STARTTLS now\r\n"),
            "501 5.5.4 STARTTLS takes no parameter\r\n"
        );
    }
}

#[test]
fn auth_is_offered_only_inside_tls_and_only_on_submission() {
    assert!(
        !Peer::new(Listener::Submission)
            .say("EHLO x\r\n")
            .contains("AUTH")
    );
    let mut mx = Peer::secure(Listener::Mx);
    assert!(!mx.say("EHLO x\r\n").contains("AUTH"));
    let mut s = Peer::secure(Listener::Submission);
    let ehlo = s.say("EHLO x\r\n");
    assert!(
        ehlo.contains("250-AUTH PLAIN\r\n") && !ehlo.contains("STARTTLS"),
        "{ehlo}"
    );
}

#[test]
fn t1_octets_behind_starttls_close_the_connection_and_nothing_is_executed() {
    let mut p = Peer::new(Listener::Mx);
    let said = p.say("EHLO x\r\nSTARTTLS\r\nMAIL FROM:<a@b.example>\r\n");
    assert!(
        said.ends_with("554 5.5.0 Octets behind STARTTLS, closing\r\n"),
        "{said}"
    );
    assert!(p.closed && !p.start_tls && p.asked.is_empty());
}

#[test]
fn t2_nothing_known_before_tls_survives_it() {
    let mut p = Peer::new(Listener::Mx);
    p.say("EHLO x\r\nSTARTTLS\r\n");
    p.session.handle(Event::TlsEstablished(TlsFacts::default()));
    assert_eq!(
        p.say("MAIL FROM:<a@b.example>\r\n"),
        "503 5.5.1 Send EHLO first\r\n"
    );
    assert_eq!(p.say("STARTTLS\r\n"), "503 5.5.1 TLS is active already\r\n");
}

#[test]
fn a2_submission_without_auth_is_530() {
    for listener in [Listener::Submission, Listener::Submissions] {
        let mut p = Peer::secure(listener);
        assert_eq!(
            p.say("MAIL FROM:<a@b.example>\r\n"),
            "530 5.7.0 Authentication required\r\n"
        );
        assert_eq!(p.say("VRFY a\r\n"), "530 5.7.0 Authentication required\r\n");
    }
}

#[test]
fn auth_rules_of_rfc_4954() {
    let mut p = Peer::secure(Listener::Submission);
    assert_eq!(
        p.say("AUTH FOO\r\n"),
        "504 5.5.4 Mechanism not supported\r\n"
    );
    assert_eq!(p.say("AUTH PLAIN ====\r\n"), "501 5.5.2 Invalid base64\r\n");
    assert_eq!(p.say("AUTH PLAIN\r\n"), "334 \r\n");
    assert_eq!(p.say("*\r\n"), "501 5.7.0 Authentication cancelled\r\n");
    assert_eq!(p.say("AUTH PLAIN\r\n"), "334 \r\n");
    assert_eq!(
        p.say("AGRlbW8Ac2VjcmV0\r\n"),
        "235 2.7.0 Authentication successful\r\n"
    );
    assert_eq!(
        p.say("AUTH PLAIN AGRlbW8Ac2VjcmV0\r\n"),
        "503 5.5.1 AUTH is not possible now\r\n"
    );
}

#[test]
fn auth7_three_failures_are_421() {
    let mut p = Peer::secure(Listener::Submission);
    for n in 0..3 {
        let said = p.say("AUTH PLAIN AGRlbW8Ad3Jvbmc=\r\n");
        assert!(said.starts_with("535 5.7.8"), "{said}");
        assert_eq!(p.closed, n == 2);
    }
}

#[test]
fn a_pipelined_transaction_is_answered_in_order() {
    let mut p = Peer::authenticated();
    let said = p.say(
        "MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<c@d.example>\r\nRCPT TO:<\"x y\"@d.example>\r\nDATA\r\n",
    );
    assert_eq!(
        said,
        "250 2.1.0 Sender ok\r\n250 2.1.5 Recipient ok\r\n250 2.1.5 Recipient ok\r\n354 End data with <CR><LF>.<CR><LF>\r\n"
    );
    let said = p.say("Subject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n");
    assert!(
        said.starts_with("250 2.0.0 Accepted ") && said.ends_with("221 2.0.0 Bye\r\n"),
        "{said}"
    );
    assert_eq!(p.stored, [b"Subject: x\r\n\r\n.dot\r\n".to_vec()]);
    assert!(p.closed);
}

#[test]
fn s1_smuggled_messages_are_refused_whole() {
    for fake in ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n\0.\r\n"] {
        let mut p = Peer::authenticated();
        p.say("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n");
        let said = p.say(format!(
            "x{fake}MAIL FROM:<e@e.example>\r\nRCPT TO:<e@e.example>\r\nDATA\r\ny\r\n.\r\n"
        ));
        assert_eq!(
            said, "550 5.5.2 Bare CR, bare LF or NUL in message\r\n",
            "{fake:?}"
        );
        assert!(p.stored.is_empty());
        assert_eq!(p.asked.len(), 2);
        assert_eq!(p.say("NOOP\r\n"), "250 2.0.0 Ok\r\n");
    }
}

#[test]
fn too_large_is_552_declared_or_not() {
    let mut p = Peer::authenticated();
    assert!(
        p.say("MAIL FROM:<a@b.example> SIZE=1001\r\n")
            .starts_with("552 5.3.4")
    );
    assert!(
        p.say("MAIL FROM:<a@b.example> SIZE=999999999999999999999\r\n")
            .starts_with("501")
    );
    p.say("MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n");
    let said = p.say(format!("{}\r\n.\r\nNOOP\r\n", "x".repeat(2000)));
    assert_eq!(
        said,
        "552 5.3.4 Message size exceeds the limit\r\n250 2.0.0 Ok\r\n"
    );
    assert!(p.stored.is_empty());
}

#[test]
fn order_and_syntax_errors_have_their_codes() {
    let mut p = Peer::authenticated();
    for (line, code) in [
        ("RCPT TO:<a@b.example>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("MAIL FROM:a@b.example", "501 5.1.7"),
        ("MAIL FROM:<a@b..example>", "501 5.1.7"),
        ("MAIL FROM:<a@sales>", "554 5.1.8"),
        ("MAIL FROM:<a@b.example> FOO=1", "555 5.5.4"),
        ("MAIL FROM:<a@b.example> SIZE=1 SIZE=1", "501 5.5.4"),
        ("MAIL FROM:<e=mc2@x.example> AUTH=e+3Dmc2@x.example", "250"),
        ("MAIL FROM:<a@b.example>", "503 5.5.1"),
        ("RCPT TO:<@:a@b.example>", "501 5.1.3"),
        ("RCPT TO:<a b@b.example>", "501 5.1.3"),
        ("RCPT TO:<b@x>", "554 5.1.3"),
        ("DATA", "554 5.5.1"),
        ("RCPT TO:<@x.example,@[192.0.2.1]:a@b.example>", "250"),
        ("FOO", "500 5.5.2"),
        ("EXPN a", "502 5.5.1"),
        ("VRFY a", "252 2.5.2"),
    ] {
        let said = p.say(format!("{line}\r\n"));
        assert!(said.starts_with(code), "{line}: {said}");
    }
    assert_eq!(
        p.say("NOOP\nNOOP\r\n"),
        "500 5.5.2 Bare CR or LF in command\r\n250 2.0.0 Ok\r\n"
    );
}

#[test]
fn only_rcpt_may_be_a_bare_postmaster() {
    let mut p = Peer::secure(Listener::Mx);
    assert!(
        p.say("MAIL FROM:<postmaster>\r\n")
            .starts_with("501 5.1.7 ")
    );
    assert!(
        p.say("MAIL FROM:<>\r\nRCPT TO:<postmaster>\r\n")
            .ends_with("250 2.1.5 Recipient ok\r\n")
    );
}

#[test]
fn auth13_before_auth_all_but_seven_verbs_are_530() {
    let mut p = Peer::secure(Listener::Submission);
    for verb in [
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<a@b.example>",
        "DATA",
        "VRFY a",
        "EXPN a",
        "BDAT 1",
        "FOO",
    ] {
        assert_eq!(
            p.say(format!("{verb}\r\n")),
            "530 5.7.0 Authentication required\r\n",
            "{verb}"
        );
    }
    assert!(p.say("NOOP\r\nRSET\r\n").starts_with("250 "));
}

#[test]
fn white_space_around_arguments_is_tolerated() {
    let mut p = Peer::secure(Listener::Submission);
    assert!(
        p.say("EHLO  client.example \t\r\n")
            .starts_with("250-mx.example\r\n")
    );
    assert_eq!(p.session.helo(), "client.example");
    assert_eq!(p.say("AUTH PLAIN \r\n"), "334 \r\n");
    assert!(p.say("AGRlbW8Ac2VjcmV0 \r\n").starts_with("235 "));
    assert!(p.say("MAIL  FROM: <a@b.example> \r\n").starts_with("250 "));
    assert!(p.say("RCPT\tTO:<a@b.example>\r\n").starts_with("250 "));
    assert!(p.say("DATA  \r\n").starts_with("354 "));
}

#[test]
fn auth5_a_broken_exchange_line_ends_the_exchange() {
    let mut p = Peer::secure(Listener::Submission);
    for (line, reply) in [
        ("x".repeat(13_000), "500 5.5.6 "),
        ("a\rb".into(), "500 5.5.2 "),
    ] {
        assert_eq!(p.say("AUTH PLAIN\r\n"), "334 \r\n");
        assert!(p.say(format!("{line}\r\n")).starts_with(reply));
        assert_eq!(p.say("NOOP\r\n"), "250 2.0.0 Ok\r\n");
    }
    // An initial response may be as long.
    let said = p.say(format!("AUTH PLAIN {}\r\n", "A".repeat(8000)));
    assert!(said.starts_with("501 5.5.2 "), "{said}");
}

#[test]
fn commands_without_mail_and_errors_without_success_are_bounded() {
    let mut p = Peer::secure(Listener::Mx);
    let said = p.say("NOOP\r\n".repeat(200));
    assert!(said.ends_with("421 4.7.0 Too many commands without mail, closing\r\n") && p.closed);
    let mut p = Peer::secure(Listener::Submission);
    let said = p.say("AUTH PLAIN !\r\n".repeat(30));
    assert!(said.ends_with("421 4.7.0 Too many errors, closing\r\n") && p.closed);
    // An accepted message clears the account.
    let mut p = Peer::secure(Listener::Mx);
    for _ in 0..5 {
        p.say("FOO\r\n".repeat(15));
        let said = p.say("MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n.\r\n");
        assert!(said.contains("250 2.0.0 Accepted"), "{said}");
    }
}

#[test]
fn replies_wait_for_the_peer_to_take_them() {
    let mut p = Peer::secure(Listener::Mx);
    p.session.input(&b"EHLO a.example\r\nVRFY a\r\n".repeat(49));
    let mut count = 0;
    while let Some(action) = p.session.poll_action() {
        let Action::Send(octets) = action else {
            panic!("{action:?}")
        };
        assert!(octets.len() < 32 << 10);
        count += String::from_utf8_lossy(&octets).matches("252 ").count();
    }
    assert_eq!(count, 49);
}

#[test]
fn s6_an_endless_line_costs_no_memory() {
    let mut p = Peer::secure(Listener::Mx);
    for _ in 0..1000 {
        assert_eq!(p.say(vec![b'a'; 10_000]), "");
    }
    assert_eq!(
        p.say("\r\nNOOP\r\n"),
        "500 5.5.2 Line too long\r\n250 2.0.0 Ok\r\n"
    );
}

#[test]
fn t11_http_is_shown_the_door() {
    let mut p = Peer::new(Listener::Mx);
    assert!(p.say("GET / HTTP/1.1\r\nHost: x\r\n").starts_with("554"));
    assert!(p.closed);
}

#[test]
fn an_unknown_outcome_closes_without_a_word() {
    let mut s = ServerSession::new(config(Listener::Submissions));
    s.handle(Event::Connected(Some(TlsFacts::default())));
    s.input(b"EHLO x\r\nAUTH PLAIN AGRlbW8Ac2VjcmV0\r\n");
    s.handle(Event::Auth(AuthOutcome::Accepted("demo".into())));
    for (line, event) in [
        ("MAIL FROM:<>\r\n", Event::Verdict(Verdict::Accept)),
        ("RCPT TO:<a@b.example>\r\n", Event::Verdict(Verdict::Accept)),
        ("DATA\r\n", Event::Verdict(Verdict::Accept)),
    ] {
        s.input(line.as_bytes());
        s.handle(event);
    }
    while s.poll_action().is_some() {}
    s.input(b"x\r\n.\r\n");
    s.handle(Event::Body(BodyOutcome::Unknown));
    let actions: Vec<Action> = std::iter::from_fn(|| s.poll_action()).collect();
    assert_eq!(
        actions,
        [
            Action::BodyData(Bytes::from_static(b"x\r\n")),
            Action::BodyEnd,
            Action::Close
        ]
    );
}

proptest! {
    /// However the octets are cut, the same is said and stored; nothing panics.
    #[test]
    fn splits_do_not_change_a_conversation(
        lines in prop::collection::vec(prop::sample::select(vec![
            "MAIL FROM:<a@b.example>\r\n", "RCPT TO:<c@d.example>\r\n", "DATA\r\n", "text\r\n", ".\r\n", "..\r\n", "RSET\r\n",
            "NOOP\r\n", "FOO\r\n", "x\n", "\r", "EHLO y\r\n", "AUTH PLAIN\r\n", "*\r\n",
        ]), 0..25),
        cuts in prop::collection::vec(1usize..12, 1..40),
    ) {
        let text = lines.concat();
        let mut whole = Peer::authenticated();
        let said = whole.say(&text);
        let mut split = Peer::authenticated();
        let mut rest = text.as_bytes();
        let mut heard = String::new();
        for cut in cuts.iter().cycle().take(text.len() + 1) {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            heard.push_str(&split.say(piece));
            rest = tail;
        }
        prop_assert_eq!(said, heard);
        prop_assert_eq!(whole.stored, split.stored);
    }

    #[test]
    fn arbitrary_octets_never_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let mut p = Peer::secure(Listener::Mx);
        for piece in pieces {
            p.session.input(&piece);
            while p.session.poll_action().is_some() {}
        }
    }
}
