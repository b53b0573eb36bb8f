//! Base images in: from what stands after `from` to a tree on disk.
#![forbid(unsafe_code)]

mod container;
mod debootstrap;
mod digest;
mod dir;
mod docker;
mod error;
mod fetch;
mod limits;
mod oci;
mod reference;
mod rootfs;
mod stream;
mod tar;
mod tree;
mod unpack;

pub use digest::{Digest, DigestError};
pub use error::ImageError;
pub use fetch::{Fetcher, FileDigests, ForgetfulDigests, ImageConfig, LocalImages, Progress, Quiet, Resolved};
pub use limits::Limits;
pub use reference::{Reference, ReferenceError};
pub use tar::TarError;
pub use unpack::UnpackError;
