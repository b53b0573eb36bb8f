//! Which system calls steps may make, as a flag of `kiln build` and as a setting.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use kiln_sandbox::{Profile, ProfileError, Seccomp};

use crate::exit::Failure;

/// More than a profile can have; what is longer is refused with what was read.
const MAX_LENGTH: u64 = 2 << 20;

/// Reads what `--seccomp` names.
pub(crate) fn read(word: &Path) -> Result<Seccomp, Failure> {
    match word.to_str() {
        Some("default") => return Ok(Seccomp::Default),
        Some("unconfined") => return Ok(Seccomp::Unconfined),
        _ => {}
    }
    let mut text = String::new();
    let read = File::open(word).and_then(|file| file.take(MAX_LENGTH).read_to_string(&mut text));
    read.map_err(|source| Failure::Read { path: word.to_owned(), source })?;
    let wrong =
        |ProfileError { line, column, reason }| Failure::ParseConfig { path: word.to_owned(), line, column, reason };
    Profile::parse(&text).map(|profile| Seccomp::Profile(Arc::new(profile))).map_err(wrong)
}
