//! `mailboxctl user`: makes users.

use mailbox_client::v1::RegisterUserRequest;
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
        #[command(flatten)]
        node: NodeArgs,
    },
}

#[derive(Serialize)]
struct Registered {
    user: String,
    handle: String,
}

pub(super) async fn run(command: Command, output: OutputArgs) -> anyhow::Result<bool> {
    match command {
        Command::Register { handle, node } => {
            let client = node.connect().await?;
            let handle = handle.strip_prefix('@').unwrap_or(&handle).to_owned();
            let request = RegisterUserRequest {
                handle: handle.clone(),
                ..Default::default()
            };
            let user = client.register_user(request).await?.user;
            let registered = Registered {
                user: user.to_string(),
                handle,
            };
            output.print(&registered, |r| format!("@{} is user {}", r.handle, r.user))?;
            Ok(true)
        }
    }
}
