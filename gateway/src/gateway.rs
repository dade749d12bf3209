//! A running gateway.

use std::net::SocketAddr;
use std::time::Duration;

use crate::{Error, GatewayOptions};

/// A running gateway. Dropping it stops it at once; [`Gateway::shutdown`] drains it.
#[derive(Debug)]
pub struct Gateway {
    local_addr: SocketAddr,
}

impl Gateway {
    /// Binds and begins to serve.
    pub async fn start(_options: GatewayOptions) -> Result<Self, Error> {
        Err(Error::Listener(std::io::Error::other("not built yet")))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        0
    }

    /// Stops accepting, tells clients to go away, waits for them and for unanswered requests no
    /// longer than `deadline`, closes what is left.
    pub async fn shutdown(self, _deadline: Duration) {}
}
