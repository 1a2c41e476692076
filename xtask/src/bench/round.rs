//! The runs of a round: every tool on a device prepared for it, over loopback and over slower links.

use std::path::Path;

use anyhow::Result;

use super::args::BenchArgs;
use super::case::{Case, Peers};
use super::device::LoopDevice;
use super::device::Memory;
use super::lab::{self, Nginx};
use super::link::SlowLink;
use super::peers::{Peer, YARDSTICK};
use super::report::BenchRun;
use super::served::{PRODUCT, Served};
use super::staged::{self, StagedCase, StagedLab, StagedRun};
use super::two_systems::{self, TwoSystemsRun};
use super::undo::{self, UndoCase, UndoRun};

/// The cases that are measured over slower links too.
pub const OVER_LINKS: [&str; 3] = ["fresh", "update_stable", "update_large"];

/// Laboratory and tools that all runs share.
pub struct Bench<'a> {
    pub options: &'a BenchArgs,
    pub work: &'a Path,
    pub served: &'a Served,
    pub memory: &'a Memory,
    pub server: &'a Nginx,
    pub path: &'a str,
    pub keys: &'a Path,
    /// Names of the agents, and where they are.
    pub agents: &'a [(&'static str, &'a Path)],
    pub peers: &'a [Peer],
}

/// A case, and where its files are served.
struct Place<'c> {
    case: &'c Case,
    /// Name of the case in the results.
    name: String,
    /// URL of the server, without a slash at its end.
    url: String,
    round: u32,
}

impl Bench<'_> {
    /// Every tool takes its turn over loopback.
    pub fn turns(&self, case: &Case, round: u32) -> Result<Vec<BenchRun>> {
        let place = Place { case, name: case.name.to_owned(), url: self.server.url(), round };
        let mut runs = self.ours(&place)?;
        for peer in self.peers.iter().filter(|peer| case.fits(peer)) {
            runs.push(self.peer(peer, &place)?);
        }
        Ok(runs)
    }

    /// The agents and the yardstick over a link of so many Mbit/s, once: the link decides, and not the machine.
    pub fn over_link(&self, case: &Case, mbit_s: u32) -> Result<Vec<BenchRun>> {
        let link = SlowLink::open(self.server.address(), mbit_s)?;
        let place = Place { case, name: format!("{}_{mbit_s}_mbit_s", case.name), url: link.url(), round: 1 };
        let mut runs = self.ours(&place)?;
        for peer in self.peers.iter().filter(|peer| peer.name == YARDSTICK && case.fits(peer)) {
            runs.push(self.peer(peer, &place)?);
        }
        Ok(runs)
    }

    fn ours(&self, place: &Place<'_>) -> Result<Vec<BenchRun>> {
        let run = |(tool, agent): &(&'static str, &Path)| {
            lab::warm([self.served.releases.clone()])?;
            let command = format!(
                "{} flash --target DEVICE --url {}/reflash --keys {} --product {PRODUCT} --hardware {PRODUCT} --channel {} {}",
                agent.display(),
                place.url,
                self.keys.display(),
                place.case.channel,
                place.case.options
            );
            self.one(place, tool, &command)
        };
        self.agents.iter().map(run).collect()
    }

    fn peer(&self, peer: &Peer, place: &Place<'_>) -> Result<BenchRun> {
        let case = place.case;
        lab::warm(peer.files(case.channel, &self.served.peers))?;
        let (url, seed) = (format!("{}/peers", place.url), case.peers == Peers::Updating);
        let command = peer.command(&url, case.channel, "DEVICE", seed, self.memory.path(), &self.served.peers);
        self.one(place, peer.name, &command)
    }

    /// One run of one tool on a device prepared for it. `DEVICE` in the command stands for the device.
    fn one(&self, place: &Place<'_>, tool: &str, command: &str) -> Result<BenchRun> {
        let Place { case, name, round, .. } = place;
        let bytes = case.image.metadata()?.len();
        let device = LoopDevice::new(self.memory, bytes, &case.before, self.options.sector_bytes)?;
        let log = self.work.join(format!("{name}-{}.log", tool.replace('|', "-")));
        let command = command.replace("DEVICE", &device.node);
        let cost = lab::timed(&command, self.path, self.server, self.work, &log)?;
        let right = cost.is_some() && device.holds(&case.image)?;
        match &cost {
            Some(cost) if right => {
                eprintln!("  {round}: {name} {tool}: {:.2} s, {:.1} MB", cost.wall_s, cost.download_mb);
            }
            Some(_) => eprintln!("  {round}: {name} {tool}: the device does not hold the image"),
            None => eprintln!("  {round}: {name} {tool}: failed, see {}", log.display()),
        }
        Ok(BenchRun { case: name.clone(), tool: tool.to_owned(), cost, right })
    }

    /// One update that is taken back.
    pub fn undo(&self, case: &UndoCase<'_>, round: u32) -> Result<UndoRun> {
        let public = self.keys.join("reflash.pub");
        let run = undo::measure(case, self.served, &public, self.memory, self.options.sector_bytes)?;
        eprintln!("  {round}: {}", run.line());
        Ok(run)
    }

    /// One update that is fetched beside a timer, and applied without a server.
    pub fn staged(&self, case: &StagedCase<'_>, round: u32, agent: &Path) -> Result<StagedRun> {
        let run = staged::measure(case, &self.lab(agent))?;
        eprintln!("  {round}: {}", run.line());
        Ok(run)
    }

    /// One update that is written to the other of two systems beside a timer, and switched to.
    pub fn beside(&self, case: &StagedCase<'_>, round: u32, agent: &Path) -> Result<TwoSystemsRun> {
        let run = two_systems::measure(case, &self.lab(agent))?;
        eprintln!("  {round}: {}", run.line());
        Ok(run)
    }

    fn lab<'a>(&'a self, agent: &'a Path) -> StagedLab<'a> {
        StagedLab {
            served: self.served,
            server: self.server,
            agent,
            keys: self.keys,
            memory: self.memory,
            work: self.work,
            path: self.path,
            sector_bytes: self.options.sector_bytes,
        }
    }
}
