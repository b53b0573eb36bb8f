//! The logs of kept jobs on their way to a database that several schedulers share.
//!
//! A log is in a file here first, and follows into the database every second, before a run begins that goes on with it, and
//! before its job ends. So whoever takes over has all of it but the last second, which the worker still has, unless that is
//! lost at the same time. Clients read what is there: with the rest they would go on in the middle of something else, if it is
//! lost.

use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::sleep;

use super::pool::LivePool;
use super::record::Record;
use crate::state::Change;
use crate::state::logs::PART;

const EVERY: Duration = Duration::from_secs(1);

/// How many logs follow at once.
const LOGS: usize = 32;

/// How much of one is added at once, in bytes.
const AT_ONCE: usize = 32 * PART as usize;

impl LivePool {
    /// Lets logs follow, for ever.
    pub(super) async fn archive_all(self: Rc<Self>) {
        while self.keeper.is_shared() {
            let kept: Vec<_> = {
                let jobs = self.jobs.borrow();
                jobs.values().filter(|job| job.is_kept).map(|job| Rc::clone(&job.record)).collect()
            };
            let follow = async |record: Rc<Record>| self.archive(&record).await;
            futures::stream::iter(kept).for_each_concurrent(LOGS, follow).await;
            sleep(EVERY).await;
        }
    }

    /// Adds what is not there yet of a kept job's log to the database, if that is shared.
    pub(super) async fn archive(&self, record: &Record) {
        let Some(log) = record.log().filter(|_| self.keeper.is_shared()) else { return };
        let mut archived = record.archived.lock().await;
        while *archived < log.length() {
            let start = *archived - *archived % PART;
            // It may be less than there is, and is one piece: what is kept has no holes.
            let bytes = self.patiently(async || log.part(start, AT_ONCE).await).await;
            let more = || Change::Log { job: record.key, start, bytes: bytes.clone() };
            self.patiently(async || self.keeper.write(more(), false).await).await;
            *archived = (*archived).max(start + bytes.len() as u64);
            log.show(*archived);
        }
    }
}
