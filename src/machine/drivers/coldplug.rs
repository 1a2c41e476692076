//! Drivers for devices that appear while we run: USB hubs and disks, SCSI targets, hot-plugged cards.

use std::io;
use std::sync::Arc;

use super::{LoadedModules, Loader};
use crate::sys::thread::background;
use crate::sys::uevent::Uevents;

/// Listener for new devices, whose thread lives as long as the process.
#[derive(Debug)]
pub struct Coldplug(());

impl Coldplug {
    /// Starts listening, and loads the drivers of devices that appear from now on, in a thread. `on_loaded` is called
    /// after every round that did something. The caller loads the drivers of devices that are there already, after this
    /// call, so that none is missed in between.
    ///
    /// # Errors
    /// The kernel refused the socket or the thread.
    pub fn start(loader: Arc<Loader>, on_loaded: impl Fn(&LoadedModules) + Send + 'static) -> io::Result<Self> {
        let events = Uevents::listen()?;
        background("coldplug", move || {
            loop {
                let loaded = match events.next() {
                    Ok(message) => match added_alias(&message) {
                        Some(alias) => loader.load_for(alias),
                        None => continue,
                    },
                    // Events were lost. The devices they were about are in sysfs.
                    Err(_) => {
                        std::thread::sleep(std::time::Duration::from_millis(100));
                        loader.load_for_present_devices()
                    }
                };
                if !loaded.modules.is_empty() || !loaded.failures.is_empty() {
                    on_loaded(&loaded);
                }
            }
        })?;
        Ok(Self(()))
    }
}

/// Returns the alias of a device that was added. The message is `add@/devices/...` and then `KEY=value`, each ended by
/// a zero byte.
fn added_alias(message: &[u8]) -> Option<&str> {
    let mut fields = message.split(|byte| *byte == 0);
    if !fields.next()?.starts_with(b"add@") {
        return None;
    }
    fields.find_map(|field| std::str::from_utf8(field.strip_prefix(b"MODALIAS=")?).ok())
}

#[cfg(test)]
mod tests {
    use super::added_alias;

    #[test]
    fn only_added_devices_with_an_alias_count() {
        let add = b"add@/devices/x\0ACTION=add\0SUBSYSTEM=usb\0MODALIAS=usb:v0951\0SEQNUM=7\0";
        assert_eq!(added_alias(add), Some("usb:v0951"));
        assert_eq!(added_alias(b"remove@/devices/x\0ACTION=remove\0MODALIAS=usb:v0951\0"), None);
        assert_eq!(added_alias(b"add@/devices/x\0ACTION=add\0"), None);
        assert_eq!(added_alias(b""), None);
    }
}
