//! OBuilder's program. Its commands become ours.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{Common, Voice, flag};
use crate::args::{Escape, Kiln, RsyncMode};

/// Builds specs
#[derive(Debug, Parser)]
#[command(name = "obuilder", version, infer_long_args = true, infer_subcommands = true)]
struct Program {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Builds a spec
    Build(Build),
    /// Removes a result and those on it
    Delete(Delete),
    /// Removes all results
    Clean(Store),
    /// Prints the Dockerfile that does what a spec does
    Dockerfile(Dockerfile),
    /// Tries whether the store opens and a build runs
    Healthcheck(Store),
}

#[derive(Debug, Args)]
struct Store {
    /// `btrfs:PATH`, `rsync:PATH`, `xfs:PATH`, `overlayfs:PATH` or `zfs:POOL/DATASET`
    #[arg(long, value_name = "STORE")]
    store: OsString,
    /// What the trees of an `rsync:` store share
    #[arg(long, value_enum, value_name = "MODE")]
    rsync_mode: Option<RsyncMode>,
    /// Here it is always so
    #[arg(long)]
    fast_sync: bool,
}

#[derive(Debug, Args)]
struct Build {
    #[command(flatten)]
    store: Store,
    /// The spec
    #[arg(short, value_name = "FILE")]
    file: PathBuf,
    /// Gives a secret its value
    #[arg(long = "secret", value_name = "ID:FILE")]
    secrets: Vec<OsString>,
    /// The source directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct Delete {
    #[command(flatten)]
    store: Store,
    /// The result
    #[arg(value_name = "ID")]
    id: OsString,
}

#[derive(Debug, Args)]
struct Dockerfile {
    /// The spec
    #[arg(short, value_name = "FILE")]
    file: PathBuf,
    /// Uses what only BuildKit has
    #[arg(long)]
    buildkit: bool,
    /// The style of the Dockerfile
    #[arg(long, value_enum, default_value_t)]
    escape: Escape,
}

pub(super) fn parse(given: Vec<OsString>) -> Result<Kiln, clap::Error> {
    let Program { common, command } = Program::try_parse_from(given)?;
    // As a command line, so that what is not said here is what it is for `kiln`.
    let mut ours: Vec<OsString> = vec!["kiln".into()];
    match command {
        Command::Build(Build { store, file, secrets, dir }) => {
            ours.extend(["build".into(), "--progress=plain".into(), flag("--file", file)]);
            store.flags(&mut ours);
            ours.extend(secrets.into_iter().map(|secret| flag("--secret", secret)));
            ours.extend(["--".into(), dir.into()]);
        }
        Command::Delete(Delete { store, id }) => {
            ours.extend(["rm".into(), "--recursive".into()]);
            store.flags(&mut ours);
            ours.extend(["--".into(), id]);
        }
        Command::Clean(store) => {
            ours.extend(["prune".into(), "--all".into()]);
            store.flags(&mut ours);
        }
        Command::Healthcheck(store) => {
            ours.push("healthcheck".into());
            store.flags(&mut ours);
        }
        Command::Dockerfile(Dockerfile { file, buildkit, escape }) => {
            ours.extend(["dockerfile".into(), flag("--file", file)]);
            ours.extend(buildkit.then(|| "--buildkit".into()));
            ours.push(flag("--escape", if matches!(escape, Escape::Unix) { "unix" } else { "windows" }));
        }
    }
    let ours = Kiln::try_parse_from(ours)?;
    Ok(common.kiln(Voice::OBuilder, ours.command))
}

impl Store {
    fn flags(self, ours: &mut Vec<OsString>) {
        ours.push(flag("--store", self.store));
        ours.extend(self.rsync_mode.map(rsync_mode));
    }
}

/// Returns the flag of a mode.
pub(super) fn rsync_mode(mode: RsyncMode) -> OsString {
    let mode = match mode {
        RsyncMode::Copy => "copy",
        RsyncMode::Hardlink => "hardlink",
        RsyncMode::HardlinkUnsafe => "hardlink_unsafe",
    };
    flag("--rsync-mode", mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn a_build_becomes_ours() {
        let line = ["obuilder", "build", "-f", "x", "--sto=rsync:/s", "--rsync-mode=hardlink", "--fast-sync", "src"];
        let line = line.map(OsString::from).to_vec();
        let kiln = parse(line).unwrap();
        let crate::args::Command::Build(build) = kiln.command else { panic!("another command") };
        assert_eq!(build.file, Some(PathBuf::from("x")));
        assert_eq!((build.store.store.as_str(), build.dir), ("rsync:/s", PathBuf::from("src")));
        assert!(matches!(build.store.rsync_mode, Some(RsyncMode::Hardlink)));
    }
}
