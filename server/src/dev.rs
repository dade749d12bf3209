//! `mailboxd dev`: a store node and a gateway in one process, with two users ready to chat.
//!
//! Everything is under one directory and is used again by the next run: the cluster's id and
//! secret, the key that tokens are signed with, and the data.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mailbox_api::CallError;
use mailbox_api::v1::{ErrorCode, RegisterUserRequest, ResolveUserRequest, UserRef, user_ref};
use mailbox_client::Client;
use mailbox_gateway::MetricsRegistry;
use mailbox_gateway::token::{TokenSigner, issue};
use serde_json::json;

use crate::cli::DevArgs;
use crate::config::{ByteSize, Config, Role};
use crate::error::Error;
use crate::gateway_role::{RunningGateway, connect};
use crate::limits::{FileBudget, raise_open_files};
use crate::node_role::{RunningNode, probe};
use crate::run::block_on;
use crate::shutdown::Signals;

/// Who is registered for a first chat.
const HANDLES: [&str; 2] = ["alice", "bob"];
/// Tokens of a development server; the next run prints new ones.
const TOKEN_VALID: Duration = Duration::from_secs(30 * 24 * 3600);
const KEY_BYTES: usize = 32;

/// Runs `mailboxd dev` to its end.
///
/// # Errors
/// What keeps it from starting (a port in use, for instance), a storage fault, or a slow stop.
pub fn run_dev(args: &DevArgs) -> Result<(), Error> {
    let begun = Instant::now();
    let config = configure(args)?;
    crate::logging::start(&config.logging).map_err(Error::LogFilter)?;
    let limit = raise_open_files()?;
    let files = FileBudget::of_node(&config).plus(FileBudget::of_gateway(&config));
    files.check(limit, "gateway.connections_max")?;
    block_on(serve(args, config, begun))
}

async fn serve(args: &DevArgs, mut config: Config, begun: Instant) -> Result<(), Error> {
    let mut signals = Signals::install()?;
    let (mut node, gateway, users) = tokio::select! {
        started = start(args, &mut config) => started?,
        _ = signals.next() => return Ok(()),
    };
    announce(args, &node, &gateway, &users, begun.elapsed());
    let fault = tokio::select! {
        _ = signals.next() => None,
        fault = node.failed() => Some(fault),
    };
    let stop = async {
        gateway.stop().await;
        match fault {
            Some(fault) => {
                crate::run::close_after_fault(node).await;
                Err(fault)
            }
            None => node.stop().await,
        }
    };
    signals.stop_in_order(stop).await?;
    say(
        args.json,
        &json!({ "event": "stopped" }),
        "stopped; the data is kept for the next run",
    );
    Ok(())
}

async fn start(
    args: &DevArgs,
    config: &mut Config,
) -> Result<(RunningNode, RunningGateway, Vec<User>), Error> {
    // Both ports are looked at before anything is written.
    drop(probe("--listen", &args.listen).await?);
    drop(probe("--grpc-listen", &args.grpc_listen).await?);
    let registry = MetricsRegistry::default();
    let node = RunningNode::start(config, registry.clone()).await?;
    config
        .cluster
        .nodes
        .insert(config.node.id, node.grpc.to_string());
    let gateway = RunningGateway::start(config, registry, node.ready.clone()).await?;
    let client = connect(config).await?;
    let users = register(&client, &config.auth.hs256_secret_file).await?;
    Ok((node, gateway, users))
}

struct User {
    handle: &'static str,
    id: u64,
    token: String,
}

/// Makes sure that the two users exist, and tokens for them.
async fn register(client: &Client, key_file: &Path) -> Result<Vec<User>, Error> {
    let key = read_or_make(key_file, random_key)?;
    let sign = |error: mailbox_gateway::token::KeyError| Error::Content {
        what: "token secret",
        path: key_file.to_owned(),
        reason: error.to_string(),
    };
    let signer = TokenSigner::hs256(key.trim_ascii_end()).map_err(sign)?;
    let mut users = Vec::with_capacity(HANDLES.len());
    for handle in HANDLES {
        let id = user_id(client, handle).await.map_err(|error| Error::Call {
            what: "register a user",
            error,
        })?;
        let subject = format!("@{handle}").parse().map_err(|_| Error::Content {
            what: "handle",
            path: key_file.to_owned(),
            reason: handle.to_owned(),
        })?;
        let token = issue(&signer, &subject, TOKEN_VALID).map_err(sign)?;
        users.push(User { handle, id, token });
    }
    Ok(users)
}

async fn user_id(client: &Client, handle: &str) -> Result<u64, CallError> {
    let user = Some(UserRef {
        user: Some(user_ref::User::Handle(handle.to_owned())),
    });
    match client.resolve_user(ResolveUserRequest { user }).await {
        Ok(known) => return Ok(known.user),
        Err(error) if error.code() == ErrorCode::UnknownUser => {}
        Err(error) => return Err(error),
    }
    let request_id = client.new_message_id().as_bytes().to_vec().into();
    let request = RegisterUserRequest {
        request_id,
        handle: handle.to_owned(),
    };
    Ok(client.register_user(request).await?.user)
}

