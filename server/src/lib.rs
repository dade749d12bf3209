//! gRPC services, relay, placement and administration of a mailbox node.
