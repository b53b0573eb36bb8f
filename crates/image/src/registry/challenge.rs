//! `WWW-Authenticate`: how a registry says whom it wants to know.

use std::collections::BTreeMap;

/// One way to be let in.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Challenge {
    /// `basic` or `bearer`, in lower case.
    pub(super) scheme: String,
    /// By name in lower case.
    pub(super) parameters: BTreeMap<String, String>,
}

/// Returns the challenges of a header. What is not understood is left out.
///
/// Challenges are separated by commas, and so are the parameters of one: `Basic realm="a, b", Bearer x=y, z="\""`. Only
/// what follows a word tells which it is.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let (word, after) = rest.split_at(rest.find(|c| !is_token(c)).unwrap_or(rest.len()));
        if word.is_empty() {
            return challenges;
        }
        rest = after.trim_start();
        let Some(value) = rest.strip_prefix('=') else {
            challenges.push(Challenge { scheme: word.to_ascii_lowercase(), ..Challenge::default() });
            continue;
        };
        let Some((value, after)) = take_value(value.trim_start()) else { return challenges };
        rest = after;
        if let Some(challenge) = challenges.last_mut() {
            challenge.parameters.insert(word.to_ascii_lowercase(), value);
        }
    }
}

/// Takes a word or a quoted text; `None` if it has no end.
fn take_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(c),
        }
    }
    None
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(header: &str) -> String {
        let show = |challenge: Challenge| {
            let parameters: Vec<_> =
                challenge.parameters.iter().map(|(name, value)| format!("{name}=<{value}>")).collect();
            format!("{} {}", challenge.scheme, parameters.join(" ")).trim_end().to_owned()
        };
        parse(header).into_iter().map(show).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn challenges_are_told_from_their_parameters() {
        for (header, wanted) in [
            ("", ""),
            ("Basic", "basic"),
            (r#"Basic realm="a, b""#, "basic realm=<a, b>"),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#,
                "bearer realm=<https://auth.docker.io/token> scope=<repository:a:pull,push> service=<registry.docker.io>",
            ),
            (r#"Basic realm=x, BEARER Realm = "y" , scope=z"#, "basic realm=<x>; bearer realm=<y> scope=<z>"),
            (r#"Negotiate, Basic realm="q\"\\x""#, r#"negotiate; basic realm=<q"\x>"#),
            ("Negotiate YWJj==, Basic realm=x", "negotiate ywjj=<=>; basic realm=<x>"),
            (r#"Bearer realm="unfinished"#, "bearer"),
            (",, ,Basic", "basic"),
            ("\u{e4}", ""),
        ] {
            assert_eq!(shown(header), wanted, "{header}");
        }
    }
}
