//! The `DeadLetters` service: what could not be delivered, for operators.
//!
//! A letter is in the slot of its recipient, so each call is done by the leader of that slot's shard; any other
//! node passes it on, once.

use std::sync::Arc;

use mailbox_api::CallError;
use mailbox_api::v1::dead_letters_client::DeadLettersClient;
use mailbox_api::v1::dead_letters_server::DeadLetters;
use mailbox_api::v1::{
    self, CountDeadLettersRequest, CountDeadLettersResponse, DropDeadLetterRequest,
    DropDeadLetterResponse, ListDeadLettersRequest, ListDeadLettersResponse,
    RequeueDeadLetterRequest, RequeueDeadLetterResponse,
};
use mailbox_engine::{
    Command, DeadLetter, DeadLetterPage, DropDeadLetter, LetterStanding, MessageId, Refusal, Reply,
    RequeueDeadLetter, Seq, ShardId, SlotId,
};
use mailbox_raft::{Leadership, Shard};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::core::{Core, forwarded};
use crate::{convert, status};

/// Lists, requeues and drops dead letters; needs the cluster secret.
pub(crate) struct DeadLetterService {
    core: Arc<Core>,
}

/// What all calls have in common: whose letters they are about.
trait Placed: Clone {
    fn shard(&self, core: &Core) -> Result<ShardId, CallError>;
}

impl Placed for CountDeadLettersRequest {
    fn shard(&self, core: &Core) -> Result<ShardId, CallError> {
        core.named(self.shard)
    }
}

impl Placed for ListDeadLettersRequest {
    fn shard(&self, core: &Core) -> Result<ShardId, CallError> {
        shard_of(core, self.slot)
    }
}

impl Placed for RequeueDeadLetterRequest {
    fn shard(&self, core: &Core) -> Result<ShardId, CallError> {
        shard_of(core, self.slot)
    }
}

impl Placed for DropDeadLetterRequest {
    fn shard(&self, core: &Core) -> Result<ShardId, CallError> {
        shard_of(core, self.slot)
    }
}

fn shard_of(core: &Core, slot: u32) -> Result<ShardId, CallError> {
    Ok(core.maps.now().shards.of_slot(slot_in(core, slot)?))
}

fn slot_in(core: &Core, slot: u32) -> Result<SlotId, CallError> {
    let count = core.maps.now().shards.slot_count();
    let known = u16::try_from(slot).ok().filter(|slot| *slot < count);
    known.map(SlotId).ok_or_else(|| {
        convert::invalid(format!(
            "there is no slot {slot}: the cluster has 0 to {}",
            count.saturating_sub(1)
        ))
    })
}

