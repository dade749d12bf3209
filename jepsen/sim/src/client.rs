//! Who asks: users that send, one message after the other, and ask again what was not answered.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use mailbox_engine::{
    Command, CreateGroup, Flags, GroupId, JoinGroup, MessageId, MessageType, Refusal, RegisterUser,
    Reply, Send, SendGroup, TimelineKind, UserId, content_crc, slot_of_handle,
};
use mailbox_jepsen::history::{Acked, Append, Op, Outcome, SendId, Timeline};
use mailbox_jepsen::page::Join;
use rand::RngExt as _;
use uuid::Uuid;

use crate::consensus::Asker;
use crate::world::{Event, SLOTS, World};

const USERS: usize = 6;
/// An id that no user has: far beyond those that were given out.
const NOBODY: u64 = 1 << 40;
/// How often a send is asked for before it is given up.
const ATTEMPTS_MAX: u32 = 6;
/// A step of the population may take so many things that happen.
const STEPS_MAX: u64 = 20_000;

/// One user.
#[derive(Debug)]
pub(crate) struct Client {
    user: UserId,
    process: u64,
    /// Counts sends, so that a late answer is told from one that is waited for.
    send: u64,
    /// Counts attempts, so that patience is that of the last one.
    attempt: u64,
    sending: Option<Sending>,
    groups: Vec<GroupId>,
}

#[derive(Debug)]
struct Sending {
    command: Command,
    to: Timeline,
    id: Uuid,
    content: u32,
    invoked_ns: u64,
    attempts: u32,
    /// What it was answered with, if it was; then it is being repeated.
    acked: Option<(Acked, u64)>,
    repeats: Vec<Acked>,
    repeat_refused: Option<String>,
}

impl Client {
    pub(crate) fn is_busy(&self) -> bool {
        self.sending.is_some()
    }
}

/// All that there is to read.
pub(crate) fn timelines(world: &World) -> Vec<Timeline> {
    let users = world.clients.iter().map(|it| it.user.0);
    let mut all: Vec<_> = users.chain([NOBODY]).map(Timeline::Mailbox).collect();
    let groups = world.clients.first().map(|it| it.groups.as_slice());
    all.extend(
        groups
            .unwrap_or_default()
            .iter()
            .map(|it| Timeline::Group(it.0)),
    );
    all
}

/// Registers users and makes a group of them all.
pub(crate) fn populate(world: &mut World) -> anyhow::Result<()> {
    for number in 0..USERS {
        let handle = format!("user{number}");
        let slot = slot_of_handle(&handle, SLOTS);
        let shard = world.shard_of_slot(slot.0);
        let request_id = world.new_id();
        let command = Command::RegisterUser(RegisterUser { request_id, handle });
        let user = match ask(world, shard, command)? {
            Reply::UserRegistered { user } => user,
            reply => bail!("a user is not registered: {reply:?}"),
        };
        let process = world.next_process();
        world.clients.push(Client {
            user,
            process,
            send: 0,
            attempt: 0,
            sending: None,
            groups: Vec::new(),
        });
    }
    let creator = world.clients[0].user;
    let shard = world.shard_of_owner(creator.0);
    let command = Command::CreateGroup(CreateGroup {
        request_id: world.new_id(),
        creator,
        name: "all".to_owned(),
        message_id: MessageId::ZERO,
    });
    let (group, seq) = match ask(world, shard, command)? {
        Reply::GroupCreated { group, seq } => (group, seq),
        reply => bail!("a group is not made: {reply:?}"),
    };
    let joins = |user: UserId, first| {
        let (user, group) = (user.0, group.0);
        Op::Join(Join {
            user,
            group,
            first,
            completed_ns: 0,
        })
    };
    world.ops.push(joins(creator, seq.0));
    for number in 1..USERS {
        let user = world.clients[number].user;
        let command = JoinGroup {
            request_id: world.new_id(),
            group,
            user,
            message_id: MessageId::ZERO,
        };
        let shard = world.shard_of_owner(group.0);
        match ask(world, shard, Command::JoinGroup(command))? {
            Reply::Joined { join_seq } => world.ops.push(joins(user, join_seq.0)),
            reply => bail!("a user does not join: {reply:?}"),
        }
    }
    for number in 0..USERS {
        world.clients[number].groups.push(group);
        world.again(Event::Client(number), 1..20);
    }
    Ok(())
}

