//! Lanes between shards: each rule by name, and a relay that does everything a relay must not.

// Helpers of tests are not seen as tests.
#![allow(clippy::unwrap_used)]

#[path = "lanes/checks.rs"]
mod checks;
#[path = "lanes/cluster.rs"]
mod cluster;
#[path = "lanes/dead_letters.rs"]
mod dead_letters;
#[path = "lanes/hostile.rs"]
mod hostile;
#[path = "lanes/moves.rs"]
mod moves;
#[path = "lanes/rules.rs"]
mod rules;
#[path = "lanes/splits.rs"]
mod splits;
