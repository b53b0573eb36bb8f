//! An operator's bad hours: a cluster on hosts of its own, clients that submit all the time, and faults as a seed has them.
//!
//! Not run with the others, since it takes as long as it is told: `$KILN_CHAOS` is `MINUTES` or `MINUTES:SEED`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kiln_testkit::{Lan, LoopFs, Need, need};
use rustix::process::Signal;

use crate::env::{Ran, TestEnv};
use crate::marked::{Marked, Service, mark, marks, prepare, worker};

const SCHEDULER: usize = 0;
const CLIENT: usize = 1;
/// The first host of a worker.
const WORKERS: usize = 2;
/// How many workers there are at a time, and how many can be lost for good.
const AT_ONCE: usize = 5;
const SPARE: usize = 12;
const CAPACITY: usize = 3;
/// How many clients there are that wait for their jobs, and that do not.
const CLIENTS: usize = 12;

/// What a client learned of a job.
struct Submitted {
    job: Marked,
    ran: Ran,
    /// It left the job to itself after it was submitted.
    detached: bool,
}

/// Numbers as a seed has them: SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// A worker's host, and how it is with it.
struct Host {
    name: String,
    service: Option<Service>,
    /// Something is wrong with it, until it is mended.
    is_ill: bool,
}

/// What mends a fault.
#[derive(Debug)]
enum Mend {
    StartScheduler,
    StartWorker(usize),
    Plug(usize),
    Continue(usize),
    FreeDisk,
}

struct Site<'a> {
    env: &'a TestEnv,
    lan: &'a Lan,
    disk: &'a LoopFs,
    scheduler: Option<Service>,
    /// Workers by the number of their host.
    hosts: BTreeMap<usize, Host>,
    /// Which of the scheduler's and the clients' hosts has its cable out.
    unplugged: BTreeSet<usize>,
    /// Hosts that were not used yet.
    spare: Vec<usize>,
    faults: BTreeMap<&'static str, usize>,
}

impl Site<'_> {
    fn start_scheduler(&mut self) {
        let listen = format!("--capnp-listen-address=tcp:{}:9000", Lan::address(SCHEDULER));
        let state = format!("--state-dir={}", self.disk.path().join("state").display());
        let command = self.env.kiln(&[
            "scheduler",
            "--capnp-secret-key-file=caps/key.pem",
            &listen,
            &state,
            "--secrets-dir=caps",
            "--pools=linux",
            "--default-clients=alice",
            // Longer than a worker or client is away that comes back, also if the scheduler is meanwhile.
            "--worker-grace=3m",
            "--client-grace=3m",
            "--retries=20",
        ]);
        // On a full disk it does not start, and whoever supervises it starts it again.
        loop {
            let started = Service::start(&mut self.lan.on(SCHEDULER, &command), &self.env.at("scheduler.log"));
            if started.says("listening at") {
                self.scheduler = Some(started);
                return;
            }
            self.free_disk();
        }
    }

    fn start_worker(&mut self, host: usize, name: String) {
        let command = worker(self.env, &name, CAPACITY);
        let service = Service::start(&mut self.lan.on(host, &command), &self.env.at(&format!("{name}.log")));
        self.hosts.insert(host, Host { name, service: Some(service), is_ill: false });
    }

    fn filler(&self) -> PathBuf {
        self.disk.path().join("filler")
    }

    fn free_disk(&self) {
        // It may not be full.
        let _ = std::fs::remove_file(self.filler());
    }

    /// Returns a worker with which nothing is wrong, and takes it as ill.
    fn victim(&mut self, dice: &mut Dice) -> Option<usize> {
        let well: Vec<_> = self.hosts.iter().filter(|(_, host)| !host.is_ill).map(|(number, _)| *number).collect();
        let chosen = *well.get(usize::try_from(dice.roll(well.len().max(1) as u64)).unwrap())?;
        self.hosts.get_mut(&chosen)?.is_ill = true;
        Some(chosen)
    }

    /// Has something go wrong. Returns what mends it, and after how many seconds.
    fn fault(&mut self, dice: &mut Dice) -> Option<(u64, Mend)> {
        let (name, mend) = match dice.roll(10) {
            0 | 1 => {
                self.scheduler.take()?.kill();
                ("scheduler killed", Some((dice.roll(15), Mend::StartScheduler)))
            }
            2 => {
                let host = self.victim(dice)?;
                let ill = self.hosts.get_mut(&host)?;
                ill.service.take()?.kill();
                mark(self.env, &format!("killed {}", ill.name));
                ("worker killed", Some((dice.roll(15), Mend::StartWorker(host))))
            }
            3 | 4 => {
                let host = self.victim(dice)?;
                self.lan.unplug(host).unwrap();
                match dice.roll(2) {
                    0 => ("cable out for 5 s", Some((5, Mend::Plug(host)))),
                    _ => ("cable out for 60 s", Some((60, Mend::Plug(host)))),
                }
            }
            5 => {
                let new = self.spare.pop()?;
                let host = self.victim(dice)?;
                self.lan.unplug(host).unwrap();
                mark(self.env, &format!("gone {}", self.hosts.get(&host)?.name));
                self.start_worker(new, format!("w{new}"));
                ("cable out for ever", None)
            }
            6 => {
                let host = self.victim(dice)?;
                self.hosts.get(&host)?.service.as_ref()?.signal(Signal::STOP);
                ("worker stopped for 40 s", Some((40, Mend::Continue(host))))
            }
            7 => {
                let host = [SCHEDULER, CLIENT][usize::try_from(dice.roll(2)).unwrap()];
                if !self.unplugged.insert(host) {
                    return None;
                }
                self.lan.unplug(host).unwrap();
                let seconds = [5, 60][usize::try_from(dice.roll(2)).unwrap()];
                let name = if host == SCHEDULER { "scheduler's cable out" } else { "clients' cable out" };
                (name, Some((seconds, Mend::Plug(host))))
            }
            _ => {
                if self.filler().exists() {
                    return None;
                }
                // It ends when there is no room left.
                let mut filler = std::fs::File::create(self.filler()).unwrap();
                std::io::copy(&mut std::io::repeat(0), &mut filler).unwrap_err();
                ("disk full for 20 s", Some((20, Mend::FreeDisk)))
            }
        };
        println!("{name} {mend:?}");
        *self.faults.entry(name).or_default() += 1;
        mend
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::StartScheduler => self.start_scheduler(),
            Mend::StartWorker(host) => {
                let name = self.hosts[&host].name.clone();
                self.start_worker(host, name);
            }
            Mend::Plug(host) => {
                self.lan.plug(host).unwrap();
                self.is_well(host);
            }
            Mend::Continue(host) => {
                self.hosts[&host].service.as_ref().unwrap().signal(Signal::CONT);
                self.is_well(host);
            }
            Mend::FreeDisk => self.free_disk(),
        }
    }

    fn is_well(&mut self, host: usize) {
        self.unplugged.remove(&host);
        if let Some(host) = self.hosts.get_mut(&host) {
            host.is_ill = false;
        }
    }

    /// Checks that nothing died but what was killed.
    fn all_live(&mut self) {
        assert!(self.scheduler.as_mut().is_none_or(Service::is_alive), "the scheduler ended");
        for host in self.hosts.values_mut() {
            assert!(host.service.as_mut().is_none_or(Service::is_alive), "worker {} ended", host.name);
        }
    }
}

