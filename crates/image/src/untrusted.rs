//! What strangers write and this room parses, documents of images and headers of registries, in one place for a fuzzer.

use std::path::Path;

use crate::oci::{Choice, Wanted, choose};
use crate::{ImageError, ImageName, Limits, Platform, Reference, registry};

/// Parses `bytes` as all that they could be: two documents with a NUL between, the second a configuration; or one line.
///
/// # Errors
///
/// The documents are refused.
///
/// # Panics
///
/// What is printed does not parse to the same.
#[doc(hidden)]
pub fn parse_untrusted(bytes: &[u8]) -> Result<(), ImageError> {
    if let Ok(text) = str::from_utf8(bytes) {
        registry::parse_challenges(text);
        if let Ok(name) = text.parse::<ImageName>() {
            assert_eq!(name.to_string().parse::<ImageName>().expect("it was printed"), name);
        }
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string().parse::<Platform>().expect("it was printed"), platform);
        }
    }
    let here = Path::new("/");
    // A path may be other bytes than text, which cannot be printed.
    if let (Ok(reference), Ok(_)) = (Reference::parse(bytes, here), str::from_utf8(bytes)) {
        assert_eq!(Reference::parse(reference.to_string().as_bytes(), here).ok(), Some(reference));
    }
    let (platform, limits) = (Platform::default(), Limits::default());
    let wanted = Wanted { platform: &platform, limits: &limits };
    let (document, config) = match bytes.iter().position(|&byte| byte == 0) {
        Some(nul) => (&bytes[..nul], &bytes[nul + 1..]),
        None => (bytes, &b"{}"[..]),
    };
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    if choose(here, "index", INDEX, document, wanted).is_ok() {
        return Ok(());
    }
    match choose(here, "manifest", MANIFEST, document, wanted)? {
        Choice::This(manifest) => manifest.image(here, "manifest", ("configuration", config), wanted).map(|_| ()),
        Choice::Other(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of the fuzz target must get past the parsers, or they are of no use.
    #[test]
    fn seeds_are_understood() {
        let seed = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/image_documents").join(name);
            std::fs::read(path).expect("a seed")
        };
        for name in ["umoci", "index"] {
            parse_untrusted(&seed(name)).expect(name);
        }
        let text = |name| String::from_utf8(seed(name)).expect("text");
        assert!(text("name").parse::<ImageName>().is_ok());
        assert!(Reference::parse(&seed("transport"), Path::new("/")).is_ok());
    }
}
