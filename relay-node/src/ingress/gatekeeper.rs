//! Who may send what to whom. Pure: the policy is an argument.
use crate::metrics::Refusal;
use sealane_policy::PolicySnapshot;
use sealane_smtp::server::Listener;
use sealane_types::{Mailbox, Reply, ReversePath};

/// No, with this reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) reply: Reply,
    pub(super) why: Refusal,
}

fn refused(why: Refusal, code: u16, enhanced: (u8, u16, u16), text: &str) -> Refused {
    Refused {
        reply: Reply::new(code, enhanced, text),
        why,
    }
}

/// There is no policy yet.
pub(super) fn no_policy() -> Refused {
    refused(
        Refusal::Policy,
        451,
        (4, 3, 0),
        "No policy yet, try again later",
    )
}

/// MAIL. On MX, MAIL FROM authorises nothing and refuses nothing (INV-3, RFC 2505 section 2.6.1).
pub(super) fn sender(
    policy: &PolicySnapshot,
    listener: Listener,
    submitter: Option<&str>,
    path: &ReversePath,
) -> Result<(), Refused> {
    match (listener, submitter) {
        (Listener::Mx, _) => Ok(()),
        (_, Some(name)) if policy.may_send_as(name, path) => Ok(()),
        _ => Err(refused(
            Refusal::Sender,
            550,
            (5, 7, 1),
            "Not allowed to send as this address",
        )),
    }
}

/// RCPT: the mailbox to deliver to.
pub(super) fn recipient(
    policy: &PolicySnapshot,
    listener: Listener,
    mailbox: &Mailbox,
) -> Result<Mailbox, Refused> {
    let unknown = || refused(Refusal::Recipient, 550, (5, 1, 1), "No such mailbox here");
    let Some(domain) = mailbox.domain() else {
        // Bare postmaster (RFC 5321 section 4.5.1) lives in the first served domain.
        let home = policy.home().ok_or_else(unknown)?;
        return Mailbox::parse(&format!("postmaster@{home}")).map_err(|_| unknown());
    };
    if listener != Listener::Mx || policy.accepts(mailbox) {
        return Ok(mailbox.clone());
    }
    Err(if policy.serves(domain) {
        unknown()
    } else {
        refused(Refusal::Recipient, 550, (5, 7, 1), "Relaying denied")
    })
}

/// The document that lets the message in.
pub(super) fn rule(listener: Listener, submitter: Option<&str>, first: &Mailbox) -> String {
    match (listener, submitter) {
        (Listener::Mx, _) | (_, None) => {
            format!(
                "Domain/{}",
                first.domain().map_or("", sealane_types::DomainName::as_str)
            )
        }
        (_, Some(name)) => format!("Submitter/{name}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use sealane_wire::v1::{self, document::Kind};

    fn policy() -> PolicySnapshot {
        let documents = vec![
            v1::Document {
                kind: Some(Kind::Domain(v1::DomainDocument {
                    name: "served.example".into(),
                    recipients: vec!["bob".into()],
                    route: None,
                })),
            },
            v1::Document {
                kind: Some(Kind::Submitter(v1::SubmitterDocument {
                    name: "alice".into(),
                    password_verifier: sealane_policy::hash_password("p", &[1; 16]).unwrap(),
                    senders: vec!["alice@own.example".into()],
                })),
            },
        ];
        PolicySnapshot::from_wire(&v1::PolicySet {
            revision: 1,
            documents,
        })
        .unwrap()
    }

    #[test]
    fn mx_takes_mail_for_served_recipients_only() {
        let p = policy();
        for (to, code) in [
            ("bob@served.example", None),
            ("postmaster@served.example", None),
            ("postmaster", None),
            ("eve@served.example", Some((550, "5.1.1"))),
            ("x@elsewhere.example", Some((550, "5.7.1"))),
            ("x%elsewhere.example@served.example", Some((550, "5.1.1"))),
        ] {
            let got = recipient(&p, Listener::Mx, &Mailbox::parse(to).unwrap());
            let got = got
                .err()
                .map(|r| (r.reply.code, r.reply.enhanced.unwrap().to_string()));
            assert_eq!(
                got,
                code.map(|(c, e): (u16, &str)| (c, e.to_owned())),
                "{to}"
            );
        }
    }

    #[test]
    fn submitters_send_only_as_themselves_to_anyone() {
        let p = policy();
        let path = |s| ReversePath::parse(s).unwrap();
        assert!(
            sender(
                &p,
                Listener::Submission,
                Some("alice"),
                &path("alice@own.example")
            )
            .is_ok()
        );
        assert!(sender(&p, Listener::Submission, Some("alice"), &path("")).is_ok());
        assert!(
            sender(
                &p,
                Listener::Submission,
                Some("alice"),
                &path("bob@own.example")
            )
            .is_err()
        );
        assert!(sender(&p, Listener::Submissions, None, &path("alice@own.example")).is_err());
        assert!(sender(&p, Listener::Mx, None, &path("anyone@served.example")).is_ok());
        assert!(
            recipient(
                &p,
                Listener::Submission,
                &Mailbox::parse("x@elsewhere.example").unwrap()
            )
            .is_ok()
        );
    }
}
