//! What a job is to do, as plain values.

use std::fmt;

use crate::error::Error;
use crate::generated::ocluster_capnp::{docker_build, job_descr};
use crate::text::{bytes, length, text, texts};
use bstr::BString;

/// What a client asks for.
///
/// Texts are bytes: OCaml's programs send what their users typed, which need not be UTF-8. Nothing is checked here but what the
/// wire itself demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobDescription {
    /// What to do.
    pub action: Action,
    /// Jobs with the same hint share cached work: they go where one of them ran before. May be empty: no hint.
    pub cache_hint: BString,
    /// The URL of the git repository with the sources. Empty: no sources.
    pub repository: BString,
    /// The commits to build: the first is checked out and the others are merged into it. Empty: no sources.
    pub commits: Vec<BString>,
    /// Values that the job may read while it runs.
    pub secrets: Vec<Secret>,
}

/// The kinds of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A Docker build.
    DockerBuild(DockerBuild),
    /// A build by a spec, which this is the text of.
    OBuilder(BString),
    /// A job of a kind that only some workers know.
    Custom {
        /// The kind's name.
        kind: BString,
        /// What the client sent, as the root of a Cap'n Proto message in the standard framing for streams. Capabilities in it are lost.
        payload: Vec<u8>,
    },
}

/// Where a Docker build's recipe is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dockerfile {
    /// This is its text.
    Contents(BString),
    /// It is this file of the sources.
    Path(BString),
}

/// What a Docker build is given.
#[derive(Clone, PartialEq, Eq)]
pub struct DockerBuild {
    /// The recipe.
    pub dockerfile: Dockerfile,
    /// The repository and tag to push the image to. Empty: it is not pushed.
    pub push_target: BString,
    /// The user who pushes.
    pub push_user: BString,
    /// That user's password. Never shown.
    pub push_password: BString,
    /// `NAME=VALUE`, as `docker build --build-arg` takes them.
    pub build_args: Vec<BString>,
    /// One layer for the whole build.
    pub squash: bool,
    /// Build with BuildKit.
    pub buildkit: bool,
    /// Leave `.git` in the sources.
    pub include_git: bool,
}

impl fmt::Debug for DockerBuild {
    /// The password is left out: descriptions are logged. Arguments and recipes are not: they are no secrets to Docker either.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerBuild")
            .field("dockerfile", &self.dockerfile)
            .field("push_target", &self.push_target)
            .field("push_user", &self.push_user)
            .field("build_args", &self.build_args)
            .field("squash", &self.squash)
            .field("buildkit", &self.buildkit)
            .field("include_git", &self.include_git)
            .finish_non_exhaustive()
    }
}

/// A value that only its job may see.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// What the spec or recipe calls it.
    pub id: BString,
    /// The value.
    pub value: BString,
}

impl fmt::Debug for Secret {
    /// The value is left out: descriptions are logged.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("id", &self.id).finish_non_exhaustive()
    }
}

impl JobDescription {
    /// Reads the description out of a message.
    pub(crate) fn read(job: job_descr::Reader<'_>) -> Result<Self, capnp::Error> {
        let action = match job.get_action().which()? {
            job_descr::action::DockerBuild(build) => Action::DockerBuild(DockerBuild::read(build?)?),
            job_descr::action::Obuilder(build) => Action::OBuilder(bytes(build?.get_spec()?)),
            job_descr::action::Custom(custom) => {
                let custom = custom?;
                let mut message = capnp::message::Builder::new_default();
                message.set_root(custom.get_payload())?;
                let payload = capnp::serialize::write_message_to_words(&message);
                Action::Custom { kind: bytes(custom.get_kind()?), payload }
            }
        };
        Ok(Self {
            action,
            cache_hint: bytes(job.get_cache_hint()?),
            repository: bytes(job.get_repository()?),
            commits: texts(job.get_commits()?)?,
            secrets: job
                .get_secrets()?
                .iter()
                .map(|secret| Ok(Secret { id: bytes(secret.get_id()?), value: bytes(secret.get_value()?) }))
                .collect::<Result<_, capnp::Error>>()?,
        })
    }

    /// Returns the description as a message, in the standard framing for streams.
    ///
    /// # Errors
    ///
    /// The payload of a job of another kind is no message.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut message = capnp::message::Builder::new_default();
        self.write(message.init_root())?;
        Ok(capnp::serialize::write_message_to_words(&message))
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// It is no such message.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, Error> {
        let mut options = capnp::message::ReaderOptions::new();
        options.traversal_limit_in_words(Some(bytes.len()));
        let message = capnp::serialize::read_message_from_flat_slice(&mut bytes, options)?;
        Ok(Self::read(message.get_root()?)?)
    }

    /// Returns whether something in it must not be seen by others: a secret, or a password.
    pub fn has_secrets(&self) -> bool {
        let password = matches!(&self.action, Action::DockerBuild(build) if !build.push_password.is_empty());
        password || !self.secrets.is_empty()
    }

    /// Returns the description without what must not be seen by others.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut without = self.clone();
        without.secrets.clear();
        if let Action::DockerBuild(build) = &mut without.action {
            build.push_password.clear();
        }
        without
    }

    /// Returns the description with what must not be seen by others from another of the same job.
    #[must_use]
    pub fn with_secrets_of(mut self, other: &Self) -> Self {
        self.secrets.clone_from(&other.secrets);
        if let (Action::DockerBuild(build), Action::DockerBuild(other)) = (&mut self.action, &other.action) {
            build.push_password.clone_from(&other.push_password);
        }
        self
    }

    /// Writes the description into a message.
    pub(crate) fn write(&self, mut job: job_descr::Builder<'_>) -> Result<(), capnp::Error> {
        job.set_cache_hint(text(&self.cache_hint));
        job.set_repository(text(&self.repository));
        let mut commits = job.reborrow().init_commits(length(self.commits.len())?);
        for (index, commit) in (0..).zip(&self.commits) {
            commits.set(index, text(commit));
        }
        let mut secrets = job.reborrow().init_secrets(length(self.secrets.len())?);
        for (index, secret) in (0..).zip(&self.secrets) {
            let mut into = secrets.reborrow().get(index);
            into.set_id(text(&secret.id));
            into.set_value(text(&secret.value));
        }
        let mut action = job.init_action();
        match &self.action {
            Action::DockerBuild(build) => build.write(action.init_docker_build())?,
            Action::OBuilder(spec) => action.init_obuilder().set_spec(text(spec)),
            Action::Custom { kind, payload } => {
                let mut custom = action.reborrow().init_custom();
                custom.set_kind(text(kind));
                let message = capnp::serialize::read_message(payload.as_slice(), capnp::message::ReaderOptions::new())?;
                custom.get_payload().set_as(message.get_root::<capnp::any_pointer::Reader<'_>>()?)?;
            }
        }
        Ok(())
    }
}

