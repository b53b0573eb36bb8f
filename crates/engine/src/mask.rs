//! Hides the values of secrets in what a step prints.
//!
//! A byte is hidden if it belongs to any occurrence of any value, so values that overlap leave no rest of one another to be
//! seen. Bytes come in pieces; what could be the beginning of a value, and nothing else, is held back until it is known.

use std::collections::{HashMap, VecDeque};

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use bstr::ByteSlice;
use kiln_sandbox::SecretBytes;

use crate::error::BuildError;

/// What is printed for a value.
const MASK: &[u8] = b"***";
/// Shorter values, and shorter lines of values, are not hidden: they are everywhere, and a log full of holes both tells
/// nothing and tells them.
const SHORTEST: usize = 4;

/// Hides values in a stream of bytes.
pub(crate) struct Mask {
    /// None if there is nothing to hide.
    search: Option<Search>,
    /// What was last returned.
    shown: Vec<u8>,
}

struct Search {
    automaton: NFA,
    state: StateID,
    /// How many bytes before this state may belong to a value that is yet to come: its place in the trie of values.
    depths: HashMap<StateID, usize>,
    held: VecDeque<u8>,
    /// Which of the held bytes are known to be hidden.
    hidden: VecDeque<bool>,
    /// The last byte that left was hidden: a mask is printed once for what touches.
    in_mask: bool,
}

impl Mask {
    /// Prepares for hiding `secrets`: each as a whole, and each line of it, without the white space around them.
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretBytes>) -> Result<Self, BuildError> {
        let mut values: Vec<&[u8]> = Vec::new();
        for secret in secrets {
            values.extend([secret.expose()].into_iter().chain(secret.expose().lines()).map(<[u8]>::trim_ascii));
        }
        values.retain(|value| value.len() >= SHORTEST);
        values.sort_unstable();
        values.dedup();
        let search = if values.is_empty() { None } else { Some(Search::new(&values)?) };
        Ok(Self { search, shown: Vec::new() })
    }

    /// Takes the next piece and returns what can be shown by now.
    pub(crate) fn push<'a>(&'a mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(search) = &mut self.search else { return bytes };
        self.shown.clear();
        for byte in bytes {
            search.push(*byte, &mut self.shown);
        }
        &self.shown
    }

    /// Returns what was held back, at the end.
    pub(crate) fn finish(&mut self) -> &[u8] {
        self.shown.clear();
        if let Some(search) = &mut self.search {
            search.release(0, &mut self.shown);
        }
        &self.shown
    }
}

impl Search {
    fn new(values: &[&[u8]]) -> Result<Self, BuildError> {
        let cannot = |why: String| BuildError::Bug(format!("cannot look for secrets in the log: {why}"));
        let built = NFA::builder().match_kind(MatchKind::Standard).build(values);
        let automaton = built.map_err(|error| cannot(error.to_string()))?;
        let start = automaton.start_state(Anchored::No).map_err(|error| cannot(error.to_string()))?;
        // From the start along a value, the automaton is where the trie is.
        let mut depths = HashMap::new();
        for value in values {
            let mut state = start;
            for (at, byte) in value.iter().enumerate() {
                state = automaton.next_state(Anchored::No, state, *byte);
                depths.insert(state, at + 1);
            }
        }
        let (held, hidden) = (VecDeque::new(), VecDeque::new());
        Ok(Self { automaton, state: start, depths, held, hidden, in_mask: false })
    }

    fn push(&mut self, byte: u8, shown: &mut Vec<u8>) {
        self.state = self.automaton.next_state(Anchored::No, self.state, byte);
        self.held.push_back(byte);
        self.hidden.push_back(false);
        if self.automaton.is_match(self.state) {
            let matches = 0..self.automaton.match_len(self.state);
            let lengths = matches.map(|at| self.automaton.pattern_len(self.automaton.match_pattern(self.state, at)));
            let longest = lengths.max().unwrap_or(0);
            self.hidden.iter_mut().rev().take(longest).for_each(|is_hidden| *is_hidden = true);
        }
        let depth = self.depths.get(&self.state).copied().unwrap_or(0);
        self.release(depth, shown);
    }

