//! The way of frames to one node: a stream, or a queue in this process if it is this node.

use std::sync::Arc;

use futures_util::StreamExt as _;
use mailbox_api::peer::{DeliverFrame, DeliverReply};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use super::destination;
use super::places::Place;
use crate::core::Core;
use crate::status;

/// Frames that may wait for the socket. A node that reads none for so long is given up.
const FRAMES_QUEUED_MAX: usize = 64;
/// Answers and ends of streams that may wait for the relay.
pub(super) const EVENTS_QUEUED_MAX: usize = 256;

/// What a link tells the relay.
#[derive(Debug)]
pub(super) struct LinkEvent {
    pub(super) node: u64,
    /// Of the link: an event of a link that was given up means nothing.
    pub(super) link: u64,
    pub(super) kind: LinkEventKind,
}

#[derive(Debug)]
pub(super) enum LinkEventKind {
    Answered(DeliverReply),
    /// The stream has ended, with the reason.
    Ended(String),
}

/// The relay's end of a link. Dropped, it ends.
pub(super) struct Link {
    pub(super) id: u64,
    address: String,
    frames: mpsc::Sender<DeliverFrame>,
    task: JoinHandle<()>,
}

impl Link {
    pub(super) fn start(
        core: &Arc<Core>,
        id: u64,
        place: &Place,
        events: mpsc::Sender<LinkEvent>,
    ) -> Self {
        let (frames, queued) = mpsc::channel(FRAMES_QUEUED_MAX);
        let (core, place, address) = (Arc::clone(core), place.clone(), place.address.clone());
        let task = tokio::spawn(async move {
            let node = place.node;
            let event = |kind| LinkEvent {
                node,
                link: id,
                kind,
            };
            let reason = if node == core.node_id {
                let answered = |reply| event(LinkEventKind::Answered(reply));
                let frames = ReceiverStream::new(queued).map(Ok);
                destination::serve(core, frames, events.clone(), answered).await;
                "the node stops".to_owned()
            } else {
                let answered = |reply| event(LinkEventKind::Answered(reply));
                call(&core, &place, queued, &events, answered).await
            };
            // Nobody listens once the relay has ended.
            let _ = events.send(event(LinkEventKind::Ended(reason))).await;
        });
        Self {
            id,
            address,
            frames,
            task,
        }
    }

    /// Whether it goes to where the node is now.
    pub(super) fn goes_to(&self, place: &Place) -> bool {
        self.address == place.address
    }

    /// False if the node does not read any more.
    pub(super) fn send(&self, frame: DeliverFrame) -> bool {
        self.frames.try_send(frame).is_ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries frames and answers until the stream ends; gives the reason.
async fn call(
    core: &Core,
    place: &Place,
    frames: mpsc::Receiver<DeliverFrame>,
    events: &mpsc::Sender<LinkEvent>,
    answered: impl Fn(DeliverReply) -> LinkEvent,
) -> String {
    let mut client = match core.peers.lanes(&place.address) {
        Ok(client) => client,
        Err(error) => return error.to_string(),
    };
    let mut request = Request::new(ReceiverStream::new(frames));
    if let Err(error) = core.authority.prove(request.metadata_mut()) {
        return error.to_string();
    }
    let mut replies = match client.deliver(request).await {
        Ok(response) => response.into_inner(),
        Err(error) => return status::with_causes(&error),
    };
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                if events.send(answered(reply)).await.is_err() {
                    return "the relay has ended".to_owned();
                }
            }
            Ok(None) => return "the node has ended the stream".to_owned(),
            Err(error) => return status::with_causes(&error),
        }
    }
}
