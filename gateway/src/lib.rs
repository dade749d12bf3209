//! The stateless connection tier: WebSocket and HTTP listeners, sessions, dispatch.
