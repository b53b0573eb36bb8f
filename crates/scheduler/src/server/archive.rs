//! The logs of kept jobs on their way to a database that several schedulers share.
//!
//! A log is in a file here first, and follows into the database every second, before a run begins that goes on with it, and before its job
//! ends. So whoever takes over has all of it but the last second, which the worker still has, unless that is lost at the same time.

use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::try_join_all;
use tokio::time::sleep;

use super::pool::LivePool;
use super::record::Record;
use crate::state::Change;
use crate::state::logs::PART;

const EVERY: Duration = Duration::from_secs(1);

/// How many logs follow at once.
const LOGS: usize = 32;

/// How many parts of one are added at once.
const PARTS: usize = 32;

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
            let mut parts = Vec::new();
            let mut start = *archived - *archived % PART;
            while parts.len() < PARTS && start < log.length() {
                let bytes = self.patiently(async || log.part(start, PART as usize).await).await;
                parts.push((start, bytes));
                start += PART;
            }
            let Some((last, bytes)) = parts.last() else { return };
            let end = last + bytes.len() as u64;
            self.patiently(async || {
                // All are asked for before any is waited for, so that they are one change of the database.
                let add = |(start, bytes): &(u64, Vec<u8>)| {
                    let part = Change::Log { job: record.key, start: *start, bytes: bytes.clone() };
                    self.keeper.write(part, false)
                };
                try_join_all(parts.iter().map(add).collect::<Vec<_>>()).await
            })
            .await;
            *archived = end;
        }
    }
}
