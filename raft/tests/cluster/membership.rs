//! Memberships that change: who may ask for what, and what a change does.

use std::collections::BTreeSet;

use mailbox_raft::{ChangeError, Leadership, Membership, MembershipChange};

use crate::nodes::{Cluster, eventually};

fn set(nodes: &[u64]) -> BTreeSet<u64> {
    nodes.iter().copied().collect()
}

fn membership(cluster: &Cluster) -> Membership {
    cluster.nodes[cluster.leader()].shard().membership()
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let fourth = cluster.join();
    let before = membership(&cluster);
    assert_eq!(before.voters, set(&[1, 2, 3]));
    assert!(before.learners.is_empty() && !before.changing);
    let leader = cluster.leader();
    let leader = &cluster.nodes[leader];
    let shard = leader.shard();
    let refused = leader.run(shard.add_learner(9));
    assert_eq!(refused, Err(ChangeError::UnknownNode { node: 9 }));
    let refused = leader.run(shard.change_voters(set(&[4]), set(&[1])));
    assert_eq!(refused, Err(ChangeError::NotLearner { node: 4 }));
    let refused = leader.run(shard.change_voters(set(&[]), set(&[1, 2, 3])));
    assert_eq!(refused, Err(ChangeError::NoVoters));
    let refused = leader.run(shard.remove_learner(2));
    assert_eq!(refused, Err(ChangeError::IsVoter { node: 2 }));
    let refused = leader.run(shard.transfer_leader(4));
    assert_eq!(refused, Err(ChangeError::NotVoter { node: 4 }));
    assert_eq!(shard.membership(), before);
    // Who does not lead says who does.
    let follower = cluster.nodes.iter().find(|node| {
        let follows = node.hosts() && !node.shard().leadership().is_ready();
        follows && node.options.node != leader.options.node
    });
    let follower = follower.unwrap();
    eventually("the follower knows the leader", || {
        match follower.shard().leadership() {
            Leadership::Follower { leader, .. } => leader,
            Leadership::Leader { .. } => None,
        }
    });
    let refused = follower.run(follower.shard().add_learner(4));
    let Err(ChangeError::NotLeader { leader: Some(hint) }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(hint.node, leader.options.node);
    assert!(!cluster.nodes[fourth].hosts());
}

#[test]
fn repeats_write_nothing() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let fourth = cluster.join();
    cluster.host(fourth);
    let mut last = membership(&cluster).index;
    let mut twice = |call: &dyn Fn(&Cluster), voters: &[u64], learners: &[u64]| {
        call(&cluster);
        let once = membership(&cluster);
        assert!(once.index > last && !once.changing);
        assert_eq!(once.voters, set(voters));
        assert_eq!(once.learners, set(learners));
        call(&cluster);
        assert_eq!(membership(&cluster), once);
        last = once.index;
    };
    let learn = |cluster: &Cluster| cluster.add_learner(fourth);
    let forget = |cluster: &Cluster| cluster.change(async |shard| shard.remove_learner(4).await);
    // The leader stays, so that indexes can be compared.
    let other = (0..3).find(|node| *node != cluster.leader()).unwrap();
    let replace = |cluster: &Cluster| cluster.replace(other, fourth);
    twice(&learn, &[1, 2, 3], &[4]);
    twice(&forget, &[1, 2, 3], &[]);
    twice(&learn, &[1, 2, 3], &[4]);
    let rest: Vec<u64> = (1..=4).filter(|node| *node != other as u64 + 1).collect();
    twice(&replace, &rest, &[]);
}

#[test]
fn of_two_changes_at_once_one_is_refused() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    cluster.join();
    cluster.join();
    let leader = &cluster.nodes[cluster.leader()];
    let shard = leader.shard();
    // The first may be over before the second one begins.
    let refused = (0..20).any(|_| {
        let (first, second) = leader.run(async {
            let (one, other) = (shard.clone(), shard.clone());
            tokio::join!(one.add_learner(4), other.add_learner(5))
        });
        assert_eq!(first, Ok(()));
        if second == Ok(()) {
            for learner in [4, 5] {
                assert_eq!(leader.run(shard.remove_learner(learner)), Ok(()));
            }
            return false;
        }
        assert_eq!(second, Err(ChangeError::Changing));
        true
    });
    assert!(refused, "each was over at once");
    assert_eq!(shard.membership().learners, set(&[4]));
    cluster.add_learner(4);
    assert_eq!(membership(&cluster).learners, set(&[4, 5]));
}

