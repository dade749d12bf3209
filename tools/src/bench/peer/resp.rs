//! Redis's protocol, RESP2: commands out, replies in.

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::wire::{FRAME_BYTES_MAX, line_end};

/// Elements of an array in a reply.
const ELEMENTS_MAX: usize = 1024;
/// Arrays within arrays.
const DEPTH_MAX: usize = 4;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// A status.
    Simple(String),
    Error(String),
    Integer(i64),
    /// Bytes; `None` is what Lua's `false` becomes.
    Bulk(Option<Bytes>),
    Array(Vec<Reply>),
}

/// Appends a command to `out`.
pub(super) fn put_command(out: &mut BytesMut, words: &[&[u8]]) {
    let bytes: usize = words.iter().map(|word| word.len() + 32).sum();
    out.reserve(bytes);
    put_length(out, b'*', words.len());
    for word in words {
        put_length(out, b'$', word.len());
        out.put_slice(word);
        out.put_slice(b"\r\n");
    }
}

fn put_length(out: &mut BytesMut, kind: u8, length: usize) {
    out.put_u8(kind);
    out.put_slice(length.to_string().as_bytes());
    out.put_slice(b"\r\n");
}

/// Cuts a reply off the buffer's front, once it is whole.
///
/// # Errors
/// It is not RESP2, or greater than a reply here may be.
pub(super) fn take_reply(buffer: &mut BytesMut) -> anyhow::Result<Option<Reply>> {
    let mut rest: &[u8] = buffer;
    let Some(reply) = parse(&mut rest, 0)? else {
        return Ok(None);
    };
    let taken = buffer.len() - rest.len();
    buffer.advance(taken);
    Ok(Some(reply))
}

fn parse(rest: &mut &[u8], depth: usize) -> anyhow::Result<Option<Reply>> {
    let Some(end) = line_end(rest) else {
        return Ok(None);
    };
    let (line, behind) = (rest.get(..end), rest.get(end + 2..));
    let (Some(line), Some(behind)) = (line, behind) else {
        return Ok(None);
    };
    let (kind, text) = line.split_first().context("Redis sends an empty line")?;
    let text = || String::from_utf8_lossy(text).into_owned();
    *rest = behind;
    let reply = match kind {
        b'+' => Reply::Simple(text()),
        b'-' => Reply::Error(text()),
        b':' => Reply::Integer(text().parse().context("Redis sends a bad integer")?),
        b'$' => {
            let Some(length) = length(&text(), FRAME_BYTES_MAX)? else {
                return Ok(Some(Reply::Bulk(None)));
            };
            let Some((bytes, behind)) = rest.split_at_checked(length + 2) else {
                return Ok(None);
            };
            let bytes = bytes.strip_suffix(b"\r\n");
            let bytes = bytes.context("Redis sends bytes without their end")?;
            *rest = behind;
            Reply::Bulk(Some(Bytes::copy_from_slice(bytes)))
        }
        b'*' if depth < DEPTH_MAX => {
            let length = length(&text(), ELEMENTS_MAX)?.unwrap_or(0);
            let mut elements = Vec::new();
            for _ in 0..length {
                let Some(element) = parse(rest, depth + 1)? else {
                    return Ok(None);
                };
                elements.push(element);
            }
            Reply::Array(elements)
        }
        other => bail!("Redis sends an unknown kind of reply: {other:#04x}"),
    };
    Ok(Some(reply))
}

/// A length; `None` for -1, which stands for nothing at all.
fn length(text: &str, max: usize) -> anyhow::Result<Option<usize>> {
    if text == "-1" {
        return Ok(None);
    }
    let length: usize = text.parse().context("Redis sends a bad length")?;
    if length > max {
        bail!("Redis sends a length of {length}, {max} is the most");
    }
    Ok(Some(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Reply {
        Reply::Bulk(Some(Bytes::copy_from_slice(text.as_bytes())))
    }

    #[test]
    fn a_command_is_lengths_and_words() {
        let mut out = BytesMut::new();
        put_command(&mut out, &[b"SET", b"a\r\nb", b""]);
        assert_eq!(out, "*3\r\n$3\r\nSET\r\n$4\r\na\r\nb\r\n$0\r\n\r\n");
    }

    #[test]
    fn every_kind_of_reply_is_read_and_only_when_it_is_whole() {
        let wire =
            "+OK\r\n-ERR no\r\n:-7\r\n$5\r\na\r\nbc\r\n$-1\r\n*2\r\n$1\r\nx\r\n*1\r\n:1\r\n*-1\r\n";
        let wanted = [
            Reply::Simple("OK".into()),
            Reply::Error("ERR no".into()),
            Reply::Integer(-7),
            bulk("a\r\nbc"),
            Reply::Bulk(None),
            Reply::Array(vec![bulk("x"), Reply::Array(vec![Reply::Integer(1)])]),
            Reply::Array(vec![]),
        ];
        let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
        for byte in wire.bytes() {
            buffer.put_u8(byte);
            found.extend(take_reply(&mut buffer).unwrap());
        }
        assert_eq!(found, wanted);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for wire in [
            "?1\r\n",
            "\r\n",
            ":x\r\n",
            "$x\r\n",
            "$-2\r\n",
            "$1\r\nabc",
            "$99999999\r\n",
            "*99999\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
        ] {
            let mut buffer = BytesMut::from(wire.as_bytes());
            assert!(take_reply(&mut buffer).is_err(), "{wire:?} was taken");
        }
    }
}
