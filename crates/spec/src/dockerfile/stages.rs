//! The stages of a spec in a row, with names that Docker takes for the right ones.
//!
//! In a spec a name may be any text, may be given twice, and is known within the stage around it. In a Dockerfile
//! names are few characters, upper and lower case are one, all stages know each other, and a base image that has the
//! name of a stage is that stage. Names are kept where these rules come to the same, and replaced where they do not.

use std::collections::{HashMap, HashSet};

use bstr::{BStr, ByteSlice};

use crate::ast::{Op, Source, Spec};

/// A stage of a Dockerfile.
pub(super) struct Stage<'s> {
    pub(super) spec: &'s Spec,
    /// Its name; none for the last stage.
    pub(super) name: Option<String>,
    /// For each `copy` from a build: the name of the stage, or none if there is no such build in scope.
    pub(super) sources: Vec<Option<String>>,
}

/// Returns the stages, each after those nested in it.
pub(super) fn flatten(spec: &Spec) -> Vec<Stage<'_>> {
    let mut visit = Visit::default();
    visit.stage(spec, None);
    let names = visit.names();
    let name_of = |index: &Option<usize>| index.and_then(|index| names[index].clone());
    let sources: Vec<_> = visit.stages.iter().map(|stage| stage.sources.iter().map(name_of).collect()).collect();
    visit
        .stages
        .iter()
        .zip(&names)
        .zip(sources)
        .map(|((stage, name), sources)| Stage { spec: stage.spec, name: name.clone(), sources })
        .collect()
}

#[derive(Default)]
struct Visit<'s> {
    stages: Vec<Visited<'s>>,
    /// The stages that each name has meant so far, the present one last.
    scope: HashMap<&'s BStr, Vec<usize>>,
}

struct Visited<'s> {
    spec: &'s Spec,
    name: Option<&'s BStr>,
    /// The index of the stage of each `copy` from a build.
    sources: Vec<Option<usize>>,
}

impl<'s> Visit<'s> {
    /// Recursion is as deep as builds are nested, which the reader bounds.
    fn stage(&mut self, spec: &'s Spec, name: Option<&'s BStr>) -> usize {
        for build in &spec.builds {
            let name = build.name.as_ref();
            let index = self.stage(&build.spec, Some(name));
            self.scope.entry(name).or_default().push(index);
        }
        let sources = spec.ops.iter().filter_map(|op| match op {
            Op::Copy(copy) => match &copy.source {
                Source::Build(name) => Some(self.scope.get(name.as_bstr()).and_then(|indices| indices.last().copied())),
                Source::Context => None,
            },
            _ => None,
        });
        let sources = sources.collect();
        for build in &spec.builds {
            if let Some(indices) = self.scope.get_mut(build.name.as_bstr()) {
                indices.pop();
            }
        }
        self.stages.push(Visited { spec, name, sources });
        self.stages.len() - 1
    }

    fn names(&self) -> Vec<Option<String>> {
        let key = |name: &BStr| name.to_str_lossy().to_ascii_lowercase();
        let used: HashSet<usize> =
            self.stages.iter().flat_map(|stage| stage.sources.iter().flatten().copied()).collect();
        let mut last = HashMap::new();
        let mut taken: HashSet<String> = ["scratch", "context"].map(str::to_owned).into();
        taken.extend(self.stages.iter().map(|stage| key(stage.spec.from.as_ref())));
        let reserved = taken.clone();
        for (index, stage) in self.stages.iter().enumerate() {
            if let Some(name) = stage.name {
                last.insert(key(name), index);
                taken.insert(key(name));
            }
        }
        // Where to go on counting for each stem.
        let mut counts: HashMap<String, usize> = HashMap::new();
        let mut fresh = |name: &BStr| {
            let stem = stem(name);
            let count = counts.entry(stem.clone()).or_default();
            loop {
                *count += 1;
                let name = if *count == 1 { stem.clone() } else { format!("{stem}-{count}") };
                if taken.insert(name.clone()) {
                    return name;
                }
            }
        };
        let name_of = |(index, stage): (usize, &Visited<'s>)| {
            let name = stage.name?;
            let key = key(name);
            // BuildKit takes the last of several, which is wrong for whoever means an earlier one. If nobody does, the
            // names stay as OBuilder prints them, though the classic builder refuses the second.
            let is_clear = last.get(&key) == Some(&index) || !used.contains(&index);
            match name.to_str() {
                Ok(text) if is_name(&key) && is_clear && !reserved.contains(&key) => Some(text.to_owned()),
                _ => Some(fresh(name)),
            }
        };
        self.stages.iter().enumerate().map(name_of).collect()
    }
}

/// Whether Docker takes `name`, in lower case, as the name of a stage.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
}

/// Returns the start of a name that Docker takes, and that reminds of `name`.
fn stem(name: &BStr) -> String {
    const LONGEST: usize = 40;
    let name = name.to_ascii_lowercase();
    let stem: String =
        name.iter().take(LONGEST).map(|&byte| if is_name_byte(byte) { char::from(byte) } else { '-' }).collect();
    if is_name(&stem) { stem } else { format!("stage{stem}") }
}
