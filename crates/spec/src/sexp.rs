//! Text to s-expressions, by the rules of OCaml's sexplib.
//!
//! The tree is flat (a vector in the order of the text), so that sixteen megabytes of `a a a …` fit into memory, and
//! neither reading nor dropping it recurses. Atoms stay in the text until someone asks for them.

use std::borrow::Cow;
use std::ops::Range;

use bstr::{BStr, ByteSlice};

use crate::error::{EscapeProblem, ParseError, ParseErrorKind as Kind};

/// The longest text that is read: longer than any spec seen, short enough for positions of 32 bits.
pub const MAX_SPEC_BYTES: usize = 16 << 20;

/// How deeply lists may be nested. Each nested build takes two.
pub const MAX_DEPTH: usize = 200;

/// All s-expressions of a text.
pub(crate) struct Tree<'a> {
    text: &'a [u8],
    nodes: Vec<Node>,
}

struct Node {
    start: u32,
    end: u32,
    /// The index after this node and all that is in it: its next sibling, if it has one.
    next: u32,
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    List,
    Bare,
    Quoted,
}

/// One s-expression of a tree.
#[derive(Clone, Copy)]
pub(crate) struct Sexp<'t> {
    tree: &'t Tree<'t>,
    index: usize,
}

impl<'t> Sexp<'t> {
    /// Returns the bytes of the text that this is written with.
    pub(crate) fn span(self) -> Range<usize> {
        let node = &self.tree.nodes[self.index];
        node.start as usize..node.end as usize
    }

    /// Returns the value of an atom, or `None` for a list.
    pub(crate) fn atom(self) -> Option<Cow<'t, BStr>> {
        let raw: &'t [u8] = &self.tree.text[self.span()];
        match self.tree.nodes[self.index].shape {
            Shape::List => None,
            Shape::Bare => Some(Cow::Borrowed(raw.as_bstr())),
            Shape::Quoted => {
                let mut value = Vec::with_capacity(raw.len());
                scan_string(raw, 0, |byte| value.push(byte)).expect("the reader has scanned this string");
                Some(Cow::Owned(value.into()))
            }
        }
    }

    /// Returns what is in a list, or `None` for an atom.
    pub(crate) fn items(self) -> Option<Items<'t>> {
        let node = &self.tree.nodes[self.index];
        (node.shape == Shape::List).then(|| Items { tree: self.tree, at: self.index + 1, end: node.next as usize })
    }
}

/// Siblings, from left to right.
#[derive(Clone)]
pub(crate) struct Items<'t> {
    tree: &'t Tree<'t>,
    at: usize,
    end: usize,
}

impl<'t> Iterator for Items<'t> {
    type Item = Sexp<'t>;

    fn next(&mut self) -> Option<Sexp<'t>> {
        (self.at < self.end).then(|| {
            let sexp = Sexp { tree: self.tree, index: self.at };
            self.at = self.tree.nodes[self.at].next as usize;
            sexp
        })
    }
}

impl Tree<'_> {
    /// Returns the s-expressions that are in no list.
    pub(crate) fn roots(&self) -> Items<'_> {
        Items { tree: self, at: 0, end: self.nodes.len() }
    }
}

/// Returns whether `text` has comments, of any of the three kinds. The canonical text has none.
///
/// False for a text that is no sequence of s-expressions.
pub fn has_comments(text: &[u8]) -> bool {
    let mut reader = Reader { text, nodes: Vec::new(), open: vec![Open::default()], has_comments: false };
    text.len() <= MAX_SPEC_BYTES && reader.read().is_ok() && reader.has_comments
}

/// Reads all of `text`.
pub(crate) fn read(text: &[u8]) -> Result<Tree<'_>, ParseError> {
    if text.len() > MAX_SPEC_BYTES {
        return Err(ParseError::new(text, 0..0, Kind::TooLarge { bytes: text.len() }));
    }
    let mut reader = Reader { text, nodes: Vec::new(), open: vec![Open::default()], has_comments: false };
    match reader.read() {
        Ok(()) => Ok(Tree { text, nodes: reader.nodes }),
        Err((span, kind)) => Err(ParseError::new(text, span, kind)),
    }
}

type Fault = (Range<usize>, Kind);

struct Reader<'a> {
    text: &'a [u8],
    nodes: Vec<Node>,
    /// The lists being read, outermost first; the first stands for the text itself.
    open: Vec<Open>,
    has_comments: bool,
}

#[derive(Default)]
struct Open {
    /// The list's node.
    node: usize,
    /// How many s-expressions to drop for the sake of `#;`, which may come in a row.
    drops: usize,
    /// Where the last `#;` is.
    drop_at: usize,
}

