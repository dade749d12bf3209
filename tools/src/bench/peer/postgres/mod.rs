//! PostgreSQL: one node, one transaction a send, a connection for each send on the way.
//!
//! One call of a function, which is a transaction of its own: the send's id into the table of ids, both heads raised,
//! a row in each mailbox. The answer comes after the log is synced. Nothing is replicated.

mod connection;
mod wire;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use rustix::process::Signal;

use super::account::Account;
use super::driver::{Driver, Pool};
use super::message::Message;
use super::servers::{Abort, Launch, Servers, find, free_ports};
use super::{FIX, Load, Started};
use connection::Connection;

const USER: &str = "bench";
const DATABASE: &str = "postgres";
/// Where Debian keeps the programs of each release.
const RELEASES: &str = "/usr/lib/postgresql";
/// Connections beside those that send.
const SPARE_CONNECTIONS: u32 = 16;

/// Heads are rows that are overwritten all the time: room in their pages keeps the new one beside the old one.
const TABLES: &str = "
CREATE TABLE ids (id uuid PRIMARY KEY);
CREATE TABLE heads (owner bigint PRIMARY KEY, seq bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE messages (
    owner bigint, seq bigint, id uuid NOT NULL, sender bigint NOT NULL, body bytea NOT NULL,
    PRIMARY KEY (owner, seq));
";

/// Heads are raised in the order of their owners: two users who write to each other would else wait for each other
/// for ever.
const FUNCTION: &str = "
CREATE FUNCTION send(message_id uuid, sender bigint, recipient bigint, body bytea) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    own bigint;
    other bigint;
BEGIN
    INSERT INTO ids VALUES (message_id) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    IF sender < recipient THEN
        UPDATE heads SET seq = seq + 1 WHERE owner = sender RETURNING seq INTO own;
        UPDATE heads SET seq = seq + 1 WHERE owner = recipient RETURNING seq INTO other;
    ELSE
        UPDATE heads SET seq = seq + 1 WHERE owner = recipient RETURNING seq INTO other;
        UPDATE heads SET seq = seq + 1 WHERE owner = sender RETURNING seq INTO own;
    END IF;
    INSERT INTO messages VALUES
        (sender, own, message_id, sender, body), (recipient, other, message_id, sender, body);
    RETURN own;
END $$;
";

/// Starts the server, and makes tables, heads and the function.
pub(super) async fn start(
    load: &Load,
    in_flight: u32,
    servers: &mut Servers,
) -> anyhow::Result<Started> {
    let places = releases(Path::new(RELEASES));
    let (server, initdb) = (
        find("postgres", None, &places, FIX)?,
        find("initdb", None, &places, FIX)?,
    );
    let account = Account::instead_of_root()?;
    let folder = servers.folder("postgres", account.as_ref())?;
    let [port] = free_ports()?;
    let launch = |name: &str, program, arguments| Launch {
        name: name.to_owned(),
        program,
        arguments,
        account: account.clone(),
        // Not SIGTERM, at which it waits for its clients to leave.
        stop: Signal::INT,
        abort: Abort::Quit,
    };
    let arguments: Vec<OsString> = vec![
        "-D".into(),
        folder.clone().into(),
        format!("--username={USER}").into(),
        "--auth=trust".into(),
        "--encoding=UTF8".into(),
        "--locale=C".into(),
        "--no-sync".into(),
    ];
    let initdb = launch("initdb", initdb, arguments);
    servers.finish(initdb).await?;
    servers.start(launch(
        "postgres-server",
        server,
        arguments_of(&folder, port, in_flight),
    ))?;
    let ready = servers.until_ready("PostgreSQL answers", async || {
        Connection::open(port, USER, DATABASE).await
    });
    let mut connection = ready.await?;
    let version = connection.text("SHOW server_version").await?;
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let value = connection.text(&format!("SHOW {setting}")).await?;
        ensure!(value == "on", "PostgreSQL runs with {setting} = {value}");
    }
    let heads = format!(
        "INSERT INTO heads SELECT owner, 0 FROM generate_series(0, {}) owner",
        load.users.saturating_sub(1)
    );
    for statements in [
        TABLES,
        FUNCTION,
        heads.as_str(),
        "ANALYZE heads",
        "CHECKPOINT",
    ] {
        connection.statements(statements).await?;
    }
    let mut connections = vec![connection];
    for _ in 1..in_flight {
        connections.push(Connection::open(port, USER, DATABASE).await?);
    }
    for connection in &mut connections {
        connection.prepare_send().await?;
    }
    let pool = Arc::new(Pool::new(connections));
    Ok(Started {
        driver: Driver::Postgres(Client { pool }),
        nodes: 1,
        version,
    })
}

