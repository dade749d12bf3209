//! One connection to PostgreSQL, one transaction at a time.

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::OwnedWriteHalf;

use super::seq_of;
use super::wire::{
    error_text, first_column, put_parse, put_query, put_run, put_startup, put_sync, take_answer,
};
use crate::bench::peer::message::Message;
use crate::bench::peer::wire::{self, Incoming};

/// The prepared statement.
const SEND: &str = "send";
/// Object ids of uuid, bigint and bytea, which no release changes.
const SEND_TYPES: [i32; 4] = [2950, 20, 20, 17];

pub(super) struct Connection {
    incoming: Incoming,
    writer: OwnedWriteHalf,
    outgoing: BytesMut,
    /// Whether the last exchange was whole: then the next answer belongs to the next one.
    is_usable: bool,
}

impl Connection {
    pub(super) async fn open(port: u16, user: &str, database: &str) -> anyhow::Result<Self> {
        let (incoming, writer) = wire::connect(port).await?;
        let mut connection = Self {
            incoming,
            writer,
            outgoing: BytesMut::new(),
            is_usable: false,
        };
        put_startup(&mut connection.outgoing, user, database);
        connection.exchange().await?;
        Ok(connection)
    }

    pub(super) fn is_usable(&self) -> bool {
        self.is_usable
    }

    pub(super) async fn prepare_send(&mut self) -> anyhow::Result<()> {
        let statement = "SELECT send($1, $2, $3, $4)";
        put_parse(&mut self.outgoing, SEND, statement, &SEND_TYPES);
        put_sync(&mut self.outgoing);
        self.exchange().await.map(drop)
    }

    /// The message's seq in the sender's mailbox, 0 to a repeat.
    pub(super) async fn send(&mut self, message: &Message) -> anyhow::Result<i64> {
        let parameters: [&[u8]; 4] = [
            message.id.as_bytes(),
            &message.sender.to_be_bytes(),
            &message.recipient.to_be_bytes(),
            &message.body,
        ];
        put_run(&mut self.outgoing, SEND, &parameters);
        put_sync(&mut self.outgoing);
        let seq = self.exchange().await?;
        seq_of(&seq.context("PostgreSQL acks nothing")?)
    }

    /// Runs statements that answer nothing.
    pub(super) async fn statements(&mut self, statements: &str) -> anyhow::Result<()> {
        put_query(&mut self.outgoing, statements);
        self.exchange().await.map(drop)
    }

    /// Runs a statement that answers one value.
    pub(super) async fn text(&mut self, statement: &str) -> anyhow::Result<String> {
        put_query(&mut self.outgoing, statement);
        let column = self.exchange().await?;
        let column = column.with_context(|| format!("`{statement}` answers nothing"))?;
        Ok(String::from_utf8_lossy(&column).into_owned())
    }

    /// Writes what is to go out and reads until the server is ready again; the first column of the last row.
    async fn exchange(&mut self) -> anyhow::Result<Option<Bytes>> {
        self.is_usable = false;
        let written = self.writer.write_all(&self.outgoing).await;
        self.outgoing.clear();
        written.context("write to PostgreSQL")?;
        let (mut column, mut refusal) = (None, None);
        loop {
            let answer = match self.incoming.next(take_answer).await {
                Ok(answer) => answer,
                // Some errors end the connection.
                Err(end) => return Err(end.context(refused(refusal.as_deref()))),
            };
            match answer.kind {
                b'D' => column = Some(first_column(&answer.body)?),
                b'E' => refusal = Some(error_text(&answer.body)),
                b'R' => match answer.body.clone().try_get_i32() {
                    Ok(0) => {}
                    _ => bail!("PostgreSQL asks for a password"),
                },
                b'Z' => break,
                // Notices, settings, completions.
                _ => {}
            }
        }
        self.is_usable = true;
        match refusal {
            Some(_) => bail!(refused(refusal.as_deref())),
            None => Ok(column),
        }
    }
}

fn refused(refusal: Option<&str>) -> String {
    match refusal {
        Some(refusal) => format!("PostgreSQL refuses: {refusal}"),
        None => "PostgreSQL answers nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::BufMut as _;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A PostgreSQL that numbers the sends and refuses the second one.
    async fn serve(stream: TcpStream, sends: Arc<AtomicU64>) {
        let (reader, mut writer) = stream.into_split();
        let mut incoming = Incoming::new(reader);
        // The first words have no kind, only a length.
        let startup = incoming.next(|buffer| {
            let whole = buffer.len() >= 4 && buffer.len() == usize::from(buffer[3]);
            Ok(whole.then(|| buffer.split()))
        });
        let startup = startup.await.unwrap();
        assert!(
            startup.ends_with(b"user\0me\0database\0db\0\0"),
            "{startup:?}"
        );
        let hello = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x08a\0b\0Z\0\0\0\x05I";
        writer.write_all(hello).await.unwrap();
        while let Ok(message) = incoming.next(take_answer).await {
            let mut out = BytesMut::new();
            match message.kind {
                b'E' if sends.fetch_add(1, Ordering::Relaxed) == 1 => {
                    out.put_slice(b"E\0\0\0\x10C40P01\0Mno\0\0");
                }
                b'E' => {
                    out.put_slice(b"2\0\0\0\x04D\0\0\0\x12\0\x01\0\0\0\x08");
                    out.put_u64(sends.load(Ordering::Relaxed));
                    out.put_slice(b"C\0\0\0\x04");
                }
                b'S' => out.put_slice(b"Z\0\0\0\x05I"),
                _ => continue,
            }
            writer.write_all(&out).await.unwrap();
        }
    }

    #[tokio::test]
    async fn sends_are_answered_and_a_refusal_spoils_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sends = Arc::new(AtomicU64::new(0));
        let server = Arc::clone(&sends);
        tokio::spawn(async move { serve(listener.accept().await.unwrap().0, server).await });
        let mut connection = Connection::open(port, "me", "db").await.unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut message = || Message::draw(2, 100, &mut rng);
        connection.prepare_send().await.unwrap();
        assert_eq!(connection.send(&message()).await.unwrap(), 1);
        let error = connection.send(&message()).await.unwrap_err().to_string();
        assert!(error.contains("no (40P01)"), "{error}");
        assert!(connection.is_usable());
        assert_eq!(connection.send(&message()).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_connection_that_ends_is_not_usable() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // It is read first: what is unread at its end resets a connection.
            let mut startup = [0; 29];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut startup)
                .await
                .unwrap();
            let full = b"E\0\0\0\x12C53300\0Mfull\0\0";
            stream.write_all(full).await.unwrap();
        });
        let error = Connection::open(port, "me", "db").await.err().unwrap();
        assert!(error.to_string().contains("full (53300)"), "{error:#}");
    }
}
