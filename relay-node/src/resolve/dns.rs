//! hickory's answers in our words.
use super::exchange::Exchange;
use hickory_resolver::{
    TokioResolver,
    net::NetError,
    proto::rr::{RData, RecordType},
};
use std::net::IpAddr;

/// A lookup without records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    /// NXDOMAIN.
    NoDomain,
    /// The name exists, records of this type do not.
    NoData,
    /// Anything else: SERVFAIL, REFUSED, timeout, no server, malformed. Unknown is temporary.
    Temporary(String),
}

fn classify(error: NetError) -> Missing {
    if error.is_nx_domain() {
        Missing::NoDomain
    } else if error.is_no_records_found() {
        match &error {
            // A referral or SERVFAIL-like code without records is no proof of absence.
            NetError::Dns(hickory_resolver::net::DnsError::NoRecordsFound(none))
                if none.response_code != hickory_resolver::proto::op::ResponseCode::NoError =>
            {
                Missing::Temporary(error.to_string())
            }
            _ => Missing::NoData,
        }
    } else {
        Missing::Temporary(error.to_string())
    }
}

/// The MX records of `name` (absolute).
pub(super) async fn exchanges(dns: &TokioResolver, name: &str) -> Result<Vec<Exchange>, Missing> {
    let found = dns
        .lookup(format!("{name}."), RecordType::MX)
        .await
        .map_err(classify)?;
    let records: Vec<Exchange> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::MX(mx) => {
                let host = mx.exchange.to_ascii().to_ascii_lowercase();
                Some(Exchange {
                    preference: mx.preference,
                    host: host.trim_end_matches('.').to_owned(),
                })
            }
            _ => None,
        })
        .collect();
    if records.is_empty() {
        Err(Missing::NoData)
    } else {
        Ok(records)
    }
}

/// IPv4 and IPv6 addresses of `name`, interleaved. `name` is used as given: without a final dot the
/// system's search list applies. One family that answers is enough; with none, a failure of either
/// is a failure.
pub(super) async fn addresses(dns: &TokioResolver, name: &str) -> Result<Vec<IpAddr>, Missing> {
    let (v4, v6) = tokio::join!(
        family(dns, name, RecordType::A),
        family(dns, name, RecordType::AAAA)
    );
    match (v4, v6) {
        (Ok(v4), Ok(v6)) => Ok(interleave(v4, v6)),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
        (Err(t @ Missing::Temporary(_)), Err(_)) | (Err(_), Err(t @ Missing::Temporary(_))) => {
            Err(t)
        }
        (Err(Missing::NoDomain), Err(_)) | (Err(_), Err(Missing::NoDomain)) => {
            Err(Missing::NoDomain)
        }
        (Err(Missing::NoData), Err(Missing::NoData)) => Err(Missing::NoData),
    }
}

async fn family(dns: &TokioResolver, name: &str, kind: RecordType) -> Result<Vec<IpAddr>, Missing> {
    let found = dns.lookup(name, kind).await.map_err(classify)?;
    let list: Vec<IpAddr> = found
        .answers()
        .iter()
        .filter_map(|r| r.data.ip_addr())
        .collect();
    if list.is_empty() {
        Err(Missing::NoData)
    } else {
        Ok(list)
    }
}

fn interleave(v4: Vec<IpAddr>, v6: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut v4, mut v6) = (v4.into_iter(), v6.into_iter());
    let mut out = Vec::new();
    loop {
        match (v6.next(), v4.next()) {
            (None, None) => return out,
            (a, b) => out.extend(a.into_iter().chain(b)),
        }
    }
}
