//! Which node to ask: the shard map, the leaders seen last, and the nodes there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, ShardMapResponse};
use parking_lot::RwLock;

use crate::channel::{Credentials, bare_address};
use crate::map::ShardMap;
use crate::node::Node;
use crate::options::ClientOptions;
use crate::pending::Failure;
use crate::retry::{Advice, advice};

/// Routing state, shared by all calls of a client.
pub(crate) struct Router {
    options: Arc<ClientOptions>,
    credentials: Credentials,
    state: RwLock<State>,
    /// Whose turn it is among the replicas of a shard.
    turns: AtomicUsize,
}

struct State {
    /// Nodes of the options. Whoever is not in the map any more may still know the cluster, or be somebody else by
    /// now at the same address.
    first: Vec<Arc<Node>>,
    map: ShardMap,
    /// In the order in which they are tried; never empty.
    nodes: Vec<Arc<Node>>,
    /// Who was last known or guessed to lead a shard.
    leaders: BTreeMap<u32, Arc<Node>>,
    /// Who has a replica of a shard.
    replicas: BTreeMap<u32, Vec<Arc<Node>>>,
}

impl Router {
    /// Starts from the addresses of the options.
    pub(crate) fn new(options: &Arc<ClientOptions>) -> Result<Self, CallError> {
        let credentials = Credentials::new(&options.auth)?;
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for address in &options.addresses {
            if !nodes
                .iter()
                .any(|node| node.address() == bare_address(address))
            {
                nodes.push(Arc::new(Node::new(address, &credentials, options)?));
            }
        }
        if nodes.is_empty() {
            return Err(CallError::new(
                ErrorCode::InvalidArgument,
                "no node's address is given",
            ));
        }
        let state = State {
            first: nodes.clone(),
            map: ShardMap::default(),
            nodes,
            leaders: BTreeMap::new(),
            replicas: BTreeMap::new(),
        };
        Ok(Self {
            options: Arc::clone(options),
            credentials,
            state: RwLock::new(state),
            turns: AtomicUsize::new(0),
        })
    }

    /// Reads the map, without blocking anyone for longer than a look-up.
    pub(crate) fn with_map<T>(&self, read: impl FnOnce(&ShardMap) -> T) -> T {
        read(&self.state.read().map)
    }

    /// Who can be asked for the map: the nodes of the map held, then those of the options.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        let state = self.state.read();
        let mut nodes = state.nodes.clone();
        for node in &state.first {
            if find(&nodes, node.address()).is_none() {
                nodes.push(Arc::clone(node));
            }
        }
        nodes
    }

    /// The node at an address; one that the map does not name is connected for this call only.
    pub(crate) fn node_at(&self, address: &str) -> Result<Arc<Node>, CallError> {
        if let Some(node) = find(&self.state.read().nodes, address) {
            return Ok(node);
        }
        Node::new(address, &self.credentials, &self.options).map(Arc::new)
    }

    /// Takes over a map that is not older than the one held; connections to nodes that stay are kept.
    pub(crate) fn replace_map(&self, response: &ShardMapResponse) {
        let mut state = self.state.write();
        if response.epoch < state.map.epoch() {
            return;
        }
        let mut nodes = Vec::with_capacity(response.nodes.len());
        for named in &response.nodes {
            let made = match find(&state.nodes, &named.address) {
                Some(node) => Ok(node),
                None => Node::new(&named.address, &self.credentials, &self.options).map(Arc::new),
            };
            match made {
                Ok(node) => nodes.push(node),
                Err(error) => tracing::warn!(node = named.node, %error, "skip a node of the map"),
            }
        }
        if !nodes.is_empty() {
            state.nodes = nodes;
        }
        state.map = ShardMap::new(response);
        let State {
            nodes,
            leaders,
            replicas,
            ..
        } = &mut *state;
        *replicas = replicas_of(response, nodes);
        leaders.retain(|_, leader| nodes.iter().any(|node| Arc::ptr_eq(node, leader)));
        // A leader seen in an answer is newer than the map of a node that may lag.
        for placement in &response.shards {
            let named = response
                .nodes
                .iter()
                .find(|named| named.node == placement.leader);
            if let Some(leader) = named.and_then(|named| find(nodes, &named.address)) {
                leaders.entry(placement.shard).or_insert(leader);
            }
        }
    }

    /// Who probably leads the shard.
    pub(crate) fn leader(&self, shard: u32) -> Arc<Node> {
        let state = self.state.read();
        match state.leaders.get(&shard) {
            Some(leader) => Arc::clone(leader),
            None => Arc::clone(&state.nodes[0]),
        }
    }

    /// A node with a replica of the shard that seems to be well: each in turn. `None` if none is known.
    pub(crate) fn replica(&self, shard: u32) -> Option<Arc<Node>> {
        let state = self.state.read();
        let replicas = state.replicas.get(&shard)?;
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let mut in_turn =
            (0..replicas.len()).map(|step| &replicas[turn.wrapping_add(step) % replicas.len()]);
        in_turn.find(|node| !node.is_suspect()).cloned()
    }

    /// Learns from an attempt that failed on `node`; tells whether and where to try again, and whether it was `node`
    /// that would have been tried again until now.
    pub(crate) fn learn(&self, shard: u32, node: &Arc<Node>, failure: &Failure) -> (Advice, bool) {
        node.suspect(failure);
        let advice = advice(failure.error.code());
        let moved = advice == Advice::OtherNode
            && self.move_from(shard, node, &failure.error.0.leader_address);
        (advice, moved)
    }

    /// Follows the hint if there is one that can be trusted, else goes round. Of many calls that
    /// failed on one node only the first moves on, and gets true.
    fn move_from(&self, shard: u32, node: &Arc<Node>, hint: &str) -> bool {
        let mut state = self.state.write();
        let current = state.leaders.get(&shard).unwrap_or(&state.nodes[0]);
        if !Arc::ptr_eq(current, node) {
            return false;
        }
        let hinted = find(&state.nodes, hint).or_else(|| {
            // A node that came after the map held.
            let new = self.newcomer(hint)?;
            state.nodes.push(Arc::clone(&new));
            Some(new)
        });
        let hinted = hinted.filter(|hinted| !Arc::ptr_eq(hinted, node) && !hinted.is_suspect());
        let next = hinted.unwrap_or_else(|| next_after(&state.nodes, node));
        state.leaders.insert(shard, next);
        true
    }

    fn newcomer(&self, hint: &str) -> Option<Arc<Node>> {
        if hint.is_empty() {
            return None;
        }
        let made = Node::new(hint, &self.credentials, &self.options);
        made.map(Arc::new).ok()
    }
}

