//! Long work on all cores, piece by piece, in order.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Does `work` with each piece, on as many threads as there are cores, and hands what comes of it to `take` in the order
/// of the pieces. At most two pieces a thread are under way.
///
/// # Errors
/// The first one of `take`. Pieces behind it may have been worked on, and are dropped.
///
/// # Panics
/// When `work` does.
pub(crate) fn in_order<P: Send, D: Send>(
    pieces: impl Iterator<Item = P>,
    work: impl Fn(P) -> D + Sync,
    mut take: impl FnMut(D) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = &work;
    std::thread::scope(|scope| {
        let ends: Vec<(SyncSender<P>, Receiver<D>)> = (0..threads)
            .map(|_| {
                let (give, taken) = sync_channel::<P>(1);
                let (put, done) = sync_channel::<D>(1);
                scope.spawn(move || {
                    for piece in taken {
                        if put.send(work(piece)).is_err() {
                            return;
                        }
                    }
                });
                (give, done)
            })
            .collect();
        let (mut given, mut got) = (0_usize, 0_usize);
        for piece in pieces {
            if given - got == 2 * threads {
                take(next(&ends, got))?;
                got += 1;
            }
            let (give, _) = &ends[given % threads];
            // Whoever has panicked takes nothing: that is found where its work is asked for.
            let _ = give.send(piece);
            given += 1;
        }
        while got < given {
            take(next(&ends, got))?;
            got += 1;
        }
        Ok(())
    })
}

fn next<P, D>(ends: &[(SyncSender<P>, Receiver<D>)], number: usize) -> D {
    let (_, done) = &ends[number % ends.len()];
    match done.recv() {
        Ok(done) => done,
        Err(_) => panic!("the work on a piece has panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_comes_in_the_order_of_its_pieces() {
        for count in [0, 1, 7, 1000] {
            let mut taken = Vec::new();
            let take = |it| {
                taken.push(it);
                Ok(())
            };
            in_order(0..count, |piece| piece * 2, take).unwrap();
            assert_eq!(taken, (0..count).map(|it| it * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_it() {
        let take = |it| {
            anyhow::ensure!(it < 5, "five");
            Ok(())
        };
        let error = in_order(0.., |piece| piece, take).unwrap_err();
        assert_eq!(error.to_string(), "five");
    }

    #[test]
    #[should_panic(expected = "panicked")]
    fn work_that_panics_does_not_hang() {
        let _ = in_order(0..100, |piece| assert!(piece < 9), |()| Ok(()));
    }
}
