//! A running scheduler.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bstr::BString;
use kiln_api::cap_file::{self, CapFileError};
use kiln_api::{
    Address, Addresses, Admin, Answer, Capability, CapabilityUri, Error, Identity, Key, Limits, Link, ListenError,
    Listener, Registration, Security, ServiceId, Services, Submission, answer,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::admin::Everything;
use super::clients::{Account, Client, Deposit, cannot_read};
use super::housekeeping::keep_house;
use super::keeper::{Keeper, Thread};
use super::logs::{COPIES, Logs};
use super::pool::LivePool;
use super::workers::Entrance;
use crate::pool::{Pool, Saved};
use crate::state::lease::Tenure;
use crate::state::{KeptJob, State, StateError};
use crate::web::{self, Site, WebError};

/// What a scheduler is told.
#[derive(Debug)]
pub struct Settings {
    /// The directory of its database, which must exist.
    pub state: PathBuf,
    /// The lease of a database that is shared, which takes the place of its own. The caller holds it for as long as the
    /// scheduler is there, and stops it when it is lost; and it has locked the directory, which is for what need not outlive
    /// this scheduler then.
    pub tenure: Option<Tenure>,
    /// What it is known by. The ids of its services are made of it also without encryption.
    pub key: Key,
    /// Whether connections are encrypted, and the key shown.
    pub secure: bool,
    /// Where to listen.
    pub listen: Address,
    /// How others reach it, perhaps at one of several addresses; `None`: where it listens.
    pub public: Option<Addresses>,
    /// The names of its pools.
    pub pools: Vec<BString>,
    /// Where to write `admin.cap` and `pool-NAME.cap`.
    pub capabilities: Option<PathBuf>,
    /// Where to listen for HTTP: metrics.
    pub web: Option<std::net::SocketAddr>,
    /// What peers may take.
    pub limits: Limits,
    /// What becomes of jobs.
    pub keeping: Keeping,
}

/// What becomes of jobs when something is lost, and of those that have ended.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// How often a job is begun again whose worker was lost.
    pub retries: u32,
    /// How long a worker that was lost may take to come back for its jobs.
    pub worker_grace: Duration,
    /// How long a worker may say nothing, though it was asked something, until it is lost. Zero: for ever.
    pub worker_silence: Duration,
    /// How long a client that was lost may take to come back for its jobs.
    pub client_grace: Duration,
    /// Store secrets too, so that jobs with secrets can be begun after a restart.
    pub store_secrets: bool,
    /// How long a job's log may be, in bytes.
    pub log_limit: u64,
    /// How long the logs of kept jobs may be together before the oldest that have ended go, in bytes.
    pub logs_size: u64,
    /// How long a kept job is kept after its end.
    pub ended: Duration,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            retries: 2,
            worker_grace: Duration::from_secs(120),
            worker_silence: Duration::from_secs(60),
            client_grace: Duration::from_secs(120),
            store_secrets: false,
            log_limit: 2 << 30,
            logs_size: 20 << 30,
            ended: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Why there is no scheduler.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum SchedulerError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Capability(#[from] CapFileError),
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("cannot keep logs in {}", path.display())]
    Logs {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the scheduler's state was not read to its end")]
    Unread(#[source] tokio::task::JoinError),
}

/// What all objects of a scheduler share.
pub(super) struct Shared {
    pub(super) pools: BTreeMap<BString, Rc<LivePool>>,
    /// The clients that are allowed.
    pub(super) clients: RefCell<BTreeMap<BString, Rc<Account>>>,
    pub(super) keeper: Keeper,
    pub(super) keeping: Rc<Keeping>,
    pub(super) logs: Logs,
    /// Cancelled before connections are ended.
    stopping: CancellationToken,
    identity: Identity,
    addresses: Addresses,
}

impl Shared {
    /// Goes on with the jobs of an earlier scheduler.
    fn restore(&self, jobs: Vec<KeptJob>) {
        if !jobs.is_empty() {
            tracing::info!(jobs = jobs.len(), "going on with the jobs that have not ended");
        }
        for job in jobs {
            match self.pools.get(&job.pool) {
                Some(pool) => {
                    let account = self.clients.borrow().get(&job.client).cloned();
                    let deposit = account
                        .zip(job.description.as_ref())
                        .map(|(account, description)| Deposit::again(&account, description));
                    pool.restore(job, deposit);
                }
                None => {
                    tracing::warn!(job = %job.key, pool = ?job.pool, "a job waits for a pool that there is not any more")
                }
            }
        }
    }

    /// Returns how others reach a service.
    pub(super) fn uri(&self, service: ServiceId) -> CapabilityUri {
        CapabilityUri { identity: self.identity, addresses: self.addresses.clone(), service }
    }
}

/// A scheduler that listens. It needs a `LocalSet`.
pub struct Scheduler {
    shared: Rc<Shared>,
    listener: Listener,
    directory: Directory,
    site: Option<Site>,
    keeper: Thread,
}

/// Where a scheduler is reached.
#[derive(Debug, Clone)]
pub struct Running {
    /// Where it listens. The capabilities say how others reach that.
    pub listen: Address,
    /// For administrators.
    pub admin: CapabilityUri,
    /// For the workers of each pool.
    pub pools: BTreeMap<BString, CapabilityUri>,
    /// Where HTTP is served.
    pub web: Option<std::net::SocketAddr>,
}

impl Scheduler {
    /// Opens the database, listens, and writes capability files.
    ///
    /// # Errors
    ///
    /// If one of these fails.
    pub async fn start(settings: Settings) -> Result<Self, SchedulerError> {
        let (directory, pools, log_limit) = (settings.state, settings.pools, settings.keeping.log_limit);
        let tenure = settings.tenure;
        // Not by this thread, where nobody may wait for a server.
        let opened = spawn_blocking(move || open(&directory, &pools, log_limit, tenure)).await;
        let Opened { state, clients, saved, unfinished, logs } = opened.map_err(SchedulerError::Unread)??;
        let clients = clients.into_iter().map(|name| (name, Rc::default())).collect();
        let (keeper, thread) = Keeper::start(state)?;
        let logs = logs.with_archive(&keeper);
        let keeping = Rc::new(settings.keeping);
        let stopping = CancellationToken::new();
        let live = |name: &BString, saved| {
            let pool = Pool::restore(name.clone(), saved);
            LivePool::new(pool, keeper.clone(), Rc::clone(&keeping), logs.clone(), stopping.clone())
        };
        let pools: BTreeMap<_, _> = saved.iter().map(|(name, saved)| (name.clone(), live(name, saved))).collect();

        let (identity, security) = match settings.secure {
            true => (Identity::Key(settings.key.fingerprint()), Security::Key(Box::new(settings.key.clone()))),
            false => (Identity::Insecure, Security::Insecure),
        };
        let listener = Listener::bind(&settings.listen, security, settings.limits).await?;
        let addresses = settings.public.unwrap_or_else(|| listener.address().clone().into());
        let shared = Rc::new(Shared {
            pools,
            clients: RefCell::new(clients),
            keeper,
            keeping,
            logs,
            stopping,
            identity,
            addresses,
        });
        shared.restore(unfinished);
        let directory = Directory::new(&settings.key, Rc::clone(&shared));
        let site = match settings.web {
            Some(address) => Some(Site::bind(address).await?),
            None => None,
        };
        let scheduler = Self { shared, listener, directory, site, keeper: thread };
        if let Some(into) = &settings.capabilities {
            write_capabilities(into, &scheduler.running())?;
        }
        Ok(scheduler)
    }

    /// Returns where it is reached.
    pub fn running(&self) -> Running {
        let uri = |service: &ServiceId| self.shared.uri(service.clone());
        Running {
            listen: self.listener.address().clone(),
            admin: uri(&self.directory.admin),
            pools: self.directory.pools.iter().map(|(name, service)| (name.clone(), uri(service))).collect(),
            web: self.site.as_ref().map(Site::address),
        }
    }

    /// Writes `submit-NAME.cap` to the directory for each client, and allows those that are not clients yet. A file that is there
    /// keeps its secret, and is made to say where the scheduler is reached now.
    ///
    /// Returns the files written, and the names that were left out: they are clients, but with what secret is not known any more.
    ///
    /// # Errors
    ///
    /// If the state or a file cannot be read or written.
    pub async fn provide_clients(&self, names: &[BString], into: &Path) -> Result<Provided, SchedulerError> {
        let mut provided = Provided::default();
        for name in names {
            let path = into.join(file_name("submit-", name));
            let kept = match path.try_exists() {
                Ok(true) => Some(cap_file::load(&path)?.service),
                // If it cannot be told, it cannot be written either, and that is told then.
                _ => None,
            };
            let service = match kept {
                Some(service) if self.shared.keeper.find_client(service.clone()).await?.as_ref() == Some(name) => {
                    service
                }
                _ if self.shared.clients.borrow().contains_key(name) => {
                    provided.unknown.push(name.clone());
                    continue;
                }
                _ => {
                    let service = ServiceId::random();
                    self.shared.keeper.add_client(name.clone(), service.clone()).await?;
                    self.shared.clients.borrow_mut().entry(name.clone()).or_default();
                    service
                }
            };
            cap_file::save(&path, &self.shared.uri(service))?;
            provided.written.push(path);
        }
        Ok(provided)
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let Self { shared, listener, directory, site, keeper } = self;
        let pools: Vec<_> = shared.pools.values().cloned().collect();
        let mut clocks = tokio::task::JoinSet::new();
        for pool in &pools {
            clocks.spawn_local(Rc::clone(pool).keep_time());
            clocks.spawn_local(Rc::clone(pool).settle());
            clocks.spawn_local(Rc::clone(pool).archive_all());
        }
        let names = shared.pools.keys().cloned().collect();
        clocks.spawn_local(keep_house(shared.keeper.clone(), shared.logs.clone(), Rc::clone(&shared.keeping), names));
        let web = async {
            if let Some(site) = site {
                web::serve(site, pools, stop.clone()).await;
            }
        };
        let listening = CancellationToken::new();
        let end = async {
            stop.cancelled().await;
            // Those whose connections end now have not gone by themselves.
            shared.stopping.cancel();
            listening.cancel();
        };
        tokio::join!(listener.serve(directory, listening.clone()), web, end);
        clocks.shutdown().await;
        drop(shared);
        if tokio::task::spawn_blocking(|| drop(keeper)).await.is_err() {
            tracing::error!("cannot wait for the scheduler's state to be written");
        }
    }
}

/// What there was before.
struct Opened {
    state: State,
    clients: Vec<BString>,
    saved: Vec<(BString, Saved)>,
    unfinished: Vec<KeptJob>,
    logs: Logs,
}

/// Opens the state in `directory`, or that of a lease, and reads it. Blocks.
fn open(directory: &Path, pools: &[BString], log_limit: u64, tenure: Option<Tenure>) -> Result<Opened, SchedulerError> {
    let mut state = match tenure {
        None => State::open(directory)?,
        Some(tenure) => State::open_shared(tenure)?,
    };
    let clients = state.clients()?;
    let load = |name: &BString| Ok((name.clone(), state.load(name.as_ref())?));
    let saved = pools.iter().map(load).collect::<Result<_, StateError>>()?;
    let unfinished = state.unfinished()?;
    let (directory, logs) = match state.is_shared() {
        true => (directory.join(COPIES), Logs::of_a_turn(&directory.join(COPIES), log_limit)),
        false => (directory.join("logs"), Logs::new(directory.join("logs"), log_limit)),
    };
    let logs = logs.map_err(|source| SchedulerError::Logs { path: directory, source })?;
    Ok(Opened { state, clients, saved, unfinished, logs })
}

/// What [`Scheduler::provide_clients`] did.
#[derive(Debug, Default)]
pub struct Provided {
    /// The files written.
    pub written: Vec<PathBuf>,
    /// Clients without a file, whose secret is not known any more.
    pub unknown: Vec<BString>,
}

/// Returns the name of a capability file: `pool-NAME.cap`, `submit-NAME.cap`.
fn file_name(kind: &str, name: &BString) -> std::ffi::OsString {
    let mut file = std::ffi::OsString::from(kind);
    file.push(bstr::ByteSlice::to_os_str_lossy(name.as_slice()));
    file.push(".cap");
    file
}

/// Writes what workers and administrators need.
fn write_capabilities(into: &Path, running: &Running) -> Result<(), CapFileError> {
    cap_file::save(&into.join("admin.cap"), &running.admin)?;
    for (name, uri) in &running.pools {
        cap_file::save(&into.join(file_name("pool-", name)), uri)?;
    }
    Ok(())
}

/// Finds services by their ids, which are looked up by digest: how long that takes says nothing of other ids.
struct Directory {
    shared: Rc<Shared>,
    admin: ServiceId,
    pools: BTreeMap<BString, ServiceId>,
    by_digest: HashMap<[u8; 32], Service>,
}

/// A service whose id is derived from the key.
enum Service {
    Admin,
    Pool(Rc<LivePool>),
}

impl Directory {
    fn new(key: &Key, shared: Rc<Shared>) -> Self {
        let admin = key.service_id(b"admin");
        let mut pools = BTreeMap::new();
        let mut by_digest = HashMap::from([(digest(&admin), Service::Admin)]);
        for (name, pool) in &shared.pools {
            let id = key.service_id(&[b"pool-", name.as_slice()].concat());
            by_digest.insert(digest(&id), Service::Pool(Rc::clone(pool)));
            pools.insert(name.clone(), id);
        }
        Self { shared, admin, pools, by_digest }
    }
}

fn digest(id: &ServiceId) -> [u8; 32] {
    Sha256::digest(&id.0).into()
}

impl Services for Directory {
    fn restore(&self, id: &ServiceId, link: &Link) -> Answer<Capability> {
        match self.by_digest.get(&digest(id)) {
            Some(Service::Admin) => answer(Ok(Admin::serve(Everything(Rc::clone(&self.shared), link.clone())).into())),
            Some(Service::Pool(pool)) => {
                let entrance = Entrance { pool: Rc::clone(pool), link: link.clone() };
                answer(Ok(Registration::serve(entrance).into()))
            }
            None => {
                let (shared, id, link) = (Rc::clone(&self.shared), id.clone(), link.clone());
                Box::pin(async move {
                    let name = shared.keeper.find_client(id.clone()).await.map_err(cannot_read)?;
                    let unknown = || Error::failed("Unknown persistent service ID");
                    let name = name.ok_or_else(unknown)?;
                    // It may have been removed since it was found.
                    let account = shared.clients.borrow().get(&name).cloned().ok_or_else(unknown)?;
                    Ok(Submission::serve(Client { shared, name, account, id, link }).into())
                })
            }
        }
    }
}
