//! The protocol of lanes, small enough to be checked exhaustively: which rule of it guards what, and
//! that no interleaving of leaders, networks, crashes and slot moves gets around them.
//!
//! This is a model of the *protocol*, not of its implementation: a [`Cluster`] holds what replicas have
//! committed and applied, the leaders' uncommitted proposals, and what is on the wire. [`Scene`] says how
//! many shards and slots there are, what is sent, which slots move, how direct deliveries are numbered,
//! and which [`Flaw`] (none, in the protocol) is planted. [`Scene::actions`] lists everything that may happen next,
//! [`Scene::step`] does it, and [`Rule`] holds what must be true of every state. `tests/` runs a model
//! checker over all of it.
//!
//! # What stands for what
//!
//! | in a cluster | here |
//! |---|---|
//! | a shard's replicas, its log, flushes, a crash between flush and apply, a restart | the committed state of a [`Shard`]: the log brings back what no flush holds, so nothing committed is lost |
//! | a leader that falls with proposals under way | [`Action::Fall`]: any suffix of [`Shard::proposals`] is gone |
//! | the memory of a relay, and its loss | absent: a relay may ship any unacked applied row at any time, whatever it remembers |
//! | a message lost, late, doubled, overtaken | the [`Wire`] forgets nothing and owes nothing: what was once sent may arrive at any later time, any number of times, at any shard, or never |
//! | the relay of a leader deposed long ago | what it can ship, it could have shipped before it fell, and the wire forgets nothing |
//! | a frame of many items | its items one by one: an entry that applies several at once skips interleavings, and adds none |
//! | a mark read by a replica that lags, or from a deposed leader | an older mark, which the wire still holds |
//! | a stale shard map | an arrival at a shard that does not hold the slot |
//! | a coordinator that restarts, or two of them | every step of a move may be repeated at any later time, as soon as what it waits for has happened once |
//!
//! What the checks say of direct delivery: inside one shard a send may skip the lane, with or without taking a
//! lane seq, as soon as everything that was given a lane seq is delivered; waiting for the acks as well is not
//! needed for order, and does no harm. Without a lane seq nothing counts such deliveries, though.
//!
//! FIFO is checked per (source slot, destination slot), which is more than per (sender, recipient), since both
//! slots are functions of the users alone. Not modelled: incarnations (restore from a backup), items that
//! fail their checksum, admission limits.

mod action;
mod apply;
mod cluster;
mod drain;
mod flaw;
mod moves;
mod rule;
mod scene;

pub use action::Action;
pub use cluster::{
    Attempt, Cluster, Holding, Item, Lane, LaneId, Ledger, Proposal, Shard, SlotState, Wire,
};
pub use cluster::{ShardId, SlotId};
pub use flaw::Flaw;
pub use rule::Rule;
pub use scene::{Direct, Scene, Send, SlotMove};
