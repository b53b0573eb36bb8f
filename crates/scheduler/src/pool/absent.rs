//! Jobs that wait for a worker that is gone, and may be back soon.

use std::time::Duration;

use super::effect::JobId;
use super::job::{Place, Pool};
use super::names::Row;
use super::worker::Machine;

/// So long a worker that is gone is expected back: time to restart it, or its machine.
const AWAITED: Duration = Duration::from_secs(1800);

impl Pool {
    /// Lets a job of the backlog wait for a worker that ran its hint and is expected back: so a worker that restarts does not
    /// have all its work done elsewhere from the beginning. Whoever finds nothing else to do takes such jobs, so no worker is
    /// idle because of them. Urgent ones do not wait.
    pub(super) fn wait_for_absent(&mut self, now: Duration, id: JobId) -> bool {
        let Some((machine, until)) = self.awaited(now, id) else { return false };
        let Some(hint) = self.jobs.get(id).and_then(|job| job.hint) else { return false };
        self.hold(now, id, self.hints.cost(hint, true));
        let Some(job) = self.jobs.get_mut(id) else { return false };
        job.place = Place::Absent { machine, until };
        self.machines.get_mut(machine).waited_for.insert(id);
        self.absent.insert((until, id));
        self.counts.assigned.add(job.urgent);
        true
    }

    /// Returns the worker for which a job is to wait, and until when.
    fn awaited(&self, now: Duration, id: JobId) -> Option<(Row<Machine>, Duration)> {
        let hint = self.jobs.get(id).filter(|job| !job.urgent)?.hint?;
        // The latest is where most of it is.
        let machine = *self.hints.names.get(hint).machines.last()?;
        let content = self.machines.get(machine);
        let gone = content.gone.filter(|_| content.worker.is_none() && content.known && !content.paused)?;
        // One that comes and goes does not have it wait for ever.
        let waits_since = self.jobs.get(id).and_then(|job| job.waits_since).unwrap_or(now);
        let until = gone.min(waits_since).saturating_add(AWAITED);
        (now < until).then_some((machine, until))
    }

    /// Ends that. The job is nowhere then.
    pub(super) fn stop_waiting_for_absent(&mut self, id: JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Place::Absent { machine, until } = job.place else { return };
        job.place = Place::Nowhere;
        self.absent.remove(&(until, id));
        self.machines.get_mut(machine).waited_for.remove(&id);
        self.counts.assigned.subtract(job.urgent);
        self.stop_holding(id);
    }

    /// Puts what waited for a worker back in line: it is there again, or not awaited any more.
    pub(super) fn end_absence(&mut self, now: Duration, machine: Row<Machine>) {
        let waiting = std::mem::take(&mut self.machines.get_mut(machine).waited_for);
        for id in waiting {
            self.stop_waiting_for_absent(id);
            self.place(now, id);
        }
    }
}
