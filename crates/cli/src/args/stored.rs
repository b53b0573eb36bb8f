//! The command line of what a store has: to list, remove, pin, prune, copy and check it.

use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};

use super::{ConfigArgs, RsyncMode, StoreArgs};
use crate::config::Policy;

#[derive(Debug, Args)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    /// Prints a JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Ids, or how they start
    #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) ids: Vec<String>,
    /// Removes the results that stand on them too
    #[arg(short, long)]
    pub(crate) recursive: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    #[command(flatten)]
    pub(crate) limits: PruneLimits,
    /// Says what would be removed and removes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Maintain {
    #[command(flatten)]
    pub(crate) limits: PruneLimits,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// Ids, or how they start
    #[arg(required = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Without any of these, the settings say.
#[derive(Debug, Args)]
pub(crate) struct PruneLimits {
    /// Bytes of all results together, as 20G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_size: Option<u64>,
    /// What the filesystem shall have free: a size, or a share as 20%
    #[arg(long, value_name = "SIZE|SHARE", value_parser = free)]
    pub(crate) keep_free: Option<Free>,
    /// Results and caches not used for so long go, as 30d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) max_age: Option<Duration>,
    /// How many results may stay
    #[arg(long, value_name = "N")]
    pub(crate) max_items: Option<usize>,
    /// Removes everything that is neither in use nor pinned, caches too
    #[arg(long)]
    pub(crate) all: bool,
}

impl PruneLimits {
    /// Returns what is given.
    pub(crate) fn policy(&self) -> Policy {
        let Self { max_size, keep_free, max_age, max_items, all } = *self;
        match all {
            true => Policy { max_items: Some(0), max_age: Some(Duration::ZERO), ..Policy::default() },
            false => Policy { keep_free, max_size, max_age, max_items },
        }
    }
}

/// A share of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Free {
    Bytes(u64),
    Percent(u8),
}

pub(crate) fn size(text: &str) -> Result<u64, String> {
    // As people and tools of this trade mean it: G is 2^30.
    let binary = match text.as_bytes().last() {
        Some(b'k' | b'K' | b'M' | b'G' | b'T') => format!("{text}iB"),
        _ => text.to_owned(),
    };
    let size = binary.parse::<bytesize::ByteSize>().map_err(|_| format!("`{text}` is not a size, as 20G is"))?;
    Ok(size.as_u64())
}

pub(crate) fn free(text: &str) -> Result<Free, String> {
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent @ 0..=100) => Ok(Free::Percent(percent)),
            _ => Err("a share is from 0% to 100%".to_owned()),
        },
        None => size(text).map(Free::Bytes),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Copies everything of a store that is not in another one, of whatever kinds they are
    Copy(StoreCopy),
    /// Looks whether results can be used, and removes those that cannot, with what stands on them
    Verify(StoreVerify),
    /// Makes directories and the index anew and removes what dead processes left; see `verify` for the results
    Repair(StoreArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StoreCopy {
    /// The store to copy, as `overlayfs:PATH` or `auto:PATH`; it stays as it is
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// The store to copy to, made if there is none
    #[arg(value_name = "TO")]
    pub(crate) to: String,
    /// What the trees share if TO is a `copy:` store; `rsync:` is another name of such stores
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) rsync_mode: Option<RsyncMode>,
    /// Shows nothing but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StoreVerify {
    /// Reads all files too, and compares them with the digests of `kiln build --verify`
    #[arg(long)]
    pub(crate) deep: bool,
    /// Says what is broken and removes nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_shares_have_a_percent_sign() {
        assert_eq!(size("20G").unwrap(), 20 << 30);
        assert_eq!(size("512MiB").unwrap(), 512 << 20);
        assert_eq!(size("10").unwrap(), 10);
        assert!(size("many").is_err());
        assert_eq!(free("20%").unwrap(), Free::Percent(20));
        assert_eq!(free("1T").unwrap(), Free::Bytes(1 << 40));
        assert!(free("120%").is_err());
    }
}
