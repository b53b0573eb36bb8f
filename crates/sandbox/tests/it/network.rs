//! A network of the sandbox's own with a way out, attacked from inside; and the way to a proxy.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use kiln_sandbox::{ExitStatus, Network, Process};
use kiln_testkit::is_root_of_the_host;

use crate::ends::{children_of, kill};
use crate::harness::{COMMAND, HELPER, Jail, PROBE, kind, read_line, shell};
use crate::needs_sandbox;
use crate::world::{PORT, World};

/// Leaves the test, as a skip, where there is no `pasta`.
macro_rules! needs_pasta {
    () => {
        needs_sandbox!();
        kiln_testkit::need!(kiln_testkit::Need::Tool("pasta", "passt"), kiln_testkit::Need::Tool("ip", "iproute2"));
    };
}

fn private(script: &str, allow: &[&str]) -> Process {
    let allow = allow.iter().map(|range| range.parse().unwrap()).collect();
    Process { network: Network::Private { allow }, ..shell(script) }
}

/// A script that connects to each address, plainly and by a socket that is bound to the interface.
fn connect_to(addresses: &[&str]) -> String {
    let connect = |address: &&str| format!("/probe connect {address} {PORT}\n/probe connect {address} {PORT} eth0\n");
    addresses.iter().map(connect).collect()
}

#[tokio::test]
async fn a_private_network_reaches_what_is_public() {
    needs_pasta!();
    let world = World::new();
    let internet = world.internet.serve("internet");
    let public = ["198.51.100.7", "203.0.113.1", "2600:1::7", "2600:db8::1"];
    let output = Jail::new().with_probe().ok(&private(&connect_to(&public), &[])).await;
    assert_eq!(output, "got internet\n".repeat(2 * public.len()));
    assert_eq!(internet.served(), 2 * public.len());
}

#[tokio::test]
async fn a_private_network_reaches_neither_the_host_nor_private_networks() {
    needs_pasta!();
    let world = World::new();
    let (host, internet) = (world.host.serve("host"), world.internet.serve("internet"));
    let refused = [
        // The host by its loopback addresses, by those of its interfaces, and by the gateway's place.
        "127.0.0.1",
        "127.0.0.2",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
        "::",
        "203.0.113.2",
        "10.9.0.2",
        "2600:db8::2",
        "192.0.0.1",
        "192.0.0.2",
        "192.0.0.8",
        "fe80::1%2",
        "100:0:0:1::2",
        "100:0:0:1::8",
        // The host's private neighbours, and where clouds keep credentials.
        "10.9.0.1",
        "fd00::7",
        "169.254.169.254",
        "fd00:ec2::254",
        "192.168.0.1",
        "172.16.0.1",
        "100.64.0.1",
    ];
    let output = Jail::new().with_probe().ok(&private(&connect_to(&refused), &[])).await;
    assert_eq!(output.lines().count(), 2 * refused.len(), "{output}");
    assert!(!output.contains("got"), "{output}");
    assert_eq!((host.served(), internet.served()), (0, 0), "{output}");
}

