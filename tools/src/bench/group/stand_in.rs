//! A gateway's stand-in for tests: it acks posts and pushes them to everyone, in the clear or over TLS, and can drop
//! pushes as a gateway does. With it a crowd's whole way is played without a cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mailbox_wire::{
    Message, MessageType, Position, Push, Reply, Request, Sent, ServerFrame, Synced, Timeline,
    Welcome, binary,
};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::crowd::{Cast, Crowd, Outcome};
use super::tally::Counts;
use crate::bench::load::{Clock, Shape};
use crate::bench::socket::{Login, Socket, trusting};
use crate::bench::websocket::tests::frame;

const GROUP: u64 = 65;
const HEAD: u64 = 6;
const TIMELINE: Timeline = Timeline::Group(GROUP);

#[derive(Default)]
struct Store {
    messages: Vec<Message>,
    members: Vec<mpsc::UnboundedSender<Vec<u8>>>,
}

/// What it does wrong, or as a gateway does that is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Faithful,
    /// The second member is not pushed every fifth message and is told so.
    Drops,
    /// The same, and nobody is told.
    Swallows,
    /// The second member gets every fifth message twice.
    Repeats,
    /// Every third post is refused.
    Refuses,
}

struct StandIn {
    habit: Habit,
    store: Mutex<Store>,
}

impl StandIn {
    /// Serves members from now on; where.
    async fn start(habit: Habit, tls: Option<TlsAcceptor>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let gateway = Arc::new(Self {
            habit,
            store: Mutex::default(),
        });
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let gateway = Arc::clone(&gateway);
                match &tls {
                    Some(acceptor) => {
                        let stream = acceptor.accept(socket).await.unwrap();
                        tokio::spawn(gateway.serve(stream));
                    }
                    None => {
                        tokio::spawn(gateway.serve(socket));
                    }
                }
            }
        });
        address
    }

    async fn serve(self: Arc<Self>, mut stream: impl AsyncRead + AsyncWrite + Send + Unpin) {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.unwrap());
        }
        let request = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
        assert!(request.starts_with("GET /v1/ws?device=bench HTTP/1.1\r\n"));
        assert!(request.contains("\r\nAuthorization: Bearer token\r\n"));
        // The welcome comes in one write with the answer, and a ping in two.
        let mut answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
        answer.extend(binary_frame(&ServerFrame::Welcome(Welcome::default())));
        answer.extend([0x89, 0x02, b'h']);
        stream.write_all(&answer).await.unwrap();
        stream.write_all(b"i").await.unwrap();
        stream.flush().await.unwrap();
        let (out, mut outbox) = mpsc::unbounded_channel();
        let number = {
            let mut store = self.store.lock();
            store.members.push(out);
            store.members.len() - 1
        };
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                read = stream.read(&mut buffer) => {
                    let Ok(read @ 1..) = read else { return };
                    bytes.extend(&buffer[..read]);
                    while let Some(payload) = unmasked(&mut bytes) {
                        self.take(number, payload);
                    }
                }
                Some(frame) = outbox.recv() => {
                    if stream.write_all(&frame).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn take(&self, number: usize, payload: Bytes) {
        if payload == "hi" {
            // The pong.
            return;
        }
        let frame = binary::decode_client(&payload).unwrap();
        let id = frame.id;
        let mut store = self.store.lock();
        let answer = match frame.request {
            Request::Sync(sync) => {
                let held = sync.have[0].seq;
                let messages = store.messages.iter();
                let messages = messages.filter(|message| message.seq > held);
                // Pages of two.
                let page: Vec<_> = messages.clone().take(2).cloned().collect();
                Reply::Synced(Synced {
                    more: messages.count() > page.len(),
                    messages: page,
                    ..Synced::default()
                })
            }
            Request::Send(_) if self.habit == Habit::Refuses && id.is_multiple_of(3) => {
                let fault = mailbox_wire::Fault {
                    code: "Busy".into(),
                    message: "later".to_owned(),
                    retryable: true,
                    retry_after_ms: 0,
                };
                let refusal = binary_frame(&ServerFrame::Error { id, fault });
                store.members[number].send(refusal).unwrap();
                return;
            }
            Request::Send(send) => {
                let seq = HEAD + 1 + store.messages.len() as u64;
                let message = Message {
                    timeline: TIMELINE,
                    seq,
                    message_id: seq << 16,
                    sender: 17,
                    recipient: 0,
                    sent_at_ms: 0,
                    kind: MessageType::OPAQUE,
                    flags: 0,
                    client_msg_id: Some(send.client_msg_id),
                    body: send.body.into_bytes(),
                    refused: None,
                };
                store.messages.push(message.clone());
                self.push(&store, message);
                Reply::Sent(Sent {
                    timeline: TIMELINE,
                    seq,
                    message_id: seq << 16,
                })
            }
            other => panic!("a member asked {other:?}"),
        };
        let answer = binary_frame(&ServerFrame::Reply { id, reply: answer });
        store.members[number].send(answer).unwrap();
    }

    fn push(&self, store: &Store, message: Message) {
        let seq = message.seq;
        let push = binary_frame(&ServerFrame::Push(Push {
            timeline: TIMELINE,
            prev_seq: seq - 1,
            messages: vec![message],
        }));
        let notify = binary_frame(&ServerFrame::Notify {
            heads: vec![Position {
                timeline: TIMELINE,
                seq,
            }],
        });
        for (number, member) in store.members.iter().enumerate() {
            let special = number == 1 && seq.is_multiple_of(5);
            let frames = match self.habit {
                Habit::Drops if special => vec![&notify],
                Habit::Swallows if special => Vec::new(),
                Habit::Repeats if special => vec![&push, &push],
                _ => vec![&push],
            };
            for frame in frames {
                member.send(frame.clone()).unwrap();
            }
        }
    }
}

