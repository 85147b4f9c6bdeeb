//! Frames: what every octet of the file but its first twelve is in.
use crate::BackupError;
use bytes::Bytes;
use std::io::{ErrorKind, Read};

/// First octets of a backup.
pub(crate) const MAGIC: &[u8; 8] = b"SEALBKUP";
/// Version of the format.
pub(crate) const VERSION: u32 = 1;
/// Most octets of a frame's payload.
pub const FRAME: usize = 16 << 20;
/// Octets of a frame before its payload.
pub(crate) const HEAD: usize = 5;
/// And behind.
pub(crate) const CRC: usize = 4;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Header = 1,
    Group = 2,
    Records = 3,
    End = 4,
    Trailer = 5,
}

impl Kind {
    fn of(n: u8) -> Option<Self> {
        [
            Self::Header,
            Self::Group,
            Self::Records,
            Self::End,
            Self::Trailer,
        ]
        .into_iter()
        .find(|k| *k as u8 == n)
    }
}

/// A frame that is as it was written.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Where it begins.
    pub(crate) at: u64,
    pub(crate) kind: Kind,
    pub(crate) payload: Bytes,
    /// All its octets, for the digest of the file.
    pub(crate) raw: Bytes,
}

pub(crate) fn damaged(at: u64, what: impl Into<String>) -> BackupError {
    BackupError::Damaged {
        at,
        what: what.into(),
    }
}

/// The octets of a frame; `None` if the payload is too long.
pub(crate) fn encode(kind: Kind, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= FRAME)?;
    let mut out = Vec::with_capacity(HEAD + payload.len() + CRC);
    out.push(kind as u8);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    Some(out)
}

/// The next frame, which begins at `at`; `None` at the end of the input.
pub(crate) fn read(input: &mut impl Read, at: u64) -> Result<Option<Frame>, BackupError> {
    let mut raw = Vec::with_capacity(HEAD);
    fill(input, &mut raw, HEAD)?;
    let (kind, length) = match raw.as_slice() {
        [] => return Ok(None),
        [kind, a, b, c, d] => (*kind, u32::from_be_bytes([*a, *b, *c, *d])),
        _ => return Err(damaged(at, "it ends within a frame")),
    };
    let payload = usize::try_from(length).unwrap_or(usize::MAX);
    if payload > FRAME {
        return Err(damaged(at, format!("a frame of {length} octets")));
    }
    // Grows as octets come: what the length says alone allocates nothing.
    fill(input, &mut raw, HEAD + payload + CRC)?;
    if raw.len() != HEAD + payload + CRC {
        return Err(damaged(at, "it ends within a frame"));
    }
    let (framed, crc) = raw.split_at(HEAD + payload);
    if crc != crc32c::crc32c(framed).to_be_bytes() {
        return Err(damaged(at, "checksum does not match"));
    }
    let kind = Kind::of(kind).ok_or_else(|| damaged(at, format!("a frame of kind {kind}")))?;
    let raw = Bytes::from(raw);
    let payload = raw.slice(HEAD..HEAD + payload);
    Ok(Some(Frame {
        at,
        kind,
        payload,
        raw,
    }))
}

/// Reads until `raw` has `want` octets or the input ends.
fn fill(input: &mut impl Read, raw: &mut Vec<u8>, want: usize) -> Result<(), BackupError> {
    let missing = want.saturating_sub(raw.len());
    match input.take(missing as u64).read_to_end(raw) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The first twelve octets.
pub(crate) fn preamble() -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(MAGIC);
    out[8..].copy_from_slice(&VERSION.to_be_bytes());
    out
}

/// Reads and judges the first twelve octets.
pub(crate) fn read_preamble(input: &mut impl Read) -> Result<[u8; 12], BackupError> {
    let mut raw = Vec::with_capacity(12);
    fill(input, &mut raw, 12)?;
    if !raw.starts_with(MAGIC) {
        return Err(BackupError::Foreign);
    }
    let raw: [u8; 12] = raw
        .try_into()
        .map_err(|_| damaged(8, "it ends within its version"))?;
    match u32::from_be_bytes([raw[8], raw[9], raw[10], raw[11]]) {
        VERSION => Ok(raw),
        other => Err(BackupError::Version(other)),
    }
}
