//! `Sync` and `Heads`: pages of timelines behind one read barrier, limited by count and bytes.

use mailbox_api::CallError;
use mailbox_api::v1::{
    ErrorCode, GroupMembership, HeadsRequest, HeadsResponse, MembershipSpan, SyncPage, SyncRequest,
    SyncResponse, TimelineHead,
};
use mailbox_engine::{Error, GroupId, Row, Seq, Span, TimelineId, TimelineKind, UserId};
use mailbox_raft::Shard;

use crate::auth::forbidden;
use crate::consistency::Sure;
use crate::convert;
use crate::core::{Actor, Core};
use crate::shard_map::ShardMap;
use crate::status;
use crate::unary::UnaryCall as _;

/// What one range of a Sync call may return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Right {
    /// Everything.
    Whole,
    /// Rows in these spans only: what a member or former member of a group may read.
    Spans(Vec<Span>),
}

pub(crate) struct Range {
    timeline: TimelineId,
    after: Seq,
    right: Right,
}

/// What is left of a call's limits.
struct Allowance {
    messages: usize,
    bytes: usize,
    /// Nothing was returned yet: one message always may be, however long.
    fresh: bool,
}

/// Bytes that a message costs besides its body, for the limit.
const MESSAGE_OVERHEAD: usize = 64;

/// Pages of several timelines.
pub(crate) async fn sync(
    core: &Core,
    shard: &Shard,
    actor: Actor,
    request: SyncRequest,
) -> Result<SyncResponse, CallError> {
    check_count(core, request.ranges.len())?;
    let reader = reader_of(core, actor, &request).await?;
    let groups_of = match request.groups_of.clone() {
        Some(user) => Some(core.acting_user(actor, "groups_of", Some(user)).await?),
        None => None,
    };
    let view = core.maps.now();
    if let Some(user) = groups_of {
        core.check_shard(&view.shards, shard, user.mailbox())?;
    }
    let mut asked = Vec::with_capacity(request.ranges.len());
    for range in &request.ranges {
        let timeline = convert::timeline(range.timeline.as_ref())?;
        core.check_shard(&view.shards, shard, timeline)?;
        asked.push((timeline, Seq(range.after_seq)));
    }
    let sure = core.make_sure(shard, request.consistency()?).await?;
    count_reads(shard, &asked);
    let allowance = allowance(core, &request);
    let outcome = core
        .read(shard, move |engine| {
            let ranges = match sure.checked(engine, asked, |asked| rights(engine, reader, asked))? {
                Ok(ranges) => ranges,
                Err(error) => return Ok(Err(error)),
            };
            let read = pages(engine, ranges, allowance).and_then(|pages| {
                let groups = groups_of.map(|user| groups(engine, sure, &view.shards, user));
                Ok((pages, groups.transpose()?.unwrap_or_default()))
            });
            let (pages, groups) = match sure.judged(read)? {
                Ok(read) => read,
                Err(error) => return Ok(Err(error)),
            };
            // Told last: what was read is not fresher than that.
            let staleness_ms = match sure.staleness_ms(engine) {
                Ok(staleness_ms) => staleness_ms,
                Err(error) => return Ok(Err(error)),
            };
            Ok(Ok(SyncResponse {
                pages,
                groups,
                staleness_ms,
            }))
        })
        .await?;
    if let Ok(response) = &outcome {
        let rows = response
            .pages
            .iter()
            .map(|page| page.messages.len() as u64)
            .sum();
        core.metrics.sync_rows.inc_by(rows);
    }
    outcome
}

/// Heads of several timelines. They tell nothing of content, but a user sees own ones only.
pub(crate) async fn heads(
    core: &Core,
    shard: &Shard,
    actor: Actor,
    request: HeadsRequest,
) -> Result<HeadsResponse, CallError> {
    check_count(core, request.timelines.len())?;
    let reader = match actor {
        Actor::Cluster => None,
        Actor::User(user) => Some(user),
    };
    let mut asked = Vec::with_capacity(request.timelines.len());
    let view = core.maps.now();
    for timeline in &request.timelines {
        let timeline = convert::timeline(Some(timeline))?;
        core.check_shard(&view.shards, shard, timeline)?;
        asked.push((timeline, Seq::ZERO));
    }
    let sure = core.make_sure(shard, request.consistency()?).await?;
    count_reads(shard, &asked);
    core.read(shard, move |engine| {
        let ranges = match sure.checked(engine, asked, |asked| rights(engine, reader, asked))? {
            Ok(ranges) => ranges,
            Err(error) => return Ok(Err(error)),
        };
        let mut heads = Vec::with_capacity(ranges.len());
        for range in ranges {
            let head = readable_head(engine.head(range.timeline)?, &range.right);
            let timeline = Some(convert::timeline_out(range.timeline));
            heads.push(TimelineHead {
                timeline,
                head: head.0,
            });
        }
        let staleness_ms = match sure.staleness_ms(engine) {
            Ok(staleness_ms) => staleness_ms,
            Err(error) => return Ok(Err(error)),
        };
        Ok(Ok(HeadsResponse {
            heads,
            staleness_ms,
        }))
    })
    .await?
}

