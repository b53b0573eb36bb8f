//! Which hosts hold a repository, and how far each is trusted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::connect::Trust;
use super::{HostSettings, RegistryError, RegistrySettings};
use crate::ImageName;
use crate::name::{self, DOCKER_HUB};

/// Where the registry of Docker Hub listens.
const DOCKER_HUB_REGISTRY: &str = "registry-1.docker.io";

/// A repository at a registry or mirror.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Site {
    /// As users write it; settings and credentials go by this.
    pub(super) host: String,
    /// Where it listens: `HOST[:PORT]`.
    pub(super) authority: String,
    pub(super) repository: String,
    pub(super) scheme: Scheme,
    pub(super) trust: Trust,
    pub(super) is_mirror: bool,
}

/// How to speak to a site.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Scheme {
    Https,
    Http,
    /// With TLS if it can, else without.
    Either,
}

impl Scheme {
    pub(super) fn name(self) -> &'static str {
        if self == Self::Http { "http" } else { "https" }
    }
}

impl Site {
    /// Returns true if secrets may go to this registry, or to the token server that it names, without encryption.
    pub(super) fn is_insecure(&self) -> bool {
        self.trust == Trust::Anyone
    }
}

/// Knows the mirrors, and what was found out about hosts.
#[derive(Debug)]
pub(super) struct Sites {
    /// By host.
    mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Authorities that may be spoken to either way, and how they answer.
    schemes: Mutex<HashMap<String, Scheme>>,
    /// Hosts of mirrors that could not be reached; not tried again.
    dead: Mutex<HashSet<String>>,
    /// Hosts that have answered anything.
    answering: Mutex<HashSet<String>>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Mirror {
    scheme: Option<Scheme>,
    host: String,
    /// Empty, or ends with a slash.
    prefix: String,
}

impl Sites {
    pub(super) fn new(settings: &RegistrySettings) -> Result<Self, RegistryError> {
        let mut mirrors = BTreeMap::new();
        for (host, special) in &settings.hosts {
            mirrors.insert(host.to_ascii_lowercase(), parse_mirrors(host, special)?);
        }
        Ok(Self { mirrors, schemes: Mutex::default(), dead: Mutex::default(), answering: Mutex::default() })
    }

    /// Returns where to pull from, in order; the last is the registry itself.
    pub(super) fn for_pull(&self, settings: &RegistrySettings, name: &ImageName) -> Vec<Site> {
        let mirrors = self.mirrors.get(name.host()).into_iter().flatten().map(|mirror| {
            let repository = format!("{}{}", mirror.prefix, name.repository());
            let mut site = site(settings, &mirror.host, repository);
            site.is_mirror = true;
            // A scheme that is written counts, but makes nobody trustworthy.
            site.scheme = mirror.scheme.unwrap_or(site.scheme);
            site
        });
        let alive = mirrors.filter(|site| !lock(&self.dead).contains(&site.host));
        alive.chain([self.origin(settings, name)]).collect()
    }

    /// Returns the registry itself.
    pub(super) fn origin(&self, settings: &RegistrySettings, name: &ImageName) -> Site {
        site(settings, name.host(), name.repository().to_owned())
    }

    /// Remembers that a mirror cannot be reached.
    pub(super) fn is_dead(&self, mirror: &Site) {
        lock(&self.dead).insert(mirror.host.clone());
    }

    /// Remembers that a host has answered.
    pub(super) fn has_answered(&self, host: &str) {
        let mut answering = lock(&self.answering);
        if !answering.contains(host) {
            answering.insert(host.to_owned());
        }
    }

    /// Returns true if a host has answered before.
    pub(super) fn is_answering(&self, host: &str) -> bool {
        lock(&self.answering).contains(host)
    }

    /// Returns how an authority that may be spoken to either way answers, if that is known.
    pub(super) fn scheme(&self, authority: &str) -> Option<Scheme> {
        lock(&self.schemes).get(authority).copied()
    }