/// Asks until it is answered; for the population only, while nothing goes wrong.
fn ask(world: &mut World, shard: usize, command: Command) -> anyhow::Result<Reply> {
    // A client of its own, which nobody else answers.
    let process = world.next_process();
    let number = world.clients.len();
    world.clients.push(Client {
        user: UserId(0),
        process,
        send: 0,
        attempt: 0,
        sending: None,
        groups: Vec::new(),
    });
    for _ in 0..STEPS_MAX {
        if world.propose(shard, command.clone(), Asker::Client(number, 0)) {
            break;
        }
        world.step()?;
    }
    let mut heard = None;
    for _ in 0..STEPS_MAX {
        heard = world.take_answer(number);
        if heard.is_some() {
            break;
        }
        world.step()?;
    }
    world.clients.truncate(number);
    let reply = heard.context("the population is not answered")?;
    // Until its effects on other slots are there.
    for _ in 0..600 {
        world.step()?;
    }
    Ok(reply)
}

impl World {
    fn new_id(&mut self) -> Uuid {
        let random: u128 = self.rng.random::<u128>() >> 66;
        Uuid::from_u128(u128::from(self.now_ms) << 80 | 7 << 76 | 2 << 62 | random)
    }

    fn take_answer(&mut self, client: usize) -> Option<Reply> {
        let at = self.heard.iter().position(|(it, _)| *it == client)?;
        Some(self.heard.swap_remove(at).1)
    }

    /// Begins a send, or goes on with one.
    pub(crate) fn client_acts(&mut self, number: usize) {
        if self.clients[number].sending.is_none() {
            if !self.faults {
                return;
            }
            let sending = self.new_send(number);
            let client = &mut self.clients[number];
            client.send += 1;
            client.sending = Some(sending);
        }
        self.try_send(number);
    }

    fn new_send(&mut self, number: usize) -> Sending {
        let sender = self.clients[number].user;
        let body = Bytes::from(format!("{number}-{}", self.steps));
        let (client_msg_id, kind) = (self.new_id(), MessageType::TEXT);
        let content = content_crc(client_msg_id, kind, &body);
        let to = match self.rng.random_range(0..20) {
            0 => Timeline::Mailbox(NOBODY),
            1..5 => Timeline::Group(self.clients[number].groups[0].0),
            _ => {
                let other = self.rng.random_range(0..USERS);
                Timeline::Mailbox(self.clients[other].user.0)
            }
        };
        let command = match to {
            Timeline::Mailbox(user) => Command::Send(Send {
                sender,
                recipient: UserId(user),
                client_msg_id,
                message_id: MessageId::ZERO,
                kind,
                flags: Flags(0),
                content_crc: content,
                body,
                shown: MessageId::ZERO,
            }),
            Timeline::Group(group) => Command::SendGroup(SendGroup {
                sender,
                group: GroupId(group),
                client_msg_id,
                message_id: MessageId::ZERO,
                kind,
                flags: Flags(0),
                content_crc: content,
                body,
                shown: MessageId::ZERO,
            }),
        };
        Sending {
            command,
            to,
            id: client_msg_id,
            content,
            invoked_ns: self.now_ns(),
            attempts: 0,
            acked: None,
            repeats: Vec::new(),
            repeat_refused: None,
        }
    }