#[tokio::test]
async fn no_datagram_goes_where_no_connection_goes() {
    needs_pasta!();
    let world = World::new();
    let groups =
        ["224.0.0.251", "239.255.255.250", "255.255.255.255", "203.0.113.255", "ff02::fb", "10.9.0.1", "10.9.0.2"];
    let host = world.host.datagrams(SocketAddr::from(([0_u16; 8], PORT)));
    let internet = world.internet.datagrams(SocketAddr::from(([0_u16; 8], PORT)));
    // What a neighbour of the host would get: the one who sends has no say in it.
    for group in [[224, 0, 0, 251], [239, 255, 255, 250]] {
        internet.join_multicast_v4(&group.into(), &[203, 0, 113, 1].into()).unwrap();
    }
    let send = |address: &&str| format!("/probe send {address} {PORT} evil\n/probe send {address} {PORT} evil eth0\n");
    let mut script: String = groups.iter().map(send).collect();
    script += &format!("/probe ask 198.51.100.7 {PORT} good\n");
    let first = std::thread::spawn(move || {
        let mut buffer = [0; 16];
        let (length, sender) = internet.recv_from(&mut buffer).unwrap();
        internet.send_to(b"thanks", sender).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    let output = Jail::new().with_probe().ok(&private(&script, &[])).await;
    assert_eq!(first.join().unwrap(), "good", "{output}");
    assert!(output.ends_with("got thanks\n"), "{output}");
    let mut buffer = [0; 16];
    host.set_nonblocking(true).unwrap();
    assert_eq!(host.recv_from(&mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "{output}");
}

#[tokio::test]
async fn allowed_networks_are_reached_but_not_the_host_in_them() {
    needs_pasta!();
    let world = World::new();
    let (host, _internet) = (world.host.serve("host"), world.internet.serve("internet"));
    let jail = Jail::new().with_probe();
    let script = connect_to(&["10.9.0.1", "fd00::7"]);
    assert_eq!(jail.ok(&private(&script, &["10.9.0.0/24", "fd00::7"])).await, "got internet\n".repeat(4));
    jail.ok(&private(&connect_to(&["10.9.0.2", "2600:db8::2", "127.0.0.1"]), &["10.9.0.0/24", "2600:db8::/64"])).await;
    assert_eq!(host.served(), 0);
    assert_eq!(jail.ok(&private(&connect_to(&["10.9.0.2"]), &["10.9.0.2"])).await, "got host\n".repeat(2));
}

#[tokio::test]
async fn names_are_looked_up_by_the_hosts_resolver() {
    needs_pasta!();
    let configured = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = configured.lines().filter_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
    let resolver: std::net::IpAddr = servers.into_iter().next().unwrap_or_else(|| "127.0.0.1".parse().unwrap());
    let world = World::new();
    if !resolver.is_loopback() {
        world.host.ip(&format!("addr add {resolver} dev lo"));
    }
    let socket = world.host.datagrams(SocketAddr::new(resolver, 53));
    let answering = std::thread::spawn(move || {
        let mut question = [0; 64];
        let (length, asker) = socket.recv_from(&mut question).unwrap();
        socket.send_to(&[b"answer to ", &question[..length]].concat(), asker).unwrap();
    });
    let script = "/probe ask $(sed -n 's/^nameserver //p' /etc/resolv.conf | head -n 1) 53 question";
    assert_eq!(Jail::new().with_probe().ok(&private(script, &[])).await, "got answer to question\n");
    answering.join().unwrap();
}

#[tokio::test]
async fn nobody_inside_changes_a_private_network() {
    needs_pasta!();
    let _world = World::new();
    let call = |number: i64, arguments: &str| format!("/probe call native {number} {arguments}");
    let script = [
        "ip addr show dev eth0 | grep -c 192.0.0.2/32".to_owned(),
        "ip route add 10.9.0.0/24 dev eth0 2>/dev/null || echo refused".to_owned(),
        "ip route del default 2>/dev/null || echo refused".to_owned(),
        "ip link set eth0 down 2>/dev/null || echo refused".to_owned(),
        "ip addr add 10.9.0.7/24 dev eth0 2>/dev/null || echo refused".to_owned(),
        "echo 1 2>/dev/null > /proc/sys/net/ipv4/conf/all/route_localnet || echo refused".to_owned(),
        // Raw and packet sockets, and a socket to the packet filter: this one opens, but takes no orders.
        call(libc::SYS_socket, "2 3 255"),
        call(libc::SYS_socket, "10 3 58"),
        call(libc::SYS_socket, "17 3 0"),
        "/probe flush".to_owned(),
        "ls /sys/class/net".to_owned(),
        "for p in /proc/[0-9]*; do cat $p/comm; done | grep -cE 'pasta|passt'".to_owned(),
    ]
    .join("\n");
    let (_, output) = Jail::new().with_probe().run(&private(&script, &[])).await.unwrap();
    let refused = "refused\n".repeat(5);
    assert_eq!(output, format!("1\n{refused}errno 1\nerrno 1\nerrno 97\nerrno 1\neth0\nlo\n0\n"));
}

/// Starts the probe as a caller of the sandbox, with a private network.
fn caller(jail: &Jail, script: &str) -> std::process::Child {
    let mut command = Command::new(PROBE);
    command.args(["run-private", jail.root().to_str().unwrap(), HELPER, &kind(), script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn status_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// Starts a step that runs until it is killed, and returns its caller, helper and `pasta`.
fn started(jail: &Jail) -> (std::process::Child, impl Read, u32, u32) {
    let mut caller = caller(jail, "trap '' TERM; echo ready; while :; do sleep 1; done");
    let mut output = caller.stdout.take().unwrap();
    assert_eq!(read_line(&mut output), "ready");
    let helper = children_of(caller.id())[0];
    let pasta = children_of(helper).into_iter().find(|pid| status_of(*pid).starts_with("Name:\tpas"));
    let pasta = pasta.unwrap();
    (caller, output, helper, pasta)
}

fn wait_until_gone(pid: u32) {
    while status_of(pid).starts_with("Name:\tpas") {
        std::thread::yield_now();
    }
}

#[test]
fn the_way_out_is_kept_by_a_process_without_rights() {
    needs_pasta!();
    let _world = World::new();
    let jail = Jail::new();
    let (mut caller, _output, _, pasta) = started(&jail);
    let status = status_of(pasta);
    let has = |line: &str| status.lines().any(|other| other == line);
    assert!(
        has("Uid:\t65534\t65534\t65534\t65534") && has("Seccomp:\t2") && has("CapAmb:\t0000000000000000"),
        "{status}"
    );
    assert_eq!(fs::read_dir(format!("/proc/{pasta}/root/")).unwrap().count(), 0);
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(namespace(pasta), fs::read_link("/proc/thread-self/ns/net").unwrap());
    kill(caller.id());
    caller.wait().unwrap();
    wait_until_gone(pasta);
}

#[test]
fn the_way_out_ends_with_the_caller_and_with_the_helper() {
    needs_pasta!();
    let _world = World::new();
    let jail = Jail::new();
    for helper_dies in [false, true] {
        let (mut caller, mut output, helper, pasta) = started(&jail);
        kill(if helper_dies { helper } else { caller.id() });
        output.read_to_end(&mut Vec::new()).unwrap();
        caller.wait().unwrap();
        wait_until_gone(pasta);
    }
}

#[tokio::test]
async fn the_way_out_ends_with_the_step() {
    needs_pasta!();
    let world = World::new();
    let _internet = world.internet.serve("internet");
    let jail = Jail::new().with_probe();
    let before = pastas();
    jail.ok(&private(&connect_to(&["198.51.100.7"]), &[])).await;
    // Others may run, of tests beside this one: what is new is not on our host.
    let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let new = pastas().into_iter().filter(|pid| !before.contains(pid));
    assert!(!new.into_iter().any(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its == ours)));
}

fn pastas() -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| status_of(*pid).starts_with("Name:\tpas")).collect()
}

#[test]
fn what_is_missing_is_said_before_anything_runs() {
    needs_pasta!();
    let jail = Jail::new();
    let script = |prepare: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", &format!("{prepare}; exec \"$@\"")]);
        command.args(["sh", PROBE, "run-private", jail.root().to_str().unwrap(), HELPER, &kind(), "echo ran"]);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = script("true");
    assert!(said.contains("this host has no default route"), "{said}");
    let way_out = "ip link set lo up; ip addr add 203.0.113.2/24 dev lo; ip route add default via 203.0.113.1 dev lo";
    let said = script(&format!("{way_out}; mount -t tmpfs none /usr/bin; mount -t tmpfs none /usr/local/bin"));
    assert!(said.contains("`pasta` is not installed; install it with `apt-get install passt`"), "{said}");
}

