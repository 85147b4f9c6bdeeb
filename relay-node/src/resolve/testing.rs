//! A DNS server for tests.
#![allow(clippy::unwrap_used, reason = "tests")]
use hickory_resolver::proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::MX},
};
use std::net::{IpAddr, SocketAddr};
use tokio::net::UdpSocket;

/// Answers each query from a function; runs until the test ends.
pub(crate) async fn dns_server(
    answer: impl Fn(&str, RecordType) -> Result<Vec<RData>, ResponseCode> + Send + 'static,
) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let request = Message::from_vec(&buffer[..n]).unwrap();
            let query: Query = request.queries[0].clone();
            let mut response =
                Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
            response.metadata.recursion_available = true;
            response.add_query(query.clone());
            let name = query.name().to_ascii().to_ascii_lowercase();
            match answer(name.trim_end_matches('.'), query.query_type()) {
                Ok(records) => {
                    for data in records {
                        response.add_answer(Record::from_rdata(query.name().clone(), 60, data));
                    }
                }
                Err(code) => response.metadata.response_code = code,
            }
            socket
                .send_to(&response.to_vec().unwrap(), from)
                .await
                .unwrap();
        }
    });
    address
}

pub(crate) fn mx(preference: u16, host: &str) -> RData {
    RData::MX(MX::new(preference, Name::from_ascii(host).unwrap()))
}

pub(crate) fn ip(text: &str) -> RData {
    RData::from(text.parse::<IpAddr>().unwrap())
}

/// A domain with these exchanges, named `m<preference>.<domain>`.
pub(crate) async fn exchange_server(
    domain: &'static str,
    exchanges: Vec<(u16, &'static str)>,
) -> SocketAddr {
    dns_server(move |name, kind| {
        let host = |preference: u16| format!("m{preference}.{domain}");
        Ok(match kind {
            RecordType::MX if name == domain => exchanges
                .iter()
                .map(|(p, _)| mx(*p, &format!("{}.", host(*p))))
                .collect(),
            RecordType::A => exchanges
                .iter()
                .filter(|(p, _)| host(*p) == name)
                .map(|(_, a)| ip(a))
                .collect(),
            _ => vec![],
        })
    })
    .await
}