fn replicas_of(response: &ShardMapResponse, nodes: &[Arc<Node>]) -> BTreeMap<u32, Vec<Arc<Node>>> {
    let connected = |id: &u64| {
        let named = response.nodes.iter().find(|named| named.node == *id)?;
        find(nodes, &named.address)
    };
    let shards = response.shards.iter();
    let shards = shards.map(|placement| {
        let replicas = placement.replicas.iter().filter_map(connected);
        (placement.shard, replicas.collect())
    });
    shards.collect()
}

fn find(nodes: &[Arc<Node>], address: &str) -> Option<Arc<Node>> {
    let address = bare_address(address);
    nodes.iter().find(|node| node.address() == address).cloned()
}

/// The next node in turn that is not suspect; if all are, simply the next.
fn next_after(nodes: &[Arc<Node>], node: &Arc<Node>) -> Arc<Node> {
    let at = nodes
        .iter()
        .position(|other| Arc::ptr_eq(other, node))
        .unwrap_or(0);
    let mut others = (1..=nodes.len()).map(|step| &nodes[(at + step) % nodes.len()]);
    let next = others.clone().find(|other| !other.is_suspect());
    Arc::clone(next.or_else(|| others.next()).unwrap_or(node))
}

#[cfg(test)]
mod tests {
    use mailbox_api::v1::{Error, NodeAddress, ShardPlacement, SlotSpan};

    use super::*;
    use crate::options::Auth;
    use crate::pending::Break;

    fn router() -> Router {
        let addresses = vec![
            "http://h:1".into(),
            "h:2".into(),
            "h:3".into(),
            "h:1".into(),
        ];
        let options = ClientOptions::new(addresses, Auth::Token("t".into()));
        Router::new(&Arc::new(options)).unwrap()
    }

    fn not_leader(address: &str) -> Failure {
        let leader_address = address.to_owned();
        let code = ErrorCode::NotLeader as i32;
        Failure::from(CallError(Error {
            code,
            leader_address,
            ..Error::default()
        }))
    }

    fn broke() -> Failure {
        Failure {
            error: CallError::new(ErrorCode::Unavailable, "refused"),
            broken: Some(Break::Gone),
        }
    }

    #[tokio::test]
    async fn a_hint_is_followed() {
        let router = router();
        let node = router.leader(0);
        assert_eq!(
            router.learn(0, &node, &not_leader("h:3")),
            (Advice::OtherNode, true)
        );
        assert_eq!(router.leader(0).address(), "h:3");
        // A node that the map held does not have yet.
        let node = router.leader(0);
        router.learn(0, &node, &not_leader("h:9"));
        assert_eq!(router.leader(0).address(), "h:9");
        assert_eq!(
            router.leader(1).address(),
            "h:1",
            "another shard is not touched"
        );
    }

