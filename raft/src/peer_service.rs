//! What peers call: the server's half of the streams in `peer.proto`.

use std::pin::Pin;

use futures_util::Stream;
use mailbox_api::peer;
use mailbox_api::peer::peer_server::Peer;
use tonic::{Request, Response, Status, Streaming};

/// Serves a node's peers. Wrap it with `PeerService::into_server` and mount it.
#[derive(Clone)]
pub struct PeerService {}

impl PeerService {
    /// The tonic service, with its message size limits set.
    pub fn into_server(self) -> peer::peer_server::PeerServer<PeerService> {
        peer::peer_server::PeerServer::new(self)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for PeerService {
    type ControlStream = Answers<peer::ControlResponse>;
    type AppendStream = Answers<peer::AppendResponse>;
    type SnapshotStream = Answers<peer::SnapshotResponse>;

    async fn control(
        &self,
        _: Request<Streaming<peer::ControlRequest>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        Err(Status::unavailable("not serving"))
    }

    async fn append(
        &self,
        _: Request<Streaming<peer::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        Err(Status::unavailable("not serving"))
    }

    async fn snapshot(
        &self,
        _: Request<Streaming<peer::SnapshotRequest>>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unavailable("not serving"))
    }
}
