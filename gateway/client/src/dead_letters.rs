//! Calls of operators about dead letters. Any node takes them and passes them on to the leader of the slot's shard.

use mailbox_api::CallError;
use mailbox_api::v1::dead_letters_client::DeadLettersClient;
use mailbox_api::v1::{
    CountDeadLettersRequest, CountDeadLettersResponse, DropDeadLetterRequest,
    DropDeadLetterResponse, ErrorCode, ListDeadLettersRequest, ListDeadLettersResponse,
    RequeueDeadLetterRequest, RequeueDeadLetterResponse,
};
use tonic::{Response, Status};

use crate::channel::AuthChannel;
use crate::client::Client;
use crate::retry::Backoff;

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
        self.ask_any(|mut node| async move { node.count_dead_letters(call).await })
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
        self.ask_any(|mut node| async move { node.list_dead_letters(call).await })
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
        self.ask_any(requeue).await
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
        self.ask_any(drop).await
    }

    /// Asks one node after the other, until one has done it. Every call here bears being asked twice.
    async fn ask_any<T, F>(
        &self,
        call: impl Fn(DeadLettersClient<AuthChannel>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let inner = self.inner();
        let mut backoff = Backoff::new(&inner.options.timeouts, self.deadline());
        loop {
            let mut last = CallError::new(ErrorCode::Unavailable, "no node is known");
            for node in inner.router.nodes() {
                match inner.once(call(node.dead_letters())).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) if failure.error.is_retryable() => last = failure.error,
                    Err(failure) => return Err(failure.error),
                }
            }
            if !backoff.wait(&last).await {
                return Err(last);
            }
        }
    }
}
