//! One node as the client knows it.

use std::sync::Arc;
use std::sync::Once;

use mailbox_api::CallError;
use mailbox_api::v1::admin_client::AdminClient;
use mailbox_api::v1::cluster_client::ClusterClient;
use mailbox_api::v1::dead_letters_client::DeadLettersClient;
use mailbox_api::v1::mailbox_client::MailboxClient;
use tracing::Instrument as _;

use crate::channel::{self, AuthChannel, Credentials, MESSAGE_BYTES_MAX};
use crate::options::ClientOptions;
use crate::pending::Failure;
use crate::submit::{self, SubmitQueue};
use crate::suspicion::Suspicion;

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
    suspicion: Arc<Suspicion>,
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
            suspicion: Arc::default(),
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

    /// After a failure of this node's own making a hint to it is not followed for a while; must be called inside a
    /// runtime.
    pub(crate) fn suspect(&self, failure: &Failure) {
        if let Some(why) = failure.broken {
            let time = self.options.timeouts.attempt;
            self.suspicion.raise(why, time, || self.admin());
        }
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspicion.is_raised()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.submit.close();
    }
}
