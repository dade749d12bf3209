//! Snapshots on their way: taken from the last flush, sent in chunks over their own connection, received into
//! the staging directory, and handed to the engine.
//!
//! A transfer that breaks starts again from the beginning. Every chunk has its crc, every file its length and
//! checksum; the engine checks every block of rows again when it installs them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mailbox_api::peer;
use mailbox_api::peer::control_request::Request as Ask;
use mailbox_api::peer::control_response::Response as Answer;
use mailbox_api::peer::snapshot_request::Step;
use mailbox_api::peer::snapshot_response::Step as AnswerStep;
use mailbox_engine::{SNAPSHOT_FORMAT, SnapshotFile, SnapshotMeta};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use xxhash_rust::xxh3::Xxh3Default;

use crate::background::{self, Haste};
use crate::peer_link::{Link, UNKNOWN_CALL};
use crate::simulation;
use crate::types::{self, TypeConfig, Vote, decode_stored_membership, log_id};
use crate::wire;

/// Bytes of one chunk.
const CHUNK_BYTES: usize = 1 << 20;
/// Snapshots on their way at once, each direction of a node.
const TRANSFERS_MAX: usize = 2;
/// Silence after which a transfer is given up.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the receiver may take to say whether it takes one.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the receiver may take to install.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;

/// What goes with a snapshot's description inside this process.
pub(crate) enum SnapshotData {
    /// Of this node's last flush: a read view.
    Taken(mailbox_engine::Snapshot),
    /// From a peer: files in the staging directory.
    Received(Received),
}

/// Files received from a peer. They are removed when this is dropped.
pub(crate) struct Received {
    pub(crate) meta: SnapshotMeta,
    pub(crate) files: Vec<PathBuf>,
    _dir: StagingDir,
}

/// openraft's description of what the engine describes.
pub(crate) fn raft_meta(meta: &SnapshotMeta) -> Result<types::SnapshotMeta, types::DecodeError> {
    Ok(types::SnapshotMeta {
        last_log_id: meta.applied.log_id.map(|id| log_id(id.term, id.index)),
        last_membership: decode_stored_membership(&meta.applied.membership)?,
    })
}

/// How many snapshots may travel at once, and how fast.
pub(crate) struct SnapshotPace {
    staging: PathBuf,
    bytes_per_s: u64,
    sending: Semaphore,
    receiving: Semaphore,
    dirs: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl SnapshotPace {
    pub(crate) fn new(staging: PathBuf, bytes_per_s: u64) -> Arc<SnapshotPace> {
        Arc::new(SnapshotPace {
            staging,
            bytes_per_s,
            sending: Semaphore::new(TRANSFERS_MAX),
            receiving: Semaphore::new(TRANSFERS_MAX),
            dirs: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
        })
    }

    /// Bytes of snapshots that have gone out and come in, those of broken transfers included.
    pub(crate) fn bytes(&self) -> SnapshotBytes {
        SnapshotBytes {
            sent: self.sent_bytes.load(Ordering::Relaxed),
            received: self.received_bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn new_dir(&self, what: &str) -> Result<StagingDir, String> {
        let number = self.dirs.fetch_add(1, Ordering::Relaxed);
        let path = self.staging.join(format!("{what}-{number}"));
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(StagingDir { path })
    }

    /// Why no snapshot is received now, if so.
    pub(crate) fn refusal_to_receive(&self) -> Option<String> {
        (self.receiving.available_permits() == 0).then(receives_enough)
    }

    /// When `bytes` more may be sent, given that sending began at `begin`.
    fn due(&self, begin: Instant, sent: u64) -> Instant {
        let ms = sent.saturating_mul(1000) / self.bytes_per_s;
        begin + Duration::from_millis(ms)
    }
}

/// What a node's snapshots have weighed on the network since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotBytes {
    /// To other nodes.
    pub sent: u64,
    /// From other nodes.
    pub received: u64,
}

/// A directory in staging, removed with its files when dropped. What a crash leaves is removed at open.
pub(crate) struct StagingDir {
    path: PathBuf,
}

impl StagingDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "staging directory stays until the next start");
        }
    }
}

