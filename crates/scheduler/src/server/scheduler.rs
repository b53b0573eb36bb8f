//! A running scheduler.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bstr::BString;
use kiln_api::cap_file::{self, CapFileError};
use kiln_api::{
    Address, Admin, Answer, Capability, CapabilityUri, Error, Identity, Key, Limits, ListenError, Listener,
    Registration, Security, ServiceId, Services, Submission, answer,
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::admin::Everything;
use super::clients::{Account, Client};
use super::keeper::{Keeper, Thread};
use super::pool::LivePool;
use super::workers::Entrance;
use crate::pool::Pool;
use crate::state::{State, StateError};
use crate::web::{self, Site, WebError};

/// What a scheduler is told.
#[derive(Debug)]
pub struct Settings {
    /// The directory of its database, which must exist.
    pub state: PathBuf,
    /// What it is known by. The ids of its services are made of it also without encryption.
    pub key: Key,
    /// Whether connections are encrypted, and the key shown.
    pub secure: bool,
    /// Where to listen.
    pub listen: Address,
    /// How others reach that; `None`: as it is.
    pub public: Option<Address>,
    /// The names of its pools.
    pub pools: Vec<BString>,
    /// Where to write `admin.cap` and `pool-NAME.cap`.
    pub capabilities: Option<PathBuf>,
    /// Where to listen for HTTP: metrics.
    pub web: Option<std::net::SocketAddr>,
    /// What peers may take.
    pub limits: Limits,
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
}

/// What all objects of a scheduler share.
pub(super) struct Shared {
    pub(super) pools: BTreeMap<BString, Rc<LivePool>>,
    /// The clients that are allowed.
    pub(super) clients: RefCell<BTreeMap<BString, Rc<Account>>>,
    pub(super) keeper: Keeper,
    identity: Identity,
    address: Address,
}

impl Shared {
    /// Returns how others reach a service.
    pub(super) fn uri(&self, service: ServiceId) -> CapabilityUri {
        CapabilityUri { identity: self.identity, address: self.address.clone(), service }
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
        let state = State::open(&settings.state)?;
        let clients = state.clients()?.into_iter().map(|name| (name, Rc::default())).collect();
        let saved: Vec<_> = settings
            .pools
            .iter()
            .map(|name| Ok((name, state.load(name.as_ref())?)))
            .collect::<Result<_, StateError>>()?;
        let (keeper, thread) = Keeper::start(state);
        let pools: BTreeMap<_, _> = saved
            .into_iter()
            .map(|(name, saved)| (name.clone(), LivePool::new(Pool::restore(name.clone(), &saved), keeper.clone())))
            .collect();

        let (identity, security) = match settings.secure {
            true => (Identity::Key(settings.key.fingerprint()), Security::Key(Box::new(settings.key.clone()))),
            false => (Identity::Insecure, Security::Insecure),
        };
        let listener = Listener::bind(&settings.listen, security, settings.limits).await?;
        let address = settings.public.unwrap_or_else(|| listener.address().clone());
        let shared = Rc::new(Shared { pools, clients: RefCell::new(clients), keeper, identity, address });
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
        }
        let web = async {
            if let Some(site) = site {
                web::serve(site, pools, stop.clone()).await;
            }
        };
        tokio::join!(listener.serve(directory, stop.clone()), web);
        clocks.shutdown().await;
        drop(shared);
        if tokio::task::spawn_blocking(|| drop(keeper)).await.is_err() {
            tracing::error!("cannot wait for the scheduler's state to be written");
        }
    }
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
    fn restore(&self, id: &ServiceId, ended: &CancellationToken) -> Answer<Capability> {
        match self.by_digest.get(&digest(id)) {
            Some(Service::Admin) => answer(Ok(Admin::serve(Everything(Rc::clone(&self.shared))).into())),
            Some(Service::Pool(pool)) => {
                let entrance = Entrance { pool: Rc::clone(pool), connection: ended.clone() };
                answer(Ok(Registration::serve(entrance).into()))
            }
            None => {
                let (shared, id) = (Rc::clone(&self.shared), id.clone());
                Box::pin(async move {
                    let name = shared.keeper.find_client(id.clone()).await.map_err(|error| {
                        tracing::error!(error = &error as &dyn std::error::Error, "cannot look up a client");
                        Error::failed("the scheduler cannot read its state")
                    })?;
                    let unknown = || Error::failed("Unknown persistent service ID");
                    let name = name.ok_or_else(unknown)?;
                    // It may have been removed since it was found.
                    let account = shared.clients.borrow().get(&name).cloned().ok_or_else(unknown)?;
                    Ok(Submission::serve(Client { shared, name, account, id }).into())
                })
            }
        }
    }
}
