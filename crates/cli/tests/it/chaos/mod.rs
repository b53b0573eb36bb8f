//! An operator's bad hours: a cluster on hosts of its own, clients that submit all the time, and faults as a seed has them. Then it is counted
//! what came of each job.
//!
//! Not run with the others, since it takes as long as it is told: `$KILN_CHAOS` is `MINUTES` or `MINUTES:SEED`.

mod check;
mod faults;
mod site;

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kiln_testkit::{Lan, Need, need};

use crate::env::{Ran, TestEnv};
use crate::marked::{Marked, mark};
use check::check;
use site::{CLIENT, HOSTS, Site};

/// How many clients there are that wait for their jobs, and that do not.
const CLIENTS: usize = 12;

/// How often it is looked whether something is to go wrong, or to be mended.
const LOOK: Duration = Duration::from_millis(200);

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

    /// Returns one of several, if there is any.
    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(usize::try_from(self.roll(of.len().max(1) as u64)).unwrap()).copied()
    }
}

/// Tells clients to stop when it goes: who fails while they submit would wait for them for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a client learned of a job.
struct Submitted {
    job: Marked,
    ran: Ran,
    /// It left the job to itself after it was submitted.
    detached: bool,
}

impl Submitted {
    fn is_refused(&self) -> bool {
        self.ran.code == 3 && self.ran.stdout.is_empty()
    }
}

#[test]
#[ignore = "it takes as long as it is told, see CONTRIBUTING.md"]
fn no_job_is_lost_or_done_twice_whatever_happens() {
    need!(Need::Root, Need::Tool("ip", "iproute2"), Need::Tool("mkfs.ext4", "e2fsprogs"));
    bad_hours(1);
}

#[test]
#[ignore = "it takes as long as it is told, see CONTRIBUTING.md"]
fn schedulers_that_share_a_database_lose_no_job_and_do_none_twice_whatever_happens() {
    need!(Need::Root, Need::Tool("ip", "iproute2"), Need::Tool("mkfs.ext4", "e2fsprogs"), Need::Postgres);
    bad_hours(2);
}

/// Has jobs done by a cluster with so many schedulers while things go wrong, waits until all is mended and every client has its answer, and checks
/// what came of it.
fn bad_hours(schedulers: usize) {
    let asked = std::env::var("KILN_CHAOS").unwrap_or_else(|_| "5".to_owned());
    let (minutes, seed) = asked.split_once(':').unwrap_or((&asked, "1"));
    let (minutes, seed): (u64, u64) = (minutes.parse().unwrap(), seed.parse().unwrap());
    let env = TestEnv::without_base();
    println!("{minutes} minutes with seed {seed} in {}", env.path().display());
    let lan = Lan::new(HOSTS).unwrap();
    let mut site = Site::start(&env, &lan, schedulers);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, ended) = mpsc::channel();
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..CLIENTS as u64 {
            let (env, lan, next, stop, sender) = (&env, &lan, &next, &stop, sender.clone());
            scope.spawn(move || submit(env, lan, next, stop, &sender, seed.wrapping_mul(1000) + number));
        }
        drop(sender);
        let _stop = Stop(&stop);
        let mut dice = Dice(seed);
        let end = Instant::now() + Duration::from_secs(60 * minutes);
        let mut next_fault = Instant::now() + Duration::from_secs(5);
        // What goes wrong goes wrong at its time, so here is waited for the time.
        loop {
            let now = Instant::now();
            site.supervise();
            site.mend_what_is_due(now);
            if now >= end {
                stop.store(true, Ordering::Relaxed);
            } else if now >= next_fault {
                next_fault = now + Duration::from_secs(10 + dice.roll(30));
                site.fault(&mut dice);
            }
            match ended.recv_timeout(LOOK) {
                Ok(submitted) => all.push(submitted),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) if site.is_mended() => break,
                Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
            }
        }
    });
    println!("{} jobs asked for; {}", all.len(), site.story());
    let count = check(&env, &lan, all);
    println!("{count:?}");
    assert!(count.succeeded > 0, "the cluster did nothing");
    site.supervise();
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
        let lines = dice.pick(&[10, 20, 40, 120, 300]).unwrap();
        let kind = if dice.roll(6) == 0 { "heavy" } else { "count" };
        let job = Marked { name, kind, lines, pause: "0.2", status: u8::from(dice.roll(8) == 0) };
        let detached = dice.roll(3) == 0;
        let ran = match detached {
            true => client(env, lan, &job.submit(env, &["--detach"])),
            false => client(env, lan, &job.submit(env, &[])),
        };
        let submitted = Submitted { job, ran, detached };
        let is_refused = submitted.is_refused();
        if !is_refused && !detached {
            mark(env, &format!("seen {}", submitted.job.name));
        }
        done.send(submitted).unwrap();
        if is_refused {
            // As whoever is refused does.
            std::thread::sleep(Duration::from_secs(2));
        }
    }
}