#[test]
fn a_change_whose_caller_goes_away_is_finished() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let fourth = cluster.join();
    cluster.host(fourth);
    cluster.add_learner(fourth);
    cluster.wait_caught_up(fourth);
    let other = (0..3).find(|node| *node != cluster.leader()).unwrap() as u64 + 1;
    let leader = &cluster.nodes[cluster.leader()];
    let shard = leader.shard();
    leader.run(async {
        let change = shard.change_voters(set(&[4]), set(&[other]));
        // Begun, and given up at once.
        assert!(futures_util::poll!(std::pin::pin!(change)).is_pending());
    });
    let expected: BTreeSet<u64> = (1..=4).filter(|node| *node != other).collect();
    eventually("the change is finished", || {
        let now = membership(&cluster);
        (!now.changing && now.voters == expected).then_some(())
    });
}

#[test]
fn a_leader_that_removes_itself_hands_over_and_leaves_by_itself() {
    let mut cluster = Cluster::start(3, |_| ());
    let (alice, bob) = (cluster.register("alice"), cluster.register("bob"));
    let fourth = cluster.join();
    cluster.host(fourth);
    cluster.add_learner(fourth);
    cluster.wait_caught_up(fourth);
    let old = cluster.leader();
    let leader = &cluster.nodes[old];
    let own = set(&[old as u64 + 1]);
    leader
        .run(leader.shard().change_voters(set(&[4]), own))
        .unwrap();
    let expected: BTreeSet<u64> = (1..=4).filter(|node| *node != old as u64 + 1).collect();
    assert_eq!(leader.shard().membership().voters, expected);
    eventually("another one leads", || {
        let others = cluster.nodes.iter().enumerate();
        let mut others = others.filter(|(node, _)| *node != old);
        others.find_map(|(_, node)| node.shard().leadership().is_ready().then_some(()))
    });
    eventually("the removed one leads no more", || {
        (leader.shard().status().role == "learner").then_some(())
    });
    cluster.propose(&[crate::nodes::send(alice, bob, "after")]);
    // It was there when the change was committed: it knows that it is out.
    leader
        .run(leader.node().unhost(mailbox_engine::ShardId(1), false))
        .unwrap();
    assert!(!cluster.nodes[old].hosts());
    cluster.propose(&[crate::nodes::send(alice, bob, "more")]);
    cluster.wait_all_applied(membership(&cluster).index);
    cluster.check_equal_hashes();
}

#[test]
fn a_change_that_comes_late_finds_another_membership_and_does_nothing() {
    let mut cluster = Cluster::start(3, |_| ());
    cluster.register("alice");
    let fourth = cluster.join();
    let leader = cluster.leader();
    let node = &cluster.nodes[leader];
    let shard = node.shard();
    let first = shard.membership().index;
    let add = MembershipChange::AddLearner(4);
    let added = node.run(shard.change_membership_from(first, add.clone()));
    assert_eq!(added, Ok(()));
    let after = shard.membership();
    assert_eq!(after.learners, set(&[4]));
    // What is so already needs no change, so it does not matter what it was decided on.
    assert_eq!(node.run(shard.change_membership_from(first, add)), Ok(()));
    let late = MembershipChange::RemoveLearner(4);
    let refused = node.run(shard.change_membership_from(first, late.clone()));
    let moved = ChangeError::Moved {
        expected: first,
        found: after.index,
    };
    assert_eq!(refused, Err(moved));
    assert_eq!(shard.membership(), after);
    let removed = node.run(shard.change_membership_from(after.index, late));
    assert_eq!(removed, Ok(()));
    assert!(shard.membership().learners.is_empty());
    assert!(!cluster.nodes[fourth].hosts());
}
