//! What can be wrong with a spec, where, and what to do about it.

use std::fmt::Write as _;
use std::ops::Range;

use bstr::{BStr, BString, ByteSlice};
use thiserror::Error;

use crate::sexp::{MAX_DEPTH, MAX_SPEC_BYTES};

/// A mistake in the text of a spec, and its place.
///
/// `Display` is one line; [`ParseError::render`] shows the text too.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct ParseError {
    /// The bytes of the text that are wrong.
    pub span: Range<usize>,
    /// The line of the span's start, counted from 1.
    pub line: usize,
    /// The column of the span's start, counted from 1, in characters.
    pub column: usize,
    /// The mistake.
    pub kind: ParseErrorKind,
}

/// The kinds of mistake.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it, and the fields are what they insert")]
pub enum ParseErrorKind {
    // The text as a whole.
    #[error("spec of {bytes} bytes is too large")]
    TooLarge { bytes: usize },
    #[error("no spec in the text")]
    NoSpec,
    #[error("text after the end of the spec")]
    SecondSpec,

    // S-expressions.
    #[error("parenthesis is never closed")]
    UnclosedParen,
    #[error("nothing is open for this parenthesis to close")]
    StrayParen,
    #[error("string is never closed")]
    UnclosedString,
    #[error("block comment is never closed")]
    UnclosedComment,
    #[error("`|#` outside of a block comment")]
    StrayCommentEnd,
    #[error("comment mark inside an atom")]
    CommentInAtom,
    #[error("`#;` with nothing after it to drop")]
    NothingToDrop,
    #[error("bad escape in a string: {problem}")]
    BadEscape { problem: EscapeProblem },
    #[error("carriage return without a newline")]
    LoneCarriageReturn,
    #[error("lists are nested too deeply")]
    TooDeep,

