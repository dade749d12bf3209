//! The fault harness: real processes, injected faults, recorded histories, checkers.