/// Runs a client's command on its host.
fn client(env: &TestEnv, lan: &Lan, command: &Command) -> Ran {
    env.ran(&mut lan.on(CLIENT, command))
}

/// Submits jobs until it is told to stop. Tells of each when it has ended, or could not be submitted.
fn submit(env: &TestEnv, lan: &Lan, next: &AtomicUsize, stop: &AtomicBool, done: &mpsc::Sender<Submitted>, seed: u64) {
    let mut dice = Dice(seed);
    while !stop.load(Ordering::Relaxed) {
        let name = format!("j{}", next.fetch_add(1, Ordering::Relaxed));
        let lines = [10, 20, 40, 120, 300][usize::try_from(dice.roll(5)).unwrap()];
        let kind = if dice.roll(6) == 0 { "heavy" } else { "count" };
        let job = Marked { name, kind, lines, pause: "0.2", status: u8::from(dice.roll(8) == 0) };
        let detached = dice.roll(3) == 0;
        let ran = match detached {
            true => client(env, lan, &job.submit(env, &["--detach"])),
            false => client(env, lan, &job.submit(env, &[])),
        };
        let is_refused = ran.code == 3 && ran.stdout.is_empty();
        if !is_refused && !detached {
            mark(env, &format!("seen {}", job.name));
        }
        done.send(Submitted { job, ran, detached }).unwrap();
        if is_refused {
            // As whoever is refused does.
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}

/// Asks for something of a job until the scheduler is there, and says it.
fn ask(env: &TestEnv, lan: &Lan, what: &str, id: &str) -> Ran {
    loop {
        let ran = client(env, lan, &env.kiln(&["job", "-c", "caps/submit-alice.cap", what, id]));
        if !(ran.code == 3 && ran.stderr.contains("cannot connect")) {
            return ran;
        }
    }
}

/// What there was to count.
#[derive(Default, Debug)]
struct Count {
    succeeded: usize,
    failed_as_meant: usize,
    refused: usize,
    lost_workers: usize,
}

#[test]
#[ignore = "it takes as long as it is told, see CONTRIBUTING.md"]
fn no_job_is_lost_or_done_twice_whatever_happens() {
    need!(Need::Root, Need::Tool("ip", "iproute2"), Need::Tool("mkfs.ext4", "e2fsprogs"));
    let asked = std::env::var("KILN_CHAOS").unwrap_or_else(|_| "5".to_owned());
    let (minutes, seed) = asked.split_once(':').unwrap_or((&asked, "1"));
    let (minutes, seed): (u64, u64) = (minutes.parse().unwrap(), seed.parse().unwrap());
    let env = TestEnv::without_base();
    println!("{minutes} minutes with seed {seed} in {}", env.path().display());
    let lan = Lan::new(WORKERS + AT_ONCE + SPARE).unwrap();
    let disk = LoopFs::new("ext4", 64).unwrap();
    prepare(&env);
    let mut site = Site {
        env: &env,
        lan: &lan,
        disk: &disk,
        scheduler: None,
        hosts: BTreeMap::new(),
        unplugged: BTreeSet::new(),
        spare: (WORKERS + AT_ONCE..WORKERS + AT_ONCE + SPARE).collect(),
        faults: BTreeMap::new(),
    };
    site.start_scheduler();
    for host in WORKERS..WORKERS + AT_ONCE {
        site.start_worker(host, format!("w{host}"));
    }
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, ended) = mpsc::channel();
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS as u64 {
            let (env, lan, next, stop, sender) = (&env, &lan, &next, &stop, sender.clone());
            scope.spawn(move || submit(env, lan, next, stop, &sender, seed.wrapping_mul(1000) + number));
        }
        drop(sender);
        let mut dice = Dice(seed);
        let end = Instant::now() + Duration::from_secs(60 * minutes);
        let mut mends: Vec<(Instant, Mend)> = Vec::new();
        let mut next_fault = Instant::now() + Duration::from_secs(5);
        let mut is_failing = true;
        // What goes wrong goes wrong at its time, so here is waited for the time.
        loop {
            let now = Instant::now();
            while let Some(due) = mends.iter().position(|(at, _)| *at <= now) {
                let (_, mend) = mends.remove(due);
                println!("mended: {mend:?}");
                site.mend(mend);
            }
            if is_failing && now >= end {
                is_failing = false;
                stop.store(true, Ordering::Relaxed);
            }
            if is_failing && now >= next_fault {
                next_fault = now + Duration::from_secs(10 + dice.roll(30));
                if let Some((seconds, mend)) = site.fault(&mut dice) {
                    mends.push((now + Duration::from_secs(seconds), mend));
                }
            }
            site.all_live();
            match ended.recv_timeout(Duration::from_millis(200)) {
                Ok(submitted) => all.push(submitted),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) if mends.is_empty() => break,
                Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    });
    println!("{} jobs asked for; faults: {:?}", all.len(), site.faults);
    let count = check(&env, &lan, all);
    println!("{count:?}");
    site.all_live();
}

