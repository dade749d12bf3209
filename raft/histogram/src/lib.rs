//! Histograms that keep nothing: what openraft asks for, in place of the crate that it names.
//!
//! openraft counts batch sizes in fifteen histograms of every replica, and nobody here ever reads them: they are
//! shown only with its feature `runtime-stats`, which is off. The real crate makes tables for all sixteen of its
//! scales at the first use, of which openraft takes one: some 25 MB of memory in every process, and some 30 KB in every
//! replica. With many shards on a node that is most of what they cost at rest.
//!
//! Only what openraft 0.10.0-alpha.37 calls is here; whoever moves to another one finds out by compiling.

use std::fmt;
use std::marker::PhantomData;

/// Counts nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram<T = ()>(PhantomData<T>);

impl<T> Histogram<T> {
    /// An empty one; it stays empty.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Forgets the value.
    pub fn record(&mut self, _value: u64) {}

    /// Forgets the values.
    pub fn record_n(&mut self, _value: u64, _count: u64) {}

    /// No samples.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats::default()
    }
}

/// What a histogram would show.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it, and nothing is ever in them")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not counted")
    }
}

/// Draws nothing.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart<T = ()>(PhantomData<T>);

impl<T> AsciiChart<T> {
    /// An empty one.
    pub fn new() -> Self {
        Self(PhantomData)
    }

    /// Forgets the histogram.
    #[must_use]
    pub fn add(self, _name: impl Into<String>, _histogram: Histogram<T>) -> Self {
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not counted")
    }
}
