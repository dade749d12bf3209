//! Files that are not what a node left there.
//!
//! Only of one node at a time, which is stopped in order before: it then knows how far its log went, and may not take a
//! short one for whole. What it has to do is to notice, now or when it reads, and to stop rather than to serve what is
//! not so. What its operator has to do is to replace it.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use mailbox_cluster::Node;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use tokio::time::{Instant, sleep};

use super::install::{Done, skipped};
use super::{Kind, Stage, deaths, operator};
use crate::history::Installation;

/// An orderly stop may take so long.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// What is written between a copy of a directory and its return.
const APART: Duration = Duration::from_secs(3);
/// The node goes on with what is not its own for so long, if it does.
const GOES_ON: Duration = Duration::from_secs(4);
/// What RocksDB writes for people, and what holds nothing.
const FOR_PEOPLE: [&str; 3] = ["LOG", "OPTIONS", "LOCK"];

impl Stage<'_> {
    /// Spoils a node's files, lets it find out, and replaces it. It has `hold` for all of that.
    pub(super) async fn corrupt(
        &mut self,
        kind: Kind,
        target: u64,
        hold: Duration,
        rng: &mut StdRng,
    ) -> Done {
        let end = Instant::now() + hold;
        if let Some(why) = self.lacks_replicas().await? {
            return skipped(&why);
        }
        // Before anything is spoilt: what is lost must have somewhere to go.
        self.join(hold).await?;
        let found = self.cluster.nodes().iter().find(|node| node.id() == target);
        let node = found.with_context(|| format!("there is no node {target}"))?;
        let what = self.spoil(node, kind, rng).await?;
        tracing::info!(node = target, what, "corrupt");
        node.start()?;
        sleep(GOES_ON).await;
        if kind == Kind::Rollback && node.pid().is_some() {
            let why = format!("node {target} goes on with an old copy of its directory");
            self.deaths.push(why);
        }
        self.discard(kind, target)?;
        if !operator::empty(&self.client, target, end).await? {
            bail!("the replicas of node {target} are not on others yet");
        }
        operator::remove(&self.client, target).await?;
        Ok(Installation::Installed)
    }

    /// Why no node may lose what it has: a shard is not whole.
    async fn lacks_replicas(&self) -> anyhow::Result<Option<String>> {
        let map = self.client.cluster_map().await.context("ask for the map")?;
        let here: Vec<u64> = self.cluster.nodes().iter().map(Node::id).collect();
        for shard in map.shards.iter().filter(|it| !it.slots.is_empty()) {
            let replicas = &shard.replicas;
            let are_all = replicas
                .iter()
                .all(|it| it.voter && here.contains(&it.node));
            if replicas.len() < 3 || !are_all {
                let why = format!("shard {} has not all of its replicas", shard.shard);
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// Stops a node and changes what it has; says what.
    async fn spoil(&self, node: &Node, kind: Kind, rng: &mut StdRng) -> anyhow::Result<String> {
        let data = node.data_dir();
        let copy = data.with_extension("before");
        node.stop(STOP_WITHIN).await?;
        match kind {
            Kind::CutFile => return cut(data, rng),
            Kind::FlipBit => return flip(data, rng),
            _ => {}
        }
        if copy.exists() {
            std::fs::remove_dir_all(&copy).context("remove an older copy")?;
        }
        copy_all(data, &copy)?;
        node.start()?;
        self.cluster.wait_ready(STOP_WITHIN).await?;
        sleep(APART).await;
        // Each time it starts, it tells the others how far its log goes: from now on they know that the copy is old.
        node.stop(STOP_WITHIN).await?;
        node.start()?;
        self.cluster.wait_ready(STOP_WITHIN).await?;
        node.stop(STOP_WITHIN).await?;
        std::fs::remove_dir_all(data)
            .and_then(|()| std::fs::rename(&copy, data))
            .with_context(|| format!("bring {} back", data.display()))?;
        Ok("its directory as it was before".to_owned())
    }

    /// Leaves a node out that has met with this fault.
    fn discard(&mut self, kind: Kind, id: u64) -> anyhow::Result<()> {
        let found = deaths(self.cluster, |node, status| {
            node == id && kind.explains(status)
        });
        self.deaths.extend(found);
        self.cluster.discard(id)?;
        self.ground.abandon(id);
        self.gateways.set(self.cluster);
        Ok(())
    }
}

/// The files that hold something, in an order of their own.
fn files(dir: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let about = entry.metadata();
        let about = about.with_context(|| format!("look at {}", path.display()))?;
        if about.is_dir() {
            found.extend(files(&path)?);
        } else if about.len() > 0
            && !FOR_PEOPLE
                .iter()
                .any(|it| name.to_string_lossy().starts_with(it))
        {
            found.push((path, about.len()));
        }
    }
    found.sort();
    Ok(found)
}

fn choose(dir: &Path, rng: &mut StdRng) -> anyhow::Result<(PathBuf, u64)> {
    let files = files(dir)?;
    let chosen = files.choose(rng).cloned();
    chosen.with_context(|| format!("{} is empty", dir.display()))
}

/// Changes one bit; says which.
fn flip(dir: &Path, rng: &mut StdRng) -> anyhow::Result<String> {
    let (path, bytes) = choose(dir, rng)?;
    let (at, bit) = (rng.random_range(0..bytes), rng.random_range(0..8));
    let flip = || -> std::io::Result<()> {
        let mut file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)?;
        let mut byte = [0];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut byte)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&[byte[0] ^ (1 << bit)])?;
        file.sync_data()
    };
    flip().with_context(|| format!("change {}", path.display()))?;
    Ok(format!("bit {bit} of byte {at} of {}", path.display()))
}

