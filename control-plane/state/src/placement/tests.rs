use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn counts(p: &Placement, nodes: &[u64], of: impl Fn(&[u64]) -> Vec<u64>) -> BTreeMap<u64, usize> {
    let mut count: BTreeMap<u64, usize> = nodes.iter().map(|n| (*n, 0)).collect();
    for (_, set) in p.iter().filter(|(g, _)| **g != META) {
        for n in of(set) {
            *count.get_mut(&n).unwrap() += 1;
        }
    }
    count
}

fn differ_by_one(count: &BTreeMap<u64, usize>) -> bool {
    let most = count.values().max().copied().unwrap_or(0);
    let least = count.values().min().copied().unwrap_or(0);
    most - least <= 1
}

fn moved(before: &Placement, after: &Placement) -> usize {
    after
        .iter()
        .filter(|(g, _)| **g != META)
        .map(|(g, set)| set.iter().filter(|n| !before[g].contains(n)).count())
        .sum()
}

/// Everything that holds for every placement.
fn check(p: &Placement, nodes: &[u64], shards: u32, replicas: u32) {
    assert_eq!(p.len(), usize::try_from(shards).unwrap() + 1);
    for (group, set) in p {
        let distinct: BTreeSet<u64> = set.iter().copied().collect();
        assert_eq!(
            distinct.len(),
            set.len(),
            "group {group} twice on a node: {set:?}"
        );
        assert_eq!(
            set.len(),
            usize::try_from(replicas).unwrap().min(nodes.len()),
            "group {group}"
        );
        assert!(
            set.iter().all(|n| nodes.contains(n)),
            "group {group}: {set:?}"
        );
    }
    let replicas = counts(p, nodes, <[u64]>::to_vec);
    assert!(differ_by_one(&replicas), "replicas {replicas:?}");
    let leaders = counts(p, nodes, |set| set[..1].to_vec());
    assert!(differ_by_one(&leaders), "leaders {leaders:?}");
}

/// The least number of moves to any even placement, by trying all.
fn least_moves(nodes: &[u64], replicas: usize, before: &Placement) -> usize {
    fn subsets(nodes: &[u64], k: usize) -> Vec<BTreeSet<u64>> {
        (0u32..1 << nodes.len())
            .filter(|m| usize::try_from(m.count_ones()).unwrap() == k)
            .map(|m| {
                (0..nodes.len())
                    .filter(|i| m & (1 << i) != 0)
                    .map(|i| nodes[i])
                    .collect()
            })
            .collect()
    }
    fn go(
        shards: &[Vec<u64>],
        all: &[BTreeSet<u64>],
        load: &mut BTreeMap<u64, usize>,
        cost: usize,
        best: &mut usize,
    ) {
        let Some((first, rest)) = shards.split_first() else {
            if differ_by_one(load) {
                *best = cost.min(*best);
            }
            return;
        };
        for set in all {
            let cost = cost + set.iter().filter(|n| !first.contains(n)).count();
            if cost < *best {
                set.iter().for_each(|n| *load.get_mut(n).unwrap() += 1);
                go(rest, all, load, cost, best);
                set.iter().for_each(|n| *load.get_mut(n).unwrap() -= 1);
            }
        }
    }
    let shards: Vec<Vec<u64>> = before
        .iter()
        .filter(|(g, _)| **g != META)
        .map(|(_, s)| s.clone())
        .collect();
    let mut load = nodes.iter().map(|n| (*n, 0)).collect();
    let mut best = usize::MAX;
    go(
        &shards,
        &subsets(nodes, replicas.min(nodes.len())),
        &mut load,
        0,
        &mut best,
    );
    best
}

