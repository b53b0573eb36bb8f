//! Everything that is read from the environment, and the defaults, each beside its reason.

use std::path::PathBuf;

use kiln_store::{Location, Store};

use crate::exit::Failure;

/// Selects diagnostics, as `tracing_subscriber::EnvFilter` has it.
pub(crate) const KILN_TRACE: &str = "KILN_TRACE";
/// The store, unless `--store` is given.
pub(crate) const KILN_STORE: &str = "KILN_STORE";

/// Where a spec is looked for in the source directory.
pub(crate) const DEFAULT_SPEC: &str = "kiln.spec";

/// Where the store is by default: with the system's other state for root, else with the user's.
fn default_store() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/kiln"));
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    data.map(|data| data.join("kiln")).ok_or(Failure::NoHome)
}

/// Opens the store that `--store` or the environment names.
pub(crate) fn open_store(text: &str) -> Result<Store, Failure> {
    Ok(Store::open(&Location::parse(text, &default_store()?)?)?)
}

/// How many steps run at once unless told otherwise: as many as there are processors.
pub(crate) fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
