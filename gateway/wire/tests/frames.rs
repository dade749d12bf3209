//! Frames survive both encodings, and no bytes make a decoder panic.

use bytes::Bytes;
use mailbox_wire::{
    Body, ClientFrame, Destination, Encoding, Fault, GoAway, Limits, Message, MessageType,
    Position, Push, Reply, Request, Send, Sent, ServerFrame, Sync, Synced, Timeline, UserRef,
    Welcome,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use uuid::Uuid;

fn id() -> impl Strategy<Value = u64> {
    1..=u64::MAX
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn timeline() -> impl Strategy<Value = Timeline> {
    prop_oneof![
        id().prop_map(Timeline::Mailbox),
        id().prop_map(Timeline::Group)
    ]
}

fn user() -> impl Strategy<Value = UserRef> {
    prop_oneof![
        id().prop_map(UserRef::Id),
        "\\PC{1,20}".prop_map(UserRef::Handle)
    ]
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        user().prop_map(Destination::User),
        id().prop_map(Destination::Group)
    ]
}

fn position() -> impl Strategy<Value = Position> {
    (timeline(), any::<u64>()).prop_map(|(timeline, seq)| Position { timeline, seq })
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        ".{0,40}".prop_map(Body::Text),
        bytes().prop_map(Body::Opaque)
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let send = (destination(), uuid(), body(), any::<u64>()).prop_map(
        |(to, client_msg_id, body, shown_message_id)| {
            Request::Send(Send {
                to,
                client_msg_id,
                body,
                shown_message_id,
            })
        },
    );
    let sync = ("[A-Za-z0-9_-]{0,20}", any::<u32>(), vec(position(), 0..4))
        .prop_map(|(key, limit, have)| Request::Sync(Sync { key, limit, have }));
    prop_oneof![
        send,
        sync,
        (destination(), any::<u64>(), uuid()).prop_map(|(conversation, seq, request_id)| {
            Request::MarkRead {
                conversation,
                seq,
                request_id,
            }
        }),
        (timeline(), any::<u64>(), uuid()).prop_map(|(timeline, seq, request_id)| Request::Ack {
            timeline,
            seq,
            request_id
        }),
        (".{0,20}", uuid())
            .prop_map(|(name, request_id)| Request::CreateGroup { name, request_id }),
        (any::<u64>(), uuid())
            .prop_map(|(group, request_id)| Request::JoinGroup { group, request_id }),
        (any::<u64>(), uuid())
            .prop_map(|(group, request_id)| Request::LeaveGroup { group, request_id }),
        user().prop_map(|user| Request::ResolveUser { user }),
        (".{0,20}", uuid())
            .prop_map(|(handle, request_id)| Request::RegisterUser { handle, request_id }),
        Just(Request::Ping),
    ]
}

fn message(timeline: impl Strategy<Value = Timeline>) -> impl Strategy<Value = Message> {
    let numbers = (
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
    );
    let refused = option::of((id(), "[A-Za-z]{1,12}".prop_map(String::from)));
    let rest = (
        any::<u8>(),
        any::<u32>(),
        option::of(uuid()),
        bytes(),
        refused,
    );
    (timeline, numbers, rest).prop_map(|(timeline, numbers, rest)| Message {
        timeline,
        seq: numbers.0,
        message_id: numbers.1,
        sender: numbers.2,
        recipient: numbers.3,
        sent_at_ms: numbers.4,
        kind: MessageType(rest.0),
        flags: rest.1,
        client_msg_id: rest.2,
        body: rest.3,
        refused: rest.4,
    })
}

fn push() -> impl Strategy<Value = Push> {
    (timeline(), any::<u64>()).prop_flat_map(|(timeline, prev_seq)| {
        vec(message(Just(timeline)), 0..4).prop_map(move |messages| Push {
            timeline,
            prev_seq,
            messages,
        })
    })
}

fn reply() -> impl Strategy<Value = Reply> {
    let sent = (timeline(), any::<u64>(), any::<u64>()).prop_map(|(timeline, seq, message_id)| {
        Reply::Sent(Sent {
            timeline,
            seq,
            message_id,
        })
    });
    let synced = (
        vec(message(timeline()), 0..4),
        ".{0,10}",
        any::<bool>(),
        vec(position(), 0..4),
    )
        .prop_map(|(messages, key, more, positions)| {
            Reply::Synced(Synced {
                messages,
                key,
                more,
                positions,
            })
        });
    prop_oneof![
        sent,
        synced,
        any::<u64>().prop_map(|seq| Reply::MarkedRead { seq }),
        any::<u64>().prop_map(|seq| Reply::Acked { seq }),
        (any::<u64>(), any::<u64>()).prop_map(|(group, seq)| Reply::GroupCreated { group, seq }),
        any::<u64>().prop_map(|join_seq| Reply::JoinedGroup { join_seq }),
        any::<u64>().prop_map(|left_seq| Reply::LeftGroup { left_seq }),
        (any::<u64>(), ".{0,10}").prop_map(|(user, handle)| Reply::User { user, handle }),
        any::<u64>().prop_map(|user| Reply::UserRegistered { user }),
        any::<u64>().prop_map(|server_time_ms| Reply::Pong { server_time_ms }),
    ]
}

fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let welcome = (any::<u64>(), ".{0,10}", any::<u64>(), any::<[u32; 5]>()).prop_map(
        |(user, device, server_time_ms, limits)| {
            let limits = Limits {
                body_bytes_max: limits[0],
                frame_bytes_max: limits[1],
                in_flight_max: limits[2],
                sync_messages_max: limits[3],
                idle_ms_max: limits[4],
            };
            ServerFrame::Welcome(Welcome {
                user,
                device,
                server_time_ms,
                limits,
            })
        },
    );
    let error = (
        any::<u32>(),
        "[A-Za-z]{1,9}",
        ".{0,20}",
        any::<bool>(),
        any::<u32>(),
    )
        .prop_map(|(id, code, message, retryable, retry_after_ms)| {
            let fault = Fault {
                code: code.into(),
                message,
                retryable,
                retry_after_ms,
            };
            ServerFrame::Error { id, fault }
        });
    let go_away =
        (".{0,20}", any::<u32>(), any::<u32>()).prop_map(|(reason, after_ms_min, after_ms_max)| {
            ServerFrame::GoAway(GoAway {
                reason,
                after_ms_min,
                after_ms_max,
            })
        });
    prop_oneof![
        welcome,
        error,
        go_away,
        (any::<u32>(), reply()).prop_map(|(id, reply)| ServerFrame::Reply { id, reply }),
        push().prop_map(ServerFrame::Push),
        vec(position(), 0..4).prop_map(|heads| ServerFrame::Notify { heads }),
        Just(ServerFrame::Unknown),
    ]
}

