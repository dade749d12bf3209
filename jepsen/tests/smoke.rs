//! A short run of the smoke workload against the real `mailboxd`.

mod binary;

use mailbox_jepsen::checker::Verdict;
use mailbox_jepsen::smoke::{self, SmokeOptions};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acked_is_lost_doubled_or_reordered_under_kills_and_pauses() {
    let store = tempfile::tempdir().expect("a temporary directory");
    let mut options = SmokeOptions {
        nodes: 3,
        seconds: 20,
        seed: u64::from(rand::random::<u32>()),
        shards: 4,
        binary: Some(binary::mailboxd()),
        store: store.path().to_owned(),
    };
    if let Some(seed) = std::env::var("MAILBOX_JEPSEN_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        options.seed = seed;
    }
    println!("seed {} (set MAILBOX_JEPSEN_SEED to repeat)", options.seed);
    let summary = smoke::run(&options).await;
    let valid = matches!(&summary, Ok(summary) if summary.verdict == Verdict::Valid);
    if !valid {
        let kept = store.keep();
        panic!(
            "{summary:#?}\nhistory, data and logs are kept in {}",
            kept.display()
        );
    }
    println!("{summary:#?}");
}
