//! The store client of gateways and tools: routing, batching and retry.