/// Takes the end of a file away; says where.
fn cut(dir: &Path, rng: &mut StdRng) -> anyhow::Result<String> {
    let (path, bytes) = choose(dir, rng)?;
    let left = rng.random_range(0..bytes);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(left).and_then(|()| file.sync_data()))
        .with_context(|| format!("cut {}", path.display()))?;
    Ok(format!("{} of {bytes} bytes, {left} left", path.display()))
}

fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let entries = std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_all(&path, &to)?;
        } else {
            std::fs::copy(&path, &to).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn one_bit_or_one_end_and_only_of_what_holds_something() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("state");
        std::fs::create_dir(&inner).unwrap();
        let sst = inner.join("000007.sst");
        let whole = [7; 100];
        for (path, content) in [
            (sst.clone(), &whole[..]),
            (inner.join("LOG"), &whole[..]),
            (inner.join("OPTIONS-000005"), &whole[..]),
            (dir.path().join("LOCK"), &[][..]),
        ] {
            std::fs::write(path, content).unwrap();
        }
        let copy = dir.path().join("copy");
        copy_all(&inner, &copy).unwrap();
        assert_eq!(files(&copy).unwrap().len(), 1);
        std::fs::remove_dir_all(&copy).unwrap();
        assert_eq!(files(dir.path()).unwrap(), [(sst.clone(), 100)]);

        let mut rng = StdRng::seed_from_u64(7);
        let said = flip(dir.path(), &mut rng).unwrap();
        assert!(said.contains("000007.sst"), "{said}");
        let now = std::fs::read(&sst).unwrap();
        let bits = now.iter().zip(whole).map(|(a, b)| (a ^ b).count_ones());
        assert_eq!((now.len(), bits.sum::<u32>()), (100, 1));

        cut(dir.path(), &mut rng).unwrap();
        assert!(std::fs::read(&sst).unwrap().len() < 100);
        std::fs::remove_file(&sst).unwrap();
        assert!(flip(dir.path(), &mut rng).is_err(), "there is nothing");
    }
}
