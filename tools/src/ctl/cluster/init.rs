//! `mailboxctl cluster init`: the files that a new cluster is started from.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::output::OutputArgs;

/// Nodes that a cluster begins with; further ones join.
const FOUNDERS_MAX: usize = 3;
const SECRET: &str = "mailbox.secret";
const AUTH_KEY: &str = "auth.key";
const GATEWAY: &str = "gateway.toml";

/// Write the configs and keys of a new cluster
///
/// For each --node a config, one for gateways, the cluster secret, and the key that users' tokens are signed
/// with, both new and readable by you only. Node ids are 1, 2, 3 in the order given; a fourth node and those
/// after it join the first three. Every config is checked by `mailboxd config check` before anything is put in
/// place, and nothing is ever overwritten: DIR must be new or empty.
///
/// To try a cluster on one machine: `mailboxctl cluster init ./blue --node 127.0.0.1:7701
/// --node 127.0.0.1:7702 --node 127.0.0.1:7703`, then start what it prints.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the files are written; new or empty
    #[arg(value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    /// A node's address, host:port, under which clients and the other nodes reach it; once for each node
    #[arg(long = "node", value_name = "ADDR", required = true, value_delimiter = ',', value_parser = address)]
    nodes: Vec<String>,
    /// The nodes' zones, in the same order: replicas of a shard are spread over them
    #[arg(long = "zone", value_name = "ZONE", value_delimiter = ',')]
    zones: Vec<String>,
    /// The cluster's name, for ever: a node of another one is refused. Default: the name of DIR
    #[arg(long, value_name = "ID")]
    cluster_id: Option<String>,
    /// Shards, for ever: at most one a slot
    #[arg(long, value_name = "N", default_value_t = 16)]
    shards: u16,
    /// Slots, for ever
    #[arg(long, value_name = "N", default_value_t = 1024)]
    slots: u16,
    /// Where the files will be on the nodes. Default: where they are written
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    install_dir: Option<PathBuf>,
    /// Where nodes keep their data, each in node-<id> below it. Default: data in the install directory
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    data_dir: Option<PathBuf>,
    /// The host that nodes listen on, such as 0.0.0.0. Default: the one of their address
    #[arg(long, value_name = "HOST")]
    listen: Option<String>,
    /// Where gateways listen for clients
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address)]
    gateway_listen: String,
    /// PEM of the certificate that each node and gateway serves, on the node
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// PEM of its key, on the node
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// PEM of the authority behind the nodes' certificates, on the node
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// Serve without TLS on addresses that others can reach: everything is then readable on the network
    #[arg(long, conflicts_with = "tls_cert")]
    allow_plaintext: bool,
    /// Check and show what would be written; write nothing
    #[arg(long)]
    dry_run: bool,
    /// The `mailboxd` that checks the configs; default: the one beside this program
    #[arg(long, value_name = "FILE", env = "MAILBOXD")]
    mailboxd: Option<PathBuf>,
}

fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        let port: u16 = port.parse().ok()?;
        (!host.is_empty() && port > 0).then_some(port)
    });
    match port {
        Some(_) => Ok(text.to_owned()),
        None => Err(format!("`{text}` is not host:port")),
    }
}

#[derive(Serialize)]
struct Outcome {
    cluster_id: String,
    /// `written`; in a dry run `possible`.
    state: &'static str,
    dry_run: bool,
    dir: String,
    files: Vec<Written>,
    start: Vec<String>,
}

