//! A cluster that `mailboxctl cluster init` has made: it starts, and `doctor` finds what ails it.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod daemon;

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;

use daemon::mailboxd;

const CTL: &str = env!("CARGO_BIN_EXE_mailboxctl");
/// Longest wait for anything; a good run waits for none of them.
const WITHIN: Duration = Duration::from_secs(50);
const DAY: Duration = Duration::from_secs(86_400);

/// Addresses of loopback with ports that were free a moment ago.
fn addresses<const N: usize>() -> [String; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}

fn ctl(args: &[&str]) -> Output {
    let mut command = Command::new(CTL);
    command
        .env("MAILBOXD", mailboxd())
        .args(args)
        .output()
        .unwrap()
}

/// A node that does not outlive the test.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// What init has made, and how it is asked.
struct Made {
    home: tempfile::TempDir,
    addresses: String,
    ca: Option<PathBuf>,
}

impl Made {
    fn dir(&self) -> PathBuf {
        self.home.path().join("blue")
    }

    fn start(&self, node: usize, options: &[String]) -> Node {
        let mut command = Command::new(mailboxd());
        command.arg("server").arg("--config");
        command.arg(self.dir().join(format!("node-{node}.toml")));
        // The machine's disk and memory are not what is tested.
        let own = [
            "node.disk_free_min_percent=0",
            "node.disk_free_min_bytes=0 B",
            "memory.budget_bytes=256 MiB",
        ];
        let own = own.into_iter().map(str::to_owned);
        for option in own.chain(options.iter().cloned()) {
            command.args(["--set", &option]);
        }
        let log = File::create(self.home.path().join(format!("log-{node}"))).unwrap();
        Node(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }

    fn ask(&self, args: &[&str]) -> (Value, bool) {
        let secret = self.dir().join("mailbox.secret");
        let mut args = [
            args,
            &["--json", "--address", &self.addresses, "--secret-file"],
        ]
        .concat();
        let (secret, ca) = (
            secret.display().to_string(),
            self.ca.as_ref().map(|ca| ca.display().to_string()),
        );
        args.push(&secret);
        if let Some(ca) = &ca {
            args.extend(["--ca-file", ca]);
        }
        let output = ctl(&args);
        let json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&output.stderr).into_owned()));
        (json, output.status.success())
    }

    fn until(&self, args: &[&str], fits: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let (json, _) = self.ask(args);
            if fits(&json) {
                return json;
            }
            assert!(begun.elapsed() < WITHIN, "{args:?}: {json}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn findings(&self, args: &[&str], code: &str) -> Value {
        let args = [&["doctor"], args].concat();
        let found = self.until(&args, |diagnosis| diagnosis["findings"][0]["code"] == code);
        assert_eq!(found["healthy"], false);
        found["findings"].clone()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Three nodes of four shards, in three zones.
fn flags<'a>(dir: &'a str, nodes: &'a str) -> [&'a str; 9] {
    [
        "cluster", "init", dir, "--node", nodes, "--shards", "4", "--zone", "a,b,c",
    ]
}

#[test]
fn a_cluster_that_cannot_be_is_refused_and_nothing_is_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("blue");
    let text = dir.display().to_string();
    let flags = flags(&text, "10.0.0.1:7700,10.0.0.2:7700,10.0.0.3:7700");
    let refused = ctl(&flags);
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(
        words.contains("node-1.toml would be refused") && words.contains("allow_plaintext"),
        "{words}"
    );
    let flags = [&flags[..], &["--allow-plaintext"]].concat();
    let refused = ctl(&[&flags[..], &["--slots", "2"]].concat());
    let words = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{words}");
    assert!(words.contains("cluster.shards = 4"), "{words}");
    let planned = ctl(&[&flags[..], &["--dry-run", "--json"]].concat());
    let planned: Value = serde_json::from_slice(&planned.stdout).unwrap();
    assert_eq!(planned["state"], "possible");
    assert!(
        planned["files"][2]["text"]
            .as_str()
            .unwrap()
            .contains("[cluster.nodes]"),
        "{planned}"
    );
    assert_eq!(
        fs::read_dir(home.path()).unwrap().count(),
        0,
        "nothing was written"
    );

    let written = ctl(&[&flags[..], &["--json"]].concat());
    let written: Value = serde_json::from_slice(&written.stdout).unwrap();
    assert_eq!(
        (written["state"].as_str(), written["cluster_id"].as_str()),
        (Some("written"), Some("blue"))
    );
    let secret = dir.join("mailbox.secret");
    assert_eq!((mode(&secret), mode(&dir.join("auth.key"))), (0o600, 0o600));
    let bytes = fs::read(&secret).unwrap();
    assert_eq!(bytes.len(), 64);
    let again = ctl(&flags);
    let words = String::from_utf8(again.stderr).unwrap();
    assert!(
        again.status.code() == Some(1) && words.contains("is not empty"),
        "{words}"
    );
    assert_eq!(fs::read(&secret).unwrap(), bytes);
}