impl Reader<'_> {
    fn read(&mut self) -> Result<(), Fault> {
        let mut at = 0;
        while let Some(&byte) = self.text.get(at) {
            let rest = &self.text[at..];
            self.has_comments |= byte == b';' || rest.starts_with(b"#;") || rest.starts_with(b"#|");
            at = match byte {
                b' ' | b'\t' | b'\x0c' | b'\n' => at + 1,
                b'\r' if rest.starts_with(b"\r\n") => at + 2,
                b'\r' => return Err((at..at + 1, Kind::LoneCarriageReturn)),
                b';' => at + rest.find_byteset("\r\n").unwrap_or(rest.len()),
                b'(' => self.begin_list(at)?,
                b')' => self.end_list(at)?,
                b'"' => {
                    let end = scan_string(self.text, at, |_| ())?;
                    self.add_atom(at..end, Shape::Quoted);
                    end
                }
                b'#' if rest.starts_with(b"#;") => {
                    let list = self.list();
                    list.drops += 1;
                    list.drop_at = at;
                    at + 2
                }
                b'#' if rest.starts_with(b"#|") => skip_block_comment(self.text, at)?,
                b'|' if rest.starts_with(b"|#") => return Err((at..at + 2, Kind::StrayCommentEnd)),
                _ => {
                    let len = rest.find_byteset(" \t\x0c\r\n;()\"").unwrap_or(rest.len());
                    if let Some(inner) = rest[..len].windows(2).position(|pair| pair == b"#|" || pair == b"|#") {
                        return Err((at + inner..at + inner + 2, Kind::CommentInAtom));
                    }
                    self.add_atom(at..at + len, Shape::Bare);
                    at + len
                }
            };
        }
        let depth = self.open.len() - 1;
        let list = self.list();
        if depth > 0 {
            let start = self.nodes[self.open[depth].node].start as usize;
            Err((start..start + 1, Kind::UnclosedParen))
        } else if list.drops > 0 {
            Err((list.drop_at..list.drop_at + 2, Kind::NothingToDrop))
        } else {
            Ok(())
        }
    }

    fn list(&mut self) -> &mut Open {
        self.open.last_mut().expect("the text itself is never closed")
    }

    fn add_atom(&mut self, span: Range<usize>, shape: Shape) {
        let node = self.nodes.len();
        self.push(span, shape);
        self.finish(node);
    }

    fn begin_list(&mut self, at: usize) -> Result<usize, Fault> {
        if self.open.len() > MAX_DEPTH {
            return Err((at..at + 1, Kind::TooDeep));
        }
        self.open.push(Open { node: self.nodes.len(), ..Open::default() });
        self.push(at..at + 1, Shape::List);
        Ok(at + 1)
    }

    fn end_list(&mut self, at: usize) -> Result<usize, Fault> {
        let list = self.list();
        let node = list.node;
        if list.drops > 0 {
            return Err((list.drop_at..list.drop_at + 2, Kind::NothingToDrop));
        }
        if self.open.len() == 1 {
            return Err((at..at + 1, Kind::StrayParen));
        }
        self.open.pop();
        self.nodes[node].end = small(at + 1);
        self.nodes[node].next = small(self.nodes.len());
        self.finish(node);
        Ok(at + 1)
    }

    fn push(&mut self, span: Range<usize>, shape: Shape) {
        let next = small(self.nodes.len() + 1);
        self.nodes.push(Node { start: small(span.start), end: small(span.end), next, shape });
    }

    /// Keeps or drops the node that has just been read whole.
    fn finish(&mut self, node: usize) {
        let list = self.list();
        if list.drops > 0 {
            list.drops -= 1;
            self.nodes.truncate(node);
        }
    }
}

fn small(position: usize) -> u32 {
    u32::try_from(position).expect("no text is longer than MAX_SPEC_BYTES")
}

/// Skips the block comment at `start`. Comments nest, and a string in one may hold the marks of another.
fn skip_block_comment(text: &[u8], start: usize) -> Result<usize, Fault> {
    let mut at = start + 2;
    let mut depth = 1_usize;
    while depth > 0 {
        let Some(skipped) = text[at..].find_byteset("\"#|") else {
            return Err((start..start + 2, Kind::UnclosedComment));
        };
        at += skipped;
        at = match &text[at..] {
            [b'"', ..] => scan_string(text, at, |_| ())?,
            [b'#', b'|', ..] => {
                depth += 1;
                at + 2
            }
            [b'|', b'#', ..] => {
                depth -= 1;
                at + 2
            }
            _ => at + 1,
        };
    }
    Ok(at)
}

