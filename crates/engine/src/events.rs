//! What happens during a build, as data. Whoever listens decides how it looks.

use std::sync::Arc;
use std::time::Duration;

use kiln_sandbox::ExitStatus;
use kiln_store::Id;

use crate::limits::{Limit, StepUsage};

/// A step or remark of one build, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// Differs for every step of the build; grows in the order of the spec.
    pub number: usize,
    /// The stage's name; none for the last stage.
    pub stage: Option<String>,
    /// What is done, as text: `WORKDIR: (run …)`, or `(from …)`.
    pub text: String,
}

/// Something that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The build begins.
    Planned {
        /// How many steps there are, imports of base images included.
        steps: usize,
        /// How many stages, which may run side by side.
        stages: usize,
    },
    /// An operation that only changes what later steps see, or a comment.
    Noted(Arc<StepInfo>),
    /// A step begins: it is looked for in the store first.
    Started(Arc<StepInfo>),
    /// Another process is making this step; its log follows.
    Following(Arc<StepInfo>, Option<u32>),
    /// A piece of the step's log, also for a step found in the store.
    Output(Arc<StepInfo>, Vec<u8>),
    /// A base image arrives: so many bytes of so many.
    Progress(Arc<StepInfo>, u64, u64),
    /// The step was found in the store.
    Cached(Arc<StepInfo>, Id),
    /// The command of the step has ended. It used so much, and came up against this limit; how it ended follows.
    Used(Arc<StepInfo>, StepUsage, Option<Limit>),
    /// The step was made and stored.
    Saved(Arc<StepInfo>, Id, Duration),
    /// The command of the step ended badly. Its log is kept under the id.
    Failed(Arc<StepInfo>, Id, ExitStatus, Duration),
    /// The result was written somewhere else than into the store: what came of it, for people. Its number is none of a
    /// step's.
    Exported(Arc<StepInfo>, String, Duration),
}

/// Receives the events of a build.
///
/// Called from several threads, and in order for each step. Must return soon: the build waits.
pub trait Events: Send + Sync {
    /// Takes note of an event.
    fn event(&self, event: Event);
}
