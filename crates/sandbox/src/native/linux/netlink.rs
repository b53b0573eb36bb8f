//! The kernel's language for networks (`netlink(7)`): messages made of attributes, sent and answered at once.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// `linux/netlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const HEADER: usize = 16;

/// `linux/rtnetlink.h`, `linux/if_addr.h`, `linux/if_link.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: there is nobody else, and the address would be of no use for a second.
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;

/// Attributes, one behind the other, each padded to four bytes.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds a value.
    pub(super) fn with(self, kind: u16, value: &[u8]) -> Self {
        let Self(mut bytes) = self;
        let length = u16::try_from(value.len() + 4).expect("attributes are short");
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Self(bytes)
    }

    /// Adds a number in network byte order, as netfilter has them.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_be_bytes())
    }

    /// Adds a text, which ends in a zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.with(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds attributes in an attribute.
    pub(super) fn nested(self, kind: u16, value: Self) -> Self {
        self.with(kind | NLA_F_NESTED, &value.0)
    }
}

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    messages: usize,
}

impl Batch {
    /// Adds a message that makes something; the kernel answers it.
    pub(super) fn make(self, kind: u16, header: &[u8], attributes: Attributes) -> Self {
        let batch = self.push(kind, NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, header, attributes);
        Self { messages: batch.messages + 1, ..batch }
    }

    /// Adds a message that frames others; the kernel does not answer it.
    pub(super) fn frame(self, kind: u16, header: &[u8]) -> Self {
        self.push(kind, 0, header, Attributes::default())
    }

    fn push(self, kind: u16, flags: u16, header: &[u8], Attributes(attributes): Attributes) -> Self {
        let mut bytes = self.bytes;
        let length = u32::try_from(HEADER + header.len() + attributes.len()).expect("messages are short");
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Sequence number and sender: nobody asks.
        bytes.extend([0; 8]);
        bytes.extend(header);
        bytes.extend(attributes);
        Self { bytes, ..self }
    }
}

/// A socket to one part of the kernel.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// For interfaces, addresses and routes.
    pub(super) fn route() -> io::Result<Self> {
        // Protocol 0.
        Self::open(None)
    }

    /// For the packet filter.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?))
    }

    /// Sends a batch; all of it succeeds, or the first error is returned. The kernel works while we send, so its answers
    /// are there afterwards; one that is missing is an error.
    pub(super) fn send(&self, batch: &Batch) -> io::Result<()> {
        send(&self.0, &batch.bytes, SendFlags::empty())?;
        let mut missing = batch.messages;
        let mut buffer = vec![0; 64 << 10];
        while missing > 0 {
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT)?;
            missing = missing.saturating_sub(answers(&buffer[..length])?);
        }
        Ok(())
    }
}

/// Returns how many messages these answers say succeeded.
fn answers(mut bytes: &[u8]) -> io::Result<usize> {
    let broken = || io::Error::from_raw_os_error(libc::EBADMSG);
    let mut succeeded = 0;
    while !bytes.is_empty() {
        let length = bytes.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize).ok_or_else(broken)?;
        let message = bytes.get(..length).filter(|message| message.len() >= HEADER).ok_or_else(broken)?;
        if message[4..6] == NLMSG_ERROR.to_ne_bytes() {
            match message[HEADER..].first_chunk().map(|errno| i32::from_ne_bytes(*errno)).ok_or_else(broken)? {
                0 => succeeded += 1,
                errno => return Err(io::Error::from_raw_os_error(-errno)),
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(succeeded)
}

/// Returns the message that brings interface `index` up.
pub(super) fn link_up(index: u32, mtu: u32) -> Batch {
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    // struct ifinfomsg: family and padding, type; index; flags; which flags.
    let header = [[0; 4], index.to_ne_bytes(), up, up].concat();
    Batch::default().make(RTM_NEWLINK, &header, Attributes::default().with(IFLA_MTU, &mtu.to_ne_bytes()))
}

/// Returns the messages that give interface `index` an address and send everything to `gateway`, which is on the link
/// whatever its address.
pub(super) fn address_and_gateway(index: u32, address: &[u8], gateway: &[u8]) -> Batch {
    let family = family(address);
    let length = u8::try_from(8 * address.len()).expect("4 or 16 bytes");
    // struct ifaddrmsg: family, prefix length, flags, scope; index.
    let header = [[family, length, IFA_F_NODAD, 0], index.to_ne_bytes()].concat();
    let attributes = Attributes::default().with(IFA_LOCAL, address).with(IFA_ADDRESS, address);
    // struct rtmsg: family, lengths of destination and source, type of service; table, protocol, scope, type; flags.
    let route = [[family, 0, 0, 0], [RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST], RTNH_F_ONLINK.to_ne_bytes()];
    let way = Attributes::default().with(RTA_GATEWAY, gateway).with(RTA_OIF, &index.to_ne_bytes());
    Batch::default().make(RTM_NEWADDR, &header, attributes).make(RTM_NEWROUTE, &route.concat(), way)
}

fn family(address: &[u8]) -> u8 {
    let family = if address.len() == 4 { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).expect("families are small")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let attributes = Attributes::default().text(1, "abcd").nested(2, Attributes::default().number(3, 1));
        let header = |length: u16, kind: u16| [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        let expected =
            [header(9, 1), b"abcd\0\0\0\0".to_vec(), header(12, 0x8002), header(8, 3), vec![0, 0, 0, 1]].concat();
        assert_eq!(attributes.0, expected);
    }

    #[test]
    fn the_first_error_counts_and_broken_answers_are_errors() {
        let answer =
            |errno: i32| [&36_u32.to_ne_bytes()[..], &[2, 0], &[0; 10], &errno.to_ne_bytes(), &[0; 16]].concat();
        assert_eq!(answers(&[answer(0), answer(0)].concat()).unwrap(), 2);
        let error = answers(&[answer(0), answer(-libc::EPERM), answer(-libc::EIO)].concat()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(answers(&[0; 16]).is_err());
        assert!(answers(&answer(0)[..20]).is_err());
    }
}