#[test]
fn what_init_has_made_starts_and_doctor_says_what_ails_it() {
    let home = tempfile::tempdir().unwrap();
    let nodes = addresses::<3>().join(",");
    let dir = home.path().join("blue").display().to_string();
    let written = ctl(&flags(&dir, &nodes));
    assert!(written.status.success(), "{written:?}");
    let made = Made {
        home,
        addresses: nodes,
        ca: None,
    };
    let full = "node.disk_free_min_bytes=16384 GiB".to_owned();
    let running = [
        made.start(1, &[]),
        made.start(2, &[]),
        made.start(3, &[full]),
    ];
    made.until(&["cluster", "status"], |status| {
        status["serves"] == true && status["can_lose"] == 1 && status["nodes"][2]["zone"] == "c"
    });
    let (rows, well) = made.ask(&["meta", "show"]);
    assert!(
        well && rows["shards"].as_array().unwrap().len() == 5,
        "{rows}"
    );
    assert_eq!(rows["options"]["body_bytes_max"], 16_383, "{rows}");

    let found = made.findings(&[], "disk-full");
    assert_eq!(found[0]["place"], "node 3", "{found}");
    let [_one, two, three] = running;
    drop((two, three));
    let found = made.findings(&[], "no-majority");
    assert!(
        found[0]["fix"]
            .as_str()
            .unwrap()
            .contains("node 2 or node 3"),
        "{found}"
    );
    let (rows, well) = made.ask(&["meta", "show", "--stale"]);
    assert!(well && rows["stale"] == true, "{rows}");
    let (picture, well) = made.ask(&["top", "--interval", "100ms"]);
    assert!(!well && picture["can_lose"] == -1, "{picture}");
}

/// Writes a certificate for this machine, and its key.
fn sign(dir: &Path, issuer: &CertifiedIssuer<'_, KeyPair>, begin: SystemTime, end: SystemTime) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_before = begin.into();
    params.not_after = end.into();
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

#[test]
fn a_certificate_is_told_before_it_ends_and_when_it_has() {
    let home = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let ca = home.path().join("authority.pem");
    fs::write(&ca, issuer.pem()).unwrap();
    let now = SystemTime::now();
    sign(home.path(), &issuer, now - DAY, now + 5 * DAY);

    let [node] = addresses::<1>();
    let path = |name: &str| home.path().join(name).display().to_string();
    let (dir, cert, key) = (path("blue"), path("cert.pem"), path("key.pem"));
    let init = ["cluster", "init", &dir, "--node", &node, "--shards", "1"];
    let tls = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-ca",
        &path("authority.pem"),
    ];
    let written = ctl(&[&init[..], &tls[..]].concat());
    assert!(written.status.success(), "{written:?}");
    let made = Made {
        home,
        addresses: node,
        ca: Some(ca),
    };
    let running = made.start(1, &[]);
    made.until(&["cluster", "status"], |status| status["serves"] == true);
    let found = made.findings(&["--gateways-min", "0"], "certificate-expiring");
    assert_eq!(
        (found.as_array().unwrap().len(), found[0]["place"].as_str()),
        (1, Some("node 1")),
        "{found}"
    );
    let (diagnosis, well) = made.ask(&[
        "doctor",
        "--certificate-left-min",
        "1d",
        "--gateways-min",
        "0",
    ]);
    assert!(well && diagnosis["healthy"] == true, "{diagnosis}");

    let register = ["user", "register", "carol"];
    let judge = [&register[..], &["--dry-run"]].concat();
    let (judged, well) = made.ask(&judge);
    assert!(well && judged["state"] == "possible", "{judged}");
    let (registered, well) = made.ask(&register);
    assert!(well && registered["user"].is_string(), "{registered}");
    let (judged, well) = made.ask(&judge);
    let words = judged.as_str().unwrap();
    assert!(
        !well && words.contains("@carol belongs to user"),
        "{judged}"
    );

    drop(running);
    sign(made.home.path(), &issuer, now - 9 * DAY, now - DAY);
    let _running = made.start(1, &[]);
    // Nobody can be asked through such a certificate, but it is seen.
    let found = made.findings(&[], "certificate-expired");
    assert!(
        found[0]["cause"].as_str().unwrap().contains("ago"),
        "{found}"
    );
}
