//! Who chats.

use anyhow::Context as _;
use bytes::Bytes;
use mailbox_client::{Client, user_id, v1};

use crate::history::{Op, Recorder, Timeline};
use crate::page::Join;
use crate::workload::Workload;

/// Who and what there is to send to.
#[derive(Debug, Default)]
pub(crate) struct Population {
    pub(crate) users: Vec<u64>,
    /// They join groups and leave them.
    pub(crate) wanderers: Vec<u64>,
    pub(crate) groups: Vec<u64>,
}

/// An id that no user has: of the first slot, and far beyond those that were given out.
pub(crate) const NOBODY: u64 = 1 << 40;

impl Population {
    pub(crate) fn timelines(&self) -> Vec<Timeline> {
        let mailboxes = self.users.iter().chain(&self.wanderers).chain([&NOBODY]);
        let mailboxes = mailboxes.map(|user| Timeline::Mailbox(*user));
        mailboxes
            .chain(self.groups.iter().map(|group| Timeline::Group(*group)))
            .collect()
    }
}

/// Registers users and makes groups of them all.
pub(crate) async fn populate(
    client: &Client,
    recorder: &Recorder,
    workload: &Workload,
) -> anyhow::Result<Population> {
    let mut population = Population::default();
    for number in 0..workload.users {
        let user = register(client, format!("user{number}")).await?;
        population.users.push(user);
    }
    for number in 0..workload.wanderers {
        let user = register(client, format!("wanderer{number}")).await?;
        population.wanderers.push(user);
    }
    for number in 0..workload.groups {
        let creator = Some(user_id(population.users[0]));
        let name = format!("group{number}");
        let request = v1::CreateGroupRequest {
            request_id: Bytes::new(),
            creator,
            name,
        };
        let created = client
            .create_group(request)
            .await
            .context("create a group")?;
        let group = created.group;
        let may_read = |user, first| {
            recorder.record(Op::Join(Join {
                user,
                group,
                first,
                completed_ns: recorder.now_ns(),
            }));
        };
        may_read(population.users[0], created.seq);
        for &user in &population.users[1..] {
            let request = v1::JoinGroupRequest {
                request_id: Bytes::new(),
                group,
                user: Some(user_id(user)),
            };
            let joined = client.join_group(request).await.context("join a group")?;
            may_read(user, joined.join_seq);
        }
        population.groups.push(group);
    }
    Ok(population)
}

async fn register(client: &Client, handle: String) -> anyhow::Result<u64> {
    let request = v1::RegisterUserRequest {
        request_id: Bytes::new(),
        handle,
    };
    let registered = client.register_user(request).await;
    Ok(registered.context("register a user")?.user)
}
