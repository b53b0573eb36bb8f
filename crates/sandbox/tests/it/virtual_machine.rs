//! The limits once more on control groups v2, by a kernel of its own. That is too old to map the ids of a tmpfs (Linux 6.3), so
//! only with the host's users, or without root.

use std::path::Path;
use std::time::Duration;

use kiln_testkit::{Guest, Need};

use crate::harness::{HELPER, MAPPED};

#[test]
fn limits_in_a_virtual_machine() {
    // Once is enough: the guest's filesystem in memory cannot map ids.
    if MAPPED {
        return;
    }
    let tests = "limits:: --skip virtual_machine --skip ten_thousand --skip killed_caller";
    // Its end can be behind messages of the kernel.
    tested(&format!("chroot /mnt {IT} {tests}"), &["limits::a_fork_bomb_stays_within_its_limit"]);
}

#[test]
fn limits_by_a_control_group_that_is_handed_over_in_a_virtual_machine() {
    // There is one id, and no other user.
    if !MAPPED {
        return;
    }
    // What root there is has no rights outside its user namespace; and there are processes in the root group.
    let tests = ["a_memory_bomb_ends_the_step_and_is_told", "a_fork_bomb_stays_within_its_limit"];
    let tests = tests.map(|test| format!("limits::{test}"));
    let hand_over = "cd /sys/fs/cgroup && mkdir -p users/own || exit 1
         for group in . users; do echo '+memory +pids' > $group/cgroup.subtree_control || exit 1; done
         echo $$ > users/own/cgroup.procs && cd / || exit 1";
    let run = format!("exec unshare -U -r -m chroot /mnt {IT} {}", tests.join(" "));
    tested(&format!("{hand_over}\n{run}"), &tests.each_ref().map(String::as_str));
}

/// The tests, in the guest.
const IT: &str = "/job/it --test-threads 1 --nocapture";

/// Runs a script in a guest that has control groups v2 and our tests, of which these must run.
fn tested(script: &str, tests: &[&str]) {
    kiln_testkit::need!(Need::Root, Need::Guest);
    // pivot_root(2) refuses the initramfs as the root to leave, and open_tree(2) the helper's binary there. A skip is a
    // failure. What needs the probe needs `ldd`, which the guest lacks.
    let job = format!(
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
         mkdir -p {dir} && mount -t tmpfs tmpfs {dir} && cp /job/helper {HELPER} && mount --rbind / /mnt || exit 1
         export CI=1 LD_LIBRARY_PATH=/job
         {script}",
        dir = Path::new(HELPER).parent().unwrap().display(),
    );
    let program = std::env::current_exe().unwrap();
    let guest = Guest::new(&job).with_program("it", &program).with_program("helper", Path::new(HELPER));
    let ended = guest.run(Duration::from_secs(240), |line| {
        println!("{line}");
        true
    });
    let ended = ended.unwrap();
    assert_eq!(ended.code, Some(0));
    for test in tests {
        assert!(ended.output.contains(&format!("test {test} ... ")), "{test}");
    }
}
