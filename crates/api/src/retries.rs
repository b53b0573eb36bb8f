//! When to try again to reach a peer that was lost.

use std::time::Duration;

use tokio::time::Instant;

use crate::key::random;

/// How long after a loss another is expected to take over, or the same one to be back, and how long each pause is at most until then.
const SOON: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_secs(1);

/// The pauses between tries: short ones while somebody is likely to be there soon, then longer ones. They differ by chance, so that many that
/// lost the same peer do not all come back at the same moment.
#[derive(Debug)]
pub struct Retries {
    pause: Duration,
    most: Duration,
    since: Option<Instant>,
}

impl Retries {
    /// Returns pauses of about `least` at first, and of `most` at last.
    pub fn new(least: Duration, most: Duration) -> Self {
        Self { pause: least, most, since: None }
    }

    /// Returns how long to wait now. The first is asked for when the peer is lost.
    pub fn pause(&mut self) -> Duration {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let most = if now - since < SOON { self.most.min(SHORT) } else { self.most };
        let pause = self.pause.min(most);
        self.pause = (pause * 2).min(self.most);
        at_random(pause)
    }
}

/// Returns something between a half of `most` and all of it.
pub(crate) fn at_random(most: Duration) -> Duration {
    let half = most / 2;
    half + half * u32::from(u16::from_be_bytes(random())) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits as told for so long, and returns the pauses.
    async fn pauses(retries: &mut Retries, span: Duration) -> Vec<Duration> {
        let end = Instant::now() + span;
        let mut pauses = Vec::new();
        while Instant::now() < end {
            let pause = retries.pause();
            tokio::time::sleep(pause).await;
            pauses.push(pause);
        }
        pauses
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_are_short_at_first_and_long_after_a_while() {
        let mut retries = Retries::new(Duration::from_millis(200), Duration::from_secs(10));
        let first = pauses(&mut retries, SOON).await;
        assert!(first[0] <= Duration::from_millis(200), "{first:?}");
        assert!(first.iter().all(|pause| *pause <= SHORT) && first.len() >= 30, "{first:?}");
        let later = pauses(&mut retries, Duration::from_secs(100)).await;
        assert!(later.iter().any(|pause| *pause >= Duration::from_secs(5)), "{later:?}");
        assert!(later.iter().all(|pause| *pause <= Duration::from_secs(10)), "{later:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_lose_the_same_peer_do_not_keep_step() {
        let pause = || Retries::new(SHORT, SHORT).pause();
        let all: std::collections::BTreeSet<_> = (0..100).map(|_| pause()).collect();
        assert!(all.len() > 50, "{all:?}");
        assert!(all.iter().all(|pause| (SHORT / 2..=SHORT).contains(pause)), "{all:?}");
    }
}
