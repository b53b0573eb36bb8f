//! How the program ends: one place that prints errors and picks the exit code.

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::{ContextKind, ContextValue};
use kiln_engine::{BuildError, Fault};
use kiln_image::RegistryError;
use kiln_image::export::ExportError;
use kiln_sandbox::{RootlessError, SandboxError};
use kiln_scheduler::SchedulerError;
use kiln_scheduler::state::copy::CopyError;
use kiln_scheduler::state::{DatabaseError, StateError};
use kiln_store::StoreError;
use kiln_worker::agent::AgentError;
use kiln_worker::context::ContextError;
use thiserror::Error;

use crate::limits;
use crate::peer::PeerError;
use crate::personality::{self, Voice};
use crate::render::tell;
use crate::settings::DEFAULT_SPEC;

/// Why a command did not do what it was asked to.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Build(Arc<BuildError>),
    /// What ended `kiln run` or `kiln shell` other than their command.
    #[error(transparent)]
    Instead(Box<Failure>),
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot look into {what}: {reason}")]
    CannotVisit { what: String, reason: &'static str },
    #[error("cannot use --user {text}: expected a name, or UID:GID")]
    User { text: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("OCI runtimes need root; without it there is the native sandbox only (`--sandbox native`)")]
    RuntimeNeedsRoot,
    #[error(
        "`{wanted}` needs the native sandbox (`--sandbox native`): an OCI runtime's command has no terminal and reads nothing"
    )]
    NoTalk { wanted: &'static str },
    #[error(transparent)]
    Rootless(#[from] RootlessError),
    /// The excerpt is rendered already, its first line being the message.
    #[error("{0}")]
    Spec(String),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Only the id is shown: what follows it may be the value, by mistake.
    #[error("cannot use --secret {id}…: {reason}")]
    Secret { id: String, reason: String },
    #[error("there is no home directory for the store; set HOME, or give --store")]
    NoHome,
    #[error("{} is not in canonical form; see it with `kiln fmt {}`", path.display(), path.display())]
    NotCanonical { path: PathBuf },
    #[error("{} has comments, which the canonical form cannot keep", path.display())]
    HasComments { path: PathBuf },
    /// What could not be written, and where: `the image to FILE`.
    #[error("cannot write {what}")]
    Export {
        what: String,
        #[source]
        source: ExportError,
    },
    #[error("cannot set up access to registries")]
    Registry(#[source] RegistryError),
    /// Without the line itself: it may hold a password that does not belong there.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    ParseConfig { path: PathBuf, line: usize, column: usize, reason: String },
    #[error("{}:{line}: {reason}", path.display())]
    BadTrace { path: PathBuf, line: usize, reason: String },
    #[error("{} cannot be used", path.display())]
    BadRegistries {
        path: PathBuf,
        #[source]
        source: RegistryError,
    },
    #[error("SOURCE_DATE_EPOCH is {value:?}, which is not a number of seconds since 1970")]
    SourceDateEpoch { value: OsString },
    #[error("cannot export {what}: {reason}")]
    CannotExport { what: String, reason: &'static str },
    #[error("no limit is given, and no settings say one")]
    NoPolicy,
    /// In the words of the build that failed.
    #[error("the self-test failed: {reason}")]
    SelfTest { reason: String },
    #[error(
        "`--network-allow`, or `network_allow` in config.toml, is for a private network; add `--network-host private`"
    )]
    AllowsNothing,
    /// The start of an id, as given.
    #[error("nothing is kept of what {0} used")]
    NoStats(String),
    #[error("there is no home directory for the cluster; set HOME, or name a directory")]
    NoHomeForCluster,
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// A scheduler that was asked for something.
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Worker(#[from] AgentError),
    #[error("a worker's clones of repositories cannot be used")]
    Clones(#[from] ContextError),
    #[error("{path} is no key that can be used")]
    Key {
        path: String,
        #[source]
        source: kiln_api::KeyError,
    },
    #[error("schedulers that share a state need one key: name a file with --capnp-secret-key-file, the same for all")]
    KeyOfSeveral,
    #[error(
        "with the key {} this scheduler is known by {ours}, and those that share {place} are known by {theirs}",
        path.display()
    )]
    OtherKey { path: PathBuf, place: String, theirs: String, ours: String },
    #[error("the scheduler at {holder} serves with {place}")]
    Serves { place: String, holder: String },
    #[error("cannot use the database {place}: {why}")]
    NoDatabase { place: String, why: String },
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("{} is larger than {most}", path.display())]
    TooLarge { path: PathBuf, most: String },
    #[error("cancelled")]
    Cancelled,
    /// What was said before tells more.
    #[error("{0}")]
    Damaged(String),
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
}

impl From<Arc<BuildError>> for Failure {
    fn from(error: Arc<BuildError>) -> Self {
        Self::Build(error)
    }
}

