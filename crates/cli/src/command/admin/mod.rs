//! `kiln admin`: a scheduler's clients, pools and workers. What is printed is what OCluster's program prints.

mod workers;

use kiln_api::{Admin, PoolAdmin, WorkerInfo};

use super::{cancel_on_signals, print};
use crate::args::{self, AdminCommand};
use crate::exit::Failure;
use crate::peer::{Peer, PeerError, on_one_thread};
use crate::personality::Voice;
use crate::render::tell;

pub(super) fn run(arguments: &args::Admin, voice: Voice) -> Result<(), Failure> {
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    on_one_thread(async {
        let work = async {
            let peer = Peer::open(arguments.connect.connect.as_deref()).await?;
            let result = perform(&peer, &arguments.command, voice).await;
            peer.close().await;
            result
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Failure::Cancelled),
            result = work => result,
        }
    })?
}

async fn perform(peer: &Peer, command: &AdminCommand, voice: Voice) -> Result<(), Failure> {
    let admin: Admin = peer.service();
    match command {
        AdminCommand::Show(what) => show(peer, &admin, what, voice).await,
        AdminCommand::AddClient(client) => {
            let added = admin.add_client(client.name.as_bytes());
            let uri = peer.ask("", added.save()).await?;
            print(format!("{uri}\n"))
        }
        AdminCommand::RemoveClient(client) => {
            Ok(peer.ask("Admin.removeClient", admin.remove_client(client.name.as_bytes())).await?)
        }
        AdminCommand::ListClients => {
            let clients = peer.ask("Admin.listClients", admin.list_clients()).await?;
            if clients.is_empty() {
                tell("No clients.");
            }
            print_lines(clients.iter().map(|client| &client[..]))
        }
        AdminCommand::SetRate(what) => {
            let pool = admin.pool(what.pool.as_bytes());
            Ok(peer.ask("PoolAdmin.setRate", pool.set_rate(what.client.as_bytes(), what.rate)).await?)
        }
        AdminCommand::Pause(pause) => {
            let change = workers::Change { active: false, wait: pause.wait, auto_create: pause.auto_create };
            workers::set_active(peer, &admin, &pause.workers, change).await
        }
        AdminCommand::Unpause(unpause) => {
            let change = workers::Change { active: true, wait: false, auto_create: unpause.auto_create };
            workers::set_active(peer, &admin, &unpause.workers, change).await
        }
        AdminCommand::Drain(drain) => {
            let change = workers::Change { active: false, wait: true, auto_create: false };
            workers::set_active(peer, &admin, &drain.workers, change).await
        }
        AdminCommand::Update(what) => workers::update(peer, &admin, what).await,
        AdminCommand::Forget(what) => workers::forget(peer, &admin, what).await,
        AdminCommand::Exec(what) => workers::exec(peer, &admin, what).await,
    }
}

async fn show(peer: &Peer, admin: &Admin, what: &args::Show, voice: Voice) -> Result<(), Failure> {
    let Some(name) = &what.pool else {
        let pools = peer.ask("Admin.pools", admin.pools()).await?;
        return print_lines(pools.iter().map(|pool| &pool[..]));
    };
    let pool = admin.pool(name.as_bytes());
    let Some(worker) = &what.worker else {
        if what.terse {
            return print_lines(known(peer, &pool).await?.iter().map(|worker| &worker.name[..]));
        }
        let state = peer.ask("PoolAdmin.show", pool.show()).await?;
        return print_lines([state.trim_ascii()]);
    };
    let workers = known(peer, &pool).await?;
    let state = match workers.iter().find(|info| info.name == worker.as_bytes()) {
        Some(WorkerInfo { active: true, .. }) => "Running",
        Some(_) => "Paused",
        None if voice == Voice::Kiln => return Err(PeerError::UnknownWorker(worker.clone()).into()),
        None => "Not found",
    };
    match what.terse {
        true => print(format!("{state}\n")),
        false => print(format!("{worker}: {state}\n")),
    }
}

/// Returns all workers of a pool.
async fn known(peer: &Peer, pool: &PoolAdmin) -> Result<Vec<WorkerInfo>, PeerError> {
    peer.ask("PoolAdmin.workers", pool.workers()).await
}

fn print_lines<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Failure> {
    let mut text = Vec::new();
    for line in lines {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    print(text)
}
