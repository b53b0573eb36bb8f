//! What a private network reaches. Pure: the helper carries it out.
//!
//! The addresses inside are ones that no real network has, so that nothing real is hidden behind them: the "dummy"
//! addresses of IANA's registries (192.0.0.8, 100:0:0:1::/64) and others of 192.0.0.0/24.

use std::ffi::{CStr, CString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::network::Cidr;

/// The interface inside.
pub(crate) const INTERFACE: &str = "eth0";

/// One of the two kinds of addresses, as the private network uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    /// The sandbox's own address.
    pub(crate) own: IpAddr,
    /// Where everything is sent. One neighbour for all: every address a neighbour would fill the kernel's table, which
    /// all network namespaces share.
    pub(crate) gateway: IpAddr,
    /// Queries to this address reach the host's resolver.
    pub(crate) resolver: IpAddr,
}

pub(crate) const V4: Family = Family {
    own: IpAddr::V4(Ipv4Addr::new(192, 0, 0, 2)),
    gateway: IpAddr::V4(Ipv4Addr::new(192, 0, 0, 1)),
    resolver: IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)),
};

pub(crate) const V6: Family = Family {
    own: IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 2)),
    gateway: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    resolver: IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 8)),
};

/// What becomes of packets to a range; the first rule that fits counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) to: Cidr,
    pub(crate) pass: bool,
}

/// IPv4 that is not public (IANA's special-purpose registry).
const BLOCKED_V4: &[Cidr] = &[
    Cidr::v4(0, 0, 0, 0, 8),
    Cidr::v4(10, 0, 0, 0, 8),
    Cidr::v4(100, 64, 0, 0, 10),
    Cidr::v4(127, 0, 0, 0, 8),
    // Link-local, where clouds answer for a machine's credentials.
    Cidr::v4(169, 254, 0, 0, 16),
    Cidr::v4(172, 16, 0, 0, 12),
    Cidr::v4(192, 0, 0, 0, 24),
    Cidr::v4(192, 168, 0, 0, 16),
    Cidr::v4(198, 18, 0, 0, 15),
    // Multicast, reserved, broadcast.
    Cidr::v4(224, 0, 0, 0, 3),
];

/// IPv6 that is not public although it lies in [`PUBLIC_V6`]: addresses that hold an IPv4 address, which may be private
/// (Teredo, 6to4).
const BLOCKED_V6: &[Cidr] = &[Cidr::v6(0x2001, 0, 0, 32), Cidr::v6(0x2002, 0, 0, 16)];

/// Global unicast. All else is loopback, link-local, unique local, multicast, IPv4 in disguise, or not assigned.
const PUBLIC_V6: Cidr = Cidr::v6(0x2000, 0, 0, 3);

const ALL_V4: Cidr = Cidr::v4(0, 0, 0, 0, 0);
const ALL_V6: Cidr = Cidr::v6(0, 0, 0, 0);

/// Returns the rules for what leaves the sandbox, of one kind of address: `allow` is what the user opened, `host` are the
/// addresses of the host's own interfaces.
pub(crate) fn rules(family: Family, allow: &[Cidr], host: &[IpAddr]) -> Vec<Rule> {
    let is_v4 = family.own.is_ipv4();
    let rule = |pass: bool| move |to: Cidr| Rule { to, pass };
    let of_family = |to: &Cidr| to.address().is_ipv4() == is_v4;
    let (blocked, rest): (_, &[Rule]) = match is_v4 {
        true => (BLOCKED_V4, &[Rule { to: ALL_V4, pass: true }]),
        false => (BLOCKED_V6, &[Rule { to: PUBLIC_V6, pass: true }, Rule { to: ALL_V6, pass: false }]),
    };
    // Whoever allows a network means the other machines there. This one's addresses lead to services that trust whoever
    // comes from here.
    let host = host.iter().copied().map(Cidr::single).filter(|address| !allow.contains(address));
    std::iter::once(Cidr::single(family.resolver))
        .map(rule(true))
        .chain(host.map(rule(false)))
        .chain(allow.iter().copied().map(rule(true)))
        .chain(blocked.iter().copied().map(rule(false)))
        .chain(rest.iter().copied())
        .filter(|rule| of_family(&rule.to))
        .collect()
}

/// Returns the sandbox's `/etc/resolv.conf`, given the host's: its search domains and options, and for its servers the
/// address inside that leads there.
pub(crate) fn resolver(host: &str) -> String {
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let servers: Vec<IpAddr> = host
        .lines()
        .map(words)
        .filter(|words| words.first().is_some_and(|word| word == "nameserver"))
        // A zone may follow: `fe80::1%eth0`.
        .filter_map(|words| words.get(1)?.split('%').next()?.parse().ok())
        .collect();
    let mut text = String::new();
    for family in [V4, V6] {
        if servers.iter().any(|server| server.is_ipv4() == family.own.is_ipv4()) {
            text += &format!("nameserver {}\n", family.resolver);
        }
    }
    if servers.is_empty() {
        // What resolv.conf(5) has for no server at all: the one on this machine.
        text += &format!("nameserver {}\n", V4.resolver);
    }
    for line in host.lines() {
        if words(line).first().is_some_and(|word| matches!(word.as_str(), "search" | "domain" | "options")) {
            text += line;
            text.push('\n');
        }
    }
    text
}

