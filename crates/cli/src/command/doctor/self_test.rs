//! A real build on this host, of a tree that holds this program and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::exit::Failure;

/// How a self-test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// Importing the tree, and a step.
    pub(super) first: Duration,
    /// The same again, all of it stored.
    pub(super) again: Duration,
    /// What the step said.
    pub(super) says: String,
}

/// What the step runs: this program, as `/kiln self-test`.
const SPEC: &str = "((from dir:root)\n (shell /kiln)\n (run (shell self-test)))\n";

/// Builds in a new directory in `place`, with a store of its own there. Returns what went wrong in the builder's own words.
pub(super) fn run(place: &Path) -> Result<Result<Passed, String>, Failure> {
    let dir = place.join(format!(".kiln-self-test-{}", std::process::id()));
    let write = |source| Failure::Write { path: dir.clone(), source };
    fs::create_dir(&dir).map_err(write)?;
    let tested = test_in(&dir).map_err(write);
    fs::remove_dir_all(&dir).map_err(write)?;
    tested
}

fn test_in(dir: &Path) -> io::Result<Result<Passed, String>> {
    let root = dir.join("root");
    let program = std::env::current_exe()?;
    fs::create_dir(&root)?;
    fs::copy(&program, root.join("kiln"))?;
    // A program that is linked dynamically needs its loader and libraries, at the same paths.
    for library in libraries(&fs::read_to_string("/proc/self/maps")?, &program) {
        let to = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(to.parent().unwrap_or(&root))?;
        fs::copy(&library, to)?;
    }
    if let Some(loader) = loader(&fs::read(&program)?) {
        let to = root.join(loader.strip_prefix("/").unwrap_or(&loader));
        fs::create_dir_all(to.parent().unwrap_or(&root))?;
        fs::copy(&loader, to)?;
    }
    fs::write(dir.join("kiln.spec"), SPEC)?;
    let build = || -> io::Result<(Duration, std::process::Output)> {
        let began = Instant::now();
        let store = dir.join("store");
        let output = Command::new(&program)
            .args(["build", "--no-maintenance", "--progress", "plain", "--store"])
            .arg(format!("auto:{}", store.display()))
            .arg(dir)
            .stdin(Stdio::null())
            .output()?;
        Ok((began.elapsed(), output))
    };
    let (first, output) = build()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Ok(Err(text.trim_end().to_owned()));
    }
    let said = text.lines().find_map(|line| line.split_once(SAYS)).map(|(_, said)| said.to_owned());
    let Some(says) = said else { return Ok(Err(format!("the step said something else:\n{}", text.trim_end()))) };
    let (again, _) = build()?;
    Ok(Ok(Passed { first, again, says }))
}

/// How the step begins what it says.
const SAYS: &str = "self-test: ";

/// `kiln self-test`, inside: looks at where it is.
pub(in crate::command) fn inside() -> Result<(), Failure> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outside = map.split_whitespace().nth(1).unwrap_or("?");
    let who = match outside {
        "0" => "root inside is root outside".to_owned(),
        id => format!("root inside is user {id} outside"),
    };
    super::super::print(format!("{SAYS}{who}\n"))
}

/// Returns the files of libraries among the mappings of a process, proc_pid_maps(5).
fn libraries(maps: &str, program: &Path) -> BTreeSet<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    paths.filter(|path| path != program && path.is_file()).collect()
}

/// Returns the loader that an ELF program asks for: its `PT_INTERP`, the first string that looks like one.
fn loader(program: &[u8]) -> Option<PathBuf> {
    // It lies within the first page, right behind the program headers.
    let head = program.get(..4096)?;
    let at = head.windows(4).position(|window| window == b"/lib")?;
    let text = head[at..].split(|byte| *byte == 0).next()?;
    Some(PathBuf::from(std::str::from_utf8(text).ok()?)).filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_libraries_or_is_static() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let program = std::env::current_exe().unwrap();
        let found = libraries(&maps, &program);
        assert!(!found.contains(&program));
        // What is mapped can be read.
        assert!(found.iter().all(|path| fs::read(path).is_ok()), "{found:?}");
    }

    #[test]
    fn a_loader_is_read_from_the_head_of_a_program() {
        let mut elf = vec![0; 4096];
        assert_eq!(loader(&elf), None);
        elf[600..608].copy_from_slice(b"/lib/no\0");
        assert_eq!(loader(&elf), None, "a file that is not there");
        assert_eq!(loader(&elf[..100]), None);
    }
}
