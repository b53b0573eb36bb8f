//! `kiln export`: a result as an image, an archive or a directory, or in a registry. `kiln build` ends with the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use kiln_engine::{Event, Events, RunsAs, StepInfo};
use kiln_image::export::{self, Compression, Destination, Memory, Options, Output, Written};
use kiln_image::{Images, ImagesSettings, Progress};
use kiln_store::{Snapshot, State, Store, StoreError};
use tokio_util::sync::CancellationToken;

use super::build::Shown;
use super::{cancel_on_signals, print, runtime, size};
use crate::args::{self, OutputArgs, Packing};
use crate::exit::Failure;
use crate::output::{OutputKind, OutputTo};
use crate::settings::{open_store, registries, source_date_epoch};

pub(super) fn run(arguments: &args::Export, verbose: bool) -> Result<(), Failure> {
    let cannot = |reason| Failure::CannotExport { what: arguments.id.clone(), reason };
    if !is_wanted(&arguments.output)? {
        return Err(cannot("say where to: give --output type=TYPE,dest=PATH, or --push and --tag NAME"));
    }
    let store = Arc::new(open_store(&arguments.store)?);
    let found = store.find(&arguments.id)?;
    let snapshot = match found.state {
        State::Result => store.lookup(&found.id)?,
        State::Running => return Err(cannot("it is still being made")),
        State::Failed => return Err(cannot("the step failed, and only its log was kept")),
    };
    let snapshot = Arc::new(snapshot.ok_or_else(|| StoreError::NoSuchResult(arguments.id.clone()))?);
    let Shown { events, notices, .. } = Shown::new(&arguments.show, verbose);
    let images = Images::new(ImagesSettings {
        registry: registries(&arguments.registry, notices)?,
        ..ImagesSettings::default()
    });
    let events: Arc<dyn Events> = events;
    let cancel = cancel_on_signals().map_err(Failure::Runtime)?;
    let exporting = export(&store, &snapshot, None, &arguments.output, &images, &events, &cancel);
    let manifest = runtime()?.block_on(exporting)?;
    drop(events);
    match manifest {
        Some(manifest) if !takes_stdout(&arguments.output) => print(format!("{manifest}\n")),
        _ => Ok(()),
    }
}

/// Returns whether anything is to be written, and checks what the arguments alone can tell.
pub(super) fn is_wanted(arguments: &OutputArgs) -> Result<bool, Failure> {
    let cannot = |reason| Err(Failure::CannotExport { what: "the result".to_owned(), reason });
    if arguments.outputs.iter().filter(|output| output.is_stdout()).count() > 1 {
        return cannot("only one output can go to standard output");
    }
    let is_wanted = arguments.push || !arguments.outputs.is_empty();
    if !is_wanted && !arguments.tags.is_empty() {
        return cannot("a name alone writes nothing; add --push, or --output type=TYPE,dest=PATH");
    }
    Ok(is_wanted)
}

/// Returns true if standard output is for an archive.
pub(super) fn takes_stdout(arguments: &OutputArgs) -> bool {
    arguments.outputs.iter().any(OutputTo::is_stdout)
}

/// Writes a result to wherever the arguments say. Returns the digest of the image's manifest, if one was written.
pub(super) async fn export(
    store: &Arc<Store>,
    snapshot: &Arc<Snapshot>,
    runs_as: Option<RunsAs>,
    arguments: &OutputArgs,
    images: &Images,
    events: &Arc<dyn Events>,
    cancel: &CancellationToken,
) -> Result<Option<kiln_image::Digest>, Failure> {
    let writing = Writing {
        store,
        snapshot,
        runs_as,
        arguments,
        memory: Arc::new(Facts(Arc::clone(store))),
        source_date_epoch: source_date_epoch()?,
        events,
        cancel,
    };
    let mut manifest = None;
    let mut number = FIRST;
    for output in &arguments.outputs {
        let (what, destination) = destination(output)?;
        let written = writing.write(number, &what, output.kind.is_plain_archive(), destination).await?;
        manifest = written.manifest.or(manifest);
        number += 1;
    }
    if arguments.push {
        let registry = images.registry().map_err(Failure::Registry)?;
        for name in &arguments.tags {
            let destination = Destination::Registry { registry: registry.clone(), name: name.clone() };
            let written = writing.write(number, &format!("the image to {name}"), false, destination).await?;
            manifest = written.manifest.or(manifest);
            number += 1;
        }
    }
    Ok(manifest)
}

