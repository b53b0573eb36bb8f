//! Which image of several.

use std::path::Path;

use super::document::Descriptor;
use crate::{ImageError, Platform};

/// Returns the image tagged `tag`, or the only one. Of one image for several platforms, that for `wanted`.
pub(super) fn by_tag(
    path: &Path,
    all: Vec<Descriptor>,
    tag: Option<&str>,
    wanted: &Platform,
) -> Result<Descriptor, ImageError> {
    let mut known: Vec<String> = all.iter().flat_map(|image| image.tags().take(1)).map(str::to_owned).collect();
    known.sort_unstable();
    known.dedup();
    let path_owned = || path.to_owned();
    let images: Vec<Descriptor> = match tag {
        Some(tag) => all.into_iter().filter(|image| image.tags().any(|name| name == tag)).collect(),
        None if known.len() > 1 => return Err(ImageError::WhichTag { path: path_owned(), known }),
        None => all,
    };
    match (images.len(), tag) {
        (0, Some(tag)) => Err(ImageError::UnknownTag { path: path_owned(), tag: tag.to_owned(), known }),
        (0, None) => Err(ImageError::NoImage { path: path_owned() }),
        (1, _) => Ok(images.into_iter().next().expect("one")),
        _ => by_platform(path, images, wanted),
    }
}

/// Returns the image for `wanted`.
pub(super) fn by_platform(path: &Path, images: Vec<Descriptor>, wanted: &Platform) -> Result<Descriptor, ImageError> {
    // The first of the best: an index lists them in order of preference.
    let best = images
        .iter()
        .filter_map(|image| {
            let fitness = image.platform().map_or(Some(0), |platform| platform.fitness(wanted))?;
            Some((fitness, image))
        })
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    if let Some((_, image)) = best {
        return Ok(image.clone());
    }
    let known = images.iter().filter_map(Descriptor::platform).map(|platform| platform.to_string()).collect();
    Err(ImageError::WrongPlatform { path: path.to_owned(), wanted: wanted.to_string(), known })
}
