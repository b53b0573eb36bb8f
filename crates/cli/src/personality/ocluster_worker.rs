//! OCluster's worker. Its flags become ours.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;

use super::{Common, Voice, flag, obuilder};
use crate::args::{Kiln, RsyncMode};
use crate::render::tell;

/// Does the jobs of a pool
#[derive(Debug, Parser)]
#[command(name = "ocluster-worker", version, infer_long_args = true)]
struct Program {
    #[command(flatten)]
    common: Common,
    /// The capability file of the pool
    #[arg(short, long, value_name = "CAP")]
    connect: PathBuf,
    /// What it is called in its pool
    #[arg(long, value_name = "NAME")]
    name: OsString,
    /// How many jobs it does at once
    #[arg(long, value_name = "N", default_value = "10")]
    capacity: OsString,
    /// Clones of repositories, and what else it keeps
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Where Docker builds may push to
    #[arg(long, value_name = "REPOSITORIES")]
    allow_push: Option<OsString>,
    /// Prunes Docker's images when less than this is free, in percent
    #[arg(long, value_name = "PERCENT")]
    prune_threshold: Option<OsString>,
    /// Where results are
    #[arg(long, value_name = "STORE", alias = "store")]
    obuilder_store: Option<OsString>,
    /// What the trees of an `rsync:` store share
    #[arg(long, value_enum, value_name = "MODE")]
    rsync_mode: Option<RsyncMode>,
    /// How often to check that builds work, in seconds; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0)]
    obuilder_healthcheck: f64,
    /// Other metrics that the scheduler may ask for
    #[arg(long, value_name = "NAME:URL,…", value_delimiter = ',')]
    additional_metrics: Vec<String>,
    /// Here it is always so
    #[arg(long)]
    fast_sync: bool,
    /// Not here: `[prune]` in config.toml says it
    #[arg(long, value_name = "PERCENT")]
    obuilder_prune_threshold: Option<f64>,
    /// Not here: results go one by one until there is room
    #[arg(long, value_name = "N")]
    obuilder_prune_limit: Option<u64>,
    /// Not here: see --prune-threshold
    #[arg(long, value_name = "GIGABYTES")]
    docker_max_df_size: Option<f64>,
}

pub(super) fn parse(given: Vec<OsString>) -> Result<Kiln, clap::Error> {
    let program = Program::try_parse_from(given)?;
    let mut ours: Vec<OsString> = vec![
        "kiln".into(),
        "worker".into(),
        flag("--connect", program.connect),
        flag("--name", program.name),
        flag("--capacity", program.capacity),
        flag("--state-dir", program.state_dir),
    ];
    ours.extend(program.allow_push.map(|repositories| flag("--allow-push", repositories)));
    ours.extend(program.prune_threshold.map(|percent| flag("--prune-threshold", percent)));
    ours.extend(program.obuilder_store.map(|store| flag("--store", store)));
    ours.extend(program.rsync_mode.map(obuilder::rsync_mode));
    ours.push(match program.obuilder_healthcheck > 0.0 {
        // Whole milliseconds: durations are written without fractions.
        true => flag("--healthcheck-every", format!("{:.0}ms", program.obuilder_healthcheck * 1000.0)),
        false => "--no-healthcheck".into(),
    });
    // Its URLs are after the first colon.
    ours.extend(
        program.additional_metrics.iter().map(|metric| flag("--additional-metric", metric.replacen(':', "=", 1))),
    );
    if let Some(percent) = program.obuilder_prune_threshold {
        tell(format_args!(
            "note: --obuilder-prune-threshold does nothing here; `keep_free = \"{percent}%\"` in `[prune]` of config.toml does"
        ));
    }
    if program.docker_max_df_size.is_some() {
        tell("note: --docker-max-df-size does nothing here; --prune-threshold does");
    }
    let ours = Kiln::try_parse_from(ours)?;
    Ok(program.common.kiln(Voice::OCluster, ours.command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }

    #[test]
    fn a_worker_of_oclusters_becomes_ours() {
        let line = "ocluster-worker -c pool.cap --name=w --state-dir /s --capacity 3 --obuilder-store=btrfs:/b --allow-push a,b \
                    --obuilder-healthcheck=1.5 --additional-metrics=x:http://localhost:1/m --prune-threshold=20 --verbose";
        let kiln = parse(line.split_whitespace().map(OsString::from).collect()).unwrap();
        let Command::Worker(worker) = kiln.command else { panic!("another command") };
        assert_eq!(worker.connect.connect, Some(PathBuf::from("pool.cap")));
        assert_eq!((worker.capacity, worker.store.store.as_str()), (3, "btrfs:/b"));
        assert_eq!(worker.allow_push, ["a", "b"]);
        assert_eq!(worker.healthcheck_every, std::time::Duration::from_millis(1500));
        assert_eq!(worker.additional_metrics, [("x".to_owned(), "http://localhost:1/m".to_owned())]);
        assert_eq!((worker.prune_threshold, worker.state_dir), (Some(20.0), PathBuf::from("/s")));
    }
}
