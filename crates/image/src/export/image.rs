//! What is exported, where to, and how.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde_json::Value;

use crate::{Digest, ImageName, Registry};

/// An image to be written: its steps, and what it says of itself.
#[derive(Debug)]
pub struct Image {
    /// The processor, in the words of images: `amd64`, `arm64`.
    pub architecture: String,
    /// The operating system: `linux`.
    pub os: String,
    /// The processor's variant: `v8`.
    pub variant: Option<String>,
    /// What it stands on.
    pub base: Base,
    /// What was done on top, from the lowest.
    pub steps: Vec<Step>,
    /// How it is to be run, over what the base image says.
    pub overrides: Overrides,
    /// When its last result was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// The names it gets. A digest in them is left out.
    pub names: Vec<ImageName>,
}

/// The image that another stands on.
#[derive(Debug, Default)]
pub struct Base {
    /// Its layers, from the lowest.
    pub steps: Vec<Step>,
    /// Its configuration's `config` object; null if it has none.
    pub config: Value,
    /// Its configuration's `history`. It is used if it tells of as many layers as there are steps; else the steps'
    /// own history is.
    pub history: Vec<Value>,
}

/// One step: an entry of the image's history and, if it can change files, a layer.
#[derive(Debug)]
pub struct Step {
    /// What is told of it.
    pub history: History,
    /// `None` for what changes no files: an environment variable, a working directory.
    pub layer: Option<LayerSource>,
}

/// What an image tells of a step.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The operation.
    pub created_by: String,
    /// More about it.
    pub comment: Option<String>,
    /// When, in milliseconds since 1970.
    pub created_ms: u64,
}

/// A layer that is made when it is needed, and not made if the destination has it.
pub struct LayerSource {
    /// Identifies the layer's content for ever: the id of the result and when that was made.
    pub key: String,
    /// Opens the trees. Called from any thread; may block, and may be called more than once or never.
    pub open: Box<OpenTrees>,
}

/// See [`LayerSource::open`].
pub type OpenTrees = dyn Fn() -> io::Result<Opened> + Send + Sync;

/// The trees that a layer lies between. Nobody writes to them while they are open.
#[derive(Debug)]
pub struct Opened {
    /// The root directory of what lies below; `None` if nothing does.
    pub below: Option<OwnedFd>,
    /// The root directory of the result.
    pub tree: OwnedFd,
    /// A directory that names all that may differ between the two. It only shortens the search.
    pub own: Option<PathBuf>,
}

impl fmt::Debug for LayerSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerSource").field("key", &self.key).finish_non_exhaustive()
    }
}

/// How an image is to be run. What is `None` is as in the base image.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The whole environment.
    pub env: Option<Vec<(String, String)>>,
    /// Where the process starts.
    pub working_dir: Option<String>,
    /// As whom: `USER`, `UID:GID`.
    pub user: Option<String>,
    /// What is always run. The base image's `cmd` is dropped then, as it was meant for another program.
    pub entrypoint: Option<Vec<String>>,
    /// What is run, or given to the entry point, if the user says nothing else.
    pub cmd: Option<Vec<String>>,
    /// What runs the text of later build steps.
    pub shell: Option<Vec<String>>,
    /// Labels beside those of the base image.
    pub labels: BTreeMap<String, String>,
}

/// How to export.
#[derive(Clone, Debug)]
pub struct Options {
    /// How layers and tar archives are packed.
    pub compression: Compression,
    /// Seconds since 1970: no time in the image is later, and it is when all steps were made. With it, the same input
    /// gives the same bytes on every machine.
    pub source_date_epoch: Option<u64>,
    /// Makes one layer of the whole tree.
    pub squash: bool,
    /// Where temporary files go: layers, until the destination has them. They have no names.
    pub temp_dir: PathBuf,
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compression {
    /// Read by everything.
    #[default]
    Gzip,
    /// Smaller and faster; read by containerd, Podman and Docker since about 2021.
    Zstd,
    /// Not at all.
    None,
}

/// Where an image goes.
#[derive(Debug)]
pub enum Destination {
    /// A directory in the OCI layout. Images that are there stay, but for those with the same name.
    OciLayout {
        /// The directory; it is made if it does not exist.
        dir: PathBuf,
        /// The image's tag in there, beside its names. The image is called `latest` if it has neither.
        tag: Option<String>,
    },
    /// One tar file in the OCI layout.
    OciArchive {
        /// The file.
        output: Output,
        /// As above.
        tag: Option<String>,
    },
    /// A tar file for `docker load`: an OCI layout with a `manifest.json` beside.
    DockerArchive(Output),
    /// A repository of a registry.
    Registry {
        /// The client.
        registry: Registry,
        /// Which repository, and with which tag; `latest` if it has none.
        name: ImageName,
    },
    /// The whole tree of the last layer as a tar file.
    Tar(Output),
    /// The whole tree of the last layer in a directory, which must be empty or not exist.
    Dir(PathBuf),
}

/// A file to be written.
#[derive(Debug)]
pub enum Output {
    /// By its path. It appears when it is whole, and replaces what was there.
    File(PathBuf),
    /// An open file or pipe: standard output.
    Stream(File),
}

/// What was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Written {
    /// The digest of the image's manifest; `None` for a tree.
    pub manifest: Option<Digest>,
    /// The digest of the image's configuration, which Docker calls the image's id; `None` for a tree.
    pub config: Option<Digest>,
    /// Bytes of layers as stored, or of the tree's archive or files.
    pub bytes: u64,
    /// Layers that the image has, those without content left out.
    pub layers: usize,
}

/// What is known of layers that were made before.
///
/// A lost or wrong answer costs time only: what it says is checked or made again. Called from several threads;
/// failures are the implementation's to report.
pub trait Memory: Send + Sync {
    /// Returns what was remembered under `question`.
    fn recall(&self, question: &str) -> Option<String>;
    /// Remembers an answer; may forget it.
    fn remember(&self, question: &str, answer: &str);
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forgetful;

impl Memory for Forgetful {
    fn recall(&self, _question: &str) -> Option<String> {
        None
    }

    fn remember(&self, _question: &str, _answer: &str) {}
}
