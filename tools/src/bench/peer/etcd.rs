//! etcd: three nodes, one transaction a send, over its gRPC API.
//!
//! If the send's key was never made: make it, and a row under each mailbox. The answer comes after a majority has
//! synced its log.

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use rustix::process::Signal;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use super::driver::Driver;
use super::message::Message;
use super::servers::{Abort, Launch, Servers, find, free_ports};
use super::{FIX, Started};

const NODES: usize = 3;
/// Connections, all to the leader: a client at another node costs a hop more.
const CHANNELS: usize = 4;
/// What one node may store before it refuses: its greatest recommended size.
const QUOTA_BYTES: u64 = 8 << 30;

const TXN: &str = "/etcdserverpb.KV/Txn";
const RANGE: &str = "/etcdserverpb.KV/Range";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Starts the nodes and waits for a leader.
pub(super) async fn start(servers: &mut Servers) -> anyhow::Result<Started> {
    let program = find("etcd", None, &[], FIX)?;
    let ports: [u16; 2 * NODES] = free_ports()?;
    let (clients, peers) = ports.split_at(NODES);
    let members: Vec<Member> = clients
        .iter()
        .zip(peers)
        .zip(1..)
        .map(|((client, peer), number)| Member {
            name: format!("etcd-{number}"),
            client: format!("http://127.0.0.1:{client}"),
            peer: format!("http://127.0.0.1:{peer}"),
        })
        .collect();
    for member in &members {
        let folder = servers.folder(&member.name, None)?;
        let mut arguments = member.arguments(&members);
        arguments.extend(["--data-dir".into(), folder.into()]);
        servers.start(Launch {
            name: member.name.clone(),
            program: program.clone(),
            arguments,
            account: None,
            stop: Signal::TERM,
            abort: Abort::Kill,
        })?;
    }
    let ready = servers.until_ready("etcd has a leader that all nodes know", async || {
        leader(&members).await
    });
    let (leader, version) = ready.await?;
    let mut channels = Vec::new();
    for _ in 0..CHANNELS {
        channels.push(open(&leader).await?);
    }
    Ok(Started {
        driver: Driver::Etcd(Client::new(channels)),
        nodes: NODES as u64,
        version,
    })
}

struct Member {
    name: String,
    client: String,
    peer: String,
}

impl Member {
    fn arguments(&self, members: &[Self]) -> Vec<std::ffi::OsString> {
        let cluster = members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer));
        let cluster = cluster.collect::<Vec<_>>().join(",");
        let quota = QUOTA_BYTES.to_string();
        let words = [
            ["--name", &self.name],
            ["--listen-client-urls", &self.client],
            ["--advertise-client-urls", &self.client],
            ["--listen-peer-urls", &self.peer],
            ["--initial-advertise-peer-urls", &self.peer],
            ["--initial-cluster", &cluster],
            ["--initial-cluster-state", "new"],
            ["--quota-backend-bytes", &quota],
            // It would tell of every slow request.
            ["--logger", "zap"],
            ["--log-level", "error"],
        ];
        words
            .as_flattened()
            .iter()
            .map(std::ffi::OsString::from)
            .collect()
    }
}

/// The leader's address, which all nodes agree on, and its version.
async fn leader(members: &[Member]) -> anyhow::Result<(String, String)> {
    let mut found = Vec::new();
    for member in members {
        let channel = open(&member.client).await?;
        let status: StatusResponse = call(&channel, STATUS, StatusRequest {}).await?;
        let own = status.header.map_or(0, |header| header.member_id);
        found.push((member, own, status.leader, status.version));
    }
    let leader = found.first().map_or(0, |(_, _, leader, _)| *leader);
    let agree = found.iter().all(|(_, _, known, _)| *known == leader);
    ensure!(leader != 0 && agree, "not all nodes know one leader");
    let mut found = found.into_iter().filter(|(_, own, _, _)| *own == leader);
    let (member, _, _, version) = found.next().context("no node is the leader")?;
    Ok((member.client.clone(), version))
}

async fn open(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(address.to_owned())?.tcp_nodelay(true);
    let channel = endpoint.connect().await;
    channel.with_context(|| format!("connect to {address}"))
}

async fn call<Q, A>(channel: &Channel, path: &'static str, request: Q) -> anyhow::Result<A>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.context("reach etcd")?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
    Ok(answer.context("etcd refuses")?.into_inner())
}

/// etcd, on a few connections that many sends share.
#[derive(Clone)]
pub(super) struct Client {
    channels: std::sync::Arc<[Channel]>,
}

impl Client {
    fn new(channels: Vec<Channel>) -> Self {
        Self {
            channels: channels.into(),
        }
    }

    pub(super) async fn send(&self, message: &Message) -> anyhow::Result<()> {
        // The id of a send is random at its end.
        let number = message.id.as_u128() % CHANNELS as u128;
        let channel = self.channel(usize::try_from(number)?)?;
        // What did not succeed was a repeat.
        let _: TxnResponse = call(channel, TXN, transaction(message)).await?;
        Ok(())
    }

