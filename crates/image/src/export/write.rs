//! From an image to its destination.
//!
//! Layers come first, from the lowest; then the configuration, which names them, then the manifest. A layer that the
//! destination has is not made: what it would be is remembered from the last time.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::archive::Archive;
use super::compress::pack;
use super::diff::Rules;
use super::document::{self, Descriptor, Layer, Layers};
use super::layout::Layout;
use super::output::Spool;
use super::push::Push;
use super::{
    Compression, Destination, ExportError, Image, LayerSource, Memory, Opened, Options, Step, Written, layer, whole,
};
use crate::stream::Section;
use crate::{Progress, Quiet};

/// A new version whenever the same tree gives other bytes.
const VERSION: &str = "layer 1";
/// What is remembered of a layer that holds nothing.
const EMPTY: &str = "empty";
/// The longest tag of a layout: that of registries.
const LONGEST_TAG: usize = 128;

/// Writes an image, or the tree of its last layer, to `destination`.
///
/// The destination gets it whole or, on failure and on cancellation, not at all; but for a stream, which may have got
/// a part.
///
/// # Errors
///
/// See [`ExportError`].
pub async fn export(
    image: Image,
    destination: Destination,
    options: Options,
    memory: Arc<dyn Memory>,
    progress: Arc<dyn Progress>,
    cancel: &CancellationToken,
) -> Result<Written, ExportError> {
    let (cancel, runtime) = (cancel.clone(), Handle::current());
    // The work looks at the token itself: a blocking thread cannot be aborted.
    let work = move || Export { options, memory, progress, runtime, cancel: &cancel }.run(image, destination);
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(ExportError::Panicked))
}

struct Export<'a> {
    options: Options,
    memory: Arc<dyn Memory>,
    progress: Arc<dyn Progress>,
    runtime: Handle,
    cancel: &'a CancellationToken,
}

impl Export<'_> {
    fn run(&self, image: Image, destination: Destination) -> Result<Written, ExportError> {
        let literal = Rules { is_literal: true, ..self.rules() };
        match destination {
            Destination::Tar(output) => {
                let tree = open_whole(last(&image)?)?;
                whole::tar(&tree, output, self.options.compression, literal, &*self.progress, self.cancel)
            }
            Destination::Dir(path) => {
                let tree = open_whole(last(&image)?)?;
                whole::directory(&tree, &path, literal, &*self.progress, self.cancel)
            }
            Destination::OciLayout { dir, tag } => {
                let tag = tag.as_deref().map(check_tag).transpose()?;
                self.image(image, Target::Layout(Layout::open(&dir)?), tag)
            }
            Destination::OciArchive { output, tag } => {
                let tag = tag.as_deref().map(check_tag).transpose()?;
                self.image(image, Target::Archive(Archive::new(output, false)), tag)
            }
            Destination::DockerArchive(output) => self.image(image, Target::Archive(Archive::new(output, true)), None),
            Destination::Registry { registry, name } => {
                let (memory, progress) = (Arc::clone(&self.memory), Arc::clone(&self.progress));
                let push = Push::new(registry, name, memory, progress, self.runtime.clone(), self.cancel);
                self.image(image, Target::Registry(push), None)
            }
        }
    }

    fn rules(&self) -> Rules {
        let latest = self.options.source_date_epoch.map(|epoch| i64::try_from(epoch).unwrap_or(i64::MAX));
        Rules { latest, is_literal: false }
    }

    fn image(&self, image: Image, mut target: Target, tag: Option<&str>) -> Result<Written, ExportError> {
        let image = if self.options.squash { squashed(image)? } else { image };
        let mut spool = Spool::new(&self.options.temp_dir)?;
        let mut layers = Layers::default();
        for (steps, made) in [(&image.base.steps, &mut layers.base), (&image.steps, &mut layers.steps)] {
            for step in steps {
                let layer = match &step.layer {
                    Some(source) => self.layer(step, source, &mut target, &mut spool)?,
                    None => None,
                };
                made.push(layer);
            }
        }
        let bytes = document::config(&image, &layers, self.options.source_date_epoch);
        let config = Descriptor::of(document::CONFIG, &bytes);
        target.put_document(&config, bytes, &mut spool)?;
        let bytes = document::manifest(&config, &layers);
        let manifest = Descriptor::of(document::MANIFEST, &bytes);
        if self.cancel.is_cancelled() {
            return Err(ExportError::Cancelled);
        }
        let written = Written {
            manifest: Some(manifest.digest),
            config: Some(config.digest),
            bytes: layers.all().map(|layer| layer.blob.size).sum(),
            layers: layers.all().count(),
        };
        let entries = document::entries(&image, &manifest, tag);
        match target {
            Target::Layout(mut layout) => {
                layout.put(&manifest, &mut &*bytes)?;
                layout.finish(&entries)?;
            }
            Target::Archive(mut archive) => {
                archive.put_document(&manifest.digest, bytes);
                archive.finish(&image, &config, &layers, &entries, self.cancel)?;
            }
            Target::Registry(push) => push.finish(&manifest, &bytes)?,
        }
        Ok(written)
    }

    /// Brings the layer of a step to the target. Returns `None` if nothing is in it.
    fn layer(
        &self,
        step: &Step,
        source: &LayerSource,
        target: &mut Target,
        spool: &mut Spool,
    ) -> Result<Option<Layer>, ExportError> {
        let Options { compression, source_date_epoch, squash, .. } = &self.options;
        let question = format!("{VERSION} {compression:?} {source_date_epoch:?} {squash} {}", source.key);
        match self.memory.recall(&question).and_then(|answer| recalled(&answer, *compression)) {
            Some(None) => return Ok(None),
            Some(Some(layer)) if target.has(&layer.blob)? => {
                self.progress.line(&format!("layer {} is there: {}", layer.blob.digest, step.history.created_by));
                return Ok(Some(layer));
            }
            _ => {}
        }
        let trees = if *squash { open_whole(source)? } else { open(source)? };
        // Of what is sent, how much is sent is what people wait for.
        let progress: &dyn Progress = if target.tells_progress() { &Quiet } else { &*self.progress };
        let mut has_changes = false;
        let packed = pack(*compression, &mut spool.writer(), &|error| spool.failed(error), self.cancel, |feed| {
            has_changes = layer::write(feed, &trees, self.rules(), progress, self.cancel)?;
            Ok(())
        })?;
        drop(trees);
        if !has_changes {
            self.memory.remember(&question, EMPTY);
            return Ok(None);
        }
        self.memory.remember(&question, &format!("{} {} {}", packed.unpacked, packed.stored, packed.size));
        let blob = Descriptor::new(document::layer_type(*compression), packed.stored, packed.size);
        self.progress.line(&format!("layer {}, {} bytes: {}", blob.digest, blob.size, step.history.created_by));
        if !target.has(&blob)? {
            target.put(&blob, spool.take(packed.size))?;
            if !target.keeps_blobs() {
                spool.clear()?;
            }
        }
        Ok(Some(Layer { unpacked: packed.unpacked, blob }))
    }
}

