//! What an image runs on, in the words of images: `linux/amd64`, `linux/arm/v7`.
//!
//! The same processor has several names, and variants that go without saying; they are made one here, as containerd
//! does it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// An operating system, a processor, and its variant.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A text that is not a platform that images can be chosen by. Always the user's mistake.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{text}` is not a platform: {reason}; write it as in `linux/arm64` or `linux/arm/v7`")]
pub struct PlatformError {
    text: String,
    reason: String,
}

impl Platform {
    /// Returns what this program was built for.
    pub fn here() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86" => ("386", ""),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            "loongarch64" => ("loong64", ""),
            same => (same, ""),
        };
        Self::new("linux", architecture, variant)
    }

    /// Returns the platform that these words mean. Empty ones stay empty.
    pub(crate) fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (os, architecture, variant) =
            (os.to_ascii_lowercase(), architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let (architecture, variant) = match (&*architecture, &*variant) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            same => same,
        };
        let variant = (!variant.is_empty()).then(|| variant.to_owned());
        Self { os, architecture: architecture.to_owned(), variant }
    }

    /// Returns the processor: `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Returns how well an image for `self` runs on `wanted`, more is better, or `None` if it does not.
    pub(crate) fn fitness(&self, wanted: &Self) -> Option<u32> {
        const EXACT: u32 = u32::MAX;
        if (&self.os, &self.architecture) != (&wanted.os, &wanted.architecture) {
            return None;
        }
        if self.variant == wanted.variant {
            return Some(EXACT);
        }
        // Each variant runs what was made for those before it.
        let (made_for, runs_on) = (self.level()?, wanted.level()?);
        (made_for < runs_on).then_some(made_for)
    }

    /// Returns the variant as a number, if there is an order: `v8.2` is 802.
    fn level(&self) -> Option<u32> {
        let variant = match (self.variant.as_deref(), &*self.architecture) {
            (Some(variant), _) => variant,
            (None, "arm64") => "v8",
            (None, "amd64") => "v1",
            (None, _) => return None,
        };
        let (major, minor) = variant.strip_prefix('v')?.split_once('.').unwrap_or((&variant[1..], "0"));
        Some(u32::from(major.parse::<u8>().ok()?) * 100 + u32::from(minor.parse::<u8>().ok()?).min(99))
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::here()
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = |reason: &str| PlatformError {
            text: text.chars().take(100).flat_map(char::escape_debug).collect(),
            reason: reason.to_owned(),
        };
        let parts: Vec<&str> = text.split('/').collect();
        let fits = |part: &&str| {
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        if !parts.iter().all(fits) {
            return Err(bad("its parts are letters and digits"));
        }
        match parts[..] {
            [os, ..] if parts.len() > 1 && !os.eq_ignore_ascii_case("linux") => {
                Err(bad("only Linux images can be run"))
            }
            [_, architecture] => Ok(Self::new("linux", architecture, "")),
            [_, architecture, variant] => Ok(Self::new("linux", architecture, variant)),
            [_] => Err(bad("it names no processor")),
            _ => Err(bad("it has more than three parts")),
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
        let parts: Vec<&str> = text.split('/').collect();
        Platform::new(parts[0], parts[1], parts.get(2).unwrap_or(&""))
    }

    #[test]
    fn variants_are_preferred_as_the_machine_can_run_them() {
        let fitness = |image: &str, wanted: &str| platform(image).fitness(&platform(wanted));
        assert_eq!(fitness("linux/amd64", "linux/amd64"), fitness("linux/amd64/v1", "linux/amd64"));
        assert_eq!(fitness("linux/amd64/v3", "linux/amd64"), None);
        assert!(fitness("linux/amd64/v2", "linux/amd64/v3") > fitness("linux/amd64", "linux/amd64/v3"));
        assert!(fitness("linux/arm/v7", "linux/arm/v7") > fitness("linux/arm/v6", "linux/arm/v7"));
        assert!(fitness("linux/arm/v6", "linux/arm") > fitness("linux/arm/v5", "linux/arm"));
        assert_eq!(fitness("linux/arm/v7", "linux/arm/v6"), None);
        assert_eq!(fitness("linux/arm64", "linux/amd64"), None);
        assert_eq!(fitness("windows/amd64", "linux/amd64"), None);
        assert!(fitness("linux/arm64", "linux/arm64/v8").is_some());
        assert_eq!(fitness("linux/arm64/v9", "linux/arm64/v8.2"), None);
    }

    #[test]
    fn a_platform_has_one_name() {
        let names = |text: &str| text.parse::<Platform>().map(|platform| platform.to_string()).expect(text);
        for (text, name) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("Linux/AArch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(names(text), name);
            assert_eq!(names(name), name);
        }
        assert_eq!(names(&Platform::here().to_string()), Platform::here().to_string());
    }

    #[test]
    fn what_is_no_platform_is_explained() {
        for text in ["", "arm64", "linux", "windows/amd64", "linux/arm/v7/x", "linux//v7", "linux/a b", "linux/é"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
