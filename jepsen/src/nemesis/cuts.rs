//! Which nodes a partition keeps apart.

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

use crate::ground::Cut;

/// Nothing passes between the two, in either direction.
fn apart(cut: &mut Cut, some: &[u64], others: &[u64]) {
    for &one in some {
        for &other in others {
            cut.extend([(one, other), (other, one)]);
        }
    }
}

fn shuffled(nodes: &[u64], rng: &mut StdRng) -> Vec<u64> {
    let mut nodes = nodes.to_vec();
    nodes.shuffle(rng);
    nodes
}

/// One node, and all others.
pub(super) fn one(nodes: &[u64], node: u64) -> Cut {
    let others: Vec<u64> = nodes.iter().copied().filter(|it| *it != node).collect();
    let mut cut = Cut::new();
    apart(&mut cut, &[node], &others);
    cut
}

/// A majority and the rest.
pub(super) fn halves(nodes: &[u64], rng: &mut StdRng) -> Cut {
    let nodes = shuffled(nodes, rng);
    let (most, few) = nodes.split_at(nodes.len() / 2 + 1);
    let mut cut = Cut::new();
    apart(&mut cut, most, few);
    cut
}

/// The nodes stand in a ring, and each reaches only its nearest: as many as make a majority with it. So each sees a
/// majority, and no two the same. Of three nodes that would be all; there the ring is open: the first and the last do not
/// reach each other.
pub(super) fn majorities_ring(nodes: &[u64], rng: &mut StdRng) -> Cut {
    let nodes = shuffled(nodes, rng);
    let count = nodes.len();
    let mut cut = Cut::new();
    if count <= 3 {
        if let [first, .., last] = nodes[..] {
            apart(&mut cut, &[first], &[last]);
        }
        return cut;
    }
    // On each side half of those that it needs beside itself.
    let reach = (count / 2).div_ceil(2);
    for (place, &node) in nodes.iter().enumerate() {
        for (other_place, &other) in nodes.iter().enumerate() {
            let ahead = (other_place + count - place) % count;
            if ahead > reach && count - ahead > reach {
                cut.insert((node, other));
            }
        }
    }
    cut
}

/// Two halves that do not reach each other, and one node that reaches all.
pub(super) fn bridge(nodes: &[u64], rng: &mut StdRng) -> Cut {
    let nodes = shuffled(nodes, rng);
    let mut cut = Cut::new();
    if let [_, others @ ..] = &nodes[..] {
        let (some, rest) = others.split_at(others.len() / 2);
        apart(&mut cut, some, rest);
    }
    cut
}

/// What a node sends arrives nowhere; it hears the others.
pub(super) fn unheard(nodes: &[u64], node: u64) -> Cut {
    let others = nodes.iter().filter(|it| **it != node);
    others.map(|other| (node, *other)).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    const FIVE: [u64; 5] = [1, 2, 3, 4, 5];

    fn rng() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    /// Whom a node reaches in both directions, itself included.
    fn reached(nodes: &[u64], cut: &Cut, node: u64) -> Vec<u64> {
        let open = |other: &u64| !cut.contains(&(node, *other)) && !cut.contains(&(*other, node));
        nodes.iter().copied().filter(open).collect()
    }

    #[test]
    fn one_node_reaches_itself_only_and_the_others_each_other() {
        let cut = one(&FIVE, 3);
        assert_eq!(reached(&FIVE, &cut, 3), [3]);
        assert_eq!(reached(&FIVE, &cut, 1), [1, 2, 4, 5]);
    }

    #[test]
    fn halves_are_a_majority_and_a_minority() {
        for nodes in [&FIVE[..], &FIVE[..3]] {
            let cut = halves(nodes, &mut rng());
            let mut sizes: Vec<usize> = nodes
                .iter()
                .map(|node| reached(nodes, &cut, *node).len())
                .collect();
            sizes.sort_unstable();
            let few = nodes.len() - nodes.len() / 2 - 1;
            assert_eq!(sizes[..few], vec![few; few]);
            assert!(sizes[few..].iter().all(|size| *size == nodes.len() - few));
        }
    }

    #[test]
    fn in_the_ring_each_sees_a_majority_of_its_own() {
        let cut = majorities_ring(&FIVE, &mut rng());
        let seen: std::collections::BTreeSet<_> = FIVE
            .iter()
            .map(|node| reached(&FIVE, &cut, *node))
            .collect();
        assert_eq!(seen.len(), 5, "no two the same");
        assert!(seen.iter().all(|nodes| nodes.len() == 3));
        let three = &FIVE[..3];
        let cut = majorities_ring(three, &mut rng());
        assert_eq!(cut.len(), 2, "one pair, both ways");
        assert!(
            three
                .iter()
                .all(|node| reached(three, &cut, *node).len() >= 2)
        );
    }

    #[test]
    fn a_bridge_reaches_both_halves() {
        let cut = bridge(&FIVE, &mut rng());
        let mut sizes: Vec<usize> = FIVE
            .iter()
            .map(|node| reached(&FIVE, &cut, *node).len())
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [3, 3, 3, 3, 5]);
    }

    #[test]
    fn who_is_not_heard_hears() {
        let cut = unheard(&FIVE, 2);
        assert_eq!(cut, Cut::from([(2, 1), (2, 3), (2, 4), (2, 5)]));
    }
}