impl DeadLetterService {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Has a call done by the leader of its shard: `here`, or on the node that `there` gets a client of.
    async fn at_leader<C, T, H, F>(
        &self,
        name: &'static str,
        request: Request<C>,
        here: impl FnOnce(Shard, C) -> H,
        there: impl Fn(DeadLettersClient<Channel>, Request<C>) -> F,
    ) -> Result<Response<T>, Status>
    where
        C: Placed,
        H: Future<Output = Result<T, CallError>>,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let core = &self.core;
        let (metadata, _, call) = request.into_parts();
        let done = async {
            core.authority.require_cluster(&metadata)?;
            let shard = call.shard(core)?;
            let held = core.node.shard(shard);
            let leads = |held: &Shard| matches!(held.leadership(), Leadership::Leader { .. });
            if let Some(held) = held.filter(leads) {
                return Ok(Response::new(here(held, call).await?));
            }
            if metadata.get(mailbox_api::metadata::FORWARDED).is_some() {
                return Err(core.not_here(shard).into());
            }
            let asked = core.ask(shard, |address| {
                let client = core.peers.dead_letters(&address);
                let answer = client.map(|client| there(client, forwarded(&metadata, call.clone())));
                async move { answer?.await }
            });
            asked.await
        };
        let done: Result<Response<T>, Status> = done.await;
        core.metrics.count_call(name, done.as_ref().err());
        done
    }

    async fn list(
        &self,
        shard: Shard,
        call: ListDeadLettersRequest,
    ) -> Result<ListDeadLettersResponse, CallError> {
        let core = &self.core;
        let slot = slot_in(core, call.slot)?;
        let limits = &core.limits;
        let limit = match call.limit {
            0 => limits.sync_messages_default,
            limit => limit.min(limits.sync_messages_max),
        };
        let bytes = usize::try_from(limits.sync_bytes_max.0).unwrap_or(usize::MAX);
        core.barrier(&shard).await?;
        let from = Seq(call.from_seq);
        let page = core
            .read(&shard, move |engine| {
                engine.dead_letters(slot, from, limit as usize, bytes)
            })
            .await?;
        Ok(page_out(slot, page, call.resolved))
    }

    async fn count(
        &self,
        shard: Shard,
        _: CountDeadLettersRequest,
    ) -> Result<CountDeadLettersResponse, CallError> {
        let core = &self.core;
        core.barrier(&shard).await?;
        let counts = core.read(&shard, |engine| {
            let mut slots = Vec::new();
            for slot in engine.slots() {
                let totals = engine.dead_letter_totals(slot)?;
                if totals.written > 0 {
                    slots.push(v1::DeadLetterCount {
                        slot: u32::from(slot.0),
                        written: totals.written,
                        waiting: totals.waiting(),
                        unseen: totals.unseen,
                        requeued: totals.requeued,
                        dropped: totals.dropped,
                    });
                }
            }
            Ok(slots)
        });
        let slots = counts.await?;
        Ok(CountDeadLettersResponse { slots })
    }

    async fn requeue(
        &self,
        shard: Shard,
        call: RequeueDeadLetterRequest,
    ) -> Result<RequeueDeadLetterResponse, CallError> {
        let core = &self.core;
        let (slot, seq) = (slot_in(core, call.slot)?, Seq(call.seq));
        if call.dry_run {
            return self.judge_requeue(&shard, slot, seq).await;
        }
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        self.require_ever(&shard, slot, seq).await?;
        let command = Command::RequeueDeadLetter(RequeueDeadLetter {
            request_id,
            slot,
            seq,
            message_id: MessageId::ZERO,
        });
        match core.propose(&shard, command).await? {
            Reply::DeadLetterRequeued {
                seq: reached,
                message_id,
            } => {
                tracing::info!(%slot, letter = %seq, seq = %reached, "a dead letter was requeued");
                Ok(RequeueDeadLetterResponse {
                    seq: reached.0,
                    message_id: message_id.0,
                })
            }
            other => Err(status::wrong_reply(&other)),
        }
    }

    async fn drop_letter(
        &self,
        shard: Shard,
        call: DropDeadLetterRequest,
    ) -> Result<DropDeadLetterResponse, CallError> {
        let core = &self.core;
        let (slot, seq) = (slot_in(core, call.slot)?, Seq(call.seq));
        if call.dry_run {
            let letter = self.letter(&shard, slot, seq).await?;
            return match letter.standing {
                LetterStanding::Waiting => Ok(DropDeadLetterResponse::default()),
                LetterStanding::Dropped { .. } => Ok(DropDeadLetterResponse {
                    dropped_before: true,
                }),
                standing @ LetterStanding::Requeued { .. } => {
                    Err(core.refusal(&Refusal::DeadLetterResolved {
                        slot,
                        seq,
                        standing,
                    }))
                }
            };
        }
        let request_id = convert::uuid_v7("request_id", &call.request_id)?;
        self.require_ever(&shard, slot, seq).await?;
        let command = Command::DropDeadLetter(DropDeadLetter {
            request_id,
            slot,
            seq,
        });
        match core.propose(&shard, command).await? {
            Reply::DeadLetterDropped => {
                tracing::info!(%slot, letter = %seq, "a dead letter was dropped");
                Ok(DropDeadLetterResponse::default())
            }
            other => Err(status::wrong_reply(&other)),
        }
    }

    /// What apply would answer to a requeue now, by the same rules in the same order.
    async fn judge_requeue(
        &self,
        shard: &Shard,
        slot: SlotId,
        seq: Seq,
    ) -> Result<RequeueDeadLetterResponse, CallError> {
        let core = &self.core;
        let letter = self.letter(shard, slot, seq).await?;
        match letter.standing {
            LetterStanding::Waiting => {}
            LetterStanding::Requeued {
                seq, message_id, ..
            } => {
                return Ok(RequeueDeadLetterResponse {
                    seq: seq.0,
                    message_id: message_id.0,
                });
            }
            standing @ LetterStanding::Dropped { .. } => {
                return Err(core.refusal(&Refusal::DeadLetterResolved {
                    slot,
                    seq,
                    standing,
                }));
            }
        }
        let user = letter.row.recipient;
        let found = core.read(shard, move |engine| engine.handle_of(user));
        match found.await? {
            Some(_) => Ok(RequeueDeadLetterResponse::default()),
            None => Err(core.refusal(&Refusal::UnknownUser { user })),
        }
    }

    /// Refuses, as apply would, what has never been a letter. Where no letter has ever been, nodes may be of a
    /// build that cannot read the command, and would stop at its entry: it must not get into one. A letter that
    /// has been trimmed passes: a repeat is answered as it was the first time.
    async fn require_ever(&self, shard: &Shard, slot: SlotId, seq: Seq) -> Result<(), CallError> {
        let core = &self.core;
        core.barrier(shard).await?;
        let timeline = slot.dead_letters();
        let bounds = core.read(shard, move |engine| {
            Ok((engine.trim_point(timeline)?, engine.head(timeline)?))
        });
        let (trim_point, head) = bounds.await?;
        if (Seq(1)..=head).contains(&seq) {
            return Ok(());
        }
        Err(core.refusal(&Refusal::UnknownDeadLetter {
            slot,
            seq,
            trim_point,
            head,
        }))
    }

    /// One letter, as of now.
    async fn letter(&self, shard: &Shard, slot: SlotId, seq: Seq) -> Result<DeadLetter, CallError> {
        let core = &self.core;
        core.barrier(shard).await?;
        let page = core
            .read(shard, move |engine| engine.dead_letters(slot, seq, 1, 1))
            .await?;
        let (trim_point, head) = (page.trim_point, page.head);
        let found = page
            .letters
            .into_iter()
            .find(|letter| letter.row.seq == seq);
        found.ok_or_else(|| {
            core.refusal(&Refusal::UnknownDeadLetter {
                slot,
                seq,
                trim_point,
                head,
            })
        })
    }
}

