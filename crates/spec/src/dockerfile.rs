//! A Dockerfile that does what a spec does, as far as Docker can.
//!
//! The form is OBuilder's wherever that is right. It is not where a value holds something that Docker gives a meaning:
//! a newline, a quote, `$`, a wildcard, `<<`. A Dockerfile is lines of UTF-8, so some values have no place in one;
//! then there is a line that starts with `UNSUPPORTED`, at which Docker stops, rather than a build of something else.
//!
//! **Commands.** Docker joins continued lines without the newline and drops those that start with `#`, so a script
//! cannot be put after `RUN` as it is; and only BuildKit knows `RUN <<EOF`. But a spec says which shell is in force,
//! hence the whole argv is known, and Docker's exec form takes an argv: `RUN ["/usr/bin/env", "bash", "-c", "…"]`.
//! That is exact for every shell, in both of Docker's builders. Its JSON string is continued after each `\n`, which
//! keeps a script's lines readable. A command on one line stays in the familiar form, if Docker leaves it alone.
//!
//! **Variables.** No line can set a variable to a value with a newline, but a `RUN` can have `env` do it.

mod quote;
mod stages;

use std::fmt::Write as _;

use bstr::{BStr, BString, ByteSlice};

use crate::ast::{Copy, Op, Run, Source, Spec, User};
use quote::{json_list, script_list, word};
use stages::Stage;

/// How to write a Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DockerfileOptions {
    /// Whether to use BuildKit's syntax for caches and secrets; without it, they are left out.
    pub buildkit: bool,
    /// Whose conventions to follow.
    pub escape: Escape,
}

/// The operating system that a Dockerfile is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// The escape character is the backslash.
    Unix,
    /// The escape character is the backtick, which leaves backslashes to paths.
    Windows,
}

impl Escape {
    fn char(self) -> char {
        match self {
            Self::Unix => '\\',
            Self::Windows => '`',
        }
    }

    fn default_shell(self) -> &'static [&'static str] {
        match self {
            Self::Unix => &["/usr/bin/env", "bash", "-c"],
            Self::Windows => &["cmd", "/S", "/C"],
        }
    }
}

/// Writes a spec as a Dockerfile: each stage after those nested in it, and an empty line after each.
///
/// The networks of a `run` and the exclusions of a `copy` have no counterpart and are left out.
pub fn dockerfile(spec: &Spec, options: DockerfileOptions) -> BString {
    let mut out = String::new();
    if options.escape == Escape::Windows {
        out.push_str("#escape=`\n");
    }
    for stage in stages::flatten(spec) {
        StageWriter { out: &mut out, options, owner: None, shell: None, env: Vec::new() }.stage(&stage);
        out.push('\n');
    }
    out.into()
}

/// Why a value has no place in a Dockerfile.
type Unsupported = String;
type Line = Result<String, Unsupported>;

struct StageWriter<'s, 'o> {
    out: &'o mut String,
    options: DockerfileOptions,
    /// The user, unless it is root.
    owner: Option<&'s User>,
    /// The shell, unless it is the default.
    shell: Option<&'s [BString]>,
    /// The variables that only `RUN` can set.
    env: Vec<(&'s BStr, &'s BStr)>,
}

