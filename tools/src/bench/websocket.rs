//! A client's side of WebSocket framing (RFC 6455), no more of it than a device at a gateway needs.
//!
//! A library would do; what is measured here is a gateway that pushes to hundreds of devices on one machine, and
//! whatever their side costs is missing on the gateway's. So a message is a slice of what was read, and nothing
//! is allocated for it.
//!
//! ```text
//!   bytes of any cut ──► FrameReader ──► Message, Ping, Close
//!   payload ──► put_frame ──► a masked frame
//! ```

use anyhow::bail;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Greatest message that is taken from a gateway, all its fragments together, in bytes: a page of sync with room to
/// spare.
pub(super) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// RFC 6455: greatest payload of a control frame, in bytes.
const CONTROL_BYTES_MAX: usize = 125;
/// RFC 6455: what a close without a code stands for.
const NO_CODE: u16 = 1005;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opcode {
    Continuation = 0,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// What came from the gateway.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A whole binary message.
    Message(Bytes),
    /// To be answered by a pong with the same payload.
    Ping(Bytes),
    /// The gateway closes, with this code.
    Close(u16),
}

/// Makes messages of the bytes of a socket.
#[derive(Debug)]
pub(super) struct FrameReader {
    /// Read and not yet taken.
    bytes: BytesMut,
    /// Of a message whose last fragment is still to come.
    fragments: Option<BytesMut>,
    message_bytes_max: usize,
}

impl FrameReader {
    /// A reader of messages of at most so many bytes.
    pub(super) fn new(message_bytes_max: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            fragments: None,
            message_bytes_max,
        }
    }

    /// Takes in what was read from the socket.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next thing that is there as a whole; `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the gateway breaks the protocol or a message is over the bound. Nothing can be read after that.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Incoming>> {
        loop {
            let Some(head) = Head::read(&self.bytes)? else {
                return Ok(None);
            };
            // Before the payload is waited for: a length that nobody means would be waited for without an end.
            self.check(&head)?;
            if self.bytes.len() < head.bytes + head.payload_bytes {
                return Ok(None);
            }
            self.bytes.advance(head.bytes);
            let payload = self.bytes.split_to(head.payload_bytes).freeze();
            if let Some(incoming) = self.take(&head, payload)? {
                return Ok(Some(incoming));
            }
        }
    }

    fn check(&self, head: &Head) -> anyhow::Result<()> {
        match head.opcode {
            Opcode::Close | Opcode::Ping | Opcode::Pong => {
                let bytes = head.payload_bytes;
                if bytes > CONTROL_BYTES_MAX || !head.is_last {
                    bail!(
                        "a control frame is whole and has at most {CONTROL_BYTES_MAX} bytes, this one has {bytes}"
                    );
                }
            }
            Opcode::Continuation | Opcode::Binary => {
                let held = self.fragments.as_ref().map_or(0, BytesMut::len);
                let bytes = held.saturating_add(head.payload_bytes);
                if bytes > self.message_bytes_max {
                    let max = self.message_bytes_max;
                    bail!("a message has {bytes} bytes or more, the limit is {max}");
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, head: &Head, payload: Bytes) -> anyhow::Result<Option<Incoming>> {
        Ok(match (head.opcode, self.fragments.take()) {
            (Opcode::Binary, None) if head.is_last => Some(Incoming::Message(payload)),
            (Opcode::Binary, None) => {
                self.fragments = Some(BytesMut::from(payload.as_ref()));
                None
            }
            (Opcode::Binary, Some(_)) => bail!("a message begins inside another one"),
            (Opcode::Continuation, None) => bail!("a fragment continues no message"),
            (Opcode::Continuation, Some(mut fragments)) => {
                fragments.extend_from_slice(&payload);
                if head.is_last {
                    Some(Incoming::Message(fragments.freeze()))
                } else {
                    self.fragments = Some(fragments);
                    None
                }
            }
            // Control frames may stand between the fragments of a message.
            (control, fragments) => {
                self.fragments = fragments;
                match control {
                    Opcode::Ping => Some(Incoming::Ping(payload)),
                    Opcode::Close => Some(Incoming::Close(close_code(&payload))),
                    Opcode::Pong | Opcode::Continuation | Opcode::Binary => None,
                }
            }
        })
    }
}

fn close_code(payload: &[u8]) -> u16 {
    payload
        .first_chunk()
        .map_or(NO_CODE, |code| u16::from_be_bytes(*code))
}

/// The head of a frame.
struct Head {
    opcode: Opcode,
    /// Whether it is the last fragment of its message.
    is_last: bool,
    /// Of the head itself.
    bytes: usize,
    payload_bytes: usize,
}

impl Head {
    /// `None`: it is not there as a whole.
    fn read(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            bail!("a frame uses an extension, and none was agreed on");
        }
        if second & 0x80 != 0 {
            bail!("a frame is masked; only a client masks");
        }
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => bail!("a text message came under a binary subprotocol"),
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            other => bail!("a frame has the unknown opcode {other}"),
        };
        let (length_bytes, payload_bytes) = match second & 0x7f {
            126 => (2, rest.first_chunk().map(|n| u16::from_be_bytes(*n).into())),
            127 => (8, rest.first_chunk().map(|n| u64::from_be_bytes(*n))),
            short => (0, Some(u64::from(short))),
        };
        let Some(payload_bytes) = payload_bytes else {
            return Ok(None);
        };
        Ok(Some(Self {
            opcode,
            is_last: first & 0x80 != 0,
            bytes: 2 + length_bytes,
            payload_bytes: usize::try_from(payload_bytes).unwrap_or(usize::MAX),
        }))
    }
}

