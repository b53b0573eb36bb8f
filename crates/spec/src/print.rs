//! The canonical text of a spec, as OBuilder lays it out.

use std::fmt::{self, Display, Write};

use bstr::{BStr, ByteSlice};

use crate::ast::{Build, Copy, Op, Run, Source, Spec, User};

/// The column that the fields of a `copy` may reach on one line.
const WIDTH: usize = 80;

impl Display for Spec {
    /// Writes the canonical text, with the newline at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Layout { out: f, column: 0 };
        out.spec(self)?;
        out.text("\n)\n")
    }
}

impl Display for Op {
    /// Writes the operation as in the canonical text, without indent and newline around it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Layout { out: f, column: 0 }.op(self)
    }
}

/// Writes text and knows the column it has come to.
struct Layout<W> {
    out: W,
    column: usize,
}

impl<W: Write> Layout<W> {
    fn text(&mut self, text: &str) -> fmt::Result {
        self.column = match text.rfind('\n') {
            Some(newline) => text.len() - newline - 1,
            None => self.column + text.len(),
        };
        self.out.write_str(text)
    }

    fn newline(&mut self, indent: usize) -> fmt::Result {
        self.column = indent;
        write!(self.out, "\n{:indent$}", "")
    }

    /// Writes all but the parenthesis that closes the spec.
    fn spec(&mut self, spec: &Spec) -> fmt::Result {
        self.text("(")?;
        let indent = self.column;
        for Build { name, spec } in &spec.builds {
            self.text("(build ")?;
            let inner = self.column;
            self.atom(name.as_ref())?;
            self.newline(inner)?;
            self.spec(spec)?;
            self.text("))")?;
            self.newline(indent)?;
        }
        self.list("from", [&spec.from])?;
        for op in &spec.ops {
            self.newline(indent)?;
            self.op(op)?;
        }
        Ok(())
    }

    fn op(&mut self, op: &Op) -> fmt::Result {
        match op {
            Op::Comment(text) => self.list("comment", [text]),
            Op::Workdir(dir) => self.list("workdir", [dir]),
            Op::Shell(argv) => self.list("shell", argv),
            Op::Env { name, value } => self.list("env", [name, value]),
            Op::User(User::Unix { uid, gid }) => self.text(&format!("(user (uid {uid}) (gid {gid}))")),
            Op::User(User::Named(name)) => {
                self.text("(user ")?;
                self.list("name", [name])?;
                self.text(")")
            }
            Op::Run(run) => self.run(run),
            Op::Copy(copy) => self.copy(copy),
        }
    }

    fn run(&mut self, run: &Run) -> fmt::Result {
        self.text("(run ")?;
        let indent = self.column;
        if !run.caches.is_empty() {
            self.text("(cache")?;
            for cache in &run.caches {
                self.mount(cache.name.as_ref(), cache.target.as_ref(), &cache.buildkit_options)?;
            }
            self.text(")")?;
            self.newline(indent)?;
        }
        if !run.networks.is_empty() {
            self.list("network", &run.networks)?;
            self.newline(indent)?;
        }
        if !run.secrets.is_empty() {
            self.text("(secrets")?;
            for secret in &run.secrets {
                self.mount(secret.name.as_ref(), secret.target.as_ref(), &secret.buildkit_options)?;
            }
            self.text(")")?;
            self.newline(indent)?;
        }
        self.list("shell", [&run.command])?;
        self.text(")")
    }

    fn mount<B: AsRef<BStr>>(&mut self, name: &BStr, target: &BStr, options: &[(B, B)]) -> fmt::Result {
        self.text(" (")?;
        self.atom(name)?;
        self.text(" ")?;
        self.list("target", [target])?;
        if !options.is_empty() {
            self.text(" (buildkit_options (")?;
            for (index, (key, value)) in options.iter().enumerate() {
                self.text(if index == 0 { "(" } else { " (" })?;
                self.atom(key.as_ref())?;
                self.text(" ")?;
                self.atom(value.as_ref())?;
                self.text(")")?;
            }
            self.text("))")?;
        }
        self.text(")")
    }

    fn copy(&mut self, copy: &Copy) -> fmt::Result {
        self.text("(copy ")?;
        let indent = self.column;
        let mut one_line = Layout { out: String::new(), column: indent };
        one_line.copy_fields(copy, None)?;
        if one_line.column <= WIDTH && !one_line.out.contains('\n') {
            self.text(&one_line.out)?;
        } else {
            self.copy_fields(copy, Some(indent))?;
        }
        self.text(")")
    }