/// A configuration of one node and a gateway, all on this machine.
fn configure(args: &DevArgs) -> Result<Config, Error> {
    let dir = &args.dir;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::Write {
            path: dir.clone(),
            source,
        })?;
    let secret_file = dir.join("mailbox.secret");
    let key_file = dir.join("auth.key");
    read_or_make(&secret_file, random_key)?;
    read_or_make(&key_file, random_key)?;
    let id = read_or_make(&dir.join("cluster.id"), random_id)?;

    let mut config = Config::default();
    config.cluster.id = String::from_utf8_lossy(id.trim_ascii_end()).into_owned();
    config.cluster.secret_file = secret_file;
    config.cluster.slot_count = 64;
    config.cluster.shards = args.shards;
    config.cluster.nodes = [(1, args.grpc_listen.clone())].into();
    config.node.dir = dir.join("node");
    config.node.listen = args.grpc_listen.clone();
    config.node.metrics_listen = String::new(); // The gateway serves the metrics of both.
    config.node.connections_max = 64;
    config.node.disk_free_min_percent = 0;
    config.node.disk_free_min_bytes = ByteSize::mib(256);
    config.gateway.listen = args.listen.clone();
    config.gateway.connections_max = 256;
    config.auth.hs256_secret_file = key_file;
    config.memory.budget_bytes = ByteSize::mib(256);
    config.storage.max_open_files = 256;
    config.logging.filter = args.log.clone();
    config.validate(Role::Server)?;
    config.validate(Role::Gateway)?;
    Ok(config)
}

/// The file's bytes; a new one gets what `make` returns and is readable by its owner only.
fn read_or_make(path: &Path, make: fn() -> String) -> Result<Vec<u8>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => return Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(Error::Read {
                what: "development file",
                path: path.to_owned(),
                source,
            });
        }
    }
    let text = make() + "\n";
    let write = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(write)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(write)?;
    Ok(text.into_bytes())
}

fn random_key() -> String {
    hex(&rand::random::<[u8; KEY_BYTES]>())
}

fn random_id() -> String {
    format!("dev-{}", hex(&rand::random::<[u8; 4]>()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tells how to chat: words for people, or one JSON object.
fn announce(
    args: &DevArgs,
    node: &RunningNode,
    gateway: &RunningGateway,
    users: &[User],
    took: Duration,
) {
    let ctl = mailboxctl();
    let url = &gateway.url;
    let command = |user: &User| {
        let to = users.iter().find(|other| other.handle != user.handle);
        let to = to.map_or("", |other| other.handle);
        format!("{ctl} chat --url {url} --token {} --to @{to}", user.token)
    };
    let facts = json!({
        "event": "ready",
        "url": url,
        "http": format!("http://{}", gateway.listen),
        "grpc": node.grpc.to_string(),
        "dir": args.dir,
        "ready_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "users": users.iter().map(|user| json!({
            "handle": user.handle,
            "id": user.id.to_string(),
            "token": user.token,
            "command": command(user),
        })).collect::<Vec<_>>(),
    });
    let mut words = format!(
        "ready in {:.2} s\n\n  gateway  {url}  (HTTP: http://{})\n  gRPC     {}\n  data     {}\n\n\
         Chat in two other terminals:\n\n",
        took.as_secs_f64(),
        gateway.listen,
        node.grpc,
        args.dir.display(),
    );
    for user in users {
        words += &format!("  {}\n\n", command(user));
    }
    words += "Ctrl-C stops; the data is kept for the next run.";
    say(args.json, &facts, &words);
}

/// The operator's tool beside this binary, so that the printed line can be pasted as it is.
fn mailboxctl() -> String {
    let beside = |path: PathBuf| Some(path.parent()?.join("mailboxctl"));
    let path = std::env::current_exe()
        .ok()
        .and_then(beside)
        .filter(|path| path.exists());
    path.map_or_else(
        || "mailboxctl".to_owned(),
        |path| path.display().to_string(),
    )
}

/// A closed stdout is not a reason to end.
fn say(as_json: bool, facts: &serde_json::Value, words: &str) {
    let mut out = std::io::stdout().lock();
    let _ = if as_json {
        writeln!(out, "{facts}")
    } else {
        writeln!(out, "{words}")
    };
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_made_once_and_readable_by_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let args = DevArgs {
            dir: dir.path().join("dev"),
            listen: "127.0.0.1:0".into(),
            grpc_listen: "127.0.0.1:0".into(),
            shards: 4,
            json: true,
            log: "warn".into(),
        };
        let first = configure(&args).expect("a fresh directory");
        let secret = std::fs::read(&first.cluster.secret_file).unwrap();
        let again = configure(&args).expect("the same directory");
        assert_eq!(first, again);
        assert_eq!(std::fs::read(&again.cluster.secret_file).unwrap(), secret);
        for file in [&again.cluster.secret_file, &again.auth.hs256_secret_file] {
            let mode = std::fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        }
    }
}
