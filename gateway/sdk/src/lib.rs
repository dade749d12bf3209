//! What an app developer embeds: connect, send, sync, resume.
