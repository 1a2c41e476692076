//! What the first step leaves in memory for the rest of the boot: the terms of the boot watch, and in a safe start the
//! network settings of the recovery.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::network_manager::Configurator;
use super::safe_network;
use super::take::answer_within;
use crate::boot::disk_record;
use crate::chain::chain;
use crate::jobs::health::HealthTerms;
use crate::machine::config::usable::Usable;
use crate::machine::config::{BootLayer, Layer, Network};
use crate::pid1::boot_watch::terms::WrittenTerms;
use crate::sys::files;

/// The configuration in the system, which is the machine's own and may hold anything.
const OWN: &str = "etc/reflash/reflash.toml";
/// Time for a look at the boot environment, on a disk that has to repeat some reads.
const LOOK: Duration = Duration::from_secs(30);
/// Size of the largest configuration file, bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// This boot, once its file systems are together.
pub(super) struct ThisBoot<'a> {
    /// Device of the state partition.
    pub state: Option<&'a Path>,
    /// The system's root.
    pub root: &'a Path,
    /// The kernel command line.
    pub command_line: &'a str,
}

impl ThisBoot<'_> {
    /// Leaves what the rest of the boot needs to know; `recovery` is the configuration of the recovery partition.
    /// Returns what went wrong: none of it keeps the system from starting.
    pub(super) fn leave(&self, recovery: &Layer, is_safe_start: bool) -> Vec<String> {
        let mut problems = Vec::new();
        let mut terms = WrittenTerms {
            state: self.state.map(Path::to_owned),
            counted: self.state.is_some_and(was_counted),
            ..WrittenTerms::default()
        };
        let boot = self.layers(recovery, &mut problems).boot;
        problems.extend(leave_health_terms(&boot));
        match boot.good_within() {
            Ok(limit) => terms.good_within_s = limit.map_or(0, |limit| limit.as_secs()),
            Err(error) => problems.push(chain(&error)),
        }
        if let Err(error) = terms.write() {
            problems.push(format!("the boot watch goes by its defaults: {error}"));
        }
        if is_safe_start && let Err(error) = leave_network(recovery, self.root) {
            problems.push(format!("the network has the image's settings alone: {error}"));
        }
        problems
    }

    /// The layers in the order of the command line's: the system's, the recovery partition's, kernel arguments. One
    /// that cannot be used is left out.
    fn layers(&self, recovery: &Layer, problems: &mut Vec<String>) -> Layer {
        let own = own(self.root).unwrap_or_else(|why| {
            problems.push(format!("left out: /{OWN}: {why}"));
            Usable::default()
        });
        let arguments = Layer::usable_kernel_arguments(self.command_line).map(|(usable, _)| usable);
        let arguments = arguments.unwrap_or_else(|error| {
            problems.push(format!("kernel arguments are left out: {}", chain(&error)));
            Usable::default()
        });
        problems.extend(own.problems.iter().chain(&arguments.problems).map(|problem| chain(problem)));
        own.value.overridden_by(recovery.clone()).overridden_by(arguments.value)
    }
}

/// Leaves the terms of the health checks; what is wrong with them.
fn leave_health_terms(boot: &BootLayer) -> Vec<String> {
    let mut problems = Vec::new();
    let mut terms = HealthTerms::default();
    match boot.checked_settle_s() {
        Ok(Some(settle_s)) => terms.settle_s = settle_s,
        Ok(None) => {}
        Err(error) => problems.push(chain(&error)),
    }
    terms.units = boot.health_units.clone().unwrap_or_default();
    terms.ignore = boot.health_ignore.clone().unwrap_or_default();
    if let Err(error) = terms.write() {
        problems.push(format!("health checks go by their defaults: {error}"));
    }
    problems
}

/// Whether GRUB has counted this start. Several do not count: one by the first script alone, one that a person chose
/// with no tries left, and one without GRUB (kexec).
fn was_counted(state: &Path) -> bool {
    let state = state.to_owned();
    let look = move || Ok(disk_record::read(&state, "this-boot").is_starting);
    answer_within(LOOK, "read the boot environment", look).unwrap_or(false)
}

fn own(root: &Path) -> Result<Usable<Layer>, String> {
    let text = match files::read_below(root, Path::new(OWN), MAX_CONFIG_BYTES) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|error| error.to_string())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Usable::default()),
        Err(error) => return Err(error.to_string()),
    };
    Layer::parse_usable(OWN, &text).map_err(|error| chain(&error))
}

fn leave_network(recovery: &Layer, root: &Path) -> Result<(), String> {
    let network = Network::resolve(recovery.network.clone()).map_err(|error| chain(&error))?;
    let written = safe_network::write(&network).and_then(|()| Configurator::of(root).prepare(root, &network));
    written.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::{OWN, ThisBoot};
    use crate::machine::config::Layer;

    #[test]
    fn the_limit_of_a_boot_comes_from_three_places_and_a_damaged_one_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/reflash")).unwrap();
        let limit = |own: &str, recovery: &str, command_line: &str| {
            std::fs::write(root.path().join(OWN), own).unwrap();
            let boot = ThisBoot { state: None, root: root.path(), command_line };
            let mut problems = Vec::new();
            let layer = boot.layers(&Layer::parse("recovery", recovery).unwrap(), &mut problems);
            (layer.boot.good_within_s, problems.len())
        };
        let of = |seconds: u64| format!("[boot]\ngood_within_s = {seconds}\n");
        assert_eq!(limit("", "", "quiet"), (None, 0));
        assert_eq!(limit(&of(900), "", ""), (Some(900), 0));
        assert_eq!(limit(&of(900), &of(700), ""), (Some(700), 0));
        assert_eq!(limit(&of(900), &of(700), "reflash.safe=1 reflash.good-within-s=0"), (Some(0), 0));
        assert_eq!(limit("\0\0\0", &of(700), ""), (Some(700), 1));
        assert_eq!(limit(&of(900), "", "reflash.good-within-s=soon"), (Some(900), 1));
        assert_eq!(limit(&format!("{}news = 1\n", of(900)), "", ""), (Some(900), 1), "written for a newer program");
    }
}
