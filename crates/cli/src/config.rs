//! Files of settings: what is always wanted on this machine or by this user.
//!
//! The system's are read first, in `/etc/kiln`, and then the user's, which win.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use toml::de::DeTable;

use kiln_engine::{Isolation, UserIds};
use kiln_store::{Limits, Store};

use crate::args::{self, Free, Userns};
use crate::exit::Failure;
use crate::limits;
use crate::network;
use crate::sandbox;
use crate::seccomp;
use crate::settings::directory;

/// What config.toml holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    prune: Policy,
    #[serde(default)]
    sandbox: SandboxPolicy,
}

/// How steps are isolated: `[sandbox]`, or what the flags of `kiln build` say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SandboxPolicy {
    pub(crate) sandbox: Option<sandbox::Kind>,
    pub(crate) fast_sync: Option<bool>,
    pub(crate) userns: Option<Userns>,
    pub(crate) allow_userns: Option<bool>,
    pub(crate) seccomp: Option<PathBuf>,
    pub(crate) mask_secrets: Option<bool>,
    #[serde(flatten)]
    pub(crate) network: network::Choice,
    #[serde(flatten)]
    pub(crate) limits: limits::Limits,
}

impl SandboxPolicy {
    /// Adds what `file`, or else the system's and the user's files, say of the rest.
    pub(crate) fn with_files(self, file: Option<&Path>) -> Result<Self, Failure> {
        let files = read::<Config>(file, "config.toml")?;
        let policies = files.into_iter().map(|(_, config)| config.sandbox).chain([self]);
        Ok(policies.fold(Self::default(), |before, after| Self {
            sandbox: after.sandbox.or(before.sandbox),
            fast_sync: after.fast_sync.or(before.fast_sync),
            userns: after.userns.or(before.userns),
            allow_userns: after.allow_userns.or(before.allow_userns),
            seccomp: after.seccomp.or(before.seccomp),
            mask_secrets: after.mask_secrets.or(before.mask_secrets),
            network: after.network.or(before.network),
            limits: after.limits.or(before.limits),
        }))
    }

    /// Returns what it comes to. Reads the seccomp profile if one is named.
    pub(crate) fn isolation(&self) -> Result<Isolation, Failure> {
        let mut isolation = Isolation::default();
        isolation.fast_sync = self.fast_sync.unwrap_or(isolation.fast_sync);
        isolation.user_ids = match self.userns {
            Some(Userns::Host) => UserIds::Host,
            Some(Userns::Own) => UserIds::Own,
            Some(Userns::Auto) | None => UserIds::Auto,
        };
        isolation.allow_namespaces = self.allow_userns.unwrap_or(isolation.allow_namespaces);
        if let Some(named) = &self.seccomp {
            isolation.seccomp = seccomp::read(named)?;
        }
        isolation.mask_secrets = self.mask_secrets.unwrap_or(isolation.mask_secrets);
        self.network.set(&mut isolation)?;
        self.limits.set(&mut isolation);
        Ok(isolation)
    }
}

/// How much may stay in a store: `[prune]`, or what the flags of `kiln prune` say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    #[serde(default, deserialize_with = "free")]
    pub(crate) keep_free: Option<Free>,
    #[serde(default, deserialize_with = "size")]
    pub(crate) max_size: Option<u64>,
    #[serde(default, deserialize_with = "duration")]
    pub(crate) max_age: Option<Duration>,
    pub(crate) max_items: Option<usize>,
}

impl Policy {
    /// Reads the policy: of `file`, or else of the system's and the user's files. What the user does not say, the system says.
    pub(crate) fn read(file: Option<&Path>) -> Result<Self, Failure> {
        let policies = read::<Config>(file, "config.toml")?.into_iter().map(|(_, config)| config.prune);
        Ok(policies.fold(Self::default(), |system, user| Self {
            keep_free: user.keep_free.or(system.keep_free),
            max_size: user.max_size.or(system.max_size),
            max_age: user.max_age.or(system.max_age),
            max_items: user.max_items.or(system.max_items),
        }))
    }

    /// Returns what it means for a store.
    pub(crate) fn limits(&self, store: &Store) -> Result<Limits, Failure> {
        let keep_free_bytes = match self.keep_free {
            Some(Free::Bytes(bytes)) => Some(bytes),
            Some(Free::Percent(percent)) => Some(store.space()?.total_bytes / 100 * u64::from(percent)),
            None => None,
        };
        let Self { max_size: max_size_bytes, max_age, max_items, .. } = *self;
        Ok(Limits { max_size_bytes, keep_free_bytes, max_age, max_items })
    }

    /// Returns the flags that say the same.
    pub(crate) fn flags(&self) -> Vec<String> {
        let keep_free = self.keep_free.map(|free| match free {
            Free::Bytes(bytes) => format!("--keep-free={bytes}"),
            Free::Percent(percent) => format!("--keep-free={percent}%"),
        });
        let max_size = self.max_size.map(|bytes| format!("--max-size={bytes}"));
        let max_age = self.max_age.map(|age| format!("--max-age={}", humantime::format_duration(age)));
        let max_items = self.max_items.map(|items| format!("--max-items={items}"));
        [keep_free, max_size, max_age, max_items].into_iter().flatten().collect()
    }
}