    // The shape of a stage.
    #[error("atom where a list belongs")]
    NotAList { form: &'static str },
    #[error("list does not start with a name")]
    Nameless { form: &'static str },
    #[error("stage has no base image")]
    NoFrom,
    #[error("operation before the base image")]
    OpBeforeFrom,
    #[error("build after the base image")]
    BuildAfterFrom,
    #[error("second base image in a stage")]
    SecondFrom,

    // Operations and their fields.
    #[error("unknown operation `{}`", shown(.name))]
    UnknownOp { name: BString, nearest: Option<&'static str> },
    #[error("`{op}` has no field `{}`", shown(.name))]
    UnknownField { op: &'static str, name: BString, nearest: Option<&'static str>, known: &'static [&'static str] },
    #[error("field `{field}` is given twice")]
    RepeatedField { field: &'static str },
    #[error("`{op}` lacks its field `{field}`")]
    MissingField { op: &'static str, field: &'static str, form: &'static str },
    #[error("`{name}` is given {found} argument{}", if *.found == 1 { "" } else { "s" })]
    WrongCount { name: &'static str, found: usize, form: &'static str },
    #[error("list where `{name}` takes an atom")]
    NotAnAtom { name: &'static str, form: &'static str },
    #[error("unknown source `{}`", shown(.name))]
    UnknownSource { name: BString, nearest: Option<&'static str> },
    #[error("user has both a number and a name")]
    MixedUser,
    #[error("`{}` is not a number of a user or group", shown(.text))]
    BadId { text: BString },
    #[error("no build `{}` in scope", shown(.name))]
    UnknownBuild { name: BString, nearest: Option<BString>, is_nested: bool },
}

/// What is wrong with an escape in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EscapeProblem {
    /// A digit starts an escape of three.
    #[error("not three decimal digits")]
    Decimal,
    /// The number is no byte.
    #[error("above 255")]
    DecimalTooLarge,
    /// An `x` starts an escape of two digits.
    #[error("not two hexadecimal digits")]
    Hexadecimal,
}

impl ParseErrorKind {
    /// Returns what would have been right, if it can be told in a line.
    fn expected(&self) -> Option<String> {
        let text = match self {
            Self::NoSpec | Self::NoFrom | Self::OpBeforeFrom => "`(from BASE)`",
            Self::SecondSpec => "the end of the text",
            Self::TooLarge { .. } => return Some(format!("at most {MAX_SPEC_BYTES} bytes")),
            Self::TooDeep => return Some(format!("at most {MAX_DEPTH} lists in one another")),
            Self::BadEscape { problem: EscapeProblem::Hexadecimal } => "`\\xhh`, with two hexadecimal digits",
            Self::BadEscape { .. } => "`\\ddd`, from `\\000` to `\\255`",
            Self::UnknownSource { .. } => "`context` or `(build NAME)`",
            Self::UnknownOp { .. } => return Some(list(&crate::parse::OPS)),
            Self::UnknownField { known, .. } => return Some(list(known)),
            Self::NotAList { form }
            | Self::Nameless { form }
            | Self::MissingField { form, .. }
            | Self::WrongCount { form, .. }
            | Self::NotAnAtom { form, .. } => return Some(format!("`{form}`")),
            Self::MixedUser => "`(user (uid N) (gid N))` or `(user (name NAME))`",
            Self::BadId { .. } => return Some(format!("a number from 0 to {}", u32::MAX - 1)),
            Self::UnknownBuild { .. } => "a build of this stage, or of a stage around it, that comes before",
            _ => return None,
        };
        Some(text.to_owned())
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::UnknownOp { nearest: Some(nearest), .. }
            | Self::UnknownField { nearest: Some(nearest), .. }
            | Self::UnknownSource { nearest: Some(nearest), .. } => return Some(format!("did you mean `{nearest}`?")),
            Self::UnknownBuild { is_nested: true, .. } => "the build of that name is nested in another stage",
            Self::UnknownBuild { nearest: Some(nearest), .. } => {
                return Some(format!("did you mean `{}`?", shown(nearest)));
            }
            Self::BuildAfterFrom => "move it before the stage's `(from …)`",
            Self::CommentInAtom => "put the atom in quotes, or a blank before the comment",
            Self::BadEscape { .. } => "a backslash that means itself is written `\\\\`",
            Self::BadId { .. } => "a user with a name is written `(user (name NAME))`",
            Self::SecondSpec => "a text holds one spec; further stages are `(build NAME SPEC)` inside it",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

impl ParseError {
    pub(crate) fn new(text: &[u8], span: Range<usize>, kind: ParseErrorKind) -> Self {
        let before = &text[..span.start];
        let line_start = before.rfind_byte(b'\n').map_or(0, |newline| newline + 1);
        Self { line: 1 + before.find_iter(b"\n").count(), column: 1 + before[line_start..].chars().count(), span, kind }
    }

    /// Shows the mistake with the line it is in, for people: several lines, each ended by a newline.
    ///
    /// `text` is what was parsed, and `file` is what to call it. What a terminal could take for a command is escaped.
    pub fn render(&self, file: &str, text: &[u8]) -> String {
        let mut out = format!("{file}:{}:{}: {}\n", self.line, self.column, self.kind);
        let expected = self.kind.expected().map(|expected| format!("expected {expected}"));
        if matches!(self.kind, ParseErrorKind::TooLarge { .. }) {
            // The text has not been looked at: no line of it is to blame.
            out.extend(expected.map(|expected| format!("  {expected}\n")));
            return out;
        }
        let excerpt = Excerpt::new(text, &self.span);
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let _ = writeln!(out, "{margin} |\n{}", format_args!("{number} | {}", excerpt.line).to_string().trim_end());
        let _ = write!(out, "{margin} | {}{}", " ".repeat(excerpt.indent), "^".repeat(excerpt.carets));
        out.extend(expected.map(|expected| format!(" {expected}")));
        out.push('\n');
        out.extend(self.kind.hint().map(|hint| format!("hint: {hint}\n")));
        out
    }
}

/// The part of a line around a span, as a terminal can show it.
struct Excerpt {
    line: String,
    indent: usize,
    carets: usize,
}

impl Excerpt {
    /// How many bytes are shown before the span, and how many from its start.
    const BEFORE: usize = 50;
    const AFTER: usize = 70;

    fn new(text: &[u8], span: &Range<usize>) -> Self {
        let at = span.start.min(text.len());
        let line_start = text[..at].rfind_byte(b'\n').map_or(0, |newline| newline + 1);
        let line_end = text[at..].find_byte(b'\n').map_or(text.len(), |newline| at + newline);
        let shown_start = char_start(text, line_start.max(at.saturating_sub(Self::BEFORE)));
        let shown_end = char_start(text, line_end.min(at + Self::AFTER));
        let marked_end = span.end.clamp(at, shown_end);

        let mut line = String::new();
        if shown_start > line_start {
            line.push('…');
        }
        escape_into(&mut line, &text[shown_start..at]);
        let indent = line.chars().count();
        escape_into(&mut line, &text[at..marked_end]);
        let carets = (line.chars().count() - indent).max(1);
        escape_into(&mut line, text[marked_end..shown_end].trim_end_with(|c| c == '\r'));
        if shown_end < line_end {
            line.push('…');
        }
        Self { line, indent, carets }
    }
}

/// Moves `at` back to the start of the UTF-8 character that it is in, if any.
fn char_start(text: &[u8], at: usize) -> usize {
    let continues = |at: &usize| text.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    (at.saturating_sub(3)..=at).rev().find(|at| !continues(at)).unwrap_or(at)
}

fn escape_into(out: &mut String, text: &[u8]) {
    for (start, end, c) in text.char_indices() {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            '\t' => out.push(' '),
            char::REPLACEMENT_CHARACTER if !text[start..end].is_utf8() => {
                for byte in &text[start..end] {
                    let _ = write!(out, "\\x{byte:02x}");
                }
            }
            _ => out.extend(c.escape_debug()),
        }
    }
}

/// Returns a name as a message can hold it: escaped, and not too long.
fn shown(name: &BString) -> String {
    const LONGEST: usize = 60;
    let end = if name.len() > LONGEST { char_start(name, LONGEST) } else { name.len() };
    let mut out = String::new();
    escape_into(&mut out, &name[..end]);
    if end < name.len() {
        out.push('…');
    }
    out
}

fn list(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => quoted.concat(),
    }
}

/// Returns the candidate that `name` is most likely a misspelling of.
///
/// The distance takes time quadratic in the length, so long names have none, and only so many candidates are tried.
pub(crate) fn nearest<T: AsRef<[u8]>>(name: &BStr, candidates: impl IntoIterator<Item = T>) -> Option<T> {
    const LONGEST: usize = 64;
    const MOST: usize = 1000;
    if name.len() > LONGEST {
        return None;
    }
    candidates
        .into_iter()
        .filter(|candidate| candidate.as_ref().len() <= LONGEST)
        .take(MOST)
        .map(|candidate| (strsim::generic_damerau_levenshtein(name.as_bytes(), candidate.as_ref()), candidate))
        .filter(|(distance, _)| *distance <= name.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_around_the_mistake() {
        let text = format!("{}WRONG{}", "a".repeat(200), "b".repeat(200));
        let excerpt = Excerpt::new(text.as_bytes(), &(200..205));
        assert_eq!(excerpt.line, format!("…{}WRONG{}…", "a".repeat(50), "b".repeat(65)));
        assert_eq!((excerpt.indent, excerpt.carets), (51, 5));
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let text = b"\x1b[31m \xff\xe2\x82\xac \xe2\x80\xae \"\\";
        let excerpt = Excerpt::new(text, &(6..10));
        assert_eq!(excerpt.line, "\\u{1b}[31m \\xff€ \\u{202e} \"\\");
        assert_eq!((excerpt.indent, excerpt.carets), (11, 5));
    }

    #[test]
    fn columns_count_characters() {
        let error = ParseError::new("a\n€€ x".as_bytes(), 9..10, ParseErrorKind::StrayParen);
        assert_eq!((error.line, error.column), (2, 4));
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        let text = "€".repeat(100);
        let excerpt = Excerpt::new(text.as_bytes(), &(150..153));
        assert!(excerpt.line.trim_matches('…').chars().all(|c| c == '€'), "{}", excerpt.line);
    }

    #[test]
    fn only_close_names_are_suggested() {
        assert_eq!(nearest("rnu".into(), ["user", "run"]), Some("run"));
        assert_eq!(nearest("xyz".into(), ["user", "run"]), None);
    }
}
