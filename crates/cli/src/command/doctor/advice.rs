//! What follows from what a host has, and what would mend it. Pure.

use kiln_store::Kind;

use super::facts::{Facts, PROGRAMS};

/// One thing about the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) state: State,
    /// What is so.
    pub(super) says: String,
    /// What would mend it: a command, or what to do.
    pub(super) fix: Option<String>,
}

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    Good,
    /// Missing, and needed by nobody who does not ask for it.
    Absent,
    /// Builds run, but something of use is missing.
    Lacking,
    /// No build can run.
    Broken,
}

/// Linux 5.12: `mount_setattr(2)`.
const OLDEST: (u32, u32) = (5, 12);
/// Linux 6.7: overlayfs takes layers one by one, so long chains need no paths.
const WHOLE: (u32, u32) = (6, 7);

/// Judges each thing by itself, in the order of a build's need.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![kernel(facts), isolation(facts), users(facts), limits(facts), store(facts), quotas(facts)];
    all.extend(PROGRAMS.iter().map(|(name, package)| program(facts, name, package)));
    all.extend([tun(facts), virtual_machines(facts)]);
    all
}

fn finding(what: &'static str, state: State, says: impl Into<String>, fix: Option<&str>) -> Finding {
    Finding { what, state, says: says.into(), fix: fix.map(str::to_owned) }
}

fn kernel(facts: &Facts) -> Finding {
    let release = &facts.kernel;
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let upgrade = Some("boot a newer kernel");
    match version {
        _ if version < OLDEST => {
            finding("kernel", State::Broken, format!("Linux {release} is older than 5.12: no sandbox"), upgrade)
        }
        _ if version < WHOLE => finding(
            "kernel",
            State::Lacking,
            format!("Linux {release} is older than 6.7: overlayfs is mounted the old way, which is a little slower"),
            upgrade,
        ),
        _ => finding("kernel", State::Good, format!("Linux {release}"), None),
    }
}

fn isolation(facts: &Facts) -> Finding {
    if !facts.missing_namespaces.is_empty() {
        let says = format!("this kernel has no {} namespaces", facts.missing_namespaces.join(", "));
        return finding("isolation", State::Broken, says, Some("use a kernel that is built with them"));
    }
    if !facts.has_seccomp {
        let fix = Some("use a kernel that is built with CONFIG_SECCOMP_FILTER");
        return finding("isolation", State::Broken, "this kernel has no seccomp filters", fix);
    }
    finding("isolation", State::Good, "namespaces and seccomp filters", None)
}

fn users(facts: &Facts) -> Finding {
    const WHAT: &str = "user namespaces";
    if !facts.forbids_user_namespaces.is_empty() {
        let state = if facts.is_root { State::Lacking } else { State::Broken };
        let follows = if facts.is_root { "root in a step is root of the host" } else { "only root can build" };
        let fix = format!("sysctl -w {}", facts.forbids_user_namespaces.join(" "));
        return finding(WHAT, state, format!("they are forbidden here: {follows}"), Some(&fix));
    }
    match &facts.id_mapping {
        Err(reason) if facts.is_root => finding(
            WHAT,
            State::Lacking,
            format!(
                "files in {} cannot be mapped ({reason}): root in a step is root of the host",
                facts.place.display()
            ),
            Some("put the store on ext4, xfs, btrfs or tmpfs, with Linux 5.19 or later"),
        ),
        _ if facts.lacks_ids.is_some() => finding(
            WHAT,
            State::Lacking,
            format!("all files in steps belong to one user: {}", facts.lacks_ids.as_deref().unwrap_or_default()),
            Some("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \"$USER\""),
        ),
        _ if !facts.is_root => {
            finding(WHAT, State::Good, "root in a step is this user, and others are from its ids", None)
        }
        _ => finding(WHAT, State::Good, "root in a step is nobody on this host", None),
    }
}

fn limits(facts: &Facts) -> Finding {
    let lacking = facts.limits.iter().filter_map(|(what, kept)| Some((*what, kept.as_ref().err()?)));
    let (lacking, reasons): (Vec<_>, Vec<_>) = lacking.unzip();
    let Some(reason) = reasons.first() else {
        let kept: Vec<_> = facts.limits.iter().map(|(what, _)| *what).collect();
        return finding("limits", State::Good, kept.join(", "), None);
    };
    let says = format!("none on {}: {reason}", lacking.join(", "));
    if !facts.is_root {
        let fix =
            "with cgroups v2, start kiln by `systemd-run --user --scope -p Delegate=yes kiln …`, or run it as root";
        return finding("limits", State::Absent, says, Some(fix));
    }
    finding("limits", State::Lacking, says, Some("boot with systemd.unified_cgroup_hierarchy=1, for cgroups v2"))
}

