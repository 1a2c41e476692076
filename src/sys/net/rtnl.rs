//! Changes to links, addresses and routes: one netlink request at a time, each waited for.

use std::convert::Infallible;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::items::{NetworkItem, describe, message, rules_of_priority};

/// Rules of one priority that are removed at most: one for each address of a card.
const MOST_RULES: usize = 64;
/// Longest interface name, without the ending zero.
const NAME_MAX: usize = 15;

/// A change that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct RtnlError {
    /// Action that was tried, with the interface.
    pub action: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl RtnlError {
    /// Whether the kernel lacks the module for it.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.source.raw_os_error() == Some(nix::libc::EOPNOTSUPP)
    }
}

/// A connection to the kernel's routing interface.
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Rtnl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rtnl").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Rtnl {
    /// Opens the connection to the kernel.
    ///
    /// # Errors
    /// The kernel refused the socket.
    pub fn open() -> Result<Self, RtnlError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| RtnlError { action: "open a netlink socket".into(), source })?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Switches a link on.
    ///
    /// # Errors
    /// [`RtnlError`], such as a driver that misses its firmware.
    pub fn set_up(&mut self, name: &str, index: u32) -> Result<(), RtnlError> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0, || format!("switch on {name}"))
    }

    /// Sets an item, or confirms the one that is there.
    ///
    /// # Errors
    /// [`RtnlError`].
    pub fn set(&mut self, on: &str, item: NetworkItem) -> Result<(), RtnlError> {
        let action = || format!("set {} on {on}", describe(item));
        match item {
            NetworkItem::Route { beside: true, .. } => {
                unless(self.request(message(item, true), NLM_F_CREATE | NLM_F_APPEND, action), &[nix::libc::EEXIST])
            }
            NetworkItem::Address { .. } | NetworkItem::Route { .. } => {
                self.request(message(item, true), NLM_F_CREATE | NLM_F_REPLACE, action)
            }
            // Rules have no key: without EXCL the kernel keeps as many equal ones as it is sent.
            NetworkItem::Rule { .. } => {
                unless(self.request(message(item, true), NLM_F_CREATE | NLM_F_EXCL, action), &[nix::libc::EEXIST])
            }
        }
    }

    /// Takes an item away. One that is not there, or whose link is gone, is not an error.
    ///
    /// # Errors
    /// [`RtnlError`].
    pub fn remove(&mut self, on: &str, item: NetworkItem) -> Result<(), RtnlError> {
        let result = self.request(message(item, false), 0, || format!("take {} from {on}", describe(item)));
        unless(
            result,
            &[nix::libc::EADDRNOTAVAIL, nix::libc::ENODEV, nix::libc::ESRCH, nix::libc::ENOENT, nix::libc::ENETUNREACH],
        )
    }

    /// Takes away every rule of this priority, of both kinds of address.
    pub fn remove_rules(&mut self, priority: u32) {
        for ipv6 in [false, true] {
            // The kernel removes one at a time, and refuses when there is none left.
            let removed = |this: &mut Self| this.exchange(rules_of_priority(priority, ipv6), 0).is_ok();
            (0..MOST_RULES).find(|_| !removed(self));
        }
    }

    /// Creates the 802.1Q link for `id` on top of another and returns its name. One that exists is taken over.
    ///
    /// # Errors
    /// [`RtnlError`], with `EOPNOTSUPP` when the module `8021q` is not loaded.
    pub fn create_vlan(&mut self, parent: &str, parent_index: u32, id: u16) -> Result<String, RtnlError> {
        let name = vlan_name(parent, parent_index, id);
        let message = vlan_message(&name, parent_index, id);
        let action = || format!("create VLAN {id} on {parent}");
        let result = self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL, action);
        unless(result, &[nix::libc::EEXIST])?;
        Ok(name)
    }

    /// Sends one request and waits for its acknowledgement.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl Fn() -> String,
    ) -> Result<(), RtnlError> {
        self.exchange(message, flags).map_err(|source| RtnlError { action: action(), source })
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (answer, _) = self.socket.recv_from_full()?;
            // Only acknowledgements are asked for, so one datagram holds one message.
            let answer = NetlinkMessage::<UndecodedBody>::deserialize(&answer).map_err(io::Error::other)?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = answer.payload {
                return error.code.map_or(Ok(()), |code| Err(io::Error::from_raw_os_error(code.get().abs())));
            }
        }
    }
}

/// Body of an answer, which is not decoded. Decoding it would bring the decoders of every message that the kernel knows
/// into the binary, a tenth of its size.
struct UndecodedBody;

impl NetlinkDeserializable for UndecodedBody {
    type Error = Infallible;

    fn deserialize(_header: &NetlinkHeader, _payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self)
    }
}

fn unless(result: Result<(), RtnlError>, accepted: &[i32]) -> Result<(), RtnlError> {
    match result {
        Err(error) if error.source.raw_os_error().is_some_and(|code| accepted.contains(&code)) => Ok(()),
        other => other,
    }
}

/// `eth0.5`, or a name without the parent's where that would be longer than the kernel takes.
fn vlan_name(parent: &str, parent_index: u32, id: u16) -> String {
    let name = format!("{parent}.{id}");
    if name.len() <= NAME_MAX { name } else { format!("vlan{id}.{parent_index}") }
}

fn vlan_message(name: &str, parent_index: u32, id: u16) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Link(parent_index),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
        ]),
    ];
    message
}

#[cfg(test)]
mod tests {
    use super::vlan_name;

    #[test]
    fn vlan_names_fit_the_kernel() {
        assert_eq!(vlan_name("eth0", 2, 4094), "eth0.4094");
        assert_eq!(vlan_name("enx001122334455", 12, 4094), "vlan4094.12");
        assert_eq!(vlan_name("enp0s31f6", 3, 100), "enp0s31f6.100");
    }
}
