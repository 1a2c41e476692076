//! Supervisor of the network: one thread that brings up every card with a cable, keeps them, chooses the one that the
//! default route leads through, and owns the configuration for the life of the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::applied::Applied;
use super::cables::{LeftAlone, RETRY, Reminder, STRANGERS, WantedLink, adopt, ready, wanted, without};
use super::card::{Card, News, NewsKind};
use super::choice::{Candidate, CardChoice, CardKey, Look, Reach};
use super::console::{Console, Topic};
use super::error::NetError;
use super::mtu::OwnMtus;
use super::options::{NetworkOptions, OnEvent};
use super::reach::{self, ReachTrial, Way};
use super::resolver_file::{self, ServerOnLink};
use super::routing;
use super::settings::Up;
use super::target::{Target, targets};
use super::usage::{usage_of_chosen, usage_of_other};
use crate::chain::chain;
use crate::machine::config::{InterfaceSettings, Network};
use crate::order;
use crate::sys::net::items::NetworkItem;
use crate::sys::net::link::{
    Link, ipv4_addresses, ipv6_addresses, links, probe_path_mtu, received_bytes, switch_off_ipv6,
};
use crate::sys::net::rtnl::Rtnl;
use crate::sys::thread::background;

/// Interval at which the links are looked at. One look reads a few files of sysfs.
const LOOK: Duration = Duration::from_millis(250);

/// Time that a link may be away before its addresses go: longer than a switch takes to renegotiate, shorter than a
/// person waits after moving a cable.
const GRACE: Duration = Duration::from_secs(10);

/// News that are taken between two looks at the links.
const MOST_NEWS: usize = 64;

pub(super) struct Supervisor {
    options: NetworkOptions,
    settings: Vec<InterfaceSettings>,
    targets: Vec<Target>,
    console: Arc<Console>,
    rtnl: Rtnl,
    news: (Sender<News>, Receiver<News>),
    began: Instant,
    cards: BTreeMap<CardKey, Card>,
    starts: u64,
    left_alone: LeftAlone,
    reminder: Reminder,
    carriers: usize,
    choice: CardChoice,
    applied: Applied,
    mtus: OwnMtus,
    /// Text and servers of `resolv.conf`, once it is written.
    resolver: Option<(String, Vec<ServerOnLink>)>,
}

impl Supervisor {
    pub(super) fn new(network: &Network, options: NetworkOptions, on_event: OnEvent) -> Result<Self, NetError> {
        let console = Arc::new(Console::new(on_event));
        if !network.interfaces.is_empty() && network.describes_one_interface() {
            let text = "network: the list of interfaces is left out, since keys of [network] describe the only one";
            console.say("network", Topic::Use, text.to_owned());
        }
        let targets = targets(&options.sources, |host| network.proxy_to(host));
        Ok(Self {
            settings: network.all_interfaces(),
            console,
            rtnl: Rtnl::open()?,
            news: channel(),
            began: Instant::now(),
            cards: BTreeMap::new(),
            starts: 0,
            left_alone: LeftAlone::default(),
            reminder: Reminder::new(),
            carriers: 0,
            choice: CardChoice::new(!targets.is_empty()),
            applied: Applied::default(),
            mtus: OwnMtus::default(),
            resolver: None,
            targets,
            options,
        })
    }

    /// Brings the network up and keeps it, for ever. `first` gets the first result; a first error ends the thread,
    /// while later errors are reported and tried again.
    pub(super) fn run(&mut self, first: &Sender<Result<Up, NetError>>) {
        // Loopback is switched on for name servers and proxies on the machine itself, which are rare in an initramfs,
        // but cost only one request. Outside of an initramfs it is up already, and without the right to change it the
        // next step fails with a better message.
        let _ = self.rtnl.set_up("lo", 1);
        probe_path_mtu();
        // An earlier process of this boot may have been killed before it could take anything back.
        routing::priorities().for_each(|priority| self.rtnl.remove_rules(priority));
        let mut reported = false;
        while !self.options.stop.requested() {
            let result = self.turn();
            if !reported {
                match result.map(|()| self.up()) {
                    Ok(None) => {}
                    Ok(Some(up)) => {
                        reported = true;
                        // The caller may have gone away; the network stays up nevertheless.
                        let _ = first.send(Ok(up));
                    }
                    Err(error) => {
                        let _ = first.send(Err(error));
                        return;
                    }
                }
            } else if let Err(error) = result {
                self.console.say("network", Topic::Trouble, format!("network: {}", chain(&error)));
            }
            self.console.flush();
            self.take_news();
        }
        if !reported {
            let _ = first.send(Err(NetError::Stopped));
        }
    }

