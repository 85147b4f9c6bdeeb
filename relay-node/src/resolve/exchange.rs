//! The order of mail exchanges (RFC 5321 section 5.1).
use rand::{Rng, seq::SliceRandom};

/// One MX record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exchange {
    pub(super) preference: u16,
    /// Lower case, no trailing dot; empty is the root, RFC 7505's null MX.
    pub(super) host: String,
}

/// What the MX records say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exchanges {
    /// A null MX (RFC 7505).
    Null,
    /// We are the best exchange that is left: delivering would loop.
    Own,
    /// To be tried in this order.
    Hosts(Vec<String>),
}

/// Best preference first, random among equals; from our own name on everything is dropped, because
/// those exchanges would hand the mail to us (RFC 5321 section 5.1); then at most `max`.
pub(super) fn order(
    mut records: Vec<Exchange>,
    own_name: &str,
    max: usize,
    rng: &mut impl Rng,
) -> Exchanges {
    if records.iter().any(|r| r.host.is_empty()) && records.len() == 1 {
        return Exchanges::Null;
    }
    records.retain(|r| !r.host.is_empty());
    records.shuffle(rng);
    records.sort_by_key(|r| r.preference);
    if let Some(own) = records
        .iter()
        .find(|r| r.host == own_name)
        .map(|r| r.preference)
    {
        records.retain(|r| r.preference < own);
        if records.is_empty() {
            return Exchanges::Own;
        }
    }
    records.truncate(max);
    Exchanges::Hosts(records.into_iter().map(|r| r.host).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};
    use std::collections::BTreeSet;

    fn mx(preference: u16, host: &str) -> Exchange {
        Exchange {
            preference,
            host: host.to_owned(),
        }
    }

    #[test]
    fn preference_orders_and_chance_breaks_ties() {
        let mut firsts = BTreeSet::new();
        for seed in 0..64 {
            let records = vec![mx(20, "c"), mx(10, "a"), mx(10, "b")];
            let Exchanges::Hosts(hosts) =
                order(records, "us", 10, &mut StdRng::seed_from_u64(seed))
            else {
                panic!("hosts")
            };
            assert_eq!(hosts.last().map(String::as_str), Some("c"));
            firsts.insert(hosts[0].clone());
        }
        assert_eq!(firsts.len(), 2, "both equal exchanges come first at times");
    }

    #[test]
    fn null_mx_counts_only_alone() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(order(vec![mx(0, "")], "us", 10, &mut rng), Exchanges::Null);
        assert_eq!(
            order(vec![mx(0, ""), mx(5, "a")], "us", 10, &mut rng),
            Exchanges::Hosts(vec!["a".into()])
        );
    }

    #[test]
    fn our_own_name_ends_the_list() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(
            order(
                vec![mx(10, "us"), mx(10, "a"), mx(20, "b")],
                "us",
                10,
                &mut rng
            ),
            Exchanges::Own
        );
        assert_eq!(
            order(
                vec![mx(20, "us"), mx(10, "a"), mx(30, "b")],
                "us",
                10,
                &mut rng
            ),
            Exchanges::Hosts(vec!["a".into()])
        );
    }

    #[test]
    fn a_thousand_exchanges_are_cut() {
        let records = (0..1000).map(|i| mx(i, "x")).collect();
        let Exchanges::Hosts(hosts) = order(records, "us", 10, &mut StdRng::seed_from_u64(1))
        else {
            panic!("hosts")
        };
        assert_eq!(hosts.len(), 10);
    }
}
