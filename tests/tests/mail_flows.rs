//! Show 1: mail goes in by every listener and arrives byte for byte behind our trace headers.
#![forbid(unsafe_code)]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::{self, Ledger, Offer, Outcome};
use sealane_tests::load::{self, Kind, Load};
use sealane_tests::policy::{PASSWORD, SERVED, SUBMITTER};
use sealane_tests::sink::{Act, Received, Rule, Stage};
use sealane_tests::smtp::Client;
use sealane_tests::{tools, wait};

const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for the message that carries `token`.
async fn arrived(cluster: &Cluster, token: &str) -> Result<Received> {
    wait::until(&format!("{token} in the sink"), PATIENCE, || async {
        let mut all = cluster.sink.store().list()?.into_iter();
        all.find(|one| {
            one.octets()
                .is_ok_and(|octets| ledger::token(&octets).as_deref() == Some(token))
        })
        .context("not there")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_delivers_byte_for_byte() -> Result<()> {
    let cluster = Cluster::builder().start().await?;
    for kind in [Kind::Mx, Kind::Submission, Kind::Submissions] {
        for target in cluster.targets(kind) {
            let token = load::token();
            let to = vec![format!("a@{SERVED}"), format!("b@{SERVED}")];
            let content = format!(
                "Subject: =?utf-8?q?t?=\r\nX-Ledger: {token}\r\n\r\n.\r\n..\r\n.x\r\n\r\ntabs\tand trailing spaces  \r\n{}\r\n\r\n",
                "9".repeat(998)
            );
            let offer = Offer::of(&token, "demo@client.example", &to, content.as_bytes());
            let mut client = load::connect(target, SUBMITTER, PASSWORD).await?;
            let reply = client
                .transaction(&offer.reverse_path, &to, content.as_bytes())
                .await?;
            ensure!(reply.is(250, "2.0.0"), "{kind:?}: {reply}");
            client.quit().await;
            let received = arrived(&cluster, &token).await?;
            ensure!(
                received.envelope.reverse_path == offer.reverse_path,
                "{:?}",
                received.envelope
            );
            ensure!(
                received.envelope.recipients == to,
                "{:?}",
                received.envelope
            );
            let octets = received.octets()?;
            ledger::behind_trace(&octets, &offer)?;
            let trace =
                String::from_utf8_lossy(&octets[..octets.len() - content.len()]).into_owned();
            println!("{kind:?} via {}:\n{trace}", target.address);
            let protocol = if kind == Kind::Mx {
                "ESMTPS"
            } else {
                "ESMTPSA"
            };
            ensure!(trace.contains(protocol), "no `with {protocol}`");
            ensure!(trace.contains("TLS"), "no TLS facts (RFC 8314 section 4.3)");
        }
    }
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn swaks_and_openssl_deliver() -> Result<()> {
    let cluster = Cluster::builder().relays(1).start().await?;
    let relay = &cluster.layout.relays[0];

    let token = load::token();
    let swaks = tools::find("swaks").context("swaks is missing (make test installs it)")?;
    let mut command = Command::new(swaks);
    command
        .args([
            "--server",
            &relay.submission.to_string(),
            "--tls",
            "--auth",
            "PLAIN",
        ])
        .args(["--auth-user", SUBMITTER, "--auth-password", PASSWORD])
        .args([
            "--from",
            "demo@served.example",
            "--to",
            "you@remote.example",
        ])
        .args([
            "--header",
            &format!("X-Ledger: {token}"),
            "--body",
            "Hello over STARTTLS",
        ]);
    let output = tools::run(command.stdin(Stdio::null()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("250 2.0.0"), "{said}");
    let received = arrived(&cluster, &token).await?;
    ensure!(
        String::from_utf8_lossy(&received.octets()?).contains("\r\nHello over STARTTLS\r\n"),
        "body"
    );
    println!("swaks: {}", received.envelope.octets);

    let token = load::token();
    let content = format!("X-Ledger: {token}\r\nSubject: s_client\r\n\r\n..leading dot\r\nend\r\n");
    let sent = content.replace("\r\n.", "\r\n..");
    let auth = BASE64.encode(format!("\0{SUBMITTER}\0{PASSWORD}").as_bytes());
    let script = format!(
        "(sleep 1; printf 'EHLO me.example\\r\\n'; sleep 0.5; printf 'AUTH PLAIN {auth}\\r\\n'; sleep 1; \
         printf 'MAIL FROM:<demo@served.example>\\r\\nRCPT TO:<you@remote.example>\\r\\nDATA\\r\\n'; sleep 0.5; \
         cat \"$0\"; printf '.\\r\\n'; sleep 2; printf 'QUIT\\r\\n'; sleep 0.5) | openssl s_client -quiet -connect {}",
        relay.submissions
    );
    let file = cluster.layout.root.join("message");
    std::fs::write(&file, sent)?;
    let output = tools::run(Command::new("bash").arg("-c").arg(script).arg(&file))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("250 2.0.0"), "{said}");
    let received = arrived(&cluster, &token).await?;
    let offer = Offer::of(&token, "", &[], content.as_bytes());
    ledger::behind_trace(&received.octets()?, &offer)?;
    println!("openssl s_client: {}", received.envelope.octets);
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_faults_nothing_is_lost_and_nothing_comes_twice() -> Result<()> {
    let cluster = Cluster::builder().start().await?;
    let ledger = Arc::new(Ledger::default());
    let began = std::time::Instant::now();
    load::run(Load::new(cluster.all_targets(), 20).messages(600), &ledger).await;
    let took = began.elapsed();
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(60))
        .await?;
    println!(
        "{verdict}\nrate={:.0}/s",
        verdict.accepted as f64 / took.as_secs_f64()
    );
    verdict.holds()?;
    ensure!(
        verdict.accepted == 600 && verdict.attempts == 600,
        "{verdict}"
    );
    ensure!(verdict.duplicates == 0, "{verdict}");
    wait::until("an empty queue", PATIENCE, || async {
        let queue = cluster.admin_json(&["queue", "list"]).await?;
        let messages = queue.get("messages").unwrap_or(&queue);
        ensure!(messages.as_array().is_some_and(Vec::is_empty), "{queue}");
        Ok(())
    })
    .await?;
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_next_hop_are_retried_or_reported() -> Result<()> {
    let cluster = Cluster::builder().delays("[1s, 1s, 1s]").start().await?;
    let always = |stage, containing: &str, act| Rule {
        stage,
        containing: containing.to_owned(),
        act,
        times: None,
    };
    let once = |stage, containing: &str, act| Rule {
        stage,
        containing: containing.to_owned(),
        act,
        times: Some(1),
    };
    let script = cluster.sink.script();
    script.add(always(
        Stage::Rcpt,
        "nobody@",
        Act::Reply("550 5.1.1 no such user".to_owned()),
    ));
    script.add(once(
        Stage::Mail,
        "",
        Act::Reply("451 4.3.2 come back".to_owned()),
    ));
    script.add(once(
        Stage::Rcpt,
        "grey@",
        Act::Reply("450 4.2.0 greylisted".to_owned()),
    ));
    script.add(once(
        Stage::Data,
        "",
        Act::Reply("451 4.3.2 not now".to_owned()),
    ));
    script.add(once(
        Stage::Dot,
        "grey@",
        Act::Reply("452 4.2.2 full".to_owned()),
    ));

    let ledger = Ledger::default();
    let mut client =
        load::connect(cluster.targets(Kind::Submission)[0], SUBMITTER, PASSWORD).await?;
    let token = load::token();
    let good = [
        "grey@remote.example".to_owned(),
        "fine@remote.example".to_owned(),
    ];
    let all: Vec<String> = good
        .iter()
        .cloned()
        .chain(["nobody@remote.example".to_owned()])
        .collect();
    let content = load::content(&token, "sender@client.example", &all, 2000);
    let bad: Vec<String> = all
        .iter()
        .filter(|one| !good.contains(one))
        .cloned()
        .collect();
    ledger.offer(Offer::of(&token, "sender@client.example", &all, &content).failing(&bad));
    let reply = client
        .transaction("sender@client.example", &all, &content)
        .await?;
    ensure!(reply.code == 250, "{reply}");
    ledger.outcome(&token, Outcome::Accepted);

    // The null reverse-path gets no report: the message ends, and nothing is made in its place.
    let mut peer = load::connect(cluster.targets(Kind::Mx)[0], "", "").await?;
    let reply = peer
        .transaction(
            "",
            &[format!("nobody@{SERVED}")],
            b"Subject: x\r\n\r\nx\r\n",
        )
        .await?;
    ensure!(reply.code == 250, "{reply}");

    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(30))
        .await?;
    verdict.holds()?;
    let dsn = wait::until("the report", PATIENCE, || async {
        let mut reports = cluster
            .sink
            .store()
            .list()?
            .into_iter()
            .filter(|one| one.envelope.reverse_path.is_empty());
        reports.next_back().context("none")
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let verdict = ledger.judge(cluster.sink.store())?;
    println!("{verdict} scripted={:?}", cluster.sink.counts().scripted);
    ensure!(
        verdict.dsns == 1,
        "one failed recipient of one message makes one report: {verdict}"
    );
    let left = cluster.admin_json(&["queue", "list"]).await?;
    ensure!(
        left["totalWaiting"] == 0,
        "a report to nobody, or a message that does not end: {left}"
    );
    ensure!(verdict.duplicates == 0, "{verdict}");
    ensure!(
        dsn.envelope.recipients == ["sender@client.example"],
        "{:?}",
        dsn.envelope
    );
    let text = String::from_utf8_lossy(&dsn.octets()?).into_owned();
    for part in [
        "multipart/report",
        "report-type=delivery-status",
        "message/delivery-status",
        "nobody@remote.example",
        "5.1.1",
        "Action: failed",
    ] {
        ensure!(text.contains(part), "no {part} in\n{text}");
    }
    ensure!(
        !text.contains("fine@remote.example\r\nAction"),
        "delivered recipients are not reported"
    );
    client.quit().await;
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_next_hop_without_tls_gets_nothing_in_clear_until_it_offers_tls() -> Result<()> {
    let cluster = Cluster::builder().start().await?;
    let ledger = Arc::new(Ledger::default());
    cluster.sink.script().offer_starttls(false);
    load::run(Load::new(cluster.targets(Kind::Mx), 2).messages(5), &ledger).await;
    wait::until("attempts without STARTTLS", PATIENCE, || async {
        ensure!(
            sealane_tests::sink::Counts::get(&cluster.sink.counts().connections) >= 2,
            "no attempt yet"
        );
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(cluster.sink.store().count()? == 0, "delivered without TLS");
    // A peer that answers STARTTLS and slips in octets before the handshake is not believed either.
    cluster.sink.script().clear();
    cluster
        .sink
        .script()
        .inject_behind_starttls("250 sink.example\r\n");
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(
        cluster.sink.store().count()? == 0,
        "delivered after an injection"
    );
    cluster.sink.script().clear();
    let verdict = ledger
        .settle(cluster.sink.store(), Duration::from_secs(40))
        .await?;
    let clear = sealane_tests::sink::Counts::get(&cluster.sink.counts().clear_commands);
    println!("{verdict} clear-commands={clear}");
    verdict.holds()?;
    ensure!(clear == 0, "{clear} mail commands in clear");
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_those_of_the_listener() -> Result<()> {
    let cluster = Cluster::builder().relays(1).start().await?;
    let relay = &cluster.layout.relays[0];
    for (address, auth) in [(relay.mx, false), (relay.submission, true)] {
        let mut client = Client::connect(address).await?;
        client.expect(220).await?;
        let clear = client.command_expecting("EHLO me.example", 250).await?;
        ensure!(
            clear.offers("STARTTLS") && !clear.offers("AUTH"),
            "in clear: {clear}"
        );
        client.command_expecting("STARTTLS", 220).await?;
        let mut client = client.upgrade().await?;
        let inside = client.command_expecting("EHLO me.example", 250).await?;
        ensure!(
            !inside.offers("STARTTLS") && inside.offers("AUTH") == auth,
            "inside: {inside}"
        );
        for capability in ["PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES"] {
            ensure!(inside.offers(capability), "no {capability}: {inside}");
        }
        client.quit().await;
    }
    let (mut client, ehlo) = Client::implicit_tls(relay.submissions).await?;
    ensure!(ehlo.offers("AUTH") && !ehlo.offers("STARTTLS"), "{ehlo}");
    let reply = client.command("MAIL FROM:<demo@served.example>").await?;
    ensure!(reply.is(530, "5.7.0"), "MAIL before AUTH: {reply}");
    let reply = client.auth_plain(SUBMITTER, "wrong").await?;
    ensure!(reply.is(535, "5.7.8"), "wrong password: {reply}");
    let reply = client.auth_plain("nobody", PASSWORD).await?;
    ensure!(reply.is(535, "5.7.8"), "unknown user: {reply}");
    ensure!(
        client.auth_plain(SUBMITTER, PASSWORD).await?.code == 235,
        "right password"
    );
    client.quit().await;
    cluster.pass()
}

/// What expires while its next hop keeps a relay waiting is reported when the relay hears that its lease
/// is not renewed, a third of the lease later at most, and not when the lease ends.
#[tokio::test(flavor = "multi_thread")]
async fn mail_that_expires_under_an_attempt_is_reported_before_its_lease_ends() -> Result<()> {
    let cluster = Cluster::builder()
        .settings(|s| s.lease = "60s".to_owned())
        .relays(1)
        .start()
        .await?;
    let sink = cluster.sink.address();
    cluster
        .apply_policy(&format!(
            "kind: Destination\nname: silent.example\nroute: {{ host: {}, port: {} }}\n\
             retry: {{ delays: [500ms], lifetime: 3s }}\n",
            sink.ip(),
            sink.port(),
        ))
        .await?;
    cluster.sink.script().add(Rule {
        stage: Stage::Rcpt,
        containing: "@silent.example".to_owned(),
        act: Act::Delay(Duration::from_secs(300)),
        times: None,
    });
    let mut client =
        load::connect(cluster.targets(Kind::Submission)[0], SUBMITTER, PASSWORD).await?;
    let to = ["a@silent.example".to_owned()];
    let reply = client
        .transaction("sender@client.example", &to, b"Subject: x\r\n\r\nx\r\n")
        .await?;
    ensure!(reply.code == 250, "{reply}");
    client.quit().await;
    // A third of the lease, and some. It would be 60 s and more.
    let report = wait::until("the report", Duration::from_secs(45), || async {
        cluster.sink.store().list()?.pop().context("none")
    })
    .await?;
    let text = String::from_utf8_lossy(&report.octets()?).into_owned();
    ensure!(
        report.envelope.reverse_path.is_empty() && text.contains("Status: 5.4.7"),
        "{text}"
    );
    let left = cluster.admin_json(&["queue", "list"]).await?;
    ensure!(left["totalWaiting"] == 0, "{left}");
    cluster.pass()
}

/// What cannot be delivered in time comes back: refused all the time, or never secure enough.
#[tokio::test(flavor = "multi_thread")]
async fn expired_mail_is_reported() -> Result<()> {
    let cluster = Cluster::builder().delays("[1s]").relays(1).start().await?;
    let sink = cluster.sink.address();
    cluster
        .apply_policy(&format!(
            "kind: Destination\nname: slow.example\nroute: {{ host: {ip}, port: {port} }}\n\
             retry: {{ delays: [500ms], lifetime: 3s }}\n---\n\
             kind: Destination\nname: strict.example\nroute: {{ host: {ip}, port: {port} }}\n\
             tls: {{ level: secure, names: [strict.example] }}\nretry: {{ delays: [500ms], lifetime: 5d, tlsLifetime: 3s }}\n",
            ip = sink.ip(),
            port = sink.port(),
        ))
        .await?;
    cluster.sink.script().add(Rule {
        stage: Stage::Rcpt,
        containing: "@slow.example".to_owned(),
        act: Act::Reply("450 4.2.0 not now".to_owned()),
        times: None,
    });
    let mut client =
        load::connect(cluster.targets(Kind::Submission)[0], SUBMITTER, PASSWORD).await?;
    for domain in ["slow.example", "strict.example"] {
        let reply = client
            .transaction(
                "sender@client.example",
                &[format!("a@{domain}")],
                b"Subject: x\r\n\r\nx\r\n",
            )
            .await?;
        ensure!(reply.code == 250, "{reply}");
    }
    client.quit().await;
    let reports = wait::until("two reports", PATIENCE, || async {
        let all = cluster.sink.store().list()?;
        ensure!(all.len() == 2, "{} messages", all.len());
        Ok(all)
    })
    .await?;
    for (domain, status) in [
        ("slow.example", "Status: 5.4.7"),
        ("strict.example", "Status: 5.7."),
    ] {
        let mut found = false;
        for report in &reports {
            let text = String::from_utf8_lossy(&report.octets()?).into_owned();
            found |= report.envelope.reverse_path.is_empty()
                && text.contains(&format!("Final-Recipient: rfc822; a@{domain}"))
                && text.contains(status);
        }
        ensure!(found, "no report with {status} for {domain}");
    }
    let left = cluster.admin_json(&["queue", "list"]).await?;
    ensure!(left["totalWaiting"] == 0, "{left}");
    cluster.pass()
}
