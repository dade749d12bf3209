//! Where a node lives.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// An address, and if it is to have them a network, a disk and an environment of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Where the node listens and others find it.
    pub ip: IpAddr,
    /// The file of its network namespace, as `ip netns` keeps them; to enter it takes root and `nsenter`. `None`: the
    /// network of this process.
    pub network: Option<PathBuf>,
    /// Its data directory. `None`: below the cluster's.
    pub data: Option<PathBuf>,
    /// Variables for the server's processes, until [`crate::Node::set_environment`] replaces them.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for Host {
    /// Loopback, and nothing of its own.
    fn default() -> Self {
        Self {
            ip: Ipv4Addr::LOCALHOST.into(),
            network: None,
            data: None,
            environment: Vec::new(),
        }
    }
}

impl Host {
    pub(crate) fn address(&self, port: u16) -> String {
        SocketAddr::new(self.ip, port).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_host() {
        assert_eq!(Host::default().address(7), "127.0.0.1:7");
        let host = Host {
            ip: "198.18.0.2".parse().unwrap(),
            ..Host::default()
        };
        assert_eq!(host.address(7), "198.18.0.2:7");
    }
}