/// Hands the bytes that the string at `start` stands for to `push`, and returns where it ends.
fn scan_string(text: &[u8], start: usize, mut push: impl FnMut(u8)) -> Result<usize, Fault> {
    let mut at = start + 1;
    loop {
        let bad = |len: usize, problem| {
            let end = text.len().min(at + len);
            Err((at..end, Kind::BadEscape { problem }))
        };
        match text[at..] {
            [] => return Err((start..start + 1, Kind::UnclosedString)),
            [b'"', ..] => return Ok(at + 1),
            [b'\\', ref escape @ ..] => match *escape {
                [] => return Err((start..start + 1, Kind::UnclosedString)),
                [b'\n', ref line @ ..] | [b'\r', b'\n', ref line @ ..] => {
                    at = text.len() - line.trim_start_with(|c| c == ' ' || c == '\t').len();
                }
                [hundreds @ b'0'..=b'9', tens @ b'0'..=b'9', ones @ b'0'..=b'9', ..] => {
                    let digit = |byte: u8| u32::from(byte - b'0');
                    let Ok(byte) = u8::try_from(100 * digit(hundreds) + 10 * digit(tens) + digit(ones)) else {
                        return bad(4, EscapeProblem::DecimalTooLarge);
                    };
                    push(byte);
                    at += 4;
                }
                [b'0'..=b'9', ..] => return bad(2, EscapeProblem::Decimal),
                [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    let digit = |byte: u8| char::from(byte).to_digit(16).expect("checked to be a digit") as u8;
                    push(16 * digit(high) + digit(low));
                    at += 4;
                }
                [b'x', ..] => return bad(2, EscapeProblem::Hexadecimal),
                [letter, ..] => {
                    match letter {
                        b'n' => push(b'\n'),
                        b't' => push(b'\t'),
                        b'r' => push(b'\r'),
                        b'b' => push(b'\x08'),
                        b'\\' | b'"' | b'\'' | b' ' => push(letter),
                        // As sexplib: `"s/\./_/"` needs no second backslash.
                        _ => {
                            push(b'\\');
                            push(letter);
                        }
                    }
                    at += 2;
                }
            },
            [byte, ..] => {
                push(byte);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows the structure of `text` in one line, or the mistake and what it points at.
    fn shown(text: &str) -> String {
        fn show(sexp: Sexp<'_>) -> String {
            match sexp.items() {
                Some(items) => format!("[{}]", items.map(show).collect::<Vec<_>>().join(" ")),
                None => format!("{:?}", sexp.atom().expect("it is no list")),
            }
        }
        match read(text.as_bytes()) {
            Ok(tree) => tree.roots().map(show).collect::<Vec<_>>().join(" "),
            Err(error) => format!("{} at {:?}", error.kind, error.span),
        }
    }

    #[test]
    fn atoms_end_at_blanks_parens_quotes_and_semicolons() {
        assert_eq!(shown("a(b)c\"d\"e\r\nf;g\n#h|i\x0cj#;k"), r##""a" ["b"] "c" "d" "e" "f" "#h|i" "j#""##);
    }

    #[test]
    fn escapes_stand_for_their_bytes() {
        assert_eq!(shown(r#""\n\t\r\b\\\"\'\ \065\x4a\x4A""#), r#""\n\t\r\x08\\\"\' AJJ""#);
    }

    #[test]
    fn an_unknown_escape_keeps_its_backslash() {
        assert_eq!(shown(r#""s/\./\$1/""#), r#""s/\\./\\$1/""#);
    }

    #[test]
    fn a_backslash_joins_lines_and_drops_the_indent() {
        assert_eq!(shown("\"a \\\n \t b\\\r\n  c\\\n\nd\""), r#""a bc\nd""#);
    }

    #[test]
    fn comments_are_noticed_and_strings_are_none() {
        for text in ["(a) ; b", "(a #;b)", "#|a|# b"] {
            assert!(has_comments(text.as_bytes()), "{text}");
        }
        assert!(!has_comments(b"(a \"; #| #;\")"));
    }

    #[test]
    fn a_datum_comment_drops_the_next_expression() {
        assert_eq!(shown("(a #;b #;(c #;d) e #;#;f g)"), r#"["a" "e"]"#);
        assert_eq!(shown("(a #;)"), "`#;` with nothing after it to drop at 3..5");
        assert_eq!(shown("a #;"), "`#;` with nothing after it to drop at 2..4");
    }

    #[test]
    fn block_comments_nest_and_know_strings() {
        assert_eq!(shown(r##"a #| b #| c |# "|#" d |# e"##), r#""a" "e""#);
        assert_eq!(shown("a #||##||# b"), r#""a" "b""#);
        assert_eq!(shown("#| #| |#"), "block comment is never closed at 0..2");
        assert_eq!(shown("a |# b"), "`|#` outside of a block comment at 2..4");
        assert_eq!(shown("ab#|c"), "comment mark inside an atom at 2..4");
    }

    #[test]
    fn a_bad_escape_is_shown_with_its_string() {
        assert_eq!(shown(r#""a\256""#), "bad escape in a string: above 255 at 2..6");
        assert_eq!(shown(r#""a\25""#), "bad escape in a string: not three decimal digits at 2..4");
        assert_eq!(shown(r#""a\xg0""#), "bad escape in a string: not two hexadecimal digits at 2..4");
    }

    #[test]
    fn what_is_open_at_the_end_is_pointed_at() {
        assert_eq!(shown("(a (b"), "parenthesis is never closed at 3..4");
        assert_eq!(shown("(a))"), "nothing is open for this parenthesis to close at 3..4");
        assert_eq!(shown(r#"(a "b"#), "string is never closed at 3..4");
        assert_eq!(shown(r#"(a "b\"#), "string is never closed at 3..4");
    }
}
