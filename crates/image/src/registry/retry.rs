//! When to try again, and when to lose patience.

use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use super::{Notices, Patience, RegistryError};

/// Why one attempt failed, and whether another may do better.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: RegistryError,
    pub(super) again: Again,
}

/// Whether another attempt may do better.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Again {
    Never,
    /// As `Later`, but not often: nobody has ever answered there, so a wrong name is more likely than a bad network.
    Hardly,
    /// After a wait; how long, if the registry says so.
    Later(Option<Duration>),
}

/// How often a host is tried that has never answered.
const HARDLY: u32 = 3;
/// A wait that is worth a word.
const TOLD: Duration = Duration::from_secs(1);

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self { error, again: Again::Never }
    }
}

impl Failure {
    /// What time may heal.
    pub(super) fn passing(error: RegistryError) -> Self {
        Self { error, again: Again::Later(None) }
    }
}

/// Counts attempts that brought nothing.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    patience: Patience,
    notices: &'a Notices,
    made: u32,
    wait: Duration,
}

impl<'a> Tries<'a> {
    /// Allows as many attempts as `patience` does.
    pub(super) fn new(patience: &Patience, notices: &'a Notices) -> Self {
        Self { patience: *patience, notices, made: 0, wait: patience.first_wait }
    }

    /// Starts counting anew: it went on a little.
    pub(super) fn reset(&mut self) {
        *self = Self::new(&self.patience, self.notices);
    }

    /// Waits until the next attempt is due.
    ///
    /// # Errors
    ///
    /// The failure's error, if there is to be no other attempt.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let (asked, most) = match failure.again {
            Again::Never => return Err(failure.error),
            Again::Hardly => (None, self.patience.attempts.min(HARDLY)),
            Again::Later(asked) => (asked, self.patience.attempts),
        };
        self.made += 1;
        if self.made >= most {
            return Err(failure.error);
        }
        let wait = asked.unwrap_or_else(|| vary(self.wait)).min(self.patience.longest_wait);
        self.wait = (self.wait * 2).min(self.patience.longest_wait);
        tracing::debug!(error = &failure.error as &dyn std::error::Error, ?wait, "trying again");
        // What is over at once needs no words.
        if self.made > 1 || wait >= TOLD || matches!(failure.error, RegistryError::Silent { .. }) {
            let seconds = wait.as_secs_f32().ceil();
            self.notices.tell(format_args!("{}; trying again in {seconds} s", in_one_line(&failure.error)));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Returns an error with its causes.
pub(super) fn in_one_line(error: &RegistryError) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Returns between half of `wait` and all of it, so that clients that failed together do not come back together.
fn vary(wait: Duration) -> Duration {
    // The standard library's source of chance, which is enough for this.
    let chance = RandomState::new().build_hasher().finish() % 1000;
    wait / 2 + (wait / 2).mul_f64(chance as f64 / 1000.0)
}

/// Notices transfers that never end, however often they seem to go on.
#[derive(Debug)]
pub(super) struct Speed {
    since: Instant,
    bytes: u64,
}

impl Speed {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), bytes: 0 }
    }

    /// Does not count a time in which the transfer waited for us.
    pub(super) fn excuse(&mut self, time: Duration) {
        self.since += time;
    }

    /// Takes back bytes that were counted: they were there before.
    pub(super) fn uncount(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Counts bytes. Returns how many came in how long, if that is too slow.
    pub(super) fn passed(&mut self, bytes: u64, patience: &Patience) -> Option<(u64, Duration)> {
        self.bytes += bytes;
        let during = self.since.elapsed();
        if during < patience.slow_for {
            return None;
        }
        let wanted = patience.lowest_bytes_per_second as f64 * during.as_secs_f64();
        let bytes = std::mem::take(&mut self.bytes);
        self.since = Instant::now();
        ((bytes as f64) < wanted).then_some((bytes, during))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_vary_by_half() {
        let waits: Vec<_> = (0..100).map(|_| vary(Duration::from_secs(2))).collect();
        assert!(waits.iter().all(|wait| (Duration::from_secs(1)..=Duration::from_secs(2)).contains(wait)));
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }

    #[test]
    fn a_slow_transfer_is_one_that_was_slow_for_long() {
        let patience =
            Patience { slow_for: Duration::from_secs(10), lowest_bytes_per_second: 10, ..Patience::default() };
        let ago = |seconds| Speed { since: Instant::now() - Duration::from_secs(seconds), bytes: 0 };
        assert!(ago(9).passed(1, &patience).is_none());
        assert!(ago(11).passed(99, &patience).is_some());
        let mut fast = ago(11);
        assert!(fast.passed(1000, &patience).is_none());
        assert!(fast.passed(0, &patience).is_none(), "the next stretch has begun");
        let mut excused = ago(11);
        excused.excuse(Duration::from_secs(5));
        assert!(excused.passed(0, &patience).is_none());
    }
}
