//! Everything that is read from the environment, and the defaults, each beside its reason.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use bstr::BString;
use kiln_image::{HostSettings, Notices, Proxies, RegistrySettings};
use kiln_store::{Location, Store};
use serde::Deserialize;

use crate::args::{RegistryArgs, RsyncMode, StoreArgs};
use crate::config;
use crate::exit::Failure;
use crate::rootless;

/// Selects diagnostics, as `tracing_subscriber::EnvFilter` has it.
pub(crate) const KILN_TRACE: &str = "KILN_TRACE";
/// The store, unless `--store` is given.
pub(crate) const KILN_STORE: &str = "KILN_STORE";

/// The file with credentials, unless `--auth-file` is given: as Podman, Buildah and Skopeo have it.
pub(crate) const REGISTRY_AUTH_FILE: &str = "REGISTRY_AUTH_FILE";
/// The file with mirrors and insecure registries, unless `--registries` is given.
pub(crate) const KILN_REGISTRIES: &str = "KILN_REGISTRIES";
/// The file with settings, unless `--config` is given.
pub(crate) const KILN_CONFIG: &str = "KILN_CONFIG";
/// The capability file of a scheduler, unless `--connect` is given.
pub(crate) const KILN_CAP: &str = "KILN_CAP";
/// Seconds since 1970: no time in an exported image is later. See reproducible-builds.org.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Returns where programs are looked for.
pub(crate) fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into())
}

/// Where a spec is looked for in the source directory.
pub(crate) const DEFAULT_SPEC: &str = "kiln.spec";

/// Where the store is by default: with the system's other state for root, else with the user's.
fn default_store() -> Result<PathBuf, Failure> {
    if rootless::is_root() {
        return Ok(PathBuf::from("/var/lib/kiln"));
    }
    let data = directory("XDG_DATA_HOME").or_else(|| Some(directory("HOME")?.join(".local/share")));
    data.map(|data| data.join("kiln")).ok_or(Failure::NoHome)
}

/// Where `kiln cluster` keeps what it has: with the user's other state.
pub(crate) fn default_cluster() -> Result<PathBuf, Failure> {
    let state = directory("XDG_STATE_HOME").or_else(|| Some(directory("HOME")?.join(".local/state")));
    state.map(|state| state.join("kiln/cluster")).ok_or(Failure::NoHomeForCluster)
}

pub(crate) fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Opens the store that `--store` or the environment names.
pub(crate) fn open_store(arguments: &StoreArgs) -> Result<Store, Failure> {
    Ok(Store::open(&location(&arguments.store, arguments.rsync_mode)?)?)
}

/// Returns which store a text stands for.
pub(crate) fn location(text: &str, rsync_mode: Option<RsyncMode>) -> Result<Location, Failure> {
    let location = Location::parse(text, &default_store()?)?;
    Ok(match rsync_mode {
        Some(mode) => location.with_copy_mode(mode.into())?,
        None => location,
    })
}

/// The kind of terminal that we are on.
pub(crate) fn term() -> Option<BString> {
    directory("TERM").map(|term| term.into_os_string().into_encoded_bytes().into())
}

/// How many steps run at once unless told otherwise: as many as there are processors.
pub(crate) fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What registries.toml holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registries {
    #[serde(default)]
    host: BTreeMap<String, HostSettings>,
}

/// How to reach registries. `notices` hear why it takes longer.
pub(crate) fn registries(arguments: &RegistryArgs, notices: Notices) -> Result<RegistrySettings, Failure> {
    let home = directory("HOME");
    let in_home = |path: &str| Some(home.as_ref()?.join(path));
    let auth_files = [
        arguments.auth_file.clone(),
        // As Podman and Docker look for them.
        directory("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        directory("XDG_CONFIG_HOME")
            .map(|dir| dir.join("containers"))
            .or_else(|| in_home(".config/containers"))
            .map(|dir| dir.join("auth.json")),
        directory("DOCKER_CONFIG").or_else(|| in_home(".docker")).map(|dir| dir.join("config.json")),
    ];
    if let Some(file) = &arguments.auth_file
        && let Err(source) = file.metadata()
    {
        // Files that nobody named may be missing.
        return Err(Failure::Read { path: file.clone(), source });
    }
    let mut hosts = BTreeMap::new();
    // What the user says of a host replaces what the system says of it.
    for (path, Registries { host }) in config::read(arguments.registries.as_deref(), "registries.toml")? {
        for (host, settings) in &host {
            let bad = |source| Failure::BadRegistries { path: path.clone(), source };
            settings.check(host).map_err(bad)?;
        }
        hosts.extend(host);
    }
    // Lower case first: a web server's environment may hold an `HTTP_PROXY` of a stranger (CVE-2016-5385), and curl sets the custom.
    let proxy =
        |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    Ok(RegistrySettings {
        auth_files: auth_files.into_iter().flatten().collect(),
        hosts,
        proxies: Proxies {
            http: proxy(&["http_proxy", "HTTP_PROXY", "all_proxy"]),
            https: proxy(&["https_proxy", "HTTPS_PROXY", "all_proxy"]),
            no_proxy: proxy(&["no_proxy", "NO_PROXY"]),
        },
        notices,
        ..RegistrySettings::default()
    })
}

/// The latest time that an exported image may hold, if the environment says one.
pub(crate) fn source_date_epoch() -> Result<Option<u64>, Failure> {
    let Some(value) = std::env::var_os(SOURCE_DATE_EPOCH).filter(|value| !value.is_empty()) else { return Ok(None) };
    let seconds = value.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| Failure::SourceDateEpoch { value })
}
