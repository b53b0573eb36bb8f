//! How it is with a job that is kept.

use bstr::BString;

use crate::generated::kiln_capnp::job_info;
use crate::job_key::JobKey;
use crate::text::{bytes, text};

/// What a scheduler says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobInfo {
    /// What it is called.
    pub key: JobKey,
    /// The pool that does it.
    pub pool: BString,
    /// When it was submitted, in seconds since 1970.
    pub submitted: i64,
    /// How often a worker has begun it.
    pub runs: u32,
    /// How it is now.
    pub state: JobState,
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// No worker has it.
    Waiting,
    /// This worker does it.
    Running(BString),
    /// This worker had it, is gone, and may come back.
    Lost(BString),
    /// It came to a good end, with this result.
    Succeeded(BString),
    /// It failed, and why: it was wrong, or cancelled.
    Failed(BString),
    /// The cluster could not do it, and why.
    Abandoned(BString),
}

impl JobInfo {
    pub(crate) fn read(info: job_info::Reader<'_>) -> Result<Self, capnp::Error> {
        let state = match info.get_state().which()? {
            job_info::state::Waiting(()) => JobState::Waiting,
            job_info::state::Running(worker) => JobState::Running(bytes(worker?)),
            job_info::state::Lost(worker) => JobState::Lost(bytes(worker?)),
            job_info::state::Succeeded(output) => JobState::Succeeded(bytes(output?)),
            job_info::state::Failed(why) => JobState::Failed(bytes(why?)),
            job_info::state::Abandoned(why) => JobState::Abandoned(bytes(why?)),
        };
        Ok(Self {
            key: JobKey::read(info.get_id()?)?,
            pool: bytes(info.get_pool()?),
            submitted: info.get_submitted(),
            runs: info.get_runs(),
            state,
        })
    }

    pub(crate) fn write(&self, mut info: job_info::Builder<'_>) {
        info.set_id(&self.key.0);
        info.set_pool(text(&self.pool));
        info.set_submitted(self.submitted);
        info.set_runs(self.runs);
        let mut state = info.init_state();
        match &self.state {
            JobState::Waiting => state.set_waiting(()),
            JobState::Running(worker) => state.set_running(text(worker)),
            JobState::Lost(worker) => state.set_lost(text(worker)),
            JobState::Succeeded(output) => state.set_succeeded(text(output)),
            JobState::Failed(why) => state.set_failed(text(why)),
            JobState::Abandoned(why) => state.set_abandoned(text(why)),
        }
    }
}
