//! Images in and out: from what stands after `from` to a tree on disk, and from results to images.
//!
//! ```text
//! text ──Reference::parse──► Reference ──Fetcher::resolve──► Resolved ──Fetcher::fetch──► Layers ──next──► tree
//!                                        (identity, configuration,      (on their way)    (unpacked, checked)
//!                                         layers: cheap)
//! ```
//!
//! * [`Reference`]: the transports, and how a misspelt one is told from the name of an image. [`ImageName`]: names in
//!   registries.
//! * [`Fetcher`]: the seam; [`Images`] is it for all transports. [`Resolved`] identifies a tree before it is made.
//!   [`Layers`] makes it: layer by layer, so that the caller can keep each once and share it among images.
//! * `rootfs`, `dir`, `oci`, `docker`, `daemon`, `debootstrap`, `remote`: one module for each transport. `container`
//!   reads the files of an image from a directory, or in place from an archive.
//! * `download`: blobs on their way, read while they arrive. `layers`: unpacks them, one after the other.
//! * `stream`: decompresses on a thread of its own and takes digests. `tar`: reads archives. `tree`: writes into
//!   the target, and nowhere else; read its module's comment before changing it.
//! * [`Registry`]: the client of registries, [`RegistrySettings`] what it is told.
//! * [`export`]: the way out; its module is a room of its own.
//! * [`Limits`]: how much an image may make us do.
//!
//! Images are written by strangers: lengths are checked before anything is read into memory, digests before
//! anything is believed, and no name of theirs reaches the kernel as a path.
//!
//! This room does not keep images: it knows no store, and remembers nothing between calls (digests of files
//! are remembered by the caller's [`FileDigests`]).
#![forbid(unsafe_code)]

mod container;
mod daemon;
mod debootstrap;
mod digest;
mod dir;
mod docker;
mod download;
mod error;
pub mod export;
mod fetch;
mod layers;
mod limits;
mod name;
mod oci;
mod platform;
mod reference;
mod registry;
mod remote;
mod rootfs;
mod stream;
mod tar;
mod temporary;
mod tree;
mod unpack;
mod untrusted;

pub use digest::{Digest, DigestError};
pub use error::ImageError;
pub use fetch::{
    Fetcher, FileDigests, ForgetfulDigests, ImageConfig, Images, ImagesSettings, Progress, Quiet, Resolved,
};
pub use layers::{Layer, Layers};
pub use limits::Limits;
pub use name::{ImageName, NameError, Which};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    FilePart, HostSettings, HttpError, Manifest, Notices, Patience, Proxies, Registry, RegistryError, RegistrySettings,
};
pub use tar::TarError;
pub use unpack::UnpackError;
#[doc(hidden)]
pub use unpack::unpack_in_memory;
#[doc(hidden)]
pub use untrusted::parse_untrusted;
