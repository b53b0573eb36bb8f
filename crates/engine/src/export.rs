//! From a result to the image that it would be: its steps as layers, and how to run it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bstr::{BString, ByteSlice};
use kiln_image::export::{Base, History, Image, LayerSource, Opened, Overrides, Step};
use kiln_image::{ImageConfig, Platform};
use kiln_spec::User;
use kiln_store::{Snapshot, Store};
use serde::{Deserialize, Serialize};

use crate::base;
use crate::error::BuildError;
use crate::limits::StepUsage;
use crate::plan::{self, Context};
use crate::visit::RunDetail;

/// What a spec says of how its result is to be run. What it does not say is as in the base image.
///
/// It is kept with every step's result, for who exports that later; [`Built::runs_as`](crate::Built::runs_as) has what the
/// whole spec says.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct RunsAs {
    /// Variables over those of the base image, in the spec's order.
    pub env: Vec<(String, String)>,
    /// A name, or `UID:GID`.
    pub user: Option<String>,
    /// Absolute.
    pub workdir: Option<String>,
    /// What a command is given to as its last word.
    pub shell: Option<Vec<String>>,
}

impl RunsAs {
    pub(crate) fn new(context: &Context) -> Self {
        // An image's configuration is JSON, and has no bytes but UTF-8.
        let text = |bytes: &BString| bytes.to_str_lossy().into_owned();
        let user = match &context.user {
            User::Unix { uid, gid } => format!("{uid}:{gid}"),
            User::Named(name) => text(name),
        };
        Self {
            env: context.env.iter().map(|(name, value)| (text(name), text(value))).collect(),
            user: context.said.user.then_some(user),
            workdir: context.said.workdir.then(|| text(&context.workdir)),
            shell: context.said.shell.then(|| context.shell.iter().map(text).collect()),
        }
    }
}

/// What a step's result keeps in its description.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct StepDetail {
    #[serde(default)]
    pub(crate) runs_as: RunsAs,
    /// None for a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<RunDetail>,
    /// See [`StepUsage::of`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<StepUsage>,
}

impl StepDetail {
    pub(crate) fn of(context: &Context) -> Self {
        Self { runs_as: RunsAs::new(context), run: None, usage: None }
    }

    pub(crate) fn of_run(context: &Context, run: &kiln_spec::Run, usage: StepUsage) -> Self {
        Self { run: Some(RunDetail::new(run)), usage: Some(usage), ..Self::of(context) }
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("it has string keys only")
    }
}

/// Returns the image that `snapshot` would be, one layer a step, without names.
///
/// `runs_as`: how it is to be run; `None`: as the step that made it. `labels` are added to those of the base image.
/// Nothing is read of any tree. The trees can be opened as long as the image lives.
///
/// # Errors
///
/// The store cannot be read, or a description is damaged.
pub fn image(
    store: &Arc<Store>,
    snapshot: &Arc<Snapshot>,
    runs_as: Option<RunsAs>,
    labels: BTreeMap<String, String>,
) -> Result<Image, BuildError> {
    let mut below = Vec::new();
    let mut next = Some(Arc::clone(snapshot));
    // Ends at the base, whose layers are below it.
    let mut steps = Vec::new();
    let mut config = ImageConfig::default();
    let mut is_base = false;
    while let Some(snapshot) = next {
        next = parent(store, &snapshot)?;
        let found = base::config(&snapshot.meta().detail);
        let found = found.map_err(|source| BuildError::Description { id: *snapshot.id(), source })?;
        if !is_base && let Some(found) = found {
            (is_base, config) = (true, found);
            // An image with layers changes nothing by itself; a tree is one layer.
            if next.is_some() {
                continue;
            }
        }
        let step = step(store, snapshot);
        if is_base { below.push(step) } else { steps.push(step) }
    }
    below.reverse();
    steps.reverse();
    let runs_as = match runs_as {
        Some(runs_as) => runs_as,
        None => detail(snapshot)?.runs_as,
    };
    let mut env: Vec<(BString, BString)> = Vec::new();
    for (name, value) in config.env.iter().chain(&runs_as.env) {
        plan::set(&mut env, name.as_str().into(), value.as_str().into());
    }
    let here = Platform::here();
    Ok(Image {
        architecture: config.architecture.unwrap_or_else(|| here.architecture().to_owned()),
        os: config.os.unwrap_or_else(|| here.os().to_owned()),
        variant: config.variant,
        base: Base { steps: below, config: config.raw, history: config.history },
        steps,
        overrides: Overrides {
            env: Some(env.into_iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()),
            working_dir: runs_as.workdir,
            user: runs_as.user,
            shell: runs_as.shell,
            labels,
            ..Overrides::default()
        },
        created_ms: snapshot.meta().created_ms,
        names: Vec::new(),
    })
}

pub(crate) fn detail(snapshot: &Snapshot) -> Result<StepDetail, BuildError> {
    match &snapshot.meta().detail {
        // Of a base image, and of results of earlier versions.
        serde_json::Value::Null => Ok(StepDetail::default()),
        detail => serde_json::from_value(detail.clone())
            .map_err(|source| BuildError::Description { id: *snapshot.id(), source }),
    }
}

pub(crate) fn parent(store: &Store, snapshot: &Snapshot) -> Result<Option<Arc<Snapshot>>, BuildError> {
    let Some(parent) = snapshot.meta().parent else { return Ok(None) };
    match store.lookup(&parent)? {
        Some(parent) => Ok(Some(Arc::new(parent))),
        // A child keeps its parent; so it is damaged.
        None => Err(kiln_store::StoreError::NoSuchResult(parent.to_string()).into()),
    }
}

fn step(store: &Arc<Store>, snapshot: Arc<Snapshot>) -> Step {
    let meta = snapshot.meta();
    let history = History { created_by: meta.summary.clone(), comment: None, created_ms: meta.created_ms };
    let key = format!("{} {}", snapshot.id(), meta.created_ms);
    let store = Arc::clone(store);
    let open = move || -> io::Result<Opened> {
        let changes = store.changes(&snapshot).map_err(io::Error::other)?;
        let below = changes.below.map(|below| below.mount()).transpose()?;
        Ok(Opened { below, tree: changes.tree.mount()?, own: changes.own })
    };
    Step { history, layer: Some(LayerSource { key, open: Box::new(open) }) }
}