    fn try_send(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let (user, send) = (client.user, client.send);
        let Some(sending) = &mut client.sending else {
            return;
        };
        let (command, to) = (sending.command.clone(), sending.to);
        let home = match to {
            Timeline::Mailbox(_) => user.0,
            Timeline::Group(group) => group,
        };
        let shard = self.shard_of_owner(home);
        if !self.propose(shard, command, Asker::Client(number, send)) {
            // Nobody leads there: surely nothing happened.
            self.again(Event::Client(number), 5..60);
            return;
        }
        let client = &mut self.clients[number];
        client.attempt += 1;
        let attempt = client.attempt;
        if let Some(sending) = &mut client.sending {
            sending.attempts += 1;
        }
        self.again(Event::GiveUp(number, attempt), 60..400);
    }

    /// An answer comes; late ones count as long as the send is open.
    pub(crate) fn client_hears(&mut self, number: usize, send: u64, reply: &Reply) {
        if number >= self.clients.len() || self.clients[number].user == UserId(0) {
            self.heard.push((number, reply.clone()));
            return;
        }
        let client = &mut self.clients[number];
        if client.send != send {
            return;
        }
        let Some(sending) = &mut client.sending else {
            return;
        };
        match reply {
            Reply::Sent {
                timeline,
                seq,
                message_id,
            } => {
                let acked = Acked {
                    timeline: match timeline.kind {
                        TimelineKind::Group => Timeline::Group(timeline.owner),
                        _ => Timeline::Mailbox(timeline.owner),
                    },
                    seq: seq.0,
                    message_id: message_id.0,
                };
                if sending.acked.is_some() {
                    sending.repeats.push(acked);
                    self.met.repeats += 1;
                    self.end_send(number);
                    return;
                }
                let now_ns = self.now_ns();
                let again = self.goes_wrong(0.25);
                if let Some(sending) = &mut self.clients[number].sending {
                    sending.acked = Some((acked, now_ns));
                }
                if again {
                    self.try_send(number);
                } else {
                    self.end_send(number);
                }
            }
            Reply::Refused(Refusal::Retry) => self.try_send(number),
            reply => {
                let code = format!("{reply:?}");
                let may_be_there = sending.attempts > 1;
                if sending.acked.is_some() || may_be_there {
                    // What was accepted, or may have been, must not be refused when it is repeated.
                    sending.repeat_refused = Some(code);
                    self.end_send(number);
                } else {
                    self.end(number, Outcome::Fail(code));
                }
            }
        }
    }

    pub(crate) fn client_gives_up(&mut self, number: usize, attempt: u64) {
        let client = &self.clients[number];
        let Some(sending) = client
            .sending
            .as_ref()
            .filter(|_| client.attempt == attempt)
        else {
            return;
        };
        if sending.attempts < ATTEMPTS_MAX || !self.faults {
            self.try_send(number);
        } else {
            self.end_send(number);
        }
    }

    /// Whatever is still open when all is over.
    pub(crate) fn cut_off(&mut self) {
        for number in 0..self.clients.len() {
            self.end_send(number);
        }
    }

    fn end_send(&mut self, number: usize) {
        let sending = self.clients[number].sending.as_ref();
        let outcome = match sending.and_then(|it| it.acked) {
            Some((acked, _)) => Outcome::Ok(acked),
            None => Outcome::Unknown("no answer".to_owned()),
        };
        self.end(number, outcome);
    }

    fn end(&mut self, number: usize, outcome: Outcome<Acked>) {
        let now_ns = self.now_ns();
        let next = self.next_process();
        let client = &mut self.clients[number];
        let Some(sending) = client.sending.take() else {
            return;
        };
        let (process, sender) = (client.process, client.user.0);
        if matches!(outcome, Outcome::Unknown(_)) {
            // A process that does not know does nothing any more.
            client.process = next;
        }
        self.ops.push(Op::Append(Append {
            process,
            invoked_ns: sending.invoked_ns,
            completed_ns: sending.acked.map_or(now_ns, |(_, at)| at),
            sender,
            to: sending.to,
            id: SendId(sending.id),
            content: sending.content,
            outcome,
            repeats: sending.repeats,
            repeat_refused: sending.repeat_refused,
            reuse: None,
        }));
        self.again(Event::Client(number), 1..60);
    }
}