impl Failure {
    /// Returns whose fault it is.
    pub(crate) fn fault(&self) -> Fault {
        match self {
            Self::Build(error) => error.fault(),
            Self::Instead(failure) => failure.fault(),
            Self::CannotVisit { .. }
            | Self::User { .. }
            | Self::Worker(AgentError::UnknownCapability | AgentError::WrongKey(_)) => Fault::Usage,
            Self::Store(
                StoreError::BadLocation { .. } | StoreError::NoSuchResult(_) | StoreError::Ambiguous { .. },
            ) => Fault::Usage,
            Self::Store(StoreError::HasChildren { .. } | StoreError::InUse(_) | StoreError::Pinned(_))
            | Self::NotCanonical { .. }
            | Self::Damaged(_) => Fault::Build,
            Self::Export { source, .. } if source.is_cancelled() => Fault::Cancelled,
            Self::Export { source, .. } if source.is_users_fault() => Fault::Usage,
            Self::Registry(error) if error.is_users_fault() => Fault::Usage,
            Self::ParseConfig { .. } | Self::BadTrace { .. } | Self::BadRegistries { .. } | Self::NoPolicy => {
                Fault::Usage
            }
            Self::NoStats(_) => Fault::Build,
            Self::AllowsNothing | Self::NoTalk { .. } => Fault::Usage,
            Self::Sandbox(SandboxError::Profile { .. }) => Fault::Usage,
            Self::Cancelled => Fault::Cancelled,
            Self::SourceDateEpoch { .. } | Self::CannotExport { .. } => Fault::Usage,
            Self::Export { .. } | Self::Registry(_) => Fault::Host,
            Self::Spec(_) | Self::Secret { .. } | Self::NoHome | Self::HasComments { .. } => Fault::Usage,
            // What the user named is not there.
            Self::Read { .. } => Fault::Usage,
            Self::SelfTest { .. } => Fault::Host,
            Self::Peer(error) if error.is_usage() => Fault::Usage,
            Self::Peer(error) if error.is_jobs() => Fault::Build,
            // Another version of this program has to be used.
            Self::Scheduler(SchedulerError::State(StateError::Open {
                source: DatabaseError::Newer { .. }, ..
            }))
            | Self::Copy(
                CopyError::State(StateError::Open { source: DatabaseError::Newer { .. }, .. })
                | CopyError::Read { source: DatabaseError::Newer { .. }, .. }
                | CopyError::NoDatabase(_)
                | CopyError::NotEmpty { .. },
            )
            | Self::Serves { .. } => Fault::Usage,
            Self::Peer(_) | Self::Scheduler(_) | Self::Copy(_) | Self::NoDatabase { .. } => Fault::Host,
            Self::Key { .. }
            | Self::KeyOfSeveral
            | Self::OtherKey { .. }
            | Self::TooLarge { .. }
            | Self::NoHomeForCluster => Fault::Usage,
            Self::Store(_)
            | Self::Sandbox(_)
            | Self::Rootless(_)
            | Self::Worker(AgentError::Key(_))
            | Self::Clones(_)
            | Self::RuntimeNeedsRoot
            | Self::Write { .. }
            | Self::Runtime(_)
            | Self::Terminal(_)
            | Self::Stdout(_) => Fault::Host,
        }
    }

    /// Returns what the user could do next.
    fn hint(&self) -> Option<String> {
        match self {
            Self::Instead(failure) => failure.hint(),
            Self::CannotVisit { reason: ONLY_LOG, what } => {
                Some(format!("see the log with `kiln log {what}`, or build again with --shell-on-failure"))
            }
            Self::Build(error) => match &**error {
                BuildError::StepFailed { id, limit: Some(limit), .. } => Some(format!(
                    "the log is kept; see it with `kiln log {}`, or allow more with `{}`",
                    id.short(),
                    limits::flag(limit)
                )),
                BuildError::StepFailed { id, .. } => {
                    Some(format!("the log is kept; see it with `kiln log {}`", id.short()))
                }
                BuildError::Sandbox { source: SandboxError::Limit { .. }, .. } => Some(UNKEPT_LIMIT.to_owned()),
                _ => None,
            },
            Self::Sandbox(SandboxError::Limit { .. }) | Self::Store(StoreError::CannotLimit { .. }) => {
                Some(UNKEPT_LIMIT.to_owned())
            }
            Self::Peer(error) => error.hint().map(str::to_owned),
            Self::Scheduler(SchedulerError::State(StateError::InUse { .. })) => {
                Some("end that one first, or give this one a directory of its own with `--state-dir`".to_owned())
            }
            Self::Copy(CopyError::State(StateError::InUse { .. })) => {
                Some("end it: what it changes while its state is copied would be lost".to_owned())
            }
            Self::Copy(CopyError::NotEmpty { .. }) => {
                Some("name a new database, as `createdb` makes it; what there is is left alone".to_owned())
            }
            Self::Serves { .. } => Some("end all schedulers of that database first".to_owned()),
            Self::OtherKey { .. } => Some(
                "give all the same `--capnp-secret-key-file`, with `--capnp-disable-tls` or without; how to give all another key is in \
                 docs/cluster.md"
                    .to_owned(),
            ),
            Self::NoStats(_) => {
                Some("only steps that ran a command have them, made by this version or a later one".to_owned())
            }
            Self::Store(StoreError::NoSuchResult(_)) => Some("see what there is with `kiln ls`".to_owned()),
            Self::Read { path, .. } if path.ends_with(DEFAULT_SPEC) => {
                Some("the spec is looked for there unless `--file` names another".to_owned())
            }
            Self::NoPolicy => Some(
                "give one, as `--max-size 20G`, or write `[prune]` and `max_size = \"20G\"` to /etc/kiln/config.toml"
                    .to_owned(),
            ),
            Self::HasComments { .. } => Some("keep a remark in the spec itself with `(comment \"…\")`".to_owned()),
            _ => None,
        }
    }
}

