//! Cards and cables: which links there are to use, and their way to a carrier.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::choice::CardKey;
use super::console::{Console, Topic};
use super::settings::{selects, settings_for};
use crate::chain::chain;
use crate::mac;
use crate::machine::config::{InterfaceSelector, InterfaceSettings};
use crate::machine::drivers::Loader;
use crate::sys::net::link::{Link, links, switch_off_ipv6, switch_on_ipv6};
use crate::sys::net::rtnl::Rtnl;

/// Wait before the first report that no cable is plugged in: drivers take a second or two to see the other end, so an
/// earlier report would be noise. The wait doubles up to [`NAG_MAX`].
const NAG_MIN: Duration = Duration::from_secs(5);
const NAG_MAX: Duration = Duration::from_secs(60);

/// Time without any cable after which settings are used for other cards than theirs. Cards on USB need some seconds
/// until they are there.
pub(super) const STRANGERS: Duration = Duration::from_secs(30);

/// Pause before a link that could not be used is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(10);

/// Links that have settings, as they are now.
#[derive(Debug)]
pub(super) struct WantedLink {
    pub(super) key: CardKey,
    pub(super) link: Link,
}

/// Finds the wanted links among those of the machine.
pub(super) fn wanted(all: &[Link], settings: &[InterfaceSettings]) -> Vec<WantedLink> {
    let of = |link: &Link| {
        let numbers = settings_for(link, settings).into_iter();
        numbers.map(|number| WantedLink { key: (number, link.index), link: link.clone() }).collect::<Vec<_>>()
    };
    all.iter().flat_map(of).collect()
}

/// Gives settings whose card is not there to the cards that no settings are for: a card or a board that was replaced
/// has another name and another address. Of several for one VLAN it is the first. Returns what to report, if it does
/// so.
pub(super) fn adopt(all: &[Link], settings: &mut [InterfaceSettings]) -> Option<String> {
    let strangers = all.iter().filter(|link| link.card && settings_for(link, settings).is_empty());
    let strangers: Vec<&str> = strangers.map(|link| link.name.as_str()).collect();
    if strangers.is_empty() {
        return None;
    }
    let (mut missing, mut vlans) = (Vec::new(), Vec::new());
    for one in settings {
        let is_missing = |selector: &&InterfaceSelector| !all.iter().any(|link| selects(selector, link));
        let Some(selector) = one.interface.as_ref().filter(is_missing) else { continue };
        if !vlans.contains(&one.vlan) {
            vlans.push(one.vlan);
            missing.push(shown(selector));
            missing.dedup();
            one.interface = None;
        }
    }
    let (names, used) = (missing.join(", "), strangers.join(", "));
    let text = format!("network: {names} of the configuration is not there; its settings are used for {used}");
    (!missing.is_empty()).then_some(text)
}

/// Leaves out the links of these cards, unless nothing else has a carrier. A VLAN `eth0.5` is left out with its card.
pub(super) fn without(left_out: &[String], wanted: Vec<WantedLink>) -> Vec<WantedLink> {
    let is_left_out =
        |link: &Link| left_out.iter().any(|name| *name == link.name || name.starts_with(&format!("{}.", link.name)));
    let others = wanted.iter().any(|wanted| wanted.link.carrier && !is_left_out(&wanted.link));
    wanted.into_iter().filter(|wanted| !others || !is_left_out(&wanted.link)).collect()
}

/// Links that were left alone for a while, since they could not be used.
#[derive(Debug, Default)]
pub(super) struct LeftAlone(HashMap<CardKey, Instant>);

impl LeftAlone {
    pub(super) fn add(&mut self, key: CardKey) {
        self.0.insert(key, Instant::now());
    }

    pub(super) fn has(&mut self, key: CardKey) -> bool {
        self.0.retain(|_, since| since.elapsed() < RETRY);
        self.0.contains_key(&key)
    }
}

/// Switches the card on and, once it has a carrier, returns the link for the addresses.
pub(super) fn ready(card: &Link, vlan: Option<u16>, rtnl: &mut Rtnl) -> Result<Option<Link>, String> {
    if !card.up {
        match vlan {
            // The kernel asks for routers as soon as the link is on: it must know by then what to make of them.
            None => _ = switch_on_ipv6(&card.name, true),
            // What routers advertise beside the VLAN is not for this machine, unless other settings are for that.
            Some(_) => switch_off_ipv6(&card.name),
        }
        rtnl.set_up(&card.name, card.index).map_err(|error| chain(&error))?;
        return Ok(None);
    }
    if !card.carrier {
        return Ok(None);
    }
    let Some(id) = vlan else { return Ok(Some(card.clone())) };
    let name = create_vlan(card, id, rtnl)?;
    let find = || links().ok()?.into_iter().find(|link| link.name == name);
    let vlan = find().ok_or_else(|| format!("{name} vanished after it was created"))?;
    let _ = switch_on_ipv6(&vlan.name, true);
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

/// Reports at growing intervals that there is no link to use.
#[derive(Debug)]
pub(super) struct Reminder {
    began: Instant,
    since: Instant,
    pause: Duration,
}

impl Reminder {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, since: now, pause: NAG_MIN }
    }

    /// How long there has been no link to use.
    pub(super) fn waited(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn check(&mut self, settings: &[InterfaceSettings], wanted: &[WantedLink], console: &Arc<Console>) {
        if wanted.iter().any(|wanted| wanted.link.carrier) {
            *self = Self::new();
        } else if self.since.elapsed() >= self.pause {
            self.since = Instant::now();
            self.pause = (self.pause * 2).min(NAG_MAX);
            console.say("network", Topic::Link, no_link(settings, wanted));
        }
    }
}