    #[tokio::test]
    async fn many_failures_on_one_node_move_on_once() {
        let router = router();
        let node = router.leader(0);
        let learnt = (0..5).map(|_| router.learn(0, &node, &not_leader("")).1);
        assert_eq!(
            learnt.collect::<Vec<_>>(),
            [true, false, false, false, false]
        );
        assert_eq!(router.leader(0).address(), "h:2");
    }

    #[tokio::test]
    async fn replicas_are_asked_in_turn_but_for_those_that_just_broke() {
        let router = router();
        assert!(router.replica(1).is_none(), "none is known yet");
        let nodes = (1..=3).map(|node| NodeAddress {
            node,
            address: format!("h:{node}"),
        });
        router.replace_map(&ShardMapResponse {
            epoch: 1,
            slot_count: 1,
            shards: vec![ShardPlacement {
                shard: 1,
                slots: vec![SlotSpan { first: 0, last: 0 }],
                // The last one is a node that the map does not place.
                replicas: vec![1, 3, 9],
                ..ShardPlacement::default()
            }],
            nodes: nodes.collect(),
            ..ShardMapResponse::default()
        });
        let next = || router.replica(1).map(|node| node.address().to_owned());
        let mut asked: Vec<_> = (0..4).filter_map(|_| next()).collect();
        asked.sort_unstable();
        assert_eq!(asked, ["h:1", "h:1", "h:3", "h:3"]);
        let broken = router.node_at("h:1").unwrap();
        broken.suspect(&broke());
        assert!((0..4).all(|_| next().as_deref() == Some("h:3")));
        assert!(router.replica(2).is_none());
    }

    #[tokio::test]
    async fn a_hint_to_a_node_that_just_broke_is_not_followed() {
        let router = router();
        let dead = router.leader(0);
        router.learn(0, &dead, &broke());
        let follower = router.leader(0);
        assert_eq!(follower.address(), "h:2");
        router.learn(0, &follower, &not_leader("h:1"));
        assert_eq!(router.leader(0).address(), "h:3");
    }

    #[tokio::test]
    async fn a_refusal_moves_nothing() {
        let router = router();
        let node = router.leader(0);
        let refusal = CallError::new(ErrorCode::IdReused, "").into();
        assert_eq!(router.learn(0, &node, &refusal), (Advice::GiveUp, false));
        assert_eq!(router.leader(0).address(), "h:1");
    }

    #[tokio::test]
    async fn a_map_brings_nodes_and_leaders_but_keeps_what_was_seen() {
        let router = router();
        let kept = router.leader(0);
        router.learn(0, &kept, &not_leader("h:2"));
        let nodes = [(1, "h:1"), (2, "h:2"), (4, "h:4")];
        let named = nodes.map(|(node, address)| NodeAddress {
            node,
            address: address.into(),
        });
        let placement = |shard, leader| ShardPlacement {
            shard,
            leader,
            slots: vec![SlotSpan {
                first: shard,
                last: shard,
            }],
            ..ShardPlacement::default()
        };
        router.replace_map(&ShardMapResponse {
            slot_count: 2,
            nodes: named.to_vec(),
            shards: vec![placement(0, 1), placement(1, 4)],
            ..ShardMapResponse::default()
        });
        assert_eq!(router.leader(0).address(), "h:2");
        assert_eq!(router.leader(1).address(), "h:4");
        assert!(router.nodes().iter().any(|node| Arc::ptr_eq(node, &kept)));
    }

    #[tokio::test]
    async fn nodes_of_the_map_are_asked_first_and_those_of_the_options_stay() {
        let router = router();
        let named = [(4, "h:4"), (3, "h:3"), (5, "h:5")];
        let named = named.map(|(node, address)| NodeAddress {
            node,
            address: address.into(),
        });
        router.replace_map(&ShardMapResponse {
            epoch: 1,
            nodes: named.to_vec(),
            ..ShardMapResponse::default()
        });
        let asked = router.nodes();
        let asked: Vec<&str> = asked.iter().map(|node| node.address()).collect();
        assert_eq!(asked, ["h:4", "h:3", "h:5", "h:1", "h:2"]);
        assert_eq!(router.leader(7).address(), "h:4");
    }

    #[tokio::test]
    async fn an_older_map_is_not_taken_over() {
        let router = router();
        let map = |epoch, shard| ShardMapResponse {
            epoch,
            slot_count: 1,
            shards: vec![ShardPlacement {
                shard,
                slots: vec![SlotSpan { first: 0, last: 0 }],
                ..ShardPlacement::default()
            }],
            ..ShardMapResponse::default()
        };
        for (epoch, shard, now) in [(2, 5, 5), (1, 4, 5), (3, 6, 6)] {
            router.replace_map(&map(epoch, shard));
            assert_eq!(router.with_map(|map| map.shard_of_owner(9)), now);
        }
    }
}
