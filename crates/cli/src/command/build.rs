//! `kiln build`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bstr::{BString, ByteSlice};
use kiln_engine::{Built, Engine, Events, Request, Settings};
use kiln_image::{Images, ImagesSettings, Notices};
use kiln_sandbox::SecretBytes;

use super::{cancel_on_signals, export, failure, maintain, print, runtime};
use crate::args::{self, Progress};
use crate::config::Policy;
use crate::exit::Failure;
use crate::personality::Voice;
use crate::render::{self, Json, Pausable, Plain, Quiet, Tty};
use crate::settings::{DEFAULT_SPEC, default_jobs, open_store, registries};

/// Larger ones are no secrets but data.
const MAX_SECRET_BYTES: u64 = 256 << 10;

pub(super) fn run(arguments: args::Build, verbose: bool, voice: Voice) -> Result<(), Failure> {
    let file = arguments.file.clone().unwrap_or_else(|| arguments.dir.join(DEFAULT_SPEC));
    let (_, spec) = super::spec::read(&file)?;
    let mut request = Request {
        spec,
        spec_dir: file.parent().filter(|_| file != Path::new("-")).map_or_else(PathBuf::new, Path::to_owned),
        source: arguments.dir.clone(),
        secrets: secrets(&arguments.secrets)?,
        no_cache: arguments.no_cache,
        pull: arguments.base_images.pull,
        target: arguments.target.clone().map(BString::from),
        failures: None,
    };
    let is_exported = export::is_wanted(&arguments.output)?;
    let Shown { events, notices, shows_logs } = match voice {
        Voice::OBuilder => Shown::by(Plain::on_stdout(), Plain::notice, |_, _| {}, true),
        Voice::Kiln | Voice::OCluster => Shown::new(&arguments.show, verbose),
    };
    let (failures, failed) = failure::channel(arguments.shell_on_failure);
    request.failures = failures;
    let tell = notices.clone();
    let images = Images::new(ImagesSettings {
        platform: arguments.base_images.platform.clone().unwrap_or_default(),
        registry: registries(&arguments.registry, notices)?,
        ..ImagesSettings::default()
    });
    let policy = Policy::read(arguments.config.config.as_deref())?;
    let store = Arc::new(open_store(&arguments.store)?.with_digests(arguments.verify));
    let policy_of_steps = arguments.policy().with_files(arguments.config.config.as_deref())?;
    let mut isolation = policy_of_steps.isolation()?;
    store.check_quota(&isolation.quota)?;
    let kind = policy_of_steps.sandbox.unwrap_or_default();
    if arguments.shell_on_failure {
        kind.check_talk("--shell-on-failure")?;
    }
    let sandbox = kind.open(&policy_of_steps.limits, &mut isolation, |text| tell.tell(text))?;
    let settings = Settings { jobs: arguments.jobs.map_or_else(default_jobs, usize::from), isolation };
    let engine = Engine::new(Arc::clone(&store), sandbox, Arc::new(images.clone()), settings);
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    let build = async {
        let building = async {
            let built = engine.build(request, Arc::clone(&events) as _, &cancel).await.map_err(Failure::from);
            engine.idle().await;
            built
        };
        let (built, ()) = tokio::join!(building, failure::shell(failed, &events, &cancel));
        let Built { snapshot, runs_as } = built?;
        if is_exported {
            let events: Arc<dyn Events> = Arc::clone(&events) as _;
            export::export(&store, &snapshot, Some(runs_as), &arguments.output, &images, &events, &cancel).await?;
        }
        Ok(snapshot)
    };
    let built = runtime()?.block_on(async {
        tokio::select! {
            built = build => built,
            never = maintain::now_and_then(&store, &policy) => match never {},
        }
    });
    // Takes its last lines off the terminal before anything else is printed.
    drop(events);
    if !arguments.no_maintenance {
        maintain::start(&store, &policy);
    }
    match built {
        Ok(_) if export::takes_stdout(&arguments.output) => Ok(()),
        Ok(snapshot) if voice == Voice::OBuilder => print(format!("Got: \"{}\"\n", snapshot.id())),
        Ok(snapshot) => print(format!("{}\n", snapshot.id())),
        Err(failure) => {
            if !shows_logs && let Failure::Build(error) = &failure {
                render::failed_log(&store, error);
            }
            Err(failure)
        }
    }
}

/// What shows a build.
pub(super) struct Shown {
    pub(super) events: Arc<Pausable>,
    /// Hears why registries take longer. Shows nothing any more once `events` are gone.
    pub(super) notices: Notices,
    /// Whether the events show the logs of steps.
    pub(super) shows_logs: bool,
}

impl Shown {
    pub(super) fn new(show: &args::ShowArgs, verbose: bool) -> Self {
        let is_terminal = console::user_attended_stderr();
        match show.progress {
            _ if show.quiet => Self {
                events: Arc::new(Pausable::new(Arc::new(Quiet), |_| {})),
                notices: Notices::default(),
                shows_logs: false,
            },
            Progress::Json => Self::by(Json::default(), Json::notice, |_, _| {}, true),
            Progress::Tty | Progress::Auto if is_terminal => Self::by(Tty::new(verbose), Tty::notice, Tty::hide, false),
            Progress::Tty | Progress::Auto | Progress::Plain => {
                Self::by(Plain::default(), Plain::notice, |_, _| {}, true)
            }
        }
    }

    fn by<E: Events + 'static>(events: E, notice: fn(&E, &str), hide: fn(&E, bool), shows_logs: bool) -> Self {
        let events = Arc::new(events);
        let weak = Arc::downgrade(&events);
        let last = Mutex::new(String::new());
        let notices = Notices::to(move |text| {
            // Downloads side by side often have the same to say.
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if *last != text
                && let Some(events) = weak.upgrade()
            {
                text.clone_into(&mut last);
                notice(&events, &render::one_line(text));
            }
        });
        let hidden = Arc::clone(&events);
        let events = Arc::new(Pausable::new(events, move |hides| hide(&hidden, hides)));
        Self { events, notices, shows_logs }
    }
}

/// Reads the values of `--secret ID:FILE` and `--secret ID=env:VAR`.
pub(super) fn secrets(given: &[std::ffi::OsString]) -> Result<HashMap<BString, SecretBytes>, Failure> {
    let mut secrets = HashMap::new();
    for text in given {
        let bytes = text.as_bytes();
        // An id may hold neither sign, so the first of them says which form it is.
        let at = bytes.find_byteset(b":=");
        let id = bytes[..at.unwrap_or(0)].to_str_lossy().into_owned();
        let bad = |reason: &str| Failure::Secret { id: id.clone(), reason: reason.to_owned() };
        let at = at.filter(|at| *at > 0).ok_or_else(|| bad("expected ID:FILE or ID=env:VAR"))?;
        let (id, rest) = (&bytes[..at], &bytes[at + 1..]);
        let value = if bytes[at] == b':' {
            let path = PathBuf::from(OsStr::from_bytes(rest));
            let mut value = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut value));
            read.map_err(|source| Failure::Read { path, source })?;
            if value.len() as u64 > MAX_SECRET_BYTES {
                return Err(bad("the file is larger than 256 KiB"));
            }
            value
        } else {
            let variable = rest.strip_prefix(b"env:").ok_or_else(|| bad("expected ID=env:VAR"))?;
            let value = std::env::var_os(OsStr::from_bytes(variable));
            value.ok_or_else(|| bad("the environment variable is not set"))?.as_bytes().to_vec()
        };
        secrets.insert(id.into(), SecretBytes::new(value));
    }
    Ok(secrets)
}
