//! `kiln fmt`, `kiln check`, `kiln dockerfile`: specs alone, without a store.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use kiln_spec::Spec;

use super::print;
use crate::args;
use crate::exit::Failure;

/// Reads and parses a spec; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<(Vec<u8>, Spec), Failure> {
    let failed = |source| Failure::Read { path: path.to_owned(), source };
    // One byte more than is allowed, so that the parser says that it is too long.
    let limit = kiln_spec::MAX_SPEC_BYTES as u64 + 1;
    let mut text = Vec::new();
    if path == Path::new("-") {
        io::stdin().take(limit).read_to_end(&mut text).map_err(failed)?;
    } else {
        File::open(path).map_err(failed)?.take(limit).read_to_end(&mut text).map_err(failed)?;
    }
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    match kiln_spec::parse(&text) {
        Ok(spec) => Ok((text, spec)),
        Err(error) => Err(Failure::Spec(error.render(&name, &text))),
    }
}

pub(super) fn fmt(arguments: &args::Fmt) -> Result<(), Failure> {
    let (text, spec) = read(&arguments.spec)?;
    let canonical = spec.to_string();
    let path = arguments.spec.clone();
    if arguments.check {
        return if text == canonical.as_bytes() { Ok(()) } else { Err(Failure::NotCanonical { path }) };
    }
    if !arguments.write || path == Path::new("-") {
        return print(canonical);
    }
    if text == canonical.as_bytes() {
        return Ok(());
    }
    if kiln_spec::has_comments(&text) {
        return Err(Failure::HasComments { path });
    }
    fs::write(&path, canonical).map_err(|source| Failure::Write { path, source })
}

pub(super) fn check(arguments: &args::Check) -> Result<(), Failure> {
    for path in &arguments.specs {
        read(path)?;
    }
    Ok(())
}

pub(super) fn dockerfile(arguments: &args::Dockerfile) -> Result<(), Failure> {
    let path = arguments.spec.as_ref().or(arguments.file.as_ref()).expect("clap requires one of them");
    let (_, spec) = read(path)?;
    let escape = match arguments.escape {
        args::Escape::Unix => kiln_spec::Escape::Unix,
        args::Escape::Windows => kiln_spec::Escape::Windows,
    };
    let options = kiln_spec::DockerfileOptions { buildkit: arguments.buildkit, escape };
    print(kiln_spec::dockerfile(&spec, options))
}
