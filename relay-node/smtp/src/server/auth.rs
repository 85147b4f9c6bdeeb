//! SASL PLAIN (RFC 4616) inside AUTH (RFC 4954).
use data_encoding::BASE64;
use sealane_types::Reply;

/// Authorization id, authentication id, password.
pub(super) type Plain = (String, String, Vec<u8>);

/// Decodes a PLAIN response.
pub(super) fn plain(encoded: &str) -> Result<Plain, Reply> {
    let bad = |text| Reply::new(501, (5, 5, 2), text);
    let encoded = if encoded == "=" { "" } else { encoded };
    let raw = BASE64
        .decode(encoded.as_bytes())
        .map_err(|_| bad("Invalid base64"))?;
    let mut parts = raw.splitn(3, |b| *b == 0);
    let (Some(authzid), Some(authcid), Some(password)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("Malformed PLAIN response"));
    };
    let text =
        |b: &[u8]| String::from_utf8(b.to_vec()).map_err(|_| bad("PLAIN response is not UTF-8"));
    if authcid.is_empty() || password.is_empty() || password.contains(&0) {
        return Err(bad("Malformed PLAIN response"));
    }
    Ok((text(authzid)?, text(authcid)?, password.to_vec()))
}
