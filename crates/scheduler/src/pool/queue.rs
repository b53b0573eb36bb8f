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

/// The jobs assigned to a worker.
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

    /// Returns the next one.
    pub(super) fn first(&self) -> Option<Turn> {
        self.turns.first().copied()
    }

    /// Returns how many wait, in constant time.
    pub(super) fn lengths(&self) -> Lengths {
        self.lengths
    }

    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// Returns them, the next one first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Turn> {
        self.turns.iter().copied()
    }
}