/// Sends a snapshot and waits until it is installed. Gives the receiver's vote.
pub(crate) async fn send(
    link: &Link,
    shard: u32,
    vote: Vote,
    snapshot: Snapshot,
    pace: &SnapshotPace,
) -> Result<Vote, String> {
    let SnapshotData::Taken(taken) = snapshot.snapshot else {
        return Err("a received snapshot is not sent on".to_owned());
    };
    let _permit = pace.sending.acquire().await.map_err(|e| e.to_string())?;
    // A node that is to get a replica soon refuses a few times: not worth writing all rows each time.
    ask_whether_taken(link, shard).await?;
    let dir = pace.new_dir("send")?;
    let path = dir.path.clone();
    let meta = taken.meta().clone();
    let written = background::run(Haste::None, move || taken.write_files(&path, &mut |_| ()));
    let files = written
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let begin = peer::SnapshotBegin {
        hello: Some(link.hello(shard)),
        vote: Some(wire::vote_out(&vote)),
        format: SNAPSHOT_FORMAT,
        last: snapshot.meta.last_log_id.map(wire::log_id_out),
        membership: types::encode_stored_membership(&snapshot.meta.last_membership).into(),
        meta: meta.encode().into(),
        files: files.iter().map(describe).collect(),
    };
    tracing::info!(
        peer = link.node,
        shard,
        files = files.len(),
        "sending a snapshot"
    );
    transfer(link, begin, &files, pace).await
}

/// Its word keeps no place: others may come first while the files are written.
async fn ask_whether_taken(link: &Link, shard: u32) -> Result<(), String> {
    let ask = Ask::TakesSnapshot(peer::TakesSnapshot { shard });
    consent(link.call(ask, ASK_TIMEOUT).await)
}

fn consent(answer: Result<Answer, String>) -> Result<(), String> {
    match answer {
        Ok(Answer::TakesSnapshot(reply)) if reply.refusal.is_empty() => Ok(()),
        Ok(Answer::TakesSnapshot(reply)) => Err(reply.refusal),
        Ok(other) => Err(format!("unexpected answer {other:?}")),
        // An older build takes what it is sent.
        Err(reason) if reason == UNKNOWN_CALL => Ok(()),
        Err(reason) => Err(reason),
    }
}

pub(crate) fn describe(file: &SnapshotFile) -> peer::SnapshotFile {
    let name = file.path.file_name().unwrap_or_default();
    peer::SnapshotFile {
        name: name.to_string_lossy().into_owned(),
        bytes: file.bytes,
        checksum: file.checksum,
    }
}

async fn transfer(
    link: &Link,
    begin: peer::SnapshotBegin,
    files: &[SnapshotFile],
    pace: &SnapshotPace,
) -> Result<Vote, String> {
    // Two chunks in memory; more would only wait.
    let (steps, outgoing) = mpsc::channel(2);
    let steps = Steps::new(steps, |step| step);
    steps.push(Step::Begin(begin)).await?;
    let mut client = link.snapshot_client();
    let opened = client.snapshot(link.sign(ReceiverStream::new(outgoing)));
    let mut answers = within(STALL_TIMEOUT, opened).await?.into_inner();
    match within(STALL_TIMEOUT, answers.message())
        .await?
        .and_then(|answer| answer.step)
    {
        Some(AnswerStep::Resume(_)) => {}
        other => return Err(format!("unexpected answer {other:?}")),
    }
    send_chunks(files, pace, true, &steps).await?;
    match within(INSTALL_TIMEOUT, answers.message())
        .await?
        .and_then(|answer| answer.step)
    {
        Some(AnswerStep::Installed(vote)) => {
            wire::vote_in(Some(vote)).map_err(|error| error.to_string())
        }
        other => Err(format!("unexpected answer {other:?}")),
    }
}

/// Where the steps of a transfer go: into a call, or into the answer to one.
pub(crate) struct Steps<T> {
    steps: mpsc::Sender<T>,
    wrap: fn(peer::SnapshotRequest) -> T,
}

impl<T: Send> Steps<T> {
    pub(crate) fn new(steps: mpsc::Sender<T>, wrap: fn(peer::SnapshotRequest) -> T) -> Steps<T> {
        Steps { steps, wrap }
    }