fn no_link(settings: &[InterfaceSettings], wanted: &[WantedLink]) -> String {
    if wanted.is_empty() {
        let selectors: Vec<String> =
            settings.iter().filter_map(|settings| settings.interface.as_ref()).map(shown).collect();
        return if selectors.is_empty() {
            "network: no network card found; is its driver's module in the initramfs?".into()
        } else {
            format!("network: waiting for the interface {} of the configuration", selectors.join(", "))
        };
    }
    let mut names: Vec<&str> = wanted.iter().map(|wanted| wanted.link.name.as_str()).collect();
    names.dedup();
    format!("network: no link on {}; is the cable plugged in?", names.join(", "))
}

fn shown(selector: &InterfaceSelector) -> String {
    match selector {
        InterfaceSelector::Name(name) => name.clone(),
        InterfaceSelector::Mac(mac) => mac::text(*mac),
    }
}

#[cfg(test)]
mod tests {
    use super::{InterfaceSelector, InterfaceSettings, Link, WantedLink, adopt, wanted, without};

    #[test]
    fn a_card_is_left_out_only_for_another_with_a_cable() {
        let link = |index: u32, name: &str, carrier| WantedLink {
            key: (0, index),
            link: Link { name: name.into(), index, carrier, ..Link::default() },
        };
        let names = |left_out: &[&str], carrier| -> Vec<String> {
            let left_out: Vec<String> = left_out.iter().map(ToString::to_string).collect();
            let links = vec![link(2, "eth0", true), link(3, "eth1", carrier)];
            without(&left_out, links).into_iter().map(|wanted| wanted.link.name).collect()
        };
        assert_eq!(names(&["eth0"], true), ["eth1"]);
        assert_eq!(names(&["eth0.5"], true), ["eth1"]);
        assert_eq!(names(&["eth0"], false), ["eth0", "eth1"]);
        assert_eq!(names(&["eth0", "eth1"], true), ["eth0", "eth1"]);
        assert_eq!(names(&["eth"], true), ["eth0", "eth1"]);
    }

    #[test]
    fn settings_of_cards_that_are_gone_are_used_for_those_that_none_are_for() {
        let link = |index: u32, name: &str| Link { name: name.into(), index, card: true, ..Link::default() };
        let of = |interface: &str, vlan| InterfaceSettings {
            interface: (!interface.is_empty()).then(|| InterfaceSelector::Name(interface.to_owned())),
            vlan,
            ..InterfaceSettings::default()
        };
        let adopted = |all: &[Link], mut settings: Vec<InterfaceSettings>| {
            let text = adopt(all, &mut settings);
            assert_eq!(adopt(all, &mut settings), None, "it is said once");
            (text, wanted(all, &settings).into_iter().map(|wanted| wanted.key).collect::<Vec<_>>())
        };
        let all = [link(2, "eth0"), link(3, "eth1"), Link { card: false, ..link(4, "br0") }];
        let (text, keys) = adopted(&all, vec![of("eno1", None), of("eno2", None), of("eno1", Some(5))]);
        assert_eq!(keys, [(0, 2), (2, 2), (0, 3), (2, 3)], "the first of each VLAN");
        let expected = "network: eno1 of the configuration is not there; its settings are used for eth0, eth1";
        assert_eq!(text.as_deref(), Some(expected));
        // A card that is there keeps its own.
        let (text, keys) = adopted(&all, vec![of("eth0", None), of("eno2", None)]);
        assert_eq!((keys, text.is_some_and(|text| text.ends_with("for eth1"))), (vec![(0, 2), (1, 3)], true));
        for settings in [vec![of("eth1", None)], vec![of("", None), of("eno1", None)], vec![of("", None)]] {
            let before = wanted(&all, &settings).len();
            let (text, keys) = adopted(&all, settings);
            assert_eq!((text, keys.len()), (None, before));
        }
        assert_eq!(adopted(&[], vec![of("eno1", None)]), (None, vec![]), "it may come yet");
    }
}