/// Durable as it comes, with memory and log enough that no checkpoint falls into the run. A log without replication is
/// the smallest there is.
fn arguments_of(folder: &Path, port: u16, in_flight: u32) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-D".into(), folder.into()];
    let settings = [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        "unix_socket_directories=".to_owned(),
        format!("max_connections={}", in_flight + SPARE_CONNECTIONS),
        "fsync=on".to_owned(),
        "synchronous_commit=on".to_owned(),
        "full_page_writes=on".to_owned(),
        "wal_level=minimal".to_owned(),
        "max_wal_senders=0".to_owned(),
        "max_wal_size=8GB".to_owned(),
        "checkpoint_timeout=30min".to_owned(),
        "shared_buffers=512MB".to_owned(),
    ];
    for setting in settings {
        arguments.extend(["-c".into(), setting.into()]);
    }
    arguments
}

/// The programs' folders, the newest release first.
fn releases(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u32> = numbers.collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let folders = numbers
        .iter()
        .map(|number| dir.join(number.to_string()).join("bin"));
    folders.collect()
}

/// PostgreSQL, on one connection for each send on the way.
#[derive(Clone)]
pub(super) struct Client {
    pool: Arc<Pool<Connection>>,
}

impl Client {
    pub(super) async fn send(&self, message: &Message) -> anyhow::Result<()> {
        let mut connection = self.pool.take()?;
        let sent = connection.send(message).await;
        if connection.is_usable() {
            self.pool.give_back(connection);
        }
        sent.map(drop)
    }

    pub(super) async fn copies(&self, [one, other]: [u64; 2]) -> anyhow::Result<u64> {
        let mut connection = self.pool.take()?;
        let count = format!("SELECT count(*) FROM messages WHERE owner IN ({one}, {other})");
        let count = connection.text(&count).await?;
        self.pool.give_back(connection);
        count.parse().context("PostgreSQL sends a bad count")
    }
}

/// What a send answers: the seq in the sender's mailbox, 0 to a repeat.
fn seq_of(column: &Bytes) -> anyhow::Result<i64> {
    let seq = <[u8; 8]>::try_from(&column[..]);
    Ok(i64::from_be_bytes(
        seq.context("PostgreSQL sends a bad seq")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_is_looked_at_first() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["9", "15", "readme", "16"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let wanted = ["16/bin", "15/bin", "9/bin"].map(|path| dir.path().join(path));
        assert_eq!(releases(dir.path()), wanted);
        assert!(releases(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn the_server_runs_durable_and_with_a_connection_for_each_send() {
        let arguments = arguments_of(Path::new("/x"), 7000, 256);
        for wanted in [
            "fsync=on",
            "synchronous_commit=on",
            "max_connections=272",
            "port=7000",
        ] {
            assert!(
                arguments.iter().any(|argument| argument == wanted),
                "{wanted}"
            );
        }
    }

    #[test]
    fn a_seq_is_eight_bytes() {
        assert_eq!(
            seq_of(&Bytes::from_static(b"\0\0\0\0\0\0\x01\x02")).unwrap(),
            258
        );
        assert!(seq_of(&Bytes::from_static(b"258")).is_err());
    }
}