    async fn push(&self, step: Step) -> Result<(), String> {
        let request = (self.wrap)(peer::SnapshotRequest { step: Some(step) });
        match self.steps.send_timeout(request, STALL_TIMEOUT).await {
            Ok(()) => Ok(()),
            Err(_) => Err("the stream ended or stands still".to_owned()),
        }
    }
}

/// Sends files with their description, and that these were all.
pub(crate) async fn send_files<T: Send>(
    begin: peer::SnapshotBegin,
    files: &[SnapshotFile],
    pace: &SnapshotPace,
    throttled: bool,
    steps: &Steps<T>,
) -> Result<(), String> {
    steps.push(Step::Begin(begin)).await?;
    send_chunks(files, pace, throttled, steps).await
}

async fn send_chunks<T: Send>(
    files: &[SnapshotFile],
    pace: &SnapshotPace,
    throttled: bool,
    steps: &Steps<T>,
) -> Result<(), String> {
    let (started, mut sent) = (Instant::now(), 0_u64);
    for (number, file) in (0_u32..).zip(files) {
        let open = open(&file.path).await?;
        let mut offset = 0;
        while offset < file.bytes {
            let content = read_chunk(&open, offset, &file.path).await?;
            let len = content.len() as u64;
            let chunk = peer::SnapshotChunk {
                file: number,
                offset,
                crc: crc32fast::hash(&content),
                content: content.into(),
            };
            if throttled {
                tokio::time::sleep_until(pace.due(started, sent)).await;
            }
            steps.push(Step::Chunk(chunk)).await?;
            offset += len;
            sent += len;
            pace.sent_bytes.fetch_add(len, Ordering::Relaxed);
        }
    }
    steps.push(Step::End(peer::SnapshotEnd {})).await
}

async fn within<T>(
    timeout: Duration,
    step: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, String> {
    match tokio::time::timeout(timeout, step).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(status)) => Err(status.to_string()),
        Err(_) => Err(format!("no progress for {timeout:?}")),
    }
}

async fn open(path: &Path) -> Result<Arc<File>, String> {
    let opened = path.to_owned();
    let file = beside(path, move || File::open(opened)).await?;
    Ok(Arc::new(file))
}

async fn read_chunk(file: &Arc<File>, offset: u64, path: &Path) -> Result<Vec<u8>, String> {
    let file = Arc::clone(file);
    let content = beside(path, move || {
        let mut content = vec![0; CHUNK_BYTES];
        let mut len = 0;
        while len < CHUNK_BYTES {
            match file.read_at(&mut content[len..], offset + len as u64) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        content.truncate(len);
        Ok(content)
    });
    let content = content.await?;
    if content.is_empty() {
        return Err(format!("{} is shorter than it was", path.display()));
    }
    Ok(content)
}

/// Does something with a file where it may block.
async fn beside<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let done = simulation::blocking(work).await;
    done.map_err(|error| failed(&error))?
        .map_err(|error| failed(&error))
}

fn receives_enough() -> String {
    format!("{TRANSFERS_MAX} snapshots are being received already")
}

/// Receives what follows `begin`.
pub(crate) async fn receive(
    begin: &peer::SnapshotBegin,
    steps: &mut Streaming<peer::SnapshotRequest>,
    pace: &SnapshotPace,
) -> Result<Received, String> {
    if begin.format != SNAPSHOT_FORMAT {
        return Err(format!(
            "snapshot format {}, this build reads {SNAPSHOT_FORMAT}",
            begin.format
        ));
    }
    let meta = SnapshotMeta::decode(&begin.meta).map_err(|error| error.to_string())?;
    let _permit = pace
        .receiving
        .try_acquire()
        .map_err(|_| receives_enough())?;
    let (files, dir) = receive_files(begin, steps, STALL_TIMEOUT, pace).await?;
    Ok(Received {
        meta,
        files,
        _dir: dir,
    })
}

/// Receives what an answer to a call for the rows of a slot begins with. [`receive_files`] gets the rest. The other side
/// writes its files first, for as long as the caller waits.
pub(crate) async fn receive_begin(
    steps: &mut Streaming<peer::SnapshotRequest>,
) -> Result<peer::SnapshotBegin, String> {
    let begin = steps.message().await.map_err(|status| status.to_string())?;
    let Some(Step::Begin(begin)) = begin.and_then(|request| request.step) else {
        return Err("rows came without a description".to_owned());
    };
    Ok(begin)
}

