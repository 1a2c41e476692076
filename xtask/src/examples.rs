//! `reflash-build examples`: the recipe and the layouts that a fleet's own repository begins with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::embedded;
use crate::paths::create_dir;
use crate::step::produced;

/// Options of `examples`.
#[derive(Debug, clap::Args)]
pub struct ExamplesArgs {
    /// Directory for the files.
    #[arg(long, default_value = "recipes", value_name = "DIR")]
    out: PathBuf,
}

const FILES: [(&str, &str, &str); 4] = [
    ("recipe of a system image", "robot.toml", embedded::RECIPE),
    ("layout of a GPT disk", "layout.toml", embedded::LAYOUT),
    ("layout of an MBR disk", "layout-mbr.toml", embedded::LAYOUT_MBR),
    ("layout of a GPT disk with two systems", "layout-two-systems.toml", embedded::LAYOUT_TWO_SYSTEMS),
];

/// Writes the examples. A file that exists is never overwritten: somebody may have made it their own.
///
/// # Errors
/// When a file exists or cannot be written.
pub fn run(args: &ExamplesArgs) -> Result<()> {
    create_dir(&args.out)?;
    for (what, name, text) in FILES {
        let path = args.out.join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("create {} (an existing file is never overwritten)", path.display()))?;
        produced(what, &path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ExamplesArgs, run};
    use crate::disk::read_layout;
    use crate::recipe::Recipe;

    #[test]
    fn examples_can_be_used_and_are_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let args = ExamplesArgs { out: directory.path().join("recipes") };
        run(&args).unwrap();
        Recipe::load(&args.out.join("robot.toml")).unwrap();
        for name in ["layout.toml", "layout-mbr.toml", "layout-two-systems.toml"] {
            read_layout(&args.out.join(name)).unwrap();
        }
        let own = args.out.join("robot.toml");
        std::fs::write(&own, "changed").unwrap();
        assert!(format!("{:#}", run(&args).unwrap_err()).contains("never overwritten"));
        assert_eq!(std::fs::read_to_string(own).unwrap(), "changed");
    }
}
