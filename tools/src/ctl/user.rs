//! `mailboxctl user`: makes users.

use anyhow::bail;
use mailbox_client::Client;
use mailbox_client::v1::{ErrorCode, RegisterUserRequest, ResolveUserRequest, UserRef, user_ref};
use serde::Serialize;

use crate::node::NodeArgs;
use crate::output::OutputArgs;

/// Make users.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Register a handle and print the new user's id
    ///
    /// A handle is unique in its cluster, 1 to 64 bytes of UTF-8 without control characters, without
    /// `@`, and without a space at either end. `@alice` and `alice` mean the same here.
    Register {
        /// The handle
        handle: String,
        /// Say whether somebody has it; register nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Serialize)]
struct Registered {
    /// Absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    handle: String,
    /// `registered`; in a dry run `possible`.
    state: &'static str,
    dry_run: bool,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::Register {
            handle,
            dry_run,
            node,
        } => {
            let client = node.connect().await?;
            let handle = handle.strip_prefix('@').unwrap_or(&handle).to_owned();
            let registered = match dry_run {
                true => judge(&client, handle).await?,
                false => register(&client, handle).await?,
            };
            output.print(&registered, |registered| match &registered.user {
                Some(user) => format!("@{} is user {user}", registered.handle),
                None => format!("nobody has @{}: it can be registered", registered.handle),
            })?;
            Ok(true)
        }
    }
}

async fn register(client: &Client, handle: String) -> anyhow::Result<Registered> {
    let request = RegisterUserRequest {
        handle: handle.clone(),
        ..Default::default()
    };
    let user = client.register_user(request).await?.user;
    Ok(Registered {
        user: Some(user.to_string()),
        handle,
        state: "registered",
        dry_run: false,
    })
}

async fn judge(client: &Client, handle: String) -> anyhow::Result<Registered> {
    let user = user_ref::User::Handle(handle.clone());
    let user = Some(UserRef { user: Some(user) });
    match client.resolve_user(ResolveUserRequest { user }).await {
        Ok(found) => bail!(
            "@{handle} belongs to user {}\n  choose another handle",
            found.user
        ),
        Err(error) if error.code() == ErrorCode::UnknownUser => Ok(Registered {
            user: None,
            handle,
            state: "possible",
            dry_run: true,
        }),
        Err(error) => Err(error.into()),
    }
}