    /// Writes the fields on one line, or each on a line with this indent.
    fn copy_fields(&mut self, copy: &Copy, indent: Option<usize>) -> fmt::Result {
        fn separate<W: Write>(out: &mut Layout<W>, indent: Option<usize>) -> fmt::Result {
            match indent {
                Some(indent) => out.newline(indent),
                None => out.text(" "),
            }
        }
        if let Source::Build(name) = &copy.source {
            self.text("(from ")?;
            self.list("build", [name])?;
            self.text(")")?;
            separate(self, indent)?;
        }
        self.list("src", &copy.src)?;
        separate(self, indent)?;
        self.list("dst", [&copy.dst])?;
        if !copy.exclude.is_empty() {
            separate(self, indent)?;
            self.list("exclude", &copy.exclude)?;
        }
        Ok(())
    }

    fn list<A: AsRef<BStr>>(&mut self, name: &str, atoms: impl IntoIterator<Item = A>) -> fmt::Result {
        self.text("(")?;
        self.text(name)?;
        for atom in atoms {
            self.text(" ")?;
            self.atom(atom.as_ref())?;
        }
        self.text(")")
    }

    fn atom(&mut self, atom: &BStr) -> fmt::Result {
        if can_be_bare(atom) {
            return self.text(&String::from_utf8_lossy(atom));
        }
        // A script is easier to read with its lines below each other. The reader drops a line's leading blanks after
        // a backslash, but not those after `\n`.
        let indent = self.column + 1;
        let mut quoted = String::with_capacity(atom.len() + 2);
        quoted.push('"');
        for byte in atom.bytes() {
            match byte {
                b'\n' => {
                    self.text(&quoted)?;
                    self.text("\\")?;
                    self.newline(indent)?;
                    quoted.clear();
                    quoted.push_str("\\n");
                }
                b'\t' => quoted.push_str("\\t"),
                b'\r' => quoted.push_str("\\r"),
                b'\x08' => quoted.push_str("\\b"),
                b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
                b' '..=b'~' => quoted.push(char::from(byte)),
                _ => write!(quoted, "\\{byte:03}")?,
            }
        }
        quoted.push('"');
        self.text(&quoted)
    }
}

/// Whether an atom reads back as itself without quotes. (So does one with a backslash, but sexplib quotes it.)
fn can_be_bare(atom: &BStr) -> bool {
    !atom.is_empty()
        && atom.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"();\\".contains(&byte))
        && !atom.contains_str("#|")
        && !atom.contains_str("|#")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn shown(atom: &[u8]) -> String {
        let mut out = Layout { out: String::new(), column: 0 };
        out.atom(atom.as_bstr()).expect("a string takes all");
        out.out
    }

    #[test]
    fn atoms_are_quoted_only_if_they_must_be() {
        for bare in ["a", "#", "|", "a#", "#a", "C:/x", "'", "$A", "##", "||", "~"] {
            assert_eq!(shown(bare.as_bytes()), bare);
        }
        for (atom, quoted) in [
            (&b""[..], r#""""#),
            (b"a b", r#""a b""#),
            (b"a\\b", r#""a\\b""#),
            (b"\"'", r#""\"'""#),
            (b"a;", r#""a;""#),
            (b"#|", r##""#|""##),
            (b"a|#", r#""a|#""#),
            (b"#;", r##""#;""##),
            (b"(", r#""(""#),
            (b"\t\r\x08\0\x7f\xff", r#""\t\r\b\000\127\255""#),
            ("é".as_bytes(), r#""\195\169""#),
        ] {
            assert_eq!(shown(atom), quoted);
        }
    }

    #[test]
    fn a_script_keeps_its_lines() {
        let spec =
            parse(b"((from a) (run (network host) (shell \"if x; then\\n  y\\nfi\\n\")))").expect("it is well-formed");
        insta::assert_snapshot!(spec, @r#"
        ((from a)
         (run (network host)
              (shell "if x; then\
                      \n  y\
                      \nfi\
                      \n"))
        )
        "#);
        assert_eq!(parse(spec.to_string().as_bytes()), Ok(spec));
    }

    #[test]
    fn copy_fields_stay_on_one_line_up_to_column_80() {
        let copy = |len: usize| {
            let (src, dst) = (vec!["a".repeat(len - 20).into()], "b".into());
            Op::Copy(Copy { source: Source::Context, src, dst, exclude: vec![] }).to_string()
        };
        assert_eq!(copy(80).len(), 81, "the last parenthesis may stick out");
        assert!(!copy(80).contains('\n'));
        assert!(copy(81).contains("\n      (dst b))"));
    }
}
