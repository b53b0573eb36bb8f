//! What holds of a sandbox for root holds of it in a user namespace.

use kiln_testkit::{Unprivileged, have};

/// What is not so there, or cannot be looked at.
const OTHERWISE: [&str; 12] = [
    // Device nodes, which the kernel makes for the host's root only. There are none to be opened, either.
    "devices::a_device_node_cannot_be_opened_wherever_it_lies",
    "devices::root_makes_nodes_as_the_kernel_would_and_users_make_none",
    "privileges::root_can_do_what_package_managers_do",
    "user_namespace::where_namespaces_are_allowed_there_is_room_below_and_none_above",
    // The test itself mounts a disk.
    "filesystems::a_detached_mount_can_be_the_root_and_is_unmounted_when_the_run_returns",
    // A range of the host's ids for each run, and files mapped to it: all runs have the user's ids.
    "user_namespace::a_file_capability_set_inside_works_inside_and_is_an_ordinary_one_on_the_disk",
    "user_namespace::a_range_is_used_again_and_has_one_owner_even_after_the_caller_was_killed",
    "user_namespace::files_belong_on_the_disk_to_whom_they_belong_inside",
    "user_namespace::ids_that_a_namespace_does_not_have_are_nobodys",
    "user_namespace::root_inside_is_nobody_outside",
    "user_namespace::two_sandboxes_have_different_users",
    "rootless::",
];

#[test]
fn the_sandbox_keeps_its_promises_without_root() {
    if !have(&Unprivileged::NEEDS) {
        return;
    }
    let user = Unprivileged::with_ids().expect("a user");
    let passed = user.run_tests(&[], &OTHERWISE).unwrap_or_else(|said| panic!("{said}"));
    assert!(passed > 90, "only {passed} tests ran");
}
