//! What callers see of the network once it is up, and which settings a link gets.

use std::net::IpAddr;

use crate::machine::config::{InterfaceSelector, InterfaceSettings};
use crate::sys::net::link::Link;

/// Network as it was first configured: that of the card in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// The link with the address: a card, or the VLAN on it.
    pub interface: String,
    /// Address of this machine, that of IPv4 if it has one.
    pub address: IpAddr,
    /// Prefix length of the address.
    pub prefix_len: u8,
    /// Address of the default gateway.
    pub gateway: Option<IpAddr>,
    /// Name servers, as written to `resolv.conf`.
    pub dns: Vec<IpAddr>,
    /// Lease time; `None` for a static address and for a lease without end.
    pub lease_seconds: Option<u32>,
}

/// Finds the settings for a link: their numbers. A link may have several, with different VLANs; settings without an
/// interface are for every card that no others name.
pub(super) fn settings_for(link: &Link, all: &[InterfaceSettings]) -> Vec<usize> {
    let numbers = |wanted: &dyn Fn(&InterfaceSettings) -> bool| -> Vec<usize> {
        all.iter().enumerate().filter(|(_, settings)| wanted(settings)).map(|(number, _)| number).collect()
    };
    let named = numbers(&|settings| settings.interface.as_ref().is_some_and(|selector| selects(selector, link)));
    if named.is_empty() && link.card { numbers(&|settings| settings.interface.is_none()) } else { named }
}

/// Whether the selector means the link. A name may select any kind of link, and a card also by the name that the
/// running system shows; a MAC address selects a card, because links stacked on it carry the same address.
pub(super) fn selects(selector: &InterfaceSelector, link: &Link) -> bool {
    match selector {
        InterfaceSelector::Name(name) => link.name == *name || link.other_names.contains(name),
        InterfaceSelector::Mac(mac) => link.card && link.mac == *mac,
    }
}

#[cfg(test)]
mod tests {
    use super::settings_for;
    use crate::machine::config::{InterfaceSelector, InterfaceSettings};
    use crate::sys::net::link::Link;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn links() -> [Link; 4] {
        let link = |index, name: &str, card| Link {
            name: name.into(),
            index,
            mac: MAC,
            up: true,
            carrier: true,
            carrier_changes: 1,
            card,
            other_names: if card { vec![format!("enp{index}s0")] } else { Vec::new() },
        };
        [link(2, "eth0", true), link(4, "br0", false), link(5, "veth0", true), link(9, "eth1", true)]
    }

    fn of(selector: Option<InterfaceSelector>) -> InterfaceSettings {
        InterfaceSettings { interface: selector, ..InterfaceSettings::default() }
    }

    #[test]
    fn a_name_selects_anything_and_an_address_only_cards() {
        let wanted = |selector| -> Vec<String> {
            let all = [of(selector)];
            let links = links().into_iter().filter(|link| !settings_for(link, &all).is_empty());
            links.map(|link| link.name).collect()
        };
        assert_eq!(wanted(None), ["eth0", "veth0", "eth1"]);
        assert_eq!(wanted(Some(InterfaceSelector::Name("br0".into()))), ["br0"]);
        assert_eq!(wanted(Some(InterfaceSelector::Name("enp9s0".into()))), ["eth1"], "as the running system has it");
        assert_eq!(wanted(Some(InterfaceSelector::Mac(MAC))), ["eth0", "veth0", "eth1"]);
        assert_eq!(wanted(Some(InterfaceSelector::Mac([0; 6]))), [""; 0]);
    }

    #[test]
    fn several_settings_may_be_for_one_card_and_one_for_the_rest() {
        let name = |name: &str| Some(InterfaceSelector::Name(name.into()));
        let all = [of(name("eth0")), of(None), of(name("eth0"))];
        let numbers: Vec<Vec<usize>> = links().iter().map(|link| settings_for(link, &all)).collect();
        assert_eq!(numbers, [vec![0, 2], vec![], vec![1], vec![1]]);
    }
}
