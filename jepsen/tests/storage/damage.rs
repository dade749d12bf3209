//! One flipped byte in the files of one of three nodes, stopped by SIGTERM: in an SST, in the middle of
//! the log, in the last synced batch of the log.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use mailbox_client::v1::ErrorCode;
use mailbox_cluster::{Cluster, ClusterOptions, Node};

use crate::binary::mailboxd;
use crate::load::{Acked, Load, PATIENCE, ended, follower, stop};

const USERS: usize = 10;
const SENDS: usize = 4000;
/// `mailboxd --help`: could not start; storage fault while running.
const EXIT_NOT_STARTED: i32 = 1;
pub(crate) const EXIT_STORAGE_FAULT: i32 = 3;

async fn three_nodes() -> (Cluster, Load) {
    let options = ClusterOptions {
        nodes: 3,
        binary: Some(mailboxd()),
        extra_config: "[node]\ndisk_free_min_percent = 0\ndisk_free_min_bytes = \"64 MiB\"".into(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start(options).await.expect("three nodes");
    let mut load = Load::new(&cluster, USERS).await;
    load.send(SENDS).await;
    (cluster, load)
}

pub(crate) fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

/// The first place where a file of `dir` holds the middle of one of these bodies. Bodies are random, so
/// they are stored as they are, compressed or not; in the log the border of a block may cut one.
fn find(dir: &Path, extension: &str, candidates: &[Acked]) -> (PathBuf, u64) {
    for path in files(dir, extension) {
        let bytes = std::fs::read(&path).unwrap();
        for needle in candidates.iter().map(|acked| &acked.body[30..70]) {
            if let Some(at) = bytes.windows(needle.len()).position(|part| part == needle) {
                return (path, at as u64);
            }
        }
    }
    panic!("no *.{extension} in {} holds the body", dir.display());
}

/// A byte that is not what was written, until it is restored.
pub(crate) struct Flipped {
    path: PathBuf,
    at: u64,
}

impl Flipped {
    pub(crate) fn new((path, at): (PathBuf, u64)) -> Self {
        let flipped = Self { path, at };
        flipped.flip();
        flipped
    }

    fn flip(&self) {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.path)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], self.at).unwrap();
    }

    pub(crate) fn file_name(&self) -> &str {
        self.path.file_name().unwrap().to_str().unwrap()
    }

    pub(crate) fn restore(self) {
        self.flip();
    }
}

