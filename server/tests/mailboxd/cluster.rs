//! Three store nodes and a gateway, each a process of its own.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use mailbox_api::metadata;
use mailbox_api::v1::mailbox_client::MailboxClient;
use mailbox_api::v1::{
    RegisterUserRequest, StatusRequest, SubmitRequest, SubscribeRequest, admin_client::AdminClient,
};
use mailbox_api::{CallError, v1::ErrorCode};
use mailbox_client::{Auth, Client, ClientOptions};
use mailbox_gateway::token::{TokenSigner, issue};
use rustix::process::Signal;
use serde_json::json;
use uuid::Uuid;

use crate::http;
use crate::process::Process;

pub(crate) const SECRET: &str = "a cluster secret for three nodes";
pub(crate) const KEY: &str = "an HS256 key of at least thirty-two bytes";

/// A cluster of three.
pub(crate) struct Trio {
    /// Those that run, by index.
    pub(crate) nodes: Vec<Option<Process>>,
    addresses: Vec<String>,
    config: String,
}

impl Trio {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, 16, 1)
    }

    /// Replicas stay where they are, unless somebody asks for more.
    pub(crate) fn start_with(dir: &Path, slots: u16, shards: u16) -> Self {
        Self::begin(dir, Self::configure_with(dir, slots, shards, false))
    }

    /// Replicas go where the placement wants them.
    pub(crate) fn start_placed(dir: &Path, slots: u16, shards: u16) -> Self {
        Self::begin(dir, Self::configure_with(dir, slots, shards, true))
    }

    fn begin(dir: &Path, mut trio: Self) -> Self {
        for index in 0..3 {
            let process = trio.node(dir, index);
            trio.nodes.push(Some(process));
        }
        trio
    }

    /// Writes the configuration; starts nothing.
    pub(crate) fn configure(dir: &Path) -> Self {
        Self::configure_with(dir, 16, 1, false)
    }

    /// Writes a configuration with these lines of `[placement]` besides, under which memtables are soon flushed and
    /// nodes tell their metrics; starts nothing.
    pub(crate) fn configure_splitting(
        dir: &Path,
        slots: u16,
        shards: u16,
        placement: &str,
    ) -> Self {
        let trio = Self::configure_with(dir, slots, shards, true);
        let text = std::fs::read_to_string(&trio.config).unwrap();
        let text = text
            .replace("[placement]\n", &format!("[placement]\n{placement}"))
            .replace("[storage]\n", "[storage]\nflush_age_ms = 1000\n")
            .replace("metrics_listen = \"\"", "metrics_listen = \"127.0.0.1:0\"");
        std::fs::write(&trio.config, text).unwrap();
        trio
    }

    fn configure_with(dir: &Path, slots: u16, shards: u16, placed: bool) -> Self {
        std::fs::write(dir.join("secret"), SECRET).unwrap();
        std::fs::write(dir.join("key"), KEY).unwrap();
        // Held together, so that the three differ; free again when the nodes bind them.
        let held: Vec<_> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses: Vec<String> = held
            .iter()
            .map(|bound| bound.local_addr().unwrap().to_string())
            .collect();
        drop(held);
        let path = dir.display();
        let text = format!(
            "[cluster]\nid = \"trio\"\nsecret_file = \"{path}/secret\"\nslot_count = {slots}\nshards = {shards}\n\
             heartbeat_ms = 100\nelection_min_ms = 400\nelection_max_ms = 800\n\
             [cluster.nodes]\n1 = \"{}\"\n2 = \"{}\"\n3 = \"{}\"\n\
             [node]\nmetrics_listen = \"\"\nconnections_max = 64\ndisk_free_min_percent = 0\n\
             disk_free_min_bytes = \"16 MiB\"\n[gateway]\nlisten = \"127.0.0.1:0\"\n\
             connections_max = 64\n[auth]\nhs256_secret_file = \"{path}/key\"\n\
             [storage]\nmax_open_files = 128\n[placement]\nenabled = {placed}\npause_ms = 200\n[memory]\nbudget_bytes = \"64 MiB\"\n",
            addresses[0], addresses[1], addresses[2]
        );
        let config = dir.join("mailbox.toml").to_str().unwrap().to_owned();
        std::fs::write(&config, text).unwrap();
        Self {
            nodes: Vec::new(),
            addresses,
            config,
        }
    }

    /// The command line of a node.
    pub(crate) fn node_args(&self, dir: &Path, index: usize) -> Vec<String> {
        let own = [
            format!("node.id={}", index + 1),
            format!("node.listen={}", self.addresses[index]),
            format!("node.dir={}/node-{}", dir.display(), index + 1),
        ];
        let mut args = ["server", "--json", "--config", &self.config]
            .map(str::to_owned)
            .to_vec();
        for option in own {
            args.extend(["--set".to_owned(), option]);
        }
        args
    }

    /// The command line of a node that joins by what another one of the cluster knows.
    pub(crate) fn joiner_args(
        &self,
        dir: &Path,
        id: u64,
        join: &str,
        options: &[&str],
    ) -> Vec<String> {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let (before, rest) = text.split_once("[cluster.nodes]").unwrap();
        let (_, rest) = rest.split_once("[node]").unwrap();
        let text = format!("{before}join = [\"{join}\"]\n[node]{rest}");
        let config = dir.join(format!("joiner-{id}.toml"));
        std::fs::write(&config, text).unwrap();
        let mut args: Vec<String> = ["server", "--json", "--config", config.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec();
        let own = [
            format!("node.id={id}"),
            "node.listen=127.0.0.1:0".to_owned(),
            format!("node.dir={}/node-{id}", dir.display()),
        ];
        let options = options.iter().map(|option| (*option).to_owned());
        for option in own.into_iter().chain(options) {
            args.extend(["--set".to_owned(), option]);
        }
        args
    }

    /// The command line of a gateway.
    pub(crate) fn gateway_args(&self, options: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = ["gateway", "--json", "--config", &self.config]
            .map(str::to_owned)
            .to_vec();
        for option in options {
            args.extend(["--set".to_owned(), (*option).to_owned()]);
        }
        args
    }

    /// Starts a node, up to its ready line.
    pub(crate) fn node(&self, dir: &Path, index: usize) -> Process {
        let args = self.node_args(dir, index);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let process = Process::start(&args);
        assert_eq!(process.says()["ready"]["role"], "server");
        process
    }

    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// A call with the proof that its caller may act for any user.
    pub(crate) fn with_secret<T>(&self, call: T) -> tonic::Request<T> {
        with_secret(call)
    }

    /// With the cluster's secret.
    pub(crate) async fn client(&self) -> Client {
        let auth = Auth::Secret {
            cluster_id: Some("trio".into()),
            secret: SECRET.into(),
        };
        let options = ClientOptions::new(self.addresses.clone(), auth);
        Client::connect(options).await.expect("connect")
    }
}