fn count_reads(shard: &Shard, asked: &[(TimelineId, Seq)]) {
    let timelines: Vec<TimelineId> = asked.iter().map(|(timeline, _)| *timeline).collect();
    shard.count_reads(&timelines);
}

fn check_count(core: &Core, sent: usize) -> Result<(), CallError> {
    let max = core.limits.timelines_per_call_max;
    if sent > max as usize {
        let name = "limits.timelines_per_call_max";
        return Err(status::limit(name, u64::from(max), sent as u64));
    }
    Ok(())
}

fn allowance(core: &Core, request: &SyncRequest) -> Allowance {
    let limits = &core.limits;
    let messages = match request.limit {
        0 => limits.sync_messages_default,
        limit => limit.min(limits.sync_messages_max),
    };
    let bytes = match request.limit_bytes {
        0 => limits.sync_bytes_max.0,
        bytes => bytes.min(limits.sync_bytes_max.0),
    };
    Allowance {
        messages: messages as usize,
        bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        fresh: true,
    }
}

/// Whose rights bound the answer; `None` = no bound, for a caller with the secret who names no one.
async fn reader_of(
    core: &Core,
    actor: Actor,
    request: &SyncRequest,
) -> Result<Option<UserId>, CallError> {
    match (actor, &request.reader) {
        (Actor::Cluster, None) => Ok(None),
        (actor, reader) => core
            .acting_user(actor, "reader", reader.clone())
            .await
            .map(Some),
    }
}

/// What the reader may see of each timeline: the own mailbox, and groups while a member. That is
/// judged by the group's own row: the reader's list of groups may be in another shard, and behind.
#[allow(
    clippy::type_complexity,
    reason = "a storage fault and a refusal part ways at once"
)]
fn rights(
    engine: &mailbox_engine::Shard,
    reader: Option<UserId>,
    asked: Vec<(TimelineId, Seq)>,
) -> Result<Result<Vec<Range>, CallError>, Error> {
    let Some(reader) = reader else {
        let whole = |(timeline, after)| Range {
            timeline,
            after,
            right: Right::Whole,
        };
        return Ok(Ok(asked.into_iter().map(whole).collect()));
    };
    let mut ranges = Vec::with_capacity(asked.len());
    for (timeline, after) in asked {
        let right = match timeline.kind {
            TimelineKind::Mailbox if timeline.owner == reader.0 => Right::Whole,
            TimelineKind::Mailbox | TimelineKind::DeadLetters => {
                let message = format!("{timeline} is not the mailbox of user {reader}");
                return Ok(Err(forbidden(message)));
            }
            TimelineKind::Group => match engine.membership(GroupId(timeline.owner), reader)? {
                Some(membership) => Right::Spans(membership.spans),
                None => return Ok(Err(not_a_member(reader, timeline))),
            },
        };
        ranges.push(Range {
            timeline,
            after,
            right,
        });
    }
    Ok(Ok(ranges))
}

/// Reads a group's timeline without having been in it.
pub(crate) fn not_a_member(user: UserId, timeline: TimelineId) -> CallError {
    let message = format!("user {user} is not a member of {timeline}");
    CallError::new(ErrorCode::NotAMember, message)
}

fn pages(
    engine: &mailbox_engine::Shard,
    ranges: Vec<Range>,
    mut allowance: Allowance,
) -> Result<Vec<SyncPage>, Error> {
    let mut pages = Vec::with_capacity(ranges.len());
    for range in ranges {
        let head = readable_head(engine.head(range.timeline)?, &range.right);
        let trim_point = engine.trim_point(range.timeline)?;
        let mut messages = Vec::new();
        let mut last = range.after;
        for (first, until) in readable(&range.right, range.after, head) {
            let wanted = usize::try_from(until.0 - first.0 + 1).unwrap_or(usize::MAX);
            let (limit, bytes) = allowance.next(wanted);
            if limit == 0 {
                break;
            }
            let rows = engine.scan(range.timeline, first, limit, bytes)?;
            let whole = rows.len() == wanted;
            for row in rows {
                last = row.seq;
                allowance.spend(&row);
                messages.push(convert::message(row));
            }
            if !whole {
                break;
            }
        }
        pages.push(SyncPage {
            timeline: Some(convert::timeline_out(range.timeline)),
            messages,
            head: head.0,
            trim_point: trim_point.0,
            more: last < head,
        });
    }
    Ok(pages)
}

impl Allowance {
    /// Limits of the next scan.
    fn next(&self, wanted: usize) -> (usize, usize) {
        let messages = wanted.min(self.messages);
        match (self.bytes, self.fresh) {
            (0, true) => (messages.min(1), 1),
            (0, false) => (0, 0),
            (bytes, _) => (messages, bytes),
        }
    }

