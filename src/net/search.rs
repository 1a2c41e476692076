//! Search for a link that gets an address: on every card at once, including cards that appear or get a cable later.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::chain::chain;
use crate::machine::config::{InterfaceSelector, Network};
use crate::sys::thread::background;

use super::dhcp::{self, DhcpError, Lease};
use super::error::NetError;
use super::options::{OnEvent, Stop};
use super::settings::Settings;
use crate::machine::drivers::Loader;
use crate::sys::net::link::{Link, links};
use crate::sys::net::rtnl::Rtnl;

/// Interval at which links are looked at. One look reads a few files of sysfs.
const LOOK: Duration = Duration::from_millis(250);

/// Wait before the first report that no cable is plugged in: drivers take a second or two to see the other end, so an
/// earlier report would be noise. The wait doubles up to [`NAG_MAX`].
const NAG_MIN: Duration = Duration::from_secs(5);
const NAG_MAX: Duration = Duration::from_secs(60);

/// Pause before a link that could not be used is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The DHCP client of one card.
struct RunningClient {
    stop: Arc<AtomicBool>,
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

struct DhcpAnswer {
    card: Link,
    link: Link,
    result: Result<Lease, DhcpError>,
}

/// Waits for the first wanted link that has a carrier and, with DHCP, a lease.
pub(super) fn search(
    network: &Network,
    stop: &Stop,
    rtnl: &mut Rtnl,
    on_event: &OnEvent,
) -> Result<Settings, NetError> {
    let (answers, answered) = mpsc::channel::<DhcpAnswer>();
    // Cards are kept by index: one that is plugged in again is a new card.
    let mut clients: HashMap<u32, RunningClient> = HashMap::new();
    let mut left_alone: HashMap<u32, Instant> = HashMap::new();
    let mut reminder = Reminder::new();
    loop {
        if stop.requested() {
            return Err(NetError::Stopped);
        }
        let wanted: Vec<Link> = links()
            .map_err(NetError::List)?
            .into_iter()
            .filter(|link| is_wanted(link, network.interface.as_ref()))
            .collect();
        left_alone.retain(|_, since| since.elapsed() < RETRY);
        clients.retain(|index, _| wanted.iter().any(|link| link.index == *index && link.carrier));
        for card in &wanted {
            if left_alone.contains_key(&card.index) || clients.contains_key(&card.index) {
                continue;
            }
            match ready(network, card, rtnl, on_event) {
                Ok(None) => {}
                Ok(Some(link)) => {
                    if let Some(address) = network.address {
                        return Ok(Settings::fixed(network, card.clone(), link, &address));
                    }
                    clients.insert(card.index, start(card.clone(), link, answers.clone(), on_event)?);
                }
                Err(problem) => {
                    on_event(&format!("{problem}; trying again in {} s", RETRY.as_secs()));
                    left_alone.insert(card.index, Instant::now());
                }
            }
        }
        reminder.check(network, &wanted, on_event);
        match answered.recv_timeout(LOOK) {
            Ok(DhcpAnswer { card, link, result: Ok(lease) }) => {
                return Ok(Settings::leased(network, card, link, lease));
            }
            Ok(DhcpAnswer { result: Err(DhcpError::Stopped { .. }), .. }) => {}
            Ok(DhcpAnswer { card, result: Err(error), .. }) => {
                // This is mostly a card that was unplugged, which the next look sees.
                clients.remove(&card.index);
                left_alone.insert(card.index, Instant::now());
                on_event(&chain(&error));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}

/// Whether DHCP or the static address belongs on this link: the one selected, or any card. A name may select any kind
/// of link; a MAC address selects a card, because links stacked on it carry the same address.
fn is_wanted(link: &Link, selector: Option<&InterfaceSelector>) -> bool {
    match selector {
        None => link.card,
        Some(InterfaceSelector::Name(name)) => link.name == *name,
        Some(InterfaceSelector::Mac(mac)) => link.card && link.mac == *mac,
    }
}

/// Switches the card on and, once it has a carrier, returns the link for the address.
fn ready(network: &Network, card: &Link, rtnl: &mut Rtnl, on_event: &OnEvent) -> Result<Option<Link>, String> {
    if !card.up {
        rtnl.set_up(&card.name, card.index).map_err(|error| chain(&error))?;
        return Ok(None);
    }
    if !card.carrier {
        return Ok(None);
    }
    on_event(&format!("{}: link up", card.name));
    let Some(id) = network.vlan else { return Ok(Some(card.clone())) };
    let name = create_vlan(card, id, rtnl)?;
    let find = || links().ok()?.into_iter().find(|link| link.name == name);
    let vlan = find().ok_or_else(|| format!("{name} vanished after it was created"))?;
    rtnl.set_up(&vlan.name, vlan.index).map_err(|error| chain(&error))?;
    Ok(Some(vlan))
}

/// Creates the VLAN, and loads the module for VLANs, which nothing else asks for.
fn create_vlan(card: &Link, id: u16, rtnl: &mut Rtnl) -> Result<String, String> {
    match rtnl.create_vlan(&card.name, card.index, id) {
        Err(error) if error.is_unsupported() => {
            let load = || Loader::for_running_kernel()?.load("8021q");
            load().map_err(|missing| format!("{}: {}", chain(&error), chain(&missing)))?;
            rtnl.create_vlan(&card.name, card.index, id).map_err(|error| chain(&error))
        }
        result => result.map_err(|error| chain(&error)),
    }
}

fn start(card: Link, link: Link, answers: Sender<DhcpAnswer>, on_event: &OnEvent) -> Result<RunningClient, NetError> {
    let stop = Arc::new(AtomicBool::new(false));
    let client = RunningClient { stop: Arc::clone(&stop) };
    let on_event = Arc::clone(on_event);
    background(&format!("dhcp {}", link.name), move || {
        on_event(&format!("{}: asking for an address by DHCP", link.name));
        let result = dhcp::obtain(&link, None, &|| stop.load(Ordering::SeqCst), &|text| on_event(text));
        // The receiver is gone when another card was faster.
        let _ = answers.send(DhcpAnswer { card, link, result });
    })
    .map_err(NetError::Thread)?;
    Ok(client)
}

/// Reports at growing intervals that there is no link to use.
struct Reminder {
    since: Instant,
    pause: Duration,
}

impl Reminder {
    fn new() -> Self {
        Self { since: Instant::now(), pause: NAG_MIN }
    }

    fn check(&mut self, network: &Network, wanted: &[Link], on_event: &OnEvent) {
        if wanted.iter().any(|link| link.carrier) {
            *self = Self::new();
        } else if self.since.elapsed() >= self.pause {
            self.since = Instant::now();
            self.pause = (self.pause * 2).min(NAG_MAX);
            on_event(&no_link(network, wanted));
        }
    }
}

fn no_link(network: &Network, wanted: &[Link]) -> String {
    if wanted.is_empty() {
        return match &network.interface {
            Some(selector) => format!("network: waiting for the interface {selector:?} of the configuration"),
            None => "network: no network card found; is its driver's module in the initramfs?".into(),
        };
    }
    let names: Vec<&str> = wanted.iter().map(|link| link.name.as_str()).collect();
    format!("network: no link on {}; is the cable plugged in?", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{InterfaceSelector, Link, is_wanted};

    #[test]
    fn a_name_selects_anything_and_an_address_only_cards() {
        let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let link = |index, name: &str, card| Link { name: name.into(), index, mac, up: true, carrier: true, card };
        let links = [link(2, "eth0", true), link(4, "br0", false), link(5, "veth0", true), link(9, "eth1", true)];
        let wanted = |selector: Option<InterfaceSelector>| -> Vec<&str> {
            let wanted = links.iter().filter(|link| is_wanted(link, selector.as_ref()));
            wanted.map(|link| link.name.as_str()).collect()
        };
        assert_eq!(wanted(None), ["eth0", "veth0", "eth1"]);
        assert_eq!(wanted(Some(InterfaceSelector::Name("br0".into()))), ["br0"]);
        assert_eq!(wanted(Some(InterfaceSelector::Mac(mac))), ["eth0", "veth0", "eth1"]);
        assert_eq!(wanted(Some(InterfaceSelector::Mac([0; 6]))), [""; 0]);
    }
}