    /// Looks at everything once, and changes what has to be changed.
    fn turn(&mut self) -> Result<(), NetError> {
        self.look_at_links()?;
        let to_try = self.choose();
        self.configure()?;
        // A trial needs the card's address.
        to_try.into_iter().for_each(|key| self.try_card(key));
        self.write_resolver()?;
        self.report();
        Ok(())
    }

    /// Waits for news until the links are to be looked at again.
    fn take_news(&mut self) {
        let mut next = self.news.1.recv_timeout(LOOK).ok();
        let mut taken = 0;
        while let Some(news) = next {
            self.take(news);
            taken += 1;
            next = if taken < MOST_NEWS { self.news.1.try_recv().ok() } else { None };
        }
    }

    fn take(&mut self, news: News) {
        let Some(card) = self.cards.get_mut(&news.key).filter(|card| card.start == news.start) else { return };
        match news.what {
            NewsKind::Lease(lease) => {
                let (duration, mtu) = (lease.duration, lease.mtu);
                let gives_other = card.take_lease(*lease);
                if gives_other {
                    self.choice.changed(news.key, self.began.elapsed());
                } else if let Some(duration) = duration {
                    let text = format!("{}: lease renewed for {} s", card.link.name, duration.as_secs());
                    self.console.say(&card.link.name, Topic::Address, text);
                }
                if gives_other && let Err((mtu, error)) = self.mtus.take(&card.link, mtu) {
                    // A link that does not take it is used as it is: small packets still pass.
                    let text = format!("{}: the MTU of {mtu} cannot be set: {error}", card.link.name);
                    self.console.say(&card.link.name, Topic::Trouble, text);
                }
            }
            NewsKind::Ipv6(network) => card.take_ipv6(*network),
            // Of what the card was given before: it says nothing of what it has now.
            NewsKind::Tried(trial) if trial.given != card.given => {}
            NewsKind::Tried(trial) => {
                let now = self.began.elapsed();
                self.choice.tried(news.key, trial.reach, now);
                card.trial = Some(trial);
                if self.choice.is_fruitless(news.key, now) {
                    card.give_other();
                    self.choice.changed(news.key, now);
                }
            }
            NewsKind::Ended(why) => {
                // This is mostly a card that was unplugged, which the next look sees.
                let text = format!("{why}; trying again in {} s", RETRY.as_secs());
                self.console.say(&card.link.name, Topic::Search, text);
                self.left_alone.add(news.key);
                self.cards.remove(&news.key);
            }
        }
    }

    /// Starts cards that have got a cable, and ends those that have lost it.
    fn look_at_links(&mut self) -> Result<(), NetError> {
        let all = match links() {
            Ok(all) => all,
            // A passing error of sysfs is not a lost cable.
            Err(_) if !self.cards.is_empty() => return Ok(()),
            Err(error) => return Err(NetError::List(error)),
        };
        if self.reminder.waited() >= STRANGERS
            && let Some(text) = adopt(&all, &mut self.settings)
        {
            self.console.say("network", Topic::Use, text);
        }
        let wanted = without(&self.options.left_out, wanted(&all, &self.settings));
        self.carriers = wanted.iter().filter(|wanted| wanted.link.carrier).count();
        self.reminder.check(&self.settings, &wanted, &self.console);
        let exists = |index: u32| all.iter().any(|link| link.index == index);
        self.cards.retain(|_, card| exists(card.card.index) && exists(card.link.index));
        let is_off = |index: u32| all.iter().any(|link| link.index == index && !link.up);
        for wanted in wanted {
            // A VLAN goes off and on with its card. One that is off beside it has lost its routes, and nothing else
            // says so.
            let is_alone_off = |card: &Card| card.link.index != card.card.index && is_off(card.link.index);
            if wanted.link.carrier && self.cards.get(&wanted.key).is_some_and(is_alone_off) {
                self.cards.remove(&wanted.key);
            } else if self.cards.contains_key(&wanted.key) {
                self.look_at_cable(&wanted);
            } else if !self.left_alone.has(wanted.key) {
                self.start(wanted)?;
            }
        }
        let of_ipv6 = ipv6_addresses();
        self.cards.values_mut().for_each(|card| card.take_ipv6_addresses(&of_ipv6));
        Ok(())
    }

