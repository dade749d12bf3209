//! Starting and stopping: ports, TLS, signals, health.

use std::net::TcpListener;
use std::path::Path;

use mailbox_client::{Auth, Client, ClientOptions, Tls};
use rustix::process::Signal;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::process::{Dev, Process, run};

pub(crate) const SECRET: &[u8] = b"a cluster secret for tests";

/// A configuration of one node in `dir`, on free ports.
pub(crate) fn write_config(dir: &Path, more: &str) -> String {
    std::fs::write(dir.join("secret"), SECRET).unwrap();
    let file = dir.join("mailbox.toml");
    let text = format!(
        "[cluster]\nid = \"test\"\nsecret_file = \"{dir}/secret\"\nslot_count = 16\nshards = 1\n\
         [cluster.nodes]\n1 = \"127.0.0.1:0\"\n\
         [node]\ndir = \"{dir}/node\"\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n\
         disk_free_min_percent = 0\ndisk_free_min_bytes = \"16 MiB\"\nconnections_max = 64\n\
         [storage]\nmax_open_files = 128\n[memory]\nbudget_bytes = \"64 MiB\"\n{more}",
        dir = dir.display()
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_port_in_use_is_told_clearly() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let free = "127.0.0.1:0";
    for (listen, grpc, named) in [
        (address.as_str(), free, "--listen"),
        (free, address.as_str(), "--grpc-listen"),
    ] {
        let ended = run(&[
            "dev",
            "--dir",
            path,
            "--listen",
            listen,
            "--grpc-listen",
            grpc,
        ]);
        assert!(!ended.status.success());
        assert!(ended.stderr.contains(&address), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(named) && ended.stderr.contains("another process"),
            "{}",
            ended.stderr
        );
        assert!(!dir.path().join("node").exists(), "no data is made");
    }
    let file = write_config(dir.path(), "");
    let ended = run(&[
        "server",
        "--config",
        &file,
        "--set",
        &format!("node.listen={address}"),
    ]);
    assert!(!ended.status.success());
    assert!(ended.stderr.contains("node.listen"), "{}", ended.stderr);
    assert!(!dir.path().join("node").exists(), "no data is made");
}

#[test]
fn a_directory_is_used_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Dev::start(dir.path());
    let free = "127.0.0.1:0";
    let path = dir.path().to_str().unwrap();
    let ended = run(&[
        "dev",
        "--dir",
        path,
        "--listen",
        free,
        "--grpc-listen",
        free,
        "--shards",
        "1",
    ]);
    assert!(!ended.status.success());
    assert!(
        ended.stderr.to_lowercase().contains("lock"),
        "{}",
        ended.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_reports_health_and_stops_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = write_config(dir.path(), "");
    let process = Process::start(&["server", "--json", "--config", &file]);
    let ready = process.says();
    let grpc = ready["ready"]["grpc"]
        .as_str()
        .expect("an address")
        .to_owned();
    let metrics = ready["ready"]["metrics"]
        .as_str()
        .expect("an address")
        .to_owned();
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{grpc}")).unwrap();
    let mut health = HealthClient::new(channel.connect().await.expect("connect"));
    let mut serving = false;
    for _ in 0..200 {
        let service = "mailbox.v1.Mailbox".to_owned();
        let answer = health
            .check(HealthCheckRequest { service })
            .await
            .expect("health");
        serving = answer.into_inner().status() == ServingStatus::Serving;
        if serving {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(serving, "the node becomes healthy");
    let page = crate::http::get(&metrics, "/readyz", None);
    assert_eq!(page.status, 200, "{}", page.body);
    assert_eq!(crate::http::get(&metrics, "/healthz", None).status, 200);
    let stopped = process.stop(Signal::TERM);
    assert!(stopped.success(), "{stopped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_speaks_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let cert = made.cert.pem();
    std::fs::write(dir.path().join("cert.pem"), &cert).unwrap();
    std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let path = dir.path().display();
    let more = format!("[tls]\ncert_file = \"{path}/cert.pem\"\nkey_file = \"{path}/key.pem\"\n");
    let file = write_config(dir.path(), &more);
    let process = Process::start(&["server", "--json", "--config", &file]);
    let grpc = process.says()["ready"]["grpc"]
        .as_str()
        .expect("an address")
        .to_owned();

    let auth = || Auth::Secret {
        cluster_id: Some("test".into()),
        secret: SECRET.to_vec(),
    };
    let mut options = ClientOptions::new(vec![grpc.clone()], auth());
    options.tls = Some(Tls {
        ca_pem: cert.into_bytes(),
        domain: Some("localhost".into()),
    });
    let client = Client::connect(options).await.expect("connect");
    let map = client.shard_map().await.expect("a call over TLS");
    assert_eq!(map.cluster_id, "test");

    let mut plain = ClientOptions::new(vec![grpc], auth());
    plain.timeouts.deadline = std::time::Duration::from_secs(1);
    let answer = match Client::connect(plain).await {
        Ok(client) => client.shard_map().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(answer.is_err(), "plaintext gets nowhere");
    assert!(process.stop(Signal::TERM).success());
}