#[derive(Serialize)]
struct Written {
    file: String,
    what: String,
    mode: String,
    /// In a dry run, of a config.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// A file before it is written.
struct Draft {
    name: String,
    what: String,
    text: String,
    /// Which process reads it; none of a key.
    role: Option<&'static str>,
}

/// What the flags come to.
struct Plan {
    cluster_id: String,
    dir: PathBuf,
    install: PathBuf,
    data: PathBuf,
}

pub(super) fn run(args: &Args, output: OutputArgs) -> anyhow::Result<bool> {
    let plan = plan(args)?;
    require_new(&plan.dir)?;
    let drafts = drafts(args, &plan);
    let mailboxd = mailbox_cluster::find_mailboxd(args.mailboxd.as_deref())
        .context("find the mailboxd that checks the configs (--mailboxd FILE)")?;
    let parent = plan.dir.parent().unwrap_or(Path::new("/"));
    if !args.dry_run {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let mut staging = tempfile::Builder::new();
    staging.prefix(".mailbox-init-");
    let staged = match args.dry_run {
        true => staging.tempdir(),
        // Beside its place, so that it gets there in one step.
        false => staging.tempdir_in(parent),
    };
    let staged = staged.with_context(|| format!("make a directory in {}", parent.display()))?;
    for draft in &drafts {
        write(staged.path(), draft)?;
        if let Some(role) = draft.role {
            check(
                &mailboxd,
                &staged.path().join(&draft.name),
                role,
                &draft.name,
            )?;
        }
    }
    if !args.dry_run {
        put_in_place(staged, &plan.dir)?;
    }
    output.print(&outcome(args, &plan, drafts), human)?;
    Ok(true)
}

fn plan(args: &Args) -> anyhow::Result<Plan> {
    let distinct: BTreeSet<&String> = args.nodes.iter().collect();
    if distinct.len() != args.nodes.len() {
        bail!("two nodes have the same address\n  give each node its own --node host:port");
    }
    if args.nodes.len() == 2 {
        bail!(
            "two nodes bear no failure: the loss of either stops the cluster\n  give one --node to try, three or \
             more to rely on"
        );
    }
    if !args.zones.is_empty() && args.zones.len() != args.nodes.len() {
        bail!(
            "{} zones for {} nodes\n  give one --zone for each --node, in the same order, or none",
            args.zones.len(),
            args.nodes.len()
        );
    }
    let dir =
        std::path::absolute(&args.dir).with_context(|| format!("find {}", args.dir.display()))?;
    let name = dir
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let cluster_id = args.cluster_id.clone().or(name).unwrap_or_default();
    let install = args.install_dir.clone().unwrap_or_else(|| dir.clone());
    let data = args
        .data_dir
        .clone()
        .unwrap_or_else(|| install.join("data"));
    Ok(Plan {
        cluster_id,
        dir,
        install,
        data,
    })
}

/// A directory that holds anything is never touched: it may be a cluster's.
fn require_new(dir: &Path) -> anyhow::Result<()> {
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("read {}", dir.display())),
    };
    if entries.next().is_some() {
        bail!(
            "{} is not empty: nothing is overwritten\n  choose a new directory, or look at what is there: it may \
             be a cluster's secret and configs",
            dir.display()
        );
    }
    Ok(())
}

fn drafts(args: &Args, plan: &Plan) -> Vec<Draft> {
    let key = |name: &str, what: &str| {
        let key: [u8; 32] = rand::random();
        Draft {
            name: name.to_owned(),
            what: what.to_owned(),
            text: crate::node::hex(&key),
            role: None,
        }
    };
    let mut drafts = vec![
        key(
            SECRET,
            "the cluster secret: the same on every node and gateway",
        ),
        key(
            AUTH_KEY,
            "signs users' tokens (HS256): the same on every gateway and where tokens are made",
        ),
    ];
    for (index, address) in args.nodes.iter().enumerate() {
        drafts.push(Draft {
            name: format!("node-{}.toml", index + 1),
            what: format!("of node {} at {address}", index + 1),
            text: node_config(args, plan, index),
            role: Some("server"),
        });
    }
    drafts.push(Draft {
        name: GATEWAY.to_owned(),
        what: "of every gateway".to_owned(),
        text: gateway_config(args, plan),
        role: Some("gateway"),
    });
    drafts
}

/// As a TOML string: what JSON escapes is what TOML escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn cluster_section(args: &Args, plan: &Plan, joins: bool) -> String {
    let founders = args.nodes.iter().take(FOUNDERS_MAX);
    let mut text = format!(
        "[cluster]\nid = {}\nsecret_file = {}\nslot_count = {}\nshards = {}\n",
        quoted(&plan.cluster_id),
        quoted_path(&plan.install.join(SECRET)),
        args.slots,
        args.shards,
    );
    if joins {
        let founders: Vec<String> = founders.map(|address| quoted(address)).collect();
        let _ = writeln!(text, "join = [{}]", founders.join(", "));
    } else {
        text.push_str("\n[cluster.nodes]\n");
        for (index, address) in founders.enumerate() {
            let _ = writeln!(text, "{} = {}", index + 1, quoted(address));
        }
    }
    text
}

fn tls_section(args: &Args) -> String {
    let files = [
        ("cert", &args.tls_cert),
        ("key", &args.tls_key),
        ("ca", &args.tls_ca),
    ];
    let mut text = String::new();
    for (name, file) in files {
        if let Some(file) = file {
            let _ = writeln!(text, "{name}_file = {}", quoted_path(file));
        }
    }
    match text.as_str() {
        "" => text,
        files => format!("\n[tls]\n{files}"),
    }
}

