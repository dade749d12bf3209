//! Random shards, commands, frames and failures.
