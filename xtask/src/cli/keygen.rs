//! `keygen` on the command line.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::invocation::program;
use crate::keygen;
use crate::step::produced;

/// Options of `keygen`.
#[derive(Debug, clap::Args)]
pub struct KeygenArgs {
    /// Where reflash.key and reflash.pub go. Keep the directory: robots trust these keys.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Protect the secret key with the password in REFLASH_KEY_PASSWORD.
    #[arg(long)]
    password: bool,
}

/// Makes the key pair.
///
/// # Errors
/// When the password is missing, or a file exists or cannot be written.
pub fn run(args: &KeygenArgs) -> Result<()> {
    let password = args
        .password
        .then(|| std::env::var("REFLASH_KEY_PASSWORD").context("--password needs REFLASH_KEY_PASSWORD"))
        .transpose()?;
    let files = keygen::generate(&args.out, password)?;
    produced(&format!("secret key, for `{} release --key`", program()), &files.secret);
    produced("public key, for robots", &files.public);
    Ok(())
}
