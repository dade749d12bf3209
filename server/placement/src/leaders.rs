//! Even leaders: transfers along the shortest chain from who leads too much to who leads too little.

use std::cmp::Reverse;

use crate::fleet::Place;
use crate::plan::{Draft, is_caught_up};

/// Who may lead what, as a graph of nodes: an edge goes from a shard's leader to each voter that could lead.
struct Chains {
    /// By node: the shards that it leads and could hand over.
    led: Vec<Vec<usize>>,
    /// By node: what it leads beyond its fair share, times the sum of weights.
    surplus: Vec<i64>,
    /// The sum of weights: what one leader changes a surplus by.
    one: i64,
}

/// Plans transfers until no chain makes leaders evener, or the plan's limit is reached.
pub(crate) fn even(draft: &mut Draft<'_>) {
    let mut chains = Chains::new(draft);
    let Some(least) = (0..draft.fleet.nodes.len())
        .filter(|place| draft.fleet.nodes[*place].is_heir())
        .map(|place| chains.surplus[place])
        .min()
    else {
        return;
    };
    let mut order: Vec<Place> = (0..chains.led.len())
        .filter(|place| chains.surplus[*place] - least > chains.one)
        .collect();
    order.sort_unstable_by_key(|place| (Reverse(chains.surplus[*place]), *place));
    // What cannot be bettered from a node cannot be from any that it reaches and that leads no more than it.
    let mut hopeless = vec![false; chains.led.len()];
    for from in order {
        while !hopeless[from] && draft.evening_left(from) > 0 {
            match chains.find(draft, from) {
                Ok(chain) => chains.shift(draft, &chain),
                Err(reached) => {
                    for place in reached {
                        hopeless[place] |= chains.surplus[place] <= chains.surplus[from];
                    }
                }
            }
        }
    }
}

/// Transfers, first to last: the shard and its new leader. Each new leader is the next one's old.
type Chain = Vec<(usize, Place)>;

impl Chains {
    fn new(draft: &Draft<'_>) -> Self {
        let fleet = &draft.fleet;
        let mut led = vec![Vec::new(); fleet.nodes.len()];
        for index in draft.idle() {
            if let Some(leader) = draft.state.shards[index].leader {
                let place = fleet.place(leader);
                if !fleet.nodes[place].settles {
                    led[place].push(index);
                }
            }
        }
        let weight = |node: &crate::fleet::Berth| {
            if node.is_heir() {
                i64::from(node.weight)
            } else {
                0
            }
        };
        let one = fleet.nodes.iter().map(weight).sum();
        let count = |leaders: usize| i64::try_from(leaders).expect("shards fit in memory");
        let total = count(
            fleet
                .nodes
                .iter()
                .filter(|node| node.up && !node.settles)
                .map(|node| node.leaders)
                .sum(),
        );
        let surplus = fleet
            .nodes
            .iter()
            .map(|node| count(node.leaders) * one - total * weight(node))
            .collect();
        Self { led, surplus, one }
    }

    /// The shortest chain to a node that gains by it (of equals, to the one that leads least), or all nodes
    /// reached.
    fn find(&self, draft: &Draft<'_>, from: Place) -> Result<Chain, Vec<Place>> {
        let mut via: Vec<Option<(Place, usize)>> = vec![None; self.led.len()];
        let mut reached = vec![from];
        let mut seen = vec![false; self.led.len()];
        seen[from] = true;
        // Nodes at the distance looked at are `reached[level..]`.
        let mut level = 0;
        while level < reached.len() {
            let next_level = reached.len();
            for at in level..next_level {
                let place = reached[at];
                for index in &self.led[place] {
                    for next in heirs(draft, *index) {
                        if !seen[next] {
                            seen[next] = true;
                            via[next] = Some((place, *index));
                            reached.push(next);
                        }
                    }
                }
            }
            level = next_level;
            let gains = |place: &Place| self.surplus[from] - self.surplus[*place] > self.one;
            let found = reached[level..].iter().copied().filter(gains);
            if let Some(end) = found.min_by_key(|place| (self.surplus[*place], *place)) {
                return Ok(chain_to(&via, end));
            }
        }
        Err(reached)
    }

    /// Plans a chain, its end first: where it is cut short, nobody was made to lead more than before.
    fn shift(&mut self, draft: &mut Draft<'_>, chain: &[(usize, Place)]) {
        for (index, to) in chain.iter().rev() {
            if draft.transfers_left() == 0 {
                return;
            }
            let leader = draft.state.shards[*index]
                .leader
                .map(|node| draft.fleet.place(node));
            let Some(from) = leader else { continue };
            self.led[from].retain(|led| led != index);
            self.surplus[from] -= self.one;
            self.surplus[*to] += self.one;
            draft.transfer(*index, *to);
        }
    }
}

/// The way back from a chain's end to its start, turned round.
fn chain_to(via: &[Option<(Place, usize)>], end: Place) -> Chain {
    let mut chain = Vec::new();
    let mut place = end;
    while let Some((before, index)) = via[place] {
        chain.push((index, place));
        place = before;
    }
    chain.reverse();
    chain
}

/// The voters that could lead a shard instead of its leader.
fn heirs<'a>(draft: &'a Draft<'_>, index: usize) -> impl Iterator<Item = Place> + 'a {
    let shard = &draft.state.shards[index];
    shard
        .voters()
        .filter(|voter| Some(voter.node) != shard.leader && is_caught_up(draft.goals, voter.lag))
        .map(|voter| draft.fleet.place(voter.node))
        .filter(|place| draft.fleet.nodes[*place].is_heir())
}