fn node_config(args: &Args, plan: &Plan, index: usize) -> String {
    let (id, address) = (index + 1, &args.nodes[index]);
    let joins = index >= FOUNDERS_MAX;
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let listen = format!("{}:{port}", args.listen.as_deref().unwrap_or(host));
    let mut text = format!(
        "# Node {id} of cluster {}. What is left out has its default: `mailboxd config explain`.\n\n{}",
        plan.cluster_id,
        cluster_section(args, plan, joins)
    );
    let _ = write!(
        text,
        "\n[node]\nid = {id}\ndir = {}\nlisten = {}\n",
        quoted_path(&plan.data.join(format!("node-{id}"))),
        quoted(&listen)
    );
    if joins {
        let _ = writeln!(text, "address = {}", quoted(address));
    }
    if let Some(zone) = args.zones.get(index) {
        let _ = writeln!(text, "zone = {}", quoted(zone));
    }
    let host_of = |address: &str| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let shares_host = args
        .nodes
        .iter()
        .filter(|other| host_of(other) == host_of(address));
    if shares_host.count() > 1 {
        text.push_str("# Several nodes share this host: give each a port of its own.\nmetrics_listen = \"\"\n");
    }
    if args.allow_plaintext {
        text.push_str("allow_plaintext = true\n");
    }
    text.push_str(&tls_section(args));
    text
}

fn gateway_config(args: &Args, plan: &Plan) -> String {
    let mut text = format!(
        "# Every gateway of cluster {}.\n\n{}\n[gateway]\nlisten = {}\n\
         # Of each its own, for `mailboxctl gateway list`: where clients reach it, and where it is.\n\
         # address = \"host:port\"\n# region = \"\"\n# zone = \"\"\n",
        plan.cluster_id,
        cluster_section(args, plan, false),
        quoted(&args.gateway_listen)
    );
    if args.allow_plaintext {
        text.push_str("allow_plaintext = true\n");
    }
    let _ = write!(
        text,
        "\n[auth]\nhs256_secret_file = {}\n",
        quoted_path(&plan.install.join(AUTH_KEY))
    );
    text.push_str(&tls_section(args));
    text
}

fn mode_of(draft: &Draft) -> u32 {
    if draft.role.is_some() { 0o644 } else { 0o600 }
}

