//! What is sent to a peer: the same as `mailbox-bench send` sends to a cluster.

use bytes::Bytes;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use uuid::Uuid;

use super::driver::Driver;

/// A 1:1 message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// Of the send: a repeat has the same.
    pub(super) id: Uuid,
    /// Owns a mailbox, from 0.
    pub(super) sender: u64,
    /// Never the sender: each send makes two copies.
    pub(super) recipient: u64,
    pub(super) body: Bytes,
}

impl Message {
    /// A new one between two of `users` mailboxes, at least 2, drawn uniformly; its body is random.
    pub(super) fn draw(users: u64, body_bytes: usize, rng: &mut SmallRng) -> Self {
        let users = users.max(2);
        let sender = rng.random_range(0..users);
        let recipient = (sender + rng.random_range(1..users)) % users;
        let mut body = vec![0; body_bytes];
        rng.fill(body.as_mut_slice());
        Self {
            id: Uuid::now_v7(),
            sender,
            recipient,
            body: Bytes::from(body),
        }
    }
}

/// Makes the sends of one runner.
pub(super) struct Source {
    pub(super) driver: Driver,
    pub(super) users: u64,
    pub(super) body_bytes: usize,
    pub(super) rng: SmallRng,
}

impl Source {
    /// Hands one send over; resolves to whether it was acked.
    pub(super) fn send(&mut self) -> impl Future<Output = bool> + use<> {
        let message = Message::draw(self.users, self.body_bytes, &mut self.rng);
        let driver = self.driver.clone();
        async move {
            match driver.send(&message).await {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "send");
                    false
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn a_message_goes_between_two_users_and_is_like_no_other() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (mut ids, mut pairs) = (HashSet::new(), HashSet::new());
        for _ in 0..1000 {
            let message = Message::draw(3, 100, &mut rng);
            assert_ne!(message.sender, message.recipient);
            assert!(message.sender < 3 && message.recipient < 3);
            assert_eq!(message.body.len(), 100);
            assert!(ids.insert(message.id));
            pairs.insert((message.sender, message.recipient));
        }
        assert_eq!(pairs.len(), 6, "every pair is drawn");
    }
}
