//! Base images in: from what stands after `from` to a tree on disk.
//!
//! ```text
//! text ──Reference::parse──► Reference ──Fetcher::resolve──► Resolved ──Fetcher::fetch──► tree + ImageConfig
//!                                        (identity: cheap)              (unpacked and checked)
//! ```
//!
//! * [`Reference`]: the transports, and how a misspelt one is told from the name of an image. [`ImageName`]: names in
//!   registries.
//! * [`Fetcher`]: the seam; [`LocalImages`] is it for all but registries. [`Resolved`] identifies a tree
//!   before it is made.
//! * `rootfs`, `dir`, `oci`, `docker`, `debootstrap`: one module for each transport. `container` reads the files of an
//!   image from a directory, or in place from an archive.
//! * `stream`: decompresses on a thread of its own and takes digests. `tar`: reads archives. `tree`: writes into
//!   the target, and nowhere else; read its module's comment before changing it.
//! * [`Registry`]: the client of registries, [`RegistrySettings`] what it is told.
//! * [`Limits`]: how much an image may make us do.
//!
//! Images are written by strangers: lengths are checked before anything is read into memory, digests before
//! anything is believed, and no name of theirs reaches the kernel as a path.
//!
//! This room does not keep images: it knows no store, and remembers nothing between calls (digests of files
//! are remembered by the caller's [`FileDigests`]). It does not talk to registries yet. It does not write images.
#![forbid(unsafe_code)]

mod container;
mod debootstrap;
mod digest;
mod dir;
mod docker;
mod error;
mod fetch;
mod limits;
mod name;
mod oci;
mod reference;
mod registry;
mod rootfs;
mod stream;
mod tar;
mod tree;
mod unpack;

pub use digest::{Digest, DigestError};
pub use error::ImageError;
pub use fetch::{Fetcher, FileDigests, ForgetfulDigests, ImageConfig, LocalImages, Progress, Quiet, Resolved};
pub use limits::Limits;
pub use name::{ImageName, NameError, Which};
pub use reference::{Reference, ReferenceError};
pub use registry::{FilePart, HostSettings, Manifest, Patience, Proxies, Registry, RegistryError, RegistrySettings};
pub use tar::TarError;
pub use unpack::UnpackError;
#[doc(hidden)]
pub use unpack::unpack_in_memory;
