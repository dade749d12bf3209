//! Redis: one node, one Lua script a send, `appendfsync always`.
//!
//! `SET NX` of the send's id, `XADD` to both streams. The script is atomic, and Redis answers after the file that
//! holds its commands is synced. Nothing is replicated.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use bytes::BytesMut;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::OwnedWriteHalf;

use super::driver::{Driver, Pool};
use super::message::Message;
use super::resp::{Reply, put_command, take_reply};
use super::servers::{Abort, Launch, Servers, find, free_ports};
use super::wire::{self, Incoming};
use super::{FIX, Started};

/// The send's id comes first: whoever repeats one finds it and changes nothing.
const SCRIPT: &str = "
if not redis.call('SET', KEYS[1], '', 'NX') then return false end
local id = redis.call('XADD', KEYS[2], '*', 'from', ARGV[1], 'body', ARGV[2])
redis.call('XADD', KEYS[3], '*', 'from', ARGV[1], 'body', ARGV[2])
return id";

/// Starts the server, and loads the script.
pub(super) async fn start(in_flight: u32, servers: &mut Servers) -> anyhow::Result<Started> {
    let program = find("redis-server", None, &[], FIX)?;
    let [port] = free_ports()?;
    let folder = servers.folder("redis", None)?;
    let config = folder.join("redis.conf");
    std::fs::write(&config, config_of(&folder.display().to_string(), port))
        .with_context(|| format!("write {}", config.display()))?;
    servers.start(Launch {
        name: "redis-server".into(),
        program,
        arguments: vec![config.into()],
        account: None,
        stop: Signal::TERM,
        abort: Abort::Kill,
    })?;
    let ready = servers.until_ready("redis-server answers", async || {
        let mut connection = Connection::open(port).await?;
        connection.expect_simple(&[b"PING"], "PONG").await?;
        Ok(connection)
    });
    let mut connection = ready.await?;
    let version = connection.version().await?;
    connection.require_always().await?;
    let load: [&[u8]; 3] = [b"SCRIPT", b"LOAD", SCRIPT.as_bytes()];
    let Reply::Bulk(Some(script)) = connection.call(&load).await? else {
        bail!("Redis does not say what the loaded script is called");
    };
    let mut connections = vec![connection];
    for _ in 1..in_flight {
        connections.push(Connection::open(port).await?);
    }
    let client = Client {
        script,
        pool: Arc::new(Pool::new(connections)),
    };
    Ok(Started {
        driver: Driver::Redis(client),
        nodes: 1,
        version,
    })
}

/// The log of commands is synced before each answer and never written anew: that would take from Redis what it is
/// measured for. Quotes keep a path with blanks together.
fn config_of(folder: &str, port: u16) -> String {
    format!(
        "bind 127.0.0.1\nport {port}\ndir \"{folder}\"\ndaemonize no\nprotected-mode no\n\
         appendonly yes\nappendfsync always\nauto-aof-rewrite-percentage 0\nsave \"\"\n\
         maxclients 4096\nmaxmemory-policy noeviction\n"
    )
}

/// Redis, on one connection for each send on the way.
#[derive(Clone)]
pub(super) struct Client {
    /// The script's name: a hash of it.
    script: bytes::Bytes,
    pool: Arc<Pool<Connection>>,
}

impl Client {
    pub(super) async fn send(&self, message: &Message) -> anyhow::Result<()> {
        let id = format!("d:{}", message.id.simple());
        let sender = message.sender.to_string();
        let (own, other) = (stream(message.sender), stream(message.recipient));
        let words: [&[u8]; 8] = [
            b"EVALSHA",
            &self.script,
            b"3",
            id.as_bytes(),
            own.as_bytes(),
            other.as_bytes(),
            sender.as_bytes(),
            &message.body,
        ];
        match self.call(&words).await? {
            // Nothing: it was a repeat.
            Reply::Bulk(_) => Ok(()),
            other => bail!("Redis answers a send with {other:?}"),
        }
    }

    pub(super) async fn copies(&self, owners: [u64; 2]) -> anyhow::Result<u64> {
        let mut copies = 0;
        for owner in owners {
            let stream = stream(owner);
            let Reply::Integer(count) = self.call(&[b"XLEN", stream.as_bytes()]).await? else {
                bail!("Redis does not count a stream");
            };
            copies += u64::try_from(count)?;
        }
        Ok(copies)
    }

    async fn call(&self, words: &[&[u8]]) -> anyhow::Result<Reply> {
        let mut connection = self.pool.take()?;
        let reply = connection.exchange(words).await?;
        // Only now: after half an exchange the next reply would be another one's.
        self.pool.give_back(connection);
        refuse(reply)
    }
}

fn stream(owner: u64) -> String {
    format!("m:{owner}")
}

fn refuse(reply: Reply) -> anyhow::Result<Reply> {
    match reply {
        Reply::Error(error) => bail!("Redis refuses: {error}"),
        reply => Ok(reply),
    }
}

struct Connection {
    incoming: Incoming,
    writer: OwnedWriteHalf,
    outgoing: BytesMut,
}

impl Connection {
    async fn open(port: u16) -> anyhow::Result<Self> {
        let (incoming, writer) = wire::connect(port).await?;
        Ok(Self {
            incoming,
            writer,
            outgoing: BytesMut::new(),
        })
    }

