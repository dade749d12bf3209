//! NATS's protocol: lines, and messages with headers.

use anyhow::{Context as _, bail};
use bytes::{BufMut as _, Bytes, BytesMut};

use crate::bench::peer::wire::{FRAME_BYTES_MAX, line_end, take_line};

/// Most bytes of a line; the greatest one, INFO, names all servers of the cluster.
const LINE_BYTES_MAX: usize = 32 << 10;
/// What headers begin with.
const HEADERS_BEGIN: &[u8] = b"NATS/1.0\r\n";

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// What the server is, as JSON.
    Info(Bytes),
    /// A message: what it was sent to, and its content without headers.
    Message {
        subject: Bytes,
        payload: Bytes,
    },
    Ping,
    Pong,
    Ok,
    Error(String),
}

/// Cuts a frame off the buffer's front, once it is whole.
///
/// # Errors
/// It is none, or greater than one may be.
pub(super) fn take_frame(buffer: &mut BytesMut) -> anyhow::Result<Option<Frame>> {
    let Some(end) = line_end(buffer) else {
        // One that grows too long is refused there.
        take_line(buffer, LINE_BYTES_MAX)?;
        return Ok(None);
    };
    if let Some(shape) = buffer.get(..end).map(Shape::parse).transpose()?.flatten() {
        let whole = end + 2 + shape.total + 2;
        if buffer.len() < whole {
            return Ok(None);
        }
        return shape
            .cut(buffer.split_to(whole).freeze(), end + 2)
            .map(Some);
    }
    let Some(line) = take_line(buffer, LINE_BYTES_MAX)? else {
        return Ok(None);
    };
    let line = line.freeze();
    let (word, rest) = match line.iter().position(|byte| *byte == b' ') {
        Some(blank) => (line.slice(..blank), line.slice(blank + 1..)),
        None => (line, Bytes::new()),
    };
    Ok(Some(match word.as_ref() {
        b"INFO" => Frame::Info(rest),
        b"PING" => Frame::Ping,
        b"PONG" => Frame::Pong,
        b"+OK" => Frame::Ok,
        b"-ERR" => Frame::Error(String::from_utf8_lossy(&rest).into_owned()),
        other => bail!(
            "NATS sends an unknown word: {}",
            String::from_utf8_lossy(other)
        ),
    }))
}

/// What the first line of a message says.
struct Shape {
    /// Bytes before the subject in the line.
    subject_begin: usize,
    subject_bytes: usize,
    headers: usize,
    /// Headers and payload.
    total: usize,
}

impl Shape {
    /// `None`: the line begins no message.
    fn parse(line: &[u8]) -> anyhow::Result<Option<Self>> {
        let mut words = line.split(|byte| *byte == b' ');
        let word = words.next().unwrap_or_default();
        let lengths = match word {
            b"MSG" => 1,
            b"HMSG" => 2,
            _ => return Ok(None),
        };
        // Subject, subscription, perhaps a reply subject, lengths.
        let words: Vec<&[u8]> = words.collect();
        let (named, lengths) = words
            .split_at_checked(words.len().wrapping_sub(lengths))
            .context("NATS sends a message without a length")?;
        let subject = match named {
            [subject, _subscription] | [subject, _subscription, _] => subject,
            _ => bail!("NATS sends a message of a strange form"),
        };
        let mut bytes = lengths.iter().map(|length| number(length));
        let first = bytes.next().transpose()?.unwrap_or(0);
        let (headers, total) = match bytes.next().transpose()? {
            Some(total) => (first, total),
            None => (0, first),
        };
        if headers > total || total > FRAME_BYTES_MAX {
            bail!("NATS sends a message of {total} bytes with {headers} of headers");
        }
        Ok(Some(Self {
            subject_begin: word.len() + 1,
            subject_bytes: subject.len(),
            headers,
            total,
        }))
    }

    /// `frame` is the whole message, its content from `begin` on.
    fn cut(&self, frame: Bytes, begin: usize) -> anyhow::Result<Frame> {
        if !frame.ends_with(b"\r\n") {
            bail!("NATS sends a message that is longer than it says");
        }
        let subject_end = self.subject_begin + self.subject_bytes;
        Ok(Frame::Message {
            subject: frame.slice(self.subject_begin..subject_end),
            payload: frame.slice(begin + self.headers..begin + self.total),
        })
    }
}

