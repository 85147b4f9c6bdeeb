//! The DATA octets: finds the one true end, undoes dot-stuffing, refuses what smuggles.
//!
//! Only CRLF "." CRLF ends the data. A bare CR, a bare LF or a NUL spoils the message: the rest is
//! swallowed up to the true end and nothing of it is ever executed (RFC 5321 sections 2.3.8, 4.1.1.4).
use bytes::{Bytes, BytesMut};
use memchr::memchr3;
use sealane_mutants::{Mutant::M7, mutant};

/// Where the scanner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Behind CRLF (or at the beginning).
    LineStart,
    /// Behind a "." at a line's start.
    Dot,
    /// Behind "." CR at a line's start.
    DotCr,
    /// Inside a line.
    Text,
    /// Behind a CR.
    Cr,
}

/// What a piece of input turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Octets of input used up.
    pub(super) consumed: usize,
    /// Message octets found.
    pub(super) content: Bytes,
    /// The end was found.
    pub(super) ended: bool,
}

#[derive(Debug)]
pub(super) struct DataScanner {
    at: At,
    /// Set by the first octet that is not allowed.
    pub(super) spoiled: bool,
}

impl DataScanner {
    pub(super) fn new() -> Self {
        Self {
            at: At::LineStart,
            spoiled: false,
        }
    }

    pub(super) fn scan(&mut self, input: &[u8]) -> Scanned {
        let mut out = BytesMut::with_capacity(input.len());
        let mut i = 0;
        while i < input.len() {
            let b = input[i];
            match self.at {
                At::Text => {
                    // Straight to the next octet that matters.
                    let n = memchr3(b'\r', b'\n', 0, &input[i..]).unwrap_or(input.len() - i);
                    out.extend_from_slice(&input[i..i + n]);
                    i += n;
                    if let Some(special) = input.get(i) {
                        if *special == b'\r' {
                            self.at = At::Cr;
                        } else if *special == b'\n' && mutant(M7) {
                            self.at = At::LineStart;
                        } else {
                            self.spoiled = true;
                        }
                        i += 1;
                    }
                    continue;
                }
                At::LineStart if b == b'.' => self.at = At::Dot,
                At::LineStart => {
                    self.at = At::Text;
                    continue;
                }
                At::Dot if b == b'\r' => self.at = At::DotCr,
                At::Dot if b == b'\n' && mutant(M7) => {
                    self.at = At::DotCr;
                    continue;
                }
                // The stuffed dot is dropped; what follows is text, a second dot included.
                At::Dot => {
                    self.at = At::Text;
                    continue;
                }
                At::DotCr if b == b'\n' => {
                    return Scanned {
                        consumed: i + 1,
                        content: out.freeze(),
                        ended: true,
                    };
                }
                At::Cr if b == b'\n' => {
                    out.extend_from_slice(b"\r\n");
                    self.at = At::LineStart;
                }
                At::DotCr | At::Cr => {
                    self.spoiled = true;
                    self.at = if b == b'\r' { At::Cr } else { At::Text };
                    if b != b'\r' {
                        continue;
                    }
                }
            }
            i += 1;
        }
        if self.spoiled {
            out.clear();
        }
        Scanned {
            consumed: i,
            content: out.freeze(),
            ended: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&[u8]]) -> (Vec<u8>, Option<usize>, bool) {
        let mut s = DataScanner::new();
        let (mut content, mut used) = (Vec::new(), 0);
        for p in pieces {
            let r = s.scan(p);
            content.extend_from_slice(&r.content);
            used += r.consumed;
            if r.ended {
                return (content, Some(used), s.spoiled);
            }
        }
        (content, None, s.spoiled)
    }

    #[test]
    fn s4_stuffed_dots_are_undone() {
        let (content, end, spoiled) = run(&[b"..a\r\n.b\r\n...\r\nx\r\n.\r\n"]);
        assert_eq!(
            (content.as_slice(), end.is_some(), spoiled),
            (b".a\r\nb\r\n..\r\nx\r\n".as_slice(), true, false)
        );
        assert_eq!(run(&[b".\r\n"]).1, Some(3));
    }

    #[test]
    fn s1_only_crlf_dot_crlf_ends_data() {
        for fake in [
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
        ] {
            let text = format!("body{fake}MAIL FROM:<x@y.example>\r\n.\r\n");
            let (_, end, spoiled) = run(&[text.as_bytes()]);
            assert_eq!(end, Some(text.len()), "{fake:?}");
            assert!(spoiled, "{fake:?}");
        }
    }

    proptest! {
        #[test]
        fn splits_do_not_matter(data in prop::collection::vec(prop::sample::select(b"\r\n.a\0".to_vec()), 0..60), cuts in prop::collection::vec(0usize..60, 0..8)) {
            let mut data = data;
            data.extend_from_slice(b"\r\n.\r\n");
            let whole = run(&[&data]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(data.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for c in cuts {
                pieces.push(&data[from..c]);
                from = c;
            }
            pieces.push(&data[from..]);
            let split = run(&pieces);
            prop_assert_eq!(whole.1, split.1);
            prop_assert_eq!(whole.2, split.2);
            if !whole.2 {
                prop_assert_eq!(whole.0, split.0);
            }
        }
    }
}
