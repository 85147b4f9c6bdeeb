//! Replies of a peer that may be anything.
use bytes::BytesMut;
use sealane_types::{EnhancedStatus, Reply, sanitize};

/// Octets of one reply line at most.
const LINE: usize = 4096;
/// Lines of one reply at most.
const LINES: usize = 128;

/// What is not a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Garbage(pub(super) &'static str);

#[derive(Debug, Default)]
pub(super) struct ReplyReader {
    pub(super) input: BytesMut,
    code: Option<u16>,
    lines: Vec<String>,
}

impl ReplyReader {
    /// The next complete reply; `None` until there is more input.
    pub(super) fn next(&mut self) -> Result<Option<Reply>, Garbage> {
        loop {
            let Some(end) = memchr::memchr(b'\n', &self.input) else {
                return if self.input.len() > LINE {
                    Err(Garbage("reply line too long"))
                } else {
                    Ok(None)
                };
            };
            if end > LINE || self.lines.len() >= LINES {
                return Err(Garbage("reply too long"));
            }
            let line = self.input.split_to(end + 1);
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (code, rest) = line
                .split_at_checked(3)
                .ok_or(Garbage("reply without code"))?;
            let code: u16 = std::str::from_utf8(code)
                .ok()
                .and_then(|c| c.parse().ok())
                .ok_or(Garbage("reply without code"))?;
            if !(200..600).contains(&code) || self.code.is_some_and(|c| c != code) {
                return Err(Garbage("reply code out of range or changing"));
            }
            self.code = Some(code);
            let last = match rest.first() {
                None | Some(b' ') => true,
                Some(b'-') => false,
                Some(_) => return Err(Garbage("malformed reply line")),
            };
            self.lines
                .push(sanitize(rest.get(1..).unwrap_or_default(), 512));
            if last {
                self.code = None;
                return Ok(Some(finish(code, &std::mem::take(&mut self.lines))));
            }
        }
    }
}

/// Octets of a refusal that are kept.
const REFUSAL: usize = 1024;

fn finish(code: u16, lines: &[String]) -> Reply {
    let mut enhanced: Option<EnhancedStatus> = None;
    let text: Vec<&str> = lines
        .iter()
        .map(|l| {
            let (first, rest) = l.split_once(' ').unwrap_or((l, ""));
            match first.parse::<EnhancedStatus>() {
                Ok(s) if u16::from(s.0) == code / 100 => {
                    enhanced = Some(s);
                    rest
                }
                _ => l.as_str(),
            }
        })
        .collect();
    let mut text = text.join("\n");
    // Only EHLO's lines mean something one by one; refusals are kept once per recipient.
    if code != 250 && text.len() > REFUSAL {
        text = sanitize(text.replace('\n', " ").as_bytes(), REFUSAL);
    }
    Reply {
        code,
        enhanced,
        text,
    }
}
