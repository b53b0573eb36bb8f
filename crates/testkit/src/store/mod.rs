//! What every backend of a store must do.
//!
//! [`conformance`] proves the contract of [`Backend`], on the real thing. Its checks are named functions, by story:
//! `life.rs` (from a draft to its removal), `content.rs` (what a tree keeps), `isolation.rs` (who sees whose
//! changes) and `scale.rs` (many, long, wide and deep); `limits.rs` is for those that can limit drafts. [`Strict`] and [`DiesAt`] are for tests of what stands on a backend.

mod content;
mod dies_at;
mod isolation;
mod life;
mod limits;
mod scale;
mod strict;

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use kiln_store::{Backend, Id, Name};

pub use dies_at::DiesAt;
pub use limits::limits_are_kept;
pub use scale::{a_long_line_of_changes_is_kept, deepen};
pub use strict::Strict;

use crate::Tree;

/// A backend on a new, empty store.
#[derive(Debug)]
pub struct Fixture {
    /// The backend.
    pub backend: Box<dyn Backend>,
    /// The store's directory, with all directories that an empty store has.
    pub path: PathBuf,
    /// What goes away with the test: a directory, a filesystem.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// What a kind of store may fail to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// What overlayfs marks its own layers with: character devices 0:0 and attributes `trusted.overlay.*`.
    OverlayMarks,
    /// A file of the parent that has several names stays one file when it is written to or linked again through one of
    /// them: overlayfs copies it for that name alone.
    WrittenLinks,
    /// What a clone did not change takes no room: whole copies share nothing, so each counts all that it shows.
    Sharing,
}

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Trees of a small forest, and generations of a cache.
    pub few: u64,
    /// Results in the longest chain.
    pub chain: usize,
    /// Children of one parent.
    pub children: usize,
    /// Steps of random changes.
    pub line: u64,
    /// Directories beside and below each other.
    pub directories: usize,
}

impl Sizes {
    /// For a machine as one develops on.
    pub const FULL: Self = Self { few: 20, chain: 500, children: 200, line: 60, directories: 1_500 };
    /// For an emulated machine.
    pub const SLOW_MACHINE: Self = Self { few: 7, chain: 15, children: 8, line: 8, directories: 60 };
}

/// The suite, fitted to a kind of store.
#[derive(Clone, Copy, Debug)]
pub struct Suite<'a> {
    /// How much of everything.
    pub sizes: Sizes,
    /// What this kind does not promise.
    pub lacks: &'a [Lack],
}

/// Runs the whole suite on a backend that lacks nothing.
///
/// # Panics
///
/// The backend breaks a promise.
pub fn conformance(fresh: impl Fn() -> Fixture) {
    Suite { sizes: Sizes::FULL, lacks: &[] }.run(fresh);
}

/// A check and its name.
type Check = (&'static str, fn(&Case<'_>));

/// Names functions after themselves.
macro_rules! checks {
    ($($check:ident),+ $(,)?) => { &[$((stringify!($check), $check)),+] };
}
use checks;

impl Suite<'_> {
    /// Runs every check. Those of one story share a fixture, until one fails.
    ///
    /// # Panics
    ///
    /// The backend breaks a promise: at the end, with the name of the backend and all checks that failed, each of which has
    /// said why.
    pub fn run(&self, fresh: impl Fn() -> Fixture) {
        let mut failed = Vec::new();
        let mut kind = String::new();
        for story in [life::CHECKS, content::CHECKS, isolation::CHECKS, scale::CHECKS] {
            let mut case = None;
            for (name, check) in story {
                let case_now = case.get_or_insert_with(|| Case::new(fresh(), self));
                kind = case_now.kind();
                eprintln!("{kind}: {name}");
                if catch_unwind(AssertUnwindSafe(|| check(case_now))).is_err() {
                    eprintln!("{kind} failed {name}");
                    failed.push(*name);
                    case = None;
                }
            }
        }
        assert!(failed.is_empty(), "{kind} does not conform: {failed:#?}");
    }
}

/// Returns an id for tests.
pub fn id(number: u64) -> Id {
    let mut bytes = [0_u8; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Id::new(bytes)
}

/// What a check works on: a fixture, perhaps one that others used before, in which it takes new names.
struct Case<'a> {
    fixture: Fixture,
    sizes: Sizes,
    lacks: &'a [Lack],
    taken: Cell<u64>,
}

impl<'a> Case<'a> {
    fn new(fixture: Fixture, suite: &Suite<'a>) -> Self {
        Self { fixture, sizes: suite.sizes, lacks: suite.lacks, taken: Cell::new(0) }
    }

    /// The name of the backend's type.
    fn kind(&self) -> String {
        let all = format!("{:?}", self.fixture.backend);
        all.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default().to_owned()
    }

    fn backend(&self) -> &dyn Backend {
        &*self.fixture.backend
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.fixture.path.join(name.as_str())
    }

    fn lacks(&self, lack: Lack) -> bool {
        self.lacks.contains(&lack)
    }

    /// A number that no other check has.
    fn number(&self) -> u64 {
        self.taken.set(self.taken.get() + 1);
        self.taken.get()
    }

    /// New names for a draft and the result that it becomes.
    fn names(&self) -> (Name, Name) {
        let id = id(self.number());
        (Name::draft(&id), Name::result(&id))
    }

    /// Starts the draft `name`: a clone of `from`, or empty.
    fn begin(&self, from: Option<&Name>, name: &Name) -> Tree {
        let root = match from {
            Some(from) => self.backend().clone_tree(from, name).expect("it clones"),
            None => self.backend().create(name).expect("it creates"),
        };
        Tree::mount(&root)
    }

    /// Makes a result: a clone of `from` or new, changed by `change`.
    fn make(&self, from: Option<&Name>, change: impl FnOnce(&Tree)) -> Name {
        let (draft, result) = self.names();
        change(&self.begin(from, &draft));
        self.backend().seal(&draft, &result).expect("it seals");
        result
    }

    fn open(&self, name: &Name) -> Tree {
        Tree::mount(&self.backend().open(name).expect("it opens"))
    }

    /// Removes a sealed tree as a caller does that holds a lock: out of sight first, deleted later.
    fn vanish(&self, name: &Name) {
        let gone = Name::trash(&format!("test-{}", self.number()));
        std::fs::rename(self.path(name), self.path(&gone)).expect("writable");
        assert!(self.backend().open(name).is_err(), "{} is still open to all", name.as_str());
        self.remove(&gone);
    }

    fn remove(&self, name: &Name) {
        self.backend().remove(name).expect("it removes");
        assert!(!self.path(name).exists(), "{} is still there", name.as_str());
    }
}

/// Fails if two descriptions differ, and says only how.
fn assert_same(found: &[String], expected: &[String], when: &str) {
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        let other: std::collections::HashSet<&String> = other.iter().collect();
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    let (extra, missing) = (only(found, expected), only(expected, found));
    assert!(extra.is_empty() && missing.is_empty(), "{when}\nfound: {extra:#?}\nexpected: {missing:#?}");
}
