//! Questions to all voters of a shard, where some are enough to go on and a node may hang.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

/// How much longer the others may take once enough have answered.
const LAGGARD_WAIT: Duration = Duration::from_millis(100);

/// What the nodes say that were asked. Once the answers are enough, the others are not waited for much longer: `silent` is
/// what is known of those instead.
pub(crate) async fn of_enough<T, A: Future<Output = T>>(
    asked: Vec<(u64, A)>,
    are_enough: impl Fn(&[T]) -> bool,
    silent: impl Fn(u64) -> T,
) -> Vec<T> {
    let count = asked.len();
    let mut left: BTreeSet<u64> = asked.iter().map(|(node, _)| *node).collect();
    let mut asked: FuturesUnordered<_> = asked
        .into_iter()
        .map(|(node, answer)| async move { (node, answer.await) })
        .collect();
    let mut answers = Vec::with_capacity(count);
    loop {
        let next = match are_enough(&answers) {
            false => Ok(asked.next().await),
            true => tokio::time::timeout(LAGGARD_WAIT, asked.next()).await,
        };
        match next {
            Ok(Some((node, answer))) => {
                left.remove(&node);
                answers.push(answer);
            }
            // All have answered, or nobody else does.
            Ok(None) | Err(_) => break,
        }
    }
    answers.extend(left.into_iter().map(silent));
    answers
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Far more than a laggard is waited for.
    const LONG: Duration = Duration::from_secs(5);

    async fn answer(node: u64, after: Duration) -> (u64, bool) {
        tokio::time::sleep(after).await;
        (node, true)
    }

    /// Who has answered, of nodes 1, 2 and 3 that take so long; and whether that was soon.
    async fn answered(after: [Duration; 3]) -> (Vec<u64>, bool) {
        let asked = (1..).zip(after);
        let asked = asked.map(|(node, after)| (node, answer(node, after)));
        let began = Instant::now();
        let most = |answers: &[(u64, bool)]| answers.len() > 1;
        let answers = of_enough(asked.collect(), most, |node| (node, false)).await;
        assert_eq!(answers.len(), 3);
        let mut answered: Vec<u64> = answers
            .into_iter()
            .filter_map(|(node, has_answered)| has_answered.then_some(node))
            .collect();
        answered.sort_unstable();
        (answered, began.elapsed() < LONG)
    }

    #[tokio::test]
    async fn who_hangs_is_not_waited_for_once_enough_have_answered() {
        let soon = Duration::ZERO;
        assert_eq!(answered([soon; 3]).await, (vec![1, 2, 3], true));
        assert_eq!(answered([soon, LONG, soon]).await, (vec![1, 3], true));
        // One is not enough.
        let late = LAGGARD_WAIT * 2;
        assert_eq!(answered([LONG, soon, late]).await, (vec![2, 3], true));
    }
}
