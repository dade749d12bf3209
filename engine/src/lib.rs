//! Timelines, tables and procedures of the mailbox database: synchronous and deterministic.
