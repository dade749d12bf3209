//! The network: turmoil's, behind the product's seam.

use std::io;
use std::net::SocketAddr;

use mailbox_cork::{Accept, Duplex, Network, Opening};
use turmoil::net::{TcpListener, TcpStream};

/// Delivers between the hosts of the simulation that runs on this thread.
pub(super) struct Turmoil;

impl Network for Turmoil {
    fn connect(&self, to: String) -> Opening<'static, Box<dyn Duplex>> {
        Box::pin(async move {
            let socket = TcpStream::connect(to).await?;
            Ok(Box::new(socket) as Box<dyn Duplex>)
        })
    }

    fn listen(&self, at: String) -> Opening<'static, Box<dyn Accept>> {
        Box::pin(async move {
            let listener = TcpListener::bind(at).await?;
            Ok(Box::new(Listening(listener)) as Box<dyn Accept>)
        })
    }
}

struct Listening(TcpListener);

impl Accept for Listening {
    fn accept(&self) -> Opening<'_, Box<dyn Duplex>> {
        Box::pin(async move {
            let (socket, _) = self.0.accept().await?;
            Ok(Box::new(socket) as Box<dyn Duplex>)
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
