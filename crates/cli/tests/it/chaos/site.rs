//! The cluster: what is on which host, and who starts it again.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use kiln_testkit::{Lan, LoopFs, Postgres};

use super::faults::{Fault, Mend};
use crate::env::TestEnv;
use crate::marked::{Service, prepare, scheduler, worker};

/// The hosts of schedulers. The second is only used if there are two.
pub(super) const SCHEDULERS: Range<usize> = 0..2;
/// The host of their database, if they share one.
pub(super) const DATABASE: usize = 2;
/// The host of all clients.
pub(super) const CLIENT: usize = 3;
/// The hosts of workers: so many are used at a time, and so many can be lost for good.
pub(super) const WORKERS: Range<usize> = 4..4 + AT_ONCE + SPARE;
const AT_ONCE: usize = 5;
const SPARE: usize = 12;
/// How many hosts there are.
pub(super) const HOSTS: usize = WORKERS.end;

/// How many jobs a worker does at once.
const CAPACITY: usize = 3;

/// A host, and how it is with it.
#[derive(Default)]
pub(super) struct Host {
    /// What runs there, unless it was killed, has nothing of its own, or has the database.
    pub(super) service: Option<Service>,
    /// What was told to end, and may not have ended yet.
    pub(super) ending: Option<Service>,
    /// How many things are wrong with it that are not mended yet.
    pub(super) ills: usize,
}

pub(super) struct Site<'a> {
    pub(super) env: &'a TestEnv,
    pub(super) lan: &'a Lan,
    pub(super) database: Option<Postgres>,
    /// What the scheduler on each of their hosts keeps is on a disk of its own.
    disks: Vec<LoopFs>,
    /// Hosts in use, by their number.
    pub(super) hosts: BTreeMap<usize, Host>,
    /// Hosts of workers that were not used yet.
    pub(super) spare: Vec<usize>,
    /// What will be mended, and when.
    pub(super) mends: Vec<(Instant, Mend)>,
    /// How often what has gone wrong.
    pub(super) faults: BTreeMap<Fault, usize>,
    begun: Instant,
}

impl<'a> Site<'a> {
    /// Starts so many schedulers, which share a database if they are more than one, and workers. Returns when all may be used.
    pub(super) fn start(env: &'a TestEnv, lan: &'a Lan, schedulers: usize) -> Self {
        prepare(env);
        let database = (schedulers > 1).then(|| Postgres::start_on(lan, DATABASE).unwrap());
        let disks = SCHEDULERS.take(schedulers).map(|_| LoopFs::new("ext4", 64).unwrap()).collect();
        let mut workers = WORKERS;
        let at_once: Vec<_> = workers.by_ref().take(AT_ONCE).collect();
        let mut site = Self {
            env,
            lan,
            database,
            disks,
            hosts: BTreeMap::new(),
            spare: workers.collect(),
            mends: Vec::new(),
            faults: BTreeMap::new(),
            begun: Instant::now(),
        };
        for host in SCHEDULERS.take(schedulers) {
            site.start_service(host);
            let says = if host == SCHEDULERS.start { "listening at" } else { "standing by" };
            assert!(site.hosts[&host].service.as_ref().is_some_and(|started| started.says(says)));
        }
        at_once.into_iter().for_each(|host| site.start_service(host));
        site.hosts.insert(CLIENT, Host::default());
        if site.database.is_some() {
            site.hosts.insert(DATABASE, Host::default());
        }
        site
    }

    /// Starts what is to run on a host.
    pub(super) fn start_service(&mut self, host: usize) {
        if let Some(before) = self.hosts.get_mut(&host).and_then(|host| host.ending.take()) {
            assert!(before.ended().success(), "{} was told to end, and failed", name(host));
        }
        let command = match SCHEDULERS.contains(&host) {
            true => self.scheduler(host),
            false => worker(self.env, &name(host), CAPACITY),
        };
        let service = Service::start(&mut self.lan.on(host, &command), &self.log(host));
        self.hosts.entry(host).or_default().service = Some(service);
    }

    fn scheduler(&self, host: usize) -> Command {
        let address = |host: usize| format!("{}:9000", Lan::address(host));
        let all: Vec<_> = SCHEDULERS.take(self.disks.len()).map(address).collect();
        let state = self.disks[host].path().join("state");
        let mut command = scheduler(self.env, &address(host), &all, &state.display().to_string());
        // Longer than a worker or client is away that comes back, also if the scheduler is meanwhile.
        command.args(["--worker-grace=3m", "--client-grace=3m", "--retries=20"]);
        if let Some(database) = &self.database {
            command.env("KILN_STATE", database.uri());
        }
        command
    }

    /// Returns the scheduler that serves, as far as can be told.
    pub(super) fn serving(&self) -> Option<usize> {
        let Some(database) = &self.database else { return Some(SCHEDULERS.start) };
        let holder = database.query("SELECT holder FROM kiln_lease").ok()?;
        SCHEDULERS.into_iter().find(|host| holder.contains(&format!("{}:", Lan::address(*host))))
    }

    /// Returns the file that fills a scheduler's disk when that is full.
    pub(super) fn filler(&self, host: usize) -> PathBuf {
        self.disks[host].path().join("filler")
    }

    /// Has schedulers that ended because their disk is full start again, as whoever supervises them does. Checks that nothing else has ended but
    /// what was to.
    pub(super) fn supervise(&mut self) {
        let mut ended = Vec::new();
        for (&number, host) in &mut self.hosts {
            if host.service.as_mut().is_some_and(|service| !service.is_alive()) {
                ended.push(number);
            }
        }
        for host in ended {
            let said = fs::read_to_string(self.log(host)).unwrap();
            let last: Vec<_> = said.lines().rev().take(3).collect();
            let is_full = ["No space left on device", "disk is full"];
            let for_that = last.iter().any(|line| is_full.iter().any(|what| line.contains(what)));
            assert!(SCHEDULERS.contains(&host) && for_that, "{} ended: {last:?}", name(host));
            self.tell(&format!("{} ended, since its disk is full", name(host)));
            if let Some(host) = self.hosts.get_mut(&host) {
                host.service = None;
                host.ills += 1;
            }
            self.mend_in(1, Mend::Start(host));
        }
    }

    pub(super) fn mend_in(&mut self, seconds: u64, mend: Mend) {
        self.mends.push((Instant::now() + Duration::from_secs(seconds), mend));
    }

    /// Returns true if everything is well, and will be.
    pub(super) fn is_mended(&self) -> bool {
        self.mends.is_empty()
    }

    /// Returns what happened.
    pub(super) fn story(&self) -> String {
        let epoch = self.database.as_ref().map(|database| database.query("SELECT epoch FROM kiln_lease").unwrap());
        let turns = epoch.map_or_else(String::new, |epoch| format!("; schedulers took {} turns", epoch.trim()));
        format!("faults: {:?}{turns}", self.faults)
    }

    pub(super) fn tell(&self, what: &str) {
        println!("{:5} s: {what}", self.begun.elapsed().as_secs());
    }

    fn log(&self, host: usize) -> PathBuf {
        self.env.at(&format!("{}.log", name(host)))
    }
}

/// Returns the name of what runs on a host.
pub(super) fn name(host: usize) -> String {
    match host {
        DATABASE => "database".to_owned(),
        CLIENT => "clients".to_owned(),
        host if SCHEDULERS.contains(&host) => format!("scheduler-{host}"),
        host => format!("w{host}"),
    }
}