/// Starts the mended node; all three become equal, and it has every acked message.
pub(crate) async fn heals(cluster: &Cluster, load: &mut Load, node: &Node) {
    node.start().unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    load.send(100).await;
    let index = load.hash_all(cluster).await;
    load.check_all(Some(node.address())).await;
    println!(
        "node {} is back; three equal hashes at index {index}, {} acked messages read there",
        node.id(),
        load.acked.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_an_sst_is_refused_row_by_row_or_stops_who_needs_the_row() {
    let (cluster, mut load) = three_nodes().await;
    load.hash_all(&cluster).await;
    let damaged = follower(&cluster).await;
    let node = cluster.node(damaged);
    let state = node.data_dir().join("state");
    let middle = load.acked[SENDS / 2].clone();
    let received = load.mailbox(None, middle.to).await;
    let received = received.iter().position(|body| *body == middle.body);
    let rows = [
        (middle.from, middle.seq),
        (middle.to, received.expect("delivered") as u64 + 1),
    ];
    stop(node).await;
    load.send(200).await;

    let byte = Flipped::new(find(&state, "sst", std::slice::from_ref(&middle)));
    node.start().unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    let here = Some(node.address());
    // The byte is in one of the two rows of the message.
    let mut refusals = 0;
    for (owner, seq) in rows {
        let Err(refused) = load.page(here, owner, seq - 1, 1).await else {
            continue;
        };
        refusals += 1;
        println!("refused: {refused}");
        assert_eq!(refused.code(), ErrorCode::Internal);
        let words = &refused.0.message;
        assert!(words.contains(byte.file_name()), "the file: {words}");
        let key = format!("{owner:016x}{seq:016x}");
        assert!(words.contains(&key), "key {key}: {words}");
        // Rows in other blocks are served, of this mailbox too.
        let first = load.page(here, owner, 0, 5).await.expect("the first rows");
        assert_eq!(first.messages.len(), 5);
    }
    assert!(refusals > 0, "the damaged row is served");
    let others = load.users.iter();
    for other in others.filter(|user| rows.iter().all(|(owner, _)| owner != *user)) {
        assert!(!load.mailbox(here, *other).await.is_empty());
    }
    load.send(200).await;
    assert!(node.pid().is_some(), "{}", node.log_tail());
    stop(node).await;
    byte.restore();
    heals(&cluster, &mut load, node).await;

    // The end of a mailbox is read by what opens the shard, or at the latest by the apply of its owner's
    // next message: without it the replica cannot go on.
    load.send(SENDS / 2).await;
    load.hash_all(&cluster).await;
    let last = load.acked.last().unwrap().clone();
    stop(node).await;
    let byte = Flipped::new(find(&state, "sst", std::slice::from_ref(&last)));
    node.start().unwrap();
    load.send(200).await;
    let status = ended(node).await;
    println!("{status}: {}", last_line(node));
    let ends = [Some(EXIT_NOT_STARTED), Some(EXIT_STORAGE_FAULT)];
    assert!(ends.contains(&status.code()), "{status}");
    assert!(
        last_line(node).contains(byte.file_name()),
        "{}",
        node.log_tail()
    );
    load.send(200).await;
    byte.restore();
    heals(&cluster, &mut load, node).await;
}

pub(crate) fn last_line(node: &Node) -> String {
    node.log_tail()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned()
}

/// Starts the node, which must refuse naming file and batch while the others go on.
async fn refuses(load: &mut Load, node: &Node, byte: &Flipped) {
    node.start().unwrap();
    let status = ended(node).await;
    let words = last_line(node);
    println!("{status}: {words}");
    assert_eq!(status.code(), Some(EXIT_NOT_STARTED), "{words}");
    assert!(words.contains(byte.path.to_str().unwrap()), "{words}");
    let batch = words
        .split_once("batch ")
        .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|number| number.parse::<u64>().ok());
    assert!(batch.is_some(), "{words}");
    load.send(200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_log_keeps_the_node_from_starting() {
    let (cluster, mut load) = three_nodes().await;
    let damaged = follower(&cluster).await;
    let node = cluster.node(damaged);
    let log = node.data_dir().join("log");
    stop(node).await;
    load.send(200).await;

    let older = &load.acked[SENDS / 2..SENDS / 2 + 3];
    let byte = Flipped::new(find(&log, "log", older));
    // Twice: the first refusal must not destroy the evidence.
    refuses(&mut load, node, &byte).await;
    refuses(&mut load, node, &byte).await;
    byte.restore();
    heals(&cluster, &mut load, node).await;

    stop(node).await;
    let newest = files(&log, "log").pop().unwrap();
    let at = last_record(&newest);
    let byte = Flipped::new((newest, at));
    refuses(&mut load, node, &byte).await;
    refuses(&mut load, node, &byte).await;
    byte.restore();
    heals(&cluster, &mut load, node).await;
}

/// Where the content of the last record of a WAL file begins. A file is a row of 32 KiB blocks; a piece
/// of a record is `checksum u32 | length u16 | type u8 | low half of the file's number u32 | bytes`,
/// little-endian, and a recycled file goes on with pieces of another number.
fn last_record(path: &Path) -> u64 {
    const BLOCK: usize = 32 * 1024;
    const HEADER: usize = 11;
    let number: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let mut last = None;
    let mut at = 0;
    while at + HEADER <= bytes.len() {
        if BLOCK - at % BLOCK < HEADER {
            at = at.next_multiple_of(BLOCK);
            continue;
        }
        let header = &bytes[at..at + HEADER];
        let of = u32::from_le_bytes(header[7..11].try_into().unwrap());
        if !(5..=8).contains(&header[6]) || u64::from(of) != number {
            break;
        }
        last = Some(at + HEADER);
        at += HEADER + usize::from(u16::from_le_bytes([header[4], header[5]]));
    }
    last.expect("a record") as u64
}
