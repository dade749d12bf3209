//! The sync key: what a device holds and sends back. Opaque to clients, signed by nobody, checked
//! by everybody.
//!
//! ```text
//! text  = base64url without padding of
//! bytes = version u8 = 1
//!         mailbox seq    varint
//!         state version  varint, 0 for now
//!         groups         varint, <= SYNC_KEY_GROUPS_MAX
//!         groups x { group id − the one before it   varint, >= 1
//!                    seq                            varint, >= 1 }
//!         crc32 over all before it, 4 bytes big-endian
//! ```
//!
//! Varints are LEB128 in their shortest form, so that a key has one spelling. The checksum is
//! against accidents (a cut or garbled key must not pass for another one and skip messages); a
//! client that forges a key only cheats itself.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Groups in a key, and so groups of a user that sync serves.
pub const SYNC_KEY_GROUPS_MAX: usize = 2_000;

/// Greatest length of a key's text, in bytes: 2,000 groups of two 10-byte varints, in base64.
pub const SYNC_KEY_TEXT_BYTES_MAX: usize = (1 + 3 * 10 + SYNC_KEY_GROUPS_MAX * 20 + 4) * 4 / 3 + 3;

const VERSION: u8 = 1;

/// How far a device has got: greatest seqs held, inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncKey {
    /// In the user's mailbox.
    pub mailbox_seq: u64,
    /// Of the mailbox's small state; 0 for now.
    pub state_version: u64,
    /// In groups: (group id, seq), ascending by group id, each once, seqs from 1.
    groups: Vec<(u64, u64)>,
}

/// A sync key that cannot be used: the device starts again from an empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sync key cannot be used: {0}")]
pub struct BadSyncKey(pub &'static str);

impl SyncKey {
    /// Reads a key; the empty text is the empty key.
    pub fn parse(text: &str) -> Result<Self, BadSyncKey> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > SYNC_KEY_TEXT_BYTES_MAX {
            return Err(BadSyncKey("it is too long"));
        }
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| BadSyncKey("it is not base64url"))?;
        let (mut rest, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or(BadSyncKey("it is cut short"))?;
        if crc32fast::hash(rest) != u32::from_be_bytes(*crc) {
            return Err(BadSyncKey("its checksum is wrong"));
        }
        let (version, after) = rest.split_first().ok_or(BadSyncKey("it is cut short"))?;
        if *version != VERSION {
            return Err(BadSyncKey("its version is unknown"));
        }
        rest = after;
        let mailbox_seq = take_varint(&mut rest)?;
        let state_version = take_varint(&mut rest)?;
        if state_version != 0 {
            return Err(BadSyncKey("its state version is unknown"));
        }
        let groups = take_groups(&mut rest)?;
        if !rest.is_empty() {
            return Err(BadSyncKey("it has bytes left over"));
        }
        Ok(Self {
            mailbox_seq,
            state_version,
            groups,
        })
    }

    /// Writes the key.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(8 + self.groups.len() * 8);
        bytes.push(VERSION);
        put_varint(&mut bytes, self.mailbox_seq);
        put_varint(&mut bytes, self.state_version);
        put_varint(&mut bytes, self.groups.len() as u64);
        let mut before = 0;
        for (group, seq) in &self.groups {
            put_varint(&mut bytes, group - before);
            put_varint(&mut bytes, *seq);
            before = *group;
        }
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// (group id, seq), ascending by group id.
    pub fn groups(&self) -> &[(u64, u64)] {
        &self.groups
    }

    /// Greatest seq held in this group; 0 if none.
    pub fn group_seq(&self, group: u64) -> u64 {
        match self.groups.binary_search_by_key(&group, |(id, _)| *id) {
            Ok(at) => self.groups[at].1,
            Err(_) => 0,
        }
    }

    /// Raises the seq held in this group; never lowers it. Refused (`false`) if the key is full.
    pub fn raise_group(&mut self, group: u64, seq: u64) -> bool {
        match self.groups.binary_search_by_key(&group, |(id, _)| *id) {
            Ok(at) => self.groups[at].1 = self.groups[at].1.max(seq),
            Err(_) if self.groups.len() >= SYNC_KEY_GROUPS_MAX => return false,
            Err(at) if group != 0 && seq != 0 => self.groups.insert(at, (group, seq)),
            Err(_) => {}
        }
        true
    }

    /// Forgets the groups for which `keep` says no.
    pub fn retain_groups(&mut self, mut keep: impl FnMut(u64) -> bool) {
        self.groups.retain(|(group, _)| keep(*group));
    }
}

