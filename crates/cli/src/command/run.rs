//! `kiln run`: a command in a copy of a result or base image.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bstr::BString;
use kiln_engine::{BuildError, Engine, Request, Settings, Surroundings, Visited, Visitor};
use kiln_image::{Images, ImagesSettings};
use kiln_sandbox::{ExitStatus, SecretBytes};
use kiln_spec::{Spec, User};
use kiln_store::{Snapshot, State, Store, StoreError};
use tokio_util::sync::CancellationToken;

use super::build::{Shown, secrets};
use super::{cancel_on_signals, maintain, runtime};
use crate::args::{self, Network};
use crate::config::Policy;
use crate::exit::{Failure, ONLY_LOG};
use crate::render::tell;
use crate::settings::{open_store, registries};
use crate::terminal::{Piped, Screen};

pub(super) fn run(arguments: &args::Run, verbose: bool) -> Result<ExitCode, Failure> {
    ended(try_run(arguments, verbose))
}

fn try_run(arguments: &args::Run, verbose: bool) -> Result<Visited, Failure> {
    let user = arguments.user.as_deref().map(user).transpose()?;
    let secrets = secrets(&arguments.secrets)?;
    let Shown { events, notices, .. } = Shown::new(&arguments.show, verbose);
    let told = notices.clone();
    let images = Images::new(ImagesSettings {
        platform: arguments.base_images.platform.clone().unwrap_or_default(),
        registry: registries(&arguments.registry, notices)?,
        ..ImagesSettings::default()
    });
    let config = arguments.config.config.as_deref();
    let policy = Policy::read(config)?;
    let store = Arc::new(open_store(&arguments.store)?);
    let policy_of_steps = arguments.sandbox.policy().with_files(config)?;
    let mut isolation = policy_of_steps.isolation()?;
    store.check_quota(&isolation.quota)?;
    let kind = policy_of_steps.sandbox.unwrap_or_default();
    kind.check_talk("kiln run")?;
    let sandbox = kind.open(&policy_of_steps.limits, &mut isolation, |text| told.tell(text))?;
    let settings = Settings { jobs: 1, isolation };
    let engine = Engine::new(Arc::clone(&store), sandbox, Arc::new(images), settings);
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    runtime()?.block_on(async {
        // Digits alone are no image: that is told by its name and tag.
        let snapshot = if arguments.base.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            result(&store, &arguments.base)?
        } else {
            let request = Request {
                spec: Spec { from: arguments.base.clone().into(), builds: Vec::new(), ops: Vec::new() },
                spec_dir: PathBuf::new(),
                source: ".".into(),
                secrets: HashMap::new(),
                no_cache: false,
                pull: arguments.base_images.pull,
                target: None,
                failures: None,
            };
            let built = engine.build(request, events, &cancel).await;
            engine.idle().await;
            maintain::start(&store, &policy);
            built?.snapshot
        };
        let mut surroundings = Surroundings::of(&store, &snapshot).map_err(Arc::new)?;
        for (name, value) in &arguments.env {
            surroundings.set_env(name.as_str().into(), value.as_str().into());
        }
        surroundings.user = user.unwrap_or(surroundings.user);
        if let Some(workdir) = &arguments.workdir {
            surroundings.enter(workdir.as_bytes());
        }
        // What a step had of its own, a command that is not its own does not get unasked.
        surroundings.networks.clear();
        surroundings.caches.clear();
        surroundings.secrets.clear();
        if arguments.network == Network::Host {
            surroundings.networks.push("host".into());
        }
        for (id, target) in &arguments.caches {
            surroundings.add_cache(id.as_str().into(), target.as_str().into());
        }
        for name in secrets.keys() {
            surroundings.add_secret(name.clone());
        }
        let argv = (!arguments.command.is_empty()).then(|| arguments.command.clone());
        visit(&engine, snapshot, surroundings, argv, &secrets, arguments.sandbox.timeout(), &cancel).await
    })
}

fn user(text: &str) -> Result<User, Failure> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once(':') {
        Some((uid, gid)) if is_number(uid) && is_number(gid) => match (uid.parse(), gid.parse()) {
            (Ok(uid), Ok(gid)) => Ok(User::Unix { uid, gid }),
            _ => Err(Failure::User { text: text.to_owned() }),
        },
        None if !text.is_empty() && !is_number(text) => Ok(User::Named(text.into())),
        _ => Err(Failure::User { text: text.to_owned() }),
    }
}

/// Finds a result by how its id starts.
pub(super) fn result(store: &Store, id: &str) -> Result<Arc<Snapshot>, Failure> {
    let cannot = |reason| Failure::CannotVisit { what: id.to_owned(), reason };
    let found = store.find(id)?;
    match found.state {
        State::Running => Err(cannot("it is still being made")),
        State::Failed => Err(cannot(ONLY_LOG)),
        State::Result => {
            let snapshot = store.lookup(&found.id)?;
            Ok(Arc::new(snapshot.ok_or_else(|| StoreError::NoSuchResult(id.to_owned()))?))
        }
    }
}

/// Runs a command on our terminal or, if we have none, on our stdin, stdout and stderr.
pub(super) async fn visit(
    engine: &Engine,
    snapshot: Arc<Snapshot>,
    surroundings: Surroundings,
    argv: Option<Vec<OsString>>,
    secrets: &HashMap<BString, SecretBytes>,
    timeout: Option<Duration>,
    cancel: &CancellationToken,
) -> Result<Visited, Failure> {
    let secret = |name: &BString| secrets.get(name).cloned();
    let ended = if Screen::Stdout.has_user() {
        let (visitor, lent) = Screen::Stdout.lend();
        let visitor = Visitor { timeout, ..visitor };
        let visit = engine.visit(snapshot, surroundings, argv, secret, visitor, cancel);
        let (ended, lent) = tokio::join!(visit, lent.until_end(cancel));
        // Why the command did not run matters more.
        if ended.is_ok() {
            lent.map_err(Failure::Terminal)?;
        }
        ended
    } else {
        let (visitor, piped) = Piped::new().map_err(Failure::Runtime)?;
        let visitor = Visitor { timeout, ..visitor };
        let visit = engine.visit(snapshot, surroundings, argv, secret, visitor, cancel);
        tokio::join!(visit, piped.until_end()).0
    };
    ended.map_err(|error: BuildError| Arc::new(error).into())
}

/// Returns the exit code that says how a command ended, and tells of a limit that it came up against.
pub(super) fn ended(ended: Result<Visited, Failure>) -> Result<ExitCode, Failure> {
    let ended = ended.map_err(|failure| Failure::Instead(Box::new(failure)))?;
    if ended.limit.is_some() && !ended.status.success() {
        tell(format_args!("note: the command {}", ended.describe()));
    }
    let code = match ended.status {
        ExitStatus::Code(code) => code,
        // As a shell has it.
        ExitStatus::Signal(signal) => 128 + signal,
    };
    Ok(ExitCode::from(u8::try_from(code & 0xff).expect("eight bits")))
}