#[test]
fn a_network_device_that_is_roots_alone_is_in_the_way_only_without_root() {
    needs_pasta!();
    let _world = World::new();
    let jail = Jail::new();
    let run_private = |prepare: &str| {
        let mut command = Command::new("unshare");
        // Afterwards, nothing of what the sandbox did there is left.
        let script = format!("mount -t tmpfs none /dev/net; {prepare}; \"$@\"; stat -c %a /dev/net/tun");
        command.args(["--mount", "sh", "-c", &script, "sh", PROBE, "run-private"]);
        command.args([jail.root().to_str().unwrap(), HELPER, &kind(), "echo ran"]);
        let output = command.output().unwrap();
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned())
    };
    let is_root = is_root_of_the_host();
    // Without root, no device can be made for the test either; it is not looked at further than its mode.
    let [output, said] =
        run_private(if is_root { "mknod -m 600 /dev/net/tun c 10 200" } else { "umask 077; : > /dev/net/tun" });
    assert_eq!(output, if is_root { "ran\n600\n" } else { "600\n" }, "{said}");
    let way_out = "only root may use /dev/net/tun; `chmod 666 /dev/net/tun` as root mends that";
    assert_eq!(said.contains(way_out), !is_root, "{said}");
    let [output, said] = run_private("true");
    assert_eq!(output, "");
    assert!(said.contains("/dev/net/tun is not there; `modprobe tun` as root mends that"), "{said}");
}

