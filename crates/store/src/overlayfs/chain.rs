//! The list of layers that a tree stands on.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::At;
use crate::{Id, Name, StoreError};

/// The level of a base image: no merge ever reaches it.
pub(super) const BASE_LEVEL: u32 = u32::MAX;

/// One read-only layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// 0: one step's changes; L + 1: layers of level L merged.
    pub(super) level: u32,
    /// Below the store's root: `result/ID/layer`.
    pub(super) path: String,
}

/// Layers, the topmost first. On disk one line a layer: `LEVEL PATH`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) layers: Vec<Layer>,
}

impl Chain {
    pub(super) fn read(file: &Path) -> Result<Self, StoreError> {
        let text = fs::read_to_string(file).at("read", file)?;
        let layers = text.lines().map(|line| {
            let (level, path) = line.split_once(' ')?;
            Some(Layer { level: level.parse().ok()?, path: path.to_owned() })
        });
        let damaged = || Err(io::Error::new(io::ErrorKind::InvalidData, "not a list of layers"));
        match layers.collect::<Option<Vec<_>>>() {
            Some(layers) if !layers.is_empty() => Ok(Self { layers }),
            _ => damaged().at("read", file),
        }
    }

    /// As [`Chain::read`]; a missing file is an empty chain.
    pub(super) fn read_if_exists(file: &Path) -> Result<Self, StoreError> {
        match Self::read(file) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            read => read,
        }
    }

    pub(super) fn write(&self, file: &Path) -> Result<(), StoreError> {
        let lines: String = self.layers.iter().map(|layer| format!("{} {}\n", layer.level, layer.path)).collect();
        fs::write(file, lines).at("write", file)
    }

    /// If a new layer of `level` on top would complete a run of `fanout` layers of that level,
    /// returns how many layers of this chain belong to the run, and the level.
    pub(super) fn full_run(&self, level: u32, fanout: usize) -> Option<(usize, u32)> {
        let run = self.layers.iter().take_while(|layer| layer.level == level).count();
        (level != BASE_LEVEL && run + 1 >= fanout).then_some((run, level))
    }

    /// Returns the trees that own the layers.
    pub(super) fn trees(&self) -> impl Iterator<Item = Name> {
        self.layers.iter().filter_map(|layer| {
            let mut parts = layer.path.split('/');
            match (parts.next()?, parts.next()?, parts.next()?) {
                ("result", id, _) => Some(Name::result(&id.parse::<Id>().ok()?)),
                ("cache", cache, generation) => Some(Name::cache(cache, generation.parse().ok()?)),
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(levels: &[u32]) -> Chain {
        Chain { layers: levels.iter().map(|&level| Layer { level, path: format!("result/x/{level}") }).collect() }
    }

    #[test]
    fn a_run_is_full_when_the_new_layer_completes_it() {
        assert_eq!(chain(&[0, 0, 0, 1]).full_run(0, 4), Some((3, 0)));
        assert_eq!(chain(&[0, 0, 1, 0]).full_run(0, 4), None);
        assert_eq!(chain(&[1, 1, 1, BASE_LEVEL]).full_run(1, 4), Some((3, 1)));
        assert_eq!(chain(&[BASE_LEVEL; 3]).full_run(BASE_LEVEL, 2), None);
    }

    #[test]
    fn a_chain_reads_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("chain");
        assert_eq!(Chain::read_if_exists(&file).unwrap(), Chain::default());
        chain(&[0, 1, BASE_LEVEL]).write(&file).unwrap();
        assert_eq!(Chain::read(&file).unwrap(), chain(&[0, 1, BASE_LEVEL]));
        fs::write(&file, "").unwrap();
        assert!(Chain::read(&file).is_err(), "a torn file is not an empty chain");
    }
}
