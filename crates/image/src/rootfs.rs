//! A tar archive of a whole root filesystem.

use std::path::{Path, PathBuf};

use crate::container::open_file;
use crate::digest::{Hash, hex};
use crate::error::At;
use crate::fetch::Plan;
use crate::layers::Fetch;
use crate::stream::{Expected, Watch};
use crate::tree::{Below, Tree, Whiteouts};
use crate::unpack::UnpackError;
use crate::{FileDigests, ImageError, Resolved, unpack};

const WANTED: &str = "a tar archive";

/// Identifies the archive by its bytes as they are, compressed or not.
pub(crate) fn resolve(file: PathBuf, digests: &dyn FileDigests) -> Result<Resolved, ImageError> {
    if open_file(&file, WANTED)?.len() == 0 {
        return Err(ImageError::NotA { path: file, wanted: WANTED, found: "it is empty".to_owned() });
    }
    let blake3 = digests.blake3(&file).at_read(&file)?;
    let identity = format!("rootfs blake3:{}", hex(&blake3));
    Ok(Resolved::tree(identity, Plan::Rootfs { file, blake3 }))
}

/// Unpacks the archive. A plain archive has no whiteouts: a file called `.wh.x` is just that.
pub(crate) fn fetch(file: &Path, blake3: [u8; 32], into: &Path, fetch: &Fetch) -> Result<(), ImageError> {
    let section = open_file(file, WANTED)?;
    let unpacking = |error| match error {
        UnpackError::WrongDigest { .. } => ImageError::Changed { path: file.to_owned() },
        error => ImageError::unpacking(file.display().to_string(), error),
    };
    let Fetch { limits, cancel, progress } = fetch;
    let tree = Tree::new(into, Below::Nothing, Whiteouts::Literal, limits).at_write(into)?;
    let watch = Watch { limits, cancel, progress: &**progress, done: 0, total: section.len() };
    let expected = Expected { stored: Hash::Blake3(blake3), unpacked: Hash::None };
    unpack::layer(section, expected, tree, &watch).map_err(unpacking)
}