/// Where the program is.
pub(crate) const PASTA: &[&CStr] = &[c"/usr/local/bin/pasta", c"/usr/bin/pasta", c"/bin/pasta"];

/// Returns the arguments of `pasta`. The network namespace is its stdin, and its stdout gets its process id once it serves.
pub(crate) fn pasta(families: &[Family]) -> Vec<CString> {
    let mut words: Vec<String> =
        ["pasta", "--quiet", "--foreground", "--netns-only", "--no-netns-quit"].map(Into::into).into();
    let mut add = |option: &str, value: &str| words.extend([option.to_owned(), value.to_owned()]);
    add("--netns", "/proc/self/fd/0");
    add("--pid", "/proc/self/fd/1");
    add("--ns-ifname", INTERFACE);
    // No port leads from the host to the sandbox or back.
    ["--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"].iter().for_each(|option| add(option, "none"));
    for family in families {
        add("--address", &family.own.to_string());
        add("--gateway", &family.gateway.to_string());
        add("--dns-forward", &family.resolver.to_string());
    }
    if let [family] = families {
        words.push(if family.own.is_ipv4() { "--ipv4-only" } else { "--ipv6-only" }.to_owned());
    }
    // The gateway is not the host; the helper gives the interface its addresses.
    words.extend(["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra"].map(Into::into));
    words.into_iter().map(|word| CString::new(word).expect("words without NUL")).collect()
}

/// Returns whether a host with these `/proc/net/route` and `/proc/net/ipv6_route` has a way out by IPv4 and by IPv6.
pub(crate) fn default_routes(route: &str, ipv6_route: &str) -> (bool, bool) {
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_zero = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte == b'0');
    let v4 = route.lines().map(fields).any(|fields| {
        // Iface Destination Gateway Flags RefCnt Use Metric Mask …
        matches!(&fields[..], [_, destination, _, _, _, _, _, mask, ..] if is_zero(destination) && is_zero(mask))
    });
    let v6 = ipv6_route.lines().map(fields).any(|fields| {
        // destination length source length gateway … interface; the kernel's own "unreachable" is on `lo`.
        matches!(&fields[..], [destination, length, .., interface]
            if is_zero(destination) && is_zero(length) && interface != "lo")
    });
    (v4, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a packet to `address` passes.
    fn passes(rules: &[Rule], address: &str) -> bool {
        let bytes = Cidr::single(address.parse().unwrap()).bytes();
        let fits = |to: &Cidr| {
            to.bytes().len() == bytes.len()
                && bytes.iter().zip(to.mask()).map(|(byte, mask)| byte & mask).eq(to.bytes().iter().copied())
        };
        rules.iter().find(|rule| fits(&rule.to)).is_some_and(|rule| rule.pass)
    }

    #[test]
    fn only_public_addresses_are_in_reach() {
        let v4 = rules(V4, &[], &["203.0.113.2".parse().unwrap()]);
        for address in ["198.51.100.7", "1.1.1.1", "172.32.0.1", "192.0.1.0", "192.0.0.8", "203.0.113.3"] {
            assert!(passes(&v4, address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.1.1.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.0.1",
            "198.19.0.1",
            "203.0.113.2",
            "224.0.0.251",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!passes(&v4, address), "{address}");
        }
        let v6 = rules(V6, &[], &["2600::2".parse().unwrap()]);
        for address in ["2600::1", "2001:4860:4860::8888", "3fff::1", "100:0:0:1::8"] {
            assert!(passes(&v6, address), "{address}");
        }
        for address in [
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "100:0:0:1::2",
            "2001::1",
            "2002:a00:1::",
            "2600::2",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::fb",
        ] {
            assert!(!passes(&v6, address), "{address}");
        }
    }

    #[test]
    fn what_is_allowed_is_in_reach_but_not_the_host_in_it() {
        let allow = ["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let host = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let v4 = rules(V4, &allow, &host);
        assert!(passes(&v4, "10.1.0.1") && !passes(&v4, "10.1.0.2") && !passes(&v4, "10.2.0.1"));
        let v6 = rules(V6, &allow, &host);
        assert!(passes(&v6, "fd00::1") && !passes(&v6, "fd00::2") && !passes(&v6, "fc00::1"));
        let v4 = rules(V4, &["10.1.0.2".parse().unwrap()], &host);
        assert!(passes(&v4, "10.1.0.2") && !passes(&v4, "10.1.0.1"));
    }

    #[test]
    fn the_resolver_is_the_hosts_by_the_address_that_leads_there() {
        assert_eq!(
            resolver("# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.1\noptions edns0\nsearch a.example\n"),
            "nameserver 192.0.0.8\noptions edns0\nsearch a.example\n"
        );
        assert_eq!(resolver("nameserver\tfe80::1%eth0\n"), "nameserver 100:0:0:1::8\n");
        assert_eq!(resolver(""), "nameserver 192.0.0.8\n");
    }

    #[test]
    fn a_way_out_is_a_default_route() {
        let header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
        let link = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let default = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let zeros = "0".repeat(32);
        let v6 = |interface: &str| {
            format!("{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 {interface}\n")
        };
        assert_eq!(default_routes(&format!("{header}{link}"), &v6("lo")), (false, false));
        assert_eq!(default_routes(&format!("{header}{link}{default}"), ""), (true, false));
        assert_eq!(default_routes("", &v6("eth0")), (false, true));
    }
}
