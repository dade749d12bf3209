//! The attempts of one call: after each that failed, whether there is another, and when.

use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_api::v1::ErrorCode;
use tokio::time::Instant;

use crate::client::Inner;
use crate::gate::{Passage, Turn};
use crate::node::Node;
use crate::pending::Failure;
use crate::retry::{Advice, Backoff};

/// What a call remembers between its attempts.
pub(crate) struct Attempts<'a> {
    client: &'a Inner,
    deadline: Instant,
    backoff: Backoff,
    turn: Option<Turn>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(client: &'a Inner, deadline: Instant) -> Self {
        Self {
            client,
            deadline,
            backoff: Backoff::new(&client.options.timeouts, deadline),
            turn: None,
        }
    }

    /// Before the first attempt: where nobody serves the shard just now, a call waits with the others.
    pub(crate) async fn enter(&mut self, shard: u32) -> Result<(), CallError> {
        if !self.client.gates.is_shut(shard) {
            return Ok(());
        }
        match self.client.gates.pass(shard, self.deadline).await {
            Passage::Open => Ok(()),
            Passage::InTurn(turn) => {
                self.turn = Some(turn);
                Ok(())
            }
            Passage::TooLate => {
                let message = format!("nobody served shard {shard} before the deadline");
                Err(CallError::new(ErrorCode::Unavailable, message))
            }
        }
    }

    /// After an attempt that failed: returns when there is to be another one, else with the call's error.
    pub(crate) async fn after(
        &mut self,
        shard: u32,
        node: &Arc<Node>,
        failure: Failure,
    ) -> Result<(), CallError> {
        let (advice, is_news) = self.client.router.learn(shard, node, &failure);
        let goes_on = match advice {
            Advice::GiveUp => {
                self.served();
                false
            }
            Advice::OtherNode => self.wait_served(shard, is_news).await,
            Advice::OtherShard => {
                // Nobody will serve it there: the others are to look for themselves.
                self.served();
                self.backoff.wait(&failure.error).await
            }
            Advice::SameNode => {
                // It serves the shard, and others may ask for what it can give now.
                self.served();
                self.backoff.wait(&failure.error).await
            }
        };
        if !goes_on {
            return Err(failure.error);
        }
        tracing::debug!(shard, failed = node.address(), error = %failure.error, "try again");
        self.client
            .learn_map(node, &failure.error, self.deadline)
            .await;
        if Instant::now() >= self.deadline {
            return Err(failure.error);
        }
        Ok(())
    }

    /// Somebody who serves the shard has answered.
    pub(crate) fn served(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.served();
        }
    }

    /// False when the deadline comes first.
    async fn wait_served(&mut self, shard: u32, is_news: bool) -> bool {
        let gates = &self.client.gates;
        let passage = match self.turn.take() {
            Some(turn) if turn.shard() == shard => turn.again(self.deadline).await,
            former => {
                // The map has moved what is called: who waits for the former shard is to look for themselves.
                if let Some(turn) = former {
                    turn.served();
                }
                // Of what was under way to a node that is left already, nothing new is learnt.
                if is_news {
                    gates.shut(shard, self.deadline).await
                } else {
                    gates.pass(shard, self.deadline).await
                }
            }
        };
        match passage {
            Passage::Open => true,
            Passage::InTurn(turn) => {
                self.turn = Some(turn);
                true
            }
            Passage::TooLate => false,
        }
    }
}
