//! What administrators do to workers.

use std::ffi::OsString;
use std::process::Command;

use bstr::{BString, ByteSlice as _};
use kiln_api::{Admin, Answer, Error, PoolAdmin, Progress, ProgressServer, WorkerInfo, answer};
use tokio::task::JoinSet;

use super::{known, print};
use crate::args;
use crate::exit::Failure;
use crate::peer::{Peer, PeerError};
use crate::personality::quoted;
use crate::render::tell;

/// What `pause`, `unpause` and `drain` do.
#[derive(Clone, Copy)]
pub(super) struct Change {
    pub(super) active: bool,
    /// Wait until the workers do nothing.
    pub(super) wait: bool,
    pub(super) auto_create: bool,
}

/// Pauses workers, or lets them go on.
pub(super) async fn set_active(
    peer: &Peer,
    admin: &Admin,
    which: &args::Workers,
    change: Change,
) -> Result<(), Failure> {
    let pool = admin.pool(which.pool.as_bytes());
    let Change { active, wait, auto_create } = change;
    let names = match &which.worker {
        Some(worker) => vec![BString::from(worker.as_str())],
        None => {
            let workers = known(peer, &pool).await?;
            if workers.is_empty() {
                return print("No workers connected to pool (nothing to do).\n");
            }
            if !which.all {
                let words = "Specify which worker you want to affect (or use --all).";
                return Err(which_worker(" or --all", words, &workers).into());
            }
            let (done, left): (Vec<_>, Vec<_>) = workers.into_iter().partition(|worker| worker.active == active);
            for worker in done {
                print(format!("(worker {} is already done)\n", quoted(&worker.name)))?;
            }
            if left.is_empty() {
                return print("Nothing to do.\n");
            }
            let names: Vec<_> = left.into_iter().map(|worker| worker.name).collect();
            print(format!("Updating {}…\n", bstr::join(", ", &names).as_bstr()))?;
            names
        }
    };
    let set = each(&pool, names.clone(), move |pool, name| async move {
        // Those that are listed are known.
        pool.set_active(&name, active, auto_create).await
    });
    first_error(peer, "PoolAdmin.setActive", set.await).await?;
    if wait {
        print("Waiting for jobs to finish…\n")?;
        let drained = each(&pool, names, |pool, name| async move { pool.drain(&name, told(&name)).await });
        first_error(peer, "PoolAdmin.drain", drained.await).await?;
    }
    print("Success.\n")
}

