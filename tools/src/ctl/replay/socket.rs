//! One nick's WebSocket to a gateway.

use std::time::Duration;

use mailbox_sdk::{Client, ConnectOptions, Destination, Error, Sync, Synced};
use mailbox_wire::SyncKey;
use uuid::Uuid;

use super::verify::Ack;

/// How long one gateway may keep a send or a page before the next gateway is tried.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Why something did not happen.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A repeat will not change it.
    Refused(String),
    /// Not now; the connection is good.
    Retry(String),
    /// The connection is gone, or gives no answer: try another one.
    Lost(String),
}

/// One nick's WebSocket.
pub(super) struct Socket(Client);

impl Socket {
    pub(super) async fn connect(url: &str, token: &str) -> Result<Self, Trouble> {
        let options = ConnectOptions {
            receive: false,
            connect_timeout: CONNECT_WITHIN,
            request_timeout: ANSWER_WITHIN,
            backoff_max: Duration::from_millis(200),
            ..ConnectOptions::new(url, token)
        };
        Ok(Self(Client::connect(options).await?))
    }

    /// Sends and waits for the ack.
    pub(super) async fn send(
        &self,
        to: &Destination,
        id: Uuid,
        text: &str,
    ) -> Result<Ack, Trouble> {
        let sent = self.0.send_with_id(to, id, text).await?;
        Ok(Ack {
            timeline: sent.timeline.to_string(),
            seq: sent.seq,
        })
    }

    /// Reads one page.
    pub(super) async fn sync(&self, key: &str, limit: u32) -> Result<Synced, Trouble> {
        Ok(self
            .0
            .sync(Sync {
                key: key.to_owned(),
                limit,
                have: Vec::new(),
            })
            .await?)
    }

    /// Closes the connection; a break at this point is no trouble.
    pub(super) async fn close(self) {
        let _broken = self.0.close().await;
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let why = error.to_string();
        match error {
            Error::Refused(fault) if fault.retryable => Self::Retry(why),
            Error::Closed | Error::Connect { .. } | Error::Timeout { .. } => Self::Lost(why),
            error if error.is_retryable() => Self::Lost(why),
            _ => Self::Refused(why),
        }
    }
}

/// The key of a device that holds a mailbox and one group up to these seqs.
pub(super) fn sync_key(mailbox_seq: u64, group: u64, group_seq: u64) -> String {
    let mut key = SyncKey::default();
    key.mailbox_seq = mailbox_seq;
    // A fresh key has room for one group.
    let _raised = key.raise_group(group, group_seq);
    key.to_text()
}
