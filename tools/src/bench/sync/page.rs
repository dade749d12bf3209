//! One sync: a device that has missed the newest rows of its mailbox reads them, page by page, and looks at each.

use mailbox_client::v1::{self, SyncRange, SyncRequest, Timeline, TimelineKind};
use mailbox_client::{Client, user_id};
use mailbox_sdk as sdk;

/// As many messages as a gateway puts on one page at most.
const PAGE_MESSAGES_MAX: u32 = 500;
/// Bytes of bodies that a gateway puts on one page at most.
const PAGE_BYTES_MAX: u64 = 256 << 10;

/// A mailbox and how far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mailbox {
    pub(super) user: u64,
    /// Greatest seq, inclusive.
    pub(super) head: u64,
}

impl Mailbox {
    /// What a device that has missed the newest `rows` holds.
    pub(super) fn held(&self, rows: u32) -> u64 {
        self.head.saturating_sub(rows.into())
    }
}

/// What came of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Synced {
    pub(super) pages: u64,
    /// Whether the pages held the wanted rows, each once and in order, and nothing else.
    pub(super) is_right: bool,
}

/// What a device has read so far.
struct Reading {
    /// Greatest seq read, inclusive.
    held: u64,
    head: u64,
    pages: u64,
    is_right: bool,
}

impl Reading {
    fn new(mailbox: Mailbox, rows: u32) -> Self {
        Self {
            held: mailbox.held(rows),
            head: mailbox.head,
            pages: 0,
            is_right: true,
        }
    }

    /// Takes a page; whether there must be another one.
    fn take(&mut self, seqs: impl Iterator<Item = u64>) -> bool {
        let before = self.held;
        self.pages += 1;
        for seq in seqs {
            self.is_right &= seq == self.held + 1;
            self.held = seq;
        }
        // A page with nothing on it would be followed by others like it.
        self.held > before && self.held < self.head
    }

    fn end(self) -> Synced {
        Synced {
            pages: self.pages,
            is_right: self.is_right && self.held == self.head,
        }
    }
}

/// Asks the store as a gateway does: the same call with the same bounds.
pub(super) async fn from_store(
    client: &Client,
    mailbox: Mailbox,
    rows: u32,
) -> Result<Synced, mailbox_client::CallError> {
    let kind = TimelineKind::Mailbox as i32;
    let timeline = Timeline {
        kind,
        owner: mailbox.user,
    };
    let mut reading = Reading::new(mailbox, rows);
    loop {
        let left = u32::try_from(reading.head.saturating_sub(reading.held)).unwrap_or(u32::MAX);
        let request = SyncRequest {
            ranges: vec![SyncRange {
                timeline: Some(timeline),
                after_seq: reading.held,
            }],
            limit: left.clamp(1, PAGE_MESSAGES_MAX),
            limit_bytes: PAGE_BYTES_MAX,
            groups_of: Some(user_id(mailbox.user)),
            ..SyncRequest::default()
        };
        let answer: v1::SyncResponse = client.sync(request).await?;
        let messages = answer.pages.iter().flat_map(|page| &page.messages);
        if !reading.take(messages.map(|message| message.seq)) {
            return Ok(reading.end());
        }
    }
}

/// Asks a gateway, on the mailbox owner's own connection.
pub(super) async fn from_gateway(
    device: &sdk::Client,
    mailbox: Mailbox,
    rows: u32,
) -> Result<Synced, sdk::Error> {
    let timeline = sdk::Timeline::Mailbox(mailbox.user);
    let mut reading = Reading::new(mailbox, rows);
    loop {
        let left = u32::try_from(reading.head.saturating_sub(reading.held)).unwrap_or(u32::MAX);
        let have = sdk::Position {
            timeline,
            seq: reading.held,
        };
        let request = sdk::Sync {
            limit: left.max(1),
            have: vec![have],
            ..sdk::Sync::default()
        };
        let answer = device.sync(request).await?;
        if !reading.take(answer.messages.iter().map(|message| message.seq)) {
            return Ok(reading.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rows: u32, pages: &[&[u64]]) -> (Synced, usize) {
        let mailbox = Mailbox { user: 17, head: 30 };
        let mut reading = Reading::new(mailbox, rows);
        let mut asked = 0;
        for page in pages {
            asked += 1;
            if !reading.take(page.iter().copied()) {
                break;
            }
        }
        (reading.end(), asked)
    }

    fn synced(pages: u64, is_right: bool) -> Synced {
        Synced { pages, is_right }
    }

    #[test]
    fn a_sync_ends_with_the_head_and_is_right_if_nothing_is_left_out() {
        assert_eq!(read(3, &[&[28, 29, 30], &[31]]), (synced(1, true), 1));
        assert_eq!(read(3, &[&[28], &[29, 30]]), (synced(2, true), 2));
    }

    #[test]
    fn rows_that_are_missing_repeated_or_too_many_are_wrong() {
        assert_eq!(read(3, &[&[28, 30]]).0, synced(1, false));
        assert_eq!(read(3, &[&[27, 28, 29, 30]]).0, synced(1, false));
        assert_eq!(read(3, &[&[28, 28, 29, 30]]).0, synced(1, false));
        assert_eq!(read(3, &[&[28, 29, 30, 31]]).0, synced(1, false));
        // A page without rows is the last one, however much is left.
        assert_eq!(read(3, &[&[28], &[], &[29, 30]]), (synced(2, false), 2));
    }

    #[test]
    fn whoever_has_missed_more_than_there_is_reads_from_the_start() {
        assert_eq!(Mailbox { user: 1, head: 5 }.held(25), 0);
        assert_eq!(Mailbox { user: 1, head: 30 }.held(25), 5);
    }
}
