//! What an app developer embeds: connect, send, sync, resume.
//!
//! A [`Client`] keeps one WebSocket to a gateway alive and hides its breaks: a send is repeated with
//! the same id until it is acked, and messages are handed to the app in order, each once, whatever
//! was pushed, dropped or synced in between. Where the app has got to is kept in a file if one is
//! named, so that a restarted app goes on from there.
//!
//! ```no_run
//! # async fn example() -> Result<(), mailbox_sdk::Error> {
//! use mailbox_sdk::{Client, ConnectOptions, Event};
//!
//! let client = Client::connect(ConnectOptions::new("ws://127.0.0.1:8080", "<token>")).await?;
//! let sent = client.send(&"@bob".parse()?, "hi").await?;
//! println!("kept as {} {}", sent.timeline, sent.seq);
//! while let Some(event) = client.next().await {
//!     if let Event::Message(message) = event {
//!         println!("{}: {}", message.sender, message.text().unwrap_or("…"));
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod backoff;
mod client;
mod driver;
mod error;
mod inbox;
mod options;
mod register;
mod socket;
mod state;

pub use client::{Client, Event};
pub use error::Error;
pub use mailbox_wire::{
    Body, Destination, Encoding, Fault, Limits, Message, MessageType, Position, Sent, Sync, Synced,
    Timeline, UserRef,
};
pub use options::ConnectOptions;
pub use register::register_user;
