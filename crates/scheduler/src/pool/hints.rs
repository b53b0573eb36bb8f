//! What is known of cache hints: who ran them, and how long it took.

use std::collections::BTreeMap;
use std::time::Duration;

use bstr::BStr;

use super::fair::LEAST;
use super::names::{Names, Row};
use super::worker::Machine;

/// What a job takes on a worker that ran its hint before, until that is known. As OCluster has it.
pub(super) const WARM: Duration = Duration::from_secs(10);
/// What a job takes elsewhere, until that is known.
pub(super) const COLD: Duration = Duration::from_secs(600);
/// How many workers are remembered for a hint.
pub(super) const MACHINES: usize = 256;
/// How many hints are remembered that no job has.
const UNUSED: usize = 100_000;

#[derive(Default)]
pub(super) struct Hint {
    /// Who ran it, the latest last; at most [`MACHINES`].
    pub(super) machines: Vec<Row<Machine>>,
    /// How long it took, in seconds, where it had run before.
    warm: Option<f32>,
    /// How long it took elsewhere.
    cold: Option<f32>,
    /// Jobs in the pool that have it. It is not forgotten before there are none.
    jobs: u32,
    /// Its key in [`Hints::unused`], if no job has it.
    unused: u64,
}

pub(super) struct Hints {
    pub(super) names: Names<Hint>,
    /// The hints that no job has, longest unused first.
    unused: BTreeMap<u64, Row<Hint>>,
    /// How many of them are kept.
    pub(super) most_unused: usize,
    /// Counts up: keys of `unused`.
    clock: u64,
    /// What jobs of all hints take, in seconds, where the hint had run before.
    warm: Option<f32>,
    /// And elsewhere.
    cold: Option<f32>,
}

impl Default for Hints {
    fn default() -> Hints {
        Hints {
            names: Names::default(),
            unused: BTreeMap::new(),
            most_unused: UNUSED,
            clock: 0,
            warm: None,
            cold: None,
        }
    }
}

impl Hints {
    /// Notes that a job has the hint. Returns it.
    pub(super) fn begin(&mut self, name: &BStr) -> Row<Hint> {
        let row = self.names.find_or_add(name, Hint::default);
        let hint = self.names.get_mut(row);
        if hint.jobs == 0 {
            self.unused.remove(&hint.unused);
        }
        hint.jobs += 1;
        row
    }

    /// Notes that a job with the hint has left the pool.
    pub(super) fn end(&mut self, row: Row<Hint>) {
        let hint = self.names.get_mut(row);
        hint.jobs -= 1;
        if hint.jobs == 0 {
            self.keep_unused(row);
        }
    }

    /// Notes, at start-up, that a machine ran the hint.
    pub(super) fn restore(&mut self, name: &BStr, machine: Row<Machine>) {
        let row = self.begin(name);
        self.ran(row, machine);
        self.end(row);
    }

    /// Returns what a job of the hint takes.
    pub(super) fn cost(&self, row: Row<Hint>, warm: bool) -> Duration {
        let hint = self.names.get(row);
        let (learned, otherwise) = if warm { (hint.warm.or(self.warm), WARM) } else { (hint.cold.or(self.cold), COLD) };
        learned.map_or(otherwise, Duration::from_secs_f32).max(LEAST)
    }

    /// Returns how much less a job of the hint takes where it ran before.
    pub(super) fn saves(&self, row: Row<Hint>) -> Duration {
        self.cost(row, false).saturating_sub(self.cost(row, true))
    }

    /// Returns what a job of the hint will take, as far as that is known before it is known where.
    pub(super) fn expected(&self, row: Row<Hint>) -> Duration {
        self.cost(row, !self.names.get(row).machines.is_empty())
    }

    /// Tells whether the machine is remembered to have run the hint.
    pub(super) fn is_warm(&self, row: Row<Hint>, machine: Row<Machine>) -> bool {
        self.names.get(row).machines.contains(&machine)
    }

    /// Notes that the machine runs the hint. Returns whether that is news.
    pub(super) fn ran(&mut self, row: Row<Hint>, machine: Row<Machine>) -> bool {
        let machines = &mut self.names.get_mut(row).machines;
        let before = machines.iter().position(|&other| other == machine);
        match before {
            Some(index) => {
                machines.remove(index);
            }
            None if machines.len() == MACHINES => {
                machines.remove(0);
            }
            None => {}
        }
        machines.push(machine);
        before.is_none()
    }

    /// Notes how long a run took.
    pub(super) fn took(&mut self, row: Row<Hint>, warm: bool, took: Duration) {
        let hint = self.names.get_mut(row);
        let learned = if warm { &mut hint.warm } else { &mut hint.cold };
        // A run that took a century is no run.
        let took = took.as_secs_f32().min(3e9);
        learn(learned, took, 4.0);
        learn(if warm { &mut self.warm } else { &mut self.cold }, took, 64.0);
    }

    fn keep_unused(&mut self, row: Row<Hint>) {
        self.clock += 1;
        self.names.get_mut(row).unused = self.clock;
        self.unused.insert(self.clock, row);
        if self.unused.len() > self.most_unused
            && let Some((_, longest)) = self.unused.pop_first()
        {
            self.names.remove(longest);
        }
    }
}

/// Corrects what is expected by what was, which counts for one of so many.
fn learn(expected: &mut Option<f32>, was: f32, of: f32) {
    *expected = Some(expected.map_or(was, |before| before + (was - before) / of));
}
