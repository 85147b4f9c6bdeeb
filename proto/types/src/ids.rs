//! Identifiers.
use data_encoding::{Encoding, Specification};
use std::{fmt, str::FromStr, sync::LazyLock};

/// A Raft group: 0 is the metadata group, 1.. are queue shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

impl GroupId {
    /// Policy, nodes, audit.
    pub const META: GroupId = GroupId(0);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A queue shard, 1..=255. Its Raft group has the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(u8);

impl ShardId {
    /// `None` for 0 and for more than 255.
    pub fn new(n: u32) -> Option<Self> {
        u8::try_from(n).ok().filter(|n| *n > 0).map(Self)
    }
    /// Its number, from 1.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }
    /// The Raft group that holds it.
    pub fn group(self) -> GroupId {
        GroupId(self.get())
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A control-plane node. Allocated once, kept on the volume, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names a message for life: shard (1 octet), milliseconds since the epoch (6), random (9).
///
/// Chosen by the accepting relay before the first proposal; every retry uses the same id on the
/// same shard. Text form: 26 characters of lower-case Crockford base32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; 16]);

/// Not a message id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a message id: {0}")]
pub struct IdError(&'static str);

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("0123456789abcdefghjkmnpqrstvwxyz");
    spec.translate.from.push_str("ABCDEFGHJKMNPQRSTVWXYZ");
    spec.translate.to.push_str("abcdefghjkmnpqrstvwxyz");
    spec.encoding().expect("a constant alphabet")
});

impl MessageId {
    /// `time_ms` is truncated to 48 bits.
    pub fn new(shard: ShardId, time_ms: u64, random: [u8; 9]) -> Self {
        let mut id = [0; 16];
        id[0] = shard.0;
        id[1..7].copy_from_slice(&time_ms.to_be_bytes()[2..]);
        id[7..].copy_from_slice(&random);
        Self(id)
    }
    /// 16 octets with a shard number that is not 0.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, IdError> {
        let id: [u8; 16] = bytes.try_into().map_err(|_| IdError("needs 16 octets"))?;
        if id[0] == 0 {
            return Err(IdError("shard 0 holds no messages"));
        }
        Ok(Self(id))
    }
    /// The shard that holds the message.
    pub fn shard(self) -> ShardId {
        ShardId(self.0[0])
    }
    /// The raw octets.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
    /// When it was made, milliseconds since the epoch, by its relay's clock.
    pub fn time_ms(self) -> u64 {
        self.0[1..7].iter().fold(0, |n, b| n << 8 | u64::from(*b))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32.encode(&self.0))
    }
}

impl FromStr for MessageId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let bytes = BASE32
            .decode(s.as_bytes())
            .map_err(|_| IdError("needs 26 base32 characters"))?;
        Self::from_slice(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn message_id_text_round_trips(shard in 1u32..256, t in 0u64..1 << 48, r: [u8; 9]) {
            let id = MessageId::new(ShardId::new(shard).expect("in range"), t, r);
            prop_assert_eq!(id.to_string().parse::<MessageId>(), Ok(id));
            prop_assert_eq!(id.to_string().to_uppercase().parse::<MessageId>(), Ok(id));
            prop_assert_eq!(id.time_ms(), t);
            prop_assert_eq!(id.shard().get(), shard);
            prop_assert_eq!(id.to_string().len(), 26);
        }
    }

    #[test]
    fn shard_zero_is_no_message_id() {
        assert!(MessageId::from_slice(&[0; 16]).is_err());
        assert!("short".parse::<MessageId>().is_err());
    }
}
