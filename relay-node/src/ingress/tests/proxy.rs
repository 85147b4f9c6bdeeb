//! Clients behind a load balancer that says who they are.
use super::*;

const FAILED: &str = "sealane_relay_refused_total{listener=\"mx\",reason=\"proxy\"}";
const CROWDED: &str = "sealane_relay_refused_total{listener=\"mx\",reason=\"connections\"}";
/// PROXY, TCP over IPv6 from 2001:db8::7, port 40000, with a TLV behind.
const VERSION_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x28\
    \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x9c\x40\x01\xd1\x04\0\x01\0";

async fn trusting(networks: &[&str]) -> Relay {
    let listeners = Listeners {
        proxy_protocol_from: networks.iter().map(|n| n.parse().unwrap()).collect(),
        ..Listeners::default()
    };
    Relay::listening(vec![(Kind::Durable, 1..=8)], listeners).await
}

/// A connection that begins so.
async fn behind(at: SocketAddr, header: &[u8]) -> Client<TcpStream> {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(header).await.unwrap();
    Client(BufReader::new(tcp))
}

impl Client<TcpStream> {
    /// The code of the next line; 0: the connection ended instead.
    async fn reply_or_end(&mut self) -> u16 {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.0.read_line(&mut line)).await;
        match read.unwrap() {
            Ok(n) if n > 0 => line[..3].parse().unwrap(),
            _ => 0,
        }
    }
}

impl Relay {
    /// Takes one message from an MX connection that was not greeted yet; who brought it, and its trace header.
    async fn brings(&self, mut client: Client<TcpStream>) -> (String, String) {
        assert_eq!(client.reply().await.0, 220);
        assert_eq!(client.say("EHLO client.example").await, 250);
        assert_eq!(client.say("STARTTLS").await, 220);
        let mut client = self.encrypt(client.0.into_inner()).await;
        assert_eq!(client.say("EHLO client.example").await, 250);
        let sent = client
            .mail("x@client.example", "bob@served.example", &body(100))
            .await;
        assert_eq!(sent.0, 250, "{}", sent.1);
        let (enqueue, stored) = self.kept.lock().unwrap().pop().unwrap();
        let text = String::from_utf8(stored).unwrap();
        let received = text.lines().next().unwrap().to_owned();
        (enqueue.entry.unwrap().peer, received)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_announced_client_is_the_client() {
    let relay = trusting(&["127.0.0.0/8"]).await;
    // The header may come in pieces, and the client's first octets right behind it.
    let header: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 40000 25\r\n";
    let client = behind(relay.mx, header).await;
    let (peer, received) = relay.brings(client).await;
    assert_eq!(peer, "192.0.2.1:40000");
    assert_eq!(received, "Received: from client.example ([192.0.2.1])");
    let (first, second) = VERSION_2.split_at(20);
    let mut client = behind(relay.mx, first).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.send(second).await;
    let (peer, received) = relay.brings(client).await;
    assert_eq!(peer, "[2001:db8::7]:40000");
    assert_eq!(
        received,
        "Received: from client.example ([IPv6:2001:db8::7])"
    );
    for own in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let (peer, _) = relay.brings(behind(relay.mx, own).await).await;
        assert!(peer.starts_with("127.0.0.1:"), "{peer}");
    }
    assert_eq!(relay.figure(FAILED), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_is_in_front_of_implicit_tls() {
    let relay = trusting(&["127.0.0.1/32"]).await;
    let tcp = behind(relay.submissions, VERSION_2).await.0.into_inner();
    let mut client = relay.encrypt(tcp).await;
    assert_eq!(client.reply().await.0, 220);
    // Without one the handshake's first octets are no header.
    let tcp = TcpStream::connect(relay.submissions).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("relay.example").unwrap();
    assert!(relay.client.connect(name, tcp).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_proxy_a_header_is_required_and_a_bad_one_is_counted() {
    let relay = trusting(&["192.0.2.0/24", "127.0.0.1/32"]).await;
    for bad in [
        &b"EHLO client.example\r\n"[..],
        b"PROXY TCP4 192.0.2.1 198.51.100.2 40000\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c............",
    ] {
        let mut client = behind(relay.mx, bad).await;
        assert_eq!(client.reply_or_end().await, 0, "{bad:?}");
    }
    // Who does not end it has some seconds.
    let mut slow = behind(relay.mx, b"PROXY ").await;
    assert_eq!(slow.reply_or_end().await, 0);
    assert_eq!(relay.figure(FAILED), 4);
    // Who only looks whether the port is open did nothing wrong.
    drop(behind(relay.mx, b"").await);
    let client = behind(relay.mx, b"PROXY UNKNOWN\r\n").await;
    relay.brings(client).await;
    assert_eq!(relay.figure(FAILED), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_by_their_client() {
    let relay = trusting(&["127.0.0.1/32"]).await;
    let of = |client: &str| format!("PROXY TCP4 {client} 198.51.100.2 40000 25\r\n");
    let mut open = Vec::new();
    // Three may be from one address, and the fifth connection from the proxy is none too many.
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1"] {
        let mut client = behind(relay.mx, of(client).as_bytes()).await;
        assert_eq!(client.reply().await.0, 220);
        open.push(client);
    }
    let mut crowd = behind(relay.mx, of("192.0.2.1").as_bytes()).await;
    assert_eq!(crowd.reply().await.0, 421);
    assert_eq!(relay.figure(CROWDED), 1);
    let mut other = behind(relay.mx, of("192.0.2.2").as_bytes()).await;
    assert_eq!(other.reply().await.0, 220);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_anybody_else_a_header_is_never_read() {
    let relay = trusting(&["192.0.2.0/24"]).await;
    let mut liar = behind(relay.mx, b"PROXY TCP4 203.0.113.9 198.51.100.2 1 25\r\n").await;
    assert_eq!(liar.reply().await.0, 220);
    assert_eq!(liar.reply().await.0, 530, "it is a command in clear");
    let client = Client(BufReader::new(TcpStream::connect(relay.mx).await.unwrap()));
    let (peer, _) = relay.brings(client).await;
    assert!(peer.starts_with("127.0.0.1:"), "{peer}");
}
