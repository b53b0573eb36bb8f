//! The logs of kept jobs on their way to a database that several schedulers share.
//!
//! A log is in a file here first, and follows into the database every second, before a run begins that goes on with it, and before its job
//! ends. So whoever takes over has all of it but the last second, which the worker still has, unless that is lost at the same time.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::sleep;

use super::pool::LivePool;
use super::record::Record;
use crate::state::Change;

const EVERY: Duration = Duration::from_secs(1);

/// How much is added at once, in bytes.
const PART: usize = 1 << 20;

impl LivePool {
    /// Lets logs follow, for ever.
    pub(super) async fn archive_all(self: Rc<Self>) {
        while self.keeper.is_shared() {
            let kept: Vec<_> = {
                let jobs = self.jobs.borrow();
                jobs.values().filter(|job| job.is_kept).map(|job| Rc::clone(&job.record)).collect()
            };
            for record in kept {
                self.archive(&record).await;
            }
            sleep(EVERY).await;
        }
    }

    /// Adds what is not there yet of a kept job's log to the database, if that is shared.
    pub(super) async fn archive(&self, record: &Record) {
        let Some(log) = record.log().filter(|_| self.keeper.is_shared()) else { return };
        let mut archived = record.archived.lock().await;
        while *archived < log.length() {
            let start = *archived;
            let bytes = self.patiently(async || log.part(start, PART).await).await;
            let part = || Change::Log { job: record.key, start, bytes: bytes.clone() };
            self.patiently(async || self.keeper.write(part(), false).await).await;
            *archived += bytes.len() as u64;
        }
    }
}
