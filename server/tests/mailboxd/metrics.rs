//! `METRICS.md` lists what a process of both roles exports, no more and no less.

use std::collections::BTreeSet;

use crate::chat::{client, text_to};
use crate::http;
use crate::process::Dev;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_lists_every_metric_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path());
    // Labelled metrics exist once something was counted: a good send and a refused one.
    let client = client(&dev).await;
    let alice: u64 = dev.user("alice", "id").parse().unwrap();
    client
        .send(text_to(&client, alice, alice, "a note to myself"))
        .await
        .expect("acked");
    let mut damaged = text_to(&client, alice, alice, "damaged");
    damaged.content_crc ^= 1;
    client.send(damaged).await.expect_err("refused");

    let answer = http::get(&dev.gateway(), "/metrics", None);
    assert_eq!(answer.status, 200);
    let mut exported = BTreeSet::new();
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            let suffix = if kind == "counter" { "_total" } else { "" };
            exported.insert(format!("{name}{suffix}"));
        }
    }
    let documented: BTreeSet<String> = include_str!("../../METRICS.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    // A labelled metric is exported once it was counted; until then its name is in the source.
    let sources = concat!(
        include_str!("../../src/metrics.rs"),
        include_str!("../../../gateway/src/metrics.rs")
    );
    for name in documented.difference(&exported) {
        let bare = name
            .trim_end_matches("_total")
            .trim_start_matches("mailbox_server_")
            .trim_start_matches("mailbox_placement_")
            .trim_start_matches("mailbox_gateways_");
        assert!(
            sources.contains(&format!("\"{bare}\"")),
            "{name} is listed but does not exist"
        );
    }
    let sorted = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>();
    assert_eq!(
        sorted(exported.difference(&documented).cloned().collect()),
        [""; 0],
        "not listed"
    );
    for name in &exported {
        let fits = name.starts_with("mailbox_")
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        assert!(fits, "{name}");
    }
}