    pub(super) async fn copies(&self, owners: [u64; 2]) -> anyhow::Result<u64> {
        let mut copies = 0;
        for owner in owners {
            let request = RangeRequest {
                key: Bytes::from(mailbox(owner)),
                range_end: Bytes::from(end_of_mailbox(owner)),
                count_only: true,
            };
            let counted: RangeResponse = call(self.channel(0)?, RANGE, request).await?;
            copies += u64::try_from(counted.count)?;
        }
        Ok(copies)
    }

    fn channel(&self, number: usize) -> anyhow::Result<&Channel> {
        let channel = self.channels.get(number % self.channels.len().max(1));
        channel.context("there is no connection")
    }
}

/// The begin of all keys of a mailbox.
fn mailbox(owner: u64) -> String {
    format!("m/{owner}/")
}

/// The first key behind them: `0` follows `/`.
fn end_of_mailbox(owner: u64) -> String {
    format!("m/{owner}0")
}

fn transaction(message: &Message) -> TxnRequest {
    let id = message.id.simple().to_string();
    let dedup = Bytes::from(format!("d/{id}"));
    let put = |key: Bytes, value: Bytes| RequestOp {
        put: Some(PutRequest { key, value }),
    };
    let row = |owner: u64| {
        let key = format!("{}{id}", mailbox(owner));
        put(Bytes::from(key), message.body.clone())
    };
    let compare = Compare {
        target: COMPARE_CREATED,
        key: dedup.clone(),
    };
    TxnRequest {
        compare: vec![compare],
        success: vec![
            put(dedup, Bytes::new()),
            row(message.sender),
            row(message.recipient),
        ],
    }
}

/// A key's create revision is compared, and equal is what is wanted: both the comparison and the revision, 0 for a key
/// that is not there, are what the protocol takes a missing field for.
const COMPARE_CREATED: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Compare {
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "bytes", tag = "3")]
    key: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// One of four kinds of work; only this one is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct RequestOp {
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
    #[prost(bool, tag = "9")]
    count_only: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeResponse {
    #[prost(int64, tag = "4")]
    count: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResponseHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_send_is_one_transaction_of_three_puts_if_its_id_is_new() {
        let message = Message {
            id: uuid::Uuid::from_u128(0xab),
            sender: 7,
            recipient: 8,
            body: Bytes::from_static(b"hi"),
        };
        let id = "000000000000000000000000000000ab";
        let mut wanted = Vec::new();
        // Field 1: compare, of (target create revision, key), 38 bytes.
        wanted.extend([0x0a, 38, 0x10, 1, 0x1a, 34]);
        wanted.extend(format!("d/{id}").bytes());
        // Field 2, three times: an operation that is a put of (key, value).
        wanted.extend([0x12, 38, 0x12, 36, 0x0a, 34]);
        wanted.extend(format!("d/{id}").bytes());
        for owner in [7, 8] {
            wanted.extend([0x12, 44, 0x12, 42, 0x0a, 36]);
            wanted.extend(format!("m/{owner}/{id}").bytes());
            wanted.extend([0x12, 2]);
            wanted.extend(b"hi");
        }
        assert_eq!(transaction(&message).encode_to_vec(), wanted);
    }

    #[test]
    fn answers_are_read_and_what_is_not_known_is_skipped() {
        // header (cluster_id 1, member_id 5), version, dbSize, leader.
        let wire = b"\x0a\x04\x08\x01\x10\x05\x12\x063.4.23\x18\x09\x20\x05";
        let status = StatusResponse::decode(&wire[..]).unwrap();
        assert_eq!(status.header.unwrap().member_id, 5);
        assert_eq!((status.version.as_str(), status.leader), ("3.4.23", 5));
        assert!(StatusResponse::decode(&wire[..3]).is_err());
        assert_eq!(RangeResponse::decode(&b"\x20\x02"[..]).unwrap().count, 2);
        assert!(TxnResponse::decode(&b"\x10\x01"[..]).unwrap().succeeded);
    }

    #[test]
    fn every_member_is_told_of_all() {
        let member = |number: u16| Member {
            name: format!("etcd-{number}"),
            client: format!("http://127.0.0.1:{number}"),
            peer: format!("http://127.0.0.1:1{number}"),
        };
        let members = [member(1), member(2)];
        let arguments = members[1].arguments(&members);
        let position = arguments
            .iter()
            .position(|word| word == "--initial-cluster");
        let cluster = "etcd-1=http://127.0.0.1:11,etcd-2=http://127.0.0.1:12";
        assert_eq!(arguments[position.unwrap() + 1], cluster);
        assert!(arguments.iter().any(|word| word == "http://127.0.0.1:2"));
    }

    #[test]
    fn a_mailbox_ends_before_its_neighbour() {
        // Else mailbox 10 would be counted with mailbox 1.
        let end = end_of_mailbox(1);
        let (begin, end) = (mailbox(1), end.as_str());
        let is_inside = |key: &str| key >= begin.as_str() && key < end;
        assert!(is_inside("m/1/x"));
        for outside in ["m/10/x", "m/0/x", "m/2/x"] {
            assert!(!is_inside(outside), "{outside}");
        }
    }
}
