//! One node as the client knows it.

use std::sync::Arc;
use std::sync::Once;
use std::time::Duration;

use mailbox_api::CallError;
use mailbox_api::v1::admin_client::AdminClient;
use mailbox_api::v1::cluster_client::ClusterClient;
use mailbox_api::v1::dead_letters_client::DeadLettersClient;
use mailbox_api::v1::mailbox_client::MailboxClient;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::channel::{self, AuthChannel, Credentials, MESSAGE_BYTES_MAX};
use crate::options::ClientOptions;
use crate::submit::{self, SubmitQueue};

/// A connection to a node and its Submit stream, both made when first used.
pub(crate) struct Node {
    address: String,
    mailbox: MailboxClient<AuthChannel>,
    admin: AdminClient<AuthChannel>,
    cluster: ClusterClient<AuthChannel>,
    dead_letters: DeadLettersClient<AuthChannel>,
    submit: Arc<SubmitQueue>,
    submit_task: Once,
    options: Arc<ClientOptions>,
    /// Until when a hint to this node is not trusted: it was unreachable or silent a moment ago,
    /// and followers name it as the leader until they have noticed too.
    suspect_until: Mutex<Option<Instant>>,
}

impl Node {
    pub(crate) fn new(
        address: &str,
        credentials: &Credentials,
        options: &Arc<ClientOptions>,
    ) -> Result<Self, CallError> {
        let channel = channel::channel(address, options)?;
        let mailbox = MailboxClient::with_interceptor(channel.clone(), credentials.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let admin = AdminClient::with_interceptor(channel.clone(), credentials.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let cluster = ClusterClient::with_interceptor(channel.clone(), credentials.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let dead_letters = DeadLettersClient::with_interceptor(channel, credentials.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self {
            address: channel::bare_address(address).to_owned(),
            mailbox,
            admin,
            cluster,
            dead_letters,
            submit: Arc::new(SubmitQueue::new(options.limits.clone())),
            submit_task: Once::new(),
            options: Arc::clone(options),
            suspect_until: Mutex::new(None),
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn mailbox(&self) -> MailboxClient<AuthChannel> {
        self.mailbox.clone()
    }

    pub(crate) fn admin(&self) -> AdminClient<AuthChannel> {
        self.admin.clone()
    }

    pub(crate) fn cluster(&self) -> ClusterClient<AuthChannel> {
        self.cluster.clone()
    }

    pub(crate) fn dead_letters(&self) -> DeadLettersClient<AuthChannel> {
        self.dead_letters.clone()
    }

    /// The queue of the Submit stream; must be called inside a runtime.
    pub(crate) fn submit(&self) -> &SubmitQueue {
        self.submit_task.call_once(|| {
            let queue = Arc::clone(&self.submit);
            let span = tracing::debug_span!("submit_stream", node = self.address());
            let stream = submit::run(queue, self.mailbox(), Arc::clone(&self.options));
            tokio::spawn(stream.instrument(span));
        });
        &self.submit
    }

    pub(crate) fn suspect_for(&self, time: Duration) {
        *self.suspect_until.lock() = Some(Instant::now() + time);
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect_until
            .lock()
            .is_some_and(|until| until > Instant::now())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.submit.close();
    }
}
