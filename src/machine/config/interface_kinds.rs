//! The kinds of values that describe an interface. Pure.

use std::net::IpAddr;

use super::error::ConfigError;
use super::keys::{Shape, ValueKind, refused};
use super::kinds::ANY;
use crate::mac;

/// Name of one interface, of either kind that the configuration takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceSelector {
    /// The name that the kernel gives it, or udev in the running system.
    Name(String),
    /// The hardware address.
    Mac([u8; 6]),
}

/// Address and prefix length of a statically configured interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address of the machine.
    pub address: IpAddr,
    /// The length of the network's prefix: 0 to 32 bits for IPv4, 0 to 128 for IPv6.
    pub prefix_len: u8,
}

/// An interface, by its name or its MAC address.
#[derive(Debug)]
pub struct Interface;

impl ValueKind for Interface {
    type Written = String;
    type Checked = InterfaceSelector;
    const SHAPE: Shape = Shape::Text(ANY);

    fn expected() -> String {
        "a MAC address or a name".to_owned()
    }

    fn example() -> String {
        "52:54:00:12:34:56".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(_key: &'static str, written: String) -> Result<InterfaceSelector, ConfigError> {
        Ok(match mac::parse(&written) {
            Some(mac) => InterfaceSelector::Mac(mac),
            None => InterfaceSelector::Name(written),
        })
    }
}

/// An address with the length of its network's prefix.
#[derive(Debug)]
pub struct AddressWithPrefix;

impl ValueKind for AddressWithPrefix {
    type Written = String;
    type Checked = StaticAddress;
    const SHAPE: Shape = Shape::Text("^[0-9a-fA-F.:]+/[0-9]+$");

    fn expected() -> String {
        "ADDRESS/PREFIX such as 192.0.2.7/24".to_owned()
    }

    fn example() -> String {
        "192.0.2.7/24".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(key: &'static str, written: String) -> Result<StaticAddress, ConfigError> {
        parse_static(&written).ok_or_else(|| refused::<Self>(key, &written))
    }
}

/// Several addresses with the lengths of their networks' prefixes.
#[derive(Debug)]
pub struct AddressesWithPrefix;

impl ValueKind for AddressesWithPrefix {
    type Written = Vec<String>;
    type Checked = Vec<StaticAddress>;
    const SHAPE: Shape = Shape::Texts("^[0-9a-fA-F.:]+/[0-9]+$");

    fn expected() -> String {
        "ADDRESS/PREFIX, of both kinds".to_owned()
    }

    fn example() -> String {
        "192.0.2.7/24,2001:db8::7/64".to_owned()
    }

    fn from_text(text: &str) -> Option<Vec<String>> {
        Some(text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect())
    }

    fn check(key: &'static str, written: Vec<String>) -> Result<Vec<StaticAddress>, ConfigError> {
        let checked = written.iter().map(|one| parse_static(one).ok_or_else(|| refused::<Self>(key, one)));
        checked.collect()
    }
}

fn parse_static(text: &str) -> Option<StaticAddress> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = prefix.parse().ok().filter(|len| *len <= most)?;
    Some(StaticAddress { address, prefix_len })
}
