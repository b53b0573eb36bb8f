//! What network steps get that ask for the host's, as flags of `kiln build` and as settings.

use std::fmt::Display;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use kiln_engine::Isolation;
use kiln_sandbox::{Cidr, Network, Proxy};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::exit::Failure;

/// The choice: flags, or settings of the same names.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Choice {
    /// What network a step gets that asks for the host's
    #[arg(long, value_enum, value_name = "NETWORK")]
    network_host: Option<Kind>,
    /// Lets steps with `--network-host private` reach this address, or range of addresses, too
    #[arg(long, value_name = "CIDR", conflicts_with = "network_proxy")]
    #[serde(deserialize_with = "parsed_list")]
    network_allow: Vec<Cidr>,
    /// Lets steps that ask for the host's network reach this proxy, as `http://proxy.example.com:3128`, and nothing else
    #[arg(long, value_name = "URL", conflicts_with = "network_host")]
    #[serde(deserialize_with = "parsed")]
    network_proxy: Option<Proxy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// The host's, with all that is in reach there
    Host,
    /// One of its own with a way out to public addresses, by the program `pasta`
    Private,
    /// One of its own with nothing
    None,
}

impl Choice {
    /// Returns this choice, and `before`'s where this says nothing.
    pub(crate) fn or(self, before: Self) -> Self {
        // A proxy is another answer to the question that `network_host` answers.
        let answers = self.network_host.is_some() || self.network_proxy.is_some();
        let (network_host, network_proxy) = match answers {
            true => (self.network_host, self.network_proxy),
            false => (before.network_host, before.network_proxy),
        };
        // What was allowed in a private network is not for another one.
        let allowed_before = match network_host {
            Some(Kind::Private) => before.network_allow,
            _ if answers => Vec::new(),
            _ => before.network_allow,
        };
        let network_allow = if self.network_allow.is_empty() { allowed_before } else { self.network_allow };
        Self { network_host, network_allow, network_proxy }
    }

    /// Sets what is said.
    pub(crate) fn set(&self, isolation: &mut Isolation) -> Result<(), Failure> {
        if !self.network_allow.is_empty() && self.network_host != Some(Kind::Private) {
            return Err(Failure::AllowsNothing);
        }
        if let Some(network) = self.network() {
            isolation.network_host = network;
        }
        Ok(())
    }

    fn network(&self) -> Option<Network> {
        if let Some(proxy) = &self.network_proxy {
            return Some(Network::Proxy(proxy.clone()));
        }
        Some(match self.network_host? {
            Kind::Host => Network::Host,
            Kind::Private => Network::Private { allow: self.network_allow.clone() },
            Kind::None => Network::None,
        })
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(value: D) -> Result<Option<T>, D::Error> {
    String::deserialize(value)?.parse().map(Some).map_err(D::Error::custom)
}

fn parsed_list<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(value: D) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(value)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_answer_decides() {
        let choice = |text: &str| toml::from_str::<Choice>(text).unwrap();
        let system = choice("network_host = \"private\"\nnetwork_allow = [\"10.0.0.0/8\"]");
        let allow = vec!["10.0.0.0/8".parse().unwrap()];
        assert_eq!(system.network(), Some(Network::Private { allow }));
        let user = choice("network_proxy = \"http://proxy:3128\"").or(system);
        assert_eq!(user.network(), Some(Network::Proxy("http://proxy:3128".parse().unwrap())));
        let flag = Choice { network_host: Some(Kind::None), ..Choice::default() }.or(user);
        assert_eq!(flag.network(), Some(Network::None));
        assert_eq!(Choice::default().network(), None);
        let error = toml::from_str::<Choice>("network_allow = [\"10.1.0.0/8\"]").unwrap_err().to_string();
        assert!(error.contains("write 10.0.0.0/8"), "{error}");
    }
}
