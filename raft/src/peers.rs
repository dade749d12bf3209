//! The nodes that this one knows, and its connections to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::Error;
use crate::options::{ClientTls, NodeOptions};
use crate::peer_link::{Credentials, Link};

/// All nodes that are known now. Everything that depends on them asks here each time: they change while the node
/// runs.
pub(crate) struct Peers {
    own: u64,
    tls: Option<ClientTls>,
    credentials: Credentials,
    runtime: Handle,
    known: RwLock<Known>,
    /// Moves whenever nodes come, go or are elsewhere.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    /// Id → address; this node among them or not.
    nodes: BTreeMap<u64, String>,
    links: BTreeMap<u64, Arc<Link>>,
    /// What is known is the cluster: a node that joins knows nobody at first, which does not make it one of one.
    whole: bool,
}

impl Peers {
    /// Must be called in a tokio runtime. Connects when first used.
    pub(crate) fn new(
        options: &NodeOptions,
        credentials: &Credentials,
    ) -> Result<Arc<Peers>, Error> {
        let peers = Peers {
            own: options.node,
            tls: options.peer_tls.clone(),
            credentials: credentials.clone(),
            runtime: Handle::current(),
            known: RwLock::default(),
            changes: watch::Sender::new(0),
        };
        {
            let mut known = peers.known.write();
            for (node, address) in &options.members {
                if *node != peers.own {
                    known.links.insert(*node, peers.connect(*node, address)?);
                }
            }
            known.nodes = options.members.clone();
            known.whole = !options.joins;
        }
        Ok(Arc::new(peers))
    }

    fn connect(&self, node: u64, address: &str) -> Result<Arc<Link>, Error> {
        let _runtime = self.runtime.enter();
        Link::new(node, address, self.tls.as_ref(), &self.credentials)
    }

    /// Takes over what is known now. Connections to nodes that have not moved go on.
    pub(crate) fn set(&self, nodes: BTreeMap<u64, String>) {
        let mut known = self.known.write();
        if known.whole && known.nodes == nodes {
            return;
        }
        let mut links = BTreeMap::new();
        for (node, address) in nodes.iter().filter(|(node, _)| **node != self.own) {
            let stays = known.links.get(node);
            let stays = stays.filter(|link| link.address == *address).cloned();
            match stays.map_or_else(|| self.connect(*node, address), Ok) {
                Ok(link) => {
                    links.insert(*node, link);
                }
                // The others are no worse for it.
                Err(error) => tracing::error!(peer = node, %error, "the node cannot be reached"),
            }
        }
        known.nodes = nodes;
        known.links = links;
        known.whole = true;
        drop(known);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Rings whenever nodes come, go or are elsewhere.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// This node's own id.
    pub(crate) fn node(&self) -> u64 {
        self.own
    }

    /// Requests sent to the peers known now, since their connections were made; answers are not counted.
    pub(crate) fn messages(&self) -> u64 {
        self.known
            .read()
            .links
            .values()
            .map(|link| link.sent())
            .sum()
    }

    pub(crate) fn link(&self, node: u64) -> Option<Arc<Link>> {
        self.known.read().links.get(&node).cloned()
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.known.read().links.values().cloned().collect()
    }

    pub(crate) fn nodes(&self) -> BTreeMap<u64, String> {
        self.known.read().nodes.clone()
    }

    pub(crate) fn address(&self, node: u64) -> Option<String> {
        self.known.read().nodes.get(&node).cloned()
    }

    /// Whether a node may speak to this one.
    pub(crate) fn is_peer(&self, node: u64) -> bool {
        node != self.own && self.known.read().nodes.contains_key(&node)
    }

    /// There is no other node.
    pub(crate) fn is_alone(&self) -> bool {
        let known = self.known.read();
        known.whole && known.nodes.keys().eq([&self.own])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(members: &[(u64, &str)], joins: bool) -> Arc<Peers> {
        let mut options = NodeOptions::new(1, "test", "/d", nodes(members), b"secret".to_vec());
        options.joins = joins;
        let credentials = Credentials::new(&options).unwrap();
        Peers::new(&options, &credentials).unwrap()
    }

    fn nodes(nodes: &[(u64, &str)]) -> BTreeMap<u64, String> {
        let nodes = nodes.iter();
        nodes.map(|(node, at)| (*node, (*at).to_owned())).collect()
    }

    #[tokio::test]
    async fn connections_follow_the_nodes_and_stay_where_nothing_moved() {
        let peers = peers(&[(1, "a:1"), (2, "b:1"), (3, "c:1")], false);
        let (second, third) = (peers.link(2).unwrap(), peers.link(3).unwrap());
        assert!(peers.link(1).is_none() && !peers.is_alone());
        let changes = peers.watch();
        peers.set(nodes(&[(1, "a:1"), (2, "b:1"), (3, "c:1")]));
        assert!(!changes.has_changed().unwrap());
        peers.set(nodes(&[(1, "a:1"), (2, "b:1"), (3, "c:2"), (4, "d:1")]));
        assert!(changes.has_changed().unwrap());
        assert!(Arc::ptr_eq(&second, &peers.link(2).unwrap()));
        assert!(!Arc::ptr_eq(&third, &peers.link(3).unwrap()));
        assert_eq!(peers.address(3).as_deref(), Some("c:2"));
        assert!(peers.is_peer(4) && !peers.is_peer(1) && !peers.is_peer(5));
        peers.set(nodes(&[(1, "a:1"), (4, "d:1")]));
        assert!(!peers.is_peer(2) && peers.link(2).is_none());
        assert_eq!(peers.links().len(), 1);
        peers.set(nodes(&[(1, "a:1")]));
        assert!(peers.is_alone());
    }

    #[tokio::test]
    async fn one_bad_address_keeps_nobody_else_away() {
        let peers = peers(&[(1, "a:1")], false);
        assert!(peers.is_alone());
        peers.set(nodes(&[(1, "a:1"), (2, "no address"), (3, "c:1")]));
        assert!(peers.link(2).is_none() && peers.link(3).is_some());
        assert!(peers.is_peer(2));
    }

    #[tokio::test]
    async fn a_node_that_joins_is_not_alone_before_it_is_told_so() {
        let peers = peers(&[(1, "a:1")], true);
        assert!(!peers.is_alone());
        peers.set(nodes(&[(1, "a:1")]));
        assert!(peers.is_alone());
    }
}
