//! One client of whichever peer is under load.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::etcd;
use super::message::Message;
use super::nats;
use super::postgres;
use super::redis;

/// Cheap to clone: clones share their connections.
#[derive(Clone)]
pub(super) enum Driver {
    Nats(nats::Client),
    Etcd(etcd::Client),
    Redis(redis::Client),
    Postgres(postgres::Client),
}

impl Driver {
    /// Sends a message and waits until both copies are durable. A repeat is acked like the first one and changes nothing.
    pub(super) async fn send(&self, message: &Message) -> anyhow::Result<()> {
        match self {
            Self::Nats(client) => client.send(message).await,
            Self::Etcd(client) => client.send(message).await,
            Self::Redis(client) => client.send(message).await,
            Self::Postgres(client) => client.send(message).await,
        }
    }

    /// Messages in the two mailboxes together, while nobody else sends.
    pub(super) async fn copies(&self, owners: [u64; 2]) -> anyhow::Result<u64> {
        match self {
            // It has a count for the whole stream at hand, in which there is nothing else yet.
            Self::Nats(client) => client.copies().await,
            Self::Etcd(client) => client.copies(owners).await,
            Self::Redis(client) => client.copies(owners).await,
            Self::Postgres(client) => client.copies(owners).await,
        }
    }
}

/// Connections that take one send at a time, as many as there may be sends on the way.
pub(super) struct Pool<T>(Mutex<VecDeque<T>>);

impl<T> Pool<T> {
    pub(super) fn new(connections: Vec<T>) -> Self {
        Self(Mutex::new(connections.into()))
    }

    /// The connection that has been idle longest. It is gone if it is not given back: a broken one is not.
    ///
    /// # Errors
    /// All are in use, or broken.
    pub(super) fn take(&self) -> anyhow::Result<T> {
        let free = self.0.lock().pop_front();
        free.ok_or_else(|| anyhow::anyhow!("no connection is left: those in use broke"))
    }

    pub(super) fn give_back(&self, connection: T) {
        self.0.lock().push_back(connection);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns_and_a_broken_one_is_not_given_out_again() {
        let pool = Pool::new(vec![1, 2]);
        assert_eq!(pool.take().unwrap(), 1);
        pool.give_back(1);
        assert_eq!(pool.take().unwrap(), 2);
        assert_eq!(pool.take().unwrap(), 1);
        assert!(pool.take().is_err());
    }
}
