//! The build language: reading, checking and printing specs, and turning them into Dockerfiles.
//!
//! Pure: no file, environment variable or clock is touched, and nothing is built here. What an operation *does* is the
//! engine's business; this crate knows only what can be written down.
//!
//! | file | what it holds |
//! |---|---|
//! | `ast.rs` | [`Spec`] and its parts: plain data with public fields |
//! | `sexp.rs` | text to s-expressions, with the place of each in the text |
//! | `parse.rs` | s-expressions to a [`Spec`]: the grammar and the scope of builds |
//! | `error.rs` | [`ParseError`], one [`ParseErrorKind`] per kind of mistake, and its excerpt of the text |
//! | `print.rs` | the canonical text: `Display` of [`Spec`] and [`Op`] |
//! |  `dockerfile.rs`, `dockerfile/` | [`dockerfile()`]: an equivalent Dockerfile |
//!
//! Input is not trusted: its size is bounded by [`MAX_SPEC_BYTES`] and its nesting by [`MAX_DEPTH`], reading takes time
//! linear in its length, and whatever then walks a spec recursively relies on these bounds.
//!
//! ```
//! let spec = kiln_spec::parse(b"((from debian:12) (run (shell \"make all\")))")?;
//! assert_eq!(spec.to_string(), "((from debian:12)\n (run (shell \"make all\"))\n)\n");
//! # Ok::<(), kiln_spec::ParseError>(())
//! ```

#![forbid(unsafe_code)]

mod ast;
mod dockerfile;
mod error;
mod parse;
mod print;
mod sexp;

pub use ast::{Build, Cache, Copy, Op, Run, Secret, Source, Spec, User};
pub use dockerfile::{DockerfileOptions, Escape, dockerfile};
pub use error::{EscapeProblem, ParseError, ParseErrorKind};
pub use parse::parse;
pub use sexp::{MAX_DEPTH, MAX_SPEC_BYTES, has_comments};
