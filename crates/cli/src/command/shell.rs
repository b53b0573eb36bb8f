//! `kiln shell`: a shell in a copy of a result, where the step that made it ran.

use std::process::ExitCode;
use std::sync::Arc;

use kiln_engine::{Engine, Settings, Surroundings, Visited};
use kiln_image::Images;

use super::build::secrets;
use super::run::{ended, result, visit};
use super::{cancel_on_signals, runtime};
use crate::args;
use crate::exit::Failure;
use crate::render::{one_line, tell};
use crate::settings::open_store;

pub(super) fn run(arguments: &args::Shell) -> Result<ExitCode, Failure> {
    ended(open(arguments))
}

fn open(arguments: &args::Shell) -> Result<Visited, Failure> {
    let secrets = secrets(&arguments.secrets)?;
    let store = Arc::new(open_store(&arguments.store)?);
    let policy = arguments.sandbox.policy().with_files(arguments.config.config.as_deref())?;
    let mut isolation = policy.isolation()?;
    store.check_quota(&isolation.quota)?;
    let kind = policy.sandbox.unwrap_or_default();
    kind.check_talk("kiln shell")?;
    let sandbox = kind.open(&policy.limits, &mut isolation, |text| tell(format_args!("note: {text}")))?;
    let settings = Settings { jobs: 1, isolation };
    let engine = Engine::new(Arc::clone(&store), sandbox, Arc::new(Images::default()), settings);
    let snapshot = result(&store, &arguments.id)?;
    let surroundings = Surroundings::of(&store, &snapshot).map_err(Arc::new)?;
    for secret in surroundings.secrets.iter().filter(|secret| !secrets.contains_key(&secret.name)) {
        let name = one_line(&secret.name.to_string());
        tell(format_args!("note: the secret `{name}` of the step is not there; give it with --secret {name}:FILE"));
    }
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    let timeout = arguments.sandbox.timeout();
    runtime()?.block_on(visit(&engine, snapshot, surroundings, None, &secrets, timeout, &cancel))
}
