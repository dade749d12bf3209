//! Reads everything back: through the gateways as users do, and each replica as it is.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use mailbox_client::Client;
use mailbox_client::v1::{MessageType, SyncRange, SyncRequest, Timeline, TimelineKind};
use mailbox_wire::Message;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use uuid::Uuid;

use super::play::Played;
use super::script::{NickId, Script};
use super::socket::{Socket, Trouble};
use super::stage::Stage;
use super::verify::{Run, Seen, SeenKind, Verdict, Verifier};

/// Users that read the whole group.
const WHOLE_READERS: usize = 100;
/// Messages asked for at a time.
const PAGE_MESSAGES: u32 = 1000;
/// How long a replica may take to apply what its leader has committed.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);
/// How long one user's reading may be troubled.
const TROUBLE_WITHIN: Duration = Duration::from_secs(60);

/// Where a user begins to read: after these seqs.
#[derive(Clone, Copy)]
struct From {
    mailbox: u64,
    group: u64,
}

/// Reads and compares everything.
pub(super) async fn check(
    script: &Script,
    played: &Played,
    stage: &Stage,
    seed: u64,
    connections: usize,
) -> anyhow::Result<Verdict> {
    let run = Run {
        sends: &script.sends,
        ids: &played.ids,
        acks: &played.acks,
        users: &stage.users,
        group: stage.group,
    };
    let mut verifier = Verifier::new(run);
    let head = read_group(stage, &mut verifier).await?;
    read_users(stage, &mut verifier, head, seed, connections).await?;
    Ok(verifier.verdict)
}

/// Reads the group whole through every gateway, and from every node's own replica if nodes can be
/// asked. Returns the head of the group's timeline.
async fn read_group(stage: &Stage, verifier: &mut Verifier<'_>) -> anyhow::Result<u64> {
    let mut head = 0;
    if let Some(client) = &stage.client {
        head = read_replicas(client, stage.group, verifier).await?;
    }
    for url in &stage.gateways {
        let all = From {
            mailbox: 0,
            group: 0,
        };
        // The first nick made the group, so it reads it from the first message on.
        let (_, rows) = read_user(stage, 0, url, all).await?;
        verifier.group_timeline(url, &rows);
        head = rows.last().map_or(head, |row| row.seq.max(head));
    }
    Ok(head)
}

async fn read_replicas(
    client: &Client,
    group: u64,
    verifier: &mut Verifier<'_>,
) -> anyhow::Result<u64> {
    let timeline = Timeline {
        kind: TimelineKind::Group as i32,
        owner: group,
    };
    let nodes = client.shard_map().await?.nodes;
    let request = SyncRequest {
        ranges: vec![SyncRange {
            timeline: Some(timeline),
            after_seq: 0,
        }],
        limit: 1,
        ..SyncRequest::default()
    };
    let first = client
        .sync(request)
        .await
        .context("read the group's head")?;
    let head = first.pages.first().map_or(0, |page| page.head);
    for node in nodes {
        let name = format!("node {}", node.node);
        let read = replica(client, timeline, &node.address, head);
        let rows = tokio::time::timeout(CATCH_UP_WITHIN, read)
            .await
            .with_context(|| format!("{name} does not reach seq {head} of the group"))?
            .with_context(|| format!("read the group from {name}"))?;
        verifier.group_timeline(&name, &rows);
    }
    Ok(head)
}

/// The group's rows up to `head`, from one node's replica; waits until it has them.
async fn replica(
    client: &Client,
    timeline: Timeline,
    address: &str,
    head: u64,
) -> anyhow::Result<Vec<Seen>> {
    let mut rows: Vec<Seen> = Vec::new();
    loop {
        let after_seq = rows.last().map_or(0, |row| row.seq);
        if after_seq >= head {
            return Ok(rows);
        }
        let request = SyncRequest {
            ranges: vec![SyncRange {
                timeline: Some(timeline),
                after_seq,
            }],
            limit: PAGE_MESSAGES,
            stale: true,
            ..SyncRequest::default()
        };
        let page = match client.sync_at(address, request).await {
            Ok(response) => response.pages.into_iter().next(),
            Err(error) if error.is_retryable() => None,
            Err(error) => return Err(error.into()),
        };
        let messages = page.map(|page| page.messages).unwrap_or_default();
        if messages.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        rows.extend(messages.into_iter().map(|message| Seen {
            seq: message.seq,
            sender: message.sender,
            client_msg_id: Uuid::from_slice(&message.client_msg_id).unwrap_or_default(),
            kind: match message.r#type() {
                MessageType::Text | MessageType::Opaque => SeenKind::Sent,
                MessageType::Refusal => SeenKind::Refusal {
                    of: message.refused_seq,
                },
                MessageType::Unspecified
                | MessageType::GroupCreated
                | MessageType::MemberJoined
                | MessageType::MemberLeft => SeenKind::Written,
            },
            body: message.body.to_vec(),
        }));
    }
}