impl<'s> StageWriter<'s, '_> {
    fn stage(&mut self, stage: &Stage<'s>) {
        let from = base(stage.spec.from.as_ref()).map(|base| match &stage.name {
            Some(name) => format!("FROM {base} as {name}"),
            None => format!("FROM {base}"),
        });
        self.line(from);
        let mut sources = stage.sources.iter();
        for op in &stage.spec.ops {
            let line = match op {
                Op::Comment(text) => Ok(comment(text.as_ref())),
                Op::Workdir(dir) => self.word("workdir", dir.as_ref()).map(|dir| format!("WORKDIR {dir}")),
                Op::Shell(argv) => {
                    self.shell = Some(argv);
                    texts("shell", argv).map(|argv| format!("SHELL [ {} ]", json_list(argv)))
                }
                Op::Env { name, value } => self.env(name.as_ref(), value.as_ref()),
                Op::User(user) => self.user(user),
                Op::Run(run) => self.run(run),
                Op::Copy(copy) => match copy.source {
                    Source::Context => self.copy(copy, None),
                    Source::Build(_) => match sources.next() {
                        Some(Some(stage)) => self.copy(copy, Some(stage)),
                        _ => Err("build that is not in scope in copy".to_owned()),
                    },
                },
            };
            self.line(line);
        }
    }

    fn line(&mut self, line: Line) {
        match line {
            Ok(line) => self.out.push_str(&line),
            Err(reason) => {
                let _ = write!(self.out, "UNSUPPORTED {reason}");
            }
        }
        self.out.push('\n');
    }

    fn word(&self, op: &str, value: &BStr) -> Line {
        let value = text(op, value)?;
        if value.contains('\n') {
            return Err(format!("newline in {op}"));
        }
        Ok(word(value, self.options.escape.char()))
    }

    fn env(&mut self, name: &'s BStr, value: &'s BStr) -> Line {
        let bare_name = text("env", name)?;
        let text = text("env", value)?;
        if bare_name.is_empty() || bare_name.contains(['=', '\n']) {
            return Err("name of a variable in env".to_owned());
        }
        self.env.retain(|(other, _)| *other != name);
        if text.contains('\n') {
            if self.options.escape == Escape::Windows {
                return Err("newline in env".to_owned());
            }
            self.env.push((name, value));
            return Ok(comment(
                format!("{bare_name}: set by each RUN, for its value has several lines").as_bytes().into(),
            ));
        }
        let escape = self.options.escape.char();
        Ok(format!("ENV {}={}", word(bare_name, escape), quote::quoted(text, escape)))
    }

    fn user(&mut self, user: &'s User) -> Line {
        self.owner = (*user != User::Unix { uid: 0, gid: 0 }).then_some(user);
        match user {
            User::Unix { uid, gid } => Ok(format!("USER {uid}:{gid}")),
            User::Named(name) => self.word("user", name.as_ref()).map(|name| format!("USER {name}")),
        }
    }

    fn run(&self, run: &Run) -> Line {
        let mut line = "RUN ".to_owned();
        if self.options.buildkit {
            for secret in &run.secrets {
                line +=
                    &self.mount("secret", secret.name.as_ref(), secret.target.as_ref(), &secret.buildkit_options)?;
            }
            for cache in &run.caches {
                line += &self.mount("cache", cache.name.as_ref(), cache.target.as_ref(), &cache.buildkit_options)?;
            }
        }
        let command = text("run", run.command.as_ref())?;
        if self.env.is_empty() && !self.is_changed(command) {
            return Ok(line + command);
        }
        let mut argv = Vec::new();
        if !self.env.is_empty() {
            argv.push("/usr/bin/env".to_owned());
        }
        for (name, value) in &self.env {
            argv.push(format!("{}={}", text("env", name)?, text("env", value)?));
        }
        match self.shell {
            Some(shell) => argv.extend(texts("shell", shell)?.into_iter().map(str::to_owned)),
            None => argv.extend(self.options.escape.default_shell().iter().map(|&word| word.to_owned())),
        }
        argv.push(command.to_owned());
        Ok(line + &script_list(&argv, self.options.escape.char()))
    }

    /// Whether Docker would hand another command to the shell, or none, if this one just followed `RUN`.
    fn is_changed(&self, command: &str) -> bool {
        /// Docker refuses longer lines; `RUN` and its mounts take some.
        const LONGEST: usize = 50_000;
        command.is_empty()
            || command.len() > LONGEST
            || command != command.trim()
            || command.contains(|c: char| c.is_control() && c != '\t')
            // A flag of RUN, an exec form, a here-document, a continued line.
            || command.starts_with("--")
            || command.starts_with('[') && command.ends_with(']')
            || command.contains("<<")
            || command.ends_with(self.options.escape.char())
    }

    fn mount(&self, kind: &str, name: &BStr, target: &BStr, options: &[(BString, BString)]) -> Line {
        let mut mount = format!("--mount=type={kind},id={}", mount_id(name));
        let mut add = |key: &str, value: &BStr| {
            let value = text(kind, value)?;
            // What else may stand here is split, unquoted and expanded, by rules that differ between versions.
            let plain = |c: char| c.is_alphanumeric() || "-_./:@%+~=".contains(c);
            if !(value.chars().all(plain) && key.chars().all(plain)) {
                return Err(format!("special character in a mount of a {kind}"));
            }
            let _ = write!(mount, ",{key}={value}");
            Ok(())
        };
        add("target", target)?;
        match self.owner {
            None => add("uid", "0".into())?,
            Some(User::Unix { uid, .. }) => add("uid", uid.to_string().as_bytes().into())?,
            Some(User::Named(_)) => (),
        }
        for (key, value) in options {
            add(text(kind, key.as_ref())?, value.as_ref())?;
        }
        Ok(mount + " ")
    }

    fn copy(&self, copy: &Copy, stage: Option<&str>) -> Line {
        if copy.src.is_empty() {
            return Ok("# nothing to copy".to_owned());
        }
        let mut line = "COPY ".to_owned();
        if let Some(User::Unix { uid, gid }) = self.owner {
            let _ = write!(line, "--chown={uid}:{gid} ");
        }
        if let Some(stage) = stage {
            let _ = write!(line, "--from={stage} ");
        }
        let escape = self.options.escape.char();
        let mut words: Vec<_> = texts("copy", &copy.src)?
            .into_iter()
            .map(|src| word(&quote::pattern(src, self.options.escape), escape))
            .collect();
        words.push(word(text("copy", copy.dst.as_ref())?, escape));
        let plain = |word: &String| {
            !word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control()) && !word.contains("<<")
        };
        if words.iter().all(plain) && !words[0].starts_with(['-', '[']) {
            line += &words.join(" ");
        } else {
            let _ = write!(line, "[{}]", json_list(words.iter().map(String::as_str)));
        }
        Ok(line)
    }
}

fn base(base: &BStr) -> Result<&str, Unsupported> {
    let base = text("from", base)?;
    if base.is_empty() || base.contains(|c: char| c.is_whitespace() || c.is_control() || "$\"'`\\".contains(c)) {
        return Err("base that is no name of an image".to_owned());
    }
    Ok(base)
}

fn text<'v>(op: &str, value: &'v BStr) -> Result<&'v str, Unsupported> {
    match value.to_str() {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(format!("bytes that are not UTF-8 text in {op}")),
    }
}

fn texts<'v>(op: &str, values: &'v [BString]) -> Result<Vec<&'v str>, Unsupported> {
    values.iter().map(|value| text(op, value.as_ref())).collect()
}

fn comment(text: &BStr) -> String {
    let text = text.to_str_lossy();
    let lines: Vec<_> = text.split('\n').map(|line| format!("# {line}").trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Returns the name of a cache or secret with bytes that a flag cannot hold as `%XX`.
fn mount_id(name: &BStr) -> String {
    let mut id = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' | b'@' | b'+' => {
                id.push(char::from(byte));
            }
            _ => {
                let _ = write!(id, "%{byte:02X}");
            }
        }
    }
    id
}
