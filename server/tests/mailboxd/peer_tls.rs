//! Three nodes that speak TLS with each other, and one of them with another authority's certificate.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mailbox_api::v1::{
    MessageType, RegisterUserRequest, SendRequest, SendResponse, ShardStatus, send_request,
};
use mailbox_client::{Auth, Client, ClientOptions, Tls, content_crc, user_id};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::Signal;

use crate::cluster::{SECRET, Trio};
use crate::process::{PATIENCE, Process};

const PAUSE: Duration = Duration::from_millis(50);

/// Who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Writes a certificate for a node of this machine, and its key.
    fn sign(&self, dir: &Path, index: usize) {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(dir.join(format!("cert-{index}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("key-{index}.pem")), key.serialize_pem()).unwrap();
    }
}

fn log_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("log-{index}"))
}

/// Starts a node with its certificate, trusting `authority.pem`.
fn start(trio: &Trio, dir: &Path, index: usize) -> Process {
    let path = dir.display();
    let mut args = trio.node_args(dir, index);
    for option in [
        format!("tls.cert_file={path}/cert-{index}.pem"),
        format!("tls.key_file={path}/key-{index}.pem"),
        format!("tls.ca_file={path}/authority.pem"),
    ] {
        args.extend(["--set".to_owned(), option]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let process = Process::start_logged(&args, &log_path(dir, index));
    assert_eq!(process.says()["ready"]["role"], "server");
    process
}

async fn client(addresses: &[String], authority: &Authority) -> Client {
    let auth = Auth::Secret {
        cluster_id: Some("trio".into()),
        secret: SECRET.into(),
    };
    let mut options = ClientOptions::new(addresses.to_vec(), auth);
    options.timeouts.deadline = PATIENCE;
    options.tls = Some(Tls {
        ca_pem: authority.0.pem().into_bytes(),
        domain: None,
    });
    Client::connect(options).await.expect("connect")
}

async fn register(client: &Client, handle: &str) -> u64 {
    let call = RegisterUserRequest {
        request_id: client.new_message_id().as_bytes().to_vec().into(),
        handle: handle.to_owned(),
    };
    client.register_user(call).await.expect("register").user
}

async fn send(client: &Client, from: u64, to: u64) -> SendResponse {
    let id = client.new_message_id();
    let request = SendRequest {
        sender: Some(user_id(from)),
        destination: Some(send_request::Destination::User(user_id(to))),
        client_msg_id: id.as_bytes().to_vec().into(),
        r#type: MessageType::Text as i32,
        content_crc: content_crc(id.as_bytes(), MessageType::Text, b"hi"),
        body: b"hi".to_vec().into(),
        shown_message_id: 0,
    };
    client.send(request).await.expect("acked")
}

async fn shard(client: &Client, address: &str) -> ShardStatus {
    let status = client.status(Some(address)).await.expect("a status");
    status
        .shards
        .into_iter()
        .find(|one| one.shard == 1)
        .unwrap()
}

/// Looks until it is so; until then a look tells what it saw.
async fn eventually(what: &str, mut look: impl AsyncFnMut() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(seen) = look().await {
        assert!(
            begun.elapsed() < PATIENCE,
            "it was never so: {what}\n{seen}"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_speak_tls_and_do_not_reach_one_whose_certificate_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (trusted, other) = (Authority::new("ours"), Authority::new("another"));
    std::fs::write(dir.join("authority.pem"), trusted.0.pem()).unwrap();
    let trio = Trio::configure(dir);
    trusted.sign(dir, 0);
    trusted.sign(dir, 1);
    other.sign(dir, 2);
    let mut nodes: Vec<Process> = (0..2).map(|index| start(&trio, dir, index)).collect();
    let [first, second, third] = trio.addresses() else {
        panic!("three nodes")
    };

    // Two of three are a majority, so entries travel between them.
    let sender = client(&[first.clone(), second.clone()], &trusted).await;
    let (alice, bob) = (
        register(&sender, "alice").await,
        register(&sender, "bob").await,
    );
    assert_eq!(send(&sender, alice, bob).await.seq, 1);

    // The third is called by the leader, which does not take it for a node of this cluster.
    let distrusted = start(&trio, dir, 2);
    let mut leader = 0;
    eventually("the leader says why it does not reach node 3", async || {
        leader = usize::from(shard(&sender, second).await.leader == 2);
        let words = std::fs::read_to_string(log_path(dir, leader)).unwrap();
        let said = words.lines().any(|line| {
            line.contains("the peer is not reached")
                && line.contains("peer=3")
                && line.contains("invalid peer certificate: UnknownIssuer")
        });
        said.then_some(()).ok_or(words)
    })
    .await;
    assert_eq!(send(&sender, alice, bob).await.seq, 2);
    let at_third = client(std::slice::from_ref(third), &other).await;
    assert_eq!(shard(&at_third, third).await.applied_index, 0);

    // With a certificate of the right authority it is one of them.
    assert!(distrusted.stop(Signal::TERM).success());
    trusted.sign(dir, 2);
    nodes.push(start(&trio, dir, 2));
    assert_eq!(send(&sender, alice, bob).await.seq, 3);
    let at_third = client(std::slice::from_ref(third), &trusted).await;
    eventually("node 3 has caught up", async || {
        let there = shard(&sender, &trio.addresses()[leader])
            .await
            .committed_index;
        let here = shard(&at_third, third).await.applied_index;
        (here >= there)
            .then_some(())
            .ok_or(format!("{here} of {there}"))
    })
    .await;
    for node in nodes {
        assert!(node.stop(Signal::TERM).success());
    }
}
