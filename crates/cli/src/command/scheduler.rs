//! `kiln scheduler`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bstr::BString;
use kiln_api::{Address, Key, Limits, ListenError};
use kiln_scheduler::state::lease::{Lease, Standing, Tenure, Terms};
use kiln_scheduler::state::{self, PostgresServer, StateError};
use kiln_scheduler::web::stand_by;
use kiln_scheduler::{Running, Scheduler, SchedulerError, Settings};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::uname;
use tokio_util::sync::CancellationToken;

use super::cancel_on_signals;
use crate::args;
use crate::exit::Failure;
use crate::peer::on_one_thread;
use crate::personality::{Voice, quoted_path};
use crate::render::tell;

pub(super) fn run(arguments: &args::Scheduler, voice: Voice) -> Result<(), Failure> {
    open_more_files();
    let stop = cancel_on_signals().map_err(Failure::Runtime)?;
    if arguments.state.is_some() && arguments.capnp_secret_key_file.is_empty() {
        return Err(Failure::KeyOfSeveral);
    }
    let key = prepare(arguments)?;
    let Some(server) = &arguments.state else {
        return on_one_thread(async {
            let (scheduler, _) = start(arguments, voice, key, None).await?;
            serve(scheduler, stop).await;
            Ok(())
        })?;
    };
    // What would keep it from serving is found out now, not when nobody else does.
    let _lock = state::lock(&arguments.state_dir).map_err(SchedulerError::from)?;
    let mut place = StandBy { arguments, server, key, obstacle: obstacle(&arguments.capnp_listen_address)? };
    while !stop.is_cancelled() {
        // On a thread's event loop of its own: of what was served before a lease was lost, nothing goes on.
        on_one_thread(place.take_turn(voice, &stop))??;
    }
    Ok(())
}

/// One of several schedulers.
struct StandBy<'a> {
    arguments: &'a args::Scheduler,
    server: &'a PostgresServer,
    key: Key,
    /// What keeps it from serving just now, until that has been told.
    obstacle: Option<String>,
}

/// Returns what keeps a scheduler from listening there that need not do so when it is to serve: a port that another scheduler of this machine has, or
/// an address that comes to whoever serves.
fn obstacle(address: &Address) -> Result<Option<String>, Failure> {
    let failed = |source| Failure::from(SchedulerError::from(ListenError::Bind { address: address.clone(), source }));
    match address {
        Address::Tcp { host, port } => match TcpListener::bind((host.as_str(), *port)) {
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Ok(Some(format!("{address} is in use: this scheduler cannot take over unless it is free then")))
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(Some(format!(
                "{host} is no address of this machine: this scheduler cannot take over unless it is one then"
            ))),
            Err(source) => Err(failed(source)),
        },
        Address::Unix(path) => match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // A socket that is there is replaced, and may be that of who serves.
            Some(directory) => directory.metadata().map(|_| None).map_err(failed),
            None => Ok(None),
        },
    }
}

impl StandBy<'_> {
    /// Stands by until the lease of the database can be had, and serves until it is lost.
    async fn take_turn(&mut self, voice: Voice, stop: &CancellationToken) -> Result<(), Failure> {
        let Self { arguments, server, key, obstacle } = self;
        let (arguments, server) = (*arguments, *server);
        let (listen, host) = (&arguments.capnp_listen_address, uname());
        let name = format!("{listen}, process {} of {}", std::process::id(), host.nodename().to_string_lossy());
        let terms = Terms::new(key, !arguments.capnp_disable_tls, &arguments.pools);
        let ours = terms.pools.clone();
        let acquiring = Lease::acquire(server.clone(), name, Some(terms), |standing| match standing {
            Standing::By { holder, pools } => {
                tell(format_args!("standing by: the scheduler at {holder} serves"));
                if let Some(theirs) = pools {
                    tell(format_args!(
                        "note: its pools are {theirs}, and here {ours}: jobs for a pool wait where there is none"
                    ));
                }
                if let Some(obstacle) = obstacle.take() {
                    tell(format_args!("note: {obstacle}"));
                }
            }
            Standing::Blind(why) => tell(format_args!("waiting for {server}: {why}")),
        });
        let site = async {
            match arguments.listen_prometheus {
                Some(address) => stand_by(address).await,
                None => std::future::pending().await,
            }
        };
        let lease = tokio::select! {
            lease = acquiring => lease.map_err(|error| refused(arguments, error))?,
            () = stop.cancelled() => return Ok(()),
            Err(error) = site => return Err(SchedulerError::from(error).into()),
            never = crate::service::alive() => match never {},
        };
        let over = stop.child_token();
        let lost = lease.lost().clone();
        let ends = over.clone();
        tokio::task::spawn_local(async move {
            lost.cancelled().await;
            ends.cancel();
        });
        // Reading what there is may take a while. Whoever is to end, or has lost the lease, is not kept by that: the database does nothing for it then.
        let started = async {
            let mut starting = std::pin::pin!(start(arguments, voice, key.clone(), Some(lease.tenure())));
            tokio::select! {
                started = &mut starting => started,
                () = stop.cancelled() => {
                    lease.lost().cancel();
                    starting.await
                }
            }
        };
        let started = tokio::select! {
            started = started => started,
            never = crate::service::alive() => match never {},
        };
        let served = match started {
            Ok((scheduler, _)) => {
                serve(scheduler, over).await;
                Ok(())
            }
            Err(failure) => Err(failure),
        };
        if lease.lost().is_cancelled() {
            // Whatever failed, it was that.
            if stop.is_cancelled() {
                return Ok(());
            }
            tell("the lease is lost: another scheduler serves now, or may");
            return Ok(());
        }
        lease.release().await;
        served
    }
}

