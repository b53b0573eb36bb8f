//! What is different in a user namespace, where kiln is root of some ids and not of the host.

use std::fs;
use std::sync::LazyLock;

/// The maps of users and groups, unless this is the host's user namespace.
static MAPS: LazyLock<Option<String>> = LazyLock::new(|| {
    let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    describe(&read("uid_map"), &read("gid_map"))
});

/// Returns whose files those of a store made here are: a line that says which ids of the host are which here. `None` in the
/// host's user namespace: they are just who they are.
pub(crate) fn owners() -> Option<&'static str> {
    MAPS.as_deref()
}

/// Returns whether this is the user namespace of the host.
pub(crate) fn is_hosts() -> bool {
    owners().is_none()
}

/// How names of extended attributes begin that overlayfs marks its layers with. `trusted.` is for the host's root;
/// elsewhere an overlay is mounted with `userxattr`.
pub(crate) fn overlay_marks() -> &'static str {
    if is_hosts() { "trusted.overlay." } else { "user.overlay." }
}

fn describe(users: &str, groups: &str) -> Option<String> {
    const ALL: &str = "0 0 4294967295";
    let words = |map: &str| {
        let lines: Vec<_> = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        lines.join(",")
    };
    let (users, groups) = (words(users), words(groups));
    // Without `/proc` nothing else will work either.
    let are_hosts = |map: &str| map == ALL || map.is_empty();
    (!are_hosts(&users) || !are_hosts(&groups)).then(|| format!("uids {users} gids {groups}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hosts_namespace_has_no_owners() {
        let all = "         0          0 4294967295\n";
        assert_eq!(describe(all, all), None);
        let map = "         0       1000          1\n         1     100000      65535\n";
        let expected = "uids 0 1000 1,1 100000 65535 gids 0 0 4294967295";
        assert_eq!(describe(map, all).as_deref(), Some(expected));
    }
}
