//! NATS JetStream: three servers, one stream of three replicas in files, `sync_interval: always`.
//!
//! A mailbox is a subject of the stream, a send is a message to the sender's subject and one to the recipient's, each
//! with an id that the stream drops repeats by. They are published one by one, or as an atomic batch. An ack comes
//! after a majority has synced the message.

mod connection;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use super::driver::Driver;
use super::message::Message;
use super::servers::{Abort, Launch, Servers, find, free_ports};
use super::{FIX, Load, Started};
use connection::Connection;

const NODES: usize = 3;
/// Connections, all to the server that leads the stream: a client at another server costs a hop more.
const CONNECTIONS: usize = 4;
const STREAM: &str = "BOX";
/// For how long the stream remembers ids, in nanoseconds: as long as it does unless told otherwise.
const DUPLICATE_WINDOW_NS: u64 = 120_000_000_000;
/// Of the error that a batch gets whose ids the stream knows.
const CODE_REPEATED: u64 = 10_201;

/// How the two messages of a send are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Publish {
    /// Each by itself: one may be there without the other.
    Singly,
    /// Both or none.
    Batch,
}

/// Starts the servers and makes the stream.
pub(super) async fn start(
    load: &Load,
    publish: Publish,
    servers: &mut Servers,
) -> anyhow::Result<Started> {
    let fix = format!("{FIX}, or say --nats-server FILE");
    let program = find(
        "nats-server",
        load.nats_server.as_deref(),
        &go_places(),
        &fix,
    )?;
    let ports: [u16; 2 * NODES] = free_ports()?;
    let (clients, routes) = ports.split_at(NODES);
    for ((number, client), route) in (1..).zip(clients).zip(routes) {
        let name = format!("n{number}");
        let folder = servers.folder(&name, None)?;
        let config = folder.join("nats.conf");
        let store = folder.join("store");
        std::fs::write(&config, config_of(&name, *client, *route, routes, &store))
            .with_context(|| format!("write {}", config.display()))?;
        servers.start(Launch {
            name,
            program: program.clone(),
            arguments: vec!["--config".into(), config.into()],
            account: None,
            stop: Signal::TERM,
            abort: Abort::Kill,
        })?;
    }
    let ready = servers.until_ready("JetStream takes a stream of three replicas", async || {
        let connection = open_one(clients).await?;
        let _: Created = ask(&connection, "STREAM.CREATE", &stream_config()).await?;
        Ok(connection)
    });
    let connection = ready.await?;
    let leader = servers.until_ready("the stream's replicas are there", async || {
        let seen: Seen = ask(&connection, "STREAM.INFO", "").await?;
        seen.leader()
    });
    let leader = leader.await?;
    let (version, connections) = open_all(clients, &leader).await?;
    let client = Client {
        connections: connections.into(),
        publish,
    };
    Ok(Started {
        driver: Driver::Nats(client),
        nodes: NODES as u64,
        version,
    })
}

/// Where `go install` puts programs.
fn go_places() -> Vec<PathBuf> {
    let under = |variable: &str, below: &str| {
        let set = std::env::var_os(variable)?;
        Some(Path::new(&set).join(below))
    };
    let places = [
        under("GOBIN", ""),
        under("GOPATH", "bin"),
        under("HOME", "go/bin"),
    ];
    places.into_iter().flatten().collect()
}

fn config_of(name: &str, client: u16, route: u16, routes: &[u16], store: &Path) -> String {
    let routes = routes
        .iter()
        .map(|port| format!("\"nats://127.0.0.1:{port}\""));
    let routes = routes.collect::<Vec<_>>().join(", ");
    format!(
        "server_name: {name}\nlisten: \"127.0.0.1:{client}\"\n\
         jetstream {{ store_dir: \"{}\", sync_interval: always }}\n\
         cluster {{ name: peers, listen: \"127.0.0.1:{route}\", routes: [{routes}] }}\n",
        store.display()
    )
}

fn stream_config() -> String {
    let config = serde_json::json!({
        "name": STREAM,
        "subjects": [subject_of("*")],
        "retention": "limits",
        "storage": "file",
        "num_replicas": NODES,
        "max_msgs": -1,
        "max_bytes": -1,
        "discard": "old",
        "duplicate_window": DUPLICATE_WINDOW_NS,
        "allow_atomic": true,
    });
    config.to_string()
}

fn subject_of(owner: impl std::fmt::Display) -> String {
    format!("m.{owner}")
}

async fn open_one(ports: &[u16]) -> anyhow::Result<Connection> {
    let port = ports.first().context("there is no server")?;
    Connection::open(*port).await
}

/// Connections to the server of this name, and its version.
async fn open_all(ports: &[u16], name: &str) -> anyhow::Result<(String, Vec<Connection>)> {
    for port in ports {
        let first = Connection::open(*port).await?;
        if first.info.server_name != name {
            continue;
        }
        let version = first.info.version.clone();
        let mut connections = vec![first];
        while connections.len() < CONNECTIONS {
            connections.push(Connection::open(*port).await?);
        }
        return Ok((version, connections));
    }
    bail!("{name}, which leads the stream, is none of the servers")
}

