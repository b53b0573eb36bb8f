//! Images that other programs of this machine keep: Docker's daemon, and the storage that Podman, Buildah and Skopeo share.
//!
//! The programs are asked what an image is, which is cheap, and to write it as an archive of `docker save` into a file
//! without a name. What comes out is checked against what they said.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::error::At;
use crate::fetch::Plan as AnyPlan;
use crate::layers::{Part, chain};
use crate::oci::{Config, Wanted};
use crate::stream::Section;
use crate::temporary::nameless;
use crate::{Digest, ImageError, Layer, Limits, Resolved, container, docker};

/// How much of what a program says of its failure is kept, and how many lines of it are shown.
const SAID: u64 = 16 << 10;
const LAST_LINES: usize = 10;

/// A program that keeps images.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Keeper {
    Docker,
    Podman,
    Skopeo,
    Buildah,
}

/// The programs that can read the containers' storage, the best first.
pub(crate) const CONTAINERS: &[Keeper] = &[Keeper::Podman, Keeper::Skopeo, Keeper::Buildah];
pub(crate) const DOCKER: &[Keeper] = &[Keeper::Docker];

/// An image that a program keeps.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    keeper: Keeper,
    /// Its id, as the program writes it; the name where it may be another.
    target: String,
}

/// What Docker and Podman say of an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Kept {
    id: String,
    #[serde(default)]
    architecture: Value,
    #[serde(default)]
    os: Value,
    #[serde(default)]
    variant: Value,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    history: Value,
    #[serde(rename = "RootFS")]
    root_fs: Value,
}

/// What Buildah says of an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Built {
    #[serde(rename = "FromImageID")]
    from_image_id: String,
    config: String,
}

/// Finds the image `name` of the first of `keepers` that is installed.
pub(crate) async fn resolve(
    keepers: &[Keeper],
    name: &str,
    environment: &[(OsString, OsString)],
    wanted: Wanted<'_>,
) -> Result<Resolved, ImageError> {
    let mut missing = None;
    for &keeper in keepers {
        let arguments = keeper.inspect(name);
        match run(keeper, &arguments, environment, Stdio::piped(), wanted.limits).await {
            Err(error @ ImageError::NoProgram { .. }) => drop(missing.get_or_insert(error)),
            Err(ImageError::Failed { last, .. }) if says_unknown(&last) => {
                return Err(ImageError::NotKept { name: name.to_owned(), program: keeper.program() });
            }
            told => return understand(keeper, name, &told?, wanted),
        }
    }
    Err(missing.expect("somebody keeps images"))
}

fn says_unknown(last: &[String]) -> bool {
    const WORDS: [&str; 3] = ["No such image", "image not known", "identifier is not an image"];
    last.iter().any(|line| WORDS.iter().any(|words| line.contains(words)))
}

fn understand(keeper: Keeper, name: &str, told: &[u8], wanted: Wanted<'_>) -> Result<Resolved, ImageError> {
    let path = Path::new(name);
    let document = keeper.document();
    let (id, config) = match keeper {
        Keeper::Docker | Keeper::Podman => {
            let kept: Vec<Kept> = container::parse(path, document, told)?;
            let kept = kept.into_iter().next().ok_or_else(|| ImageError::NoImage { path: path.to_owned() })?;
            let config = json!({
                "architecture": kept.architecture, "os": kept.os, "variant": kept.variant,
                "config": kept.config, "history": kept.history,
                "rootfs": { "diff_ids": kept.root_fs["Layers"] },
            });
            (kept.id, config.to_string().into_bytes())
        }
        Keeper::Buildah => {
            let built: Built = container::parse(path, document, told)?;
            (built.from_image_id, built.config.into_bytes())
        }
        // The configuration as it is, behind which a line may end.
        Keeper::Skopeo => (Digest::of(told.trim_ascii_end()).to_string(), told.to_owned()),
    };
    let id = container::digest(path, document, &format!("sha256:{}", id.trim_start_matches("sha256:")))?;
    let (config, diffs) = Config::read(path, document, &config, None, wanted)?;
    let mut layers: Vec<Layer> = Vec::new();
    for diff in diffs {
        let below = layers.last().map(|layer| layer.chain);
        layers.push(Layer { chain: chain(below, diff), diff, stored: None, bytes: 0 });
    }
    let plan = if layers.is_empty() {
        AnyPlan::Scratch
    } else {
        AnyPlan::Kept(Plan { keeper, target: keeper.target(name, id) })
    };
    Ok(Resolved { identity: format!("docker {id}"), config, layers, plan })
}