/// Understands what [`Export::layer`] remembered.
fn recalled(answer: &str, compression: Compression) -> Option<Option<Layer>> {
    if answer == EMPTY {
        return Some(None);
    }
    let mut parts = answer.split(' ');
    let (unpacked, stored) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let size = parts.next()?.parse().ok()?;
    Some(Some(Layer { unpacked, blob: Descriptor::new(document::layer_type(compression), stored, size) }))
}

/// Where blobs go, in this order; the image gets its names at the end.
enum Target {
    Layout(Layout),
    Archive(Archive),
    Registry(Push),
}

impl Target {
    fn has(&mut self, blob: &Descriptor) -> Result<bool, ExportError> {
        match self {
            Self::Layout(layout) => Ok(layout.has(blob)),
            Self::Archive(archive) => Ok(archive.has(&blob.digest)),
            Self::Registry(push) => push.has(blob),
        }
    }

    fn put(&mut self, blob: &Descriptor, mut content: Section) -> Result<(), ExportError> {
        match self {
            Self::Layout(layout) => layout.put(blob, &mut content),
            Self::Archive(archive) => {
                archive.put(&blob.digest, content);
                Ok(())
            }
            Self::Registry(push) => push.put(blob, &content),
        }
    }

    fn put_document(&mut self, blob: &Descriptor, bytes: Vec<u8>, spool: &mut Spool) -> Result<(), ExportError> {
        match self {
            Self::Layout(layout) => layout.put(blob, &mut &*bytes),
            Self::Archive(archive) => {
                archive.put_document(&blob.digest, bytes);
                Ok(())
            }
            Self::Registry(push) => push.put_bytes(blob, &bytes, spool),
        }
    }

    /// Returns whether blobs are read again after [`Target::put`].
    fn keeps_blobs(&self) -> bool {
        matches!(self, Self::Archive(_) | Self::Registry(_))
    }

    /// Returns whether it tells itself how far it is.
    fn tells_progress(&self) -> bool {
        matches!(self, Self::Registry(_))
    }
}

fn open(source: &LayerSource) -> Result<Opened, ExportError> {
    (source.open)().map_err(|error| ExportError::Open { key: source.key.clone(), source: error })
}

/// Opens a result as one that stands on nothing.
fn open_whole(source: &LayerSource) -> Result<Opened, ExportError> {
    Ok(Opened { below: None, own: None, ..open(source)? })
}

fn last(image: &Image) -> Result<&LayerSource, ExportError> {
    let steps = image.base.steps.iter().chain(&image.steps);
    steps.rev().find_map(|step| step.layer.as_ref()).ok_or(ExportError::NoTree)
}

/// Returns the image with its last layer as its only step.
fn squashed(mut image: Image) -> Result<Image, ExportError> {
    let base = std::mem::take(&mut image.base);
    let history = image.steps.last().or(base.steps.last()).map(|step| step.history.clone()).unwrap_or_default();
    let steps = base.steps.into_iter().chain(image.steps);
    let layer = steps.rev().find_map(|step| step.layer).ok_or(ExportError::NoTree)?;
    image.steps = vec![Step { history, layer: Some(layer) }];
    image.base.config = base.config;
    Ok(image)
}

fn check_tag(tag: &str) -> Result<&str, ExportError> {
    let bad = |reason| Err(ExportError::BadTag { tag: tag.chars().take(200).collect(), reason });
    match tag.as_bytes() {
        [] => bad("it is empty"),
        bytes if bytes.len() > LONGEST_TAG => bad("it has more than 128 characters"),
        // The image specification has more, which programs cannot tell from their own syntax.
        [first, rest @ ..]
            if (first.is_ascii_alphanumeric() || *first == b'_')
                && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(byte)) =>
        {
            Ok(tag)
        }
        _ => bad("it may have letters, digits, `_`, `.` and `-`, and starts with a letter or digit"),
    }
}