    async fn exchange(&mut self, words: &[&[u8]]) -> anyhow::Result<Reply> {
        self.outgoing.clear();
        put_command(&mut self.outgoing, words);
        let written = self.writer.write_all(&self.outgoing).await;
        written.context("write to Redis")?;
        self.incoming.next(take_reply).await
    }

    async fn call(&mut self, words: &[&[u8]]) -> anyhow::Result<Reply> {
        refuse(self.exchange(words).await?)
    }

    async fn expect_simple(&mut self, words: &[&[u8]], wanted: &str) -> anyhow::Result<()> {
        let reply = self.call(words).await?;
        ensure!(
            reply == Reply::Simple(wanted.to_owned()),
            "Redis answers {reply:?}, not {wanted}"
        );
        Ok(())
    }

    async fn version(&mut self) -> anyhow::Result<String> {
        let Reply::Bulk(Some(text)) = self.call(&[b"INFO", b"server"]).await? else {
            bail!("Redis does not say what it is");
        };
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let version = lines.find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.unwrap_or("unknown").to_owned())
    }

    /// # Errors
    /// It does not sync before it answers.
    async fn require_always(&mut self) -> anyhow::Result<()> {
        let reply = self.call(&[b"CONFIG", b"GET", b"appendfsync"]).await?;
        let Reply::Array(pair) = &reply else {
            bail!("Redis does not tell its configuration");
        };
        let always = Reply::Bulk(Some(bytes::Bytes::from_static(b"always")));
        ensure!(
            pair.last() == Some(&always),
            "Redis does not run with `appendfsync always`: {reply:?}"
        );
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{HashMap, HashSet};

    use bytes::Bytes;
    use parking_lot::Mutex;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// A Redis that knows the commands of a send, without Lua: it does what the script says.
    #[derive(Default)]
    pub(in crate::bench::peer) struct Fake {
        pub(in crate::bench::peer) sent: Mutex<HashSet<Vec<u8>>>,
        streams: Mutex<HashMap<Vec<u8>, i64>>,
        /// Sends that it takes; it refuses what comes later.
        takes: Option<usize>,
    }

    impl Fake {
        pub(in crate::bench::peer) fn that_takes(sends: usize) -> Self {
            Self {
                takes: Some(sends),
                ..Self::default()
            }
        }

        /// A client of it, on so many connections.
        pub(in crate::bench::peer) async fn client(self: &Arc<Self>, connections: u32) -> Client {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let fake = Arc::clone(self);
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(Arc::clone(&fake).serve(stream));
                }
            });
            let mut opened = Vec::new();
            for _ in 0..connections {
                opened.push(Connection::open(port).await.unwrap());
            }
            Client {
                script: Bytes::from_static(b"abc"),
                pool: Arc::new(Pool::new(opened)),
            }
        }

        async fn serve(self: Arc<Self>, stream: TcpStream) {
            let (reader, mut writer) = stream.into_split();
            let mut incoming = Incoming::new(reader);
            while let Ok(Reply::Array(words)) = incoming.next(take_reply).await {
                let words = words.into_iter().map(|word| match word {
                    Reply::Bulk(Some(word)) => word.to_vec(),
                    other => panic!("{other:?} is no word"),
                });
                let answer = self.answer(&words.collect::<Vec<_>>());
                if writer.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }

        fn answer(&self, words: &[Vec<u8>]) -> String {
            match words[0].as_slice() {
                b"XLEN" => format!(":{}\r\n", self.streams.lock().get(&words[1]).unwrap_or(&0)),
                b"EVALSHA" => {
                    assert_eq!(
                        (words[1].as_slice(), words[2].as_slice()),
                        (&b"abc"[..], &b"3"[..])
                    );
                    let mut sent = self.sent.lock();
                    if self.takes.is_some_and(|takes| sent.len() >= takes) {
                        return "-OOM enough\r\n".to_owned();
                    }
                    if !sent.insert(words[3].clone()) {
                        return "$-1\r\n".to_owned();
                    }
                    for stream in &words[4..6] {
                        *self.streams.lock().entry(stream.clone()).or_default() += 1;
                    }
                    "$3\r\n1-1\r\n".to_owned()
                }
                other => format!("-ERR unknown {}\r\n", String::from_utf8_lossy(other)),
            }
        }
    }

    #[tokio::test]
    async fn a_send_and_its_repeat_leave_a_copy_in_each_mailbox() {
        let fake = Arc::new(Fake::default());
        let client = fake.client(1).await;
        let message = Message::draw(2, 100, &mut SmallRng::seed_from_u64(1));
        client.send(&message).await.unwrap();
        client.send(&message).await.unwrap();
        assert_eq!(client.copies([0, 1]).await.unwrap(), 2);
        assert_eq!(fake.sent.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_refusal_is_an_error_and_the_connection_is_kept() {
        let fake = Arc::new(Fake::that_takes(1));
        let client = fake.client(1).await;
        let mut rng = SmallRng::seed_from_u64(1);
        let mut message = || Message::draw(2, 100, &mut rng);
        client.send(&message()).await.unwrap();
        for _ in 0..3 {
            let error = client.send(&message()).await.unwrap_err().to_string();
            assert!(error.contains("enough"), "{error}");
        }
    }

    #[test]
    fn the_configuration_syncs_before_each_answer() {
        let config = config_of("/a b", 7000);
        for line in [
            "appendfsync always",
            "appendonly yes",
            "dir \"/a b\"",
            "port 7000",
        ] {
            assert!(config.lines().any(|found| found == line), "{line}");
        }
    }
}