/// Has the image written into a file in `temp`. Returns its layers from number `from` on.
pub(crate) async fn parts(
    plan: &Plan,
    layers: &[Layer],
    from: usize,
    environment: &[(OsString, OsString)],
    temp: &Path,
    (limits, cancel): (&Limits, &CancellationToken),
) -> Result<Vec<Part>, ImageError> {
    let Plan { keeper, target } = plan;
    let file = nameless(temp).at_write(temp)?;
    let output = Stdio::from(file.try_clone().at_write(temp)?);
    let arguments = keeper.save(target);
    tokio::select! {
        saved = run(*keeper, &arguments, environment, output, limits) => drop(saved?),
        // It is killed when it is dropped.
        () = cancel.cancelled() => return Err(ImageError::Cancelled),
    }
    let name = format!("what `{}` wrote", command(*keeper, &arguments));
    let section = Section::whole(file).at_read(temp)?;
    docker::parts_of_one(&name, section, layers, from, limits)
}

impl Keeper {
    fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Skopeo => "skopeo",
            Self::Buildah => "buildah",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Docker => "docker.io",
            same => same.program(),
        }
    }

    fn document(self) -> &'static str {
        match self {
            Self::Docker => "the answer of `docker image inspect`",
            Self::Podman => "the answer of `podman image inspect`",
            Self::Skopeo => "the answer of `skopeo inspect`",
            Self::Buildah => "the answer of `buildah inspect`",
        }
    }

    /// Arguments that tell of an image. No name starts with a dash; `--` says so again.
    fn inspect(self, name: &str) -> Vec<String> {
        match self {
            Self::Docker | Self::Podman => words(&["image", "inspect", "--", name]),
            Self::Skopeo => words(&["inspect", "--config", "--raw", "--", &format!("containers-storage:{name}")]),
            Self::Buildah => words(&["inspect", "--type", "image", "--", name]),
        }
    }

    /// Returns how the image is called when it is to be written.
    fn target(self, name: &str, id: Digest) -> String {
        match self {
            Self::Docker => id.to_string(),
            Self::Podman | Self::Buildah => id.hex(),
            // Whether the line's end is part of the configuration cannot be seen, so this may not be the id. The layers are
            // checked all the same.
            Self::Skopeo => name.to_owned(),
        }
    }

    /// Arguments that write an image to the standard output.
    fn save(self, target: &str) -> Vec<String> {
        match self {
            Self::Docker => words(&["image", "save", "--", target]),
            // Uncompressed, as it is stored; in the OCI format it would be compressed now.
            Self::Podman => words(&["image", "save", "--quiet", "--format=docker-archive", "--", target]),
            Self::Skopeo => {
                let from = format!("containers-storage:{target}");
                words(&["copy", "--quiet", "--", &from, "docker-archive:/dev/stdout"])
            }
            Self::Buildah => words(&["push", "--quiet", "--", target, "docker-archive:/dev/stdout"]),
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn command(keeper: Keeper, arguments: &[String]) -> String {
    format!("{} {}", keeper.program(), arguments.join(" "))
}

/// Runs the program to its end, and returns what it writes to its standard output, if that is a pipe.
async fn run(
    keeper: Keeper,
    arguments: &[String],
    environment: &[(OsString, OsString)],
    output: Stdio,
    limits: &Limits,
) -> Result<Vec<u8>, ImageError> {
    let program = keeper.program();
    let failed = |source| ImageError::Run { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        // Messages that can be searched for.
        .env("LC_ALL", "C.UTF-8")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ImageError::NoProgram { program, package: keeper.package() },
            _ => failed(source),
        })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let limit = limits.document_bytes;
    // Both at once: a program that waits for a full pipe would never end.
    let (told, said) = tokio::join!(first(stdout, limit + 1), first(stderr, SAID));
    let status = child.wait().await.map_err(failed)?;
    let (told, said) = (told.map_err(failed)?, said.map_err(failed)?);
    if !status.success() {
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<String> = said.lines().filter(|line| !line.is_empty()).map(shown).collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].to_vec();
        return Err(ImageError::Failed { command: command(keeper, arguments), status, last });
    }
    let size = told.len() as u64;
    if size > limit {
        let (path, name) = (program.into(), keeper.document().to_owned());
        return Err(ImageError::DocumentTooLong { path, name, size, limit });
    }
    Ok(told)
}

/// Returns the first bytes of what comes, and reads the rest too.
async fn first(from: Option<impl AsyncRead + Unpin>, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(most).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

fn shown(line: &str) -> String {
    line.chars().take(500).flat_map(char::escape_debug).collect()
}