#[test]
fn three_nodes_become_five_and_three_again() {
    let three = place(&[1, 20, 30], 8, 3, &Placement::new());
    check(&three, &[1, 20, 30], 8, 3);
    let nodes = [1, 20, 30, 40, 50];
    let four = place(&nodes[..4], 8, 3, &three);
    check(&four, &nodes[..4], 8, 3);
    assert_eq!(moved(&three, &four), 6, "a quarter of 24");
    let five = place(&nodes, 8, 3, &four);
    check(&five, &nodes, 8, 3);
    assert_eq!(moved(&four, &five), 4, "its share and no more");
    assert_eq!(
        five[&META],
        [1, 20, 30],
        "the metadata group stays where it is"
    );
    let less = place(&[20, 30, 40, 50], 8, 3, &five);
    check(&less, &[20, 30, 40, 50], 8, 3);
    let gone = five.values().skip(1).filter(|s| s.contains(&1)).count();
    assert_eq!(
        moved(&five, &less),
        gone,
        "only the replicas of the node that left"
    );
    check(&place(&[30, 40, 50], 8, 3, &less), &[30, 40, 50], 8, 3);
}

#[test]
fn nothing_moves_when_nothing_changed() {
    let nodes = [3, 5, 9, 11];
    let first = place(&nodes, 8, 3, &Placement::new());
    assert_eq!(place(&nodes, 8, 3, &first), first);
}

#[test]
fn no_nodes_hold_nothing() {
    let p = place(&[], 2, 3, &Placement::new());
    assert!(p.values().all(Vec::is_empty));
}

#[test]
fn the_most_shards_on_many_nodes_are_placed() {
    let nodes: Vec<u64> = (1..=20).collect();
    let before = place(&nodes[..19], 255, 5, &Placement::new());
    let after = place(&nodes, 255, 5, &before);
    check(&after, &nodes, 255, 5);
    assert_eq!(moved(&before, &after), 255 * 5 / 20);
}

/// Any placement, even or not.
fn anything(nodes: u64, shards: u32, replicas: usize) -> impl Strategy<Value = Placement> {
    let all: Vec<u64> = (1..=nodes).collect();
    let replicas = replicas.min(all.len());
    let set = Just(all).prop_shuffle().prop_map(move |mut v| {
        v.truncate(replicas);
        v
    });
    prop::collection::vec(set, usize::try_from(shards).unwrap() + 1)
        .prop_map(|sets| (0u32..).zip(sets).collect())
}

proptest! {
    #[test]
    fn every_placement_is_even_and_has_no_two_replicas_on_one_node(
        nodes in prop::collection::btree_set(1u64..1000, 1..10),
        shards in 1u32..40,
        replicas in prop::sample::select(vec![1u32, 3, 5]),
        changes in prop::collection::vec((any::<bool>(), 1u64..1000), 0..6),
    ) {
        let mut now = nodes;
        let list = |s: &BTreeSet<u64>| s.iter().copied().collect::<Vec<_>>();
        let mut p = place(&list(&now), shards, replicas, &Placement::new());
        check(&p, &list(&now), shards, replicas);
        for (add, id) in changes {
            let gone = (!add && now.len() > 1)
                .then(|| now.range(id..).next().or(now.first()).copied())
                .flatten();
            match gone {
                Some(gone) => drop(now.remove(&gone)),
                None => drop(now.insert(id)),
            }
            let next = place(&list(&now), shards, replicas, &p);
            check(&next, &list(&now), shards, replicas);
            prop_assert_eq!(&place(&list(&now), shards, replicas, &p), &next, "deterministic");
            p = next;
        }
    }

    #[test]
    fn no_placement_needs_fewer_moves(
        (before, nodes, shards, replicas) in (1u64..5, 1u32..5, 1u32..4).prop_flat_map(|(n, s, r)| {
            let keep = prop::collection::btree_set(1..=n + 1, 1..=usize::try_from(n).unwrap() + 1);
            (anything(n, s, usize::try_from(r).unwrap()), keep, Just(s), Just(r))
        }),
    ) {
        let nodes: Vec<u64> = nodes.into_iter().collect();
        let after = place(&nodes, shards, replicas, &before);
        check(&after, &nodes, shards, replicas);
        let least = least_moves(&nodes, usize::try_from(replicas).unwrap(), &before);
        prop_assert_eq!(moved(&before, &after), least, "{:?} -> {:?}", before, after);
    }

    #[test]
    fn leaders_stay_where_nothing_moves(shards in 1u32..30, n in 3u64..8) {
        let nodes: Vec<u64> = (1..=n).collect();
        let p = place(&nodes, shards, 3, &Placement::new());
        prop_assert_eq!(&place(&nodes, shards, 3, &p), &p);
    }
}
