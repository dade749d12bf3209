//! Owner → slot → shard, as the cluster last told it.

use mailbox_api::v1::{ShardMapResponse, UserRef, user_ref};
use xxhash_rust::xxh3::xxh3_64;

/// The shard map in the form that routing needs.
#[derive(Debug, Default)]
pub(crate) struct ShardMap {
    /// Shard by slot; empty until the first map came.
    shards: Vec<u32>,
    /// Where calls go whose slot is unknown: the first shard.
    fallback: u32,
    /// Rises with every change of the map.
    epoch: u64,
}

impl ShardMap {
    /// Slots that the response leaves out go to its first shard, whose nodes know better.
    pub(crate) fn new(response: &ShardMapResponse) -> Self {
        let fallback = response
            .shards
            .first()
            .map_or(0, |placement| placement.shard);
        let slot_count = usize::try_from(response.slot_count.min(1 << 16)).unwrap_or(0);
        let mut shards = vec![fallback; slot_count];
        for placement in &response.shards {
            for span in &placement.slots {
                let (first, last) = (span.first as usize, (span.last as usize).min(slot_count));
                for shard in shards.iter_mut().take(last + 1).skip(first) {
                    *shard = placement.shard;
                }
            }
        }
        Self {
            shards,
            fallback,
            epoch: response.epoch,
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn shard_of_owner(&self, owner: u64) -> u32 {
        self.shard_of_bytes(&owner.to_be_bytes())
    }

    /// 0 until the first map came.
    pub(crate) fn slot_of_owner(&self, owner: u64) -> u32 {
        self.slot_of_bytes(&owner.to_be_bytes())
    }

    /// The one shard of all these owners; `None` if they are in several.
    pub(crate) fn shard_of_all(&self, owners: impl IntoIterator<Item = u64>) -> Option<u32> {
        let mut shards = owners.into_iter().map(|owner| self.shard_of_owner(owner));
        let first = shards.next().unwrap_or(self.fallback);
        shards.all(|shard| shard == first).then_some(first)
    }

    /// A handle is routed to the directory's slot, whose nodes resolve it.
    pub(crate) fn shard_of_handle(&self, handle: &str) -> u32 {
        self.shard_of_bytes(handle.as_bytes())
    }

    /// Any shard for whoever is not named (a token's user): the node asked passes the call on.
    pub(crate) fn shard_of_user(&self, user: Option<&UserRef>) -> u32 {
        match user.and_then(|user| user.user.as_ref()) {
            Some(user_ref::User::Id(id)) => self.shard_of_owner(*id),
            Some(user_ref::User::Handle(handle)) => self.shard_of_handle(handle),
            None => self.fallback,
        }
    }

    fn shard_of_bytes(&self, bytes: &[u8]) -> u32 {
        if self.shards.is_empty() {
            return self.fallback;
        }
        let slot = self.slot_of_bytes(bytes) as usize;
        self.shards.get(slot).map_or(0, |shard| *shard)
    }

    fn slot_of_bytes(&self, bytes: &[u8]) -> u32 {
        let slots = self.shards.len().max(1) as u64;
        // There are at most 65,536.
        u32::try_from(xxh3_64(bytes) % slots).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use mailbox_api::v1::{ShardPlacement, SlotSpan};

    use super::*;

    fn placement(shard: u32, first: u32, last: u32) -> ShardPlacement {
        let slots = vec![SlotSpan { first, last }];
        ShardPlacement {
            shard,
            slots,
            ..ShardPlacement::default()
        }
    }

    #[test]
    fn an_owner_goes_to_the_shard_of_its_slot() {
        let response = ShardMapResponse {
            slot_count: 64,
            shards: vec![placement(3, 0, 31), placement(7, 32, 63)],
            ..ShardMapResponse::default()
        };
        let map = ShardMap::new(&response);
        for owner in 0..1000_u64 {
            let slot = xxh3_64(&owner.to_be_bytes()) % 64;
            assert_eq!(map.shard_of_owner(owner), if slot < 32 { 3 } else { 7 });
        }
        assert_eq!(map.shard_of_user(None), 3);
    }

    #[test]
    fn a_span_beyond_the_slots_is_cut() {
        let response = ShardMapResponse {
            slot_count: 4,
            shards: vec![placement(1, 0, u32::MAX)],
            ..ShardMapResponse::default()
        };
        assert_eq!(ShardMap::new(&response).shard_of_owner(9), 1);
    }

    #[test]
    fn without_a_map_everything_goes_to_shard_zero() {
        assert_eq!(ShardMap::default().shard_of_owner(5), 0);
    }
}
