//! Dot-stuffing (RFC 5321 section 4.5.2), streaming.
use bytes::{BufMut, BytesMut};

/// Doubles the dots at the beginning of lines, and ends the data.
#[derive(Debug)]
pub struct DotStuffer {
    line_start: bool,
    after_cr: bool,
}

impl Default for DotStuffer {
    fn default() -> Self {
        Self {
            line_start: true,
            after_cr: false,
        }
    }
}

impl DotStuffer {
    /// Appends the stuffed form of `piece`.
    pub fn stuff(&mut self, piece: &[u8], out: &mut BytesMut) {
        let mut rest = piece;
        while let Some(first) = rest.first() {
            if self.line_start && *first == b'.' {
                out.put_u8(b'.');
            }
            let n = memchr::memchr(b'\n', rest).map_or(rest.len(), |n| n + 1);
            let (line, tail) = rest.split_at(n);
            out.put_slice(line);
            let before = line.len().checked_sub(2).and_then(|i| line.get(i));
            let cr_before = before.map_or(self.after_cr, |b| *b == b'\r');
            self.line_start = line.ends_with(b"\n") && cr_before;
            self.after_cr = line.ends_with(b"\r");
            rest = tail;
        }
    }

    /// Appends the end of the data, with a CRLF before it if the message lacks one.
    pub fn finish(&mut self, out: &mut BytesMut) {
        out.put_slice(if self.line_start {
            b".\r\n"
        } else {
            b"\r\n.\r\n"
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What the server undoes is what was sent, however either is cut.
        #[test]
        fn s4_stuffing_round_trips(lines in prop::collection::vec("[.a]{0,4}", 0..20), cut in 1usize..7) {
            let text: String = lines.iter().flat_map(|l| [l.as_str(), "\r\n"]).collect();
            let (mut stuffer, mut out) = (DotStuffer::default(), BytesMut::new());
            text.as_bytes().chunks(cut).for_each(|p| stuffer.stuff(p, &mut out));
            stuffer.finish(&mut out);
            let stuffed = String::from_utf8_lossy(&out).into_owned();
            let mut back = String::new();
            for line in stuffed.split_inclusive("\r\n") {
                if line == ".\r\n" { break; }
                back.push_str(line.strip_prefix('.').unwrap_or(line));
            }
            prop_assert_eq!(back, text);
        }
    }
}
