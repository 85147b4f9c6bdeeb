//! Counts hops in a message's header as it streams by (RFC 5321 section 6.3).
use memchr::memchr;

const FIELD: &[u8] = b"received:";

/// Looks at every octet up to the empty line, and at none behind it.
#[derive(Debug)]
pub(super) struct HeaderScan {
    state: At,
    received: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// This many octets of the line were seen; all belong to `received:`.
    Name(usize),
    /// The line is another field's, or the rest of one.
    Rest,
    /// Behind a CR at a line's start.
    EmptyLine,
    Body,
}

impl HeaderScan {
    pub(super) fn new() -> Self {
        Self {
            state: At::Name(0),
            received: 0,
        }
    }

    /// Received fields so far.
    pub(super) fn received(&self) -> u32 {
        self.received
    }

    /// The next octets of the message; lines end in CRLF.
    pub(super) fn feed(&mut self, octets: &[u8]) {
        let mut i = 0;
        while let Some(&b) = octets.get(i) {
            match self.state {
                At::Body => return,
                At::Rest => match memchr(b'\n', &octets[i..]) {
                    None => return,
                    Some(n) => {
                        i += n + 1;
                        self.state = At::Name(0);
                        continue;
                    }
                },
                At::Name(0) if b == b'\r' => self.state = At::EmptyLine,
                At::Name(n) if FIELD.get(n) == Some(&b.to_ascii_lowercase()) => {
                    self.state = At::Name(n + 1);
                    if n + 1 == FIELD.len() {
                        self.received += 1;
                        self.state = At::Rest;
                    }
                }
                At::Name(_) => {
                    self.state = At::Rest;
                    continue;
                }
                At::EmptyLine => self.state = if b == b'\n' { At::Body } else { At::Rest },
            }
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(pieces: &[&[u8]]) -> u32 {
        let mut s = HeaderScan::new();
        pieces.iter().for_each(|p| s.feed(p));
        s.received()
    }

    #[test]
    fn only_received_fields_of_the_header_count() {
        let text = b"Received: a\r\n\tfolded received: no\r\nRECEIVED: b\r\nReceived-SPF: no\r\nX: Received: no\r\n\r\nReceived: no\r\n";
        assert_eq!(count(&[text]), 2);
        for cut in 0..text.len() {
            assert_eq!(count(&[&text[..cut], &text[cut..]]), 2, "cut at {cut}");
        }
        assert_eq!(count(&[b"\r\nReceived: no\r\n"]), 0);
    }
}
