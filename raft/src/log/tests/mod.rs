//! Tests of the promises of the whole log.

mod suite;