/// The numbers of what is written, for [`StepInfo`]: beyond those of any spec's steps.
const FIRST: usize = 1 << 40;

fn destination(output: &OutputTo) -> Result<(String, Destination), Failure> {
    let OutputTo { kind, dest } = output;
    let file = || -> Result<Output, Failure> {
        match output.is_stdout() {
            true => {
                let stdout = std::io::stdout().as_fd().try_clone_to_owned().map_err(Failure::Stdout)?;
                Ok(Output::Stream(File::from(stdout)))
            }
            false => Ok(Output::File(dest.clone())),
        }
    };
    let place = if output.is_stdout() { "standard output".to_owned() } else { dest.display().to_string() };
    Ok(match kind {
        OutputKind::OciLayout => {
            (format!("the image to {place}"), Destination::OciLayout { dir: dest.clone(), tag: None })
        }
        OutputKind::OciArchive => {
            (format!("the image to {place}"), Destination::OciArchive { output: file()?, tag: None })
        }
        OutputKind::DockerArchive => (format!("the image to {place}"), Destination::DockerArchive(file()?)),
        OutputKind::Tar => (format!("the tree to {place}"), Destination::Tar(file()?)),
        OutputKind::Dir => (format!("the tree to {place}"), Destination::Dir(dest.clone())),
    })
}

/// What all destinations of one result share.
struct Writing<'a> {
    store: &'a Arc<Store>,
    snapshot: &'a Arc<Snapshot>,
    runs_as: Option<RunsAs>,
    arguments: &'a OutputArgs,
    memory: Arc<dyn Memory>,
    source_date_epoch: Option<u64>,
    events: &'a Arc<dyn Events>,
    cancel: &'a CancellationToken,
}

impl Writing<'_> {
    async fn write(
        &self,
        number: usize,
        what: &str,
        is_plain_archive: bool,
        destination: Destination,
    ) -> Result<Written, Failure> {
        let started = Instant::now();
        let step = Arc::new(StepInfo { number, stage: None, text: format!("(write {what})") });
        self.events.event(Event::Started(Arc::clone(&step)));
        let labels: BTreeMap<String, String> = self.arguments.labels.iter().cloned().collect();
        let image = kiln_engine::image(self.store, self.snapshot, self.runs_as.clone(), labels);
        let mut image = image.map_err(|error| Failure::Build(error.into()))?;
        image.names.clone_from(&self.arguments.tags);
        let options = Options {
            compression: match self.arguments.compression {
                Packing::Auto if is_plain_archive => Compression::None,
                Packing::Auto | Packing::Gzip => Compression::Gzip,
                Packing::Zstd => Compression::Zstd,
                Packing::None => Compression::None,
            },
            source_date_epoch: self.source_date_epoch,
            squash: self.arguments.squash,
            temp_dir: self.store.scratch_dir(),
        };
        let progress = Arc::new(Told { events: Arc::clone(self.events), step: Arc::clone(&step) });
        let written =
            export::export(image, destination, options, Arc::clone(&self.memory), progress, self.cancel).await;
        let written = written.map_err(|source| Failure::Export { what: what.to_owned(), source })?;
        let told = match written.manifest {
            Some(manifest) => format!("wrote {what}, {} in {} layers: {manifest}", size(written.bytes), written.layers),
            None => format!("wrote {what}, {}", size(written.bytes)),
        };
        self.events.event(Event::Exported(step, told, started.elapsed()));
        Ok(written)
    }
}

/// What a store remembers of layers that were written before.
struct Facts(Arc<Store>);

impl Memory for Facts {
    fn recall(&self, question: &str) -> Option<String> {
        self.0.recall(question).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot recall what is known of a layer");
            None
        })
    }

    fn remember(&self, question: &str, answer: &str) {
        if let Err(error) = self.0.remember(question, answer) {
            tracing::warn!(%error, "cannot remember what is known of a layer");
        }
    }
}

/// Tells how the writing goes on.
struct Told {
    events: Arc<dyn Events>,
    step: Arc<StepInfo>,
}

impl Progress for Told {
    fn bytes(&self, done: u64, total: u64) {
        self.events.event(Event::Progress(Arc::clone(&self.step), done, total));
    }

    fn line(&self, text: &str) {
        self.events.event(Event::Output(Arc::clone(&self.step), format!("{text}\n").into_bytes()));
    }
}
