//! Bad networks.

use kiln_testkit::Link;
use rustix::process::Signal;

use super::*;

#[test]
fn a_pull_gets_through_a_link_that_keeps_breaking() {
    needs_registry!();
    let world = World::new(Access::default());
    let link = Link::to(world.registry.address()).unwrap();
    link.cut_after(Some(300_000));
    let built = world.env.ran(&mut world.pulling(&link.host())).ok();
    assert!(link.connections() > 4, "{}", link.connections());
    link.cut_after(None);
    let whole = world.seen_elsewhere(&format!(
        "((from {}) (run (shell \"sha256sum /bin/busybox /which\")))",
        world.name("team/base:1")
    ));
    let broken =
        world.env.log(&format!("((from {}/team/base:1) (run (shell \"sha256sum /bin/busybox /which\")))", link.host()));
    assert_eq!(broken, whole);
    assert_eq!(world.env.run(&["log", built.id()]).ok().stdout, "first\n");
}

#[test]
fn a_pull_gets_through_a_slow_link_and_tells_how_far_it_is() {
    needs_registry!();
    let world = World::new(Access::default());
    let link = Link::to(world.registry.address()).unwrap();
    link.throttle(Some(2_000_000));
    let built = world.env.ran(&mut world.pulling(&link.host())).ok();
    let steps = built.stderr.lines().filter(|line| line.contains("iB of ")).count();
    assert!(steps > 2, "{}", built.stderr);
}

#[test]
fn a_pull_that_stalls_can_be_interrupted_and_done_again() {
    needs_registry!();
    let world = World::new(Access::default());
    let link = Link::to(world.registry.address()).unwrap();
    link.stall_after(Some(400_000));
    let mut running = world.env.spawn(&mut world.pulling(&link.host()));
    running.wait_for(" of ");
    running.signal(Signal::INT);
    let ended = running.end().fails_with(130);
    assert!(ended.stderr.ends_with("cancelled\n"), "{}", ended.stderr);
    world.env.assert_clean();
    link.stall_after(None);
    world.env.ran(&mut world.pulling(&link.host())).ok();
}

#[test]
fn a_registry_that_is_down_is_named_soon_and_the_wait_explained() {
    needs_registry!();
    let world = World::new(Access::default());
    let link = Link::to(([127, 0, 0, 1], 9).into()).unwrap();
    let host = link.host();
    drop(link);
    let ran = world.env.ran(&mut world.pulling(&host)).fails_with(3);
    insta::assert_snapshot!(ran.told().replace(&host, "[HOST]"));
    let id = world.env.build("(run (shell \"true\"))").ok().id().to_owned();
    let pushed = world.env.run(&["export", &id, "-t", &format!("{host}/x:1"), "--push", "-q"]).fails_with(3);
    insta::assert_snapshot!(pushed.told().replace(&host, "[HOST]"));
}

#[test]
fn a_busy_registry_is_waited_for_and_the_wait_told() {
    needs_registry!();
    let env = TestEnv::new();
    let busy = Script::start(|request| match &*request.path {
        "/v2/" => Response::new(200),
        _ => Response::new(429).header("Retry-After", "1").bytes("{\"errors\":[{\"code\":\"TOOMANYREQUESTS\"}]}"),
    })
    .unwrap();
    env.spec(&format!("((from {}/x:1))", busy.host()));
    for (progress, note) in [("plain", "note: "), ("json", "{\"event\":\"notice\",\"text\":\"")] {
        let mut running = env.spawn(&mut env.kiln(&["build", "-f", "spec", "src", "--progress", progress]));
        let said = "allows no more requests for now (TOOMANYREQUESTS); wait, or log in for a higher limit; trying again in 1 s";
        running.wait_for(&format!("{note}{} {said}", busy.host()));
        running.signal(Signal::TERM);
        running.end().fails_with(130);
    }
}

#[test]
fn a_terminal_shows_what_has_arrived_and_what_went_wrong_on_the_way() {
    needs_registry!();
    kiln_testkit::need!(kiln_testkit::Need::Tool("script", "bsdutils"));
    let world = World::new(Access::default());
    let World { env, registry, .. } = &world;
    let (dead, slow) = (Link::to(registry.address()).unwrap(), Link::to(registry.address()).unwrap());
    dead.refuse(true);
    slow.throttle(Some(2_000_000));
    registries(env, format!("[host.{:?}]\nmirrors = [{:?}]\n", slow.host(), dead.host()));
    env.spec(&format!("((from {}/team/base:1))", slow.host()));
    let mut terminal = Command::new("script");
    let command = format!("stty cols 200; {} build -f spec src", env!("CARGO_BIN_EXE_kiln"));
    terminal.args(["-qec", &command, "/dev/null"]);
    env.set_up(&mut terminal);
    let shown = env.ran(terminal.env("TERM", "xterm")).ok();
    let text = console::strip_ansi_codes(&shown.stdout);
    assert!(text.contains(&format!("note: mirror {} passed over: ", dead.host())), "{text}");
    assert!(
        text.contains(&format!("(from {}/team/base:1) ", slow.host())) && text.contains("KiB of 1.0 MiB"),
        "{text}"
    );
    assert!(text.contains("✓ [1/1] (from "), "{text}");
}
