//! The queue of packets, and when each is let go.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::convert::Infallible;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nfq::{Message, Queue, Verdict};
use rand::RngExt as _;

/// More packets than these on their way are lost, as on any way.
const PACKETS_MAX: u32 = 4096;
/// Between two looks at the queue.
const LOOK: Duration = Duration::from_millis(1);

pub(super) fn hold(number: u16, longest: Duration) -> anyhow::Result<Infallible> {
    std::thread::spawn(|| {
        // Until whoever started this ends, however that comes about.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let mut queue = Queue::open().context("open the queue of packets")?;
    queue.bind(number).context("take the queue of packets")?;
    queue
        .set_queue_max_len(number, PACKETS_MAX)
        .context("bound the queue of packets")?;
    queue.set_nonblocking(true);
    let (mut rng, mut held) = (rand::rng(), BinaryHeap::new());
    let mut packets = 0;
    loop {
        match queue.recv() {
            Ok(packet) => {
                let until = Instant::now() + rng.random_range(Duration::ZERO..=longest);
                packets += 1;
                held.push(Held {
                    order: Reverse((until, packets)),
                    packet,
                });
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(LOOK),
            Err(error) => return Err(error).context("read the queue of packets"),
        }
        while let Some(next) = held.peek()
            && next.order.0.0 <= Instant::now()
            && let Some(mut next) = held.pop()
        {
            next.packet.set_verdict(Verdict::Accept);
            queue.verdict(next.packet).context("let a packet go")?;
        }
    }
}

/// The one whose time comes first is the greatest.
struct Held {
    order: Reverse<(Instant, u64)>,
    packet: Message,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}
