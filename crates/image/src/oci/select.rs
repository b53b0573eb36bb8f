//! Which image of several.

use std::fmt;
use std::path::Path;

use super::document::{Descriptor, Platform};
use crate::ImageError;

/// Returns the image tagged `tag`, or the only one. Of one image for several platforms, this machine's.
pub(super) fn by_tag(path: &Path, all: Vec<Descriptor>, tag: Option<&str>) -> Result<Descriptor, ImageError> {
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
        _ => by_platform(path, images),
    }
}

/// Returns the image for this machine.
pub(super) fn by_platform(path: &Path, images: Vec<Descriptor>) -> Result<Descriptor, ImageError> {
    let here = Platform::here();
    // The first of the best: an index lists them in order of preference.
    let best = images
        .iter()
        .filter_map(|image| {
            let platform = image.platform.clone().unwrap_or_else(Platform::here);
            Some((platform.fitness(&here)?, image))
        })
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    if let Some((_, image)) = best {
        return Ok(image.clone());
    }
    let known = images.iter().filter_map(|image| image.platform.as_ref()).map(Platform::to_string).collect();
    Err(ImageError::WrongPlatform { path: path.to_owned(), wanted: here.to_string(), known })
}

impl Platform {
    /// Returns what this program was built for.
    fn here() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "powerpc64" => ("ppc64", None),
            "loongarch64" => ("loong64", None),
            same => (same, None),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// Returns how well an image for `self` runs on `here`, more is better, or `None` if it does not.
    fn fitness(&self, here: &Self) -> Option<u8> {
        if (&self.os, &self.architecture) != (&here.os, &here.architecture) {
            return None;
        }
        let variant = self.variant.as_deref().unwrap_or_default();
        if variant == here.variant.as_deref().unwrap_or_default() {
            return Some(10);
        }
        match (self.architecture.as_str(), variant) {
            (_, "") => Some(9),
            // Every amd64 is v1; more may be too much for this machine.
            ("amd64", "v1") => Some(8),
            ("arm", "v6") => Some(7),
            ("arm", "v5") => Some(6),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: parts.next() }
    }

    #[test]
    fn variants_are_preferred_as_the_machine_can_run_them() {
        let fitness = |image: &str, here: &str| platform(image).fitness(&platform(here));
        assert!(fitness("linux/amd64", "linux/amd64") > fitness("linux/amd64/v1", "linux/amd64"));
        assert_eq!(fitness("linux/amd64/v3", "linux/amd64"), None);
        assert!(fitness("linux/arm/v7", "linux/arm/v7") > fitness("linux/arm/v6", "linux/arm/v7"));
        assert_eq!(fitness("linux/arm64", "linux/amd64"), None);
        assert_eq!(fitness("windows/amd64", "linux/amd64"), None);
        assert!(fitness("linux/arm64", "linux/arm64/v8").is_some());
    }
}
