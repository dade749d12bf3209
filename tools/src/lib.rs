//! The operator's command line and the load generator.
