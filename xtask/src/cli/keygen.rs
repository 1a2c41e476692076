//! `keygen` on the command line.

use std::path::PathBuf;

use anyhow::Result;

use crate::invocation::program;
use crate::keygen;
use crate::project::needed;
use crate::step::produced;

/// Options of `keygen`.
#[derive(Debug, clap::Args)]
pub struct KeygenArgs {
    /// Directory for reflash.key and reflash.pub. Keep the directory: robots trust these keys.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Protect the secret key with a password, which is asked for, or taken from REFLASH_KEY_PASSWORD.
    #[arg(long)]
    password: bool,
}

/// Makes the key pair.
///
/// # Errors
/// When the password is missing, or a file exists or cannot be written.
pub fn run(args: &KeygenArgs) -> Result<()> {
    let out = needed(args.out.as_deref(), "--out", "keys.secret")?;
    let files = if args.password { keygen::generate_with_password(out)? } else { keygen::generate(out, None)? };
    produced(&format!("secret key, for `{} release --key`", program()), &files.secret);
    produced("public key, for robots", &files.public);
    Ok(())
}
