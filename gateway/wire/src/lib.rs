//! Client frames, protobuf and JSON; no I/O.