/// Receives the files of a description, and that these were all; each next piece within `stall`.
pub(crate) async fn receive_files(
    begin: &peer::SnapshotBegin,
    steps: &mut Streaming<peer::SnapshotRequest>,
    stall: Duration,
    pace: &SnapshotPace,
) -> Result<(Vec<PathBuf>, StagingDir), String> {
    let dir = pace.new_dir("receive")?;
    let mut files = Vec::with_capacity(begin.files.len());
    for (number, file) in (0_u32..).zip(&begin.files) {
        let path = dir.path.join(format!("{number:06}"));
        receive_file((number, file), &path, steps, stall, pace).await?;
        files.push(path);
    }
    match next_step(steps, stall).await? {
        Step::End(_) => Ok((files, dir)),
        Step::Begin(_) | Step::Chunk(_) => Err("more was sent than announced".to_owned()),
    }
}

async fn next_step(
    steps: &mut Streaming<peer::SnapshotRequest>,
    stall: Duration,
) -> Result<Step, String> {
    within(stall, steps.message())
        .await?
        .and_then(|request| request.step)
        .ok_or_else(|| "the stream ended early".to_owned())
}

async fn receive_file(
    (number, file): (u32, &peer::SnapshotFile),
    path: &Path,
    steps: &mut Streaming<peer::SnapshotRequest>,
    stall: Duration,
    pace: &SnapshotPace,
) -> Result<(), String> {
    let created = path.to_owned();
    let out = Arc::new(beside(path, move || File::create(created)).await?);
    let (mut offset, mut hasher) = (0_u64, Xxh3Default::new());
    while offset < file.bytes {
        let Step::Chunk(chunk) = next_step(steps, stall).await? else {
            return Err(format!("{}: chunks are missing", file.name));
        };
        if chunk.file != number || chunk.offset != offset || chunk.content.is_empty() {
            return Err(format!("{}: chunks are out of order", file.name));
        }
        if crc32fast::hash(&chunk.content) != chunk.crc {
            return Err(format!("{}: the chunk at {offset} is damaged", file.name));
        }
        hasher.update(&chunk.content);
        let len = chunk.content.len() as u64;
        // The engine reads the file at once and writes its own, which it syncs: this one needs no sync.
        let out = Arc::clone(&out);
        beside(path, move || out.write_all_at(&chunk.content, offset)).await?;
        offset += len;
        pace.received_bytes.fetch_add(len, Ordering::Relaxed);
    }
    if offset != file.bytes || hasher.digest() != file.checksum {
        return Err(format!("{}: the file is damaged", file.name));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(refusal: &str) -> Result<Answer, String> {
        let refusal = refusal.to_owned();
        Ok(Answer::TakesSnapshot(peer::TakesSnapshotReply { refusal }))
    }

    #[test]
    fn nothing_is_written_for_a_peer_that_would_not_take_it_or_does_not_answer() {
        assert_eq!(consent(answered("")), Ok(()));
        let refusal = "shard 3 does not run here";
        assert_eq!(consent(answered(refusal)), Err(refusal.to_owned()));
        let silent = "node 2 did not answer within 1s";
        assert_eq!(consent(Err(silent.to_owned())), Err(silent.to_owned()));
        assert_eq!(
            consent(Err(UNKNOWN_CALL.to_owned())),
            Ok(()),
            "an older build"
        );
        assert!(consent(Ok(Answer::Error(String::new()))).is_err());
    }

    #[test]
    fn a_node_that_receives_enough_says_so() {
        let pace = SnapshotPace::new(PathBuf::new(), 1);
        assert_eq!(pace.refusal_to_receive(), None);
        let permits: Vec<_> = (0..TRANSFERS_MAX)
            .map(|_| pace.receiving.try_acquire().unwrap())
            .collect();
        assert!(pace.refusal_to_receive().is_some());
        drop(permits);
        assert_eq!(pace.refusal_to_receive(), None);
    }
}