    fn spend(&mut self, row: &Row) {
        self.fresh = false;
        self.messages -= 1;
        self.bytes = self.bytes.saturating_sub(row.body.len() + MESSAGE_OVERHEAD);
    }
}

/// Greatest seq that the reader can ever be shown now.
fn readable_head(head: Seq, right: &Right) -> Seq {
    match right {
        Right::Whole => head,
        Right::Spans(spans) => spans.last().map_or(Seq::ZERO, |span| span_end(*span, head)),
    }
}

/// The parts of `after+1 ..= head` that the right covers, in order, both ends inclusive.
fn readable(right: &Right, after: Seq, head: Seq) -> Vec<(Seq, Seq)> {
    let clip = |first: Seq, until: Seq| {
        let first = first.max(after.next());
        (first <= until).then_some((first, until))
    };
    match right {
        Right::Whole => clip(Seq(1), head).into_iter().collect(),
        Right::Spans(spans) => spans
            .iter()
            .filter_map(|span| clip(span.join, span_end(*span, head)))
            .collect(),
    }
}

fn span_end(span: Span, head: Seq) -> Seq {
    if span.is_open() {
        head
    } else {
        span.left.min(head)
    }
}

/// The user's own list. Heads of groups in other shards are not here: 0. So are those whose slot is on the move: the
/// list must not be withheld for them, whoever wants a head asks for it by itself.
fn groups(
    engine: &mailbox_engine::Shard,
    sure: Sure,
    map: &ShardMap,
    user: UserId,
) -> Result<Vec<GroupMembership>, Error> {
    let mut groups = Vec::new();
    for membership in engine.groups_of(user)? {
        let timeline = membership.group.timeline();
        let head = if map.of_timeline(timeline) == engine.id() {
            sure.known_or(engine.head(timeline), Seq::ZERO)?
        } else {
            Seq::ZERO
        };
        let right = Right::Spans(membership.spans);
        let head = readable_head(head, &right);
        let Right::Spans(spans) = right else { continue };
        groups.push(GroupMembership {
            group: membership.group.0,
            spans: spans
                .into_iter()
                .map(|span| MembershipSpan {
                    join_seq: span.join.0,
                    left_seq: span.left.0,
                })
                .collect(),
            head: head.0,
            read_mark: membership.read_mark.0,
        });
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(list: &[(u64, u64)]) -> Right {
        Right::Spans(
            list.iter()
                .map(|(join, left)| Span {
                    join: Seq(*join),
                    left: Seq(*left),
                })
                .collect(),
        )
    }

    fn parts(right: &Right, after: u64, head: u64) -> Vec<(u64, u64)> {
        readable(right, Seq(after), Seq(head))
            .into_iter()
            .map(|(a, b)| (a.0, b.0))
            .collect()
    }

    #[test]
    fn a_whole_right_covers_all_above_the_key() {
        assert_eq!(parts(&Right::Whole, 0, 5), [(1, 5)]);
        assert_eq!(parts(&Right::Whole, 5, 5), []);
        assert_eq!(parts(&Right::Whole, 9, 5), []);
    }

    #[test]
    fn a_former_member_reads_to_the_exact_seq_and_not_between_spans() {
        let right = spans(&[(3, 6), (10, 0)]);
        assert_eq!(parts(&right, 0, 12), [(3, 6), (10, 12)]);
        assert_eq!(parts(&right, 4, 12), [(5, 6), (10, 12)]);
        assert_eq!(parts(&right, 8, 12), [(10, 12)]);
        assert_eq!(readable_head(Seq(12), &right), Seq(12));
        let gone = spans(&[(3, 6)]);
        assert_eq!(parts(&gone, 0, 12), [(3, 6)]);
        assert_eq!(readable_head(Seq(12), &gone), Seq(6));
    }

    #[test]
    fn one_message_is_always_returned_and_limits_hold_over_all_ranges() {
        let mut allowance = Allowance {
            messages: 2,
            bytes: 100,
            fresh: true,
        };
        assert_eq!(allowance.next(10), (2, 100));
        let row = Row {
            seq: Seq(1),
            message_id: mailbox_engine::MessageId(1),
            sender: UserId(1),
            recipient: UserId(2),
            sent_at_ms: 0,
            kind: mailbox_engine::MessageType::TEXT,
            flags: mailbox_engine::Flags::default(),
            client_msg_id: uuid::Uuid::now_v7(),
            body: vec![0; 500].into(),
            refused: None,
        };
        allowance.spend(&row);
        assert_eq!(allowance.next(10), (0, 0), "no bytes are left");
        let first = Allowance {
            messages: 2,
            bytes: 0,
            fresh: true,
        };
        assert_eq!(first.next(10), (1, 1));
    }
}