fn write(dir: &Path, draft: &Draft) -> anyhow::Result<()> {
    let path = dir.join(&draft.name);
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode_of(draft))
        .open(&path);
    let written = file.and_then(|mut file| {
        file.write_all(draft.text.as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("write {}", path.display()))
}

/// The server's own judgement, by nothing but the file.
fn check(mailboxd: &Path, file: &Path, role: &str, name: &str) -> anyhow::Result<()> {
    let mut command = Command::new(mailboxd);
    command.env_clear();
    command.args(["config", "check", "--role", role]).arg(file);
    let judged = command.output();
    let judged = judged.with_context(|| format!("run {}", mailboxd.display()))?;
    if !judged.status.success() {
        let said = String::from_utf8_lossy(&judged.stderr);
        let said = said.trim().trim_start_matches("error: ");
        bail!(
            "{name} would be refused: {said}\n  nothing was written; mend the flag that says so and run it again"
        );
    }
    Ok(())
}

/// Fails if something has come to be there meanwhile.
fn put_in_place(staged: tempfile::TempDir, dir: &Path) -> anyhow::Result<()> {
    let placed = fs::set_permissions(staged.path(), fs::Permissions::from_mode(0o755))
        .and_then(|()| fs::rename(staged.path(), dir));
    placed.with_context(|| format!("put the files into {}", dir.display()))?;
    // What it would remove has moved away.
    let _ = staged.keep();
    let parent = dir.parent().unwrap_or(Path::new("/"));
    let synced = fs::File::open(parent).and_then(|parent| parent.sync_all());
    synced.with_context(|| format!("sync {}", parent.display()))
}

fn outcome(args: &Args, plan: &Plan, drafts: Vec<Draft>) -> Outcome {
    let at = |name: &str| plan.install.join(name).display().to_string();
    let mut start: Vec<String> = (1..=args.nodes.len())
        .map(|id| {
            format!(
                "mailboxd server --config {}",
                at(&format!("node-{id}.toml"))
            )
        })
        .collect();
    start.push(format!("mailboxd gateway --config {}", at(GATEWAY)));
    let authority = args.tls_ca.as_ref();
    let authority =
        authority.map_or_else(String::new, |file| format!(" --ca-file {}", file.display()));
    start.push(format!(
        "mailboxctl cluster status --address {} --secret-file {}{authority}",
        args.nodes.join(","),
        at(SECRET)
    ));
    let written = |draft: Draft| Written {
        file: plan.dir.join(&draft.name).display().to_string(),
        mode: format!("{:04o}", mode_of(&draft)),
        text: (args.dry_run && draft.role.is_some()).then_some(draft.text),
        what: draft.what,
    };
    Outcome {
        cluster_id: plan.cluster_id.clone(),
        state: if args.dry_run { "possible" } else { "written" },
        dry_run: args.dry_run,
        dir: plan.dir.display().to_string(),
        files: drafts.into_iter().map(written).collect(),
        start,
    }
}

fn human(outcome: &Outcome) -> String {
    let verb = if outcome.dry_run {
        "would be written"
    } else {
        "written"
    };
    let mut text = format!("cluster {}: checked, {verb}:", outcome.cluster_id);
    for Written {
        file,
        what,
        mode,
        text: config,
        ..
    } in &outcome.files
    {
        let _ = write!(text, "\n  {file}  ({mode})  {what}");
        if let Some(config) = config {
            let _ = write!(
                text,
                "\n    | {}",
                config.trim_end().replace('\n', "\n    | ")
            );
        }
    }
    text.push_str("\nnext, on the nodes, each with its config and the keys in place:");
    for command in &outcome.start {
        let _ = write!(text, "\n  {command}");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(flags: &[&str]) -> Args {
        let line = [&["init", "/c/blue"], flags].concat();
        Line::try_parse_from(line)
            .unwrap_or_else(|error| panic!("{error}"))
            .args
    }

    fn config(args: &Args, index: usize) -> String {
        node_config(args, &plan(args).unwrap(), index)
    }

    #[test]
    fn the_first_three_found_and_the_others_join() {
        let nodes = "--node=a:1,b:1,c:1,d:1";
        let args = args(&[
            nodes,
            "--zone=x,y,z,x",
            "--listen=0.0.0.0",
            "--allow-plaintext",
        ]);
        let first = config(&args, 0);
        assert!(
            first.contains("[cluster.nodes]\n1 = \"a:1\"\n2 = \"b:1\"\n3 = \"c:1\"\n"),
            "{first}"
        );
        assert!(
            first.contains("id = \"blue\"\nsecret_file = \"/c/blue/mailbox.secret\""),
            "{first}"
        );
        assert!(
            first.contains("dir = \"/c/blue/data/node-1\"\nlisten = \"0.0.0.0:1\"\nzone = \"x\"\n"),
            "{first}"
        );
        assert!(!first.contains("metrics_listen"), "{first}");
        let fourth = config(&args, 3);
        assert!(
            fourth.contains("join = [\"a:1\", \"b:1\", \"c:1\"]\n"),
            "{fourth}"
        );
        assert!(
            fourth.contains("address = \"d:1\"\n") && !fourth.contains("[cluster.nodes]"),
            "{fourth}"
        );
    }

    #[test]
    fn files_are_where_they_will_be_and_odd_names_are_quoted() {
        let args = args(&[
            "--node=h:1",
            "--node=h:2",
            "--node=h:3",
            "--install-dir=/etc/\"mail\"",
            "--data-dir=/var/lib/m",
            "--tls-cert=/t/c.pem",
            "--tls-key=/t/k.pem",
            "--tls-ca=/t/a.pem",
        ]);
        let second = config(&args, 1);
        assert!(
            second.contains(r#"secret_file = "/etc/\"mail\"/mailbox.secret""#),
            "{second}"
        );
        assert!(second.contains("dir = \"/var/lib/m/node-2\""), "{second}");
        assert!(second.contains("metrics_listen = \"\""), "{second}");
        let tls =
            "[tls]\ncert_file = \"/t/c.pem\"\nkey_file = \"/t/k.pem\"\nca_file = \"/t/a.pem\"\n";
        assert!(second.ends_with(tls), "{second}");
    }

    #[test]
    fn what_makes_no_cluster_is_refused() {
        let refusal = |flags: &[&str]| plan(&args(flags)).err().unwrap().to_string();
        assert!(refusal(&["--node=a:1,b:1"]).contains("two nodes bear no failure"));
        assert!(refusal(&["--node=a:1,a:1,b:1"]).contains("same address"));
        assert!(refusal(&["--node=a:1", "--zone=x,y"]).contains("2 zones for 1 nodes"));
        let lines = [
            ["x", "/c", "--node=a"],
            ["x", "/c", "--node=a:0"],
            ["x", "/c", "--node=:7"],
        ];
        for line in lines {
            assert!(Line::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
