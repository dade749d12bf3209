//! Which commands of the meta shard its members know. One that does not know a command would stop at it, so the first
//! of a kind is proposed only when all of them have said that they do.

use std::time::Duration;

use futures_util::future::join_all;
use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, KnownCommandsRequest, KnownCommandsResponse};
use mailbox_engine::ShardId;

use crate::core::Core;
use crate::status;

/// How long a node may take to say what it knows.
const ASK_WAIT: Duration = Duration::from_secs(2);

/// What came after the first version.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known {
    Gateways,
    Merges,
}

impl Known {
    fn is_in(self, answer: KnownCommandsResponse) -> bool {
        match self {
            Known::Gateways => answer.gateways,
            Known::Merges => answer.merges,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Known::Gateways => "gateways",
            Known::Merges => "merges of shards",
        }
    }
}

/// What this node knows, for a leader that is about to propose it.
pub(super) fn known_here() -> KnownCommandsResponse {
    fail::fail_point!("gateways_unknown", |_| KnownCommandsResponse::default());
    fail::fail_point!("merges_unknown", |_| KnownCommandsResponse {
        gateways: true,
        ..KnownCommandsResponse::default()
    });
    KnownCommandsResponse {
        gateways: true,
        merges: true,
    }
}

/// Asks all members of the meta shard, on its leader.
///
/// # Errors
/// One does not know it, or does not answer.
pub(super) async fn require(core: &Core, known: Known) -> Result<(), CallError> {
    let members = super::members(core, ShardId::META.0).await?;
    let asked = members.voters.iter().chain(&members.learners);
    let asked = asked.map(async |node| {
        let said = tokio::time::timeout(ASK_WAIT, knows(core, *node, known)).await;
        let said = said.unwrap_or_else(|_| Err(status::unavailable("no answer")));
        said.map_err(|error| {
            let what = known.words();
            let words = format!(
                "node {node}, of the meta shard, does not say that it knows {what}: {error}. All its members must run \
                 a version that does"
            );
            CallError::new(ErrorCode::StaleEpoch, words)
        })
    });
    let said: Result<Vec<()>, _> = join_all(asked).await.into_iter().collect();
    said.map(|_| ())
}

async fn knows(core: &Core, node: u64, known: Known) -> Result<(), CallError> {
    let answer = if node == core.node_id {
        known_here()
    } else {
        let view = core.maps.now();
        let place = view.cluster.nodes.get(&node);
        let place = place.ok_or_else(|| status::unavailable("it is not in the map"))?;
        let request = core.own_call(KnownCommandsRequest {})?;
        let mut client = core.peers.cluster(&place.address)?;
        let answer = client.known_commands(request).await;
        answer
            .map_err(|status| CallError::from_status(&status))?
            .into_inner()
    };
    match known.is_in(answer) {
        true => Ok(()),
        false => Err(status::unavailable("its version is too old")),
    }
}