    pub(super) fn remember_scheme(&self, authority: &str, scheme: Scheme) {
        lock(&self.schemes).insert(authority.to_owned(), scheme);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-done in these maps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn site(settings: &RegistrySettings, host: &str, repository: String) -> Site {
    let special = settings.hosts.iter().find(|(name, _)| name.eq_ignore_ascii_case(host)).map(|(_, special)| special);
    let ca_file = special.and_then(|special| special.ca_file.clone());
    let is_insecure = special.is_some_and(|special| special.insecure) || (ca_file.is_none() && is_loopback(host));
    let (scheme, trust) = match (is_insecure, ca_file) {
        (true, _) => (Scheme::Either, Trust::Anyone),
        (false, None) => (Scheme::Https, Trust::System),
        (false, Some(ca_file)) => (Scheme::Https, Trust::Also { host: host.to_owned(), ca_file }),
    };
    let authority = if host == DOCKER_HUB { DOCKER_HUB_REGISTRY } else { host };
    Site { host: host.to_owned(), authority: authority.to_owned(), repository, scheme, trust, is_mirror: false }
}

/// Returns true if what goes there does not leave this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name == "::1" || name.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

impl HostSettings {
    /// Checks whether these can be the settings for `host`, as [`Registry::new`](super::Registry::new) does.
    ///
    /// # Errors
    ///
    /// `host` is none that an image's name can have, or a mirror is none.
    pub fn check(&self, host: &str) -> Result<(), RegistryError> {
        parse_mirrors(host, self).map(drop)
    }
}

fn parse_mirrors(host: &str, special: &HostSettings) -> Result<Vec<Mirror>, RegistryError> {
    name::check_host(host).map_err(|_| RegistryError::Host { text: host.to_owned() })?;
    let parsed = special.mirrors.iter().map(|text| {
        // What stands before the sign may be a password.
        let shown = || text.rsplit_once('@').map_or_else(|| text.clone(), |(_, rest)| format!("…@{rest}"));
        parse_mirror(text).ok_or_else(|| RegistryError::Mirror { host: host.to_owned(), text: shown() })
    });
    parsed.collect()
}

fn parse_mirror(text: &str) -> Option<Mirror> {
    let (scheme, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (Some(Scheme::Https), rest),
        (_, Some(rest)) => (Some(Scheme::Http), rest),
        _ => (None, text),
    };
    let rest = rest.trim_end_matches('/');
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    name::check_host(host).ok()?;
    let prefix = match path {
        None => String::new(),
        Some(path) => {
            path.split('/').try_for_each(name::check_part).ok()?;
            format!("{path}/")
        }
    };
    Some(Mirror { scheme, host: host.to_ascii_lowercase(), prefix })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn sites(hosts: &[(&str, HostSettings)], name: &str) -> Result<Vec<String>, RegistryError> {
        let hosts = hosts.iter().map(|(host, special)| ((*host).to_owned(), special.clone())).collect();
        let settings = RegistrySettings { hosts, ..RegistrySettings::default() };
        let sites = Sites::new(&settings)?.for_pull(&settings, &name.parse().expect("a name"));
        let trust = |site: &Site| match &site.trust {
            Trust::Also { ca_file, .. } => ca_file.display().to_string(),
            trust => format!("{trust:?}"),
        };
        let show = |site: &Site| format!("{:?} {}/{} {}", site.scheme, site.authority, site.repository, trust(site));
        Ok(sites.iter().map(show).collect())
    }

    fn mirrors(mirrors: &[&str]) -> HostSettings {
        HostSettings { mirrors: mirrors.iter().map(|text| (*text).to_owned()).collect(), ..HostSettings::default() }
    }

    #[test]
    fn mirrors_come_before_the_registry_itself() {
        let hub = mirrors(&["m.x", "http://n.x:80/a/b/", "localhost:5000", "https://localhost"]);
        assert_eq!(
            sites(&[("docker.io", hub)], "debian").expect("mirrors"),
            [
                "Https m.x/library/debian System",
                "Http n.x:80/a/b/library/debian System",
                "Either localhost:5000/library/debian Anyone",
                "Https localhost/library/debian Anyone",
                "Https registry-1.docker.io/library/debian System",
            ]
        );
        for text in ["", "https://", "ftp://x", "u:p@x", "x/../y", "x?y", "x/Y"] {
            assert!(sites(&[("x.y", mirrors(&[text]))], "debian").is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_and_what_is_marked_is_trusted_blindly() {
        let ca_file = HostSettings { ca_file: Some(PathBuf::from("/ca")), ..HostSettings::default() };
        let insecure = HostSettings { insecure: true, ..HostSettings::default() };
        let hosts = [("127.0.0.1:5", ca_file.clone()), ("A.x", insecure), ("b.x", ca_file)];
        let site = |name: &str| sites(&hosts, name).expect("a site").pop().expect("the origin");
        assert_eq!(site("127.0.0.1:5/r"), "Https 127.0.0.1:5/r /ca");
        assert_eq!(site("127.0.0.1:6/r"), "Either 127.0.0.1:6/r Anyone");
        assert_eq!(site("[::1]:6/r"), "Either [::1]:6/r Anyone");
        assert_eq!(site("127.x.y/r"), "Https 127.x.y/r System");
        assert_eq!(site("a.x/r"), "Either a.x/r Anyone");
        assert_eq!(site("b.x/r"), "Https b.x/r /ca");
    }
}