fn proxied(script: &str, url: &str) -> Process {
    Process { network: Network::Proxy(url.parse().unwrap()), ..shell(script) }
}

#[tokio::test]
async fn a_proxy_is_reached_and_nothing_else() {
    needs_sandbox!();
    kiln_testkit::need!(kiln_testkit::Need::Tool("ip", "iproute2"));
    let world = World::new();
    let (proxy, internet) = (world.host.serve("proxy"), world.internet.serve("internet"));
    let elsewhere = ["127.0.0.1", "203.0.113.2", "203.0.113.1", "198.51.100.7", "10.9.0.1", "2600:1::7", "::1"];
    let connect = |address: &&str| format!("/probe connect {address} {PORT}\n");
    let script: String = elsewhere.iter().map(connect).collect();
    let script = format!("/probe connect 127.0.0.1 3128\nls /sys/class/net\n{script}/probe connect 127.0.0.1 3128");
    let jail = Jail::new().with_probe();
    let output = jail.ok(&proxied(&script, &format!("http://127.0.0.1:{PORT}"))).await;
    assert!(output.starts_with("got proxy\nlo\n") && output.ends_with("got proxy\n"), "{output}");
    assert_eq!(output.lines().count(), 3 + elsewhere.len(), "{output}");
    assert_eq!((proxy.served(), internet.served()), (2, 0), "{output}");
    // The proxy may be a machine elsewhere.
    let output = jail.ok(&proxied("/probe connect 127.0.0.1 3128", &format!("http://198.51.100.7:{PORT}"))).await;
    assert_eq!(output, "got internet\n");
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_fails_the_connection_and_not_the_run() {
    needs_sandbox!();
    let jail = Jail::new().with_probe();
    let process = proxied(
        "/probe connect 127.0.0.1 3128; for p in /proc/[0-9]*; do echo ${p#/proc/}; done",
        "http://127.0.0.1:1",
    );
    let (status, output) = jail.run(&process).await.unwrap();
    let pids: String = (1..=COMMAND).map(|pid| format!("{pid}\n")).collect();
    assert_eq!((status, output), (ExitStatus::Code(0), format!("got \n{pids}")));
}
