//! What administrators do, and what survives a restart.

use std::time::Duration;

use bstr::{BStr, BString};
use thiserror::Error;

use super::effect::Effect;
use super::fair::Client;
use super::gauges::Lengths;
use super::job::Pool;
use super::names::Row;
use super::worker::Machine;

/// What was kept of a pool, by [`Effect`]s.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Saved {
    /// Known workers, and whether an administrator paused them.
    pub workers: Vec<(BString, bool)>,
    /// Hints and workers that ran them, the latest last.
    pub hints: Vec<(BString, BString)>,
    /// Clients and their rates.
    pub rates: Vec<(BString, f64)>,
}

/// A known worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Its name.
    pub name: BString,
    /// It is given jobs; or would be, as far as administrators are concerned, if it were connected.
    pub active: bool,
    /// It is connected.
    pub connected: bool,
}

/// No worker of this name is known. OCluster's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Unknown worker")]
pub struct UnknownWorker;

/// Why a worker is not forgotten. OCluster's texts.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForgetError {
    /// No worker of this name is known.
    #[error("Unknown worker")]
    Unknown,
    /// It is there.
    #[error("Worker {0:?} is still connected!")]
    Connected(BString),
}

/// The rate is zero, negative, infinite or no number.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
#[error("a rate must be a number above 0, not {0}")]
pub struct RateError(f64);

impl Pool {
    /// Returns a pool that knows what was saved. Rates that are none are left out.
    pub fn restore(name: impl Into<BString>, saved: &Saved) -> Pool {
        let mut pool = Pool::new(name);
        for (worker, paused) in &saved.workers {
            let row = pool.machines.find_or_add(worker.as_ref(), Machine::default);
            let machine = pool.machines.get_mut(row);
            (machine.known, machine.paused) = (true, *paused);
        }
        for (hint, worker) in saved.hints.iter().filter(|(hint, _)| !hint.is_empty()) {
            let row = pool.machines.find_or_add(worker.as_ref(), Machine::default);
            pool.hints.restore(hint.as_ref(), row);
        }
        for (client, rate) in saved.rates.iter().filter(|(_, rate)| is_rate(*rate)) {
            pool.clients.find_or_add(client.as_ref(), || Client::new(*rate));
        }
        pool
    }

    /// Pauses or unpauses the worker of this name, connected or not. That holds until it is undone. One that is not
    /// known is made known if `auto_create`.
    ///
    /// # Errors
    ///
    /// The worker is not known, and is not to be.
    pub fn set_paused(
        &mut self,
        now: Duration,
        name: &BStr,
        paused: bool,
        auto_create: bool,
    ) -> Result<(), UnknownWorker> {
        let row = match self.known(name) {
            Some(row) => row,
            None if auto_create => self.machines.find_or_add(name, Machine::default),
            None => return Err(UnknownWorker),
        };
        let machine = self.machines.get_mut(row);
        if (machine.known, machine.paused) != (true, paused) {
            (machine.known, machine.paused) = (true, paused);
            self.effects.push(Effect::SaveWorker { worker: name.to_owned(), paused });
        }
        match machine.worker {
            Some(id) => self.set_pauses(now, id, |pauses| pauses.administrator = paused),
            None if paused => self.end_absence(now, row),
            None => {}
        }
        Ok(())
    }

    /// Forgets a worker: it is listed no longer, and not paused when it comes back.
    ///
    /// # Errors
    ///
    /// It is not known, or connected.
    pub fn forget(&mut self, now: Duration, name: &BStr) -> Result<(), ForgetError> {
        let row = self.known(name).ok_or(ForgetError::Unknown)?;
        let machine = self.machines.get_mut(row);
        if machine.worker.is_some() {
            return Err(ForgetError::Connected(name.to_owned()));
        }
        (machine.known, machine.paused) = (false, false);
        self.effects.push(Effect::ForgetWorker { worker: name.to_owned() });
        self.end_absence(now, row);
        Ok(())
    }

    /// Returns the known workers, sorted by name.
    pub fn workers(&self) -> impl Iterator<Item = WorkerInfo> {
        self.machines.iter().filter(|(_, _, machine)| machine.known).map(|(name, _, machine)| {
            let worker = machine.worker.and_then(|id| self.workers.get(id));
            let active = worker.map_or(!machine.paused, |worker| worker.pauses.is_active());
            WorkerInfo { name: name.to_owned(), active, connected: worker.is_some() }
        })
    }

    /// Sets how many workers' worth of share a client has. It holds for what is submitted from now on.
    ///
    /// # Errors
    ///
    /// `rate` is not above zero and finite.
    pub fn set_rate(&mut self, client: &BStr, rate: f64) -> Result<(), RateError> {
        if !is_rate(rate) {
            return Err(RateError(rate));
        }
        let row = self.clients.find_or_add(client, || Client::new(rate));
        let content = self.clients.get_mut(row);
        (content.rate, content.seen) = (rate, true);
        self.effects.push(Effect::SaveRate { client: client.to_owned(), rate: Some(rate) });
        Ok(())
    }

    /// Forgets a client and its rate. Jobs that it has in the pool stay, and who it was is forgotten with the last of
    /// them.
    pub fn remove_client(&mut self, client: &BStr) {
        self.effects.push(Effect::SaveRate { client: client.to_owned(), rate: None });
        if let Some(row) = self.clients.find(client) {
            let content = self.clients.get_mut(row);
            (content.rate, content.seen) = (Client::RATE, false);
            self.drop_client_if_removed(row);
        }
    }

    /// Forgets a client that was removed, when it has no jobs.
    pub(super) fn drop_client_if_removed(&mut self, row: Row<Client>) {
        let client = self.clients.get(row);
        if !client.seen && client.jobs == Lengths::default() {
            self.clients.remove(row);
        }
    }

    /// Tells whether a worker of this name was ever there, and not forgotten.
    pub fn is_known(&self, name: &BStr) -> bool {
        self.known(name).is_some()
    }

    /// Returns how many names of workers take memory, forgotten or not.
    pub fn worker_names(&self) -> usize {
        self.machines.len()
    }

    fn known(&self, name: &BStr) -> Option<Row<Machine>> {
        self.machines.find(name).filter(|&row| self.machines.get(row).known)
    }
}

fn is_rate(rate: f64) -> bool {
    rate.is_finite() && rate > 0.0
}