/// Why a failed step cannot be looked into.
pub(crate) const ONLY_LOG: &str = "the step failed, and only its log was kept";

/// The exit code where 1 or 3 would be taken for the command's, as other programs that start commands have it. Wrong usage is 2
/// everywhere, whoever finds it.
const INSTEAD: u8 = 125;

const UNKEPT_LIMIT: &str =
    "take the limit back, or see what it needs in docs/sandboxes.md; `kiln doctor` tells what this host can keep";

/// Returns the documented exit code of a fault.
fn code(fault: Fault) -> u8 {
    match fault {
        Fault::Build => 1,
        Fault::Usage => 2,
        Fault::Host => 3,
        Fault::Cancelled => 130,
    }
}

/// Prints why the program failed, if it did, and returns its exit code: as `voice` has it.
pub(crate) fn report(result: Result<ExitCode, Failure>, voice: Voice) -> ExitCode {
    let failure = match result {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    // Whoever reads our output has seen enough.
    if matches!(&failure, Failure::Stdout(error) if error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    if voice != Voice::Kiln {
        return personality::report(&failure, voice);
    }
    let fault = failure.fault();
    if fault == Fault::Cancelled {
        tell("cancelled");
        return ExitCode::from(code(fault));
    }
    let style = console::Style::new().for_stderr().red().bold();
    // Excerpts of a spec have colours of their own, and are made harmless where they are made.
    let message = if matches!(failure, Failure::Spec(_)) { failure.to_string() } else { escaped(&failure.to_string()) };
    tell(format_args!("{} {message}", style.apply_to("error:")));
    let mut cause = failure.source();
    while let Some(error) = cause {
        tell(format_args!("  caused by: {}", escaped(&error.to_string())));
        cause = error.source();
    }
    if let Some(hint) = failure.hint() {
        tell(format_args!("\n{} {hint}", console::Style::new().for_stderr().cyan().apply_to("hint:")));
    }
    match failure {
        Failure::Instead(_) if fault != Fault::Usage => ExitCode::from(INSTEAD),
        _ => ExitCode::from(code(fault)),
    }
}

/// Prints what is wrong with the arguments, or the help that they ask for, and ends the program.
pub(crate) fn refuse(mut error: clap::Error) -> ! {
    // It repeats the words that it does not take.
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        if let Some(ContextValue::String(word)) = error.get(kind) {
            let word = without_credentials(word);
            error.insert(kind, ContextValue::String(word));
        }
    }
    error.exit()
}

/// Returns a word with `***` for the user and password of a URL in it, or of what may have been meant for one.
fn without_credentials(word: &str) -> String {
    let Some((before, after)) = word.rsplit_once('@') else { return word.to_owned() };
    let (start, credentials) =
        before.split_once("://").map_or(("", before), |(scheme, rest)| (&before[..scheme.len() + 3], rest));
    // `name@sha256:…` has no password.
    if start.is_empty() && !credentials.contains(':') || after.starts_with("sha256:") {
        return word.to_owned();
    }
    format!("{start}***@{after}")
}

/// Returns a message whose words may be a stranger's, a registry's or an image's, so that a terminal shows them and does
/// nothing else.
fn escaped(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    for c in message.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_repeated() {
        for (word, shown) in [
            ("http://me:secret@proxy:1", "http://***@proxy:1"),
            ("https://me:p@ss/word@proxy", "https://***@proxy"),
            ("--proxy=ftp://token@host/x", "--proxy=ftp://***@host/x"),
            ("me:secret@proxy:3128", "***@proxy:3128"),
            ("someone@example.com", "someone@example.com"),
            ("host:5000/app@sha256:00", "host:5000/app@sha256:00"),
            ("http://proxy", "http://proxy"),
        ] {
            assert_eq!(without_credentials(word), shown);
        }
    }
}
