//! Damaged files and full disks under real `mailboxd` processes: nothing acked is lost, nothing wrong
//! is served, and whoever must stop says why.

#![allow(
    clippy::unwrap_used,
    reason = "clippy allows it in test functions only, not beside them"
)]

#[path = "../binary/mod.rs"]
mod binary;
mod damage;
mod damage_in_apply;
mod disk_full;
mod load;
mod small_disk;