fn binary_frame(server_frame: &ServerFrame) -> Vec<u8> {
    frame(0x82, &binary::encode_server(server_frame))
}

/// The payload of the first frame, if it is there as a whole. Members of a test write short ones only.
fn unmasked(bytes: &mut Vec<u8>) -> Option<Bytes> {
    let (length, rest) = match bytes.get(1)? & 0x7f {
        126 => (
            u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?).into(),
            bytes.get(4..)?,
        ),
        short => (usize::from(short), bytes.get(2..)?),
    };
    let (mask, masked) = rest.split_at_checked(4)?;
    let masked = masked.get(..length)?;
    let bare = masked.iter().zip(mask.iter().cycle());
    let payload: Vec<u8> = bare.map(|(byte, mask)| byte ^ mask).collect();
    let taken = bytes.len() - rest.len() + 4 + length;
    bytes.drain(..taken);
    Some(payload.into())
}

/// Three members, two of whom post until so many posts are acked.
async fn play(habit: Habit, tls: bool, posts: u64) -> anyhow::Result<Outcome> {
    let dir = tempfile::tempdir().unwrap();
    let (acceptor, certificate) = match tls {
        true => {
            let (acceptor, certificate) = identity(dir.path());
            (Some(acceptor), Some(certificate))
        }
        false => (None, None),
    };
    let address = StandIn::start(habit, acceptor).await;
    let scheme = if tls { "wss" } else { "ws" };
    let login = Login {
        url: format!("{scheme}://{address}"),
        token: "token".to_owned(),
        device: "bench".to_owned(),
        tls: certificate.as_deref().map(trusting).transpose()?,
    };
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(Socket::log_in(&login).await?);
    }
    let cast = Cast {
        group: GROUP,
        head: HEAD,
        sockets,
        senders: 2,
        body_bytes: 100,
        shape: Shape::Closed { in_flight: 8 },
    };
    let settled = tokio::task::spawn_blocking(|| Crowd::new(cast)?.settle());
    let crowd = settled.await??;
    // It ends when enough has come about, however long that takes.
    let clock = Clock::endless();
    let counts = Arc::new(Mutex::new(Counts::default()));
    let mut run = {
        let (clock, counts) = (Arc::clone(&clock), Arc::clone(&counts));
        tokio::task::spawn_blocking(move || crowd.run(&clock, &counts))
    };
    while counts.lock().acked < posts {
        tokio::select! {
            ended = &mut run => return ended?,
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    clock.stop();
    run.await?
}

fn identity(dir: &std::path::Path) -> (TlsAcceptor, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let file = dir.join("certificate.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_member_gets_every_post_in_the_clear_and_over_tls() {
    for tls in [false, true] {
        let outcome = play(Habit::Faithful, tls, 200).await.unwrap();
        let counts = outcome.counts;
        assert_eq!((outcome.missing, outcome.out_of_order), (0, 0));
        assert!(counts.acked >= 200);
        assert_eq!(counts.acked, counts.posted);
        assert_eq!(counts.deliveries, 3 * counts.acked);
        assert_eq!(counts.pushes, counts.deliveries);
        assert_eq!((counts.notices, counts.synced), (0, 0));
        // A body alone is 100 bytes.
        assert!(counts.wire_bytes > 100 * counts.deliveries);
        assert!(!outcome.latencies_us.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_and_told_comes_by_sync() {
    let outcome = play(Habit::Drops, false, 200).await.unwrap();
    let counts = outcome.counts;
    assert_eq!((outcome.missing, outcome.out_of_order), (0, 0));
    assert_eq!(counts.deliveries, 3 * counts.acked);
    assert!(counts.notices > 0 && counts.synced >= counts.notices);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_nobody_told_of_and_a_repeat_are_found() {
    for habit in [Habit::Swallows, Habit::Repeats] {
        let outcome = play(habit, false, 50).await.unwrap();
        assert!(outcome.out_of_order > 0, "{habit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_posts_are_counted_and_hold_nothing_up() {
    let outcome = play(Habit::Refuses, false, 100).await.unwrap();
    let counts = outcome.counts;
    assert!(counts.refused > 0);
    assert_eq!(counts.posted, counts.acked + counts.refused);
    assert_eq!((outcome.missing, outcome.out_of_order), (0, 0));
    assert_eq!(outcome.first_refusal.as_deref(), Some("Busy: later"));
}