/// Every user reads its whole mailbox; some read the whole group, the others only its end.
async fn read_users(
    stage: &Stage,
    verifier: &mut Verifier<'_>,
    head: u64,
    seed: u64,
    connections: usize,
) -> anyhow::Result<()> {
    let mut order: Vec<NickId> = (0..stage.users.len()).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    let whole_readers = WHOLE_READERS.min(order.len());
    let bar = ProgressBar::new(order.len() as u64).with_message("read back");
    bar.set_style(crate::output::bar_style());
    let reads = futures_util::stream::iter(order.into_iter().enumerate()).map(|(place, nick)| {
        let whole = place < whole_readers;
        let group = if whole { 0 } else { head.saturating_sub(1) };
        let url = &stage.gateways[place % stage.gateways.len()];
        async move {
            let read = read_user(stage, nick, url, From { mailbox: 0, group }).await?;
            anyhow::Ok((nick, whole, read))
        }
    });
    let mut reads = std::pin::pin!(reads.buffer_unordered(connections));
    while let Some((nick, whole, (mailbox, group))) = reads.try_next().await? {
        verifier.mailbox(nick, &mailbox);
        if whole {
            verifier.group_timeline(&format!("user {}", stage.users[nick]), &group);
        }
        // Who sees nothing after the seq before the head sees an older head.
        let seen = group.last().map_or(head.saturating_sub(1), |row| row.seq);
        verifier.group_head(nick, seen, head);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// One user's mailbox and group, read on a connection of its own, page by page, from `from`.
async fn read_user(
    stage: &Stage,
    nick: NickId,
    url: &str,
    from: From,
) -> anyhow::Result<(Vec<Seen>, Vec<Seen>)> {
    let token = stage.token(stage.users[nick])?;
    let mut reading = Reading {
        key: super::socket::sync_key(from.mailbox, stage.group, from.group),
        mailbox: Vec::new(),
        group: Vec::new(),
        group_id: stage.group,
    };
    let begin = std::time::Instant::now();
    loop {
        let why = match reading.all(url, &token).await {
            Ok(()) => return Ok((reading.mailbox, reading.group)),
            Err(Trouble::Refused(why)) => bail!("{url} refused user {}: {why}", stage.users[nick]),
            Err(Trouble::Lost(why) | Trouble::Retry(why)) => why,
        };
        if begin.elapsed() > TROUBLE_WITHIN {
            bail!("{url} does not serve user {}: {why}", stage.users[nick]);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Whether messages of this type come from users, not from the store itself.
fn is_users(kind: mailbox_wire::MessageType) -> bool {
    kind == mailbox_wire::MessageType::TEXT || kind == mailbox_wire::MessageType::OPAQUE
}

/// A reading that goes on from its key after a broken connection.
struct Reading {
    key: String,
    mailbox: Vec<Seen>,
    group: Vec<Seen>,
    group_id: u64,
}

impl Reading {
    async fn all(&mut self, url: &str, token: &str) -> Result<(), Trouble> {
        let socket = Socket::connect(url, token).await?;
        loop {
            let page = socket.sync(&self.key, PAGE_MESSAGES).await?;
            for message in page.messages {
                self.take(message);
            }
            self.key = page.key;
            if !page.more {
                socket.close().await;
                return Ok(());
            }
        }
    }

    fn take(&mut self, message: Message) {
        let timeline = message.timeline;
        let seen = Seen {
            seq: message.seq,
            sender: message.sender,
            client_msg_id: message.client_msg_id.unwrap_or_default(),
            kind: match message.refused {
                Some((of, _)) => SeenKind::Refusal { of },
                None if is_users(message.kind) => SeenKind::Sent,
                None => SeenKind::Written,
            },
            body: message.body.to_vec(),
        };
        match timeline {
            mailbox_wire::Timeline::Mailbox(_) => self.mailbox.push(seen),
            mailbox_wire::Timeline::Group(group) if group == self.group_id => self.group.push(seen),
            // Another group of a user of somebody else's cluster.
            mailbox_wire::Timeline::Group(_) => {}
        }
    }
}
