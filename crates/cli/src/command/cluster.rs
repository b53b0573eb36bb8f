//! `kiln cluster`: a scheduler and a worker on this machine, for trying out.

use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::scheduler::{prepare, start};
use super::worker::{Local, run_local};
use super::{cancel_on_signals, print};
use crate::args;
use crate::exit::Failure;
use crate::peer::on_one_thread;
use crate::personality::Voice;
use crate::render::tell;
use crate::settings::{default_cluster, default_jobs};

/// The pool.
const POOL: &str = "local";

/// Who submits.
const CLIENT: &str = "me";

pub(super) fn run(arguments: &args::Cluster) -> Result<(), Failure> {
    let dir = arguments.dir.clone().map_or_else(default_cluster, Ok)?;
    // Also to be used from other directories.
    let absolute = std::path::absolute(&dir);
    let dir = absolute.map_err(|source| Failure::Read { path: dir, source })?;
    let scheduler = args::Scheduler {
        capnp_secret_key_file: dir.join("key.pem").into(),
        capnp_listen_address: arguments.listen.clone(),
        capnp_public_address: None,
        capnp_disable_tls: false,
        state_dir: dir.join("scheduler"),
        state: None,
        pools: vec![POOL.to_owned()],
        secrets_dir: dir.clone(),
        default_clients: vec![CLIENT.to_owned()],
        listen_prometheus: None,
        keeping: args::Keeping::default(),
    };
    let stop = cancel_on_signals().map_err(Failure::Runtime)?;
    let key = prepare(&scheduler)?;
    on_one_thread(async {
        let (scheduler, running) = start(&scheduler, Voice::Kiln, key, None).await?;
        let pool = running.pools.into_values().next().expect("there is one pool");
        let capacity = arguments.capacity.map_or_else(default_jobs, usize::from);
        let worker = Local { pool, name: "local".to_owned(), capacity, state: dir.join("worker") };
        tell(
            "\nIn another terminal, submit a job and look at the pool; Ctrl-C here ends all when what runs is done, twice at once:",
        );
        let file = |name: &str| shell_word(&dir.join(name));
        print(format!(
            "kiln submit obuilder --connect {} --pool {POOL} --local-file SPEC\nkiln admin --connect {} show {POOL}\n",
            file(&format!("submit-{CLIENT}.cap")),
            file("admin.cap"),
        ))?;
        // The worker needs it until it has ended.
        let last = CancellationToken::new();
        let worker = async {
            let worked = run_local(worker, stop).await;
            last.cancel();
            worked
        };
        tokio::join!(worker, scheduler.serve(last.clone())).0
    })?
}

/// Returns a path as a word for a shell.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
