//! Gateways that register themselves with the cluster: they are seen, missed, and go.

use std::path::Path;

use mailbox_client::Client;
use mailbox_client::v1::{Gateway, GatewayStanding, RegisterUserRequest};
use mailbox_gateway::token::{TokenSigner, issue};
use rustix::process::Signal;

use crate::chat;
use crate::cluster::{KEY, Trio};
use crate::http;
use crate::process::{Dev, PATIENCE, Process};
use crate::slot_moves::{eventually, give_lead, start_to_die};
use crate::ws::Socket;

/// Soon missed, soon forgotten: 600 ms, 12 s.
const SHORT: &str = "gateway.refresh_ms=200";
/// Never missed while a test runs: three minutes.
const LONG: &str = "gateway.refresh_ms=60000";

struct Started {
    process: Process,
    /// `host:port`.
    listen: String,
    url: String,
}

fn start(trio: &Trio, options: &[&str]) -> Started {
    let args = trio.gateway_args(options);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let process = Process::start(&args);
    let ready = process.says()["ready"].clone();
    let text = |key: &str| ready[key].as_str().unwrap().to_owned();
    Started {
        listen: text("listen"),
        url: text("url"),
        process,
    }
}

/// The gateway with this id, if it is registered.
async fn find(client: &Client, id: &str) -> Option<Gateway> {
    let gateways = client.gateways().await.ok()?;
    gateways.into_iter().find(|gateway| gateway.gateway == id)
}

async fn stands(client: &Client, id: &str, standing: GatewayStanding) -> Gateway {
    eventually(&format!("{id} is {standing:?}"), || async {
        let found = find(client, id).await?;
        (found.standing() == standing).then_some(found)
    })
    .await
}

async fn is_forgotten(client: &Client, id: &str) {
    eventually(&format!("{id} is forgotten"), || async {
        let gateways = client.gateways().await.ok()?;
        let mut gateways = gateways.iter();
        gateways.all(|gateway| gateway.gateway != id).then_some(())
    })
    .await;
}

fn url(gateway: &Gateway) -> &str {
    &gateway.facts.as_ref().unwrap().websocket_url
}

/// A number that a gateway's metrics show.
fn metric(listen: &str, line: &str) -> u64 {
    let answer = http::get(listen, "/metrics", None);
    let found = answer.body.lines().find_map(|it| it.strip_prefix(line));
    found.map_or(0, |number| number.trim().parse().unwrap())
}

async fn token(client: &Client) -> String {
    let call = RegisterUserRequest {
        request_id: client.new_message_id().as_bytes().to_vec().into(),
        handle: "alice".to_owned(),
    };
    client.register_user(call).await.expect("registered");
    let signer = TokenSigner::hs256(KEY.as_bytes()).unwrap();
    issue(&signer, &"@alice".parse().unwrap(), PATIENCE).unwrap()
}

