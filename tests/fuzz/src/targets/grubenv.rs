//! The boot environment, and the variables and kernel arguments that are in it.

use reflash::boot::decide::{Reason, Recoveries};
use reflash::boot::efi;
use reflash::boot::grubenv::{Assignments, GrubEnv};
use reflash::boot::slots::{Slot, Trial};

pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let block = match kind % 3 {
        0 => [b"# GRUB Environment Block\n", rest].concat(),
        1 => rest.to_vec(),
        _ => {
            let text = String::from_utf8_lossy(rest);
            let text = (kind != 2).then_some(&*text);
            let _ = (Reason::parse(text), Recoveries::parse(text), Slot::parse(text), Trial::parse(text));
            let _ = (efi::is_ours(rest), efi::first_in(rest, u16::from(kind)));
            return;
        }
    };
    let assignments = Assignments::of(&block);
    let Ok(env) = GrubEnv::parse(&block) else {
        assert!(assignments.is_err());
        return;
    };
    if let Ok(encoded) = env.encode() {
        assert_eq!(GrubEnv::parse(&encoded).unwrap(), env);
    }
}