/// Reads files of settings, each with its path: only `file`, or else those of this name that there are, the system's first.
pub(crate) fn read<T: DeserializeOwned>(file: Option<&Path>, name: &str) -> Result<Vec<(PathBuf, T)>, Failure> {
    if let Some(file) = file {
        return Ok(vec![(file.to_owned(), parse(file)?)]);
    }
    let user = directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")));
    let files = [Some(Path::new("/etc/kiln").join(name)), user.map(|config| config.join("kiln").join(name))];
    let mut read = Vec::new();
    for file in files.into_iter().flatten() {
        match parse(&file) {
            Err(Failure::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            parsed => read.push((file, parsed?)),
        }
    }
    Ok(read)
}

fn parse<T: DeserializeOwned>(file: &Path) -> Result<T, Failure> {
    let text = std::fs::read_to_string(file).map_err(|source| Failure::Read { path: file.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| {
        let (start, reason) = refused::<T>(&text)
            .unwrap_or_else(|| (error.span().map_or(0, |span| span.start), error.message().to_owned()));
        let before = text.get(..start).unwrap_or_default();
        let in_line = before.rsplit('\n').next().unwrap_or_default();
        let (line, column) = (1 + before.matches('\n').count(), 1 + in_line.chars().count());
        Failure::ParseConfig { path: file.to_owned(), line, column, reason: reason.replace('\n', "; ") }
    })
}

/// Returns where the first setting stands that `T` refuses, and why. What is read through `#[serde(flatten)]` has lost its
/// place: the parser tells that of the section.
fn refused<T: DeserializeOwned>(text: &str) -> Option<(usize, String)> {
    let document = DeTable::parse(text).ok()?;
    // The last part of what is tried is the setting, which stands at `start`.
    let refused = |header: &str, setting: &str, start: usize| {
        let error = toml::from_str::<T>(&format!("{header}{setting}")).err()?;
        let into = error.span().and_then(|span| span.start.checked_sub(header.len())).unwrap_or(0);
        Some((start + into, error.message().to_owned()))
    };
    for (section, settings) in document.get_ref() {
        let settings = settings.get_ref().as_table()?;
        let header = format!("[{}]\n", text.get(section.span())?);
        if let Some(refused) = refused(&header, "", section.span().start) {
            return Some(refused);
        }
        // Each alone: so it is the one to blame.
        for (name, value) in settings.iter().filter(|(_, value)| !value.get_ref().is_table()) {
            let setting = text.get(name.span().start..value.span().end)?;
            if let Some(refused) = refused(&header, setting, name.span().start) {
                return Some(refused);
            }
        }
    }
    None
}

fn free<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Free>, D::Error> {
    args::free(&String::deserialize(value)?).map(Some).map_err(D::Error::custom)
}

fn size<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    args::size(&String::deserialize(value)?).map(Some).map_err(D::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    humantime::parse_duration(&String::deserialize(value)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Command, Kiln};

    #[test]
    fn limits_stand_beside_the_rest_and_what_is_unknown_is_an_error() {
        let policy = toml::from_str::<Config>("[sandbox]\nfast_sync = false\nmemory = \"1G\"").unwrap().sandbox;
        assert_eq!(policy.fast_sync, Some(false));
        assert_eq!(policy.isolation().unwrap().limits.memory_bytes, Some(1 << 30));
        for (text, said) in [("[sandbox]\nmemry = \"1G\"", "memry"), ("[sandbox]\nmemory = \"x\"", "`x` is not a size")]
        {
            let error = toml::from_str::<Config>(text).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let mut told = String::new();
        for text in [
            "[sandbox]\nfast_sync = true\n# Too little.\nmemory = 1\npids = 100\n",
            "[sandbox]\npids = 4_194_305",
            "[prune]\nmax_items = 1\n\n[sandbox]\nmemory = '1G'\ncpus = 'all'",
            "[sandbox]\nnetwork_proxy = 'https://me:secret@proxy'",
            "[sandbox]\nnetwork_host = 'lan'",
            "sandbox = { swap = '1G', timeout = 'soon' }",
            "[sandbox]\nfast_sync = true\nmemry = '1G'",
            "[sandbox]\nfast_sync = true\nuserns = 'mine'",
            "[prune]\nmax_size = '1G'\nmax_age = 'old'",
            "[prune]\nmax_size = '1G'\n[sand]\nmemory = '1G'",
            "[sandbox]\nmemory = '1G",
        ] {
            std::fs::write(&file, text).unwrap();
            let error = parse::<Config>(&file).unwrap_err().to_string();
            told.push_str(&format!("{}\n", error.rsplit_once('/').unwrap().1));
        }
        insta::assert_snapshot!(told, @r"
        config.toml:4:1: a step needs at least 4M
        config.toml:2:1: no kernel has more than 4194304
        config.toml:6:1: `all` is not such a number
        config.toml:2:1: the proxy's URL has a user or password, which every step could read; use a proxy that asks for none
        config.toml:2:1: unknown variant `lan`, expected one of `host`, `private`, `none`
        config.toml:1:26: `soon` is not a duration, as 1h 30m is
        config.toml:3:1: unknown field `memry`
        config.toml:3:10: unknown variant `mine`, expected one of `auto`, `own`, `host`
        config.toml:3:11: expected number at 0
        config.toml:3:2: unknown field `sand`, expected `prune` or `sandbox`
        config.toml:2:13: invalid literal string, expected `'`
        ");
    }

    #[test]
    fn flags_say_what_the_policy_says() {
        let text = "[prune]\nkeep_free = \"20%\"\nmax_size = \"200G\"\nmax_age = \"30d 1s\"\nmax_items = 7";
        let policy = toml::from_str::<Config>(text).unwrap().prune;
        let max_age = Some(Duration::from_secs(30 * 86_400 + 1));
        let expected =
            Policy { keep_free: Some(Free::Percent(20)), max_size: Some(200 << 30), max_age, max_items: Some(7) };
        assert_eq!(policy, expected);
        let arguments = ["kiln", "prune"].into_iter().map(str::to_owned).chain(policy.flags());
        let Command::Prune(prune) = Kiln::parse_from(arguments).command else { panic!("another command") };
        assert_eq!(prune.limits.policy(), policy);
    }
}
