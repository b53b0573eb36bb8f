//! Several hosts on one machine: network namespaces with a switch between them, whose cables can be pulled.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Hosts that reach each other and nothing else. They share everything with this machine but the network. Needs root and `ip`.
#[derive(Debug)]
pub struct Lan {
    /// The names of the namespaces: the switch, then the hosts.
    names: Vec<String>,
}

impl Lan {
    /// Makes `count` hosts.
    ///
    /// # Errors
    ///
    /// Whatever `ip` says.
    pub fn new(count: usize) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kiln-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut lan = Self { names: Vec::new() };
        lan.add(format!("{name}-switch"))?;
        let switch = lan.names[0].clone();
        ip(&["-n", &switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge", "up"])?;
        for host in 0..count {
            lan.add(format!("{name}-{host}"))?;
            let (inside, port) = (lan.names[host + 1].clone(), port(host));
            ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &inside])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &inside, "address", "add", &format!("{}/24", Self::address(host)), "dev", "eth0"])?;
            ip(&["-n", &inside, "link", "set", "lo", "up"])?;
            ip(&["-n", &inside, "link", "set", "eth0", "up"])?;
        }
        Ok(lan)
    }

    fn add(&mut self, name: String) -> io::Result<()> {
        ip(&["netns", "add", &name])?;
        self.names.push(name);
        Ok(())
    }

    /// Returns the address of a host.
    pub fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// Has `command` run on a host. Its program becomes another, which stays the same process.
    pub fn on(&self, host: usize, command: &Command) -> Command {
        inside(self.name(host), command)
    }

    /// Has the calling thread be on a host from now on, and those that it starts.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn enter(&self, host: usize) -> io::Result<()> {
        // Where ip-netns(8) has them.
        let namespace = File::open(Path::new("/run/netns").join(self.name(host)))?;
        Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// Returns what names a host to [`inside`].
    pub(crate) fn name(&self, host: usize) -> &str {
        &self.names[host + 1]
    }

    /// Pulls a host's cable: what it sends and what is sent to it is lost, and nobody is told.
    ///
    /// # Errors
    ///
    /// Whatever `ip` says.
    pub fn unplug(&self, host: usize) -> io::Result<()> {
        // Its port leaves the switch. The link itself stays up, so that the host's kernel sees nothing.
        ip(&["-n", &self.names[0], "link", "set", &port(host), "nomaster"])
    }

    /// Puts the cable back.
    ///
    /// # Errors
    ///
    /// Whatever `ip` says.
    pub fn plug(&self, host: usize) -> io::Result<()> {
        ip(&["-n", &self.names[0], "link", "set", &port(host), "master", "bridge"])
    }
}

/// Has `command` run in a network namespace: its program, arguments, environment and directory, and nothing else.
pub(crate) fn inside(namespace: &str, command: &Command) -> Command {
    let mut there = Command::new("ip");
    there.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => there.env(name, value),
            None => there.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        there.current_dir(dir);
    }
    there
}

fn port(host: usize) -> String {
    format!("port{host}")
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in &self.names {
            // A namespace lives as long as a process in it; its name goes.
            if let Err(error) = ip(&["netns", "delete", name]) {
                eprintln!("{error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_reach_each_other_as_long_as_they_are_plugged_in() {
        crate::need!(
            crate::Need::Root,
            crate::Need::Tool("ip", "iproute2"),
            crate::Need::Tool("busybox", "busybox-static")
        );
        let lan = Lan::new(2).unwrap();
        let reached = || {
            let mut ping = Command::new("busybox");
            ping.args(["ping", "-c", "1", "-W", "1", &Lan::address(1)]);
            lan.on(0, &ping).output().unwrap().status.success()
        };
        assert!(reached());
        lan.unplug(1).unwrap();
        assert!(!reached());
        lan.plug(1).unwrap();
        assert!(reached());
    }
}
