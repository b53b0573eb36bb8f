//! Results out: as images, as archives, as directories.
//!
//! ```text
//! Image ──► each layer: diff (what differs between two trees) ──► layer (tar) ──► compress ──► Target
//!       └─► document: configuration, manifest, index ──────────────────────────────────────────┘
//! ```
//!
//! * `image`: what is exported, where to, and how: all that callers see. [`export`] does it.
//! * `diff`, with `trees`: walks the trees that hostile steps wrote.
//! * `layer`, `compress`: the bytes of a layer, the same on every machine.
//! * `layout`, `archive`, `push`, `whole`: the destinations. `output`: files that appear when they are whole.
//!
//! Layers are made from results when a destination needs them, one at a time; no layer is in memory.

mod archive;
mod compress;
mod diff;
mod document;
mod error;
mod image;
mod layer;
mod layout;
mod output;
mod push;
mod trees;
mod whole;
mod write;

pub use error::ExportError;
pub use image::{
    Base, Compression, Destination, Forgetful, History, Image, LayerSource, Memory, OpenTrees, Opened, Options, Output,
    Overrides, Step, Written,
};
pub use write::export;
