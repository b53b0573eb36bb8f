//! The packet filter of a private network: rules in the kernel (nftables), in the sandbox's network namespace, where
//! nobody inside has the capability to change them.
//!
//! Routes that lead nowhere would not do: a socket that is bound to an interface passes them by (the kernel takes the
//! destination to be on the link then), and so do multicast and broadcast.

use std::io;

use super::netlink::{Attributes, Batch, Netlink};
use crate::reach::Rule;

/// `linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`.
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = NFNL_SUBSYS_NFTABLES << 8;
const NFT_MSG_NEWCHAIN: u16 = NFT_MSG_NEWTABLE | 3;
const NFT_MSG_NEWRULE: u16 = NFT_MSG_NEWTABLE | 6;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_LOCAL_OUT: u32 = 3;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const META_OIF: u32 = 5;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const CMP_EQUAL: u32 = 0;
const REJECT_ICMP_UNREACHABLE: u32 = 0;
const REJECT_TCP_RESET: u32 = 1;

/// The index that every network namespace's loopback interface has.
const LOOPBACK: u32 = 1;
const TABLE: &str = "kiln";
const CHAIN: &str = "output";

/// One kind of addresses in packets.
struct Kind {
    family: u8,
    /// Where the destination is in the header.
    destination: u32,
    /// "Administratively prohibited", in ICMP's or ICMPv6's numbers: an error at once, instead of silence.
    prohibited: u8,
}

const V4: Kind = Kind { family: NFPROTO_IPV4, destination: 16, prohibited: 13 };
const V6: Kind = Kind { family: NFPROTO_IPV6, destination: 24, prohibited: 1 };

/// Lets packets out of this network namespace only as `v4` and `v6` say. What no rule fits is dropped.
pub(super) fn install(v4: &[Rule], v6: &[Rule]) -> io::Result<()> {
    Netlink::netfilter()?.send(&batch(&[(V4, v4), (V6, v6)]))
}

/// Returns the whole filter: it comes into effect at once or not at all.
fn batch(kinds: &[(Kind, &[Rule])]) -> Batch {
    // struct nfgenmsg: family, version, subsystem in network byte order.
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    let mut batch = Batch::default().frame(NFNL_MSG_BATCH_BEGIN, &[0, 0, high, low]);
    for (kind, rules) in kinds {
        let header = [kind.family, 0, 0, 0];
        let hook = Attributes::default().number(1, NF_INET_LOCAL_OUT).number(2, 0);
        let chain = Attributes::default().text(1, TABLE).text(3, CHAIN).nested(4, hook).number(5, NF_DROP);
        batch = batch.make(NFT_MSG_NEWTABLE, &header, Attributes::default().text(1, TABLE));
        batch = batch.make(NFT_MSG_NEWCHAIN, &header, chain.text(7, "filter"));
        let always =
            [loopback()].into_iter().chain((kind.family == NFPROTO_IPV6).then(neighbours).into_iter().flatten());
        for expressions in always.chain(rules.iter().flat_map(|rule| to(kind, rule))) {
            let rule = Attributes::default().text(1, TABLE).text(2, CHAIN).nested(4, expressions);
            batch = batch.make(NFT_MSG_NEWRULE, &header, rule);
        }
    }
    batch.frame(NFNL_MSG_BATCH_END, &[0, 0, high, low])
}

/// The sandbox's own loopback is its own.
fn loopback() -> Attributes {
    accept(equals(meta(Attributes::default(), META_OIF), &LOOPBACK.to_ne_bytes()))
}

/// The kernel's own questions for the gateway's hardware address, and its answers: neighbour solicitation and
/// advertisement. (IPv4 has another protocol for that.) No process inside can send them.
fn neighbours() -> [Attributes; 2] {
    [135, 136].map(|message: u8| {
        let icmp = equals(meta(Attributes::default(), META_L4PROTO), &[58]);
        accept(equals(load(icmp, TRANSPORT_HEADER, 0, 1), &[message]))
    })
}

/// What a rule says, for packets to its range.
fn to(kind: &Kind, rule: &Rule) -> Vec<Attributes> {
    let reject = |list, how: Attributes| expression(list, "reject", how);
    let how = |how: u32| Attributes::default().number(1, how);
    match rule.pass {
        true => vec![accept(within(kind, rule))],
        // connect(2) overhears an ICMP message that comes before it waits, and would wait for a second one.
        false => vec![
            reject(equals(meta(within(kind, rule), META_L4PROTO), &[6]), how(REJECT_TCP_RESET)),
            reject(within(kind, rule), how(REJECT_ICMP_UNREACHABLE).with(2, &[kind.prohibited])),
        ],
    }
}

/// Compares the destination.
fn within(kind: &Kind, rule: &Rule) -> Attributes {
    if rule.to.length() == 0 {
        return Attributes::default();
    }
    let (bytes, mask) = (rule.to.bytes(), rule.to.mask());
    let length = u32::try_from(bytes.len()).expect("4 or 16 bytes");
    let value = |bytes: &[u8]| Attributes::default().with(1, bytes);
    let masked = Attributes::default().number(1, REGISTER_1).number(2, REGISTER_1).number(3, length);
    let masked = masked.nested(4, value(&mask)).nested(5, value(&vec![0; bytes.len()]));
    let destination = load(Attributes::default(), NETWORK_HEADER, kind.destination, length);
    equals(expression(destination, "bitwise", masked), &bytes)
}

fn meta(list: Attributes, key: u32) -> Attributes {
    expression(list, "meta", Attributes::default().number(1, REGISTER_1).number(2, key))
}

fn expression(list: Attributes, name: &str, data: Attributes) -> Attributes {
    list.nested(1, Attributes::default().text(1, name).nested(2, data))
}

fn load(list: Attributes, base: u32, offset: u32, length: u32) -> Attributes {
    let data = Attributes::default().number(1, REGISTER_1).number(2, base).number(3, offset).number(4, length);
    expression(list, "payload", data)
}

fn equals(list: Attributes, bytes: &[u8]) -> Attributes {
    let value = Attributes::default().with(1, bytes);
    expression(list, "cmp", Attributes::default().number(1, REGISTER_1).number(2, CMP_EQUAL).nested(3, value))
}

fn accept(list: Attributes) -> Attributes {
    let verdict = Attributes::default().nested(2, Attributes::default().number(1, NF_ACCEPT));
    expression(list, "immediate", Attributes::default().number(1, REGISTER_VERDICT).nested(2, verdict))
}
