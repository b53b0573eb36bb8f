//! The parsed spec. Names, paths and commands are bytes, not UTF-8: an atom may hold anything.
//!
//! Every value that the types allow can be printed, and reads back equal if its builds are not nested too deeply (see
//! [`MAX_DEPTH`](crate::MAX_DEPTH)), its uids and gids are below [`u32::MAX`], and each [`Source::Build`] is in scope.

use bstr::BString;

/// A stage: a base image and what to do on top of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The stages that this one, and those nested in it, may copy from. If two share a name, the later wins.
    pub builds: Vec<Build>,
    /// The base image.
    pub from: BString,
    /// The operations, in order.
    pub ops: Vec<Op>,
}

/// A stage with a name, for [`Source::Build`] to refer to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Build {
    /// The name: any text.
    pub name: BString,
    /// The stage.
    pub spec: Spec,
}

/// One operation of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A remark for the reader of the build's log.
    Comment(BString),
    /// Sets the working directory: absolute, or relative to the present one.
    Workdir(BString),
    /// Sets the argv that the command of a later [`Op::Run`] is appended to.
    Shell(Vec<BString>),
    /// Sets an environment variable.
    Env {
        /// The variable.
        name: BString,
        /// Its new value.
        value: BString,
    },
    /// Sets the user of later commands and the owner of later copies.
    User(User),
    /// Runs a command.
    Run(Run),
    /// Copies files into the image.
    Copy(Copy),
}

/// Who runs commands and owns copied files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum User {
    /// By number, as on Unix.
    Unix {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// By name, as on Windows.
    Named(BString),
}

/// A command and what it may use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// Caches to mount.
    pub caches: Vec<Cache>,
    /// Networks to join; none: loopback only.
    pub networks: Vec<BString>,
    /// Secrets to mount.
    pub secrets: Vec<Secret>,
    /// The last argument of the shell.
    pub command: BString,
}

/// A named directory that outlives the step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cache {
    /// The name: any text.
    pub name: BString,
    /// Where it is mounted.
    pub target: BString,
    /// Options for BuildKit's `--mount`; used in Dockerfiles only.
    pub buildkit_options: Vec<(BString, BString)>,
}

/// A value that must not be kept, as a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Secret {
    /// The name by which the caller provides the value.
    pub name: BString,
    /// Where the file is mounted; `/run/secrets/NAME` if the text did not say.
    pub target: BString,
    /// Options for BuildKit's `--mount`; used in Dockerfiles only.
    pub buildkit_options: Vec<(BString, BString)>,
}

/// Files to copy into the image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Copy {
    /// Where `src` is looked up.
    pub source: Source,
    /// What to copy.
    pub src: Vec<BString>,
    /// Where to: a directory if it ends in `/`, else the new name of the one item of `src`.
    pub dst: BString,
    /// Base names to leave out, at any depth.
    pub exclude: Vec<BString>,
}

/// Where an [`Op::Copy`] takes its files from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The user's source directory.
    Context,
    /// The result of the build of this name.
    Build(BString),
}