/// Has workers restart: one, or all that are connected, of which the first shows whether it works.
pub(super) async fn update(peer: &Peer, admin: &Admin, which: &args::PoolAndWorker) -> Result<(), Failure> {
    let pool = admin.pool(which.pool.as_bytes());
    let one = async |name: BString| {
        let updated = peer.or_lost(pool.update(&name, told(&name))).await?;
        updated.map_err(|said| PeerError::NotUpdated { name, said })
    };
    if let Some(worker) = &which.worker {
        one(BString::from(worker.as_str())).await?;
        return print("Restarted\n");
    }
    let (connected, gone): (Vec<_>, Vec<_>) =
        known(peer, &pool).await?.into_iter().partition(|worker| worker.connected);
    let mut names = connected.into_iter().map(|worker| worker.name);
    let first = names.next().ok_or(PeerError::NoWorkers { words: "No workers connected to pool!" })?;
    print(format!("Testing update on first worker in pool: {}\n", quoted(&first)))?;
    one(first).await?;
    let others: Vec<_> = names.collect();
    let list = bstr::join(" ", &others);
    print(format!("Canary updated OK. Updating the others: [{}]\n", list.as_bstr()))?;
    let results = each(&pool, others, |pool, name| async move { pool.update(&name, told(&name)).await }).await;
    let mut failed = None;
    for (name, result) in results {
        match peer.or_lost(std::future::ready(result)).await? {
            Ok(()) => print(format!("{} restarted OK.\n", quoted(&name)))?,
            Err(said) => {
                if let Some(PeerError::NotUpdated { name, said }) = failed.replace(PeerError::NotUpdated { name, said })
                {
                    tell(PeerError::NotUpdated { name, said });
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)?;
    print("All pool workers restarted.\n")?;
    if !gone.is_empty() {
        print("WARNING: disconnected workers not updated:\n")?;
        for worker in gone {
            print(format!("  {}\n", worker.name))?;
        }
    }
    Ok(())
}

/// Forgets a worker.
pub(super) async fn forget(peer: &Peer, admin: &Admin, which: &args::PoolAndWorker) -> Result<(), Failure> {
    let pool = admin.pool(which.pool.as_bytes());
    if let Some(worker) = &which.worker {
        return Ok(peer.ask("", pool.forget(worker.as_bytes())).await?);
    }
    let workers = known(peer, &pool).await?;
    let gone: Vec<_> = workers.iter().filter(|worker| !worker.connected).cloned().collect();
    let candidates = if gone.is_empty() { workers } else { gone };
    match candidates.is_empty() {
        true => Err(PeerError::NoWorkers { words: "No workers in pool!" }.into()),
        false => Err(which_worker("", "Specify which worker you want to forget.", &candidates).into()),
    }
}

/// Runs a command for each worker, all at once, and waits for all.
pub(super) async fn exec(peer: &Peer, admin: &Admin, what: &args::Exec) -> Result<(), Failure> {
    let pool = admin.pool(what.pool.as_bytes());
    let workers = known(peer, &pool).await?;
    let mut running = Vec::new();
    let mut failed = 0;
    let all = workers.len();
    for worker in workers {
        let argument = |given: &OsString| match given == "{}" {
            true => worker.name.to_os_str_lossy().into_owned(),
            false => given.clone(),
        };
        let mut arguments = what.command.iter().map(argument);
        let program = arguments.next().unwrap_or_default();
        match Command::new(&program).args(arguments).spawn() {
            Ok(child) => running.push((worker.name, child)),
            Err(error) => {
                failed += 1;
                tell(format_args!("{}: cannot start {}: {error}", worker.name, program.display()));
            }
        }
    }
    for (name, mut child) in running {
        // They run at once; only their ends are looked at one after the other.
        let ended = tokio::task::spawn_blocking(move || child.wait()).await;
        let said = match ended {
            Ok(Ok(status)) if status.success() => continue,
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        failed += 1;
        tell(format_args!("{name}: {said}"));
    }
    if failed > 0 { Err(PeerError::Commands(failed, all).into()) } else { Ok(()) }
}

/// Does something with each worker, with all at once. Returns how it went with each.
async fn each<F: Future<Output = Result<(), Error>> + 'static>(
    pool: &PoolAdmin,
    names: Vec<BString>,
    does: impl Fn(PoolAdmin, BString) -> F,
) -> Vec<(BString, Result<(), Error>)> {
    let mut set = JoinSet::new();
    for name in names {
        let done = does(pool.clone(), name.clone());
        set.spawn_local(async move { (name, done.await) });
    }
    set.join_all().await
}

async fn first_error(
    peer: &Peer,
    call: &'static str,
    results: Vec<(BString, Result<(), Error>)>,
) -> Result<(), PeerError> {
    let failed = results.into_iter().find_map(|(_, result)| result.err());
    peer.ask(call, std::future::ready(failed.map_or(Ok(()), Err))).await
}

/// Prints what a scheduler reports of one worker.
struct Told(BString);

fn told(name: &BString) -> Progress {
    Progress::serve(Told(name.clone()))
}

impl ProgressServer for Told {
    fn report(&self, status: &[u8]) -> Answer<()> {
        // If nobody reads it, the end of the call tells.
        let _ = print(format!("{}: {}\n", self.0, status.as_bstr()));
        answer(Ok(()))
    }
}

fn which_worker(hint: &'static str, words: &'static str, workers: &[WorkerInfo]) -> PeerError {
    let candidate = |worker: &WorkerInfo| {
        let notes = [(!worker.connected).then_some("disconnected"), (!worker.active).then_some("paused")];
        let notes: Vec<_> = notes.into_iter().flatten().collect();
        match notes.is_empty() {
            true => worker.name.to_string(),
            false => format!("{} ({})", worker.name, notes.join(", ")),
        }
    };
    PeerError::WhichWorker { hint, words, candidates: workers.iter().map(candidate).collect() }
}
