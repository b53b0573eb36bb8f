//! The files in `deploy/`: units start what they say, commands in containers are commands of ours, and rules and dashboard ask for
//! metrics that there are.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use kiln_testkit::{Need, need};
use regex::Regex;
use rustix::process::Signal;
use serde::Deserialize as _;
use serde_json::Value;

use crate::env::{Gate, Running, TestEnv};
use crate::needs_builds;

/// The program as the units name it.
const PROGRAM: &str = "/usr/local/bin/kiln";

/// The metrics that are not ours: Prometheus' own of what it asks, and those of the node exporter.
const OTHERS: [&str; 5] =
    ["up", "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "node_load1", "node_memory_MemAvailable_bytes"];

fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

/// Returns the documents of a YAML file.
fn yaml(name: &str) -> Vec<Value> {
    let text = text(name);
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents.map(|document| Value::deserialize(document).unwrap()).collect()
}

/// Returns the values of a setting of a unit, with `%S` and `%H` as they are in this world.
fn settings(env: &TestEnv, unit: &str, name: &str) -> Vec<String> {
    let unit = text(unit).replace("\\\n", " ").replace("%S", env.path().to_str().unwrap()).replace("%H", "host");
    let values = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    values.collect()
}

/// Starts a unit's program as systemd does, but with files of this world, ports that the system chooses, and these values of the
/// unit's variables. Returns when it is ready, with the line by which it says so.
fn start(env: &TestEnv, unit: &str, given: &[(&str, &str)], says: &str) -> (Running, String) {
    for directory in settings(env, unit, "StateDirectory").iter().flat_map(|value| value.split(' ')) {
        fs::create_dir(env.at(directory)).unwrap();
    }
    let environment = settings(env, unit, "Environment");
    let environment = environment.iter().flat_map(|line| line.split(' ')).map(|word| word.split_once('=').unwrap());
    let environment: Vec<(&str, &str)> = environment.chain(given.iter().copied()).collect();
    let mut line = settings(env, unit, "ExecStart").pop().unwrap();
    for (name, value) in environment.iter().rev() {
        line = line.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    assert!(!line.contains('$'), "{line}");
    let here = [
        ("/etc/kiln/pool.cap", env.at("pool.cap").display().to_string()),
        ("tcp:0.0.0.0:9000", "tcp:127.0.0.1:0".to_owned()),
        ("127.0.0.1:9101", "127.0.0.1:0".to_owned()),
    ];
    for (there, here) in &here {
        line = line.replace(there, here);
    }
    let mut words = line.split_whitespace();
    assert_eq!(words.next(), Some(PROGRAM));
    // The port of this one is not known.
    let words: Vec<&str> = words.filter(|word| !word.starts_with("--capnp-public-address=")).collect();

    assert_eq!(settings(env, unit, "Type"), ["notify"]);
    let notify = env.at(&format!("notify-{}", words[0]));
    let socket = UnixDatagram::bind(&notify).unwrap();
    let mut command = env.kiln(&words);
    command.envs(environment).env("NOTIFY_SOCKET", notify);
    let mut running = env.spawn(&mut command);
    let said = running.wait_for(says);
    let mut told = [0; 100];
    let length = socket.recv(&mut told).unwrap();
    assert_eq!(told[..length].trim_ascii_end(), b"READY=1");
    (running, said)
}

/// What both units have started.
struct Services {
    worker: Running,
    scheduler: Running,
    /// Where metrics are.
    web: String,
    env: TestEnv,
}

impl Services {
    fn start() -> Self {
        let env = TestEnv::new();
        let arguments = [("ARGUMENTS", "--default-clients=alice")];
        let (scheduler, said) = start(&env, "systemd/kiln-scheduler.service", &arguments, "metrics at");
        let web = said.split('/').nth(2).unwrap().to_owned();
        fs::copy(env.at("kiln-scheduler/secrets/pool-linux-x86_64.cap"), env.at("pool.cap")).unwrap();
        let arguments = [("ARGUMENTS", "--no-docker --allow-local-bases")];
        let (worker, _) = start(&env, "systemd/kiln-worker.service", &arguments, "registered");
        Self { worker, scheduler, web, env }
    }

    fn submit(&self, operations: &str) -> Running {
        let base = self.env.at("base.tar");
        self.env.write("job.spec", format!("((from rootfs:{})\n{operations})", base.display()));
        let cap = "--connect=kiln-scheduler/secrets/submit-alice.cap";
        let arguments = ["submit", "obuilder", cap, "--pool=linux-x86_64", "--local-file=job.spec"];
        self.env.spawn(&mut self.env.kiln(&arguments))
    }

    /// Returns the names of the metrics at a path.
    fn metrics(&self, path: &str) -> BTreeSet<String> {
        let mut stream = TcpStream::connect(&self.web).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.web).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| Some(line.split([' ', '{']).next()?.to_owned())).collect()
    }

    fn end(self) {
        for service in [self.worker, self.scheduler] {
            service.signal(Signal::TERM);
            service.end().ok();
        }
    }
}