    fn look_at_cable(&mut self, wanted: &WantedLink) {
        let Some(card) = self.cards.get_mut(&wanted.key) else { return };
        let name = &wanted.link.name;
        if wanted.link.carrier {
            if card.lost.is_some() || wanted.link.carrier_changes != card.card.carrier_changes {
                card.card.carrier_changes = wanted.link.carrier_changes;
                card.cable_is_back();
                self.applied.forget(card.link.index);
                self.console.say(name, Topic::Link, format!("{name}: link up again"));
            }
            return;
        }
        let since = *card.lost.get_or_insert_with(|| {
            self.console.say(name, Topic::Link, format!("{name}: link lost"));
            Instant::now()
        });
        if since.elapsed() >= GRACE {
            // The addresses must not answer on a network that they do not belong to.
            if let Some(card) = self.cards.remove(&wanted.key) {
                switch_off_ipv6(&card.link.name);
            }
        }
    }

    fn start(&mut self, wanted: WantedLink) -> Result<(), NetError> {
        let settings = self.settings[wanted.key.0].clone();
        let WantedLink { key, link: card } = wanted;
        match ready(&card, settings.vlan, &mut self.rtnl) {
            Ok(None) => {}
            Ok(Some(link)) => {
                self.console.say(&link.name, Topic::Link, format!("{}: link up", card.name));
                self.starts += 1;
                let free = (0..).find(|slot| self.cards.values().all(|card| card.slot != *slot)).unwrap_or_default();
                let numbers = (key, self.starts, free);
                self.remove_leftovers(&link);
                let started = Card::start(numbers, (card, link), settings, &self.news.0, &self.console)?;
                self.cards.insert(key, started);
            }
            Err(problem) => {
                let text = format!("{problem}; trying again in {} s", RETRY.as_secs());
                self.console.say(&card.name, Topic::Trouble, text);
                self.left_alone.add(key);
            }
        }
        Ok(())
    }

    /// Takes away the addresses that a link has from an earlier process of this boot, and with them the routes.
    fn remove_leftovers(&mut self, link: &Link) {
        if self.cards.values().any(|card| card.link.index == link.index) {
            return;
        }
        for (address, prefix_len) in ipv4_addresses(&link.name) {
            let item = NetworkItem::Address { index: link.index, address: address.into(), prefix_len };
            // One that cannot be removed is one address more.
            let _ = self.rtnl.remove(&link.name, item);
        }
    }

    /// Chooses the card for the default route, and returns the cards that have to be tried for it.
    fn choose(&mut self) -> Vec<CardKey> {
        let candidates: Vec<Candidate> = self.cards.values().filter_map(Card::candidate).collect();
        let received = self.chosen().map_or(0, |card| received_bytes(&card.link.name));
        let look = Look {
            now: self.began.elapsed(),
            candidates: &candidates,
            carriers: self.carriers,
            received,
            trouble: self.options.outcomes.take_failed(),
            served: self.options.outcomes.take_served(),
        };
        self.choice.look(&look)
    }

    fn try_card(&mut self, key: CardKey) {
        let Some(card) = self.cards.get(&key) else { return };
        let others = self.cards.values().filter(|other| other.key != key);
        let way = Way {
            link: card.link.clone(),
            servers: card.servers(),
            search: card.search(),
            others: others
                .flat_map(|other| other.servers().into_iter().map(|server| (server, other.link.clone())))
                .collect(),
            given: card.given,
        };
        let given = card.given;
        let (news, start, targets) = (self.news.0.clone(), card.start, self.targets.clone());
        let started = background(&format!("reach {}", card.link.name), move || {
            let report = |trial| _ = news.send(News { key, start, what: NewsKind::Tried(trial) });
            reach::attempt(&way, &targets, report);
        });
        if let Err(error) = started {
            let trial = ReachTrial { given, ..reach::no(format!("no thread to try it with: {error}")) };
            let _ = self.news.0.send(News { key, start, what: NewsKind::Tried(trial) });
        }
    }

