//! One connection to a NATS server that many sends share: what is published goes out together, and each answer finds
//! whoever waits for it.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::wire::{Frame, put_publish, take_frame};
use crate::bench::peer::wire::{self, Incoming};

/// Most bytes that wait to be written; a send beyond them fails.
const OUTGOING_BYTES_MAX: usize = 16 << 20;
/// Most answers that are waited for.
const WAITING_MAX: usize = 65_536;

/// What a server says that it is.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Info {
    pub(super) version: String,
    pub(super) server_name: String,
}

/// Dropped: the connection is closed.
pub(super) struct Connection {
    pub(super) info: Info,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Shared {
    /// The begin of all reply subjects, its last dot included.
    inbox: String,
    state: Mutex<State>,
    /// Something is to be written.
    wake: Notify,
}

#[derive(Default)]
struct State {
    outgoing: BytesMut,
    waiting: HashMap<u64, oneshot::Sender<Bytes>>,
    next: u64,
    /// Why the connection is of no use any more.
    broken: Option<String>,
}

/// The answer to come to what was published.
pub(super) struct Pending {
    answer: oneshot::Receiver<Bytes>,
    shared: Arc<Shared>,
}

impl Pending {
    /// # Errors
    /// The connection broke.
    pub(super) async fn answer(self) -> anyhow::Result<Bytes> {
        let answer = self.answer.await.ok();
        answer.with_context(|| {
            let broken = self.shared.state.lock().broken.clone();
            broken.unwrap_or_else(|| "the connection is closed".to_owned())
        })
    }
}

impl Connection {
    pub(super) async fn open(port: u16) -> anyhow::Result<Self> {
        let (mut incoming, mut writer) = wire::connect(port).await?;
        let Frame::Info(json) = incoming.next(take_frame).await? else {
            bail!("127.0.0.1:{port} does not speak as NATS does");
        };
        let info = serde_json::from_slice(&json).context("read what NATS says that it is")?;
        let inbox = format!("_INBOX.{}.", uuid::Uuid::now_v7().simple());
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\
             \"lang\":\"rust\",\"version\":\"0\",\"protocol\":1}}\r\nSUB {inbox}* 1\r\nPING\r\n"
        );
        writer.write_all(hello.as_bytes()).await?;
        loop {
            match incoming.next(take_frame).await? {
                Frame::Pong => break,
                Frame::Error(error) => bail!("NATS refuses: {error}"),
                Frame::Ping => writer.write_all(b"PONG\r\n").await?,
                Frame::Info(_) | Frame::Message { .. } | Frame::Ok => {}
            }
        }
        let shared = Arc::new(Shared {
            inbox,
            state: Mutex::default(),
            wake: Notify::new(),
        });
        let tasks = [
            tokio::spawn(write(Arc::clone(&shared), writer)),
            tokio::spawn(read(Arc::clone(&shared), incoming)),
        ];
        Ok(Self {
            info,
            shared,
            tasks,
        })
    }

