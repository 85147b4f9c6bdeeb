#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::resolve::testing::{dns_server, ip, mx};
use hickory_resolver::proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};
use tokio::net::UdpSocket;

fn zone(name: &str, kind: RecordType) -> Result<Vec<RData>, ResponseCode> {
    let a = kind == RecordType::A;
    Ok(match (name, kind) {
        ("two.example", RecordType::MX) => vec![mx(20, "b.two.example."), mx(10, "A.two.example.")],
        ("a.two.example", RecordType::A) => vec![ip("192.0.2.1")],
        ("a.two.example", RecordType::AAAA) => vec![ip("2001:db8::1")],
        ("b.two.example", RecordType::A) => vec![ip("192.0.2.2")],
        ("implicit.example", RecordType::A) => vec![ip("192.0.2.3")],
        ("null.example", RecordType::MX) => vec![mx(0, ".")],
        ("inner.example", RecordType::MX) => {
            vec![mx(10, "meta.inner.example."), mx(20, "loop.inner.example.")]
        }
        ("meta.inner.example", RecordType::A) => vec![ip("169.254.169.254")],
        ("loop.inner.example", RecordType::AAAA) => vec![ip("::ffff:127.0.0.1")],
        ("mixed.example", RecordType::MX) => {
            vec![mx(10, "meta.inner.example."), mx(20, "b.two.example.")]
        }
        ("own.example", RecordType::MX) => vec![mx(10, "relay.sealane.example.")],
        ("dead.example", RecordType::MX) => vec![mx(10, "gone.dead.example.")],
        ("gone.dead.example", _) => return Err(ResponseCode::NXDomain),
        ("half.example", RecordType::MX) => {
            vec![mx(10, "broken.example."), mx(20, "b.two.example.")]
        }
        ("stuck.example", RecordType::MX) => vec![mx(10, "broken.example.")],
        ("broken.example", _) => return Err(ResponseCode::ServFail),
        ("refused.example", _) => return Err(ResponseCode::Refused),
        ("many.example", RecordType::MX) => (0..30)
            .map(|i| mx(i, &format!("m{i}.many.example.")))
            .collect(),
        (m, _) if a && m.ends_with(".many.example") => {
            (1..=5).map(|i| ip(&format!("192.0.2.{i}"))).collect()
        }
        ("nothing.example" | "null.example" | "two.example" | "dead.example", _) => vec![],
        (other, _) if other.ends_with("nx.example") => return Err(ResponseCode::NXDomain),
        _ => vec![],
    })
}

async fn resolver(allow_private: bool) -> Resolver {
    let server = dns_server(zone).await;
    Resolver::new(ResolverOptions {
        nameservers: vec![server],
        allow_private,
        own_name: "relay.sealane.example".into(),
        query_timeout: Duration::from_secs(2),
        ..ResolverOptions::default()
    })
    .unwrap()
}

async fn resolve(resolver: &Resolver, domain: &str) -> Result<Vec<String>, ResolveError> {
    let hops = resolver
        .resolve(&DomainName::parse(domain).unwrap(), None)
        .await?;
    Ok(hops
        .into_iter()
        .map(|h| format!("{} {}", h.host, h.address))
        .collect())
}

#[tokio::test]
async fn exchanges_come_in_order_of_preference_with_all_addresses() {
    let r = resolver(false).await;
    let expected = [
        "a.two.example [2001:db8::1]:25",
        "a.two.example 192.0.2.1:25",
        "b.two.example 192.0.2.2:25",
    ];
    assert_eq!(resolve(&r, "two.example").await.unwrap(), expected);
}

#[tokio::test]
async fn a_domain_without_mx_is_its_own_exchange() {
    assert_eq!(
        resolve(&resolver(false).await, "implicit.example")
            .await
            .unwrap(),
        ["implicit.example 192.0.2.3:25"]
    );
}

#[tokio::test]
async fn permanent_and_temporary_failures_are_told_apart() {
    let r = resolver(false).await;
    for (domain, status) in [
        ("null.example", (5, 1, 10)),
        ("nx.example", (5, 1, 2)),
        ("broken.example", (4, 4, 3)),
        ("refused.example", (4, 4, 3)),
        ("stuck.example", (4, 4, 3)),
        ("nothing.example", (5, 4, 4)),
        ("dead.example", (5, 4, 4)),
        ("own.example", (5, 4, 6)),
        ("inner.example", (5, 4, 4)),
        ("[127.0.0.1]", (5, 4, 4)),
        ("[IPv6:::1]", (5, 4, 4)),
    ] {
        assert_eq!(
            resolve(&r, domain).await.unwrap_err().status(),
            status,
            "{domain}"
        );
    }
}

#[tokio::test]
async fn a_silent_server_is_temporary() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let r = Resolver::new(ResolverOptions {
        nameservers: vec![silent.local_addr().unwrap()],
        deadline: Duration::from_millis(200),
        ..ResolverOptions::default()
    })
    .unwrap();
    assert_eq!(
        resolve(&r, "two.example").await.unwrap_err().status(),
        (4, 4, 3)
    );
}

#[tokio::test]
async fn inner_addresses_are_left_out_and_the_rest_is_used() {
    assert_eq!(
        resolve(&resolver(false).await, "mixed.example")
            .await
            .unwrap(),
        ["b.two.example 192.0.2.2:25"]
    );
    assert_eq!(
        resolve(&resolver(true).await, "inner.example")
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn one_broken_exchange_does_not_stop_the_others() {
    assert_eq!(
        resolve(&resolver(false).await, "half.example")
            .await
            .unwrap(),
        ["b.two.example 192.0.2.2:25"]
    );
}

#[tokio::test]
async fn work_is_bounded() {
    assert_eq!(
        resolve(&resolver(false).await, "many.example")
            .await
            .unwrap()
            .len(),
        MAX_ADDRESSES
    );
}

#[tokio::test]
async fn a_route_may_name_inner_addresses_and_fails_temporarily() {
    let r = resolver(false).await;
    let domain = DomainName::parse("two.example").unwrap();
    let route = |host: &str| StaticRoute {
        host: host.to_owned(),
        port: 2600,
        implicit_tls: true,
    };
    let hops = r.resolve(&domain, Some(&route("127.0.0.1"))).await.unwrap();
    assert_eq!(
        (hops[0].address.to_string().as_str(), hops[0].implicit_tls),
        ("127.0.0.1:2600", true)
    );
    let hops = r
        .resolve(&domain, Some(&route("meta.inner.example.")))
        .await
        .unwrap();
    assert_eq!(hops[0].address.to_string(), "169.254.169.254:2600");
    assert_eq!(
        r.resolve(&domain, Some(&route("nx.example.")))
            .await
            .unwrap_err()
            .status(),
        (4, 4, 3)
    );
}
