//! Docker's quoting: of words, which it expands as a shell would, and of lists in JSON.

use std::fmt::Write as _;

use super::Escape;

/// Quotes a word, if it must be, so that Docker takes it as it is.
pub(super) fn word(text: &str, escape: char) -> String {
    let special = |c: char| c.is_control() || "$\"'".contains(c) || c == escape;
    if text.contains(special) || text != text.trim() { quoted(text, escape) } else { text.to_owned() }
}

/// Quotes a value in any case.
pub(super) fn quoted(text: &str, escape: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if c == '"' || c == '$' || c == escape {
            out.push(escape);
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Returns a pattern that only the path itself matches.
///
/// A backslash separates the names of a path on Windows; elsewhere it is part of a name, which BuildKit finds only if
/// it is in brackets.
pub(super) fn pattern(path: &str, escape: Escape) -> String {
    let mut pattern = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '*' | '?' | '[' => pattern.extend(['[', c, ']']),
            '\\' if escape == Escape::Unix => pattern.push_str("[\\\\]"),
            _ => pattern.push(c),
        }
    }
    pattern
}

/// Writes the elements of a JSON list on one line, without its brackets.
pub(super) fn json_list<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut json = Json { out: String::new(), escape: None, column: 0, is_blank: false };
    for word in words {
        json.string(word);
    }
    json.out
}

/// Writes a JSON list with each newline in it followed by one of the Dockerfile's.
pub(super) fn script_list(words: &[String], escape: char) -> String {
    let mut json = Json { out: "[".to_owned(), escape: Some(escape), column: 0, is_blank: false };
    for word in words {
        json.string(word);
    }
    json.out + "]"
}

struct Json {
    out: String,
    /// What continues a line, if lines may be continued.
    escape: Option<char>,
    /// The length of the present line.
    column: usize,
    /// Whether there is nothing but blanks in the present line so far, and it continues another.
    is_blank: bool,
}

impl Json {
    /// Docker refuses lines of more than 65535 bytes; the start of the instruction takes some.
    const LONGEST: usize = 50_000;

    fn string(&mut self, text: &str) {
        if self.out.len() > 1 {
            self.out.push_str(", ");
        }
        self.out.push('"');
        let mut previous = '"';
        for c in text.chars() {
            let start = self.out.len();
            match c {
                '\n' => self.out.push_str("\\n"),
                // After an escape character no line can be continued: here one is to be.
                _ if self.column > Self::LONGEST && Some(c) == self.escape => self.code(c),
                '"' | '\\' => self.out.extend(['\\', c]),
                // Two would start a here-document.
                '<' if previous == '<' => self.code(c),
                // A continuation that starts with one is dropped as a comment.
                '#' if self.is_blank => self.code(c),
                _ if c.is_control() => self.code(c),
                _ => self.out.push(c),
            }
            previous = c;
            self.is_blank &= c.is_whitespace();
            self.column += self.out.len() - start;
            // A line that ends in two escape characters is not continued.
            let can_break = self.escape.is_some_and(|escape| !self.out.ends_with(escape));
            if can_break && (c == '\n' || self.column > Self::LONGEST) {
                self.out.extend(self.escape);
                self.out.push('\n');
                self.column = 0;
                self.is_blank = true;
            }
        }
        self.is_blank = false;
        self.out.push('"');
    }

    fn code(&mut self, c: char) {
        let _ = write!(self.out, "\\u{:04x}", u32::from(c));
    }
}
