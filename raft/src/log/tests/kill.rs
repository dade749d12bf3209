//! A process killed at any moment keeps what it acked.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

const DIR: &str = "MAILBOX_TEST_LOG_DIR";
const ROUNDS: u64 = 8;

/// Appends until it is killed, and says what was acked.
#[tokio::test]
async fn child_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let log = open(Path::new(&dir));
    let mut shard = log.shard_log(SHARD).unwrap();
    let mut next = last(&mut shard).await.map_or(1, |last| last.index + 1);
    let mut out = std::io::stdout();
    loop {
        let count = next % 7 + 1;
        let entries = (next..next + count).map(|i| entry(1, i, 3000));
        append(&mut shard, entries).await;
        next += count;
        if next.is_multiple_of(5) {
            shard.save_vote(&vote(next, 1)).await.unwrap();
        }
        if next > 300 {
            shard.purge(log_id(1, next - 300)).await.unwrap();
        }
        writeln!(out, "acked {}", next - 1).unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn acked_entries_survive_kills() {
    let dir = tempfile::tempdir().unwrap();
    let mut acked = 0;
    for round in 1..=ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("log::tests::kill::child_appends_until_it_is_killed")
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines {
            if let Some(index) = line.unwrap().rsplit("acked ").next()
                && let Ok(index) = index.parse::<u64>()
            {
                acked = index;
                seen += 1;
            }
            if seen == 20 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= 20 * round);
        let log = open(dir.path());
        let mut shard = log.shard_log(SHARD).unwrap();
        let state = shard.get_log_state().await.unwrap();
        assert!(state.last_log_id.unwrap().index >= acked);
        let first = state
            .last_purged_log_id
            .map_or(1, |purged| purged.index + 1);
        let kept = terms(&mut shard, first, 3000).await.len() as u64;
        assert_eq!(first + kept, state.last_log_id.unwrap().index + 1);
        let vote = shard.read_vote().await.unwrap().unwrap();
        assert!(vote.leader_id.term + 35 >= acked, "{vote} after {acked}");
    }
}