/// Returns why a scheduler may not stand by.
fn refused(arguments: &args::Scheduler, error: StateError) -> Failure {
    match error {
        StateError::OtherKey { place, theirs, ours } => {
            Failure::OtherKey { path: PathBuf::from(&arguments.capnp_secret_key_file), place, theirs, ours }
        }
        error => SchedulerError::from(error).into(),
    }
}

async fn serve(scheduler: Scheduler, stop: CancellationToken) {
    tokio::select! {
        () = scheduler.serve(stop) => {}
        never = crate::service::alive() => match never {},
    }
}

/// Makes the directories of a scheduler, and its key, if they are not there. Returns the key.
pub(super) fn prepare(arguments: &args::Scheduler) -> Result<Key, Failure> {
    make_directory(&arguments.secrets_dir, 0o700)?;
    make_directory(&arguments.state_dir, 0o755)?;
    match arguments.capnp_secret_key_file.is_empty() {
        true => Ok(Key::generate().map_err(|source| Failure::Key { path: "the key".into(), source })?.0),
        false => key(Path::new(&arguments.capnp_secret_key_file)),
    }
}

/// Starts a scheduler: from when this returns, it is reached, and its capability files are there. Says so.
pub(super) async fn start(
    arguments: &args::Scheduler,
    voice: Voice,
    key: Key,
    tenure: Option<Tenure>,
) -> Result<(Scheduler, Running), Failure> {
    let secrets = &arguments.secrets_dir;
    let settings = Settings {
        state: arguments.state_dir.clone(),
        tenure,
        key,
        secure: !arguments.capnp_disable_tls,
        listen: arguments.capnp_listen_address.clone(),
        public: arguments.capnp_public_address.clone(),
        pools: arguments.pools.iter().cloned().map(BString::from).collect(),
        capabilities: Some(secrets.clone()),
        web: arguments.listen_prometheus,
        limits: Limits::default(),
        keeping: (&arguments.keeping).into(),
    };
    let scheduler = Scheduler::start(settings).await?;
    let running = scheduler.running();
    let clients: Vec<_> = arguments.default_clients.iter().cloned().map(BString::from).collect();
    let provided = scheduler.provide_clients(&clients, secrets).await?;

    let pools = running.pools.keys().map(|pool| secrets.join(format!("pool-{pool}.cap")));
    for file in [secrets.join("admin.cap")].into_iter().chain(pools).chain(provided.written) {
        match voice {
            Voice::OCluster => tell(format_args!("Wrote capability reference to {}", quoted_path(&file))),
            Voice::Kiln | Voice::OBuilder => tell(format_args!("wrote {}", file.display())),
        }
    }
    for client in provided.unknown {
        tell(format_args!(
            "note: {client} is a client, but its capability is not known any more; `kiln admin remove-client {client}` before \
             the next start has it made anew"
        ));
    }
    if let Some(address) = running.web {
        tell(format_args!("metrics at http://{address}/metrics"));
    }
    if arguments.capnp_disable_tls {
        tell("note: connections are not encrypted");
    }
    let public = &running.admin.addresses;
    match *public == running.listen.clone().into() {
        true => tell(format_args!("listening at {public}")),
        false => tell(format_args!("listening at {}, which others reach at {public}", running.listen)),
    }
    for address in public.iter() {
        if let Address::Tcp { host, .. } = address
            && host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified())
        {
            tell(format_args!(
                "note: nobody can connect to {host}, which the capability files say; give --capnp-public-address"
            ));
        }
    }
    Ok((scheduler, running))
}

/// Opens as many files as the system allows. Each client that waits, each worker and each job that runs has one, and the 1024 that most
/// systems give to programs that do not ask are only that few for those that use `select` (systemd.exec(5), `LimitNOFILE=`).
fn open_more_files() {
    let limit = getrlimit(Resource::Nofile);
    // With less, it goes on as far as that goes.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| Failure::Write { path: path.to_owned(), source })
}

/// Reads the key of a scheduler. If there is none, makes one, whole or not at all, for its owner only.
fn key(path: &Path) -> Result<Key, Failure> {
    let unusable = |source| Failure::Key { path: path.display().to_string(), source };
    if let Some(pem) = read_if_there(path)? {
        return Key::from_pem(&pem).map_err(unusable);
    }
    let (key, pem) = Key::generate().map_err(unusable)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()))
        // Unlike a rename, it replaces nothing: of two that start at once, one wins, and both have its key.
        .and_then(|()| fs::hard_link(&beside, path));
    // Also after an error, which is the one to tell.
    let _ = fs::remove_file(&beside);
    match written {
        Ok(()) => {
            tell(format_args!("made the key {}", path.display()));
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let pem = read_if_there(path)?.unwrap_or_default();
            Key::from_pem(&pem).map_err(unusable)
        }
        Err(source) => Err(Failure::Write { path: path.to_owned(), source }),
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Failure::Read { path: path.to_owned(), source }),
    }
}