/// Checks what came of all jobs.
fn check(env: &TestEnv, lan: &Lan, all: Vec<Submitted>) -> Count {
    let mut count = Count::default();
    let mut wrong = Vec::new();
    let mut known = HashMap::new();
    for Submitted { job, ran, detached } in all {
        if ran.code == 3 && ran.stdout.is_empty() {
            count.refused += 1;
            // Whoever left it to itself may have been cut off before the answer came.
            known.insert(job.name.clone(), detached && !ran.stderr.contains("cannot connect"));
            continue;
        }
        known.insert(job.name.clone(), true);
        let (log, code, stdout) = match detached {
            false => {
                let result = format!("Result: \"of {}\"\n", job.name);
                let log = ran.stdout.strip_suffix(&result).unwrap_or(&ran.stdout).to_owned();
                (log, ran.code, ran.stdout)
            }
            true => {
                let id = ran.stdout.trim();
                let log = ask(env, lan, "log", id).stdout;
                let ran = ask(env, lan, "wait", id);
                (log, ran.code, ran.stdout)
            }
        };
        match (job.status, code) {
            (0, 0) if stdout.ends_with(&format!("Result: \"of {}\"\n", job.name)) => count.succeeded += 1,
            (1, 1) => count.failed_as_meant += 1,
            _ => wrong.push(format!("{job:?} ended with {code}: {}{stdout}", ran.stderr)),
        }
        match job.check_log(&log) {
            Ok(losses) => count.lost_workers += losses,
            Err(error) => wrong.push(error),
        }
    }
    let marks = marks(env);
    let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut seen = HashMap::new();
    for (index, mark) in marks.iter().enumerate() {
        match mark.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["begin", job, worker] => {
                if seen.contains_key(job) {
                    wrong.push(format!("{job} was begun on {worker} after its client had its end"));
                }
                if known.get(job) != Some(&true) {
                    wrong.push(format!(
                        "{job} was begun on {worker}, and its client had been told that it was not submitted"
                    ));
                }
                if let Some((since, before)) = begun.insert(job, (index, worker)) {
                    let is_lost = |at: usize, mark: &[String]| match mark[0].as_str() {
                        "killed" => at > since && mark[1] == before,
                        "gone" => mark[1] == before,
                        _ => false,
                    };
                    if !marks[..index].iter().enumerate().any(|(at, mark)| is_lost(at, mark)) {
                        wrong.push(format!("{job} was begun on {worker} though {before} was not lost"));
                    }
                }
            }
            ["seen", job] => _ = seen.insert(job, ()),
            _ => {}
        }
    }
    println!("{} jobs were begun, {} times", begun.len(), marks.iter().filter(|mark| mark[0] == "begin").count());
    assert!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
    count
}
