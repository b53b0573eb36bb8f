//! A job's log, read as fast as it comes.

use std::collections::VecDeque;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::error::Error;
use crate::interface::{Answer, Job, LogChunk, MAX_CHUNK};

/// How many parts are asked for at once. Each takes a trip to the worker and back, and has [`MAX_CHUNK`] bytes at most.
const AHEAD: usize = 16;

/// How many questions may wait that turned out to be of no use. They are answered when the log has come that far, or ends.
const MAX_STALE: usize = 64;

/// Reads a log, from its beginning or from where it was read to before.
///
/// While parts come that are as long as they can be, those that follow are asked for before they are needed, where they will begin.
/// When one is shorter, what was asked beyond it is of no use, and it is waited for what comes next.
pub struct LogTail {
    job: Job,
    /// Where the next part begins.
    position: i64,
    ahead: VecDeque<Answer<LogChunk>>,
    /// Not dropped: capnp-rpc forgets no question that is given up before its answer.
    stale: FuturesUnordered<Answer<LogChunk>>,
}

impl LogTail {
    /// Begins at the beginning.
    pub fn new(job: Job) -> Self {
        Self::at(job, 0)
    }

    /// Goes on where another left off.
    pub fn at(job: Job, position: i64) -> Self {
        Self { job, position, ahead: VecDeque::new(), stale: FuturesUnordered::new() }
    }

    /// Returns where the next part begins.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// Waits for the next part of the log, and returns it; nothing if the log is complete. The future may be dropped: nothing is lost.
    ///
    /// # Errors
    ///
    /// What the job says, or that it cannot be reached.
    pub async fn next(&mut self) -> Result<Vec<u8>, Error> {
        if self.ahead.is_empty() {
            self.ahead.push_back(Box::pin(self.job.log(self.position)));
        }
        let chunk = loop {
            let Some(answer) = self.ahead.front_mut() else { return Ok(Vec::new()) };
            tokio::select! {
                biased;
                chunk = answer => break chunk,
                Some(_) = self.stale.next() => {}
            }
        };
        self.ahead.pop_front();
        let chunk = chunk?;
        if i64::try_from(chunk.bytes.len()).is_ok_and(|length| self.position.checked_add(length) != Some(chunk.next)) {
            return Err(Error::failed(format!("the log goes on at {} after {}", chunk.next, self.position)));
        }
        let full = i64::try_from(MAX_CHUNK).unwrap_or(i64::MAX);
        let is_full = chunk.next - self.position == full;
        self.position = chunk.next;
        if !is_full {
            self.stale.extend(self.ahead.drain(..));
        } else if self.stale.len() < MAX_STALE {
            while self.ahead.len() < AHEAD {
                let parts = i64::try_from(self.ahead.len()).unwrap_or(i64::MAX);
                self.ahead.push_back(Box::pin(self.job.log(self.position + parts * full)));
            }
        }
        Ok(chunk.bytes)
    }
}