fn store(facts: &Facts) -> Finding {
    let place = facts.place.display();
    let possible: Vec<&str> =
        facts.stores.iter().filter(|(_, tried)| tried.is_ok()).map(|(kind, _)| kind.name()).collect();
    let reason = |wanted: Kind| {
        facts.stores.iter().find(|(kind, _)| *kind == wanted).and_then(|(_, tried)| tried.as_ref().err())
    };
    match (possible.as_slice(), reason(Kind::Overlayfs)) {
        ([], reason) => {
            let reason = reason.map_or("", String::as_str);
            finding(
                "store",
                State::Broken,
                format!("{place} can hold none: {reason}"),
                Some("choose another place with --store"),
            )
        }
        (kinds, None) => finding("store", State::Good, format!("{place} can hold {}", kinds.join(", ")), None),
        (kinds, Some(reason)) => finding(
            "store",
            State::Lacking,
            format!("{place} can hold {}, but not overlayfs, the fastest: {reason}", kinds.join(", ")),
            Some("put the store on ext4, xfs, btrfs or tmpfs"),
        ),
    }
}

fn quotas(facts: &Facts) -> Finding {
    match &facts.quotas {
        Ok(()) => finding("disk limits", State::Good, format!("stores in {} keep them", facts.place.display()), None),
        // What it says ends in what would help.
        Err(reason) => finding("disk limits", State::Absent, reason, None),
    }
}

fn program(facts: &Facts, name: &'static str, package: &str) -> Finding {
    let follows = match name {
        "newuidmap" => "without root, all files in steps belong to one user",
        "pasta" => "no private networks",
        "runc" | "crun" | "youki" => "not to be used as a sandbox",
        "zfs" => "no stores on ZFS",
        "mmdebstrap" => "no (from debootstrap:…)",
        _ => "no images from its daemon",
    };
    if facts.programs.contains(&name) {
        return finding(name, State::Good, "is here", None);
    }
    let is_wanted = name == "pasta" || name == "newuidmap" && !facts.is_root;
    let state = if is_wanted { State::Lacking } else { State::Absent };
    finding(name, state, format!("is not here: {follows}"), Some(&format!("apt-get install {package}")))
}

fn tun(facts: &Facts) -> Finding {
    match &facts.lacks_tun {
        None => finding("tun", State::Good, "is here", None),
        Some((reason, fix)) => finding("tun", State::Lacking, format!("{reason}: no private networks"), *fix),
    }
}

fn virtual_machines(facts: &Facts) -> Finding {
    match facts.has_kvm {
        true => finding("kvm", State::Good, "is here", None),
        false => finding("kvm", State::Absent, "is not here, or not for this user: virtual machines are slow", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            kernel: "6.12.9-amd64".into(),
            is_root: true,
            has_seccomp: true,
            missing_namespaces: vec![],
            forbids_user_namespaces: vec![],
            id_mapping: Ok(()),
            limits: vec![("memory", Ok(())), ("processes", Ok(()))],
            programs: PROGRAMS.iter().map(|(name, _)| *name).collect(),
            lacks_ids: None,
            lacks_tun: None,
            has_kvm: true,
            place: "/var/lib".into(),
            stores: vec![(Kind::Overlayfs, Ok(())), (Kind::Xfs, Err("no reflinks".into()))],
            quotas: Ok(()),
        }
    }

    fn worst(change: impl FnOnce(&mut Facts)) -> (State, Vec<Finding>) {
        let mut facts = good();
        change(&mut facts);
        let findings = findings(&facts);
        let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(State::Good);
        (worst, findings.into_iter().filter(|finding| finding.state > State::Absent).collect())
    }

    #[test]
    fn a_good_host_lacks_nothing() {
        assert_eq!(worst(|_| ()), (State::Good, vec![]));
    }

    #[test]
    fn what_no_build_can_do_without_is_broken() {
        assert_eq!(worst(|facts| facts.kernel = "5.10.0-28-amd64".into()).0, State::Broken);
        assert_eq!(worst(|facts| facts.has_seccomp = false).0, State::Broken);
        assert_eq!(worst(|facts| facts.missing_namespaces = vec!["pid"]).0, State::Broken);
        let nothing = |facts: &mut Facts| facts.stores = vec![(Kind::Overlayfs, Err("read-only".into()))];
        let (state, found) = worst(nothing);
        assert_eq!((state, found[0].says.as_str()), (State::Broken, "/var/lib can hold none: read-only"));
    }

    #[test]
    fn each_lack_says_what_follows_and_what_mends_it() {
        let lacks: [fn(&mut Facts); 7] = [
            |facts| (facts.is_root, facts.lacks_ids) = (false, Some("/etc/subuid has none".into())),
            |facts| facts.kernel = "6.1.0-18-amd64".into(),
            |facts| facts.forbids_user_namespaces = vec!["user.max_user_namespaces=65536"],
            |facts| facts.id_mapping = Err("EINVAL".into()),
            |facts| facts.limits[1].1 = Err("no such controller".into()),
            |facts| facts.lacks_tun = Some(("only root may use /dev/net/tun".into(), Some("chmod 666 /dev/net/tun"))),
            |facts| facts.programs.retain(|name| *name != "pasta"),
        ];
        for lack in lacks {
            let (state, found) = worst(lack);
            assert_eq!((state, found.len()), (State::Lacking, 1), "{found:?}");
            assert!(found[0].says.contains(':') && found[0].fix.is_some(), "{found:?}");
        }
    }
}