impl DockerBuild {
    fn read(build: docker_build::Reader<'_>) -> Result<Self, capnp::Error> {
        Ok(Self {
            dockerfile: match build.get_dockerfile().which()? {
                docker_build::dockerfile::Contents(contents) => Dockerfile::Contents(bytes(contents?)),
                docker_build::dockerfile::Path(path) => Dockerfile::Path(bytes(path?)),
            },
            push_target: bytes(build.get_push_target()?),
            push_user: bytes(build.get_push_user()?),
            push_password: bytes(build.get_push_password()?),
            build_args: texts(build.get_build_args()?)?,
            squash: build.get_squash(),
            buildkit: build.get_buildkit(),
            include_git: build.get_include_git(),
        })
    }

    fn write(&self, mut build: docker_build::Builder<'_>) -> Result<(), capnp::Error> {
        let mut dockerfile = build.reborrow().init_dockerfile();
        match &self.dockerfile {
            Dockerfile::Contents(contents) => dockerfile.set_contents(text(contents)),
            Dockerfile::Path(path) => dockerfile.set_path(text(path)),
        }
        build.set_push_target(text(&self.push_target));
        build.set_push_user(text(&self.push_user));
        build.set_push_password(text(&self.push_password));
        build.set_squash(self.squash);
        build.set_buildkit(self.buildkit);
        build.set_include_git(self.include_git);
        let mut arguments = build.init_build_args(length(self.build_args.len())?);
        for (index, argument) in (0..).zip(&self.build_args) {
            arguments.set(index, text(argument));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = BString> {
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(BString::from)
    }

    fn list() -> impl Strategy<Value = Vec<BString>> {
        proptest::collection::vec(bytes(), 0..4)
    }

    fn action() -> impl Strategy<Value = Action> {
        let dockerfile = prop_oneof![bytes().prop_map(Dockerfile::Contents), bytes().prop_map(Dockerfile::Path)];
        let docker = (dockerfile, bytes(), bytes(), bytes(), list(), any::<[bool; 3]>()).prop_map(
            |(dockerfile, push_target, push_user, push_password, build_args, [squash, buildkit, include_git])| {
                Action::DockerBuild(DockerBuild {
                    dockerfile,
                    push_target,
                    push_user,
                    push_password,
                    build_args,
                    squash,
                    buildkit,
                    include_git,
                })
            },
        );
        let custom = (bytes(), bytes()).prop_map(|(kind, content)| {
            let mut message = capnp::message::Builder::new_default();
            let mut root: capnp::any_pointer::Builder<'_> = message.init_root();
            root.set_as::<capnp::data::Owned>(&content[..]).expect("bytes are data");
            Action::Custom { kind, payload: capnp::serialize::write_message_to_words(&message) }
        });
        prop_oneof![docker, bytes().prop_map(Action::OBuilder), custom]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            (action, cache_hint, repository, commits) in (action(), bytes(), bytes(), list()),
            secrets in proptest::collection::vec((bytes(), bytes()).prop_map(|(id, value)| Secret { id, value }), 0..4),
        ) {
            let description = JobDescription { action, cache_hint, repository, commits, secrets };
            let mut message = capnp::message::Builder::new_default();
            description.write(message.init_root()).expect("it is written");
            let read = message.get_root_as_reader().and_then(JobDescription::read);
            prop_assert_eq!(&read.expect("it is read"), &description);
            let bytes = description.to_bytes().expect("it is written");
            prop_assert_eq!(&JobDescription::from_bytes(&bytes).expect("it is read"), &description);
            let without = description.without_secrets();
            prop_assert!(!without.has_secrets());
            prop_assert_eq!(&without.clone().with_secrets_of(&description), &description);
            prop_assert_eq!(without == description, !description.has_secrets());
        }
    }

    #[test]
    fn secrets_and_passwords_are_not_in_debug_output() {
        let build = DockerBuild {
            dockerfile: Dockerfile::Path("Dockerfile".into()),
            push_target: "".into(),
            push_user: "user".into(),
            push_password: "hunter2".into(),
            build_args: vec![],
            squash: false,
            buildkit: false,
            include_git: false,
        };
        let secret = Secret { id: "token".into(), value: "hunter2".into() };
        assert!(!format!("{build:?} {secret:?}").contains("hunter2"));
    }
}
