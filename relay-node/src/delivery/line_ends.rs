//! The last look at content before it leaves.

/// Sees bare CR and bare LF in content that comes in pieces. Ingress refuses both; a peer must not
/// get them from us whatever happened in between (SMTP smuggling).
#[derive(Debug, Default)]
pub(super) struct LineEnds {
    after_cr: bool,
}

impl LineEnds {
    /// All line ends of this piece are CRLF, as far as can be seen yet.
    pub(super) fn clean(&mut self, piece: &[u8]) -> bool {
        piece.iter().all(|octet| {
            let ok = (*octet == b'\n') == self.after_cr;
            self.after_cr = *octet == b'\r';
            ok
        })
    }
    /// At the end: no CR is left over.
    pub(super) fn complete(&self) -> bool {
        !self.after_cr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_crlf_ends_a_line_however_it_is_cut() {
        for (content, clean) in [
            (&b"a\r\n.\r\n\r\n"[..], true),
            (b"", true),
            (b"a", true),
            (b"a\n.\n", false),
            (b"\n", false),
            (b"a\r.\r\n", false),
            (b"a\r\r\n", false),
            (b"a\r", false),
        ] {
            for cut in 1..=content.len().max(1) {
                let mut ends = LineEnds::default();
                let ok = content.chunks(cut).all(|piece| ends.clean(piece)) && ends.complete();
                assert_eq!(ok, clean, "{content:?} cut {cut}");
            }
        }
    }
}
