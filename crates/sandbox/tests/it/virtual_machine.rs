//! The limits once more on control groups v2, by a kernel of its own. That is too old to map the ids of a tmpfs (Linux 6.3), so
//! only with the host's users.

use std::path::Path;
use std::time::Duration;

use kiln_testkit::{Guest, Need};

use crate::harness::HELPER;

#[test]
fn limits_in_a_virtual_machine() {
    // Once is enough: the guest's filesystem in memory cannot map ids.
    if crate::harness::MAPPED {
        return;
    }
    kiln_testkit::need!(Need::Root, Need::Guest);
    // pivot_root(2) refuses the initramfs as the root to leave, and open_tree(2) the helper's binary there. A skip is a
    // failure. What needs the probe needs `ldd`, which the guest lacks.
    let job = format!(
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
         mkdir -p {dir} && mount -t tmpfs tmpfs {dir} && cp /job/helper {HELPER} && mount --rbind / /mnt || exit 1
         export CI=1 LD_LIBRARY_PATH=/job
         chroot /mnt /job/it limits:: --skip virtual_machine --skip ten_thousand --skip killed_caller --test-threads 1 --nocapture",
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
    // Its end can be behind messages of the kernel.
    assert!(ended.output.contains("test limits::a_fork_bomb_stays_within_its_limit ... "));
}
