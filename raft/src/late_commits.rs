//! News of a commit waits a little for an entry to travel with.
//!
//! openraft tells each follower of a commit as soon as it knows of it. If no entry is on its way just then, that is a
//! request of its own, with an answer of its own: as many again as the entries take. Nobody waits for it: the leader
//! has answered the send by then, and a follower serves no read without asking how far it has to be. So such a
//! request is kept until the next one, which carries the same commit or a later one, or until its time is over. A
//! follower then also applies several entries at once.

use std::time::Duration;

use futures_util::stream::{self, Fuse, Stream, StreamExt};
use openraft::raft::AppendEntriesRequest;
use tokio::time::{Instant, timeout_at};

use crate::types::TypeConfig;

/// How long a commit waits: by so much a follower's rows may be older than they need be.
const COMMIT_WAIT: Duration = Duration::from_millis(20);

type Append = AppendEntriesRequest<TypeConfig>;

struct State<S> {
    /// May be asked again after its end, when what is held has gone.
    input: Fuse<S>,
    wait: Duration,
    /// The last request without entries, and when it must go.
    held: Option<(Append, Instant)>,
}

/// The same requests, less those without entries that another one follows soon enough. openraft takes an answer for
/// one to all before it.
pub(crate) fn late_commits<S>(input: S) -> impl Stream<Item = Append> + Send + 'static
where
    S: Stream<Item = Append> + Send + Unpin + 'static,
{
    held_for(COMMIT_WAIT, input)
}

fn held_for<S>(wait: Duration, input: S) -> impl Stream<Item = Append> + Send + 'static
where
    S: Stream<Item = Append> + Send + Unpin + 'static,
{
    let (input, held) = (input.fuse(), None);
    let state = State { input, wait, held };
    stream::unfold(state, async |mut state| {
        let next = state.next().await?;
        Some((next, state))
    })
}

impl<S: Stream<Item = Append> + Unpin> State<S> {
    async fn next(&mut self) -> Option<Append> {
        loop {
            let next = match &self.held {
                None => self.input.next().await,
                Some((_, due)) => match timeout_at(*due, self.input.next()).await {
                    Ok(next) => next,
                    Err(_) => return self.held.take().map(|(held, _)| held),
                },
            };
            let Some(request) = next else {
                return self.held.take().map(|(held, _)| held);
            };
            if !request.entries.is_empty() {
                self.held = None;
                return Some(request);
            }
            let due = self.held.take().map(|(_, due)| due);
            let due = due.unwrap_or_else(|| Instant::now() + self.wait);
            self.held = Some((request, due));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use openraft::EntryPayload;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::types::{Entry, Vote, log_id};

    fn request(entries: std::ops::Range<u64>, committed: u64) -> Append {
        let entries = entries.map(|index| Entry {
            log_id: log_id(1, index),
            payload: EntryPayload::Blank,
        });
        Append {
            vote: Vote::new(1, 1),
            prev_log_id: None,
            entries: entries.collect(),
            leader_commit: Some(log_id(1, committed)),
        }
    }

    /// Entries and commit of a request.
    fn shape(request: Option<Append>) -> Option<(usize, u64)> {
        request.map(|request| {
            let committed = request.leader_commit.map_or(0, |id| id.index);
            (request.entries.len(), committed)
        })
    }

    /// Longer than a test takes.
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_commit_travels_with_the_next_entry() {
        let (requests, input) = mpsc::channel(8);
        // Panics if it is asked again after its end.
        let input = stream::unfold(input, async |mut input| Some((input.recv().await?, input)));
        let mut out = Box::pin(held_for(LONG, Box::pin(input)));
        requests.send(request(1..2, 0)).await.unwrap();
        assert_eq!(shape(out.next().await), Some((1, 0)));
        for committed in [0, 1] {
            requests.send(request(0..0, committed)).await.unwrap();
            assert!(out.next().now_or_never().is_none(), "it waits");
        }
        requests.send(request(2..4, 1)).await.unwrap();
        assert_eq!(shape(out.next().await), Some((2, 1)));
        assert!(out.next().now_or_never().is_none(), "it has gone");
        // What is held goes before the end.
        requests.send(request(0..0, 3)).await.unwrap();
        drop(requests);
        assert_eq!(shape(out.next().await), Some((0, 3)));
        assert_eq!(shape(out.next().await), None);
    }

    #[tokio::test]
    async fn a_commit_goes_alone_when_its_time_is_over() {
        let (requests, input) = mpsc::channel(8);
        let wait = Duration::from_millis(1);
        let mut out = Box::pin(held_for(wait, ReceiverStream::new(input)));
        for committed in 1..4 {
            requests.send(request(0..0, committed)).await.unwrap();
        }
        // The last one is what goes, and the end has not come.
        assert_eq!(shape(out.next().await), Some((0, 3)));
        assert!(out.next().now_or_never().is_none());
    }
}
