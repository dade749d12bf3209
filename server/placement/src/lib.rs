//! Where replicas and leaders should be: a pure function from what the cluster looks like and what is wanted
//! of it to the next steps.
//!
//! [`plan`] reads a [`State`] (nodes and shards, as the meta shard knows them) and [`Goals`], and returns
//! [`Step`]s. It keeps no memory, knows no clock (the state carries the time) and draws no lots: equal input
//! gives equal steps on whichever node runs it. Whoever executes the steps may lose, delay or repeat any of
//! them, and then simply plans again: a step names the shard epoch that it was planned under, and
//! [`Step::check`] refuses it once that has passed.
//!
//! # A move
//!
//! A replica moves by three steps, each planned only when the state shows that the one before it is done:
//!
//! ```text
//! AddLearner(node, replaces)      the learner catches up
//! TransferLeader(from, to)        only if the voter to be replaced leads
//! PromoteReplace(learner, voter)  one joint change: the learner votes, the voter is gone
//! ```
//!
//! What the learner is for is kept in the shard map ([`Role::Learner`]), so a move survives whoever began it.
//! A learner that nothing needs any more is removed.
//!
//! # What comes first
//!
//! 1. Shards that miss live voters: a voter is missing, its node is removed, or is down for longer than
//!    [`Goals::dead_after_ms`]. Those with the fewest live voters first.
//! 2. Draining nodes: their leaders, then their replicas.
//! 3. Spread: each shard over as many zones (or regions) as there are nodes for.
//! 4. Even replicas, then even leaders, by capacity; where shards are few, leaders only once no replica moves.
//!
//! # What is never done
//!
//! - A step that leaves a shard's live voters without a majority, or with a smaller margin over it; but where
//!   there are too many voters, one of an odd number that are all live goes at the cost of one.
//! - A second change of a shard that has one under way, or any change of a shard without a live majority: a
//!   person has to look at that one.
//! - A move for a node that is down but not yet dead. Only leaders move while it is away.
//! - A move that ends no better than it began: evenness counts as reached within one replica, so that steps
//!   cannot chase each other.
//!
//! # Evenness
//!
//! A node's fair share is `total * weight / sum of weights`, its *surplus* what it has beyond that. Moving one
//! from `a` to `b` is worth it exactly if `surplus(a) - surplus(b) > 1`: then the sum of the squared surpluses
//! falls, so such moves end, and none is ever undone by another. A move given up is one more such move, and
//! the other way round.
//!
//! That holds only of moves decided on what comes of all others that are under way, and not all of that is
//! known: a change that has been proposed may be a learner's promotion or its removal, and a step of this very
//! plan may be lost. So the surplus of who gives is taken at its least and that of who receives at its
//! greatest, of all ways in which the open changes can end. Then each move that is carried out lowers the sum,
//! whichever others are.
//!
//! Leaders can only go where a voter is, so a leader may have to move to `b` for one of `b`'s to move on to
//! `c`: [`plan`] looks for such chains, and where replicas allow it every surplus ends below 1, those of
//! nodes that have just started left aside.
//!
//! # Splits
//!
//! Which shard is too great and where it is to be cut is judged beside the plan ([`SplitWatch`], [`cut`]): what is split is
//! left alone by the plan, and afterwards there are two shards to be placed like any other.
//!
//! Vocabulary: a *move* is a learner under way; *live* means on a node that is up. Limits count the moves that
//! can go on: one whose learner is not live, or whose shard can commit nothing, takes nobody's turn, and a
//! membership change without one copies nothing.

mod balance;
mod fleet;
mod goals;
mod leaders;
mod plan;
mod progress;
mod purpose;
mod repair;
mod split;
mod state;
mod step;

pub use goals::{Goals, Limits, Spread};
pub use plan::plan;
pub use split::{
    Hindrance, Load, LoadedShard, Loads, Measure, OverLimit, SPLIT_LOOKS, SlotLoad, SplitGoals,
    SplitVerdict, SplitWatch, cut,
};
pub use state::{Node, NodeId, Replica, Role, Shard, ShardId, Standing, State};
pub use step::{Stale, Step};