    /// Publishes a message that nobody answers.
    ///
    /// # Errors
    /// The connection broke, or too much waits to be written.
    pub(super) fn publish(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> anyhow::Result<()> {
        let mut state = self.shared.writable()?;
        put_publish(&mut state.outgoing, subject, None, headers, payload);
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Publishes a message that is answered.
    ///
    /// # Errors
    /// The connection broke, or too much waits.
    pub(super) fn request(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> anyhow::Result<Pending> {
        let mut state = self.shared.writable()?;
        ensure!(
            state.waiting.len() < WAITING_MAX,
            "{WAITING_MAX} answers are waited for on one connection, that is the most"
        );
        let (waiting, answer) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, waiting);
        let reply = format!("{}{number}", self.shared.inbox);
        put_publish(&mut state.outgoing, subject, Some(&reply), headers, payload);
        drop(state);
        self.shared.wake.notify_one();
        Ok(Pending {
            answer,
            shared: Arc::clone(&self.shared),
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // Whoever still waits would wait for ever.
        let closed = anyhow::anyhow!("the connection was closed");
        self.shared.break_off(&closed);
    }
}

impl Shared {
    fn writable(&self) -> anyhow::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.state.lock();
        if let Some(broken) = &state.broken {
            bail!("{broken}");
        }
        ensure!(
            state.outgoing.len() < OUTGOING_BYTES_MAX,
            "{OUTGOING_BYTES_MAX} bytes wait to be written to NATS, that is the most"
        );
        Ok(state)
    }

    /// Hands an answer to whoever waits for it; one that nobody waits for is dropped.
    fn answer(&self, subject: &[u8], payload: Bytes) {
        let number = subject.strip_prefix(self.inbox.as_bytes());
        let number = number.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let waiting = number.and_then(|number: u64| self.state.lock().waiting.remove(&number));
        // Who waited may have gone.
        let _ = waiting.map(|waiting| waiting.send(payload));
    }

    fn break_off(&self, error: &anyhow::Error) {
        let mut state = self.state.lock();
        state.broken.get_or_insert(format!("{error:#}"));
        state.waiting.clear();
    }
}

async fn write(shared: Arc<Shared>, mut writer: OwnedWriteHalf) {
    let mut batch = BytesMut::new();
    loop {
        shared.wake.notified().await;
        std::mem::swap(&mut shared.state.lock().outgoing, &mut batch);
        if let Err(error) = writer.write_all(&batch).await {
            shared.break_off(&anyhow::Error::new(error).context("write to NATS"));
            return;
        }
        batch.clear();
    }
}

async fn read(shared: Arc<Shared>, mut incoming: Incoming) {
    loop {
        let error = match incoming.next(take_frame).await {
            Ok(Frame::Message { subject, payload }) => {
                shared.answer(&subject, payload);
                continue;
            }
            Ok(Frame::Ping) => {
                shared.state.lock().outgoing.put_slice(b"PONG\r\n");
                shared.wake.notify_one();
                continue;
            }
            Ok(Frame::Info(_) | Frame::Pong | Frame::Ok) => continue,
            Ok(Frame::Error(error)) => anyhow::anyhow!("NATS refuses: {error}"),
            Err(error) => error,
        };
        shared.break_off(&error);
        return;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;

    /// What a fake server was sent, with the headers and the payload as one text.
    #[derive(Debug)]
    pub(in crate::bench::peer::nats) struct Published {
        pub(in crate::bench::peer::nats) subject: String,
        pub(in crate::bench::peer::nats) reply: Option<String>,
        pub(in crate::bench::peer::nats) content: String,
    }

    fn take_published(buffer: &mut BytesMut) -> anyhow::Result<Option<Published>> {
        let Some(end) = wire::line_end(buffer) else {
            return Ok(None);
        };
        let line = String::from_utf8(buffer[..end].to_vec())?;
        let words: Vec<&str> = line.split(' ').collect();
        let (reply, total) = match words.as_slice() {
            ["PUB", _, total] | ["HPUB", _, _, total] => (None, total),
            ["PUB", _, reply, total] | ["HPUB", _, reply, _, total] => (Some(reply), total),
            // Of the greeting.
            _ => {
                let _ = buffer.split_to(end + 2);
                return take_published(buffer);
            }
        };
        let (begin, total) = (end + 2, total.parse::<usize>()?);
        if buffer.len() < begin + total + 2 {
            return Ok(None);
        }
        let content = String::from_utf8(buffer[begin..begin + total].to_vec())?;
        let published = Published {
            subject: words[1].to_owned(),
            reply: reply.map(|reply| (*reply).to_owned()),
            content,
        };
        let _ = buffer.split_to(begin + total + 2);
        Ok(Some(published))
    }

    /// A server of one connection that answers whatever `answers` makes of what was published; a missing answer ends
    /// the connection.
    pub(in crate::bench::peer::nats) async fn serve(
        mut answers: impl FnMut(Published) -> Option<Vec<(String, String)>> + Send + 'static,
    ) -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async move {
            let (reader, mut writer) = listener.accept().await.unwrap().0.into_split();
            let mut incoming = Incoming::new(reader);
            let info = b"INFO {\"version\":\"9.9\",\"server_name\":\"n1\",\"x\":1}\r\nPING\r\n";
            writer.write_all(info).await.unwrap();
            let greeted = incoming.next(|buffer| {
                let greeting = buffer.windows(6).position(|word| word == b"PING\r\n");
                Ok(greeting.map(|begin| buffer.split_to(begin + 6)))
            });
            let greeting = greeted.await.unwrap();
            assert!(greeting.starts_with(b"CONNECT {"), "{greeting:?}");
            writer.write_all(b"PONG\r\n").await.unwrap();
            while let Ok(published) = incoming.next(take_published).await {
                let Some(answers) = answers(published) else {
                    return;
                };
                for (subject, payload) in answers {
                    let length = payload.len();
                    let message = format!("MSG {subject} 1 {length}\r\n{payload}\r\n");
                    writer.write_all(message.as_bytes()).await.unwrap();
                }
            }
        };
        tokio::spawn(serve);
        Connection::open(port).await.unwrap()
    }

    #[tokio::test]
    async fn answers_find_their_requests_in_any_order() {
        let mut kept = Vec::new();
        let connection = serve(move |published| {
            kept.push((published.reply.unwrap(), published.content));
            // None before the last one, and then the last one first.
            let all = kept.len() == 300;
            Some(if all {
                kept.drain(..).rev().collect()
            } else {
                Vec::new()
            })
        });
        let connection = connection.await;
        assert_eq!(connection.info.version, "9.9");
        let request = |number: usize| {
            let payload = number.to_string();
            connection.request("s", &[], payload.as_bytes()).unwrap()
        };
        let pending: Vec<Pending> = (0..300).map(request).collect();
        for (number, pending) in pending.into_iter().enumerate() {
            assert_eq!(pending.answer().await.unwrap(), number.to_string());
        }
        assert!(connection.shared.state.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_told_when_the_connection_breaks() {
        let (seen, mut published) = mpsc::unbounded_channel();
        let connection = serve(move |published| {
            seen.send(published.subject).unwrap();
            None
        });
        let connection = connection.await;
        connection.publish("s", &[("A", "b")], b"").unwrap();
        assert_eq!(published.recv().await.unwrap(), "s");
        let answer = match connection.request("t", &[], b"") {
            Ok(pending) => pending.answer().await,
            Err(error) => Err(error),
        };
        let error = format!("{:#}", answer.unwrap_err());
        assert!(
            ["closed", "reset", "write to NATS", "read from"]
                .iter()
                .any(|part| error.contains(part)),
            "{error}"
        );
        assert!(connection.request("t", &[], b"").is_err());
    }
}
