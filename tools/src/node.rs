//! The flags that name a cluster's nodes and the caller, and the client that they make.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use mailbox_client::v1::{self, Timeline, TimelineKind, UserRef, user_ref};
use mailbox_client::{Auth, Client, ClientOptions, Tls};

/// How to reach the nodes (gRPC) and as whom.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct NodeArgs {
    /// A node's gRPC address, host:port; several with commas. One that answers is enough
    #[arg(
        long = "address",
        value_name = "ADDR",
        env = "MAILBOX_ADDRESS",
        value_delimiter = ',',
        value_hint = clap::ValueHint::Hostname,
        default_value = "127.0.0.1:7700"
    )]
    pub(crate) addresses: Vec<String>,
    /// File with the cluster secret: the caller may then act for any user
    #[arg(
        long,
        value_name = "FILE",
        env = "MAILBOX_SECRET_FILE",
        conflicts_with = "token"
    )]
    pub(crate) secret_file: Option<PathBuf>,
    /// A user's token instead of the secret: the caller acts for that user only
    #[arg(
        long,
        value_name = "JWT",
        env = "MAILBOX_TOKEN",
        hide_env_values = true
    )]
    pub(crate) token: Option<String>,
    /// The cluster that is meant; nodes of another one refuse
    #[arg(long, value_name = "ID")]
    pub(crate) cluster_id: Option<String>,
    /// PEM of the authority behind the nodes' certificates (for nodes that listen with TLS)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl NodeArgs {
    /// Connects to whichever node answers.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let auth = match (&self.secret_file, &self.token) {
            (Some(file), None) => Auth::secret_file(file, self.cluster_id.clone())
                .with_context(|| format!("read the cluster secret {}", file.display()))?,
            (None, Some(token)) => Auth::Token(token.clone()),
            (None, None) => bail!(
                "say who calls: --secret-file FILE (may act for any user) or --token JWT\n  \
                 `mailboxd dev` keeps its secret in its directory: ./mailbox-dev-data/mailbox.secret"
            ),
            (Some(_), Some(_)) => bail!("give either --secret-file or --token, not both"),
        };
        let mut options = ClientOptions::new(self.addresses.clone(), auth);
        options.tls = self.ca_pem()?.map(|ca_pem| Tls {
            ca_pem,
            domain: None,
        });
        let client = Client::connect(options).await;
        client.map_err(|error| {
            let next = next_step(error.code());
            anyhow!(
                "connect to {}: {error}\n  {next}",
                self.addresses.join(", ")
            )
        })
    }

    /// The authority behind the nodes' certificates, if they have any.
    pub(crate) fn ca_pem(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(file) = &self.ca_file else {
            return Ok(None);
        };
        let pem = std::fs::read(file);
        let pem = pem.with_context(|| format!("read the authority {}", file.display()))?;
        Ok(Some(pem))
    }
}

/// What to do when no node lets us in.
fn next_step(code: v1::ErrorCode) -> &'static str {
    match code {
        v1::ErrorCode::Unauthenticated | v1::ErrorCode::Forbidden => {
            "the secret or the token is not this cluster's: give its own with --secret-file or --token"
        }
        v1::ErrorCode::WrongCluster => "another cluster is there: mend --address or --cluster-id",
        _ => {
            "start mailboxd there, or name nodes that run with --address (several with commas); nodes with TLS need \
             --ca-file"
        }
    }
}

/// How many nodes a cluster may begin with. As values of their own, so that shells complete them.
pub(crate) fn parse_nodes() -> impl TypedValueParser<Value = usize> {
    PossibleValuesParser::new(["1", "3"]).map(|text| if text == "1" { 1 } else { 3 })
}

/// A user on the command line: an id, or a handle behind `@`.
pub(crate) fn parse_user(text: &str) -> Result<UserRef, String> {
    let user = match text.strip_prefix('@') {
        Some("") => return Err("a handle is missing behind the `@`".to_owned()),
        Some(handle) => user_ref::User::Handle(handle.to_owned()),
        None => user_ref::User::Id(text.parse().map_err(|_| {
            format!("`{text}` is neither an `@handle` nor a user id; did you mean `@{text}`?")
        })?),
    };
    Ok(UserRef { user: Some(user) })
}

/// A timeline on the command line: `mailbox:17` or `group:65`.
pub(crate) fn parse_timeline(text: &str) -> Result<Timeline, String> {
    let wrong = || format!("`{text}` is not a timeline: write `mailbox:<user>` or `group:<group>`");
    let (kind, owner) = text.split_once(':').ok_or_else(wrong)?;
    let kind = match kind {
        "mailbox" => TimelineKind::Mailbox,
        "group" => TimelineKind::Group,
        _ => return Err(wrong()),
    };
    let owner = owner.parse().map_err(|_| wrong())?;
    Ok(Timeline {
        kind: kind as i32,
        owner,
    })
}

/// `mailbox:17` or `group:65`.
pub(crate) fn timeline_text(timeline: Timeline) -> String {
    let kind = match timeline.kind() {
        TimelineKind::Mailbox => "mailbox",
        TimelineKind::Group => "group",
        TimelineKind::Unspecified => "unspecified",
    };
    format!("{kind}:{}", timeline.owner)
}

/// The word for a message's type.
pub(crate) fn type_text(kind: v1::MessageType) -> &'static str {
    match kind {
        v1::MessageType::Unspecified => "unspecified",
        v1::MessageType::Text => "text",
        v1::MessageType::Opaque => "opaque",
        v1::MessageType::GroupCreated => "group-created",
        v1::MessageType::MemberJoined => "member-joined",
        v1::MessageType::MemberLeft => "member-left",
        v1::MessageType::Refusal => "refusal",
    }
}

/// Bytes as lower-case hex: how hashes are printed everywhere.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a string cannot fail");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_an_id_or_a_handle() {
        assert_eq!(parse_user("17").unwrap().user, Some(user_ref::User::Id(17)));
        let handle = Some(user_ref::User::Handle("al ice".to_owned()));
        assert_eq!(parse_user("@al ice").unwrap().user, handle);
        assert!(parse_user("alice").unwrap_err().contains("@alice"));
        assert!(parse_user("@").is_err());
    }

    #[test]
    fn a_timeline_survives_its_text() {
        for text in ["mailbox:17", "group:65"] {
            assert_eq!(timeline_text(parse_timeline(text).unwrap()), text);
        }
        for wrong in ["17", "mailbox", "mailbox:", "feed:1", "group:x", "group:-1"] {
            assert!(parse_timeline(wrong).is_err(), "{wrong} was taken");
        }
    }
}