fn page_out(slot: SlotId, page: DeadLetterPage, resolved: bool) -> ListDeadLettersResponse {
    let wanted = |letter: &DeadLetter| resolved || letter.standing == LetterStanding::Waiting;
    let letters = page.letters.into_iter().filter(wanted);
    ListDeadLettersResponse {
        letters: letters.map(|letter| letter_out(slot, letter)).collect(),
        next_seq: page.next.map_or(0, |next| next.0),
        trim_point: page.trim_point.0,
        head: page.head.0,
    }
}

fn letter_out(slot: SlotId, letter: DeadLetter) -> v1::DeadLetter {
    let (standing, resolved_at_ms, requeued) = match letter.standing {
        LetterStanding::Waiting => (v1::DeadLetterStanding::Waiting, 0, (0, 0)),
        LetterStanding::Requeued {
            at_ms,
            seq,
            message_id,
        } => (
            v1::DeadLetterStanding::Requeued,
            at_ms,
            (seq.0, message_id.0),
        ),
        LetterStanding::Dropped { at_ms } => (v1::DeadLetterStanding::Dropped, at_ms, (0, 0)),
    };
    v1::DeadLetter {
        slot: u32::from(slot.0),
        home_seq: letter.home_seq.0,
        code: convert::refusal_code(letter.code) as i32,
        refused_at_ms: letter.refused_at_ms,
        standing: standing as i32,
        resolved_at_ms,
        requeued_seq: requeued.0,
        requeued_message_id: requeued.1,
        message: Some(convert::message(letter.row)),
    }
}

#[tonic::async_trait]
impl DeadLetters for DeadLetterService {
    async fn count_dead_letters(
        &self,
        request: Request<CountDeadLettersRequest>,
    ) -> Result<Response<CountDeadLettersResponse>, Status> {
        let here = |shard, call| self.count(shard, call);
        self.at_leader(
            "count_dead_letters",
            request,
            here,
            |mut node, call| async move { node.count_dead_letters(call).await },
        )
        .await
    }

    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        let here = |shard, call| self.list(shard, call);
        self.at_leader(
            "list_dead_letters",
            request,
            here,
            |mut node, call| async move { node.list_dead_letters(call).await },
        )
        .await
    }

    async fn requeue_dead_letter(
        &self,
        request: Request<RequeueDeadLetterRequest>,
    ) -> Result<Response<RequeueDeadLetterResponse>, Status> {
        let here = |shard, call| self.requeue(shard, call);
        self.at_leader(
            "requeue_dead_letter",
            request,
            here,
            |mut node, call| async move { node.requeue_dead_letter(call).await },
        )
        .await
    }

    async fn drop_dead_letter(
        &self,
        request: Request<DropDeadLetterRequest>,
    ) -> Result<Response<DropDeadLetterResponse>, Status> {
        let here = |shard, call| self.drop_letter(shard, call);
        self.at_leader(
            "drop_dead_letter",
            request,
            here,
            |mut node, call| async move { node.drop_dead_letter(call).await },
        )
        .await
    }
}
