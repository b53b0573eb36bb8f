//! What goes wrong, and how it is mended.

use std::fs::{self, File};
use std::io;
use std::time::Instant;

use rustix::process::Signal;

use super::Dice;
use super::site::{CLIENT, DATABASE, Host, SCHEDULERS, Site, WORKERS, name};
use crate::marked::mark;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    SchedulerKilled,
    SchedulerToldToEnd,
    SchedulerStopped,
    SchedulerCutOff,
    SchedulerDiskFull,
    WorkerKilled,
    WorkerStopped,
    WorkerCutOff,
    WorkerGone,
    ClientsCutOff,
    DatabaseKilled,
    DatabaseCutOff,
}

/// All of them, each as often as it comes. The last ones are of the database, if there is one.
const FAULTS: [Fault; 18] = [
    Fault::SchedulerKilled,
    Fault::SchedulerKilled,
    Fault::SchedulerToldToEnd,
    Fault::SchedulerStopped,
    Fault::SchedulerStopped,
    Fault::SchedulerCutOff,
    Fault::SchedulerCutOff,
    Fault::SchedulerDiskFull,
    Fault::WorkerKilled,
    Fault::WorkerKilled,
    Fault::WorkerStopped,
    Fault::WorkerCutOff,
    Fault::WorkerCutOff,
    Fault::WorkerGone,
    Fault::ClientsCutOff,
    Fault::DatabaseKilled,
    Fault::DatabaseKilled,
    Fault::DatabaseCutOff,
];
const OF_DATABASE: usize = 3;

/// What mends a fault of a host.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mend {
    Start(usize),
    Continue(usize),
    Plug(usize),
    FreeDisk(usize),
}

impl Site<'_> {
    /// Has something go wrong, unless that has already.
    pub(super) fn fault(&mut self, dice: &mut Dice) {
        let possible = if self.database.is_some() { FAULTS.len() } else { FAULTS.len() - OF_DATABASE };
        let fault = dice.pick(&FAULTS[..possible]).unwrap();
        if let Some(host) = self.victim(fault, dice) {
            *self.faults.entry(fault).or_default() += 1;
            self.go_wrong(fault, host, dice);
        }
    }

    /// Returns the host that a fault befalls.
    fn victim(&self, fault: Fault, dice: &mut Dice) -> Option<usize> {
        let schedulers: Vec<_> = self.hosts.keys().copied().filter(|host| SCHEDULERS.contains(host)).collect();
        let (any, is_mostly_who_serves) = (dice.pick(&schedulers), dice.roll(4) > 0);
        let scheduler = if is_mostly_who_serves { self.serving().or(any) } else { any };
        let is_well = |host: &usize| self.hosts.get(host).is_some_and(|host| host.ills == 0);
        match fault {
            Fault::SchedulerDiskFull => scheduler.filter(|host| !self.filler(*host).exists()),
            Fault::SchedulerKilled | Fault::SchedulerToldToEnd | Fault::SchedulerStopped | Fault::SchedulerCutOff => {
                scheduler.filter(is_well)
            }
            Fault::WorkerGone if self.spare.is_empty() => None,
            Fault::WorkerKilled | Fault::WorkerStopped | Fault::WorkerCutOff | Fault::WorkerGone => {
                let well: Vec<_> =
                    self.hosts.keys().copied().filter(|host| WORKERS.contains(host)).filter(is_well).collect();
                dice.pick(&well)
            }
            Fault::ClientsCutOff => Some(CLIENT).filter(is_well),
            Fault::DatabaseKilled | Fault::DatabaseCutOff => Some(DATABASE).filter(is_well),
        }
    }

    fn go_wrong(&mut self, fault: Fault, host: usize, dice: &mut Dice) {
        let mend = match fault {
            Fault::SchedulerKilled | Fault::WorkerKilled => {
                self.host(host).service.take().unwrap().kill();
                if WORKERS.contains(&host) {
                    mark(self.env, &format!("killed {}", name(host)));
                }
                Some((dice.roll(15), Mend::Start(host)))
            }
            Fault::SchedulerToldToEnd => {
                let service = self.host(host).service.take().unwrap();
                service.signal(Signal::TERM);
                self.host(host).ending = Some(service);
                Some((dice.roll(15), Mend::Start(host)))
            }
            Fault::SchedulerStopped | Fault::WorkerStopped => {
                self.host(host).service.as_ref().unwrap().signal(Signal::STOP);
                Some((dice.pick(&[3, 10, 40]).unwrap(), Mend::Continue(host)))
            }
            Fault::SchedulerCutOff | Fault::WorkerCutOff | Fault::ClientsCutOff => {
                self.lan.unplug(host).unwrap();
                Some((dice.pick(&[5, 60]).unwrap(), Mend::Plug(host)))
            }
            Fault::WorkerGone => {
                self.lan.unplug(host).unwrap();
                mark(self.env, &format!("gone {}", name(host)));
                let another = self.spare.pop().unwrap();
                self.start_service(another);
                None
            }
            Fault::SchedulerDiskFull => {
                // It ends when there is no room left.
                let mut filler = File::create(self.filler(host)).unwrap();
                io::copy(&mut io::repeat(0), &mut filler).unwrap_err();
                Some((20, Mend::FreeDisk(host)))
            }
            Fault::DatabaseKilled => {
                self.database.as_mut().unwrap().crash();
                Some((dice.roll(16), Mend::Start(host)))
            }
            Fault::DatabaseCutOff => {
                self.lan.unplug(host).unwrap();
                Some((dice.pick(&[5, 20]).unwrap(), Mend::Plug(host)))
            }
        };
        if fault != Fault::SchedulerDiskFull {
            self.host(host).ills += 1;
        }
        let until = mend.map_or_else(|| "for ever".to_owned(), |(seconds, _)| format!("for {seconds} s"));
        self.tell(&format!("{fault:?}: {} {until}", name(host)));
        if let Some((seconds, mend)) = mend {
            self.mend_in(seconds, mend);
        }
    }

    /// Mends what is to be by now.
    pub(super) fn mend_what_is_due(&mut self, now: Instant) {
        while let Some(due) = self.mends.iter().position(|(at, _)| *at <= now) {
            let (_, mend) = self.mends.remove(due);
            match mend {
                Mend::Start(DATABASE) => self.database.as_mut().unwrap().restart().unwrap(),
                Mend::Start(host) => self.start_service(host),
                Mend::Continue(host) => self.host(host).service.as_ref().unwrap().signal(Signal::CONT),
                Mend::Plug(host) => self.lan.plug(host).unwrap(),
                // Its scheduler is no iller for that.
                Mend::FreeDisk(host) => fs::remove_file(self.filler(host)).unwrap(),
            }
            if let Mend::Start(host) | Mend::Continue(host) | Mend::Plug(host) = mend {
                self.host(host).ills -= 1;
            }
            self.tell(&format!("mended: {mend:?}"));
        }
    }

    fn host(&mut self, host: usize) -> &mut Host {
        self.hosts.get_mut(&host).unwrap()
    }
}
