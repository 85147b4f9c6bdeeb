//! Command lines.
use sealane_types::{DomainName, Mailbox, Reply, ReversePath};

/// ESMTP parameters of MAIL that this version knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailParameters {
    /// SIZE (RFC 1870).
    pub size: Option<u64>,
    /// BODY=8BITMIME (RFC 6152).
    pub eight_bit: bool,
}

/// `<path>` and the parameters behind it.
fn split_path(rest: &str) -> Option<(&str, &str)> {
    let inner = rest.trim_start().strip_prefix('<')?;
    let mut quoted = false;
    let mut escaped = false;
    for (i, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '>' if !quoted => {
                let parameters = &inner[i + 1..];
                return (parameters.is_empty() || parameters.starts_with(' '))
                    .then_some((&inner[..i], parameters));
            }
            _ => {}
        }
    }
    None
}

/// Without a source route, `@a,@b:`, which is recognised and ignored (RFC 5321 section 4.1.1.3 and appendix C).
fn without_route(path: &str) -> &str {
    let Some((route, rest)) = path.split_once(':').filter(|_| path.starts_with('@')) else {
        return path;
    };
    let hops = route.split(',').all(|hop| {
        hop.strip_prefix('@')
            .is_some_and(|domain| DomainName::parse(domain).is_ok())
    });
    if hops { rest } else { path }
}

fn after_keyword<'a>(argument: &'a str, keyword: &str) -> Option<&'a str> {
    let (head, rest) = argument.split_at_checked(keyword.len())?;
    head.eq_ignore_ascii_case(keyword).then_some(rest)
}

/// `FROM:<reverse-path> [parameters]`.
pub(crate) fn mail(argument: &str) -> Result<(ReversePath, MailParameters), Reply> {
    let rest = after_keyword(argument, "FROM:")
        .ok_or_else(|| Reply::new(501, (5, 5, 4), "Syntax: MAIL FROM:<address>"))?;
    let (path, parameters) =
        split_path(rest).ok_or_else(|| Reply::new(501, (5, 1, 7), "Bad sender address syntax"))?;
    let path = ReversePath::parse(without_route(path))
        .map_err(|e| Reply::new(501, (5, 1, 7), e.to_string()))?;
    Ok((path, mail_parameters(parameters)?))
}

fn mail_parameters(text: &str) -> Result<MailParameters, Reply> {
    let mut out = MailParameters::default();
    let mut seen: Vec<String> = Vec::new();
    for p in text.split_ascii_whitespace() {
        let (key, value) = p.split_once('=').map_or((p, None), |(k, v)| (k, Some(v)));
        let key = key.to_ascii_uppercase();
        if seen.contains(&key) {
            return Err(Reply::new(501, (5, 5, 4), "Parameter given twice"));
        }
        match (key.as_str(), value) {
            ("SIZE", Some(v))
                if !v.is_empty() && v.len() <= 20 && v.bytes().all(|b| b.is_ascii_digit()) =>
            {
                out.size = Some(v.parse().unwrap_or(u64::MAX));
            }
            ("BODY", Some(v)) if v.eq_ignore_ascii_case("8BITMIME") => out.eight_bit = true,
            ("BODY", Some(v)) if v.eq_ignore_ascii_case("7BIT") => {}
            // RFC 4954 section 5: parsed, not trusted: as AUTH=<>.
            ("AUTH", Some(v)) if xtext(v) => {}
            ("SIZE" | "BODY" | "AUTH", _) => {
                return Err(Reply::new(501, (5, 5, 4), format!("Bad value of {key}")));
            }
            _ => return Err(Reply::new(555, (5, 5, 4), "Unknown MAIL parameter")),
        }
        seen.push(key);
    }
    Ok(out)
}

/// RFC 3461 section 4: printable but `+` and `=`, or `+` and two upper-case hexadecimal digits. `<>` is allowed by RFC 4954.
fn xtext(v: &str) -> bool {
    let hex = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b));
    let b = v.as_bytes();
    let mut i = 0;
    while i < b.len() {
        match b[i] {
            b'+' if hex(b.get(i + 1)) && hex(b.get(i + 2)) => i += 3,
            b'+' | b'=' => return false,
            0x21..=0x7e => i += 1,
            _ => return false,
        }
    }
    !b.is_empty()
}

/// `TO:<forward-path>`; no parameters are offered, so none is known.
pub(crate) fn rcpt(argument: &str) -> Result<Mailbox, Reply> {
    let rest = after_keyword(argument, "TO:")
        .ok_or_else(|| Reply::new(501, (5, 5, 4), "Syntax: RCPT TO:<address>"))?;
    let (path, parameters) = split_path(rest)
        .ok_or_else(|| Reply::new(501, (5, 1, 3), "Bad recipient address syntax"))?;
    if !parameters.trim().is_empty() {
        return Err(Reply::new(555, (5, 5, 4), "Unknown RCPT parameter"));
    }
    Mailbox::parse(without_route(path)).map_err(|e| Reply::new(501, (5, 1, 3), e.to_string()))
}
