//! How other programs say things, and how they exit.

use std::error::Error as _;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use kiln_api::cap_file::CapFileError;
use kiln_api::{Error, ErrorKind};
use kiln_engine::Fault;

use super::{USAGE, Voice};
use crate::exit::Failure;
use crate::peer::PeerError;
use crate::render::tell;

/// A failure that they name.
const FAILED: u8 = 1;
/// What they did not expect (Cmdliner's `Exit.internal_error`).
const INTERNAL: u8 = 125;
/// As a shell has it of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Says why a command failed, in the words of the program that we are called as. Returns its exit code.
pub(crate) fn report(failure: &Failure, voice: Voice) -> ExitCode {
    let fault = failure.fault();
    let code = match (failure, voice, fault) {
        (Failure::Build(_), Voice::OBuilder, Fault::Cancelled) => {
            tell("Cancelled at user's request");
            FAILED
        }
        (_, _, Fault::Cancelled) => INTERRUPTED,
        (Failure::Build(_), ..) => {
            tell(format_args!("Build step failed: {}", with_causes(failure)));
            FAILED
        }
        (Failure::SelfTest { reason }, ..) => {
            tell(format_args!("Healthcheck failed: {reason}"));
            FAILED
        }
        (Failure::Spec(excerpt), ..) => {
            // On stdout, as OBuilder has it. Nobody is left to tell.
            let _ = crate::command::print(format!("{excerpt}\n"));
            FAILED
        }
        // A file that is not there is wrong usage to the library that reads their arguments.
        (Failure::Peer(PeerError::NoCapability | PeerError::Capability(CapFileError::Read { .. })), ..) => {
            tell_as_program(&with_causes(failure));
            USAGE
        }
        (Failure::Peer(error), ..) => {
            peer(error);
            FAILED
        }
        (_, _, Fault::Usage) => {
            tell_as_program(&with_causes(failure));
            USAGE
        }
        (_, _, Fault::Build) => {
            tell(with_causes(failure));
            FAILED
        }
        (_, _, Fault::Host) => {
            tell_as_program(&with_causes(failure));
            INTERNAL
        }
    };
    ExitCode::from(code)
}

/// Says something after the name that we were called by.
fn tell_as_program(text: &str) {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default();
    tell(format_args!("{}: {text}", name.display()));
}

/// Says what OCluster's programs say of what a scheduler did not do; some of it on stdout, as they do.
fn peer(error: &PeerError) {
    let on_stdout = match error {
        PeerError::Refused { call: "", said } | PeerError::NotUpdated { said, .. } => exception(said),
        PeerError::Job(said) => format!("{}.", exception(said)),
        PeerError::Refused { call, said } => return tell(format_args!("{call}: {}", exception(said))),
        PeerError::Log(said) => return tell(format_args!("Error tailing logs: {}", exception(said))),
        PeerError::Lost(_) => return tell(format_args!("Disconnected: {error}")),
        PeerError::NoWorkers { words } => return tell(words),
        PeerError::WhichWorker { words, candidates, .. } => {
            return tell(format_args!("{words}\nCandidates are:\n{}", candidates.join("\n")));
        }
        other => {
            let mut text = format!("Failed: {other}");
            add_causes(&mut text, other.source());
            return tell(text);
        }
    };
    // Nobody is left to tell.
    let _ = crate::command::print(format!("{on_stdout}\n"));
}

/// Returns an exception as OCaml's Cap'n Proto shows it.
fn exception(error: &Error) -> String {
    let kind = match error.kind {
        ErrorKind::Failed => "Failed",
        ErrorKind::Overloaded => "Overloaded",
        ErrorKind::Disconnected => "Disconnected",
        ErrorKind::Unimplemented => "Unimplemented",
    };
    format!("{kind}: {error}")
}

fn with_causes(failure: &Failure) -> String {
    let mut text = failure.to_string();
    add_causes(&mut text, failure.source());
    text
}

fn add_causes(text: &mut String, mut cause: Option<&(dyn std::error::Error + 'static)>) {
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
}

/// Returns a text as OCaml writes string literals: what is no printable ASCII, as decimal numbers.
pub(crate) fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for &byte in bytes {
        let _ = match byte {
            b'"' | b'\\' => write!(text, "\\{}", char::from(byte)),
            b'\n' => write!(text, "\\n"),
            b'\t' => write!(text, "\\t"),
            b'\r' => write!(text, "\\r"),
            0x08 => write!(text, "\\b"),
            b' '..=b'~' => write!(text, "{}", char::from(byte)),
            _ => write!(text, "\\{byte:03}"),
        };
    }
    text.push('"');
    text
}

/// Returns a path likewise.
pub(crate) fn quoted_path(path: &Path) -> String {
    quoted(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_as_ocaml_quotes_them() {
        assert_eq!(quoted("a\"b\\c\nd\té\0".as_bytes()), r#""a\"b\\c\nd\t\195\169\000""#);
    }
}