fn number(digits: &[u8]) -> anyhow::Result<usize> {
    let text = std::str::from_utf8(digits).context("NATS sends a bad length")?;
    text.parse().context("NATS sends a bad length")
}

/// Appends a message to `out`. Neither names nor values of headers may hold a line's end: all are made here.
pub(super) fn put_publish(
    out: &mut BytesMut,
    subject: &str,
    reply: Option<&str>,
    headers: &[(&str, &str)],
    payload: &[u8],
) {
    let header_bytes = match headers {
        [] => 0,
        headers => {
            let lines = headers
                .iter()
                .map(|(name, value)| name.len() + value.len() + 4);
            HEADERS_BEGIN.len() + lines.sum::<usize>() + 2
        }
    };
    let total = header_bytes + payload.len();
    let word: &[u8] = if headers.is_empty() {
        b"PUB "
    } else {
        b"HPUB "
    };
    out.reserve(total + subject.len() + reply.map_or(0, str::len) + 64);
    out.put_slice(word);
    out.put_slice(subject.as_bytes());
    if let Some(reply) = reply {
        out.put_u8(b' ');
        out.put_slice(reply.as_bytes());
    }
    if !headers.is_empty() {
        out.put_slice(format!(" {header_bytes}").as_bytes());
    }
    out.put_slice(format!(" {total}\r\n").as_bytes());
    if !headers.is_empty() {
        out.put_slice(HEADERS_BEGIN);
        for (name, value) in headers {
            for part in [name, ": ", value, "\r\n"] {
                out.put_slice(part.as_bytes());
            }
        }
        out.put_slice(b"\r\n");
    }
    out.put_slice(payload);
    out.put_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_published_with_its_lengths() {
        let mut out = BytesMut::new();
        put_publish(&mut out, "a.b", None, &[], b"hi");
        put_publish(&mut out, "a", Some("r"), &[("K", "v")], b"hi");
        let plain = "PUB a.b 2\r\nhi\r\n";
        let headed = "HPUB a r 18 20\r\nNATS/1.0\r\nK: v\r\n\r\nhi\r\n";
        assert_eq!(out, [plain, headed].concat());
    }

    #[test]
    fn every_frame_is_read_and_only_when_it_is_whole() {
        let wire = "INFO {\"a\": 1}\r\nPING\r\nPONG\r\n+OK\r\n-ERR 'Stale Connection'\r\n\
            MSG in.7 1 5\r\na\r\nbc\r\nMSG in.8 1 reply 0\r\n\r\n\
            HMSG in.9 1 16 18\r\nNATS/1.0 503\r\n\r\nhi\r\n";
        let message = |subject: &'static str, payload: &'static str| Frame::Message {
            subject: Bytes::from_static(subject.as_bytes()),
            payload: Bytes::from_static(payload.as_bytes()),
        };
        let wanted = [
            Frame::Info(Bytes::from_static(b"{\"a\": 1}")),
            Frame::Ping,
            Frame::Pong,
            Frame::Ok,
            Frame::Error("'Stale Connection'".into()),
            message("in.7", "a\r\nbc"),
            message("in.8", ""),
            message("in.9", "hi"),
        ];
        let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
        for byte in wire.bytes() {
            buffer.put_u8(byte);
            found.extend(take_frame(&mut buffer).unwrap());
        }
        assert_eq!(found, wanted);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for wire in [
            "HELLO\r\n",
            "\r\n",
            "MSG\r\n",
            "MSG a 1\r\n",
            "MSG a 1 r s 3\r\n",
            "MSG a 1 x\r\n",
            "MSG a 1 -1\r\n",
            "MSG a 1 99999999\r\n",
            "HMSG a 1 9 3\r\nabc\r\n",
            "MSG a 1 1\r\nabc",
        ] {
            let mut buffer = BytesMut::from(wire.as_bytes());
            assert!(take_frame(&mut buffer).is_err(), "{wire:?} was taken");
        }
        let mut endless = BytesMut::from(&[b'x'; LINE_BYTES_MAX + 2][..]);
        assert!(take_frame(&mut endless).is_err());
    }
}