/// Appends a whole frame to what is to be written, masked as a client's must be.
pub(super) fn put_frame(out: &mut BytesMut, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    const MASKED: u8 = 0x80;
    out.reserve(payload.len() + 14);
    out.put_u8(0x80 | opcode as u8);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..126), _) => out.put_u8(MASKED | short),
        (_, Ok(medium)) => {
            out.put_u8(MASKED | 126);
            out.put_u16(medium);
        }
        _ => {
            out.put_u8(MASKED | 127);
            out.put_u64(payload.len() as u64);
        }
    }
    out.put_slice(&mask);
    let masked = payload.iter().zip(mask.iter().cycle());
    out.extend(masked.map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A frame as a gateway writes it.
    pub(in crate::bench) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            short @ ..126 => bytes.push(short as u8),
            medium @ 126..65_536 => {
                bytes.push(126);
                bytes.extend((medium as u16).to_be_bytes());
            }
            long => {
                bytes.push(127);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    fn read_all(reader: &mut FrameReader) -> Vec<Incoming> {
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    fn message(bytes: &[u8]) -> Incoming {
        Incoming::Message(Bytes::copy_from_slice(bytes))
    }

    /// Every length that is written in another way, fragments with control frames between them, and a close.
    fn stream() -> (Vec<u8>, Vec<Incoming>) {
        let long = vec![7; 70_000];
        let medium = vec![6; 300];
        let bytes = [
            frame(0x82, b""),
            frame(0x82, b"one"),
            frame(0x02, b"fr"),
            frame(0x89, b"are you there?"),
            frame(0x00, b"ag"),
            frame(0x8a, b"unasked"),
            frame(0x80, b"ments"),
            frame(0x82, &medium),
            frame(0x82, &long),
            frame(0x88, &[0x03, 0xe9, b'!']),
        ];
        let expected = vec![
            message(b""),
            message(b"one"),
            Incoming::Ping(Bytes::from_static(b"are you there?")),
            message(b"fragments"),
            message(&medium),
            message(&long),
            Incoming::Close(1001),
        ];
        (bytes.concat(), expected)
    }

    #[test]
    fn messages_are_the_same_wherever_reads_are_cut() {
        let (bytes, expected) = stream();
        let mut whole = FrameReader::new(MESSAGE_BYTES_MAX);
        whole.extend(&bytes);
        assert_eq!(read_all(&mut whole), expected);
        // In two parts, cut at each byte up to within the longest payload; then byte by byte.
        let heads = bytes.len() - 70_000;
        for cut in 0..=heads {
            let mut reader = FrameReader::new(MESSAGE_BYTES_MAX);
            let (before, after) = bytes.split_at(cut);
            reader.extend(before);
            let mut found = read_all(&mut reader);
            reader.extend(after);
            found.extend(read_all(&mut reader));
            assert_eq!(found, expected, "cut at {cut}");
        }
        let mut reader = FrameReader::new(MESSAGE_BYTES_MAX);
        let mut found = Vec::new();
        for byte in bytes {
            reader.extend(&[byte]);
            found.extend(read_all(&mut reader));
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_over_the_bound_is_refused_before_it_is_there() {
        let refusal = |parts: &[Vec<u8>]| {
            let mut reader = FrameReader::new(100);
            reader.extend(&parts.concat());
            reader.next().unwrap_err().to_string()
        };
        let mut at_the_bound = FrameReader::new(100);
        at_the_bound.extend(&frame(0x82, &[1; 100]));
        assert_eq!(read_all(&mut at_the_bound), [message(&[1; 100])]);
        let error = refusal(&[frame(0x82, &[1; 101])]);
        assert!(
            error.contains("101 bytes") && error.contains("100"),
            "{error}"
        );
        // Only heads: nobody waits for the rest.
        let endless = [&[0x82, 127][..], &u64::MAX.to_be_bytes()].concat();
        assert!(refusal(&[endless]).contains("the limit is 100"));
        let pieces = [frame(0x02, &[1; 60]), frame(0x00, &[1; 41])[..2].to_vec()];
        assert!(refusal(&pieces).contains("101 bytes"));
        assert!(refusal(&[frame(0x89, &[1; 126])]).contains("125"));
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        for (bytes, named) in [
            (frame(0x81, b"text"), "text"),
            (frame(0xc2, b""), "extension"),
            (vec![0x82, 0x81, 0, 0, 0, 0, 9], "masked"),
            (frame(0x83, b""), "opcode 3"),
            (frame(0x80, b"b"), "continues no message"),
            (frame(0x00, b"b"), "continues no message"),
            (frame(0x09, b"p"), "whole"),
            (
                [frame(0x02, b"a"), frame(0x82, b"b")].concat(),
                "inside another",
            ),
        ] {
            let mut reader = FrameReader::new(MESSAGE_BYTES_MAX);
            reader.extend(&bytes);
            let error = reader.next().unwrap_err().to_string();
            assert!(error.contains(named), "{error}: {named}");
        }
    }

    #[test]
    fn a_close_may_say_no_code() {
        let mut reader = FrameReader::new(MESSAGE_BYTES_MAX);
        reader.extend(&frame(0x88, b""));
        assert_eq!(read_all(&mut reader), [Incoming::Close(NO_CODE)]);
    }

    #[test]
    fn a_frame_of_ours_is_masked_and_has_its_length() {
        for (length, head) in [
            (5, &[0x82, 0x85][..]),
            (125, &[0x82, 0xfd]),
            (126, &[0x82, 0xfe, 0, 126]),
            (65_535, &[0x82, 0xfe, 0xff, 0xff]),
            (65_536, &[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload: Vec<u8> = (0..length).map(|n: u32| n as u8).collect();
            let mask = [1, 2, 3, 4];
            let mut out = BytesMut::new();
            put_frame(&mut out, Opcode::Binary, &payload, mask);
            let (found, rest) = out.split_at(head.len());
            assert_eq!(found, head);
            let (found, masked) = rest.split_at(4);
            assert_eq!(found, mask);
            let bare = masked.iter().zip(mask.iter().cycle());
            assert!(bare.map(|(byte, mask)| byte ^ mask).eq(payload));
        }
    }
}