fn with_secret<T>(call: T) -> tonic::Request<T> {
    with_secret_of(call, SECRET.as_bytes())
}

/// A call with the proof that its caller may act for any user.
pub(crate) fn with_secret_of<T>(call: T, secret: &[u8]) -> tonic::Request<T> {
    use base64::Engine as _;
    let secret = base64::engine::general_purpose::STANDARD_NO_PAD.encode(secret);
    let mut request = tonic::Request::new(call);
    request
        .metadata_mut()
        .insert(metadata::CLUSTER_SECRET, secret.parse().unwrap());
    request
}

/// Which node leads, by index.
pub(crate) async fn leader(trio: &Trio) -> usize {
    for _ in 0..200 {
        for (index, address) in trio.addresses.iter().enumerate() {
            if trio.nodes[index].is_none() {
                continue;
            }
            let mut admin = AdminClient::connect(format!("http://{address}"))
                .await
                .unwrap();
            let status = admin
                .status(with_secret(StatusRequest::default()))
                .await
                .unwrap()
                .into_inner();
            let shard = status.shards.iter().find(|shard| shard.shard == 1);
            if shard.is_some_and(|shard| shard.role == "leader") {
                return index;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no node leads");
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_forward_calls_and_streams_name_the_leader() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start(dir.path());
    let leader = leader(&trio).await;
    let follower = &trio.addresses[(leader + 1) % 3];
    let mut mailbox = MailboxClient::connect(format!("http://{follower}"))
        .await
        .unwrap();

    let call = RegisterUserRequest {
        request_id: Uuid::now_v7().as_bytes().to_vec().into(),
        handle: "carol".into(),
    };
    // A follower learns of a new leader a moment after the leader itself.
    let registered = loop {
        match mailbox.register_user(with_secret(call.clone())).await {
            Ok(registered) => break registered,
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(registered.into_inner().user > 0);

    // Forwarded once, never twice: a call that says it was gets the hint instead.
    let mut again = with_secret(call);
    again
        .metadata_mut()
        .insert(metadata::FORWARDED, "1".parse().unwrap());
    let error = mailbox
        .register_user(again)
        .await
        .expect_err("not forwarded again");
    let error = CallError::from_status(&error);
    assert_eq!(error.code(), ErrorCode::NotLeader, "{error}");
    assert_eq!(error.0.leader_address, trio.addresses[leader]);

    let first = SubscribeRequest {
        shard: 1,
        ..SubscribeRequest::default()
    };
    let stream = with_secret(tokio_stream::once(first));
    let error = mailbox
        .subscribe(stream)
        .await
        .expect_err("a follower does not push");
    assert_eq!(CallError::from_status(&error).code(), ErrorCode::NotLeader);

    let send = mailbox_api::v1::SubmitCall { tag: 7, send: None };
    let frame = SubmitRequest {
        shard: 1,
        calls: vec![send],
    };
    let stream = with_secret(tokio_stream::once(frame));
    let mut answers = mailbox.submit(stream).await.expect("open").into_inner();
    let answer = answers
        .message()
        .await
        .expect("an answer")
        .expect("a frame");
    let Some(mailbox_api::v1::submit_result::Result::Error(error)) = &answer.results[0].result
    else {
        panic!("not refused: {answer:?}");
    };
    assert_eq!(error.code(), ErrorCode::NotLeader);
    assert_eq!(error.leader_node, leader as u64 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_goes_on_when_the_leader_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start(dir.path());
    let client = trio.client().await;
    for handle in ["alice", "bob"] {
        let request_id = client.new_message_id().as_bytes().to_vec().into();
        let call = RegisterUserRequest {
            request_id,
            handle: handle.to_owned(),
        };
        client.register_user(call).await.expect("registered");
    }
    let gateway = Process::start(&["gateway", "--json", "--config", &trio.config]);
    let address = gateway.says()["ready"]["listen"]
        .as_str()
        .expect("an address")
        .to_owned();
    let signer = TokenSigner::hs256(KEY.as_bytes()).unwrap();
    let token = issue(&signer, &"@alice".parse().unwrap(), Duration::from_secs(60)).unwrap();
    let send = |text: &str| {
        let id = client.new_message_id().to_string();
        let body = json!({ "to": "@bob", "client_msg_id": id, "text": text });
        http::post(&address, "/v1/chat/send", Some(&token), &body.to_string())
    };
    let first = send("before");
    assert_eq!(first.status, 200, "{}", first.body);

    let leader = leader(&trio).await;
    let stopped = trio.nodes[leader].take().unwrap().stop(Signal::TERM);
    assert!(stopped.success(), "{stopped}");
    let second = send("after");
    assert_eq!(second.status, 200, "{}", second.body);
    assert_eq!(second.json()["seq"], "2");

    trio.nodes[leader] = Some(trio.node(dir.path(), leader));
    let third = send("with all three");
    assert_eq!(third.json()["seq"], "3", "{}", third.body);
    assert!(gateway.stop(Signal::TERM).success());
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}
