//! The judges are judged: the sink keeps what was sent, and says so when something is wrong.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sealane_tests::sink::{Act, Counts, Rule, Sink, SinkConfig, Stage};
use sealane_tests::smtp::Client;
use tempfile::TempDir;

async fn sink() -> Result<(Sink, TempDir)> {
    let folder = tempfile::tempdir()?;
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    Ok((
        Sink::start(SinkConfig::at(anywhere, folder.path().to_owned())).await?,
        folder,
    ))
}

#[tokio::test]
async fn the_sink_keeps_every_octet() -> Result<()> {
    let (sink, _folder) = sink().await?;
    let (mut client, ehlo) = Client::starttls(sink.address()).await?;
    ensure!(
        ehlo.offers("PIPELINING") && !ehlo.offers("STARTTLS"),
        "{ehlo}"
    );
    let contents: [&[u8]; 5] = [
        b"a\r\n",
        b".\r\n..\r\n.x\r\n\r\n.\r\n",
        b"\xff\xfe 8 bit\r\n",
        b"\r\n",
        b"line\r\n\r\n\r\n",
    ];
    let to = vec!["x@y.example".to_owned(), "z@y.example".to_owned()];
    for content in contents {
        ensure!(
            client.transaction("a@b.example", &to, content).await?.code == 250,
            "refused"
        );
    }
    client.quit().await;
    let all = sink.store().list()?;
    ensure!(all.len() == contents.len(), "{} files", all.len());
    for (received, content) in all.iter().zip(contents) {
        ensure!(
            received.octets()? == content,
            "{content:?} became {:?}",
            received.octets()?
        );
        ensure!(
            received.envelope.recipients == to && received.envelope.tls_version == "TLSv1_3",
            "{received:?}"
        );
        ensure!(!received.envelope.bare_line_ends, "{received:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_sink_notices_bare_line_ends_and_mail_in_clear() -> Result<()> {
    let (sink, _folder) = sink().await?;
    let (mut client, _) = Client::starttls(sink.address()).await?;
    for content in [&b"a\nb\r\n.\r\n"[..], b"a\rb\r\n.\r\n", b"a\n.\nb\r\n.\r\n"] {
        client
            .command_expecting("MAIL FROM:<a@b.example>", 250)
            .await?;
        client
            .command_expecting("RCPT TO:<x@y.example>", 250)
            .await?;
        client.command_expecting("DATA", 354).await?;
        client.send(content).await?;
        client.expect(250).await?;
    }
    ensure!(
        Counts::get(&sink.counts().bare_line_ends) == 3,
        "bare line ends"
    );
    let mut clear = Client::connect(sink.address()).await?;
    clear.expect(220).await?;
    clear
        .command_expecting("MAIL FROM:<a@b.example>", 530)
        .await?;
    ensure!(
        Counts::get(&sink.counts().clear_commands) == 1,
        "clear commands"
    );
    Ok(())
}

#[tokio::test]
async fn the_sink_follows_its_script() -> Result<()> {
    let (sink, _folder) = sink().await?;
    let once = |stage, act| Rule {
        stage,
        containing: String::new(),
        act,
        times: Some(1),
    };
    sink.script()
        .add(once(Stage::Mail, Act::Reply("451 4.3.0 no".to_owned())));
    sink.script().add(once(Stage::Dot, Act::KeepAndDrop));
    let to = vec!["x@y.example".to_owned()];
    let (mut client, _) = Client::starttls(sink.address()).await?;
    ensure!(
        client.transaction("a@b.example", &to, b"x\r\n").await?.code == 451,
        "MAIL"
    );
    ensure!(
        client
            .transaction("a@b.example", &to, b"x\r\n")
            .await
            .is_err(),
        "dropped after the dot"
    );
    ensure!(sink.store().count()? == 1, "kept");
    sink.script().offer_starttls(false);
    ensure!(
        Client::starttls(sink.address()).await.is_err(),
        "no STARTTLS"
    );
    Ok(())
}