    /// Shows what is held, but for those of the last `keep` bytes that may yet be hidden.
    fn release(&mut self, keep: usize, shown: &mut Vec<u8>) {
        while (self.held.len() > keep || self.hidden.front() == Some(&true))
            && let (Some(byte), Some(is_hidden)) = (self.held.pop_front(), self.hidden.pop_front())
        {
            match (is_hidden, self.in_mask) {
                (false, _) => shown.push(byte),
                (true, false) => shown.extend_from_slice(MASK),
                (true, true) => {}
            }
            self.in_mask = is_hidden;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(secrets: &[&str], pieces: &[&[u8]]) -> String {
        let secrets: Vec<_> = secrets.iter().map(|text| SecretBytes::new(text.as_bytes().to_vec())).collect();
        let mut mask = Mask::new(&secrets).unwrap();
        let mut shown = Vec::new();
        for piece in pieces {
            shown.extend_from_slice(mask.push(piece));
        }
        shown.extend_from_slice(mask.finish());
        String::from_utf8(shown).unwrap()
    }

    #[test]
    fn a_value_is_hidden_wherever_it_stands() {
        assert_eq!(mask(&["hunter2"], &[b"hunter2, hunter2\nhunter"]), "***, ***\nhunter");
        assert_eq!(mask(&["hunter2\n"], &[b"(hunter2)"]), "(***)");
        assert_eq!(mask(&["hunter2"], &[b"hun", b"", b"t", b"er2!"]), "***!");
        assert_eq!(mask(&[], &[b"hunter2"]), "hunter2");
    }

    #[test]
    fn short_values_are_not_hidden() {
        assert_eq!(mask(&["abc", "\n", ""], &[b"abc\n"]), "abc\n");
        assert_eq!(mask(&["abcd"], &[b"abcd\n"]), "***\n");
    }

    #[test]
    fn lines_of_a_value_are_hidden_by_themselves_too() {
        let key = "-----BEGIN KEY-----\r\n  first\n}\nsecond\n";
        assert_eq!(mask(&[key], &[b"second; first\n}\n"]), "***; ***\n}\n");
        assert_eq!(mask(&[key], &[key.as_bytes()]), "***\n");
    }

    #[test]
    fn values_that_overlap_leave_nothing_of_each_other() {
        assert_eq!(mask(&["abcdef", "defghi"], &[b"-abcdefghi-"]), "-***-");
        assert_eq!(mask(&["bcdefgh", "cdef"], &[b"abcdefgX"]), "ab***gX");
        assert_eq!(mask(&["hunter2"], &[b"hunter2hunter2"]), "***");
    }

    #[test]
    fn only_what_may_be_a_value_is_held_back() {
        let secret = SecretBytes::new(*b"hunter2");
        let mut mask = Mask::new([&secret]).unwrap();
        assert_eq!(mask.push(b"password: "), b"password: ");
        assert_eq!(mask.push(b"a hunt"), b"a ");
        assert_eq!(mask.push(b"hunt"), b"hunt");
        assert_eq!(mask.push(b"s"), b"hunts");
        assert_eq!(mask.push(b"hunter2"), b"***");
    }

    /// What is to be shown, found by looking everywhere.
    fn naive(secrets: &[SecretBytes], text: &[u8]) -> Vec<u8> {
        let mut hidden = vec![false; text.len()];
        for secret in secrets {
            for value in [secret.expose()].into_iter().chain(secret.expose().lines()).map(<[u8]>::trim_ascii) {
                for at in (0..text.len()).filter(|at| value.len() >= SHORTEST && text[*at..].starts_with(value)) {
                    hidden[at..at + value.len()].fill(true);
                }
            }
        }
        let mut shown = Vec::new();
        for at in 0..text.len() {
            match hidden[at] {
                false => shown.push(text[at]),
                true if at == 0 || !hidden[at - 1] => shown.extend_from_slice(MASK),
                true => {}
            }
        }
        shown
    }

    proptest! {
        #[test]
        fn a_stream_is_masked_as_the_whole_text_is_however_it_is_split(
            // Few letters, so that values occur, repeat themselves and overlap.
            secrets in prop::collection::vec("[ab\n]{0,12}", 0..4),
            pieces in prop::collection::vec("[abc\n]{0,9}", 0..20),
        ) {
            let secrets: Vec<_> = secrets.iter().map(|text| SecretBytes::new(text.as_bytes().to_vec())).collect();
            let mut mask = Mask::new(&secrets).unwrap();
            let mut shown = Vec::new();
            for piece in &pieces {
                shown.extend_from_slice(mask.push(piece.as_bytes()));
            }
            shown.extend_from_slice(mask.finish());
            prop_assert_eq!(shown, naive(&secrets, pieces.concat().as_bytes()));
        }
    }
}
