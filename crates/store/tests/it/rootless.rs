//! What holds of overlayfs for root holds of it in a user namespace.

use kiln_testkit::{Unprivileged, have};

const TESTS: [&str; 2] =
    ["conformance::overlayfs_conforms", "conformance::overlayfs_on_tmpfs_that_merges_often_conforms"];

#[test]
fn overlayfs_conforms_without_root() {
    if !have(&Unprivileged::NEEDS) {
        return;
    }
    let user = Unprivileged::with_ids().expect("a user");
    let passed = user.run_tests(&TESTS, &[]).unwrap_or_else(|said| panic!("{said}"));
    assert_eq!(passed, TESTS.len());
}
