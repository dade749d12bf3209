//! `mailboxctl gateway`: the connection tier, as it is registered with the cluster.

use anyhow::Context as _;
use comfy_table::Table;
use mailbox_client::v1::{Gateway, GatewayStanding};
use serde::Serialize;

use super::show_table::plain_table;
use crate::node::NodeArgs;
use crate::output::{OutputArgs, grouped, printable};

/// See the gateways that are registered with the cluster.
///
/// A gateway tells the leader of the meta shard (shard 0) who and where it is when it starts, and every
/// `gateway.refresh_ms` that it is still there. One that was not heard of for three times as long is silent;
/// after sixty it is forgotten. One that stops in order takes itself out.
#[derive(clap::Subcommand)]
#[command(verbatim_doc_comment)]
pub(crate) enum Command {
    /// List the gateways: where clients reach them, how they stand, how many connections they hold
    ///
    /// Connections and when a gateway was heard of are what the leader of the meta shard remembers: after it has
    /// changed they are unknown until the gateways have told it. The exit status is 1 when one is silent.
    List {
        #[command(flatten)]
        node: NodeArgs,
    },
    /// Take a gateway out of the registry that will not come back
    ///
    /// The gateway itself is not touched: one that serves registers itself again when it tells next.
    Forget {
        /// The gateway's id
        id: String,
        /// Say whether it is registered; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

/// One gateway.
#[derive(Serialize)]
pub(super) struct GatewayRow {
    gateway: String,
    pub(super) standing: &'static str,
    websocket_url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    tcp_address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    http_url: String,
    region: String,
    zone: String,
    version: String,
    refresh_ms: u32,
    /// Absent: the leader of the meta shard has not heard of it since it leads; so of the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heard_ms_ago: Option<u64>,
}

#[derive(Serialize)]
struct Outcome {
    gateway: String,
    /// `registered` in a dry run, `forgotten`, or `unknown`.
    state: &'static str,
    dry_run: bool,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::List { node } => {
            let client = node.connect().await?;
            let gateways = client.gateways().await;
            let gateways = gateways.context("ask the leader of the meta shard for its gateways")?;
            let rows = gateway_rows(&gateways);
            output.print(&rows, |rows| human(rows))?;
            Ok(rows.iter().all(|row| row.standing != "silent"))
        }
        Command::Forget { id, dry_run, node } => {
            let client = node.connect().await?;
            let known = if dry_run {
                let gateways = client.gateways().await;
                let gateways =
                    gateways.context("ask the leader of the meta shard for its gateways")?;
                gateways.iter().any(|gateway| gateway.gateway == id)
            } else {
                let forgotten = client.forget_gateway(&id, 0).await;
                forgotten.with_context(|| format!("have gateway {id} forgotten"))?
            };
            let outcome = Outcome {
                gateway: id,
                state: match (known, dry_run) {
                    (false, _) => "unknown",
                    (true, true) => "registered",
                    (true, false) => "forgotten",
                },
                dry_run,
            };
            output.print(&outcome, outcome_words)?;
            Ok(true)
        }
    }
}

fn outcome_words(outcome: &Outcome) -> String {
    let Outcome { gateway, state, .. } = outcome;
    match *state {
        "registered" => format!("gateway {gateway} is registered, and would be forgotten"),
        "forgotten" => format!("gateway {gateway} is forgotten"),
        _ => format!("no gateway {gateway} is registered: there is nothing to do"),
    }
}

pub(super) fn gateway_rows(gateways: &[Gateway]) -> Vec<GatewayRow> {
    let rows = gateways.iter().map(|gateway| {
        let facts = gateway.facts.clone().unwrap_or_default();
        GatewayRow {
            gateway: gateway.gateway.clone(),
            standing: standing_text(gateway.standing()),
            websocket_url: facts.websocket_url,
            tcp_address: facts.tcp_address,
            http_url: facts.http_url,
            region: facts.region,
            zone: facts.zone,
            version: facts.version,
            refresh_ms: facts.refresh_ms,
            connections: gateway.connections,
            heard_ms_ago: gateway.heard_ms_ago,
        }
    });
    rows.collect()
}

/// `serving`, `draining` or `silent`.
fn standing_text(standing: GatewayStanding) -> &'static str {
    match standing {
        GatewayStanding::Serving => "serving",
        GatewayStanding::Draining => "draining",
        GatewayStanding::Silent => "silent",
        GatewayStanding::Unspecified => "unknown",
    }
}

fn human(rows: &[GatewayRow]) -> String {
    match rows {
        [] => "no gateway is registered".to_owned(),
        rows => gateways_table(rows).trim_fmt(),
    }
}

/// How many stand how, and the connections that are known, in a line.
pub(super) fn in_a_line(rows: &[GatewayRow]) -> String {
    if rows.is_empty() {
        return "no gateway is registered".to_owned();
    }
    let counts = ["serving", "draining", "silent", "unknown"].map(|standing| {
        let count = rows.iter().filter(|row| row.standing == standing).count();
        (count > 0).then(|| format!("{count} {standing}"))
    });
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    let open = rows.iter().filter_map(|row| row.connections);
    let open: u64 = open.map(u64::from).sum();
    format!(
        "gateways: {}; {} connections",
        counts.join(", "),
        grouped(open)
    )
}

fn gateways_table(rows: &[GatewayRow]) -> Table {
    let header = [
        "gateway",
        "address",
        "region",
        "zone",
        "version",
        "standing",
        "connections",
        "heard",
    ];
    let mut table = plain_table(header);
    let dash = |text: &str| match text {
        "" => "-".to_owned(),
        text => printable(text),
    };
    for row in rows {
        let address = match row.websocket_url.as_str() {
            "" => &row.tcp_address,
            url => url,
        };
        let ago = |ms: u64| format!("{}.{} s ago", ms / 1000, ms % 1000 / 100);
        let connections = row.connections.map(|count| grouped(count.into()));
        table.add_row([
            printable(&row.gateway),
            printable(address),
            dash(&row.region),
            dash(&row.zone),
            dash(&row.version),
            row.standing.to_owned(),
            connections.unwrap_or_else(|| "-".to_owned()),
            row.heard_ms_ago.map_or_else(|| "-".to_owned(), ago),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use mailbox_client::v1::GatewayFacts;

    use super::*;

    fn gateway(name: &str, standing: GatewayStanding, connections: Option<u32>) -> Gateway {
        Gateway {
            gateway: name.to_owned(),
            standing: standing as i32,
            connections,
            heard_ms_ago: connections.map(|_| 2_345),
            facts: Some(GatewayFacts {
                websocket_url: format!("ws://{name}:1"),
                zone: "b\u{1b}[2J".to_owned(),
                ..GatewayFacts::default()
            }),
            ..Gateway::default()
        }
    }

    #[test]
    fn gateways_are_listed_with_what_is_known_of_them() {
        let gateways = [
            gateway("gw-1", GatewayStanding::Serving, Some(1_200)),
            gateway("gw-2", GatewayStanding::Silent, None),
        ];
        let rows = gateway_rows(&gateways);
        let text = human(&rows);
        assert!(
            text.contains("ws://gw-1:1") && text.contains("1,200"),
            "{text}"
        );
        assert!(
            text.contains("2.3 s ago") && text.contains("silent"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let line = in_a_line(&rows);
        assert_eq!(line, "gateways: 1 serving, 1 silent; 1,200 connections");
        assert_eq!(in_a_line(&[]), human(&[]));
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(json[0]["connections"], 1_200);
        assert!(json[1].get("connections").is_none(), "{json}");
    }
}