#[test]
fn the_units_start_a_cluster_that_has_all_metrics_of_rules_and_dashboard() {
    needs_builds!();
    let (services, gate) = (Services::start(), Gate::new());
    services.submit("(run (shell true))").end().ok();
    let job = services.submit(&format!("(run (network host) (shell \"{}\"))", gate.wait()));
    // Who has a job that runs is among the metrics too.
    let running = gate.arrival();
    let mut served = services.metrics("/metrics");
    served.extend(services.metrics("/pool/linux-x86_64/worker/host/metrics"));
    running.pass("");
    job.end().ok();
    services.end();

    let rules = yaml("prometheus/rules.yaml").remove(0);
    let rules: Vec<&Value> =
        rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
    let dashboard: Value = serde_json::from_str(&text("grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let shown = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<&str> = rules.iter().copied().chain(shown).map(|asked| asked["expr"].as_str().unwrap()).collect();
    served.extend(rules.iter().filter_map(|rule| Some(rule["record"].as_str()?.to_owned())));
    served.extend(OTHERS.map(str::to_owned));
    let asked: BTreeSet<String> = queries.iter().copied().flat_map(metrics_of).collect();
    assert!(asked.len() > OTHERS.len() + 10, "{asked:?}");
    assert_eq!(asked.difference(&served).collect::<Vec<_>>(), [""; 0]);
}

/// Returns the names of the metrics that a query is about.
fn metrics_of(query: &str) -> Vec<String> {
    // Strings first: they may hold anything. Then what has names of labels, and times.
    let others =
        [r#""[^"]*""#, r"\{[^}]*\}", r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", r"\[[^\]]*\]"];
    let mut query = query.to_owned();
    for other in others {
        query = Regex::new(other).unwrap().replace_all(&query, " ").into_owned();
    }
    let names = Regex::new(r"[A-Za-z_:][A-Za-z0-9_:]*\s*\(?").unwrap();
    let names = names.find_iter(&query).map(|name| name.as_str().trim());
    names
        .filter(|name| !name.ends_with('(') && !["and", "or", "unless", "bool", "offset"].contains(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn names_are_found_in_queries() {
    let query =
        r#"histogram_quantile(0.9, sum by (le) (rate(a_bucket{b="c{d"}[1h]))) > 2 and on (pool) absent(e:f) == 0"#;
    assert_eq!(metrics_of(query), ["a_bucket", "e:f"]);
}

#[test]
fn systemd_has_nothing_to_say_against_the_units() {
    need!(Need::Tool("systemd-analyze", "systemd"));
    let env = TestEnv::without_base();
    for unit in ["kiln-scheduler.service", "kiln-worker.service"] {
        let here = text(&format!("systemd/{unit}")).replace(PROGRAM, env!("CARGO_BIN_EXE_kiln"));
        let here = env.write(unit, here);
        let ran = env.ran(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&here)).ok();
        assert_eq!((ran.printed(), ran.told()), (String::new(), String::new()));
    }
    // Its exposure is 1.2 of 10, which is 12 here. Much more would be something forgotten.
    let measure = ["security", "--offline=true", "--threshold=20"];
    env.ran(Command::new("systemd-analyze").args(measure).arg(env.at("kiln-scheduler.service"))).ok();
}

#[test]
fn commands_in_containers_are_understood_and_their_files_are_on_volumes() {
    let env = TestEnv::without_base();
    let mut containers = Vec::new();
    for service in yaml("compose.yaml").remove(0)["services"].as_object().unwrap().values() {
        let volumes = strings(&service["volumes"]);
        let places = volumes.iter().map(|volume| volume.split(':').nth(1).unwrap().to_owned()).collect();
        containers.push((strings(&service["command"]), places));
    }
    for document in ["kubernetes/scheduler.yaml", "kubernetes/worker.yaml"].into_iter().flat_map(yaml) {
        for container in document["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten() {
            let mounts = container["volumeMounts"].as_array().unwrap().iter();
            let places: Vec<String> = mounts.map(|mount| mount["mountPath"].as_str().unwrap().to_owned()).collect();
            containers.push((strings(&container["command"]), places));
        }
    }
    assert_eq!(containers.len(), 4);
    for (command, places) in containers {
        assert_eq!(command[0], "kiln");
        let mut words: Vec<&str> = command[1..].iter().map(String::as_str).collect();
        for path in words.iter().filter_map(|word| word.split_once("=/")).map(|(_, path)| format!("/{path}")) {
            assert!(places.iter().any(|place| path.starts_with(place)), "{path} is on no volume");
        }
        // What is understood so far is checked before help is given.
        words.push("--help");
        env.run(&words).ok();
        words.insert(1, "--no-such-flag");
        env.run(&words).fails_with(2);
    }
    // What the image of all of them is made by.
    env.run(&["check", file("image.spec").to_str().unwrap()]).ok();
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}
