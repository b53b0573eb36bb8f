//! Jobs in the order in which they are to run.

use std::collections::BTreeSet;
use std::time::Duration;

use super::effect::JobId;
use super::gauges::Lengths;

/// Where a job stands in a queue. The least is next: urgent ones first, then by fair start time; of two with the same,
/// the one submitted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    /// Not urgent. (`false` is less than `true`.)
    pub(super) patient: bool,
    pub(super) start: Duration,
    pub(super) job: JobId,
}

/// The backlog, or the jobs assigned to one worker.
#[derive(Debug, Default)]
pub(super) struct Queue {
    turns: BTreeSet<Turn>,
    lengths: Lengths,
}

impl Queue {
    pub(super) fn insert(&mut self, turn: Turn) {
        if self.turns.insert(turn) {
            self.lengths.add(!turn.patient);
        }
    }

    /// Takes one out, wherever it stands.
    pub(super) fn remove(&mut self, turn: Turn) {
        if self.turns.remove(&turn) {
            self.lengths.subtract(!turn.patient);
        }
    }

    /// Takes the next one out.
    pub(super) fn pop(&mut self) -> Option<Turn> {
        let turn = self.turns.pop_first()?;
        self.lengths.subtract(!turn.patient);
        Some(turn)
    }

    /// Returns how many wait, in constant time.
    pub(super) fn lengths(&self) -> Lengths {
        self.lengths
    }

    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// Returns the least start time of all, urgent or not.
    pub(super) fn least_start(&self) -> Option<Duration> {
        let patient = Turn { patient: true, start: Duration::ZERO, job: JobId(0) };
        let first = [self.turns.first(), self.turns.range(patient..).next()];
        first.into_iter().flatten().map(|turn| turn.start).min()
    }

    /// Returns them, the next one first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Turn> {
        self.turns.iter().copied()
    }
}