fn stop(trio: Trio) {
    for node in trio.nodes.into_iter().flatten() {
        assert!(node.stop(Signal::TERM).success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_seen_missed_when_it_is_killed_and_forgotten_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start(dir.path());
    let client = trio.client().await;
    assert_eq!(client.gateways().await.expect("none is known"), []);
    let place = ["gateway.id=gw-a", "gateway.region=eu", "gateway.zone=eu-1"];
    let stays = start(&trio, &[&place[..], &[SHORT]].concat());
    let dies = start(&trio, &["gateway.id=gw-b", SHORT]);
    let seen = stands(&client, "gw-a", GatewayStanding::Serving).await;
    let facts = seen.facts.clone().unwrap();
    assert_eq!(facts.websocket_url, stays.url);
    assert_eq!(facts.http_url, format!("http://{}", stays.listen));
    assert_eq!((&*facts.region, &*facts.zone), ("eu", "eu-1"));
    assert!(!facts.version.is_empty() && facts.run != 0, "{facts:?}");
    let _socket = Socket::connect(&stays.listen, &token(&client).await).await;
    eventually("its connections are told", || async {
        let found = find(&client, "gw-a").await?;
        (found.connections == Some(1)).then_some(())
    })
    .await;

    let first = stands(&client, "gw-b", GatewayStanding::Serving).await;
    dies.process.stop(Signal::KILL);
    stands(&client, "gw-b", GatewayStanding::Silent).await;
    stands(&client, "gw-a", GatewayStanding::Serving).await;
    // The next process with its id takes its place.
    let again = start(&trio, &["gateway.id=gw-b", SHORT]);
    let second = stands(&client, "gw-b", GatewayStanding::Serving).await;
    assert_eq!(url(&second), again.url);
    let run = |gateway: &Gateway| gateway.facts.as_ref().unwrap().run;
    assert!(run(&second) > run(&first));
    again.process.stop(Signal::KILL);
    // Whoever leads next has heard of nobody, and finds out.
    let leads = leader_of_meta(&trio, &client).await;
    trio.nodes[leads].take().unwrap().stop(Signal::KILL);
    is_forgotten(&client, "gw-b").await;
    let seen = stands(&client, "gw-a", GatewayStanding::Serving).await;
    assert_eq!(url(&seen), stays.url);
    assert!(client.forget_gateway("gw-a", 0).await.expect("forgotten"));
    // One that serves comes back by itself.
    stands(&client, "gw-a", GatewayStanding::Serving).await;
    assert!(!client.forget_gateway("nobody", 0).await.expect("judged"));
    drop(stays);
    stop(trio);
}

async fn leader_of_meta(trio: &Trio, client: &Client) -> usize {
    eventually("a node leads the meta shard", || async {
        for (index, address) in trio.addresses().iter().enumerate() {
            let Ok(status) = client.status(Some(address)).await else {
                continue;
            };
            let mut shards = status.shards.iter();
            if shards.any(|shard| shard.shard == 0 && shard.role == "leader") {
                return Some(index);
            }
        }
        None
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_drains_and_takes_itself_out() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start(dir.path());
    let client = trio.client().await;
    let gateway = start(&trio, &["gateway.id=gw-a", LONG]);
    stands(&client, "gw-a", GatewayStanding::Serving).await;
    // It stays open although it is told to go: the drain takes its time.
    let socket = Socket::connect(&gateway.listen, &token(&client).await).await;
    gateway.process.signal(Signal::TERM);
    stands(&client, "gw-a", GatewayStanding::Draining).await;
    assert!(gateway.process.wait().success());
    is_forgotten(&client, "gw-a").await;
    drop(socket);
    stop(trio);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_gateways_with_one_id_the_later_one_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let trio = Trio::start(dir.path());
    let client = trio.client().await;
    let first = start(&trio, &["gateway.id=gw-a", SHORT]);
    stands(&client, "gw-a", GatewayStanding::Serving).await;
    let second = start(&trio, &["gateway.id=gw-a", LONG]);
    let has_it = || async {
        let found = find(&client, "gw-a").await?;
        (url(&found) == second.url).then_some(())
    };
    eventually("the later one has it", has_it).await;
    let refused = "mailbox_gateway_registrations_total{outcome=\"failed\"}";
    eventually("the first one is told", || async {
        let told = metric(&first.listen, "mailbox_gateway_registered") == 0;
        (told && metric(&first.listen, refused) > 0).then_some(())
    })
    .await;
    // It serves all the same, and takes nothing from the other one when it stops.
    assert_eq!(http::get(&first.listen, "/readyz", None).status, 200);
    assert!(first.process.stop(Signal::TERM).success());
    eventually("the later one still has it", has_it).await;
    assert_eq!(metric(&second.listen, "mailbox_gateway_registered"), 1);
    assert!(second.process.stop(Signal::TERM).success());
    is_forgotten(&client, "gw-a").await;
    stop(trio);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_do_not_know_gateways_are_spared_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut trio = Trio::start(dir.path());
    let client = trio.client().await;
    start_to_die(&mut trio, dir.path(), 2, "gateways_unknown=return");
    give_lead(&trio, &client, 0, 0).await;
    let gateway = start(&trio, &["gateway.id=gw-a", SHORT]);
    let refused = "mailbox_gateway_registrations_total{outcome=\"failed\"}";
    eventually("it was refused some times", || async {
        (metric(&gateway.listen, refused) >= 3).then_some(())
    })
    .await;
    assert_eq!(client.gateways().await.expect("a leader says so"), []);
    let answer = http::get(&gateway.listen, "/readyz", None);
    assert_eq!(answer.status, 200, "it serves all the same");
    renew(&mut trio, dir.path(), 2);
    stands(&client, "gw-a", GatewayStanding::Serving).await;
    // Whoever has taken gateways in needs not be asked: one that is down keeps nobody out.
    let leads = leader_of_meta(&trio, &client).await;
    let other = (leads + 1) % 3;
    trio.nodes[other].take().unwrap().stop(Signal::KILL);
    give_lead(&trio, &client, (leads + 2) % 3, 0).await;
    let _another = start(&trio, &["gateway.id=gw-b", SHORT]);
    stands(&client, "gw-b", GatewayStanding::Serving).await;
    stop(trio);
}

/// Starts a node anew.
fn renew(trio: &mut Trio, dir: &Path, index: usize) {
    let before = trio.nodes[index].take().unwrap();
    assert!(before.stop(Signal::TERM).success());
    trio.nodes[index] = Some(trio.node(dir, index));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_of_a_development_server_registers_and_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = None;
    for _ in 0..2 {
        let dev = Dev::start(dir.path());
        let client = chat::client(&dev).await;
        let only = eventually("one gateway is registered", || async {
            let gateways = client.gateways().await.ok()?;
            let one = gateways.len() == 1 && gateways[0].standing() == GatewayStanding::Serving;
            one.then(|| gateways[0].clone())
        })
        .await;
        assert_eq!(url(&only), dev.text("url"));
        // Its id is another one each time; the one of the run before is gone.
        assert_ne!(before.replace(only.gateway.clone()), Some(only.gateway));
        assert!(dev.process.stop(Signal::TERM).success());
    }
}
