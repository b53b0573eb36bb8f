//! Fetches real images, made by the programs that users make them with, and archives that no program makes.

mod archive;
mod daemon;
mod export;
mod hostile;
mod layers;
mod overlay;
mod property;
mod registry;
mod remote;
mod served;
mod transports;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kiln_image::{
    Digest, Fetcher, ForgetfulDigests, ImageConfig, ImageError, Images, Platform, Progress, Quiet, Reference, Resolved,
};
use serde_json::json;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn resolve(reference: &str) -> Result<Resolved, ImageError> {
    let reference = Reference::parse(reference.as_bytes(), Path::new("/nowhere")).expect("a reference");
    block_on(Images::default().resolve(&reference, None, Arc::new(ForgetfulDigests)))
}

/// Fetches all layers into one directory.
async fn fetch_with(
    images: &Images,
    resolved: &Resolved,
    into: &Path,
    progress: Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<(), ImageError> {
    let mut layers = images.fetch(resolved, 0, &std::env::temp_dir(), progress, cancel).await?;
    for _ in 0..resolved.layers.len().max(1) {
        layers.next(into).await?;
    }
    Ok(())
}

fn fetch_resolved(resolved: &Resolved, into: &Path) -> Result<(), ImageError> {
    block_on(fetch_with(&Images::default(), resolved, into, Arc::new(Quiet), &CancellationToken::new()))
}

/// Fetches into a new directory.
fn fetch(reference: &str) -> Result<(TempDir, ImageConfig), ImageError> {
    let into = tempfile::tempdir().expect("a directory");
    let resolved = resolve(reference)?;
    fetch_resolved(&resolved, into.path())?;
    Ok((into, resolved.config))
}

/// Runs a shell script that must succeed.
fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("sh").arg("-euc").arg(script).current_dir(dir).output().expect("sh runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns an error and its causes, one a line.
fn causes(error: &ImageError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!("\n  {error}");
        cause = error.source();
    }
    text
}

/// Returns a line for each entry of a tree, the root last: all that a copy should have.
fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, lines: &mut Vec<String>) {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let meta = path.symlink_metadata().expect("it is there");
            let name = path.strip_prefix(root).expect("below the root");
            let content = match () {
                () if meta.is_symlink() => fs::read_link(&path).expect("a link").display().to_string(),
                () if meta.is_file() => Digest::of(&fs::read(&path).expect("readable")).hex(),
                () => String::new(),
            };
            let links = if meta.is_dir() { 1 } else { meta.nlink() };
            let (mode, owner, time) = (meta.mode(), (meta.uid(), meta.gid()), (meta.mtime(), meta.mtime_nsec()));
            lines.push(format!("{name:?} {mode:o} {owner:?} {links} {content} @{}.{:09}", time.0, time.1));
            if meta.is_dir() {
                walk(root, &path, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines.sort();
    let meta = root.metadata().expect("the root");
    lines.push(format!(". {:o} {}:{} @{}.{:09}", meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()));
    lines
}

/// A blob of a layout: its descriptor, after writing it.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> serde_json::Value {
    let digest = Digest::of(bytes);
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
    fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).expect("a blob");
    json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
}

/// Returns what images call this machine's processor.
fn architecture() -> String {
    Platform::here().architecture().to_owned()
}

/// Writes an image of these unpacked layers and returns the descriptor of its manifest.
fn image(layout: &Path, layers: &[Vec<u8>]) -> serde_json::Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Env": ["PATH=/bin", "EMPTY=", "A=b=c"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(layer).expect("in memory");
            let packed = gzip.finish().expect("in memory");
            blob(layout, "application/vnd.oci.image.layer.v1.tar+gzip", &packed)
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    blob(layout, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())
}

/// Writes the index of a layout.
fn index(layout: &Path, manifests: &[serde_json::Value]) {
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(layout.join("index.json"), index.to_string()).expect("an index");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("a file");
}

/// Fetches an image of these layers.
fn fetch_layers(layers: &[Vec<u8>]) -> Result<TempDir, ImageError> {
    let layout = tempfile::tempdir().expect("a directory");
    let manifest = image(layout.path(), layers);
    index(layout.path(), &[manifest]);
    fetch(&format!("oci:{}", layout.path().display())).map(|(tree, _)| tree)
}

/// Writes an archive into a file and fetches it.
fn fetch_rootfs(archive: &[u8]) -> Result<TempDir, ImageError> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), archive).expect("written");
    fetch(&format!("rootfs:{}", file.path().display())).map(|(tree, _)| tree)
}
