//! Configuration files and the kernel command line.

use reflash::boot::decide::{Reason, Recoveries};
use reflash::boot::slots::{Slot, Trial};
use reflash::machine::config::{Config, Layer};

pub fn run(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    if kind % 2 == 0 {
        let _ = Layer::parse("a file", &text).and_then(Config::resolve);
        return;
    }
    let Ok((layer, arguments)) = Layer::from_kernel_command_line(&text) else { return };
    let base = Layer::parse("a file", "[release]\nurls = ['http://a']\n[machine]\nproduct = 'x'").unwrap();
    let _ = Config::resolve(base.overridden_by(layer));
    let slot = arguments.slot.as_deref();
    let _ = (Slot::parse(slot), Trial::parse(slot), Recoveries::parse(slot));
    let _ = Reason::parse(arguments.reason.as_deref());
}
