//! `[[network.interfaces]]`: several interfaces, each with settings of its own. Pure.

use std::net::IpAddr;

use super::error::ConfigError;
use super::interface_kinds::{AddressesWithPrefix, Interface, StaticAddress};
use super::keys::{Shape, ValueKind, keys};
use super::kinds::{Addresses, Number};

keys! {
    /// The checked settings of one interface.
    #[derive(Debug, Clone, Default, PartialEq, Eq)]
    checked InterfaceSettings

    /// One interface, with settings of its own; the section may stand in a file any number of times, also several times
    /// for the same interface with different VLANs. A later layer that has the section replaces the list as a whole.
    ["network.interfaces"] interfaces: InterfaceLayer {
        /// This interface, by its MAC address or its name, as for `network.interface`. If no interface with a section
        /// has a link within 30 s, the sections of those that are not there are used for interfaces without one.
        interface as interface: Interface, optional "every interface that has a link and no section of its own", newer_than "0.1.0";
        /// Static addresses with prefix lengths. They switch DHCP off, and an IPv6 one also the addresses that are made
        /// of advertised prefixes.
        addresses as addresses: AddressesWithPrefix, default "", newer_than "0.1.0";
        /// Default gateways, one of each kind. They need an address of their kind, and may lie outside of its subnet.
        gateways as gateways: Addresses, default "", newer_than "0.1.0";
        /// Name servers that are reached through this interface, before those that the network gives.
        dns as dns: Addresses, default "", newer_than "0.1.0";
        /// 802.1Q VLAN ID.
        vlan as vlan: Number<u16, 1, 4094>, optional "untagged frames", newer_than "0.1.0";
    }
}

impl InterfaceSettings {
    /// Checks one section.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the key at fault.
    pub fn resolve(layer: InterfaceLayer) -> Result<Self, ConfigError> {
        let settings = Self::checked(layer)?;
        check_gateways(
            "network.interfaces.gateways",
            "network.interfaces.addresses",
            &settings.addresses,
            &settings.gateways,
        )?;
        Ok(settings)
    }
}

/// Checks that every gateway has an address of its kind beside it.
pub(super) fn check_gateways(
    key: &'static str,
    beside: &str,
    addresses: &[StaticAddress],
    gateways: &[IpAddr],
) -> Result<(), ConfigError> {
    let has_address = |gateway: &IpAddr| addresses.iter().any(|one| one.address.is_ipv4() == gateway.is_ipv4());
    match gateways.iter().find(|gateway| !has_address(gateway)) {
        Some(gateway) => {
            Err(ConfigError::value(key, &gateway.to_string(), format!("{beside} of the same kind beside it")))
        }
        None => Ok(()),
    }
}

/// Sections for several interfaces.
#[derive(Debug)]
pub struct InterfaceTables;

impl ValueKind for InterfaceTables {
    type Written = Vec<InterfaceLayer>;
    type Checked = Vec<InterfaceSettings>;
    const SHAPE: Shape = Shape::Tables(&InterfaceSettings::SECTIONS[0]);

    fn expected() -> String {
        "sections".to_owned()
    }

    fn example() -> String {
        String::new()
    }

    /// A kernel argument has no room for them; an empty text is the default.
    fn from_text(text: &str) -> Option<Vec<InterfaceLayer>> {
        text.is_empty().then(Vec::new)
    }

    /// An interface without one of its settings is better than none.
    fn usable(
        _key: &'static str,
        mut written: Vec<InterfaceLayer>,
        problems: &mut Vec<ConfigError>,
    ) -> Option<Vec<InterfaceLayer>> {
        for one in &mut written {
            one.drop_wrong(problems);
            if let Err(error) = InterfaceSettings::resolve(one.clone()) {
                problems.push(error);
                one.gateways = None;
            }
        }
        Some(written)
    }

    fn check(_key: &'static str, written: Vec<InterfaceLayer>) -> Result<Vec<InterfaceSettings>, ConfigError> {
        written.into_iter().map(InterfaceSettings::resolve).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::machine::config::{InterfaceSelector, Network, NetworkLayer};

    fn network(text: &str) -> Result<Network, String> {
        let layer: NetworkLayer = toml::from_str(text).map_err(|error| error.to_string())?;
        Network::resolve(layer).map_err(|error| error.to_string())
    }

    #[test]
    fn several_interfaces_have_settings_of_their_own() {
        let network = network(
            "dns = ['192.0.2.53']
             [[interfaces]]
             interface = 'eth0'
             addresses = ['10.0.0.7/24', '2001:db8::7/64']
             gateways = ['2001:db8::1']
             [[interfaces]]
             interface = 'eth1'
             vlan = 42
             dns = ['10.1.0.53']
             [[interfaces]]",
        )
        .unwrap();
        let all = network.all_interfaces();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].addresses.len(), all[0].gateways.len()), (2, 1));
        assert_eq!(all[0].dns, ["192.0.2.53".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!((all[1].vlan, all[1].dns[0].to_string().as_str()), (Some(42), "10.1.0.53"));
        assert_eq!(all[2].interface, None);
    }

    #[test]
    fn keys_of_the_machine_describe_the_only_interface() {
        let both = network("interface = 'eth9'\n[[interfaces]]\ninterface = 'eth0'").unwrap();
        assert!(both.describes_one_interface());
        let all = both.all_interfaces();
        assert_eq!((all.len(), &all[0].interface), (1, &Some(InterfaceSelector::Name("eth9".into()))));
        let none = network("").unwrap();
        assert!(!none.describes_one_interface());
        assert_eq!((none.all_interfaces().len(), &none.all_interfaces()[0].interface), (1, &None));
        let six = network("address = '2001:db8::7/64'\ngateway = 'fe80::1'").unwrap();
        assert_eq!(six.all_interfaces()[0].gateways[0].to_string(), "fe80::1");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        for (text, key) in [
            ("address = '192.0.2.7/33'", "network.address"),
            ("address = '2001:db8::7/129'", "network.address"),
            ("address = '192.0.2.7/24'\ngateway = 'fe80::1'", "network.gateway"),
            ("gateway = '192.0.2.1'", "network.gateway"),
            ("[[interfaces]]\naddresses = ['192.0.2.7']", "network.interfaces.addresses"),
            ("[[interfaces]]\ngateways = ['192.0.2.1']", "network.interfaces.gateways"),
            ("[[interfaces]]\nvlan = 4095", "network.interfaces.vlan"),
            ("[[interfaces]]\nvlam = 5", "vlam"),
            ("[interfaces]\nvlan = 5", "interfaces"),
        ] {
            let error = network(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