proptest! {
    #[test]
    fn client_frames_survive(id in 1..=u32::MAX, request in request()) {
        let frame = ClientFrame { id, request };
        for encoding in [Encoding::Json, Encoding::Proto] {
            let bytes = encoding.encode_client(&frame);
            prop_assert_eq!(encoding.decode_client(&bytes).unwrap(), frame.clone());
        }
    }

    #[test]
    fn server_frames_survive(frame in server_frame()) {
        for encoding in [Encoding::Json, Encoding::Proto] {
            let bytes = encoding.encode_server(&frame);
            prop_assert_eq!(encoding.decode_server(&bytes).unwrap(), frame.clone());
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        for encoding in [Encoding::Json, Encoding::Proto] {
            let _ = encoding.decode_client(&bytes);
            let _ = encoding.decode_server(&bytes);
        }
    }

    #[test]
    fn damaged_frames_are_decoded_or_refused(
        request in request(),
        frame in server_frame(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let client = ClientFrame { id: 1, request };
        for encoding in [Encoding::Json, Encoding::Proto] {
            for good in [encoding.encode_client(&client), encoding.encode_server(&frame)] {
                let mut bytes = good.to_vec();
                for (at, byte) in &damage {
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] = *byte;
                    }
                }
                bytes.truncate(cut.index(bytes.len() + 1));
                let bytes = Bytes::from(bytes);
                let _ = encoding.decode_client(&bytes);
                let _ = encoding.decode_server(&bytes);
            }
        }
    }
}

#[test]
fn a_decoded_client_frame_means_the_same_in_both_encodings() {
    let json = r#"{"id":7,"send":{"to":"@bob","client_msg_id":"018bcfe5-6800-7000-8000-000000000001","text":"hi"}}"#;
    let frame = Encoding::Json
        .decode_client(&Bytes::from_static(json.as_bytes()))
        .unwrap();
    let binary = Encoding::Proto.encode_client(&frame);
    assert_eq!(Encoding::Proto.decode_client(&binary).unwrap(), frame);
    assert_eq!(Encoding::Json.encode_client(&frame), json.as_bytes());
}

#[test]
fn clients_skip_what_is_new_and_gateways_refuse_it() {
    let json = Bytes::from_static(br#"{"weather":{"rain":true}}"#);
    assert_eq!(
        Encoding::Json.decode_server(&json).unwrap(),
        ServerFrame::Unknown
    );
    let json = Bytes::from_static(br#"{"id":1,"pong":{"server_time_ms":"5","mood":"good"}}"#);
    assert!(Encoding::Json.decode_server(&json).is_ok());
    let json = Bytes::from_static(br#"{"id":1,"ping":{"mood":"good"}}"#);
    let error = Encoding::Json.decode_client(&json).unwrap_err();
    assert_eq!(error.id, 1);
    assert!(error.reason.contains("`mood`"), "{error}");
    // Field 99 in the binary form: a client of a newer protocol. Without a request it is refused.
    let error = Encoding::Proto.decode_client(&Bytes::from_static(&[8, 1, 0x98, 6, 1]));
    assert!(error.unwrap_err().reason.contains("no request"));
}
