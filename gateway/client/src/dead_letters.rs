//! Calls of operators about dead letters. Any node takes them and passes them on to the leader of the slot's shard.

use mailbox_api::CallError;
use mailbox_api::v1::dead_letters_client::DeadLettersClient;
use mailbox_api::v1::{
    CountDeadLettersRequest, CountDeadLettersResponse, DropDeadLetterRequest,
    DropDeadLetterResponse, ListDeadLettersRequest, ListDeadLettersResponse,
    RequeueDeadLetterRequest, RequeueDeadLetterResponse,
};
use tonic::{Response, Status};

use crate::channel::AuthChannel;
use crate::client::Client;

impl Client {
    /// Which slots of a shard have had dead letters, and what became of them.
    ///
    /// # Errors
    /// The refusal, or the last retryable error at the deadline.
    pub async fn count_dead_letters(
        &self,
        shard: u32,
    ) -> Result<CountDeadLettersResponse, CallError> {
        let call = CountDeadLettersRequest { shard };
        self.ask_letters(|mut node| async move { node.count_dead_letters(call).await })
            .await
    }

    /// A page of a slot's dead letters.
    ///
    /// # Errors
    /// As [`Client::count_dead_letters`].
    pub async fn list_dead_letters(
        &self,
        call: ListDeadLettersRequest,
    ) -> Result<ListDeadLettersResponse, CallError> {
        self.ask_letters(|mut node| async move { node.list_dead_letters(call).await })
            .await
    }

    /// Has a dead letter delivered after all. `request_id` is made if it is empty; a repeat is answered as the
    /// first call was, with the same id or another.
    ///
    /// # Errors
    /// `UnknownUser`: its recipient still does not exist. `UnknownDeadLetter`, `DeadLetterResolved`; else as
    /// [`Client::count_dead_letters`].
    pub async fn requeue_dead_letter(
        &self,
        mut call: RequeueDeadLetterRequest,
    ) -> Result<RequeueDeadLetterResponse, CallError> {
        self.fill_id(&mut call.request_id);
        let requeue = |mut node: DeadLettersClient<AuthChannel>| {
            let call = call.clone();
            async move { node.requeue_dead_letter(call).await }
        };
        self.ask_letters(requeue).await
    }

    /// Marks a dead letter as done with. `request_id` is made if it is empty.
    ///
    /// # Errors
    /// `UnknownDeadLetter`, `DeadLetterResolved`; else as [`Client::count_dead_letters`].
    pub async fn drop_dead_letter(
        &self,
        mut call: DropDeadLetterRequest,
    ) -> Result<DropDeadLetterResponse, CallError> {
        self.fill_id(&mut call.request_id);
        let drop = |mut node: DeadLettersClient<AuthChannel>| {
            let call = call.clone();
            async move { node.drop_dead_letter(call).await }
        };
        self.ask_letters(drop).await
    }

    async fn ask_letters<T, F>(
        &self,
        call: impl Fn(DeadLettersClient<AuthChannel>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.ask_any(|node| call(node.dead_letters())).await
    }
}