    fn chosen(&self) -> Option<&Card> {
        self.cards.get(&self.choice.chosen()?)
    }

    /// Cards, the one in use first.
    fn in_order(&self) -> Vec<&Card> {
        let chosen = self.choice.chosen();
        let mut cards: Vec<&Card> = self.cards.values().collect();
        order::by_key(&mut cards, |card| (Some(card.key) != chosen, card.slot));
        cards
    }

    fn configure(&mut self) -> Result<(), NetError> {
        let chosen = self.choice.chosen();
        let links: Vec<_> = self.in_order().into_iter().map(|card| card.facts(Some(card.key) == chosen)).collect();
        let refused = self.applied.become_equal(&routing::items(&links), &mut self.rtnl, &self.console);
        match refused {
            // Waiting does not help a caller that lacks the right.
            Err(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Writes the name servers: those of the card that reaches a source, or of all cards. The resolver asks all that it
    /// knows at the same time, and one on an inner network may answer every question with itself.
    fn write_resolver(&mut self) -> Result<(), NetError> {
        let reached = self.chosen().filter(|card| {
            let own_names = card.trial.as_ref().is_some_and(|trial| !trial.foreign_names);
            self.choice.reach(card.key) == Reach::Yes && own_names && !card.servers().is_empty()
        });
        let cards = reached.map_or_else(|| self.in_order(), |card| vec![card]);
        let mut servers: Vec<ServerOnLink> = Vec::new();
        let mut search: Vec<String> = Vec::new();
        for card in cards {
            servers.extend(card.servers().into_iter().map(|server| (server, card.link.name.clone())));
            search.extend(card.search());
        }
        let text = resolver_file::text(&servers, &search);
        let written = self.resolver.as_ref().map(|(text, _)| text);
        // An empty list is written once an address is there: until then the file may be that of an initramfs.
        if written == Some(&text) || written.is_none() && self.chosen().is_none() {
            return Ok(());
        }
        let path = &self.options.resolv_conf;
        resolver_file::write(path, &text).map_err(|source| NetError::Resolver { path: path.clone(), source })?;
        self.resolver = Some((text, servers));
        Ok(())
    }

    /// Reports what has changed: addresses, and, where there are several cards, the use of each.
    fn report(&mut self) {
        for card in self.cards.values_mut() {
            for line in card.news_of_addresses() {
                self.console.say(&card.link.name, Topic::Address, line);
            }
        }
        if self.cards.len() < 2 {
            return;
        }
        let settled = self.choice.is_settled(self.began.elapsed());
        let in_use = self.chosen().map(|card| card.link.name.clone()).unwrap_or_default();
        let chosen = self.choice.chosen();
        for card in self.cards.values_mut() {
            let reach = self.choice.reach(card.key);
            let line = match () {
                () if !settled || self.choice.is_trying(card.key) && reach == Reach::Unknown => None,
                () if chosen == Some(card.key) => usage_of_chosen(card, reach),
                () => usage_of_other(card, reach, &in_use),
            };
            if let Some(line) = line.and_then(|line| card.news_of_use(line)) {
                self.console.say(&card.link.name, Topic::Use, format!("{}: {line}", card.link.name));
            }
        }
    }

    /// What the caller sees, once the choice is settled.
    fn up(&self) -> Option<Up> {
        let card = self.chosen().filter(|_| self.choice.is_settled(self.began.elapsed()))?;
        // With one card nothing has been tried: IPv6 that leads nowhere would cost the first requests their time.
        if card.awaits_lease() && self.choice.reach(card.key) != Reach::Yes {
            return None;
        }
        let (_, servers) = self.resolver.as_ref()?;
        card.up(servers.iter().map(|(server, _)| *server).collect())
    }
}