fn take_groups(rest: &mut &[u8]) -> Result<Vec<(u64, u64)>, BadSyncKey> {
    let count = take_varint(rest)?;
    if count > SYNC_KEY_GROUPS_MAX as u64 {
        return Err(BadSyncKey("it has too many groups"));
    }
    let mut groups = Vec::with_capacity(count as usize);
    let mut before = 0_u64;
    for _ in 0..count {
        let step = take_varint(rest)?;
        let group = before
            .checked_add(step)
            .ok_or(BadSyncKey("a group id is too great"))?;
        let seq = take_varint(rest)?;
        if step == 0 || seq == 0 {
            return Err(BadSyncKey("its groups are not in order"));
        }
        groups.push((group, seq));
        before = group;
    }
    Ok(groups)
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push((value as u8) | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, BadSyncKey> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().ok_or(BadSyncKey("it is cut short"))?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(BadSyncKey("a number is too great"));
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            if *byte == 0 && shift > 0 {
                return Err(BadSyncKey("a number is not in its shortest form"));
            }
            return Ok(value);
        }
    }
    Err(BadSyncKey("a number is too great"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(mailbox_seq: u64, groups: &[(u64, u64)]) -> SyncKey {
        let mut key = SyncKey {
            mailbox_seq,
            ..SyncKey::default()
        };
        for (group, seq) in groups {
            assert!(key.raise_group(*group, *seq));
        }
        key
    }

    proptest! {
        #[test]
        fn a_key_survives_its_text(
            mailbox in any::<u64>(),
            groups in proptest::collection::vec((1..=u64::MAX, 1..=u64::MAX), 0..40),
        ) {
            let key = key(mailbox, &groups);
            prop_assert_eq!(SyncKey::parse(&key.to_text()).unwrap(), key);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = SyncKey::parse(&text);
        }

        #[test]
        fn what_is_read_has_one_spelling(mut bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            bytes.insert(0, VERSION);
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_be_bytes());
            let text = URL_SAFE_NO_PAD.encode(bytes);
            if let Ok(key) = SyncKey::parse(&text) {
                prop_assert_eq!(key.to_text(), text);
            }
        }

        #[test]
        fn a_changed_letter_is_noticed(at in 0_usize..1000, letter in 0_u8..64) {
            let text = key(70_000, &[(65, 3), (1 << 20, 900)]).to_text();
            let mut changed = text.clone().into_bytes();
            let at = at % changed.len();
            changed[at] = URL_SAFE_NO_PAD.encode([letter << 2]).as_bytes()[0];
            let changed = String::from_utf8(changed).unwrap();
            prop_assert!(changed == text || SyncKey::parse(&changed).is_err());
        }
    }

    #[test]
    fn every_prefix_is_refused_or_empty() {
        let text = key(1, &[(65, 3)]).to_text();
        for len in 1..text.len() {
            assert!(SyncKey::parse(&text[..len]).is_err(), "{len}");
        }
        assert_eq!(SyncKey::parse("").unwrap(), SyncKey::default());
    }

    #[test]
    fn the_greatest_key_fits() {
        let mut key = SyncKey {
            mailbox_seq: u64::MAX,
            ..SyncKey::default()
        };
        for at in 0..SYNC_KEY_GROUPS_MAX as u64 {
            assert!(key.raise_group(u64::MAX - at, u64::MAX));
        }
        assert!(!key.raise_group(1, 1));
        let text = key.to_text();
        assert!(text.len() <= SYNC_KEY_TEXT_BYTES_MAX);
        assert_eq!(SyncKey::parse(&text).unwrap(), key);
    }
}
