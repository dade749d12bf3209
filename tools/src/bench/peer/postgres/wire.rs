//! PostgreSQL's protocol, version 3, as far as a send needs it.

use anyhow::{Context as _, bail};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::bench::peer::wire::FRAME_BYTES_MAX;

/// 3.0, in the two halves of a number.
const VERSION: i32 = 3 << 16;
/// Parameters and results travel as bytes, not as text.
const BINARY: i16 = 1;

/// What a server says: a kind and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) kind: u8,
    pub(super) body: Bytes,
}

/// Cuts an answer off the buffer's front, once it is whole.
///
/// # Errors
/// Its length is none.
pub(super) fn take_answer(buffer: &mut BytesMut) -> anyhow::Result<Option<Answer>> {
    let mut head: &[u8] = buffer;
    let Ok(kind) = head.try_get_u8() else {
        return Ok(None);
    };
    let Ok(length) = head.try_get_u32() else {
        return Ok(None);
    };
    // The length counts itself.
    let length = usize::try_from(length)?;
    let body = length
        .checked_sub(4)
        .filter(|body| *body <= FRAME_BYTES_MAX);
    let body = body.with_context(|| {
        format!("PostgreSQL sends a length of {length}; 4 to {FRAME_BYTES_MAX} is right")
    })?;
    if head.len() < body {
        return Ok(None);
    }
    buffer.advance(5);
    let body = buffer.split_to(body).freeze();
    Ok(Some(Answer { kind, body }))
}

/// The first words on a connection.
pub(super) fn put_startup(out: &mut BytesMut, user: &str, database: &str) {
    put_sized(out, |out| {
        out.put_i32(VERSION);
        for word in ["user", user, "database", database, ""] {
            put_text(out, word);
        }
    });
}

/// Runs statements; results come as text.
pub(super) fn put_query(out: &mut BytesMut, statements: &str) {
    put_message(out, b'Q', |out| put_text(out, statements));
}

/// Prepares a statement; `types` are the object ids of its parameters.
pub(super) fn put_parse(out: &mut BytesMut, name: &str, statement: &str, types: &[i32]) {
    put_message(out, b'P', |out| {
        put_text(out, name);
        put_text(out, statement);
        put_count(out, types.len());
        for object_id in types {
            out.put_i32(*object_id);
        }
    });
}

/// Binds a prepared statement to parameters in binary, and runs it; the result comes in binary.
pub(super) fn put_run(out: &mut BytesMut, name: &str, parameters: &[&[u8]]) {
    put_message(out, b'B', |out| {
        put_text(out, "");
        put_text(out, name);
        put_count(out, 1);
        out.put_i16(BINARY);
        put_count(out, parameters.len());
        for parameter in parameters {
            // No parameter here is as long as a frame.
            out.put_i32(i32::try_from(parameter.len()).unwrap_or(0));
            out.put_slice(parameter);
        }
        put_count(out, 1);
        out.put_i16(BINARY);
    });
    put_message(out, b'E', |out| {
        put_text(out, "");
        // As many rows as there are.
        out.put_i32(0);
    });
}

/// Ends a batch: everything before it is one transaction, and `ReadyForQuery` is the answer.
pub(super) fn put_sync(out: &mut BytesMut) {
    put_message(out, b'S', |_| {});
}

fn put_message(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    put_sized(out, body);
}

fn put_sized(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let begin = out.len();
    out.put_u32(0);
    body(out);
    // No message here is as long as a frame.
    let length = u32::try_from(out.len() - begin).unwrap_or(0);
    if let Some(mut place) = out.get_mut(begin..begin + 4) {
        place.put_u32(length);
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_i16(i16::try_from(count).unwrap_or(0));
}

/// What an `ErrorResponse` says, for a person: its message and its code.
pub(super) fn error_text(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0);
    let field = |kind: u8| {
        let found = fields.clone().find_map(|field| {
            let (first, text) = field.split_first()?;
            (*first == kind).then(|| String::from_utf8_lossy(text).into_owned())
        });
        found.unwrap_or_else(|| "?".to_owned())
    };
    format!("{} ({})", field(b'M'), field(b'C'))
}

/// The first column of a row.
///
/// # Errors
/// There is none, or it is null.
pub(super) fn first_column(body: &Bytes) -> anyhow::Result<Bytes> {
    let mut rest = body.clone();
    let columns = rest.try_get_i16().context("PostgreSQL sends half a row")?;
    if columns < 1 {
        bail!("PostgreSQL sends a row without a column");
    }
    let length = rest.try_get_i32().context("PostgreSQL sends half a row")?;
    let length = usize::try_from(length).context("PostgreSQL sends a null")?;
    if length > rest.len() {
        bail!("PostgreSQL sends half a row");
    }
    Ok(rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_bind_and_execute_in_binary() {
        let mut out = BytesMut::new();
        put_run(&mut out, "s", &[b"ab", b""]);
        put_sync(&mut out);
        let bind = b"B\0\0\0\x1b\0s\0\0\x01\0\x01\0\x02\0\0\0\x02ab\0\0\0\0\0\x01\0\x01";
        let execute = b"E\0\0\0\x09\0\0\0\0\0";
        assert_eq!(out, [&bind[..], execute, b"S\0\0\0\x04"].concat());
    }

    #[test]
    fn a_connection_begins_with_who_and_where() {
        let mut out = BytesMut::new();
        put_startup(&mut out, "me", "db");
        assert_eq!(out, b"\0\0\0\x1d\0\x03\0\0user\0me\0database\0db\0\0"[..]);
    }

    #[test]
    fn a_statement_is_prepared_with_its_types() {
        let mut out = BytesMut::new();
        put_parse(&mut out, "s", "x", &[20]);
        put_query(&mut out, "y");
        assert_eq!(out, b"P\0\0\0\x0es\0x\0\0\x01\0\0\0\x14Q\0\0\0\x06y\0"[..]);
    }

    #[test]
    fn answers_are_cut_when_they_are_whole() {
        let wire = b"Z\0\0\0\x05I1\0\0\0\x04";
        let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
        for byte in wire {
            buffer.put_u8(*byte);
            found.extend(take_answer(&mut buffer).unwrap());
        }
        let answer = |kind, body| Answer {
            kind,
            body: Bytes::from_static(body),
        };
        assert_eq!(found, [answer(b'Z', b"I"), answer(b'1', b"")]);
        assert!(take_answer(&mut BytesMut::from(&b"Z\0\0\0\x03"[..])).is_err());
        assert!(take_answer(&mut BytesMut::from(&b"Z\x7f\xff\xff\xff"[..])).is_err());
    }

    #[test]
    fn an_error_is_told_with_its_code() {
        let body = b"SERROR\0C40P01\0Mdeadlock detected\0\0";
        assert_eq!(error_text(body), "deadlock detected (40P01)");
        assert_eq!(error_text(b""), "? (?)");
    }

    #[test]
    fn the_first_column_is_there_or_refused() {
        let row = |bytes: &'static [u8]| first_column(&Bytes::from_static(bytes));
        assert_eq!(row(b"\0\x02\0\0\0\x01a\0\0\0\x01b").unwrap(), "a");
        for bad in [
            &b""[..],
            b"\0",
            b"\0\0",
            b"\0\x01\xff\xff\xff\xff",
            b"\0\x01\0\0\0\x02a",
        ] {
            assert!(row(bad).is_err(), "{bad:?} was taken");
        }
    }
}
