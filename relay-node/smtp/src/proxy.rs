//! The PROXY protocol, versions 1 and 2: what a load balancer says in front of a connection, pure.
//!
//! After HAProxy's specification. The header is in front of TLS and of SMTP, so not one octet behind it may be
//! read: [`step`] names how many octets are of the header for certain, and no more are asked for. Ours, because it is
//! this that matters; what is beside the addresses (destination, TLVs) is checked for its form, and left.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Octets of a header of version 1, its line end counted.
pub const MOST_V1: usize = 107;
/// Octets of a header of version 2 that we read, out of 65551: addresses and a few TLVs are below 300.
pub const MOST_V2: usize = 4096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const WORD: &[u8] = b"PROXY ";
/// "PROXY UNKNOWN" and its line end: nothing shorter is a header.
const SHORTEST_V1: usize = 15;
/// In front of the addresses of version 2.
const FIXED_V2: usize = 16;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// The proxy itself (LOCAL), or nobody knows (UNKNOWN): the address of the connection counts.
    Own,
    /// This client.
    Client(SocketAddr),
}

/// What to do after some octets of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many more octets are of the header, at least one. More may follow.
    Need(usize),
    /// The header is complete.
    Done(Announced),
}

/// What the peer sent is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Neither version begins like this.
    #[error("it does not begin with a PROXY header")]
    Missing,
    /// More than is read.
    #[error("the PROXY header is longer than {0} octets")]
    TooLong(usize),
    /// Version 1: not a line as it has to be.
    #[error("the PROXY header is not TCP4, TCP6 or UNKNOWN with two addresses and two ports")]
    Line,
    /// Version 2: another version, or a command that is neither LOCAL nor PROXY.
    #[error("the PROXY header is of an unknown version or command")]
    Command,
    /// Version 2: not TCP over IPv4 or IPv6.
    #[error("the PROXY header is not of a TCP connection over IPv4 or IPv6")]
    Family,
    /// Version 2: its length has no room for its addresses.
    #[error("the PROXY header is shorter than its addresses")]
    Short,
}

/// Looks at what was read so far, which has to be of the header as earlier steps named it.
pub fn step(head: &[u8]) -> Result<Step, Malformed> {
    let begins = |with: &[u8]| head.iter().zip(with).all(|(a, b)| a == b);
    if head.is_empty() {
        return Ok(Step::Need(SIGNATURE.len()));
    }
    if begins(SIGNATURE) {
        return version_2(head);
    }
    if begins(WORD) {
        return version_1(head);
    }
    Err(Malformed::Missing)
}

fn version_1(head: &[u8]) -> Result<Step, Malformed> {
    if head.len() < SHORTEST_V1 {
        return Ok(Step::Need(SHORTEST_V1 - head.len()));
    }
    let end = head.iter().position(|o| matches!(o, b'\r' | b'\n'));
    match end.map(|at| head.split_at(at)) {
        Some((line, b"\r\n")) => line_1(line.get(WORD.len()..).unwrap_or_default()).map(Step::Done),
        Some((line, b"\r")) if line.len() + 2 <= MOST_V1 => Ok(Step::Need(1)),
        None if head.len() + 2 <= MOST_V1 => Ok(Step::Need(2)),
        Some((_, b"\r")) | None => Err(Malformed::TooLong(MOST_V1)),
        Some(_) => Err(Malformed::Line),
    }
}

/// Between "PROXY " and the line end.
fn line_1(line: &[u8]) -> Result<Announced, Malformed> {
    let mut words = line.split(|o| *o == b' ');
    let kind = words.next();
    if kind == Some(b"UNKNOWN".as_slice()) {
        // What follows is to be ignored.
        return Ok(Announced::Own);
    }
    let mut next = || {
        let word = words.next().ok_or(Malformed::Line)?;
        std::str::from_utf8(word).map_err(|_| Malformed::Line)
    };
    let (source, destination, port, other) = (next()?, next()?, next()?, next()?);
    if next().is_ok() {
        return Err(Malformed::Line);
    }
    let address = |text: &str| match kind {
        Some(b"TCP4") => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Some(b"TCP6") => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    let (Some(source), Some(_), Some(port), Some(_)) = (
        address(source),
        address(destination),
        decimal(port),
        decimal(other),
    ) else {
        return Err(Malformed::Line);
    };
    Ok(Announced::Client(SocketAddr::new(source, port)))
}

/// A port without sign and without zeros in front.
fn decimal(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|o| o.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn version_2(head: &[u8]) -> Result<Step, Malformed> {
    let Some((fixed, rest)) = head.split_first_chunk::<FIXED_V2>() else {
        return Ok(Step::Need(FIXED_V2 - head.len()));
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if !matches!(command, 0x20 | 0x21) {
        return Err(Malformed::Command);
    }
    if FIXED_V2 + length > MOST_V2 {
        return Err(Malformed::TooLong(MOST_V2));
    }
    let Some(said) = rest.get(..length) else {
        return Ok(Step::Need(length - rest.len()));
    };
    if command == 0x20 {
        return Ok(Step::Done(Announced::Own));
    }
    // Source and destination, then their ports; TLVs behind them.
    let client = match family {
        // AF_UNSPEC: nobody knows.
        0x00 => return Ok(Step::Done(Announced::Own)),
        0x11 => said.first_chunk::<12>().map(|a| {
            let source = Ipv4Addr::new(a[0], a[1], a[2], a[3]);
            SocketAddr::new(source.into(), u16::from_be_bytes([a[8], a[9]]))
        }),
        0x21 => said.first_chunk::<36>().map(|a| {
            let mut source = [0; 16];
            source.copy_from_slice(&a[..16]);
            let port = u16::from_be_bytes([a[32], a[33]]);
            SocketAddr::new(Ipv6Addr::from(source).into(), port)
        }),
        _ => return Err(Malformed::Family),
    };
    client
        .map(|c| Step::Done(Announced::Client(c)))
        .ok_or(Malformed::Short)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