/// Asks JetStream itself.
async fn ask<T: for<'a> Deserialize<'a>>(
    connection: &Connection,
    what: &str,
    request: &str,
) -> anyhow::Result<T> {
    let subject = format!("$JS.API.{what}.{STREAM}");
    let pending = connection.request(&subject, &[], request.as_bytes())?;
    let answer = pending.answer().await?;
    // Without a JetStream there is an answer of headers only.
    ensure!(!answer.is_empty(), "JetStream is not there yet");
    let refused: Acked = serde_json::from_slice(&answer).context("read what JetStream says")?;
    refused.check()?;
    serde_json::from_slice(&answer).context("read what JetStream says")
}

/// Any answer of JetStream, as far as it may be an error.
#[derive(Debug, Deserialize)]
struct Acked {
    error: Option<Refused>,
}

#[derive(Debug, Deserialize)]
struct Refused {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Acked {
    fn check(self) -> anyhow::Result<()> {
        match self.error {
            Some(refused) => bail!(
                "JetStream refuses: {} ({})",
                refused.description,
                refused.err_code
            ),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Created {}

/// The stream as its leader sees it.
#[derive(Debug, Deserialize)]
struct Seen {
    state: State,
    cluster: Option<Cluster>,
}

#[derive(Debug, Deserialize)]
struct State {
    messages: u64,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    leader: Option<String>,
    #[serde(default)]
    replicas: Vec<Replica>,
}

#[derive(Debug, Deserialize)]
struct Replica {
    #[serde(default)]
    current: bool,
}

impl Seen {
    /// The name of the server that leads, once all replicas are there.
    fn leader(self) -> anyhow::Result<String> {
        let cluster = self.cluster.context("the stream is not replicated")?;
        let there = cluster
            .replicas
            .iter()
            .filter(|replica| replica.current)
            .count();
        ensure!(
            there == NODES - 1,
            "{there} of {} followers are there",
            NODES - 1
        );
        cluster.leader.context("the stream has no leader")
    }
}

/// NATS, on a few connections that many sends share.
#[derive(Clone)]
pub(super) struct Client {
    connections: Arc<[Connection]>,
    publish: Publish,
}

impl Client {
    pub(super) async fn send(&self, message: &Message) -> anyhow::Result<()> {
        // The id of a send is random at its end.
        let number = message.id.as_u128() % self.connections.len().max(1) as u128;
        let connection = self.connections.get(usize::try_from(number)?);
        let connection = connection.context("there is no connection")?;
        match self.publish {
            Publish::Singly => singly(connection, message).await,
            Publish::Batch => batch(connection, message).await,
        }
    }

    /// Messages in the stream.
    pub(super) async fn copies(&self) -> anyhow::Result<u64> {
        let connection = self.connections.first().context("there is no connection")?;
        let seen: Seen = ask(connection, "STREAM.INFO", "").await?;
        Ok(seen.state.messages)
    }
}

async fn singly(connection: &Connection, message: &Message) -> anyhow::Result<()> {
    let id = message.id.simple().to_string();
    let publish = |owner: u64, copy: &str| {
        let id = format!("{id}{copy}");
        let headers = [("Nats-Msg-Id", id.as_str())];
        connection.request(&subject_of(owner), &headers, &message.body)
    };
    // Both are on their way before either is waited for. A repeat is acked like the first one.
    let sent = publish(message.sender, "s")?;
    let came = publish(message.recipient, "r")?;
    for pending in [sent, came] {
        acked(&pending.answer().await?)?;
    }
    Ok(())
}

async fn batch(connection: &Connection, message: &Message) -> anyhow::Result<()> {
    let id = message.id.simple().to_string();
    let (sent_id, came_id) = (format!("{id}s"), format!("{id}r"));
    // A batch has a name of its own: a repeat of the send is another batch.
    let name = uuid::Uuid::now_v7().simple().to_string();
    let first = [
        ("Nats-Batch-Id", name.as_str()),
        ("Nats-Batch-Sequence", "1"),
        ("Nats-Msg-Id", sent_id.as_str()),
    ];
    let last = [
        ("Nats-Batch-Id", name.as_str()),
        ("Nats-Batch-Sequence", "2"),
        ("Nats-Batch-Commit", "1"),
        ("Nats-Msg-Id", came_id.as_str()),
    ];
    connection.publish(&subject_of(message.sender), &first, &message.body)?;
    let pending = connection.request(&subject_of(message.recipient), &last, &message.body)?;
    match acked(&pending.answer().await?) {
        Err(error) if error.is::<Repeated>() => Ok(()),
        result => result,
    }
}

/// A batch whose ids the stream knows.
#[derive(Debug, PartialEq, Eq)]
struct Repeated;

impl std::fmt::Display for Repeated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the stream has these ids already")
    }
}

impl std::error::Error for Repeated {}

fn acked(answer: &[u8]) -> anyhow::Result<()> {
    ensure!(!answer.is_empty(), "no stream takes the message");
    let acked: Acked = serde_json::from_slice(answer).context("read an ack")?;
    match &acked.error {
        Some(refused) if refused.err_code == CODE_REPEATED => Err(Repeated.into()),
        Some(_) | None => acked.check(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use parking_lot::Mutex;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::connection::tests::{Published, serve};
    use super::*;

    fn header<'a>(published: &'a Published, name: &str) -> Option<&'a str> {
        let lines = published.content.split("\r\n");
        lines
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// A stream that drops repeats, and commits batches whole.
    #[derive(Default)]
    struct Stream {
        ids: HashSet<String>,
        batches: HashMap<String, Vec<(String, String)>>,
        subjects: Vec<String>,
    }

    impl Stream {
        fn take(&mut self, published: &Published) -> Option<String> {
            let id = header(published, "Nats-Msg-Id").unwrap().to_owned();
            let Some(batch) = header(published, "Nats-Batch-Id") else {
                if self.ids.insert(id) {
                    self.subjects.push(published.subject.clone());
                }
                return Some("{\"stream\":\"BOX\",\"seq\":1}".to_owned());
            };
            let members = self.batches.entry(batch.to_owned()).or_default();
            members.push((id, published.subject.clone()));
            assert_eq!(
                header(published, "Nats-Batch-Sequence").unwrap(),
                members.len().to_string()
            );
            header(published, "Nats-Batch-Commit")?;
            for (id, subject) in members.drain(..) {
                if !self.ids.insert(id) {
                    let refused =
                        "{\"error\":{\"code\":400,\"err_code\":10201,\"description\":\"x\"}}";
                    return Some(refused.to_owned());
                }
                self.subjects.push(subject);
            }
            Some("{\"stream\":\"BOX\",\"seq\":2,\"batch\":\"b\",\"count\":2}".to_owned())
        }
    }

    async fn client(publish: Publish, stream: &Arc<Mutex<Stream>>) -> Client {
        let stream = Arc::clone(stream);
        let connection = serve(move |published| {
            let answer = stream.lock().take(&published);
            Some(published.reply.zip(answer).into_iter().collect())
        });
        Client {
            connections: Arc::new([connection.await]),
            publish,
        }
    }

    #[tokio::test]
    async fn a_send_is_two_messages_and_its_repeat_none() {
        for publish in [Publish::Singly, Publish::Batch] {
            let stream = Arc::default();
            let client = client(publish, &stream).await;
            let mut message = Message::draw(2, 0, &mut SmallRng::seed_from_u64(1));
            (message.sender, message.recipient) = (4, 7);
            message.body = bytes::Bytes::from_static(b"hi");
            client.send(&message).await.unwrap();
            client.send(&message).await.unwrap();
            assert_eq!(stream.lock().subjects, ["m.4", "m.7"], "{publish:?}");
        }
    }

    #[test]
    fn what_is_not_acked_is_an_error() {
        acked(b"{\"stream\":\"BOX\",\"seq\":7,\"duplicate\":true}").unwrap();
        let refused =
            b"{\"error\":{\"code\":503,\"err_code\":10008,\"description\":\"no leader\"}}";
        let error = acked(refused).unwrap_err().to_string();
        assert!(error.contains("no leader (10008)"), "{error}");
        for bad in [&b""[..], b"{", b"7"] {
            assert!(acked(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_stream_is_led_once_all_replicas_are_there() {
        let seen = |json: &str| serde_json::from_str::<Seen>(json).unwrap().leader();
        let replicas = |second: bool| {
            format!(
                "{{\"state\":{{\"messages\":0}},\"cluster\":{{\"leader\":\"n2\",\"replicas\":[\
                 {{\"name\":\"n1\",\"current\":true}},{{\"name\":\"n3\",\"current\":{second}}}]}}}}"
            )
        };
        assert_eq!(seen(&replicas(true)).unwrap(), "n2");
        assert!(seen(&replicas(false)).is_err());
        assert!(seen("{\"state\":{\"messages\":0}}").is_err());
    }

    #[test]
    fn each_server_syncs_always_and_knows_all_routes() {
        let config = config_of("n2", 1, 2, &[2, 3], Path::new("/a b"));
        for part in [
            "server_name: n2",
            "listen: \"127.0.0.1:1\"",
            "store_dir: \"/a b\", sync_interval: always",
            "listen: \"127.0.0.1:2\"",
            "[\"nats://127.0.0.1:2\", \"nats://127.0.0.1:3\"]",
        ] {
            assert!(config.contains(part), "{part} is not in\n{config}");
        }
        let stream: serde_json::Value = serde_json::from_str(&stream_config()).unwrap();
        assert_eq!(
            (&stream["num_replicas"], &stream["storage"]),
            (&3.into(), &"file".into())
        );
    }
}
