use super::*;
use crate::{
    reload::Look,
    testing::{Authority, Files},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const CONTROL: &str = "spiffe://c/control/node-1";
const RELAY: &str = "spiffe://c/relay/mail-relay";
const TABLE: AccessTable = &[("/q/Deliver", &[Role::Relay, Role::Control])];

fn request(peer: &str, instances: &[&[u8]]) -> http::Request<()> {
    let mut request = http::Request::builder().uri("/q/Deliver").body(()).unwrap();
    let peer: WorkloadId = peer.parse().unwrap();
    request.extensions_mut().insert(peer);
    for instance in instances {
        let value = http::HeaderValue::from_bytes(instance).unwrap();
        request.headers_mut().append(INSTANCE_KEY, value);
    }
    request
}

#[test]
fn only_a_relay_says_which_instance_it_is() {
    let known = |peer, instances: &[&[u8]]| {
        let instance = caller(TABLE, &request(peer, instances));
        instance.map(|w| w.map(|w| w.name)).map_err(|s| s.code())
    };
    assert_eq!(known(RELAY, &[]), Ok(None));
    assert_eq!(known(RELAY, &[b"a-1"]), Ok(Some("mail-relay/a-1".into())));
    assert_eq!(
        known(RELAY, &[b"mail-relay"]),
        Ok(Some("mail-relay".into()))
    );
    let denied = Err(tonic::Code::PermissionDenied);
    assert_eq!(known(CONTROL, &[b"a-1"]), denied);
    assert_eq!(known(CONTROL, &[]), Ok(None));
    assert_eq!(
        known("spiffe://c/viewer/me", &[]),
        denied,
        "the table first"
    );
    let malformed = Err(tonic::Code::InvalidArgument);
    let long = [b'x'; 129];
    let values: [&[u8]; 5] = [b"", b"a/b", b"a b", b"\xff", &long];
    for value in values {
        assert_eq!(known(RELAY, &[value]), malformed, "{value:?}");
    }
    assert_eq!(known(RELAY, &[b"a", b"b"]), malformed);
}

async fn serve_health(identity: Identity) -> String {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = match &listener {
        Listener::Tcp(l) => l.local_addr().unwrap().to_string(),
        Listener::Other(_) => unreachable!("this world is the system's"),
    };
    let (_, health) = tonic_health::server::health_reporter();
    let routes = Routes::new(health);
    let never = CancellationToken::new();
    tokio::spawn(serve(listener, routes, TABLE, identity, never));
    address
}

async fn call(channel: &Channel) -> Result<(), Status> {
    let mut client = HealthClient::new(channel.clone());
    let asked = client.check(HealthCheckRequest::default()).await;
    asked.map(drop)
}

#[tokio::test]
async fn an_authority_is_replaced_while_connections_live() {
    let (old, new) = (Authority::new(), Authority::new());
    let both = format!("{}{}", old.pem, new.pem);
    let served = Files::new(&old.issue(CONTROL, 2080), &old.pem);
    let calling = Files::new(&old.issue(RELAY, 2080), &old.pem);
    let server = Identity::load(&served.config()).unwrap();
    let client = Identity::load(&calling.config()).unwrap();
    let address = serve_health(server.clone()).await;
    let fresh = || channel(&address, &client).unwrap();

    let living = fresh();
    call(&living).await.unwrap();
    // In this order, and each process in its own time: all that come new are understood at every step.
    let steps = [
        (&served, &server, old.issue(CONTROL, 2080), &both),
        (&calling, &client, old.issue(RELAY, 2080), &both),
        (&calling, &client, new.issue(RELAY, 2080), &both),
        (&served, &server, new.issue(CONTROL, 2080), &both),
        (&served, &server, new.issue(CONTROL, 2080), &new.pem),
        (&calling, &client, new.issue(RELAY, 2080), &new.pem),
    ];
    for (n, (files, identity, issued, bundle)) in steps.iter().enumerate() {
        files.write(issued, bundle);
        assert_eq!(identity.look(), Look::Renewed, "step {n}");
        call(&living).await.unwrap();
        call(&fresh()).await.unwrap();
    }

    // Who still comes with the old one is not let in, and does not let itself be talked to.
    let late = Files::new(&old.issue(RELAY, 2080), &both);
    let late = Identity::load(&late.config()).unwrap();
    assert!(call(&channel(&address, &late).unwrap()).await.is_err());
    let ignorant = Files::new(&new.issue(RELAY, 2080), &old.pem);
    let ignorant = Identity::load(&ignorant.config()).unwrap();
    assert!(call(&channel(&address, &ignorant).unwrap()).await.is_err());
    call(&living).await.unwrap();
}

#[tokio::test]
async fn a_channel_that_was_made_before_dials_with_what_is_new() {
    let (old, new) = (Authority::new(), Authority::new());
    let served = Files::new(&new.issue(CONTROL, 2080), &new.pem);
    let calling = Files::new(&old.issue(RELAY, 2080), &old.pem);
    let server = Identity::load(&served.config()).unwrap();
    let client = Identity::load(&calling.config()).unwrap();
    let address = serve_health(server).await;
    let made = channel(&address, &client).unwrap();
    assert!(call(&made).await.is_err());
    calling.write(&new.issue(RELAY, 2080), &new.pem);
    assert_eq!(client.look(), Look::Renewed);
    call(&made).await.unwrap();
}

#[tokio::test]
async fn every_connection_proves_its_certificates_anew() {
    let ca = Authority::new();
    let served = Files::new(&ca.issue(CONTROL, 2080), &ca.pem);
    let calling = Files::new(&ca.issue(RELAY, 2080), &ca.pem);
    let server = Identity::load(&served.config()).unwrap();
    let client = Identity::load(&calling.config()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for _ in 0..3 {
        let name = ServerName::try_from(CONTROL_SERVER_NAME).unwrap();
        let connecting = async {
            let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
            let connector = TlsConnector::from(client.client_config());
            let mut stream = connector.connect(name, tcp).await.unwrap();
            // Tickets, if there were any, are in front of it.
            stream.read_u8().await.unwrap();
            stream
        };
        let accepting = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = TlsAcceptor::from(server.server_config());
            let mut stream = acceptor.accept(tcp).await.unwrap();
            stream.write_u8(0).await.unwrap();
            stream.flush().await.unwrap();
            stream
        };
        let (ours, theirs) = tokio::join!(connecting, accepting);
        let kinds = (
            ours.get_ref().1.handshake_kind(),
            theirs.get_ref().1.handshake_kind(),
        );
        let full = Some(rustls::HandshakeKind::Full);
        assert_eq!(kinds, (full, full));
    }
}

/// A server that was not run for a while finds calls that were given up meanwhile.
#[test]
fn calls_that_were_given_up_do_not_end_the_connection() {
    let ca = Authority::new();
    let served = Files::new(&ca.issue(CONTROL, 2080), &ca.pem);
    let calling = Files::new(&ca.issue(RELAY, 2080), &ca.pem);
    let server = Identity::load(&served.config()).unwrap();
    let client = Identity::load(&calling.config()).unwrap();
    let (orders, mut ordered) = mpsc::channel::<Duration>(1);
    let (told, address) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let alone = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        alone.block_on(async {
            told.send(serve_health(server).await).unwrap();
            while let Some(time) = ordered.recv().await {
                std::thread::sleep(time);
            }
        });
    });
    let calls = tokio::runtime::Runtime::new().unwrap();
    calls.block_on(async {
        let channel = channel(&address.recv().unwrap(), &client).unwrap();
        let mut client = HealthClient::new(channel.clone());
        let watched = client.watch(HealthCheckRequest::default()).await.unwrap();
        let mut watched = watched.into_inner();
        watched.message().await.unwrap().unwrap();

        orders.send(Duration::from_secs(2)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut given_up = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let channel = channel.clone();
            given_up
                .spawn(async move { timeout(Duration::from_millis(500), call(&channel)).await });
        }
        let outcomes = given_up.join_all().await;
        assert!(
            outcomes.iter().all(Result::is_err),
            "the server was not busy"
        );
        call(&channel).await.unwrap();
        let more = timeout(Duration::from_millis(500), watched.message()).await;
        assert!(more.is_err(), "the connection ended: {more:?}");
    });
}
