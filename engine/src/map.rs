//! The only hash map of the engine. It cannot be walked, so that the order of its places, which
//! differs from node to node, never gets into the state. Whatever is to be walked is kept in an
//! ordered map, or in a list beside this one.

// The one place where they are allowed: neither order nor seed gets out of this file.
#![allow(clippy::disallowed_types)]

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// A hash map without iteration.
pub(crate) struct Map<K, V>(HashMap<K, V, Seeded>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Map<K, V> {
        Map(HashMap::default())
    }
}

impl<K: Hash + Eq, V> Map<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)
    }

    /// A hash of anything by this map's seed.
    pub(crate) fn hash_of(&self, value: &impl Hash) -> u64 {
        self.0.hasher().hash_one(value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }
}

/// Makes hashers of one map. The seed keeps clients, who choose some of the keys, from choosing
/// ones that collide; it differs from run to run, which nobody can see.
struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Seeded {
        Seeded(RandomState::new().build_hasher().finish())
    }
}

impl BuildHasher for Seeded {
    type Hasher = Fold;

    fn build_hasher(&self) -> Fold {
        Fold { state: self.0 }
    }
}

/// Folds eight bytes at a time by a widening multiplication: keys here are a few numbers, for
/// which a hash of byte strings takes several times as long.
struct Fold {
    state: u64,
}

const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
const START: u64 = 0xD6E8_FEB8_6659_FD93;

fn fold(a: u64, b: u64) -> u64 {
    let [high, low] = split(u128::from(a) * u128::from(b));
    high ^ low
}

fn split(wide: u128) -> [u64; 2] {
    let half = |part: u128| u64::try_from(part & u128::from(u64::MAX)).expect("64 bits");
    [half(wide >> 64), half(wide)]
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        fold(self.state ^ START, ODD)
    }

    fn write(&mut self, bytes: &[u8]) {
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            self.write_u64(u64::from_be_bytes(*chunk));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            last[7] = u8::try_from(rest.len()).expect("below 8");
            self.write_u64(u64::from_be_bytes(last));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.state = fold(self.state ^ number ^ START, ODD).rotate_left(23);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(u64::try_from(number).expect("a usize fits"));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn finds_what_was_put_in() {
        let mut map = Map::default();
        for number in 0..1000_u64 {
            assert_eq!(map.insert((number, [7_u8; 16]), number), None);
        }
        assert_eq!(map.insert((3, [7; 16]), 33), Some(3));
        assert_eq!(map.get(&(3, [7; 16])), Some(&33));
        assert_eq!(map.get(&(999, [7; 16])), Some(&999));
        assert_eq!(map.get(&(3, [8; 16])), None);
    }

    #[test]
    fn close_keys_spread_over_low_and_high_bits() {
        let seeded = Seeded(0x1234_5678_9ABC_DEF0);
        for shift in [0, 16, 32] {
            let hashes: Vec<u64> = (0..4096_u64)
                .map(|number| seeded.hash_one((1_u8, number << shift)))
                .collect();
            let low: BTreeSet<u64> = hashes.iter().map(|hash| hash & 0xFFF).collect();
            let high: BTreeSet<u64> = hashes.iter().map(|hash| hash >> 52).collect();
            // 4096 balls into 4096 bins fill some 2589 of them.
            assert!(low.len() > 2400, "{shift}: {}", low.len());
            assert!(high.len() > 2400, "{shift}: {}", high.len());
        }
    }
}
