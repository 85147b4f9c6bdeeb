//! "Bad input and faults": every line of that list, over raw sockets.
#![forbid(unsafe_code)]

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::token;
use sealane_tests::load::{self, Kind};
use sealane_tests::policy::{PASSWORD, SERVED, SUBMITTER};
use sealane_tests::smtp::{Client, Reply};
use sealane_tests::wait;

const MAX_MESSAGE: usize = 1 << 20;

fn me() -> Vec<String> {
    vec![format!("me@{SERVED}")]
}

#[tokio::test(flavor = "multi_thread")]
async fn smtp_attacks_are_refused_and_leave_nothing_behind() -> Result<()> {
    let cluster = Cluster::builder()
        .relays(1)
        .settings(|s| s.max_message = "1MiB".to_owned())
        .start()
        .await?;
    plaintext_is_530(&cluster).await?;
    octets_behind_starttls_end_the_connection(&cluster).await?;
    bare_line_ends_are_refused(&cluster).await?;
    oversize_is_552(&cluster).await?;
    relaying_on_mx_is_550(&cluster).await?;
    order_is_kept(&cluster).await?;
    // Whatever was refused above must not arrive; what is sent now must.
    let token = load::token();
    let mut client = load::connect(cluster.targets(Kind::Mx)[0], "", "").await?;
    let content = load::content(&token, "x@client.example", &me(), 1000);
    let reply = client
        .transaction("x@client.example", &me(), &content)
        .await?;
    ensure!(reply.is(250, "2.0.0"), "{reply}");
    wait::until("the honest message", Duration::from_secs(20), || async {
        ensure!(cluster.sink.store().count()? >= 1, "not there");
        Ok(())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = cluster.sink.store().list()?;
    ensure!(
        all.len() == 1 && self::token(&all[0].octets()?) == Some(token),
        "{} messages arrived",
        all.len()
    );
    cluster.pass()
}

async fn plaintext_is_530(cluster: &Cluster) -> Result<()> {
    let relay = &cluster.layout.relays[0];
    let mut tried = 0;
    for address in [relay.mx, relay.submission] {
        for command in [
            "MAIL FROM:<a@client.example>",
            "RCPT TO:<me@served.example>",
            "DATA",
            "AUTH PLAIN AGRlbW8AZGVtby1zZWNyZXQ=",
            "AUTH PLAIN",
            "VRFY me",
        ] {
            let mut client = Client::connect(address).await?;
            client.expect(220).await?;
            client.command_expecting("EHLO client.example", 250).await?;
            let reply = client.command(command).await?;
            ensure!(
                reply.is(530, "5.7.0"),
                "{command} in clear on {address}: {reply}"
            );
            client.command_expecting("NOOP", 250).await?;
            tried += 1;
            client.quit().await;
        }
    }
    println!("plaintext commands refused: {tried}");
    Ok(())
}

async fn octets_behind_starttls_end_the_connection(cluster: &Cluster) -> Result<()> {
    let relay = &cluster.layout.relays[0];
    for address in [relay.mx, relay.submission] {
        for behind in [
            "EHLO evil\r\n",
            "NOOP\r\n",
            "MAIL FROM:<a@b.example>\r\nRCPT TO:<me@served.example>\r\nDATA\r\n",
            "x",
        ] {
            let mut client = Client::connect(address).await?;
            client.expect(220).await?;
            client.command_expecting("EHLO client.example", 250).await?;
            client
                .send(format!("STARTTLS\r\n{behind}").as_bytes())
                .await?;
            let said = client.read_to_close(Duration::from_secs(10)).await?;
            let said = String::from_utf8_lossy(&said).into_owned();
            // Either nothing, a refusal, or the 220 that was already on its way: never an answer to `behind`.
            ensure!(
                said.matches("\r\n").count() <= 1 && !said.contains("250"),
                "{behind:?} was answered: {said:?}"
            );
        }
    }
    Ok(())
}

async fn bare_line_ends_are_refused(cluster: &Cluster) -> Result<()> {
    let smuggled = "MAIL FROM:<evil@client.example>\r\nRCPT TO:<me@served.example>\r\nDATA\r\nSubject: smuggled\r\n\r\nevil\r\n.\r\n";
    let ends = [
        "\n.\n",
        "\n.\r\n",
        "\r\n.\n",
        "\n.\r",
        "\r.\n",
        "\r.\r",
        "\r.\r\n",
        "\r\n.\r",
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "a\rb\r\n",
        "a\nb\r\n",
    ];
    let mut tried = 0;
    for kind in [Kind::Mx, Kind::Submissions] {
        for end in ends {
            for pieces in [usize::MAX, 1] {
                let mut client =
                    load::connect(cluster.targets(kind)[0], SUBMITTER, PASSWORD).await?;
                client
                    .command_expecting("MAIL FROM:<a@client.example>", 250)
                    .await?;
                client
                    .command_expecting("RCPT TO:<me@served.example>", 250)
                    .await?;
                client.command_expecting("DATA", 354).await?;
                let octets = format!("Subject: outer\r\n\r\nbody{end}{smuggled}");
                let outcome = send_in_pieces(&mut client, octets.as_bytes(), pieces).await;
                // The whole is one message; the smuggled dot is its end. It is refused, or the connection ends.
                let reply = match outcome {
                    Ok(()) => client.reply().await,
                    Err(error) => Err(error),
                };
                if let Ok(reply) = &reply {
                    ensure!(
                        reply.code >= 500,
                        "{end:?} in {pieces}-octet pieces: {reply}"
                    );
                    if let Ok(after) = client.command("NOOP").await {
                        ensure!(
                            after.code == 250 || after.code == 421,
                            "out of step after {end:?}: {after}"
                        );
                    }
                }
                tried += 1;
            }
        }
    }
    println!("smuggling attempts refused: {tried}");
    Ok(())
}

async fn send_in_pieces(client: &mut Client, octets: &[u8], size: usize) -> Result<()> {
    for piece in octets.chunks(size.min(octets.len())) {
        client.send(piece).await?;
    }
    Ok(())
}

async fn oversize_is_552(cluster: &Cluster) -> Result<()> {
    let mut client = load::connect(cluster.targets(Kind::Mx)[0], "", "").await?;
    let reply = client
        .command(&format!(
            "MAIL FROM:<a@client.example> SIZE={}",
            MAX_MESSAGE + 1
        ))
        .await?;
    ensure!(reply.is(552, "5.3.4"), "declared: {reply}");
    let content = load::content("none", "a@client.example", &me(), MAX_MESSAGE + 4096);
    let reply = client
        .transaction("a@client.example", &me(), &content)
        .await;
    // Undeclared: refused at the end, or cut off.
    if let Ok(reply) = reply {
        ensure!(reply.is(552, "5.3.4"), "sent: {reply}");
    }
    Ok(())
}

async fn relaying_on_mx_is_550(cluster: &Cluster) -> Result<()> {
    let mut refused = 0;
    for recipient in [
        "user@remote.example",
        "user%remote.example@other.example",
        "@served.example:user@remote.example",
        "user@served.example@remote.example",
        "user",
        "user@[127.0.0.1]",
        "\"user@remote.example\"",
        "user@sub.served.example",
    ] {
        let mut client = load::connect(cluster.targets(Kind::Mx)[0], "", "").await?;
        client
            .command_expecting("MAIL FROM:<a@client.example>", 250)
            .await?;
        let reply = client.command(&format!("RCPT TO:<{recipient}>")).await?;
        ensure!(reply.code >= 500, "{recipient}: {reply}");
        if recipient == "user@remote.example" {
            ensure!(reply.is(550, "5.7.1"), "{recipient}: {reply}");
        }
        refused += 1;
        client.quit().await;
    }
    println!("relay attempts refused: {refused}");
    Ok(())
}

async fn order_is_kept(cluster: &Cluster) -> Result<()> {
    let mut client = load::connect(cluster.targets(Kind::Mx)[0], "", "").await?;
    ensure!(
        client.command("RCPT TO:<me@served.example>").await?.code == 503,
        "RCPT before MAIL"
    );
    ensure!(
        client.command("DATA").await?.code == 503,
        "DATA before RCPT"
    );
    ensure!(
        client.command("STARTTLS").await?.code >= 500,
        "STARTTLS inside TLS"
    );
    ensure!(client.command("BOGUS").await?.code == 500, "unknown verb");
    client
        .command_expecting("MAIL FROM:<a@client.example>", 250)
        .await?;
    ensure!(
        client.command("MAIL FROM:<a@client.example>").await?.code == 503,
        "nested MAIL"
    );
    client.command_expecting("RSET", 250).await?;
    ensure!(
        client.command("RCPT TO:<me@served.example>").await?.code == 503,
        "RCPT after RSET"
    );
    ensure!(
        client
            .command(&format!("NOOP {}", "x".repeat(5000)))
            .await?
            .code
            >= 500,
        "overlong command"
    );
    Ok(())
}

async fn timed_offer(cluster: &Cluster) -> Result<(Reply, Duration)> {
    let began = Instant::now();
    Ok((offer(cluster).await?, began.elapsed()))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_there_is_no_250() -> Result<()> {
    let mut cluster = Cluster::builder().relays(1).start().await?;
    cluster.kill("control-plane-1")?;
    cluster.kill("control-plane-2")?;
    let (first, second, third) = tokio::try_join!(
        timed_offer(&cluster),
        timed_offer(&cluster),
        timed_offer(&cluster)
    )?;
    for (reply, took) in [first, second, third] {
        println!("{reply} after {:.1} s", took.as_secs_f32());
        ensure!(reply.is(451, "4.3.0"), "without a quorum: {reply}");
        ensure!(took <= Duration::from_secs(30), "took {took:?}");
    }
    ensure!(cluster.sink.store().count()? == 0, "something arrived");
    cluster.start("control-plane-1")?;
    let began = Instant::now();
    wait::until("mail accepted again", Duration::from_secs(60), || async {
        let reply = offer(&cluster).await?;
        ensure!(reply.code == 250, "{reply}");
        Ok(())
    })
    .await?;
    println!(
        "accepted again {:.1} s after the second node started",
        began.elapsed().as_secs_f32()
    );
    cluster.start("control-plane-2")?;
    wait::until("delivery", Duration::from_secs(30), || async {
        ensure!(cluster.sink.store().count()? >= 1, "nothing arrived");
        Ok(())
    })
    .await?;
    cluster.pass()
}

/// One message to the MX; the first reply that is not an expected intermediate one.
async fn offer(cluster: &Cluster) -> Result<Reply> {
    let mut client = load::connect(cluster.targets(Kind::Mx)[0], "", "").await?;
    let content = load::content(&load::token(), "a@client.example", &me(), 1000);
    client
        .transaction("a@client.example", &me(), &content)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_policy_names_field_and_line_and_changes_nothing() -> Result<()> {
    let cluster = Cluster::builder().relays(1).start().await?;
    let before = cluster.admin_json(&["policy", "get"]).await?;
    let bad = [
        (
            "kind: Domain\nname: good.example\nrecipients: any\n---\nkind: Destination\nname: \"*\"\ntls: { level: none }\n",
            "level",
            "7",
        ),
        (
            "kind: Domain\nname: good.example\nrecipients: any\n---\nkind: Domain\nname: bad.example\nrecipient: any\n",
            "recipient",
            "7",
        ),
        (
            "kind: Domain\nname: \"not a domain\"\nrecipients: any\n",
            "name",
            "2",
        ),
        (
            "kind: Destination\nname: \"*\"\nroute: { host: a.example, port: 99999 }\n",
            "port",
            "3",
        ),
    ];
    for (number, (text, field, line)) in bad.iter().enumerate() {
        let file = cluster.layout.root.join(format!("bad-{number}.yaml"));
        std::fs::write(&file, text)?;
        let output = cluster
            .layout
            .admin()
            .args(["policy", "apply", "-f"])
            .arg(&file)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{}", said.trim());
        ensure!(!output.status.success(), "applied:\n{text}");
        ensure!(said.contains(field), "no field {field}: {said}");
        ensure!(said.contains(line), "no line {line}: {said}");
    }
    let after = cluster.admin_json(&["policy", "get"]).await?;
    ensure!(before == after, "changed: {after}");
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_configuration_ends_with_64_and_names_the_field() -> Result<()> {
    let cluster = Cluster::builder().relays(1).prepare().await?;
    let cases = [
        (
            "control-plane-1",
            "control-plane",
            "listen: \"",
            "listen: \"nowhere",
            "listen",
        ),
        (
            "control-plane-1",
            "control-plane",
            "lease: 10s",
            "lease: soon",
            "lease",
        ),
        (
            "control-plane-1",
            "control-plane",
            "replicas: 3",
            "replicas: 2",
            "replicas",
        ),
        (
            "control-plane-1",
            "control-plane",
            "hostname: ",
            "hostnmae: ",
            "hostnmae",
        ),
        (
            "relay-node-1",
            "relay-node",
            "bodyBudget: 256MiB",
            "bodyBudget: many",
            "bodyBudget",
        ),
        ("relay-node-1", "relay-node", "  key: ", "  kee: ", "kee"),
        (
            "relay-node-1",
            "relay-node",
            "  mx: \"127",
            "  mx: \"x127",
            "mx",
        ),
        (
            "relay-node-1",
            "relay-node",
            "drainTimeout: 10s",
            "drainTimeout: 10",
            "drainTimeout",
        ),
    ];
    for (name, binary, from, to, field) in cases {
        let good = std::fs::read_to_string(cluster.layout.config(name))?;
        ensure!(good.contains(from), "{from:?} is not in\n{good}");
        let file = cluster.layout.root.join("broken.yaml");
        std::fs::write(&file, good.replacen(from, to, 1))?;
        let output = bounded(
            Command::new(cluster.layout.binaries.join(binary))
                .arg("--config")
                .arg(&file),
        )
        .await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{binary}: {}", said.trim());
        ensure!(
            output.status.code() == Some(64),
            "{to:?}: {} {said}",
            output.status
        );
        ensure!(said.contains(field), "{to:?}: no field {field}: {said}");
    }
    let output = bounded(
        Command::new(cluster.layout.binaries.join("relay-node"))
            .args(["--config", "/nowhere.yaml"]),
    )
    .await?;
    ensure!(
        output.status.code() == Some(64),
        "missing file: {}",
        output.status
    );
    // Nothing was bound: the ports are still free.
    TcpListener::bind(cluster.layout.relays[0].mx).context("MX port")?;
    cluster.pass()
}

/// Runs a command that must end by itself soon.
async fn bounded(command: &mut Command) -> Result<std::process::Output> {
    let mut command =
        tokio::process::Command::from(std::mem::replace(command, Command::new("true")));
    command.kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(10), command.output())
        .await
        .context("still running after 10 s")?
        .context("start")
}
